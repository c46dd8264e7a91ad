"""COCO's average precision over pairs of an image and a label, from small arrays.

The figures are those of pycocotools with every pair as an image of its own and one category; a test
compares the two. pycocotools can't resample images: a bootstrap evaluates the same matches a
thousand times.

Source: Lin et al., 2014, https://arxiv.org/abs/1405.0312, and `COCOeval` of
https://github.com/cocodataset/cocoapi
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as mask_utils

from clip2sam.coco.rle import area_and_box

IOUS = np.linspace(0.5, 0.95, 10)
"""The thresholds that AP is the mean over; the first is that of AP50."""
RECALLS = np.linspace(0, 1, 101)
MOST = 100
"""So many masks of a pair count, the best ones."""

SIZES = {"small": (0.0, 0.02), "medium": (0.02, 0.05), "large": (0.05, 1.0)}
"""Ranges of an object's share of the image. On plain scenes 7 % of the objects are small and half
are medium; on crowds most are small or medium; on large images all are small."""


@dataclass(frozen=True)
class Overlaps:
    """The masks of one label on one image against its objects. Areas are shares of the image."""

    scores: Float[np.ndarray, "masks"]
    areas: Float[np.ndarray, "masks"]
    truth_areas: Float[np.ndarray, "objects"]
    iou: Float[np.ndarray, "masks objects"]


@dataclass(frozen=True)
class Matches:
    """Which masks of a pair find an object, at each of the IOUS. The best mask comes first."""

    scores: Float[np.ndarray, "masks"]
    found: Bool[np.ndarray, "ious masks"]
    """The mask has an object of its own. No two masks have the same one."""
    ignored: Bool[np.ndarray, "ious masks"]
    """Neither right nor wrong: outside the range of areas, or on an object outside of it."""
    objects: int
    """How many there are to find."""


def overlaps(
    masks: Sequence[dict[str, Any]], scores: Sequence[float], truth: Sequence[dict[str, Any]]
) -> Overlaps:
    """Compare masks with objects.

    Args:
        masks, truth: compressed RLE, all of one size.
        scores: of the masks.
    """
    order = np.argsort(-np.array(scores, float), kind="stable")[:MOST]
    best = [masks[i] for i in order]
    iou = np.zeros((len(best), len(truth)))
    if best and truth:
        iou = np.array(mask_utils.iou(best, list(truth), [0] * len(truth)), float)
    return Overlaps(np.array(scores, float)[order], _shares(best), _shares(truth), iou)


def _shares(masks: Sequence[dict[str, Any]]) -> Float[np.ndarray, "masks"]:
    shares = [area_and_box(m)[0] / (m["size"][0] * m["size"][1]) for m in masks]
    return np.array(shares, float)


def match(pair: Overlaps, size: tuple[float, float] = (0.0, 1.0)) -> Matches:
    """Give each mask, the best first, the free object that it overlaps most.

    Args:
        size: only objects of such an area, a share of the image, are to be found.
    """
    low, high = size
    outside = (pair.truth_areas < low) | (pair.truth_areas > high)
    order = np.argsort(outside, kind="stable")  # objects to find go before all others
    iou, outside = pair.iou[:, order], outside[order]
    shape = (len(IOUS), len(pair.scores))
    found, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    for t, least in enumerate(IOUS):
        free = np.ones(len(outside), bool)
        for d, row in enumerate(iou):
            best = _best(row, free & ~outside, least)
            if best is None:
                best = _best(row, free & outside, least)
            if best is None:
                ignored[t, d] = not low <= pair.areas[d] <= high
            else:
                free[best] = False
                found[t, d], ignored[t, d] = not outside[best], outside[best]
    return Matches(pair.scores, found, ignored, int((~outside).sum()))


def _best(
    iou: Float[np.ndarray, "objects"], allowed: Bool[np.ndarray, "objects"], least: float
) -> int | None:
    """The allowed object of the highest IoU, the last of equals; None if it is below the least."""
    if not allowed.any():
        return None
    values = np.where(allowed, iou, -1.0)
    last = len(values) - 1 - int(values[::-1].argmax())
    return last if values[last] >= least else None


class Pool:
    """The masks of many pairs in one order of scores.

    Args:
        pairs: their matches.
        images: for each pair the index of its image.
    """

    def __init__(self, pairs: Sequence[Matches], images: Sequence[int]) -> None:
        none = np.zeros((len(IOUS), 0), bool)
        scores = np.concatenate([np.zeros(0), *(p.scores for p in pairs)])
        order = np.argsort(-scores, kind="stable")
        found, ignored = (
            np.concatenate([none, *(getattr(p, name) for p in pairs)], axis=1)[:, order]
            for name in ("found", "ignored")
        )
        self._right, self._wrong = found & ~ignored, ~found & ~ignored
        self._pair_image = np.array(images, int)
        self._image = np.repeat(self._pair_image, [len(p.scores) for p in pairs])[order]
        self._objects = np.array([p.objects for p in pairs], float)

    def precision(
        self, weights: Float[np.ndarray, "images"] | None = None
    ) -> Float[np.ndarray, "ious"]:
        """Average precision at each of the IOUS; NaN if there is no object.

        Args:
            weights: how many times each image counts; by default once.
        """
        mask = 1.0 if weights is None else weights[self._image]
        pair = 1.0 if weights is None else weights[self._pair_image]
        objects = float((self._objects * pair).sum())
        if not objects:
            return np.full(len(IOUS), np.nan)
        right = np.cumsum(self._right * mask, axis=1)
        wrong = np.cumsum(self._wrong * mask, axis=1)
        precision = right / (right + wrong + np.spacing(1))
        # What is reached at a higher recall counts at a lower one too; beyond the last it is 0.
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(precision, ((0, 0), (0, 1)))
        places = [np.searchsorted(row, RECALLS, side="left") for row in right / objects]
        return np.array([row[place].mean() for row, place in zip(padded, places, strict=True)])
