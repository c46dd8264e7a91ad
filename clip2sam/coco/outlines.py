"""Masks as polygons of few corners, and how well these fit their masks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from clip2sam.coco.polygons import Ring, cut_out, mask_rings
from clip2sam.coco.rle import decode_rle, encode_mask
from clip2sam.errors import ConfigError

TOLERANCE = 1.0
"""Pixels. On masks of drawn scenes 43 corners in the median instead of 286, IoU .989."""
STEPS = (1.0, 0.75, 0.5)
"""Of the tolerance, tried one after the other, before a mask is outlined exactly."""
LEAST_IOU = 0.95
"""Of polygons with their mask; if it is less, the next step is tried."""
SPECK = 0.001
"""A part of a smaller share of its mask is left out."""
POOR_IOU = 0.9


@dataclass(frozen=True)
class Outline:
    """The polygons of a mask."""

    polygons: list[list[float]]
    """[x1, y1, x2, y2, ...] for each part, see `clip2sam.coco.polygons`."""
    iou: float
    """Of the mask with what pycocotools draws of the polygons."""
    area: int
    """The pixels that pycocotools draws."""
    box: list[int]
    """[x, y, width, height] in pixels, around all corners."""


@dataclass(frozen=True)
class Fit:
    """How well polygons fit their masks, all together."""

    masks: int
    median: float
    """Of the IoUs, see `Outline`."""
    worst: float
    poor: int
    """Masks whose IoU is below .9."""

    def __str__(self) -> str:
        return (
            f"polygons: IoU with their masks {self.median:.3f} in the median, {self.worst:.3f} at "
            f"worst, {self.poor} of {self.masks} below {POOR_IOU:g}"
        )


def fit_of(ious: Sequence[float]) -> Fit | None:
    """IoUs as a `Fit`; None if there are none."""
    if not ious:
        return None
    return Fit(len(ious), median(ious), min(ious), sum(iou < POOR_IOU for iou in ious))


def outline_of(rle: dict[str, Any], tolerance: float = TOLERANCE) -> Outline:
    """The polygons of a mask: no corner that is left out is farther from them than the tolerance.

    Specks are left out: parts of fewer than `SPECK` of the mask's pixels, and parts and holes of
    fewer than the square of twice the tolerance (4 pixels by default); the largest part never is.
    Where the polygons' IoU with the mask would be below `LEAST_IOU`, the tolerance is smaller, in
    `STEPS`, and 0 at last.

    Args:
        rle: of a mask with a pixel.
        tolerance: in pixels; 0: exactly the mask, with all its parts.

    Raises:
        ConfigError: the tolerance is no finite number from 0.
        CocoError: the RLE is damaged.
    """
    _check_tolerance(tolerance)
    parts = mask_rings(rle)
    for step in STEPS if tolerance else ():
        try:
            polygons = _simplified(parts, step * tolerance)
        except ValueError:  # a hole has come to lie across its outline
            continue
        outline = _measured(polygons, rle)
        if outline.iou >= LEAST_IOU:
            return outline
    return _measured([cut_out(ring, holes) for ring, holes in parts], rle)


def tolerance_of(given: float | None, *, polygons: bool) -> float:
    """The tolerance that is given, or the default.

    Raises:
        ConfigError: it is no finite number from 0, or one is given without polygons.
    """
    if given is None:
        return TOLERANCE
    _check_tolerance(given)
    if not polygons:
        raise ConfigError(
            f"the tolerance {given:g} is for polygons; give --polygons (polygons=True) too, or "
            "leave it out"
        )
    return given


def _check_tolerance(tolerance: float) -> None:
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(f"the tolerance must be 0 pixels or more, but got {tolerance}; give 1")


def _simplified(parts: list[tuple[Ring, list[Ring]]], tolerance: float) -> list[Ring]:
    least = (2 * tolerance) ** 2
    areas = [_area(ring) - sum(map(_area, holes)) for ring, holes in parts]
    largest = max(areas)
    limit = min(max(least, SPECK * sum(areas)), largest)
    return [
        cut_out(
            _fewer_corners(ring, tolerance),
            [_fewer_corners(hole, tolerance) for hole in holes if _area(hole) >= least],
        )
        for (ring, holes), area in zip(parts, areas, strict=True)
        if area >= limit
    ]


def _fewer_corners(ring: Ring, tolerance: float) -> Ring:
    """The ring itself where too little would be left of it, as of a line one pixel wide."""
    fewer = cv2.approxPolyDP(ring.astype(np.float32)[:, None], tolerance, True)[:, 0].astype(float)
    return fewer if 2 * _area(fewer) > _area(ring) else ring


def _area(ring: Ring) -> float:
    return float(cv2.contourArea(ring.astype(np.float32)[:, None]))


def _measured(rings: list[Ring], rle: dict[str, Any]) -> Outline:
    polygons = [np.round(ring, 3).ravel().tolist() for ring in rings]
    drawn = mask_utils.merge(mask_utils.frPyObjects(polygons, *rle["size"]))
    mask = rle if isinstance(rle["counts"], str) else encode_mask(decode_rle(rle))
    left, top = np.min([ring.min(axis=0) for ring in rings], axis=0).astype(int).tolist()
    right, bottom = np.max([ring.max(axis=0) for ring in rings], axis=0).astype(int).tolist()
    return Outline(
        polygons,
        float(mask_utils.iou([drawn], [mask], [False])[0, 0]),
        int(mask_utils.area(drawn)),
        [left, top, right - left, bottom - top],
    )
