"""Figures of quality: of one image's result, and of all of them.

Most figures are over pairs of an image and a label. "Present" and "absent" are the truth, "kept" is
the presence decision.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float

from clip2sam.analysis.average_precision import SIZES, Overlaps, Pool, match, overlaps
from clip2sam.analysis.examples import Example, Mask
from clip2sam.coco.rle import encode_mask
from clip2sam.data.presence import recorded_presence
from clip2sam.result import Result

Kept = Bool[np.ndarray, "labels"]
"""The presence decision for each label of an image."""

_NOTHING = Overlaps(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 0)))


@dataclass(frozen=True)
class Pair:
    """One label of one image."""

    kind: str
    present: bool
    kept: bool
    presence: float
    iou: float = 0.0
    """Of the label's mask, kept or not, with the union of the truth. This figure and those below
    are for present labels only."""
    control: float = 0.0
    """The same with the mask of an absent label: what SAM finds without the right label."""
    touches: float = 0.0
    """1 if the top cell of the grid has a pixel of the object in it."""
    centred: float = 0.0
    """1 if the top cell's centre, where the point is set, lies on the object."""
    positives: float = 0.0
    """Share of the positive points that lie on the object."""
    negatives: float = 0.0
    """Share of the negative points that lie off it."""
    map_iou: float = 0.0
    """IoU of the object with the part of the image where the scaled map is at 0.5 or more."""
    masks: Overlaps = _NOTHING
    """Of absent labels too: the masks of the label, if it is kept, against its objects."""


@dataclass(frozen=True)
class Figures:
    """What `summarise` makes of pairs. Shares and means are 0 to 1, NaN where there is no pair."""

    pairs: int
    present: int
    pointing: float
    """Mean of `touches`: the pointing game."""
    centred: float
    positives: float
    negatives: float
    map_iou: float
    presence_auc: float
    presence_precision: float
    presence_recall: float
    false_masks: float
    """Share of the absent labels that were kept."""
    false_at_90: float
    """The same at the threshold that keeps 90 % of the present labels."""
    threshold_at_90: float
    """That threshold."""
    miou: float
    """Mean IoU over present labels; 0 for a label that was not kept."""
    miou_all_kept: float
    """The same if every present label were kept."""
    control: float
    """Mean of `control`, as `miou_all_kept`."""


def decided(result: Result, thresholds: Sequence[float | None]) -> Kept:
    """The presence decision that these thresholds give for a result made with others.

    Args:
        thresholds: of each class, in the order of the labels; those of distractors may follow.
    """
    record = result.record
    return recorded_presence(record.presence, record.beaten, thresholds[: len(record.presence)])


def compare(example: Example, result: Result, kept: Kept) -> list[Pair]:
    """Compare one image's result with its truth."""
    absent = [i for i, name in enumerate(result.class_names) if not example.truth[name]]
    pairs = []
    for i, name in enumerate(result.class_names):
        stages: dict[str, float] = {}
        instances = example.truth[name]
        if instances:
            control = absent[i % len(absent)] if absent else None
            stages = _judge(result, i, np.any(instances, axis=0), control)
        pairs.append(
            Pair(
                example.kinds[name],
                bool(instances),
                bool(kept[i]),
                float(result.presence[i]),
                masks=_overlaps(result, i, instances, bool(kept[i])),
                **stages,
            )
        )
    return pairs


def _judge(result: Result, index: int, truth: Mask, control: int | None) -> dict[str, float]:
    """The figures of each stage for one present label.

    Args:
        index: the label.
        truth: the union of its instances.
        control: an absent label; None: there is none.
    """
    touches, centred = pointing(result.grids[index], truth)
    mine = np.flatnonzero(result.label_indices == index)
    points = np.concatenate([np.zeros((0, 3), np.float32), *(result.points[i] for i in mine)])
    on, off = point_shares(points, truth)
    names = result.class_names
    return {
        "iou": iou(result.mask_of(names[index]), truth),
        "control": 0.0 if control is None else iou(result.mask_of(names[control]), truth),
        "touches": touches,
        "centred": centred,
        "positives": on,
        "negatives": off,
        "map_iou": map_iou(result.maps[index], truth),
    }


def _overlaps(result: Result, index: int, instances: Sequence[Mask], kept: bool) -> Overlaps:
    mine = np.flatnonzero(result.label_indices == index) if kept else ()
    found = [result.annotations[i] for i in mine]
    truth = [encode_mask(mask) for mask in instances]
    return overlaps([a.rle for a in found], [a.score for a in found], truth)


def iou(mask: Mask, truth: Mask) -> float:
    """Intersection over union; 0 for two empty masks."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else 0.0


def pointing(grid: Float[np.ndarray, "rows cols"], truth: Mask) -> tuple[float, float]:
    """Whether the grid's top cell has a pixel of the object in it, and whether its centre is on the
    object: 1 or 0."""
    row, col = np.unravel_index(int(np.nan_to_num(grid, nan=-1.0).argmax()), grid.shape)
    tall, wide = truth.shape[0] / grid.shape[0], truth.shape[1] / grid.shape[1]
    cell = truth[
        int(row * tall) : int(np.ceil((row + 1) * tall)),
        int(col * wide) : int(np.ceil((col + 1) * wide)),
    ]
    return float(cell.any()), float(truth[int((row + 0.5) * tall), int((col + 0.5) * wide)])


def point_shares(points: Float[np.ndarray, "_ 3"], truth: Mask) -> tuple[float, float]:
    """Share of the positive points on the object, and of the negative ones off it; 0 for no point.

    Args:
        points: x, y in continuous pixels, and 1 (positive), 0 (negative), or another kind, which
            doesn't count: a box's corners, which may lie on the image's border.
    """
    points = points[np.isin(points[:, 2], (0, 1))]
    on = truth[points[:, 1].astype(int), points[:, 0].astype(int)]
    positive = points[:, 2] == 1
    hits, misses = on[positive], ~on[~positive]
    return float(hits.mean()) if len(hits) else 0.0, float(misses.mean()) if len(misses) else 0.0


def map_iou(raw: Float[np.ndarray, "rows cols"], truth: Mask) -> float:
    """IoU of the object with the pixels where the scaled and resized map is at 0.5 or more."""
    spread = float(np.ptp(raw))
    if not np.isfinite(spread) or spread == 0:
        return 0.0
    heat = cv2.resize((raw - raw.min()) / spread, truth.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return iou(heat >= 0.5, truth)


def area_under_curve(
    positive: Float[np.ndarray, "some"], negative: Float[np.ndarray, "others"]
) -> float:
    """Probability that a positive scores above a negative, ties counting half; NaN if one side is
    empty."""
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    not_above = np.searchsorted(ordered, positive, "right")
    return float((below + not_above).mean() / 2 / len(negative))


def summarise(pairs: Sequence[Pair]) -> Figures:
    """The figures of some pairs."""
    present, absent = [p for p in pairs if p.present], [p for p in pairs if not p.present]
    scores, others = (np.array([p.presence for p in side], float) for side in (present, absent))
    kept_present, kept_absent = sum(p.kept for p in present), sum(p.kept for p in absent)
    at_90 = float(np.quantile(scores, 0.1, method="lower")) if present else float("nan")

    def mean(values: Iterable[Any]) -> float:
        gathered = list(values)
        return float(np.mean(gathered)) if gathered else float("nan")

    return Figures(
        pairs=len(pairs),
        present=len(present),
        pointing=mean(p.touches for p in present),
        centred=mean(p.centred for p in present),
        positives=mean(p.positives for p in present),
        negatives=mean(p.negatives for p in present),
        map_iou=mean(p.map_iou for p in present),
        presence_auc=area_under_curve(scores, others),
        presence_precision=kept_present / max(kept_present + kept_absent, 1),
        presence_recall=mean(p.kept for p in present),
        false_masks=mean(p.kept for p in absent),
        false_at_90=mean(others >= at_90),
        threshold_at_90=at_90,
        miou=mean(p.iou * p.kept for p in present),
        miou_all_kept=mean(p.iou for p in present),
        control=mean(p.control for p in present),
    )


def pool(images: Sequence[Sequence[Pair]], size: tuple[float, float] = (0.0, 1.0)) -> Pool:
    """The kept masks of all pairs asked for, absent labels' as well, for AP over all of them.

    Args:
        images: the pairs of each image.
        size: see `match`.
    """
    numbered = [(p, i) for i, pairs in enumerate(images) for p in pairs]
    return Pool([match(p.masks, size) for p, _ in numbered], [i for _, i in numbered])


def object_figures(images: Sequence[Sequence[Pair]]) -> dict[str, float]:
    """How well single objects are found, over all pairs of an image and a label.

    Args:
        images: the pairs of each image.

    Returns:
        AP, AP50: average precision with every pair as an image of its own, and one category. A mask
        of an absent label that is kept is wrong. "AP small", "AP medium", "AP large": the same of
        objects in the ranges of `SIZES`. "AP50, 1 object", "AP50, 2 objects", "AP50, 3 or more":
        of the labels with so many objects in the image, which are present.
        false_instances, duplicates, missed: numbers an image, of present labels, at an IoU of 0.5:
        kept masks that overlap no object of their label; kept masks of an object that a better one
        has found; objects without a mask. NaN where there is nothing to count.
    """
    everything = pool(images).precision()
    figures = {"AP": float(everything.mean()), "AP50": float(everything[0])}
    for name, size in SIZES.items():
        figures[f"AP {name}"] = float(pool(images, size).precision().mean())
    counts = {"1 object": (1, 1), "2 objects": (2, 2), "3 or more": (3, float("inf"))}
    for name, (low, high) in counts.items():
        some = [[p for p in ps if low <= len(p.masks.truth_areas) <= high] for ps in images]
        figures[f"AP50, {name}"] = float(pool(some).precision()[0])
    present = [p.masks for pairs in images for p in pairs if p.present]
    found = [match(masks).found[0] for masks in present]
    near = [(masks.iou >= 0.5).any(axis=1) for masks in present]
    per_image = {
        "false_instances": sum(int((~n).sum()) for n in near),
        "duplicates": sum(int((n & ~f).sum()) for n, f in zip(near, found, strict=True)),
        "missed": sum(
            len(m.truth_areas) - int(f.sum()) for m, f in zip(present, found, strict=True)
        ),
    }
    return figures | {k: v / len(images) if images else float("nan") for k, v in per_image.items()}


def class_figures(pairs: Sequence[Pair], threshold: float | None) -> dict[str, Any]:
    """How well the objects of one label are found.

    Args:
        pairs: of the label, one for each image.
        threshold: the label's presence threshold, which is one of the figures.

    Returns:
        images: those that show it; objects; masks: those that are kept; AP, AP50: as COCO has them
        for a category; recall: the share of the objects that have a mask, and false_masks: the
        number of masks that no object has, both at an IoU of 0.5. NaN where there is no object.
    """
    matched = [match(p.masks) for p in pairs]
    precision = Pool(matched, range(len(pairs))).precision()
    objects, masks = sum(m.objects for m in matched), sum(len(m.scores) for m in matched)
    found = sum(int(m.found[0].sum()) for m in matched)
    return {
        "images": sum(p.present for p in pairs),
        "objects": objects,
        "masks": masks,
        "AP": float(precision.mean()),
        "AP50": float(precision[0]),
        "recall": found / objects if objects else float("nan"),
        "false_masks": masks - found,
        "threshold": threshold,
    }


class MeanIou:
    """`Figures.miou`, with weights for images.

    Args:
        images: the pairs of each image.
    """

    def __init__(self, images: Sequence[Sequence[Pair]]) -> None:
        present = [[p.iou * p.kept for p in pairs if p.present] for pairs in images]
        self._sums = np.array([sum(values) for values in present], float)
        self._counts = np.array([len(values) for values in present], float)

    def __call__(self, weights: Float[np.ndarray, "images"]) -> float:
        count = float((weights * self._counts).sum())
        return float((weights * self._sums).sum()) / count if count else float("nan")
