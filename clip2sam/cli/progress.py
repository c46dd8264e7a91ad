"""What a person, a log file or a program sees of a run while it goes on."""

import json
import time
from collections import Counter
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from clip2sam.data.records import Labelled, to_row
from clip2sam.labelling.decide import reaches
from clip2sam.labelling.manifest import RunFolder
from clip2sam.labelling.summary import Summary

SECONDS_A_LINE = 10.0


class Display:
    """A bar on a terminal, else a line every ten seconds; nothing when quiet; JSON lines for machines.

    Failures are printed as they come, with their reason. The summary goes to standard output, the rest to standard
    error.
    """

    def __init__(
        self, out: Console, err: Console, *, quiet: bool = False, machine: bool = False
    ) -> None:
        self._out, self._err, self._quiet, self._machine = out, err, quiet, machine
        self._found: Counter[str] = Counter()
        self._total = self._done = self._failed = self._now = 0
        self._began = self._said = time.monotonic()
        shown = not quiet and not machine and err.is_terminal
        self._bar = Progress(
            TextColumn("labelling"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[found]}", markup=False),
            console=err,
            disable=not shown,
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

    def start(self, run: RunFolder, todo: int) -> None:
        """Called when it is known how much there is to do."""
        self._run, self._total = run, len(run.source.keys)
        self._done, self._began = self._total - todo, time.monotonic()
        if self._done and not self._quiet and not self._machine:
            self._err.print(
                f"{self._done} of {self._total} pictures are in the journal already; {todo} to do"
            )

    def picture(self, record: Labelled) -> None:
        """Called for each picture that is in the journal."""
        self._done, self._now = self._done + 1, self._now + 1
        run = self._run
        kept = {
            m.label
            for m in record.masks
            if reaches(record.presence[m.label], run.thresholds[m.label])
        }
        self._found.update(run.classes[label].name for label in kept)
        if record.state == "failed":
            self._failed += 1
            if not self._machine:
                self._err.print(Text(f"failed: {record.reason}", style="red"))
        if self._machine and not self._quiet:
            self._say_json(to_row(record))
        self._show()

    def finish(self, summary: Summary, machine_rows: dict[str, Any]) -> None:
        """Print the summary: a table, or one line of JSON."""
        if self._machine:
            self._say_json(machine_rows)
        elif not self._quiet:
            _print_table(self._out, summary)

    def _show(self) -> None:
        """The bar, or a line when the last one is a while ago."""
        if self._quiet or self._machine:
            return
        rate = self._now / max(time.monotonic() - self._began, 1e-9)
        found = ", ".join(f"{name} {n}" for name, n in self._found.most_common(4))
        found += f"; {self._failed} failed" if self._failed else ""
        self._bar.update(
            self._task, total=self._total, completed=self._done, rate=rate, found=found
        )
        if not self._err.is_terminal and time.monotonic() - self._said >= SECONDS_A_LINE:
            self._said = time.monotonic()
            left = (self._total - self._done) / max(rate, 1e-9)
            line = (
                f"{self._done} of {self._total} pictures, {rate:.1f}/s, {left:.0f} s left; {found}"
            )
            self._err.print(Text(line))

    def _say_json(self, rows: dict[str, Any]) -> None:
        self._out.file.write(json.dumps(rows, allow_nan=False) + "\n")
        self._out.file.flush()


def _print_table(out: Console, summary: Summary) -> None:
    table = Table("class", "threshold", "pictures", "masks", "mean score")
    for found in summary.classes:
        threshold = "none" if found.threshold is None else f"{found.threshold:g}"
        score = f"{found.score:.3f}" if found.masks else ""
        table.add_row(Text(found.name), threshold, str(found.pictures), str(found.masks), score)
    out.print(table)
    out.print(
        f"{summary.listed} listed = {summary.done} done + {summary.empty} empty + {summary.failed} failed; "
        f"{summary.labelled_now} now, in {summary.seconds:.1f} s, {summary.pictures_per_second:.2f} a second; the "
        f"model waited {summary.waited_for_pictures:.1%} for pictures, {summary.waited_for_writer:.1%} for the writer"
    )
