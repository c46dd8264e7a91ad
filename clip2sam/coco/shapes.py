"""The boxes and areas of COCO's masks, RLE and polygons, many at once; what is wrong with a mask is
said with its place."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pycocotools import mask as mask_utils

from clip2sam.coco.many import areas_and_boxes
from clip2sam.coco.rle import area_and_box, shortly
from clip2sam.errors import CocoError

Size = tuple[int, int]
"""(height, width) of an image in pixels."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a mask."""

    place: tuple[str | int, ...]
    """Keys below the segmentation."""
    message: str


@dataclass(frozen=True, slots=True)
class Shape:
    """The box and area of a mask."""

    corners: tuple[int | float, int | float, int | float, int | float]
    """Left, top, right, bottom."""
    slack: int | float
    """By how many pixels each side of a box may differ."""
    area: int | float
    area_slack: int | float
    polygons: tuple[list[Any], Size] | None = None
    """With the image's size, where the pixels can be counted."""

    def box_fits(self, corners: Sequence[int | float]) -> bool:
        """Whether left, top, right, bottom are those of a mask's box."""
        left, top, right, bottom = self.corners
        return (
            abs(corners[0] - left) <= self.slack
            and abs(corners[1] - top) <= self.slack
            and abs(corners[2] - right) <= self.slack
            and abs(corners[3] - bottom) <= self.slack
        )

    def area_fits(self, given: int | float) -> bool:
        """Whether a number is the mask's area. Tools compute a polygon's by two methods: from its
        corners, or by counting the pixels of all parts together, where parts may overlap. Either
        is right."""
        if abs(given - self.area) <= self.area_slack:
            return True
        if self.polygons is None:
            return False
        polygons, size = self.polygons
        counted = int(mask_utils.area(mask_utils.merge(mask_utils.frPyObjects(polygons, *size))))
        return abs(given - counted) <= self.area_slack


_BELOW_ONE = math.nextafter(1, 0)

Found = list[Fault] | Shape
"""What is wrong with a mask, or its shape."""


def shapes_of(masks: Sequence[tuple[Any, Size | None]]) -> list[Found]:
    """The shapes of masks.

    Args:
        masks: RLE objects or lists of polygons, as they were read, each with its image's size if
            that is known.
    """
    found: list[Found] = [[] for _ in masks]
    for kind, shapes in ((dict, _rle_shapes), (list, _polygon_shapes)):
        chosen = [i for i, (mask, _) in enumerate(masks) if isinstance(mask, kind)]
        for i, shape in zip(chosen, shapes([masks[i] for i in chosen]), strict=True):
            found[i] = shape
    return found


def _rle_shapes(masks: Sequence[tuple[Any, Size | None]]) -> list[Found]:
    """Of RLEs: all that look sound at once, the others one by one."""
    plain = [i for i, (rle, _) in enumerate(masks) if _is_plain(rle)]
    known: dict[int, tuple[int, list[int]]] = {}
    if plain:
        sizes = np.array([masks[i][0]["size"] for i in plain], np.int64)
        results = areas_and_boxes([masks[i][0]["counts"] for i in plain], sizes)
        for i, sound, area, box in zip(plain, *(r.tolist() for r in results), strict=True):
            if sound:
                known[i] = area, box
    return [_rle_shape(rle, size, known.get(i)) for i, (rle, size) in enumerate(masks)]


def _is_plain(rle: dict[str, Any]) -> bool:
    size = rle.get("size")
    return (
        type(rle.get("counts")) is str
        and type(size) is list
        and len(size) == 2
        and type(size[0]) is type(size[1]) is int
        and min(size) > 0
        and size[0] * size[1] < 2**32
    )


def _rle_shape(
    rle: dict[str, Any], size: Size | None, known: tuple[int, list[int]] | None
) -> Found:
    try:
        area, (x, y, width, height) = known or area_and_box(rle)
    except CocoError as error:
        return [Fault((), str(error))]
    if size is not None and tuple(rle["size"]) != size:
        return [
            Fault(
                ("size",),
                f"expected the image's [height, width], {list(size)}, got {shortly(rle['size'])}",
            )
        ]
    if area == 0:
        return [Fault((), "expected a mask of at least one pixel, got an empty one")]
    return Shape((x, y, x + width, y + height), 0.99, area, _BELOW_ONE)


def _polygon_shapes(masks: Sequence[tuple[Any, Size | None]]) -> list[Found]:
    """Of lists of polygons: the points of all in one array."""
    found: list[Found] = [_list_faults(polygons) for polygons, _ in masks]
    sound = [i for i, faults in enumerate(found) if not faults]
    if not sound:
        return found
    rings = [ring for i in sound for ring in masks[i][0]]
    points = np.fromiter(chain.from_iterable(rings), np.float64).reshape(-1, 2)
    each = np.fromiter(map(len, rings), np.int64, len(rings)) // 2
    starts = np.cumsum(each) - each
    least = np.minimum.reduceat(points, starts, axis=0).tolist()
    most = np.maximum.reduceat(points, starts, axis=0).tolist()
    areas, outlines = (values.tolist() for values in _areas_and_outlines(points, starts, each))
    end = 0
    for i in sound:
        polygons, size = masks[i]
        mine = slice(end, end := end + len(polygons))
        found[i] = _polygon_shape(
            polygons, size, (least[mine], most[mine]), sum(areas[mine]), sum(outlines[mine])
        )
        for ring in range(mine.start, mine.stop):
            if areas[ring] <= 1e-6 * outlines[ring] and _is_flat(rings[ring]):
                fault = Fault(
                    (ring - mine.start,),
                    "expected a polygon that encloses an area, got "
                    f"{len(rings[ring]) // 2} points on one line: {shortly(rings[ring])}",
                )
                earlier = found[i]
                found[i] = [*(earlier if isinstance(earlier, list) else ()), fault]
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


def _areas_and_outlines(
    points: Float[np.ndarray, "points 2"],
    starts: Int[np.ndarray, "rings"],
    each: Int[np.ndarray, "rings"],
) -> tuple[Float[np.ndarray, "rings"], Float[np.ndarray, "rings"]]:
    """The area that each ring's corners give, and the length of its outline, |x| + |y|."""
    after = np.arange(1, len(points) + 1)
    after[starts + each - 1] = starts
    points = points - np.repeat(points[starts], each, axis=0)  # less to cancel out
    following = points[after]
    across = points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]
    steps = np.abs(following - points).sum(axis=1)
    return np.abs(np.add.reduceat(across, starts)) / 2, np.add.reduceat(steps, starts)


def _polygon_shape(
    polygons: list[Any],
    size: Size | None,
    bounds: tuple[list[list[float]], list[list[float]]],
    area: int | float,
    outline: int | float,
) -> Found:
    """Of the polygons of one mask, whose least and greatest x and y are known."""
    if size is not None:
        height, width = size
        # coordinates that are off by one are common in real files
        outside = [
            i
            for i, (low, high) in enumerate(zip(*bounds, strict=True))
            if min(low) < -1 or high[0] > width + 1 or high[1] > height + 1
        ]
        wanted = f"expected points inside the image of [height, width] {list(size)}, got others"
        if outside:
            return [Fault((i,), wanted) for i in outside]
    left, top = (min(values) for values in zip(*bounds[0], strict=True))
    right, bottom = (max(values) for values in zip(*bounds[1], strict=True))
    # counting takes memory for each pixel of the outline
    countable = size is not None and size[0] * size[1] < 2**31 and outline <= 1e6
    return Shape(
        (left, top, right, bottom),
        1.5,
        area,
        1 + outline / 2,
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


_NUMBER = (int, float)
_NUMBERS = frozenset(_NUMBER)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, below what calculations with floats can take."""
    return isinstance(value, _NUMBER) and type(value) is not bool and -1e15 < value < 1e15


def are_numbers(value: Any) -> bool:
    """A list of such numbers: by built-in functions, as outlines are long."""
    if not isinstance(value, list) or not set(map(type, value)) <= _NUMBERS:
        return False
    # Comparisons ignore NaN, a sum doesn't; they come first, as float plus huge int is an error.
    return not value or (min(value) > -1e15 and max(value) < 1e15 and math.isfinite(sum(value)))
