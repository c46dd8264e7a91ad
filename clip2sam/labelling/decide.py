"""Which of a picture's recorded masks are kept: thresholds, classes, scores, sizes, duplicates and overlaps.

Everything here works on the journal's records; no model is needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from pycocotools import mask as mask_utils

from clip2sam.coco.document import decode_rle, encode_mask
from clip2sam.data.records import FoundMask, Labelled
from clip2sam.errors import ConfigError
from clip2sam.labelling.manifest import RunFolder

Overlap = Literal["keep", "score", "small"]


@dataclass(frozen=True)
class Decision:
    """What is asked of a mask. The default is what the run itself decided."""

    presence: float | None = None
    """Presence score that every class must reach; None: the run's own thresholds."""
    class_presence: Mapping[str, float] = field(default_factory=dict)
    """The same for single classes, which goes first."""
    classes: tuple[str, ...] | None = None
    """Names of the classes to keep; None: all."""
    min_score: float = 0.0
    """0 to 1."""
    min_area: int = 0
    """Pixels."""
    duplicates: float | None = None
    """Of masks of one class whose IoU is above this, only the one with the best score is kept; None: all are."""
    overlap: Overlap = "keep"
    """A pixel in masks of several classes belongs to all of them (keep), to the one with the best score (score), or
    to the smallest (small)."""

    def __post_init__(self) -> None:
        for name in ("min_score", "duplicates"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, but got {value}")
        if self.min_area < 0:
            raise ConfigError(f"min_area must be 0 pixels or more, but got {self.min_area}")
        if self.overlap not in ("keep", "score", "small"):
            raise ConfigError(
                f'overlap must be "keep", "score" or "small", but got {self.overlap!r}'
            )


def decided_thresholds(run: RunFolder, decision: Decision) -> tuple[float | None, ...]:
    """The presence score that each class must reach, infinite for those left out.

    Raises `ConfigError` for a class that the run doesn't have, and for a threshold below the one down to which the
    run has masks.
    """
    names = [c.name for c in run.classes]
    unknown = [n for n in [*decision.class_presence, *(decision.classes or ())] if n not in names]
    if unknown:
        raise ConfigError(
            f"the run has no class {unknown[0]!r}; its classes are {', '.join(names)}"
        )
    limits: list[float | None] = []
    for name, own, floor in zip(names, run.thresholds, run.floors, strict=True):
        general = own if decision.presence is None else decision.presence
        limit = decision.class_presence.get(name, general)
        if decision.classes is not None and name not in decision.classes:
            limit = float("inf")
        elif limit is not None and floor is not None and limit < floor:
            raise ConfigError(
                f"the run has masks of {name!r} from a presence score of {floor:g} on, so {limit:g} can't be decided "
                f"without the model; label with --keep-above {limit:g}"
            )
        limits.append(limit)
    return tuple(limits)


def decide(
    record: Labelled, decision: Decision, thresholds: Sequence[float | None]
) -> tuple[FoundMask, ...]:
    """The masks of a picture that a decision keeps, in the order of classes.

    `thresholds` are those of `decided_thresholds`. A mask that loses all its pixels to others is dropped.
    """
    kept = [
        m
        for m in record.masks
        if reaches(record.presence[m.label], thresholds[m.label]) and m.score >= decision.min_score
    ]
    if decision.min_area:
        kept = [m for m in kept if _area(record, m) >= decision.min_area]
    if decision.duplicates is not None:
        kept = _without_duplicates(record, kept, decision.duplicates)
    if decision.overlap != "keep" and len(kept) > 1:
        kept = _apart(record, kept, decision.overlap)
        kept = [m for m in kept if _area(record, m) >= max(decision.min_area, 1)]
    return tuple(kept)


def reaches(score: float | None, threshold: float | None) -> bool:
    """The presence decision on a recorded score, in float32 as the model takes it; no threshold: no decision."""
    return threshold is None or (
        score is not None and bool(np.float32(score) >= np.float32(threshold))
    )


def _area(record: Labelled, mask: FoundMask) -> int:
    return int(mask_utils.area(record.rle(mask)))


def _without_duplicates(record: Labelled, masks: list[FoundMask], limit: float) -> list[FoundMask]:
    """The best mask of each class first; others only if they are not too much like one that is kept."""
    kept: list[int] = []
    for i in sorted(range(len(masks)), key=lambda i: (-masks[i].score, i)):
        rivals = [record.rle(masks[k]) for k in kept if masks[k].label == masks[i].label]
        if (
            not rivals
            or mask_utils.iou([record.rle(masks[i])], rivals, [0] * len(rivals)).max() <= limit
        ):
            kept.append(i)
    return [masks[i] for i in sorted(kept)]


def _apart(record: Labelled, masks: list[FoundMask], overlap: Overlap) -> list[FoundMask]:
    """Give each pixel to one class: masks of one class may still overlap each other."""
    rank = (
        (lambda i: (-masks[i].score, i))
        if overlap == "score"
        else (lambda i: (_area(record, masks[i]), i))
    )  # the first has the first choice
    owner = np.full(record.size, -1)
    cut: dict[int, FoundMask] = {}
    for i in sorted(range(len(masks)), key=rank):
        mask = decode_rle(record.rle(masks[i])) & ((owner == -1) | (owner == masks[i].label))
        owner[mask] = masks[i].label
        cut[i] = replace(masks[i], counts=encode_mask(mask)["counts"])
    return [cut[i] for i in range(len(masks))]
