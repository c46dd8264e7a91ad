"""What the checks know of a mask: its box and area, or what is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pycocotools import mask as mask_utils

Size = tuple[int, int]
"""(height, width) of an image in pixels."""
Mask = tuple[Any, Size | None]
"""An RLE object or a list of polygons, as it was read, and its image's size if that is known."""


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
    content: int
    """The same for masks that are the same, see `rle_shapes` and `polygon_shapes`."""
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
