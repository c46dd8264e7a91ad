"""One thing over one image: its map, its grid, its points, or its masks with their tags."""

from collections.abc import Collection, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import patheffects
from matplotlib.axes import Axes
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
from clip2sam.visualize.tags import draw_tags
from clip2sam.visualize.text import FONT, short

FILL = 0.15
"""Opacity of a mask's fill: faint, so that the colour of what lies under it can be seen."""


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
    around: Float[np.ndarray, "points 2"] | None = None,
) -> Axes:
    """The pooled grid that points are chosen on: its cells as heat over the grey image, with their
    values.

    Args:
        grid: scaled to 0..1; cells that are not finite are grey and have no value. Values are left
            out where the cells are too small for them.
        around: (x, y) of points, in continuous pixels of the image, that will be drawn with their
            numbers: values are written beside them.
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
    size = min(FONT, 0.4 * high, wide / 3.1)  # room for a marker above or below a value
    if size >= 5:
        none = np.zeros((0, 2), np.float32)
        _write_values(ax, grid, (width, height), size, none if around is None else around)
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
    top: Collection[int] = (),
) -> Axes:
    """Masks over the image, outlined and faintly filled, each with a tag of its name and score.

    The image's own colours stay visible: they may be what the label is about. Masks with the same
    name are numbered, from 1: "cat #2 0.87". Large masks are drawn first, so that small ones stay
    visible. Tags stand beside their masks and hide neither objects nor each other where there is
    room; a line connects a tag that had to move away with its mask.

    Args:
        masks: at the image's own size; an empty mask is not drawn and gets no tag.
        names: one a mask; with an empty one the tag shows the score, and the number, alone.
        colours: one a mask, see `colour`.
        numbered: tags show the mask's position in the list, from 1: for too many masks to name.
        tagged: False for no tags at all.
        top: the masks, by index, that are drawn after all others, whatever their size.

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
    order = sorted(drawn, key=lambda i: (i in top, -int(small[i].sum())))
    for i in order:
        mixed = canvas[small[i]] * (1 - FILL) + np.array(colours[i]) * (255 * FILL)
        canvas[small[i]] = mixed.astype(np.uint8)
    ax = axes_for(height, width, ax)
    point = max(canvas.shape[:2]) / max(inches(ax)) / 72  # in canvas pixels
    for i in order:
        _outline(canvas, small[i], colours[i], point)
    show_canvas(canvas, height, width, ax)
    if tagged:
        shown = [f"{short(n, 28)} {k}".strip() for n, k in zip(names, numbers(names), strict=True)]
        texts = [f"{i + 1}" if numbered else f"{shown[i]} {scores[i]:.2f}".lstrip() for i in order]
        draw_tags(ax, texts, [colours[i] for i in order], [small[i] for i in order])
    return ax


def _range(values: Float[np.ndarray, "values"]) -> tuple[float, float]:
    """The lowest and the highest, or 0 and 1 where there is no value."""
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def _outline(
    canvas: UInt8[np.ndarray, "rows cols 3"],
    mask: Bool[np.ndarray, "rows cols"],
    fill: RGB,
    point: float,
) -> None:
    """Draw a mask's outline in its colour between two thin edges of the contrasting tone.

    Args:
        point: the canvas pixels of a point, which is 1/72 inch.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    for tone, thickness in ((ink(fill), 2.8 * point), (fill, 1.6 * point)):
        cv2.drawContours(
            canvas, contours, -1, [255 * c for c in tone], max(1, round(thickness)), cv2.LINE_AA
        )


def _write_values(
    ax: Axes,
    grid: Float[np.ndarray, "grid_rows grid_cols"],
    image: tuple[int, int],
    size: float,
    around: Float[np.ndarray, "points 2"],
) -> None:
    """Write the grid's finite values into its cells, where the points and their numbers aren't.

    Args:
        image: its width and height in pixels.
        size: of the font, in points.
        around: (x, y) of the points in pixels.
    """
    rows, cols = grid.shape
    point = np.array(image) / inches(ax) / 72  # in pixels of the image
    cell = np.array(image) / (cols, rows)
    text = np.array([2.4, 0.75]) * size * point
    low = around[:, 1] < 0.1 * image[1]  # numbers are below these, see `draw_numbers`
    above = np.where(low[:, None], (6, 6), (6, 8 + FONT)) * point
    below = np.where(low[:, None], (6, 8 + FONT), (6, 6)) * point
    taken = np.concatenate([around - above, around + below], axis=1)
    edge = (0.05, 0.09) * cell
    halo = [patheffects.withStroke(linewidth=2.2, foreground="black")]
    look: dict[str, Any] = {"color": "white", "fontsize": size, "va": "baseline"}
    for row, col in np.argwhere(np.isfinite(grid)):
        first, last = cell * (col, row) + edge, cell * (col + 1, row + 1) - edge - text
        across, down = np.meshgrid(*np.linspace(first, last, 5).T)  # from the upper left corner
        places = np.stack([across[::-1], down[::-1]], axis=-1).reshape(-1, 2)  # from the lower one
        shared = np.minimum(places[:, None] + text, taken[:, 2:]) - np.maximum(
            places[:, None], taken[:, :2]
        )
        x, y = places[shared.clip(0).prod(axis=-1).sum(axis=1).argmin()]
        ax.text(x, y + text[1], f"{grid[row, col]:.2f}", path_effects=halo, **look)
