"""Masks as polygons, exact to the pixel.

A polygon [x1, y1, x2, y2, ...] runs along the edges of pixels: (0, 0) is the first pixel's top left
corner, (1, 1) its bottom right one.
"""

from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float

from clip2sam.coco.rle import area_and_box, decode_rle

Ring = Float[np.ndarray, "_ 2"]
"""Corners (x, y) of a closed line, the last of which leads to the first."""


def rle_to_polygons(rle: dict[str, Any]) -> list[list[float]]:
    """A mask's outlines along the edges of its pixels: one polygon for each connected part.

    Parts that touch at a corner are one part. A hole is cut out, see `cut_out`, so that every
    filling rule leaves it empty. Each polygon has 4 corners or more, at whole numbers, and exactly
    its pixels' area. An empty mask has no polygon.

    Raises:
        CocoError: the RLE is damaged.
    """
    return [cut_out(ring, holes).ravel().tolist() for ring, holes in mask_rings(rle)]


def mask_rings(rle: dict[str, Any]) -> list[tuple[Ring, list[Ring]]]:
    """The outline of each connected part of a mask, and those of its holes.

    Raises:
        CocoError: the RLE is damaged.
    """
    area, (x, y, width, height) = area_and_box(rle)
    if area == 0:
        return []
    # OpenCV's contours run through the centres of pixels. On a grid of twice the size plus one, odd
    # positions are centres and even ones edges: with each pixel dilated to its edges, the contour
    # runs along the edges.
    grid = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)
    grid[1::2, 1::2] = decode_rle(rle)[y : y + height, x : x + width]
    found, tree = cv2.findContours(
        cv2.dilate(grid, np.ones((3, 3), np.uint8)), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    rings = [np.add(_with_corners(ring[:, 0] / 2), (x, y)) for ring in found]
    parts: dict[int, list[np.ndarray]] = {i: [] for i in range(len(rings)) if tree[0, i, 3] < 0}
    for ring, (_, _, _, parent) in zip(rings, tree[0], strict=True):
        if parent >= 0:
            parts[parent].append(ring)
    return [(rings[i], holes) for i, holes in parts.items()]


def _with_corners(ring: Float[np.ndarray, "points 2"]) -> Ring:
    """A contour cuts inner corners off by a diagonal step between two half edges: restore them."""
    after = np.roll(ring, -1, axis=0)
    across = (ring != after).all(axis=1)
    first, second = (
        np.column_stack([ring[:, 0], after[:, 1]]),
        np.column_stack([after[:, 0], ring[:, 1]]),
    )
    corners = np.where(_whole(first)[:, None], first, second)
    both = np.stack([ring, corners], axis=1).reshape(-1, 2)
    return both[np.stack([_whole(ring), across], axis=1).ravel()]


def _whole(points: Float[np.ndarray, "points 2"]) -> Bool[np.ndarray, "points"]:
    return np.asarray((points % 1 == 0).all(axis=1))


def cut_out(ring: Ring, holes: list[np.ndarray]) -> Ring:
    """Join holes to the ring around them, from left to right: each by a horizontal cut from its
    leftmost corner to the nearest edge on its left, and back.

    Raises:
        ValueError: a hole begins outside the ring, as those of a mask never do.
    """
    for hole in sorted(holes, key=lambda h: float(h[:, 0].min())):
        hole = np.roll(hole, -int(hole[:, 0].argmin()), axis=0)
        x, y = hole[0]
        (x1, y1), (x2, y2) = ring.T, np.roll(ring, -1, axis=0).T
        crosses = (y1 <= y) != (y2 <= y)
        at = np.full(len(ring), -np.inf)
        at[crosses] = (x1 + (y - y1) * (x2 - x1) / np.where(crosses, y2 - y1, 1))[crosses]
        at[at > x] = -np.inf
        edge = int(at.argmax())
        if at[edge] == -np.inf:
            raise ValueError(f"a hole begins at {x:g}, {y:g}, outside the ring around it")
        bridge = np.array([[at[edge], y]])
        ring = np.concatenate([ring[: edge + 1], bridge, hole, hole[:1], bridge, ring[edge + 1 :]])
    return ring


def joined_polygons(polygons: list[list[float]]) -> Ring:
    """One ring of (x, y) through all parts of a mask: from the first corner of the first part to
    each other part and back. The joining lines enclose nothing.

    Args:
        polygons: those of one mask, at least one.
    """
    rings = [np.reshape(p, (-1, 2)) for p in polygons]
    if len(rings) == 1:
        return rings[0]
    start = rings[0][:1]
    more = [part for ring in rings[1:] for part in (ring, ring[:1], start)]
    return np.concatenate([rings[0], start, *more[:-1]])
