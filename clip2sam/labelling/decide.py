"""Which of an image's recorded masks are kept: thresholds, classes, scores, sizes, duplicates and
overlaps.

Everything here works on records; no model is needed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pycocotools import mask as mask_utils

from clip2sam.coco.rle import decode_rle, encode_mask
from clip2sam.config import finite_number
from clip2sam.data.presence import recorded_presence
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.errors import ConfigError
from clip2sam.labelling.manifest import RunFolder

OVERLAPS = ("keep", "score", "small")


@dataclass(frozen=True)
class Decision:
    """What a mask must satisfy to be kept. The default is what the run itself decided.

    Masks that a person has accepted or made satisfy all limits: only `classes` and `overlap` apply
    to them.
    """

    presence_threshold: float | None = None
    """Presence score that every class must reach; None: the run's own thresholds."""
    class_thresholds: Mapping[str, float] = field(default_factory=dict)
    """The same for single classes, by name; these take precedence."""
    classes: tuple[str, ...] | None = None
    """Names of the classes to keep; None: all."""
    min_score: float = 0.0
    """0 to 1."""
    min_share: float | None = None
    """How strong a mask must be beside its label's best one in the image, 0 to 1, see
    `Annotation.share`; None: the run's own limit."""
    max_objects: int | None = None
    """So many masks of a class in an image at most, those with the best scores; None: no limit."""
    min_area: int = 0
    """Pixels."""
    duplicates: float | None = None
    """Of masks of one class whose IoU is above this, only the one with the best score is kept;
    None: all are."""
    overlap: str = "keep"
    """A pixel in masks of several classes belongs to all of them ("keep"), to the one with the best
    score ("score"), or to the smallest ("small")."""

    def __post_init__(self) -> None:
        if self.presence_threshold is not None:
            finite_number("presence_threshold", self.presence_threshold)
        for name, threshold in self.class_thresholds.items():
            finite_number(f"the threshold of {name!r}", threshold)
        for name in ("min_score", "min_share", "duplicates"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, but got {value}")
        if self.max_objects is not None and self.max_objects < 1:
            raise ConfigError(f"max_objects must be 1 or more, but got {self.max_objects}")
        if self.min_area < 0:
            raise ConfigError(f"min_area must be 0 pixels or more, but got {self.min_area}")
        if self.overlap not in OVERLAPS:
            raise ConfigError(
                f"overlap must be one of {', '.join(OVERLAPS)}, but got {self.overlap!r}"
            )


def decided_thresholds(run: RunFolder, decision: Decision) -> tuple[float | None, ...]:
    """The presence threshold of each of the run's classes; infinite for those left out, None for no
    decision.

    Raises:
        ConfigError: the run has no such class, or no masks down to such a threshold.
    """
    names = run.class_names
    unknown = [n for n in [*decision.class_thresholds, *(decision.classes or ())] if n not in names]
    if unknown:
        raise ConfigError(
            f"the run has no class {unknown[0]!r}; its classes are {', '.join(names)}"
        )
    limits: list[float | None] = []
    for name, own, floor in zip(names, run.thresholds, run.floors, strict=True):
        general = own if decision.presence_threshold is None else decision.presence_threshold
        limit = decision.class_thresholds.get(name, general)
        if decision.classes is not None and name not in decision.classes:
            limit = float("inf")
        elif limit is not None and floor is not None and limit < floor:
            raise ConfigError(
                f"the run has masks of {name!r} from a presence score of {floor:g} on, so "
                f"{limit:g} can't be decided without the model; label with --keep-above {limit:g}"
            )
        limits.append(limit)
    return tuple(limits)


def decided_for(run: RunFolder, decision: Decision) -> Decision:
    """The decision with the run's own limits where it has none."""
    own = run.min_share if decision.min_share is None else decision.min_share
    return replace(decision, min_share=own)


def decide(
    record: ImageRecord,
    decision: Decision,
    classes: Sequence[str],
    thresholds: Sequence[float | None],
) -> ImageRecord:
    """The record with those annotations that a decision keeps; done if there are any, else empty.

    A mask that loses all its pixels to others is dropped.

    Args:
        record: a done or empty one.
        decision: one of `decided_for`.
        classes: the names of the run's classes.
        thresholds: those of `decided_thresholds`.
    """
    min_area = 0 if record.review else decision.min_area
    if record.review:
        wanted = set(classes if decision.classes is None else decision.classes)
        kept = [a for a in record.annotations if a.label in wanted]
    else:
        kept = _within_limits(record, decision, classes, thresholds)
    if decision.overlap != "keep" and len(kept) > 1:
        kept = _apart(record.size, kept, decision.overlap)
        kept = [a for a in kept if _area(a) >= max(min_area, 1)]
    return replace(record, state="done" if kept else "empty", annotations=tuple(kept))


def _within_limits(
    record: ImageRecord,
    decision: Decision,
    classes: Sequence[str],
    thresholds: Sequence[float | None],
) -> list[Annotation]:
    decided = recorded_presence(record.presence, record.beaten, thresholds)
    present = {name for name, yes in zip(classes, decided, strict=True) if yes}
    least = decision.min_share or 0.0
    kept = [
        a
        for a in record.annotations
        if a.label in present and a.score >= decision.min_score and a.share >= least
    ]
    if decision.min_area:
        kept = [a for a in kept if _area(a) >= decision.min_area]
    if decision.duplicates is not None:
        kept = _without_duplicates(kept, decision.duplicates)
    if decision.max_objects is not None:
        kept = _best(kept, decision.max_objects)
    return kept


def _area(annotation: Annotation) -> int:
    return int(mask_utils.area(annotation.rle))


def _without_duplicates(annotations: list[Annotation], limit: float) -> list[Annotation]:
    """The best mask of each class first; others only if none that is kept is too similar."""
    kept: list[int] = []
    for i in sorted(range(len(annotations)), key=lambda i: (-annotations[i].score, i)):
        own = annotations[i]
        rivals = [annotations[k].rle for k in kept if annotations[k].label == own.label]
        if not rivals or mask_utils.iou([own.rle], rivals, [0] * len(rivals)).max() <= limit:
            kept.append(i)
    return [annotations[i] for i in sorted(kept)]


def _best(annotations: list[Annotation], most: int) -> list[Annotation]:
    """The best masks of each class, in their order."""
    kept: list[int] = []
    taken = Counter[str]()
    for i in sorted(range(len(annotations)), key=lambda i: (-annotations[i].score, i)):
        taken[annotations[i].label] += 1
        if taken[annotations[i].label] <= most:
            kept.append(i)
    return [annotations[i] for i in sorted(kept)]


def _apart(size: tuple[int, int], annotations: list[Annotation], overlap: str) -> list[Annotation]:
    """Give each pixel to one class: masks of one class may still overlap each other."""
    order = sorted(  # the first takes its pixels first
        range(len(annotations)),
        key=lambda i: (
            -annotations[i].score if overlap == "score" else _area(annotations[i]),
            i,
        ),
    )
    owners = {label: n for n, label in enumerate({a.label: None for a in annotations})}
    owner = np.full(size, -1)
    cut = dict(enumerate(annotations))
    for i in order:
        own = owners[annotations[i].label]
        mask = decode_rle(annotations[i].rle) & ((owner == -1) | (owner == own))
        owner[mask] = own
        cut[i] = replace(annotations[i], rle=encode_mask(mask))
    return list(cut.values())
