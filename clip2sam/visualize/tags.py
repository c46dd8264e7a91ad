"""Where the tags of masks go: beside their masks, over no other tag, hiding as little as can be."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import cv2
import numpy as np
from jaxtyping import Bool, Float
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clip2sam.data.palette import RGB
from clip2sam.visualize.canvas import ink
from clip2sam.visualize.text import FONT, style

_LONGEST = 360  # pixels of the small masks that places are looked for on
_ACROSS, _AROUND = 36, 14  # places tried along each side of the image, and around the mask
_ON_TAG, _ON_MASK, _AWAY, _ASKEW = 9.0, 1.0, 0.02, 0.03
"""What a place costs: for all of the tag that lies on other tags, for each object that it hides
entirely, for each height of the tag that it is away from its mask, and for not being in its middle,
above, below or beside it."""


class _Mask(NamedTuple):
    """A mask on the small picture, in its pixels, y down."""

    far: Float[np.ndarray, "rows cols"]
    """The distance of each pixel from the mask, 0 inside."""
    centre: Float[np.ndarray, "2"]
    """x, y of the point that is farthest from its edge."""
    bounds: Float[np.ndarray, "4"]
    """x0, y0, x1, y1."""


def draw_tags(
    ax: Axes,
    texts: Sequence[str],
    colours: Sequence[RGB],
    masks: Sequence[Bool[np.ndarray, "_ _"]],
) -> None:
    """Write a tag for each mask, the last (smallest) first: they have the fewest places to go. A
    line connects a tag that had to move away with its mask.

    Args:
        masks: not empty, all of one size, which covers the axes.
    """
    if not masks:
        return
    small = [_shrunk(mask) for mask in masks]
    hidden = cv2.integral(sum((m / m.sum() for m in small), np.zeros(small[0].shape)))
    rows, cols = small[0].shape
    frame = ax.get_window_extent()
    scale = np.array([cols / frame.width, rows / frame.height])  # of the small picture
    dots = cast(Figure, ax.figure).dpi / 72
    pad, gap = 0.3 * FONT * dots, 2.0 * dots * scale
    taken = np.zeros((0, 4))
    for text, fill, mask in reversed(list(zip(texts, colours, small, strict=True))):
        tag = ax.text(0, 0, "", fontsize=FONT, color=ink(fill), ha="left", va="bottom", zorder=6)
        tag.set(
            **style(text),
            bbox={"boxstyle": "square,pad=0.25", "fc": fill, "ec": ink(fill), "lw": 0.6},
        )
        box = tag.get_window_extent()
        size = (np.array([box.width, box.height]) + 2 * pad) * scale
        where = _measured(mask)
        place, away = _best_place(size, gap, where, hidden, taken)
        taken = np.vstack([taken, np.concatenate([place, place + size])])

        def data(x: float, y: float) -> tuple[float, float]:
            """A place of the small picture in the axes' coordinates."""
            at = (frame.x0 + x / scale[0], frame.y1 - y / scale[1])
            return tuple(ax.transData.inverted().transform(at))

        tag.set_position(data(place[0] + pad * scale[0], place[1] + size[1] - pad * scale[1]))
        if away > size[1] / 2:
            start = np.clip(where.centre, place, place + size)
            ends = np.array([data(*start), data(*where.centre)])
            edge = [patheffects.withStroke(linewidth=2.4, foreground=ink(fill))]
            ax.plot(ends[:, 0], ends[:, 1], color=fill, linewidth=1, path_effects=edge, zorder=5)


def _shrunk(mask: Bool[np.ndarray, "_ _"]) -> Bool[np.ndarray, "rows cols"]:
    """A smaller mask that keeps every pixel that it touches."""
    scale = min(1, _LONGEST / max(mask.shape))
    size = (max(round(mask.shape[1] * scale), 1), max(round(mask.shape[0] * scale), 1))
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0


def _measured(mask: Bool[np.ndarray, "rows cols"]) -> _Mask:
    inside = np.pad(mask.astype(np.uint8), 1)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
    far = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
    x, y, wide, high = cv2.boundingRect(mask.astype(np.uint8))
    deep = np.argwhere(depth >= 0.95 * depth.max())  # the middle of a long shape's spine
    row, col = deep[((deep - (y + high / 2, x + wide / 2)) ** 2).sum(axis=1).argmin()]
    bounds = np.array([x, y, x + wide, y + high], float)
    return _Mask(far.astype(float), np.array([col + 0.5, row + 0.5]), bounds)


def _best_place(
    size: Float[np.ndarray, "2"],
    gap: Float[np.ndarray, "2"],
    mask: _Mask,
    hidden: Float[np.ndarray, "rows1 cols1"],
    taken: Float[np.ndarray, "tags 4"],
) -> tuple[Float[np.ndarray, "2"], float]:
    """The upper left corner of the place that costs the least, and its distance from the mask. Of
    equals the first: above the mask, below, beside, around it, then anywhere.

    Args:
        size, gap: width and height of a tag; what is left between it and its mask.
        hidden: the integral of the share of its mask that each pixel is, over all masks.
        taken: x0, y0, x1, y1 of the tags that have their places.
    """
    rows, cols = mask.far.shape
    room = np.maximum(np.array([cols, rows]) - size, 0)  # for the upper left corner
    low, high = mask.bounds[:2] - size - gap, mask.bounds[2:] + gap
    middle = (mask.bounds[:2] + mask.bounds[2:] - size) / 2
    beside = [(middle[0], low[1]), (middle[0], high[1]), (high[0], middle[1]), (low[0], middle[1])]
    places = np.concatenate(
        [
            np.array([*beside, tuple(mask.centre - size / 2)]),
            _lattice(low, high, _AROUND),
            _lattice(np.zeros(2), room, _ACROSS),
        ]
    ).clip(0, room)
    away = _distance(places, size, mask.far)
    cost = _AWAY * away / size[1] + _ON_MASK * _hidden(places, size + gap, hidden)
    shared = np.minimum(places[:, None] + size, taken[:, 2:]) - np.maximum(
        places[:, None], taken[:, :2]
    )
    cost += _ON_TAG * shared.clip(0).prod(axis=-1).sum(axis=1) / size.prod()
    cost[len(beside) + 1 :] += _ASKEW
    best = int(cost.round(3).argmin())
    return places[best], float(away[best])


def _lattice(
    low: Float[np.ndarray, "2"], high: Float[np.ndarray, "2"], count: int
) -> Float[np.ndarray, "places 2"]:
    """So many places in each direction."""
    x, y = (np.linspace(a, b, count) for a, b in zip(low, high, strict=True))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _distance(
    places: Float[np.ndarray, "places 2"],
    size: Float[np.ndarray, "2"],
    far: Float[np.ndarray, "rows cols"],
) -> Float[np.ndarray, "places"]:
    """How far a tag at each place is from the mask: the nearest of a few of its points."""
    across, down = np.meshgrid(np.linspace(0, 1, 7), (0.0, 0.5, 1.0))
    points = places[:, None] + np.stack([across, down], axis=-1).reshape(-1, 2) * size
    limits = np.array(far.shape[::-1]) - 1
    x, y = points.astype(int).clip(0, limits).transpose(2, 0, 1)
    return far[y, x].min(axis=1)


def _hidden(
    places: Float[np.ndarray, "places 2"],
    size: Float[np.ndarray, "2"],
    integral: Float[np.ndarray, "rows1 cols1"],
) -> Float[np.ndarray, "places"]:
    """How many objects a tag at each place hides; one of which it hides a half counts a half."""
    limits = np.array(integral.shape[::-1]) - 1
    x0, y0 = np.floor(places).astype(int).clip(0, limits).T
    x1, y1 = np.ceil(places + size).astype(int).clip(0, limits).T
    return integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
