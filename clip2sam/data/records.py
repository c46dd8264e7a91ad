"""What the journal holds of one picture, in memory and as a line: the noun between the model and every output."""

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["done", "empty", "failed"]


@dataclass(frozen=True)
class FoundMask:
    """One mask of a picture, decided upon or not."""

    label: int
    """Index of its class among those that are exported."""
    counts: str
    """pycocotools' compressed RLE counts; their size is the picture's."""
    score: float
    """0 to 1."""
    points: tuple[tuple[float, float, int], ...]
    """Its prompt: x, y in continuous pixels, and 1 (positive) or 0 (negative)."""


@dataclass(frozen=True)
class Labelled:
    """What became of one picture."""

    picture: int
    """Its place in the run's frozen list, from 0."""
    key: str
    """Its name below the root, as the file system spells it."""
    state: State
    """done: it has a mask that the run's thresholds accept; empty: none; failed: see `reason`."""
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    """(height, width) in pixels; (0, 0) if it failed."""
    presence: tuple[float | None, ...] = ()
    """Presence score of every class asked for, also of those rejected; None where it is not finite."""
    masks: tuple[FoundMask, ...] = ()
    """In the order of classes. Also those below their threshold that the run was asked to keep."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What it took to decode it, to run the model (its share of the batch), and to make the masks."""

    def rle(self, mask: FoundMask) -> dict[str, Any]:
        """A mask as pycocotools RLE."""
        return {"size": list(self.size), "counts": mask.counts}


def to_row(record: Labelled) -> dict[str, Any]:
    """A record as JSON, its place and state first: the journal finds them there without reading the rest."""
    row: dict[str, Any] = {
        "picture": record.picture,
        "state": record.state,
        "file_name": record.key,
    }
    if record.state == "failed":
        return {**row, "reason": record.reason, "seconds": record.seconds}
    masks = [
        {"label": m.label, "score": m.score, "points": m.points, "counts": m.counts}
        for m in record.masks
    ]
    return {
        **row,
        "size": record.size,
        "presence": record.presence,
        "masks": masks,
        "seconds": record.seconds,
    }


def from_row(row: dict[str, Any]) -> Labelled:
    """The record of a line that the journal has checked."""
    masks = tuple(
        FoundMask(
            m["label"], m["counts"], m["score"], tuple((x, y, kind) for x, y, kind in m["points"])
        )
        for m in row.get("masks", ())
    )
    height, width = row.get("size", (0, 0))
    return Labelled(
        picture=row["picture"],
        key=row["file_name"],
        state=row["state"],
        reason=row.get("reason", ""),
        size=(height, width),
        presence=tuple(row.get("presence", ())),
        masks=masks,
        seconds=row["seconds"],
    )


@dataclass(frozen=True)
class Annotation:
    """One mask, ready for COCO."""

    label: str
    rle: dict[str, Any]
    """pycocotools RLE: {"size": [height, width], "counts": str}."""
    score: float
    """0 to 1."""
    prompt: int = 0
    """Which prompt of the picture it came from."""


@dataclass(frozen=True)
class ImageRecord:
    """A picture's row in a COCO file."""

    file_name: str
    """POSIX path relative to the data set's root."""
    height: int
    width: int
