"""What became of an image: the one record from the masks to every file.

The pipeline's result, the journal of a run, and every exporter hold these records and no others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

State = Literal["done", "empty", "failed"]
Verdict = Literal["accepted", "corrected", "rejected"]


@dataclass(frozen=True)
class Annotation:
    """One mask of one label."""

    label: str
    """The class, exactly as typed."""
    rle: dict[str, Any]
    """pycocotools' compressed RLE: {"size": [height, width], "counts": str}."""
    score: float
    """0 to 1, see `as_float32`."""
    points: tuple[tuple[float, float, int], ...] = ()
    """Its prompt: x, y in continuous pixels of the image, and 1 (positive) or 0 (negative)."""
    share: float = 1.0
    """How strong it is beside the label's best mask in the image, 0 to 1, see
    `clip2sam.types.Masks`; with one mask a label 1."""


@dataclass(frozen=True)
class Review:
    """What a person decided about an image."""

    verdict: Verdict
    """accepted, corrected: the record's annotations are right as they are, or as the person made
    them; rejected: they are wrong, and the image is left out of everything that is written."""
    by: str = ""
    """Who, as they call themselves."""
    at: str = ""
    """When, ISO 8601 in UTC."""


@dataclass(frozen=True)
class ImageRecord:
    """What became of one image."""

    image_id: int
    """Its COCO id: the dataset's own, or 1, 2, 3, ... in the order of the source."""
    file_name: str
    """POSIX path below the dataset's root, as the file system spells it."""
    size: tuple[int, int] = (0, 0)
    """(height, width) in pixels; (0, 0) if it failed."""
    state: State = "done"
    """done: it has a mask that is kept; empty: none; failed: see `reason`."""
    reason: str = ""
    """Why it failed."""
    annotations: tuple[Annotation, ...] = ()
    """In the order of the classes, those of a class with the best score first. In a journal also
    those of objects that are weak beside the label's best one, and those below their threshold that
    the run was asked to keep."""
    presence: tuple[float | None, ...] = ()
    """Presence score of every class asked for, also of absent ones; None where it is not finite."""
    beaten: tuple[bool, ...] = ()
    """For every class whether a distractor scores higher at the class's own peak."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What it took to decode it, to run the model (its share of the batch), and to make the
    masks."""
    review: Review | None = None
    """What a person decided; then the annotations are those that were seen, and no threshold
    applies to them."""
    url: str = ""
    """Its address, if it was fetched from the web. A journal doesn't have it."""

    @property
    def is_written(self) -> bool:
        """Whether exporters get it: it has not failed, and no person has rejected it."""
        return self.state != "failed" and not self.is_rejected

    @property
    def is_rejected(self) -> bool:
        """Whether a person has rejected it."""
        return self.review is not None and self.review.verdict == "rejected"


def as_float32(value: Any) -> float:
    """The shortest decimal number that is this float32: 0.1, not 0.10000000149.

    Scores are float32 on the device; every record and file holds them in this form.
    """
    return float(str(np.float32(value)))


def record_to_row(record: ImageRecord, classes: Sequence[str]) -> dict[str, Any]:
    """A record as JSON, id and state first: the journal finds them there without reading the rest.

    Args:
        classes: the names of all classes asked for; labels become indices into them.
    """
    row: dict[str, Any] = {
        "image_id": record.image_id,
        "state": record.state,
        "file_name": record.file_name,
    }
    if record.review is not None:
        row["review"] = record.review.verdict
        row["reviewed"] = {"by": record.review.by, "at": record.review.at}
    if record.state == "failed":
        return {**row, "reason": record.reason, "seconds": record.seconds}
    index = {name: i for i, name in enumerate(classes)}
    return {
        **row,
        "size": record.size,
        "presence": record.presence,
        "beaten": [i for i, beaten in enumerate(record.beaten) if beaten],
        "annotations": [
            {
                "label": index[a.label],
                "score": a.score,
                "share": a.share,
                "points": a.points,
                "counts": a.rle["counts"],
            }
            for a in record.annotations
        ],
        "seconds": record.seconds,
    }


def record_from_row(row: dict[str, Any], classes: Sequence[str]) -> ImageRecord:
    """The record of a row of `record_to_row`."""
    height, width = row.get("size", (0, 0))
    beaten = set(row.get("beaten", ()))
    presence = tuple(row.get("presence", ()))
    review = None
    if "review" in row:
        review = Review(row["review"], row["reviewed"]["by"], row["reviewed"]["at"])
    return ImageRecord(
        image_id=row["image_id"],
        file_name=row["file_name"],
        size=(height, width),
        state=row["state"],
        reason=row.get("reason", ""),
        annotations=tuple(
            Annotation(
                classes[a["label"]],
                {"size": [height, width], "counts": a["counts"]},
                a["score"],
                tuple((x, y, kind) for x, y, kind in a["points"]),
                a["share"],
            )
            for a in row.get("annotations", ())
        ),
        presence=presence,
        beaten=tuple(i in beaten for i in range(len(presence))),
        seconds=row["seconds"],
        review=review,
    )
