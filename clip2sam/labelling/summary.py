"""The journal published: annotations.json, results.json, summary.json and presence.png, each whole or not at all.

What `annotations.json` and `results.json` hold depends on the journal's records alone, so they are the same to the byte
whatever the batch size, the number of threads or interruptions. Ids are those of the frozen list of pictures.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from clip2sam.data.files import as_json, atomic_file
from clip2sam.data.records import FoundMask, Labelled
from clip2sam.errors import RunError
from clip2sam.export.coco import Add, coco_file, results_file
from clip2sam.labelling.decide import Decision, decide, decided_thresholds
from clip2sam.labelling.flow import Clock
from clip2sam.labelling.journal import Index, read_records
from clip2sam.labelling.manifest import RunFolder

BIN = 0.02
"""Width of a presence histogram's bin."""


@dataclass
class ClassSummary:
    """What was found of one class."""

    name: str
    threshold: float | None
    pictures: int = 0
    masks: int = 0
    score: float = 0.0
    """Mean over its masks."""
    histogram: dict[float, int] = field(default_factory=dict)
    """Presence scores: lower edge of each bin that is not empty, and number of pictures in it."""


@dataclass
class Summary:
    """A run in figures. listed = done + empty + failed."""

    listed: int
    done: int
    empty: int
    failed: int
    classes: list[ClassSummary]
    failures: list[dict[str, str]]
    """file_name and reason of every picture that failed."""
    labelled_now: int = 0
    """Pictures of this start; those of earlier ones are in the journal. The rest is about this start alone."""
    seconds: float = 0.0
    pictures_per_second: float = 0.0
    waited_for_pictures: float = 0.0
    """Share of the time, 0 to 1, for which the model had no picture."""
    waited_for_writer: float = 0.0
    """Share of the time for which the model had no room for what it made."""


def publish(
    run: RunFolder, index: Index, clock: Clock | None = None, labelled_now: int = 0
) -> Summary:
    """Write a finished run's files into its folder.

    Raises `OutputError` when the disk refuses; the older files then stay.
    """
    data_set, results = run.path / "annotations.json", run.path / "results.json"
    with coco_file(run, data_set) as add_image, results_file(run, results) as add_results:
        summary = pour(run, index, Decision(), [add_image, add_results])
    clock = clock or Clock()
    summary.labelled_now, summary.seconds = labelled_now, round(clock.total, 3)
    if clock.total:
        summary.pictures_per_second = round(labelled_now / clock.total, 3)
        summary.waited_for_pictures = round(clock.waited_for_pictures / clock.total, 4)
        summary.waited_for_writer = round(clock.waited_for_writer / clock.total, 4)
    _draw_presence(run, summary)
    with atomic_file(run.path / "summary.json") as file:
        file.write(as_json(as_rows(summary)).encode() + b"\n")
    return summary


def pour(run: RunFolder, index: Index, decision: Decision, formats: Sequence[Add]) -> Summary:
    """Decide every picture of the journal and hand it to the formats, in order; count on the way."""
    thresholds = decided_thresholds(run, decision)
    classes = [ClassSummary(c.name, t) for c, t in zip(run.classes, run.thresholds, strict=True)]
    summary = Summary(len(run.source.keys), 0, 0, 0, classes, [])
    histograms = [Counter[int]() for _ in classes]
    for record in read_records(run.journal, index):
        if record.key != run.source.keys[record.picture]:
            raise RunError(
                f"{run.journal}: the journal's picture {record.picture} has another name than the manifest's; they "
                "belong to different runs"
            )
        if record.state == "failed":
            summary.failed += 1
            summary.failures.append({"file_name": record.key, "reason": record.reason})
            continue
        masks = decide(record, decision, thresholds)
        for add in formats:
            add(record, masks)
        _count(summary, histograms, record, masks)
    for found, histogram in zip(classes, histograms, strict=True):
        found.score = round(found.score / found.masks, 6) if found.masks else 0.0
        found.histogram = {round(edge * BIN, 6): n for edge, n in sorted(histogram.items())}
    return summary


def _count(
    summary: Summary, histograms: list[Counter[int]], record: Labelled, masks: Sequence[FoundMask]
) -> None:
    summary.done += bool(masks)
    summary.empty += not masks
    for label in {m.label for m in masks}:
        summary.classes[label].pictures += 1
    for mask in masks:
        summary.classes[mask.label].masks += 1
        summary.classes[mask.label].score += mask.score
    for histogram, score in zip(histograms, record.presence, strict=True):
        if score is not None:
            histogram[math.floor(score / BIN)] += 1


def as_rows(summary: Summary) -> dict[str, Any]:
    """The summary as JSON, whose keys are text."""
    rows = asdict(summary)
    for row in rows["classes"]:
        row["histogram"] = {f"{edge:g}": n for edge, n in row["histogram"].items()}
    return rows


def _draw_presence(run: RunFolder, summary: Summary) -> None:
    """presence.png: to choose thresholds from."""
    from clip2sam.visualize.histogram import presence_figure  # matplotlib is slow to load

    figure = presence_figure(summary.classes, BIN)
    with atomic_file(run.path / "presence.png") as file:
        figure.savefig(file, format="png", dpi=100)
