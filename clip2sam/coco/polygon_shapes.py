"""The boxes and areas of many polygons at once; what is wrong with one is said with its place."""

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from clip2sam.coco.content import contents_of_rings
from clip2sam.coco.rle import shortly
from clip2sam.coco.shapes import Fault, Mask, Shape, Size
from clip2sam.coco.values import are_numbers


def polygon_shapes(masks: Sequence[Mask]) -> list[list[Fault] | Shape]:
    """The shapes of lists of polygons, or what is wrong with them. Masks of the same outlines have
    the same content, whatever the order of the polygons, where they begin, and which way they run.
    """
    found: list[list[Fault] | Shape] = [_list_faults(polygons) for polygons, _ in masks]
    sound = [i for i, faults in enumerate(found) if not faults]
    if sound:
        measured = _measured([ring for i in sound for ring in masks[i][0]])
        for i in sound:
            polygons, size = masks[i]
            rings = [next(measured) for _ in polygons]
            faults = [*_outside(rings, size), *_flat(polygons, rings)]
            found[i] = faults or _shape(polygons, rings, size)
    return found


def _list_faults(polygons: list[Any]) -> list[Fault]:
    """What is wrong with polygons as lists of numbers."""
    if not polygons:
        return [Fault((), "expected at least one polygon, got none")]
    faults = []
    for i, polygon in enumerate(polygons):
        if not are_numbers(polygon):
            wanted = f"expected a list of finite numbers, got {shortly(polygon)}"
            faults.append(Fault((i,), wanted))
        elif len(polygon) < 6 or len(polygon) % 2:
            wanted = f"expected an even number of coordinates, 6 or more, got {len(polygon)}"
            faults.append(Fault((i,), wanted))
    return faults


class _Ring(NamedTuple):
    """What is measured of one polygon."""

    least: list[float]
    """x and y."""
    most: list[float]
    area: float
    """As its corners give it."""
    outline: float
    """Its length, |x| + |y|."""
    content: int


def _measured(rings: Sequence[list[int | float]]) -> Iterator[_Ring]:
    """Of sound polygons: the points of all in one array."""
    points = np.fromiter(chain.from_iterable(rings), np.float64).reshape(-1, 2)
    each = np.fromiter(map(len, rings), np.int64, len(rings)) // 2
    starts = np.cumsum(each) - each
    after = np.arange(1, len(points) + 1)
    after[starts + each - 1] = starts
    measured = (
        np.minimum.reduceat(points, starts, axis=0),
        np.maximum.reduceat(points, starts, axis=0),
        *_areas_and_outlines(points - np.repeat(points[starts], each, axis=0), after, starts),
        contents_of_rings(points, after, starts),
    )
    return map(_Ring, *(values.tolist() for values in measured))


def _areas_and_outlines(
    points: Float[np.ndarray, "points 2"],
    after: Int[np.ndarray, "points"],
    starts: Int[np.ndarray, "rings"],
) -> tuple[Float[np.ndarray, "rings"], Float[np.ndarray, "rings"]]:
    """Of rings whose points count from their first one, as then less cancels out."""
    following = points[after]
    across = points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]
    steps = np.abs(following - points).sum(axis=1)
    return np.abs(np.add.reduceat(across, starts)) / 2, np.add.reduceat(steps, starts)


def _outside(rings: list[_Ring], size: Size | None) -> Iterator[Fault]:
    """The polygons that lie outside an image, if its size is known."""
    if size is None:
        return
    height, width = size
    for i, ring in enumerate(rings):
        # coordinates that are off by one are common in real files
        if min(ring.least) < -1 or ring.most[0] > width + 1 or ring.most[1] > height + 1:
            wanted = "expected points inside the image of [height, width]"
            yield Fault((i,), f"{wanted} {list(size)}, got others")


def _flat(polygons: list[Any], rings: list[_Ring]) -> Iterator[Fault]:
    """The polygons that enclose nothing."""
    for i, (polygon, ring) in enumerate(zip(polygons, rings, strict=True)):
        if ring.area <= 1e-6 * ring.outline and _is_flat(polygon):
            yield Fault(
                (i,),
                "expected a polygon that encloses an area, got "
                f"{len(polygon) // 2} points on one line: {shortly(polygon)}",
            )


def _shape(polygons: list[Any], rings: list[_Ring], size: Size | None) -> Shape:
    left, top = (min(values) for values in zip(*(ring.least for ring in rings), strict=True))
    right, bottom = (max(values) for values in zip(*(ring.most for ring in rings), strict=True))
    outline = sum(ring.outline for ring in rings)
    # counting takes memory for each pixel of the outline
    countable = size is not None and size[0] * size[1] < 2**31 and outline <= 1e6
    return Shape(
        (left, top, right, bottom),
        1.5,
        sum(ring.area for ring in rings),
        1 + outline / 2,
        hash(tuple(sorted(ring.content for ring in rings))),
        (polygons, size) if size is not None and countable else None,
    )


def _is_flat(ring: list[int | float]) -> bool:
    """Whether all points of a ring lie on one line, or are one point. A ring that crosses itself
    may have no area by its corners, and still enclose some."""
    points = np.reshape(np.array(ring, np.float64), (-1, 2))
    points = points - points[0]
    x, y = points[np.abs(points).sum(axis=1).argmax()]
    away = np.abs(points[:, 0] * y - points[:, 1] * x)
    return bool(away.max() <= 1e-6 * max(math.hypot(x, y), 1e-6))
