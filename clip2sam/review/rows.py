"""What the page is told, as JSON: `page.js` takes rows apart in the same order."""

from collections.abc import Sequence
from typing import Any

from clip2sam.coco.outlines import TOLERANCE, outline_of
from clip2sam.coco.rle import area_and_box
from clip2sam.data.images import printable
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.labelling.info import run_info
from clip2sam.labelling.manifest import RunFolder
from clip2sam.labelling.summary import BIN, Summary, as_row
from clip2sam.review.pictures import SIDE

UNITS = 1000
"""Coordinates of masks and points are whole numbers; the image's longer side is so many."""

STATES = ("done", "empty", "failed")


def about_run(run: RunFolder, listed: int, summary: Summary) -> dict[str, Any]:
    """What was asked, and how it went.

    Args:
        listed: the run's images, recorded or not.
        summary: of what is recorded.
    """
    counts = as_row(summary)
    classes = [
        {**row, "floor": floor, "prompts": [p for part in one.parts for p in part.prompts]}
        for row, floor, one in zip(counts["classes"], run.floors, run.classes, strict=True)
    ]
    recorded = summary.done + summary.empty + summary.failed + summary.rejected
    own = ("prompts", "presence_thresholds")  # they are with the classes
    return {
        "source": printable(run.origin),
        "images": listed,
        "done": summary.done,
        "empty": summary.empty,
        "failed": summary.failed,
        "rejected": summary.rejected,
        "reviewed": summary.reviewed,
        "waiting": listed - recorded,
        "bin": BIN,
        "units": UNITS,
        "classes": classes,
        "unknown": list(summary.unknown_labels),
        "asked": {key: value for key, value in run_info(run).items() if key not in own},
        "settings": {key: value for key, value in run.fingerprint.items() if key != "labels"},
    }


def overview_row(record: ImageRecord, kept: set[int], classes: Sequence[str], note: str) -> Any:
    """What filters and orders need of an image: name, state, height, width, note, presence scores,
    places of the beaten classes, masks as (class, score, 1 if it is kept), a person's verdict or
    "".

    Args:
        kept: `id` of the annotations that the run's own decision keeps.
        classes: the names of the run's classes.
        note: why it failed, or why there is no picture of it; "" else.
    """
    index = {name: i for i, name in enumerate(classes)}
    return [
        printable(record.file_name),
        STATES.index(record.state),
        *record.size,
        note,
        record.presence,
        [i for i, beaten in enumerate(record.beaten) if beaten],
        [[index[a.label], round(a.score, 4), int(id(a) in kept)] for a in record.annotations],
        "" if record.review is None else record.review.verdict,
    ]


def detail_row(record: ImageRecord) -> Any:
    """What is drawn over an image: for each of its annotations the share, the outline as an SVG
    path, and the points as (x, y, 1 or 0)."""
    scale = UNITS / max(*record.size, 1)
    return [
        [
            round(a.share, 4),
            _path(a, scale),
            [[round(x * scale), round(y * scale), kind] for x, y, kind in a.points],
        ]
        for a in record.annotations
    ]


def _path(annotation: Annotation, scale: float) -> str:
    """The outline, no corner farther from the mask than about a pixel of the small image."""
    if area_and_box(annotation.rle)[0] == 0:
        return ""
    tolerance = max(TOLERANCE, UNITS / SIDE / scale)
    rings = outline_of(annotation.rle, tolerance).polygons
    return "".join(
        "M" + " ".join(f"{round(value * scale)}" for value in ring) + "Z" for ring in rings
    )
