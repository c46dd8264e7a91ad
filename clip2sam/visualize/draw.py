"""One thing over one image: its map, its grid, its points, or its masks with their tags."""

from collections.abc import Sequence
from typing import Any, cast

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from clip2sam.data.labels import numbers
from clip2sam.data.palette import RGB
from clip2sam.errors import ImageError
from clip2sam.visualize.canvas import (
    NEGATIVE,
    POSITIVE,
    aspect_of,
    axes_for,
    canvas_of,
    heat_colours,
    inches,
    ink,
    show_canvas,
    shrunk_mask,
)
from clip2sam.visualize.text import FONT, short, style


def draw_image(
    pixels: UInt8[np.ndarray, "height width 3"], *, ax: Axes | None = None, grey: bool = False
) -> Axes:
    """The image alone, in colour, or in light grey as the background of a heat overlay."""
    canvas = canvas_of(pixels)
    if grey:
        light = 80 + 0.65 * cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)  # dark images stay visible
        canvas = cv2.cvtColor(light.astype(np.uint8), cv2.COLOR_GRAY2RGB)
    return show_canvas(canvas, pixels.shape[0], pixels.shape[1], ax)


def draw_map(
    pixels: UInt8[np.ndarray, "height width 3"],
    similarity: Float[np.ndarray, "rows cols"],
    *,
    ax: Axes | None = None,
    limits: tuple[float, float] | None = None,
    alpha: float = 0.6,
    bar: bool = True,
) -> Axes:
    """A similarity map as heat over the grey image, with a colour bar of the raw scores.

    The map covers the whole image and is resized bilinearly. Cells that are not finite are grey.

    Args:
        similarity: raw scores of one label.
        limits: the raw scores of the darkest and the brightest colour, which make several maps
            comparable; None: this map's own range, as min-max scaling does.
        alpha: opacity of the heat, 0 to 1.
        bar: False for no colour bar.
    """
    height, width = pixels.shape[:2]
    ax = draw_image(pixels, ax=ax, grey=True)
    finite = np.isfinite(similarity)
    low, high = limits or _range(similarity[finite])
    filled = np.where(finite, similarity, similarity[finite].mean() if finite.any() else 0)
    heat = cv2.resize(filled.astype(np.float32), (512, 512), interpolation=cv2.INTER_LINEAR)
    bad = cv2.resize((~finite).astype(np.uint8), (512, 512), interpolation=cv2.INTER_NEAREST) > 0
    drawn = ax.imshow(
        np.ma.array(heat, mask=bad),
        extent=(0, width, height, 0),
        aspect=aspect_of(height, width),
        cmap=heat_colours(),
        vmin=low,
        vmax=high,
        alpha=alpha,
        interpolation="bilinear",
    )
    if bar:
        beside = ax.inset_axes((1.02, 0.0, 0.12 / inches(ax)[0], 1.0))
        ax.figure.colorbar(drawn, cax=beside)
        beside.tick_params(labelsize=FONT - 1)
    return ax


def draw_grid(
    pixels: UInt8[np.ndarray, "height width 3"],
    grid: Float[np.ndarray, "grid_rows grid_cols"],
    *,
    ax: Axes | None = None,
    alpha: float = 0.5,
) -> Axes:
    """The pooled grid that points are chosen on: its cells as heat over the grey image, with their
    values.

    Args:
        grid: scaled to 0..1; cells that are not finite are grey and have no value. Values are left
            out where the cells are too small for them.
    """
    height, width = pixels.shape[:2]
    rows, cols = grid.shape
    ax = draw_image(pixels, ax=ax, grey=True)
    ax.imshow(
        np.ma.masked_invalid(grid),
        extent=(0, width, height, 0),
        aspect=aspect_of(height, width),
        cmap=heat_colours(),
        vmin=0,
        vmax=1,
        alpha=alpha,
        interpolation="nearest",
    )
    ax.hlines(
        np.arange(1, rows) * height / rows, 0, width, colors="white", linewidth=0.5, alpha=0.7
    )
    ax.vlines(
        np.arange(1, cols) * width / cols, 0, height, colors="white", linewidth=0.5, alpha=0.7
    )
    wide, high = 72 * np.array(inches(ax)) / (cols, rows)  # of a cell, in points, like the font
    # Values are in the lower left corner, beside a point marker at the cell's centre (8 points).
    size = min(FONT, max((high / 2 - 8) / 0.75, (wide / 2 - 8) / 2.3), high * 0.9, wide / 2.7)
    if size >= 5:
        _write_values(ax, grid, width / cols, height / rows, size)
    return ax


def draw_points(
    coords: Float[np.ndarray, "points 2"], labels: Int[np.ndarray, "points"], *, ax: Axes
) -> Axes:
    """Points over an image that is drawn already: positive ones as orange plus signs, negative ones
    as blue crosses; the box between two corners as an orange frame.

    Args:
        coords: (x, y) in continuous pixels of the original image.
        labels: 1 for positive, 0 for negative, 2 and 3 for the upper left and the lower right
            corner of a box; others are not drawn.
    """
    for (x0, y0), (x1, y1) in zip(coords[labels == 2], coords[labels == 3], strict=True):
        frame = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=POSITIVE, linewidth=1.8)
        frame.set_path_effects([patheffects.withStroke(linewidth=3.2, foreground="black")])
        ax.add_patch(frame)
    halo = [patheffects.withStroke(linewidth=2.6, foreground="black")]
    for label, marker, fill, name in (
        (1, "P", POSITIVE, "positive"),
        (0, "X", NEGATIVE, "negative"),
    ):
        chosen = coords[labels == label]
        ax.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=64,
            marker=marker,
            color=[fill],
            edgecolors="white",
            linewidths=0.8,
            path_effects=halo,
            label=f"{name} ({len(chosen)})",
            clip_on=False,
            zorder=4 + label,
        )
    return ax


def draw_numbers(coords: Float[np.ndarray, "points 2"], *, ax: Axes) -> Axes:
    """The number of each point, from 1, above it, over an image that is drawn already.

    Args:
        coords: (x, y) in continuous pixels of the original image.
    """
    halo = [patheffects.withStroke(linewidth=2.4, foreground="black")]
    height = max(ax.get_ylim())
    for number, (x, y) in enumerate(coords, 1):
        below = y < 0.1 * height  # no room above
        ax.annotate(
            str(number),
            (x, y),
            (0, -6 if below else 5),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            color="white",
            fontsize=FONT + 1,
            fontweight="bold",
            path_effects=halo,
            zorder=7,
        )
    return ax


def draw_masks(
    pixels: UInt8[np.ndarray, "height width 3"],
    masks: Bool[np.ndarray, "masks mask_height mask_width"],
    names: Sequence[str],
    scores: Float[np.ndarray, "masks"],
    colours: Sequence[RGB],
    *,
    ax: Axes | None = None,
    numbered: bool = False,
    tagged: bool = True,
) -> Axes:
    """Masks over the image, filled and outlined, each with a tag of its name and score.

    Masks with the same name are numbered, from 1: "cat #2 0.87". Large masks are drawn first, so
    that small ones stay visible. Tags don't overlap where there is
    room; a line connects a tag that had to move away with its mask.

    Args:
        masks: at the image's own size; an empty mask is not drawn and gets no tag.
        names: one a mask; with an empty one the tag shows the score, and the number, alone.
        colours: one a mask, see `colour`.
        numbered: tags show the mask's position in the list, from 1: for too many masks to name.
        tagged: False for no tags at all.

    Raises:
        ImageError: the masks are not of the image's size.
    """
    height, width = pixels.shape[:2]
    if masks.shape[1:] != (height, width):
        raise ImageError(
            f"masks are {masks.shape[1]} x {masks.shape[2]} (height x width), the image is "
            f"{height} x {width}: give masks at the image's own size"
        )
    canvas = canvas_of(pixels)
    small = [shrunk_mask(mask, canvas.shape[0], canvas.shape[1]) for mask in masks]
    drawn = [i for i, mask in enumerate(small) if mask.any()]
    order = sorted(drawn, key=lambda i: -int(small[i].sum()))
    for i in order:
        mixed = canvas[small[i]] * 0.5 + np.array(colours[i]) * (255 * 0.5)
        canvas[small[i]] = mixed.astype(np.uint8)
    ax = axes_for(height, width, ax)
    stroke = 1.5 / 72 * max(canvas.shape[:2]) / max(inches(ax))  # 1.5 points, in canvas pixels
    for i in order:
        _outline(canvas, small[i], colours[i], stroke)
    show_canvas(canvas, height, width, ax)
    if tagged:
        shown = [f"{short(n, 28)} {k}".strip() for n, k in zip(names, numbers(names), strict=True)]
        texts = [f"{i + 1}" if numbered else f"{shown[i]} {scores[i]:.2f}".lstrip() for i in order]
        _draw_tags(ax, texts, [colours[i] for i in order], [small[i] for i in order])
    return ax


def _range(values: Float[np.ndarray, "values"]) -> tuple[float, float]:
    """The lowest and the highest, or 0 and 1 where there is no value."""
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def _outline(
    canvas: UInt8[np.ndarray, "rows cols 3"],
    mask: Bool[np.ndarray, "rows cols"],
    fill: RGB,
    stroke: float,
) -> None:
    """Draw a mask's outline in its colour between two edges of the contrasting tone."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    for tone, thickness in ((ink(fill), 2 * stroke), (fill, stroke)):
        cv2.drawContours(
            canvas, contours, -1, [255 * c for c in tone], max(1, round(thickness)), cv2.LINE_AA
        )


def _write_values(
    ax: Axes, grid: Float[np.ndarray, "grid_rows grid_cols"], wide: float, high: float, size: float
) -> None:
    """Write the grid's finite values into its cells, whose sides are in image pixels."""
    halo = [patheffects.withStroke(linewidth=1.6, foreground="black")]
    look: dict[str, Any] = {
        "color": "white",
        "fontsize": size,
        "va": "baseline",
        "path_effects": halo,
    }
    for row, col in np.argwhere(np.isfinite(grid)):
        ax.text((col + 0.05) * wide, (row + 0.92) * high, f"{grid[row, col]:.2f}", **look)


# -- tags


def _draw_tags(
    ax: Axes,
    texts: Sequence[str],
    colours: Sequence[RGB],
    masks: Sequence[Bool[np.ndarray, "rows cols"]],
) -> None:
    """Write a tag for each mask, the last (smallest) first: they have the fewest places to go."""
    dots = cast(Figure, ax.figure).dpi / 72  # everything below is in figure pixels, y up
    pad = 0.3 * FONT * dots
    frame = np.array(ax.get_window_extent().extents)
    taken = np.zeros((0, 4))
    for text, fill, mask in reversed(list(zip(texts, colours, masks, strict=True))):
        tag = ax.text(0, 0, "", fontsize=FONT, color=ink(fill), ha="left", va="bottom", zorder=6)
        tag.set(
            **style(text),
            bbox={"boxstyle": "square,pad=0.25", "fc": fill, "ec": ink(fill), "lw": 0.6},
        )
        box = tag.get_window_extent()
        size = np.array([box.width, box.height]) + 2 * pad
        centre, bounds = _centre_and_bounds(mask, frame)
        place = _free_place(size, centre, bounds, frame, taken)
        taken = np.vstack([taken, np.concatenate([place, place + size])])
        tag.set_position(tuple(ax.transData.inverted().transform(place + pad)))
        outside = np.maximum(bounds[:2] - place - size, place - bounds[2:]).max()
        if outside > size[1] / 2:  # so far from its mask that it needs a line
            ends = ax.transData.inverted().transform(np.stack([place + size / 2, centre]))
            edge = [patheffects.withStroke(linewidth=2.4, foreground=ink(fill))]
            ax.plot(ends[:, 0], ends[:, 1], color=fill, linewidth=1, path_effects=edge, zorder=5)


def _centre_and_bounds(
    mask: Bool[np.ndarray, "rows cols"], frame: Float[np.ndarray, "4"]
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "4"]]:
    """A mask's point farthest from its edge (x, y) and its box (x0, y0, x1, y1), in the frame's
    coordinates, y up."""
    rows, cols = mask.shape
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)
    x, y, wide, high = cv2.boundingRect(mask.astype(np.uint8))
    deep = np.argwhere(depth >= 0.95 * depth.max())  # the middle of a long shape's spine
    row, col = deep[((deep - (y + high / 2, x + wide / 2)) ** 2).sum(axis=1).argmin()]
    scale = np.array([(frame[2] - frame[0]) / cols, (frame[1] - frame[3]) / rows])
    corner = np.array([frame[0], frame[3]])
    centre = corner + scale * (col - 0.5, row - 0.5)
    return centre, np.concatenate([corner + scale * (x, y + high), corner + scale * (x + wide, y)])


def _free_place(
    size: Float[np.ndarray, "2"],
    centre: Float[np.ndarray, "2"],
    bounds: Float[np.ndarray, "4"],
    frame: Float[np.ndarray, "4"],
    taken: Float[np.ndarray, "tags 4"],
) -> Float[np.ndarray, "2"]:
    """The lower left corner of the first place where a tag covers no other tag, or else covers the
    least.

    Places in order: inside the mask if it is larger than the tag, above its box, below, right,
    left, then anywhere, the nearest first. All are within the frame if the tag fits in it.
    """
    wide, high = size
    low, top = bounds[:2], bounds[2:]
    near = [
        (low[0], top[1]),
        (low[0], low[1] - high),
        (top[0], centre[1] - high / 2),
        (low[0] - wide, centre[1] - high / 2),
    ]
    if (top - low > 1.3 * size).all():
        near.insert(0, tuple(centre - size / 2))
    step = np.maximum(size / 2, (frame[2:] - frame[:2]) / 40)
    grid = np.meshgrid(
        np.arange(frame[0], frame[2], step[0]), np.arange(frame[1], frame[3], step[1])
    )
    far = np.stack(grid, axis=-1).reshape(-1, 2)
    far = far[np.argsort(((far + size / 2 - centre) ** 2).sum(axis=1), kind="stable")]
    places = np.concatenate([np.array(near), far])
    places = np.maximum(np.minimum(places, frame[2:] - size), frame[:2])
    covered = np.minimum(places[:, None] + size, taken[:, 2:]) - np.maximum(
        places[:, None], taken[:, :2]
    )
    across, down = covered.clip(0).transpose(2, 0, 1)
    return places[(across * down).sum(axis=1).argmin()]
