"""The journal through exporters into files, and counted; and a finished run's own files.

What exporters write depends on the manifest and the journal's records alone, so it is the same to
the byte whatever the batch size, the number of threads or interruptions, but for the date in COCO's
`info`, which is that of the run's first start.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from clip2sam.coco.outlines import Fit
from clip2sam.data.files import as_json, atomic_file, write_atomically
from clip2sam.data.labels import class_from_row
from clip2sam.data.records import ImageRecord
from clip2sam.errors import ConfigError
from clip2sam.export import Exporter
from clip2sam.labelling import journal
from clip2sam.labelling.content import Content
from clip2sam.labelling.decide import Decision, decide, decided_for, decided_thresholds
from clip2sam.labelling.info import run_info
from clip2sam.labelling.lock import LOCK, OWNER
from clip2sam.labelling.manifest import MANIFEST, RunFolder, Work
from clip2sam.models.locators import LOCATORS
from clip2sam.tiny.vocabulary import unknown_names

SUMMARY = "summary.json"
PRESENCE = "presence.png"

BIN = 0.02
"""Width of a presence histogram's bin."""


@dataclass
class Clock:
    """Where the time of a start went, in seconds, from the first image on."""

    images: int = 0
    """Those that went into the journal."""
    total: float = 0.0
    waited_for_images: float = 0.0
    waited_for_writer: float = 0.0
    began: float | None = None

    @property
    def work(self) -> Work:
        """For the run."""
        return Work(self.images, self.total, self.waited_for_images, self.waited_for_writer)


@dataclass(frozen=True)
class ClassSummary:
    """What was found of one class."""

    name: str
    threshold: float | None
    """The run's presence threshold for it."""
    images: int = 0
    """Images with a mask of it."""
    masks: int = 0
    mean_score: float = 0.0
    """Over its masks; 0 if there are none."""
    histogram: dict[float, int] = field(default_factory=dict)
    """Presence scores: lower edge of each bin that is not empty, and number of images in it."""


@dataclass(frozen=True)
class Summary:
    """A run in figures. listed = done + empty + failed + rejected, when it is finished."""

    listed: int
    done: int
    empty: int
    failed: int
    classes: tuple[ClassSummary, ...]
    failures: tuple[dict[str, str], ...]
    """file_name and reason of every image that failed."""
    rejected: int = 0
    """Images that a person has rejected; they are among none of the counts above."""
    reviewed: int = 0
    """Images that a person has decided on, the rejected ones among them."""
    masks_are: str = ""
    """"one for each object" or "one for each label"; empty if the engine doesn't say."""
    unknown_labels: tuple[str, ...] = ()
    """Of a run with the preset tiny: labels that it doesn't know, distractors and parts of joined
    ones too. What it found of them means nothing."""
    polygons: Fit | None = None
    """Of what was written as polygons, if anything was."""
    labelled_now: int = 0
    """Images of this start; those of earlier ones are in the journal."""
    seconds_now: float = 0.0
    """What they took."""
    labelled: int = 0
    """Images of all starts, those that were killed excepted. One that was labelled again counts
    again. The rest is about all these starts too."""
    seconds: float = 0.0
    images_per_second: float = 0.0
    waited_for_images: float = 0.0
    """Share of the time, 0 to 1, for which the model had no image."""
    waited_for_writer: float = 0.0
    """Share of the time for which the model had no room for what it made."""


def check_exporters(exporters: Mapping[str, Exporter]) -> Mapping[str, Exporter]:
    """The exporters themselves, if each has the name of a file of its own in the run's folder.

    Raises:
        ConfigError: a name is a path, or that of a file that every run has.
    """
    taken = (MANIFEST, LOCK, OWNER, journal.FILE, SUMMARY, PRESENCE)
    for name in exporters:
        if name in (*taken, "", ".", "..") or Path(name).name != name:
            raise ConfigError(
                f"exporters: expected the name of a file in the run's folder, other than "
                f"{', '.join(taken)}, got {name!r}"
            )
    return exporters


def unknown_labels(run: RunFolder) -> tuple[str, ...]:
    """The labels of a run that its models don't know, as far as that can be told: of those of the
    preset tiny, unless a locator has brought its own."""
    kind = LOCATORS.get(run.fingerprint.get("engine", {}).get("locator", ""))
    if run.fingerprint.get("preset") != "tiny" or not (kind is None or kind.with_clip):
        return ()
    return unknown_names(map(class_from_row, run.fingerprint["labels"]["classes"]))


def publish(
    content: Content,
    exporters: Mapping[str, Exporter],
    now: Work,
    *,
    drawn: bool = True,
    on_image: Callable[[int, int], Any] | None = None,
) -> Summary:
    """Write a finished run's files into its folder.

    Args:
        exporters: for each file name the exporter that writes it, see `check_exporters`.
        now: what this start did, which the run's work has already.
        drawn: whether the presence scores are drawn.
        on_image: as for `write_files`.

    Raises:
        OutputError: a file can't be written; an older one stays as it was.
    """
    run, work = content.run, content.run.work
    paths = {run.path / name: exporter for name, exporter in exporters.items()}
    total = work.seconds or math.inf  # of a run without an image
    summary = replace(
        write_files(content, Decision(), paths, on_image),
        labelled_now=now.images,
        seconds_now=round(now.seconds, 3),
        labelled=work.images,
        seconds=round(work.seconds, 3),
        images_per_second=round(work.images / total, 3),
        waited_for_images=round(work.waited_for_images / total, 4),
        waited_for_writer=round(work.waited_for_writer / total, 4),
    )
    if drawn:
        _draw_presence(run.path / PRESENCE, summary)
    write_atomically(run.path / SUMMARY, as_json(as_row(summary)).encode() + b"\n")
    return summary


def write_files(
    content: Content,
    decision: Decision,
    exporters: Mapping[Path, Exporter],
    on_image: Callable[[int, int], Any] | None = None,
) -> Summary:
    """Decide every recorded image, give the records to exporters, and count them.

    Each exporter reads the journals anew: none of them can make another one wait, or hold all
    records in memory.

    Args:
        exporters: for each path the exporter that writes it.
        on_image: called for each image, by the first exporter, with the number done, and of how
            many.

    Raises:
        ConfigError: the decision doesn't fit the run.
        RunError: journal and manifest don't belong together.
        CocoError, OutputError: what the exporters raise.
    """
    run, counts = content.run, _Counts(content)
    thresholds, decision = decided_thresholds(run, decision), decided_for(run, decision)
    counted = _decided(content, decision, thresholds, counts)
    if on_image is not None:
        counted = _reported(counted, counts, content.images, on_image)
    records, fit = counted, None
    for path, exporter in exporters.items():
        fit = exporter.write(records, run.classes, path) or fit
        records = _decided(content, decision, thresholds)
    for _ in counted:
        """Count what the first exporter has left, and everything if there is none."""
    return replace(counts.summary(), polygons=fit)


def as_row(summary: Summary) -> dict[str, Any]:
    """The summary as JSON, whose keys are text."""
    row = asdict(summary)
    for one in row["classes"]:
        one["histogram"] = {f"{edge:g}": n for edge, n in one["histogram"].items()}
    return row


def _decided(
    content: Content,
    decision: Decision,
    thresholds: Sequence[float | None],
    counts: "_Counts | None" = None,
) -> Iterator[ImageRecord]:
    """Decided records, without those that failed or were rejected, in the order of the source."""
    names = content.run.class_names
    for record in content.records():
        if record.state != "failed":
            record = decide(record, decision, names, thresholds)
        if counts is not None:
            counts.add(record)
        if record.is_written:
            yield record


def _reported(
    records: Iterator[ImageRecord],
    counts: "_Counts",
    total: int,
    on_image: Callable[[int, int], Any],
) -> Iterator[ImageRecord]:
    """The same records, each reported when it is written. Those that failed or were rejected are
    not among them: they are reported with the next one."""
    for record in records:
        yield record
        on_image(counts.images, total)
    on_image(counts.images, total)


class _Counts:
    """Counts of records on their way to an exporter."""

    def __init__(self, content: Content) -> None:
        self._run = run = content.run
        self._listed = content.images
        self._states = Counter[str]()
        self._reviewed = 0
        self._failures: list[dict[str, str]] = []
        self._images, self._masks = Counter[str](), Counter[str]()
        self._scores = dict.fromkeys(run.class_names, 0.0)
        self._histograms = [Counter[int]() for _ in run.classes]

    @property
    def images(self) -> int:
        """So many records were counted."""
        return self._states.total()

    def add(self, record: ImageRecord) -> None:
        """Count a record that is decided, or failed."""
        self._reviewed += record.review is not None
        self._states["rejected" if record.is_rejected else record.state] += 1
        if record.state == "failed":
            self._failures.append({"file_name": record.file_name, "reason": record.reason})
        if not record.is_written:
            return
        self._images.update({a.label for a in record.annotations})
        for annotation in record.annotations:
            self._masks[annotation.label] += 1
            self._scores[annotation.label] += annotation.score
        for histogram, score in zip(self._histograms, record.presence, strict=True):
            if score is not None:
                histogram[math.floor(score / BIN)] += 1

    def summary(self) -> Summary:
        """The counts so far."""
        classes = zip(self._run.class_names, self._run.thresholds, self._histograms, strict=True)
        return Summary(
            self._listed,
            self._states["done"],
            self._states["empty"],
            self._states["failed"],
            tuple(self._class(*one) for one in classes),
            tuple(self._failures),
            rejected=self._states["rejected"],
            reviewed=self._reviewed,
            masks_are=run_info(self._run).get("masks", ""),
            unknown_labels=unknown_labels(self._run),
        )

    def _class(
        self, name: str, threshold: float | None, histogram: Mapping[int, int]
    ) -> ClassSummary:
        masks = self._masks[name]
        return ClassSummary(
            name,
            threshold,
            self._images[name],
            masks,
            round(self._scores[name] / masks, 6) if masks else 0.0,
            {round(edge * BIN, 6): n for edge, n in sorted(histogram.items())},
        )


def _draw_presence(path: Path, summary: Summary) -> None:
    """The presence scores of all classes: to choose thresholds from."""
    from clip2sam.visualize.histogram import presence_figure  # matplotlib is slow to import

    figure = presence_figure(summary.classes, BIN)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=100)
