"""What a person, a log file or a program sees of a run while it goes on."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from clip2sam.cli.options import places
from clip2sam.cli.presets import print_unknown
from clip2sam.data.labels import LabelClass
from clip2sam.data.presence import recorded_presence
from clip2sam.data.records import ImageRecord, record_to_row
from clip2sam.labelling.changes import StartCounts
from clip2sam.labelling.manifest import RunFolder
from clip2sam.labelling.summary import Summary, as_row

SECONDS_PER_LINE = 10.0
REASONS = 200
"""So many failures of a run on many machines are printed; the others are counted."""


class Display:
    """A bar on a terminal, else a line every ten seconds; nothing when quiet; JSON lines for
    programs.

    Failures are printed as they come, with their reason. The summary goes to standard output, the
    rest to standard error.
    """

    def __init__(
        self, out: Console, err: Console, *, quiet: bool = False, as_json: bool = False
    ) -> None:
        self._out, self._err, self._quiet, self._as_json = out, err, quiet, as_json
        self._found: Counter[str] = Counter()
        self._total = self._done = self._failed = self._done_now = self._printed = 0
        self._began = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("labelling"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[found]}", markup=False),
            console=err,
            disable=quiet or as_json or not err.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, rate=0.0, found="")

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def start(self, run: RunFolder, counts: StartCounts) -> None:
        """Called when it is known how many images are left to do."""
        self._run, self._total = run, counts.listed
        self._done, self._began = self._total - counts.todo, time.monotonic()
        if not self._quiet and not self._as_json:
            self._err.print(_first_line(counts))

    def set_run(self, run: RunFolder) -> None:
        """In place of `start`, for `finish`."""
        self._run = run

    def counts(self, listed: int, todo: int, now: int, failed: int, reasons: Sequence[str]) -> None:
        """In place of `start` and `image`, for a run whose records are on other machines.

        Args:
            listed, todo: all images, and those that are left.
            now, failed: labelled in this start, and how many of these failed.
            reasons: why images failed since the last call.
        """
        if not self._total:
            self._began = self._last_line = time.monotonic()
        self._total, self._done = listed, listed - todo
        self._done_now, self._failed = now, failed
        if not self._as_json:
            for reason in reasons[: max(REASONS - self._printed, 0)]:
                self._err.print(Text(f"failed: {reason}", style="red"))
            if self._printed < REASONS <= self._printed + len(reasons):
                self._err.print(Text("more failures are only counted; summary.json has them all"))
            self._printed += len(reasons)
        self._show()

    def image(self, record: ImageRecord) -> None:
        """Called for each image that is in the journal."""
        self._done, self._done_now = self._done + 1, self._done_now + 1
        if record.state == "failed":
            self._failed += 1
            if not self._as_json:
                self._err.print(Text(f"failed: {record.reason}", style="red"))
        else:
            self._count(record)
        if self._as_json and not self._quiet:
            _print_json(self._out, record_to_row(record, self._run.class_names))
        self._show()

    def _count(self, record: ImageRecord) -> None:
        """Count the classes that the run keeps; below their threshold there may be more masks."""
        run = self._run
        decided = recorded_presence(record.presence, record.beaten, run.thresholds)
        present = {name for name, yes in zip(run.class_names, decided, strict=True) if yes}
        self._found.update(present & {a.label for a in record.annotations})

    def finish(self, summary: Summary) -> None:
        """Print the summary, see `print_summary`."""
        classes = () if self._quiet else self._run.classes
        print_summary(self._out, summary, classes, quiet=self._quiet, as_json=self._as_json)

    def _show(self) -> None:
        """Update the bar, or print a line if the last one is a while ago."""
        if self._quiet or self._as_json:
            return
        rate = self._done_now / max(time.monotonic() - self._began, 1e-9)
        found = ", ".join(f"{name} {n}" for name, n in self._found.most_common(4))
        found += f"; {self._failed} failed" if self._failed else ""
        self._bar.update(
            self._task, total=self._total, completed=self._done, rate=rate, found=found
        )
        if not self._err.is_terminal and time.monotonic() - self._last_line >= SECONDS_PER_LINE:
            self._last_line = time.monotonic()
            left = (self._total - self._done) / max(rate, 1e-9)
            line = f"{self._done} of {self._total} images, {rate:.1f}/s, {left:.0f} s left; {found}"
            self._err.print(Text(line))


def print_summary(
    out: Console,
    summary: Summary,
    classes: Sequence[LabelClass],
    *,
    quiet: bool = False,
    as_json: bool = False,
    merged: bool = False,
) -> None:
    """Print a run's summary: a table, or one line of JSON. That labels are unknown is said even
    when quiet.

    Args:
        classes: the run's, whose places in a caption the table has.
        merged: it is that of shards put together, which labels nothing itself.
    """
    if as_json:
        _print_json(out, as_row(summary))
    elif not quiet:
        _print_table(out, summary, classes, _work(summary, merged))
    print_unknown(summary.unknown_labels)


def _print_json(out: Console, row: Mapping[str, Any]) -> None:
    out.file.write(json.dumps(row, allow_nan=False) + "\n")
    out.file.flush()


def _first_line(counts: StartCounts) -> str:
    """What a start found: all images, and what became of them since the run began."""
    if counts.begins:
        return f"{counts.listed} images listed"
    since = {"new": counts.new, "changed": counts.changed, "no longer there": counts.gone}
    found = "".join(f", {number} {what}" for what, number in since.items() if number)
    done = counts.listed - counts.todo
    return (
        f"{counts.listed} images listed{found}; {done} of them in the journal already, "
        f"{counts.todo} to do"
    )


def _work(summary: Summary, merged: bool) -> str:
    """How many images this start labelled, and all starts together where there were others."""
    if merged:
        return f"{summary.labelled} labelled, in {summary.seconds:.1f} s"
    now = f"{summary.labelled_now} labelled now, in {summary.seconds_now:.1f} s"
    if summary.labelled == summary.labelled_now:
        return now
    return f"{now}; {summary.labelled} by all starts, in {summary.seconds:.1f} s"


def _print_table(out: Console, summary: Summary, classes: Sequence[LabelClass], work: str) -> None:
    table = Table("class", "threshold", "images", "masks", "mean score")
    for found, c in zip(summary.classes, classes, strict=True):
        threshold = "none" if found.threshold is None else f"{found.threshold:g}"
        score = f"{found.mean_score:.3f}" if found.masks else ""
        name = Text(f"{found.name}{places(c.spans)}")
        table.add_row(name, threshold, str(found.images), str(found.masks), score)
    out.print(table)
    if summary.masks_are:
        out.print(f"masks: {summary.masks_are}")
    rejected = f" + {summary.rejected} rejected" if summary.rejected else ""
    out.print(
        f"{summary.listed} listed = {summary.done} done + {summary.empty} empty + "
        f"{summary.failed} failed{rejected}; {work}, {summary.images_per_second:.2f} a second; the "
        "model waited "
        f"{summary.waited_for_images:.1%} for images, {summary.waited_for_writer:.1%} for the "
        "writer"
    )
