"""Small objects in large images: windows of an image that go through the stages like images of
their own, and one result made of all they show.

CLIP squashes an image to its own input, a few hundred pixels a side, and an object smaller than one
of its patches is lost. In a window it is larger. Measured in LOG.md, 2026-11-28.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pycocotools import mask as mask_utils

from clip2sam.coco.rle import area_and_box, decode_rle
from clip2sam.config import Config
from clip2sam.data.images import Image
from clip2sam.data.presence import best_presence, is_present
from clip2sam.points import pool_grid
from clip2sam.result import Found
from clip2sam.scoring import SAME_IOU

VIEWS_AT_ONCE = 16
"""So many views, windows and whole images, go through the stages together: their features and masks
are what takes memory."""

LARGE = 1.5
"""With `Config.tile` "auto", images are cut whose longer side is more than so many of CLIP's."""

AUTO_MOST = 3
"""With "auto", at most so many windows a side; beyond that they are larger."""

MOST = 64
"""The same with a side that is given."""

MAX_CANVAS = 256
"""Cells a side of the map of a whole image that is put together of its windows' maps."""

SAME_CONTAINED = 0.6
"""Masks of one label from several views show one object where one lies in the other with a greater
part than this. Lower than within a view: a border cuts objects."""

NEAR_BORDER = 1
"""A mask that comes so near to an inner border of its window, in pixels, is cut by it. It is left
out: the object is whole in another window, or in the whole image."""

SMALL = 0.3
"""A mask of the whole image whose box is at most so many of a window's sides high and wide is left
out as well: the windows show its object larger."""

MULTIPLE = 0.1
"""Presence scores are divided by 1 plus this times log2 of the number of views: the highest score
of many is higher by chance."""


@dataclass(frozen=True)
class Window:
    """A part of an image, in its pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Image) -> Image:
        """The part as an image. Its pixels are not copied."""
        rows = slice(self.top, self.top + self.height)
        return Image(image.pixels[rows, self.left : self.left + self.width], image.origin)

    def placed(self, rle: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        """A mask of the part as a mask of its image, of (height, width) `size`."""
        if (self.height, self.width) == size:
            return rle
        mask = np.pad(decode_rle(rle), ((1, 1), (0, 0))).view(np.int8)
        col, row = np.diff(mask, axis=0).T.nonzero()  # where runs begin and end, down the columns
        changes = (self.left + col) * size[0] + self.top + row
        # a run that ends where the next one begins, at the end of a column, goes on
        place, times = np.unique(changes, return_counts=True)
        pixels = size[0] * size[1]
        lengths = np.diff(place[(times == 1) & (place < pixels)], prepend=0, append=pixels)
        placed = mask_utils.frPyObjects({"size": list(size), "counts": lengths.tolist()}, *size)
        return {"size": list(size), "counts": placed["counts"].decode("ascii")}

    def moved(self, points: Float[np.ndarray, "_ 3"]) -> Float[np.ndarray, "_ 3"]:
        """Points of the part (x, y in pixels, and their kind) in the image."""
        return points + np.array([self.left, self.top, 0], points.dtype)


def windows(size: tuple[int, int], side: int, overlap: float, most: int) -> tuple[Window, ...]:
    """Windows that cover an image, row by row: squares, or narrower where the image is. They are
    spread evenly, so that the first and the last ones are flush with the image's borders.

    Args:
        size: (height, width) of the image in pixels.
        side: of the windows in pixels.
        overlap: neighbours share at least this part of a side, from 0 to below 1.
        most: so many windows a side at most; they become larger where there would be more.
    """
    least = max(size) / (1 + (most - 1) * (1 - overlap))
    wanted = max(side, math.ceil(least))
    tall, wide = (min(wanted, length) for length in size)
    return tuple(
        Window(top, left, tall, wide)
        for top in _starts(size[0], tall, overlap)
        for left in _starts(size[1], wide, overlap)
    )


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where the windows begin along one side of the image."""
    step = max(side * (1 - overlap), 1)
    gaps = math.ceil((length - side) / step - 1e-9)
    return [round(i * (length - side) / gaps) for i in range(gaps + 1)] if gaps else [0]


def views(size: tuple[int, int], config: Config, clip_side: int) -> tuple[Window, ...]:
    """What of an image goes through the stages: the whole, and its windows by `Config.tile`.

    Args:
        size: (height, width) of the image in pixels.
        clip_side: side of CLIP's square input.
    """
    whole = Window(0, 0, *size)
    if config.tile == "off":
        return (whole,)
    if config.tile == "auto":
        side, most, least = clip_side, AUTO_MOST, LARGE * clip_side
    else:
        side, most, least = config.tile, MOST, config.tile
    cut = windows(size, side, config.tile_overlap, most) if max(size) > least else ()
    return (whole, *cut) if len(cut) > 1 else (whole,)


def cost(config: Config, clip_side: int, size: tuple[int, int] = (1080, 1920)) -> str:
    """What tiles cost, in a line for a person: for an image of (height, width) pixels."""
    own = views(size, config, clip_side)
    side = max(own[-1].height, own[-1].width)
    return (
        f"tiles: an image of {size[1]} x {size[0]} pixels goes through the models as {len(own)} "
        f"views, itself and windows of up to {side} pixels, and takes about {len(own)} times as "
        "long"
    )


def merged(
    size: tuple[int, int], windows: Sequence[Window], parts: Sequence[Found], config: Config
) -> Found:
    """What the views of an image show, as of the whole image.

    A mask is left out if another view shows its object better (`NEAR_BORDER`, `SMALL`), or if a
    better mask of its label shows the same object, or if its view's presence score, lowered by
    `MULTIPLE`, is too low.

    Args:
        size: (height, width) of the image in pixels.
        windows: the views, the whole image first.
        parts: what was found in each.
    """
    if len(parts) == 1:
        return parts[0]
    own = [np.full(len(part.rles), view) for view, part in enumerate(parts)]
    view = np.concatenate(own)
    label_index, score, inside, contrast = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("label_index", "score", "inside", "contrast")
    )
    rles = [rle for part in parts for rle in part.rles]
    points = [xyk for part in parts for xyk in part.points]
    scores, beaten = (
        lowered(np.stack([p.presence for p in parts])),
        np.stack([p.beaten for p in parts]),
    )
    limits = parts[0].labels.apart().thresholds(config.presence_threshold)[: scores.shape[1]]
    present = is_present(
        scores, beaten, np.array([np.nan if t is None else t for t in limits], np.float32)
    )
    usable = [
        k
        for k in np.flatnonzero(present[view, label_index]).tolist()
        if _is_best_seen(rles[k], windows[view[k]], windows, size)
    ]
    placed = {k: windows[view[k]].placed(rles[k], size) for k in usable}
    kept = _one_each(placed, label_index, score, config.max_objects)
    presence, everywhere = best_presence(scores, beaten)
    maps = _stitched(size, windows, [part.maps for part in parts])
    return Found(
        parts[0].labels,
        tuple(placed[k] for k in kept),
        label_index[kept],
        score[kept],
        inside[kept],
        contrast[kept],
        points=tuple(windows[view[k]].moved(points[k]) for k in kept),
        presence=presence,
        beaten=everywhere,
        present=present.any(axis=0),
        maps=maps,
        grids=pool_grid(torch.from_numpy(maps)[None], config.grid)[0].numpy(),
    )


def lowered(
    presence: Float[np.ndarray, "views classes"],
) -> Float[np.ndarray, "views classes"]:
    """Presence scores of the views of one image as they count for the image."""
    factor = 1 + MULTIPLE * math.log2(len(presence))
    return presence / factor


def _is_best_seen(
    rle: dict[str, Any], window: Window, windows: Sequence[Window], size: tuple[int, int]
) -> bool:
    """Whether no other view is to show a mask's object better. An empty mask shows none."""
    area, (x, y, wide, tall) = area_and_box(rle)
    if window is windows[0]:
        side = SMALL * max(windows[1].height, windows[1].width)
        return max(wide, tall) > side
    inner = (
        (window.left > 0, x),
        (window.top > 0, y),
        (window.left + window.width < size[1], window.width - x - wide),
        (window.top + window.height < size[0], window.height - y - tall),
    )
    return area > 0 and not any(is_inner and gap <= NEAR_BORDER for is_inner, gap in inner)


def _one_each(
    rles: Mapping[int, dict[str, Any]],
    label_index: Int[np.ndarray, "masks"],
    score: Float[np.ndarray, "masks"],
    most: int,
) -> list[int]:
    """The masks that are kept: of each label the best first, then the best that shows none of the
    objects so far, and so on; at most so many of a label."""
    kept: dict[int, list[int]] = {}
    for k in sorted(rles, key=lambda k: -score[k]):
        others = kept.setdefault(int(label_index[k]), [])
        if len(others) < most and not _same(rles[k], [rles[j] for j in others]):
            others.append(k)
    return sorted(k for ks in kept.values() for k in ks)


def _same(rle: dict[str, Any], others: Sequence[dict[str, Any]]) -> bool:
    """Whether a mask shows one of the objects of others of its label."""
    if not others:
        return False
    iou = mask_utils.iou([rle], list(others), [0] * len(others))
    within = mask_utils.iou([rle], list(others), [1] * len(others))  # shared / own area
    around = mask_utils.iou(list(others), [rle], [1])
    return bool((iou > SAME_IOU).any() or max(within.max(), around.max()) > SAME_CONTAINED)


def _stitched(
    size: tuple[int, int],
    windows: Sequence[Window],
    maps: Sequence[Float[np.ndarray, "classes rows cols"]],
) -> Float[np.ndarray, "classes high wide"]:
    """One map of the whole image for each label: the highest raw score of all views at each place,
    in cells about as large as the smallest view's."""
    rows, cols = maps[0].shape[1:]
    high = min(round(rows * size[0] / min(w.height for w in windows)), MAX_CANVAS)
    wide = min(round(cols * size[1] / min(w.width for w in windows)), MAX_CANVAS)
    canvas = np.full((len(maps[0]), high, wide), -np.inf, np.float32)
    for window, raw in zip(windows, maps, strict=True):
        top, left = window.top * high // size[0], window.left * wide // size[1]
        bottom = -(-(window.top + window.height) * high // size[0])
        right = -(-(window.left + window.width) * wide // size[1])
        # no peak gets lost, whether there are more cells or fewer
        part = F.adaptive_max_pool2d(torch.from_numpy(raw), (bottom - top, right - left)).numpy()
        place = canvas[:, top:bottom, left:right]
        np.maximum(place, part, out=place)
    return canvas
