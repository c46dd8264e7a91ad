"""Pictures of what was found: maps, grids, points and masks drawn over the picture with matplotlib.

Nothing here shows a window: every function returns matplotlib's Figure, or Axes for the `draw_*` ones, which draw
on the axes they are given or else on a figure of their own (`axes.figure`). Axes carry the picture's own continuous
pixel coordinates (origin top left, x right, y down) whatever the resolution drawn, so more can be drawn on top.
A picture over eight times as long as wide is stretched, for it would be a line otherwise.
"""

import os
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable
from uuid import uuid4

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import colormaps, font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from clip2sam.errors import ConfigError, ImageError
from clip2sam.types import Image

RGB = tuple[float, float, float]
"""Red, green and blue, each 0 to 1."""

POSITIVE: RGB = (0xE6 / 255, 0x9F / 255, 0x00 / 255)
NEGATIVE: RGB = (0x00 / 255, 0x72 / 255, 0xB2 / 255)
"""Okabe and Ito's orange and blue are kept for points: no class has them."""

# The rest of Okabe and Ito's colours, then dark red, violet and aqua: with normal sight, protanopia, deuteranopia
# and tritanopia (Machado et al. 2009) any two are at least 15 apart in CIELAB.
_PALETTE = ("#009E73", "#F0E442", "#D55E00", "#CC79A7", "#56B4E9", "#7A0019", "#8400CD", "#00FCCF")
_HEAT = "inferno"  # perceptually uniform, and brightness alone tells it: where the map is low the picture dims
_LONGEST, _SHORTEST = 1600, 800  # bounds on the longest side of what is drawn, in pixels
_STRETCH = 8  # the greatest ratio of sides that is drawn true to scale
_TAGGED = 12  # beyond so many masks, tags carry a number and the legend says whose it is
_ENTRIES = 60  # the legend's length
_FONT = 9.0  # points


@runtime_checkable
class Missing(Protocol):
    """A class without a mask."""

    @property
    def label(self) -> str: ...
    @property
    def score(self) -> float:
        """Its presence score."""

    @property
    def reason(self) -> str: ...


@runtime_checkable
class Drawable(Protocol):
    """What a result must have to be drawn; see `result_figure` and `result_label_figure`."""

    @property
    def image(self) -> Image: ...
    @property
    def labels(self) -> Sequence[str]:
        """The class name of each mask."""

    @property
    def masks(self) -> Bool[np.ndarray, "masks height width"]: ...
    @property
    def scores(self) -> Float[np.ndarray, "masks"]: ...
    @property
    def class_names(self) -> Sequence[str]:
        """All classes asked, in order; maps, grids and presence have a row for each."""

    @property
    def label_indices(self) -> Int[np.ndarray, "masks"]:
        """The class of each mask, as an index into `class_names`."""

    @property
    def maps(self) -> Float[np.ndarray, "classes rows cols"]: ...
    @property
    def grids(self) -> Float[np.ndarray, "classes grid_rows grid_cols"]: ...
    @property
    def points(self) -> Sequence[Float[np.ndarray, "_ 3"]]:
        """One array a mask: x, y in continuous pixels, and 1 (positive) or 0 (negative)."""

    @property
    def presence(self) -> Float[np.ndarray, "classes"]: ...
    @property
    def absent(self) -> Sequence[Missing]:
        """The classes without a mask."""


def colour(index: int) -> RGB:
    """The colour of a class, by its place in the user's list: the same in every picture.

    The first eight can be told apart by colour-blind people, and so can the lighter eight and the darker eight that
    follow among themselves; then they repeat. Names are written next to masks for that reason.
    """
    cycle, place = divmod(index, len(_PALETTE))
    red, green, blue = (int(_PALETTE[place][i : i + 2], 16) / 255 for i in (1, 3, 5))
    towards, share = ((0.0, 0.0), (1.0, 0.5), (0.0, 0.4))[cycle % 3]  # as is, whiter, blacker
    return (
        red + (towards - red) * share,
        green + (towards - green) * share,
        blue + (towards - blue) * share,
    )


def draw_picture(pixels: UInt8[np.ndarray, "height width 3"], *, ax: Axes | None = None, grey: bool = False) -> Axes:
    """The picture alone, in colour, or in light grey to lie under a heat overlay, whose colours are then the map's."""
    canvas = _canvas(pixels)
    if grey:
        light = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)
        canvas = cv2.cvtColor((80 + 0.65 * light).astype(np.uint8), cv2.COLOR_GRAY2RGB)  # dark ones stay visible
    return _show(canvas, pixels.shape[0], pixels.shape[1], ax)


def draw_map(
    pixels: UInt8[np.ndarray, "height width 3"],
    similarity: Float[np.ndarray, "rows cols"],
    *,
    ax: Axes | None = None,
    limits: tuple[float, float] | None = None,
    alpha: float = 0.6,
) -> Axes:
    """A similarity map as heat over the grey picture, with a colour bar of the raw scores on the right.

    The map covers the whole picture and is resized bilinearly. Cells that are not finite are drawn grey.

    Args:
        similarity: raw scores of one label.
        limits: the raw scores of the darkest and the brightest colour; None spreads the colours over this map's own
            range (what min-max normalising does), given limits make several maps comparable.
        alpha: how much of the heat there is, 0 to 1.
    """
    height, width = pixels.shape[:2]
    ax = draw_picture(pixels, ax=ax, grey=True)
    finite = np.isfinite(similarity)
    low, high = limits or _range(similarity[finite])
    filled = np.where(finite, similarity, similarity[finite].mean() if finite.any() else 0).astype(np.float32)
    heat = cv2.resize(filled, (512, 512), interpolation=cv2.INTER_LINEAR)
    bad = cv2.resize((~finite).astype(np.uint8), (512, 512), interpolation=cv2.INTER_NEAREST) > 0
    drawn = ax.imshow(
        np.ma.array(heat, mask=bad),
        extent=(0, width, height, 0),
        aspect=_aspect(height, width),
        cmap=_heat_colours(),
        vmin=low,
        vmax=high,
        alpha=alpha,
        interpolation="bilinear",
    )
    bar = ax.inset_axes((1.02, 0.0, 0.12 / _inches(ax)[0], 1.0))
    ax.figure.colorbar(drawn, cax=bar)
    bar.tick_params(labelsize=_FONT - 1)
    return ax


def draw_grid(
    pixels: UInt8[np.ndarray, "height width 3"],
    grid: Float[np.ndarray, "grid_rows grid_cols"],
    *,
    ax: Axes | None = None,
    alpha: float = 0.5,
) -> Axes:
    """The pooled grid that points are chosen on: its cells as heat over the grey picture, with their values.

    Args:
        grid: values 0 to 1, min-max normalised; cells that are not finite are grey and have no value. Values are left
            out where the cells are too small to be written in.
    """
    height, width = pixels.shape[:2]
    rows, cols = grid.shape
    ax = draw_picture(pixels, ax=ax, grey=True)
    ax.imshow(
        np.ma.masked_invalid(grid),
        extent=(0, width, height, 0),
        aspect=_aspect(height, width),
        cmap=_heat_colours(),
        vmin=0,
        vmax=1,
        alpha=alpha,
        interpolation="nearest",
    )
    ax.hlines(np.arange(1, rows) * height / rows, 0, width, colors="white", linewidth=0.5, alpha=0.7)
    ax.vlines(np.arange(1, cols) * width / cols, 0, height, colors="white", linewidth=0.5, alpha=0.7)
    wide, high = 72 * np.array(_inches(ax)) / (cols, rows)  # of a cell, in points, like the font
    # Values stand in the lower left corner: below or left of a point at the cell's centre, which takes 8 points.
    size = min(_FONT, max((high / 2 - 8) / 0.75, (wide / 2 - 8) / 2.3), high * 0.9, wide / 2.7)
    if size >= 5:
        _write_values(ax, grid, width / cols, height / rows, size)
    return ax


def draw_points(coords: Float[np.ndarray, "points 2"], labels: Int[np.ndarray, "points"], *, ax: Axes) -> Axes:
    """Points over a picture that is drawn already: positive ones orange plus signs, negative ones blue crosses.

    Args:
        coords: (x, y) in continuous pixels of the original picture.
        labels: 1 for positive, 0 for negative; others are not drawn.
    """
    halo = [patheffects.withStroke(linewidth=2.6, foreground="black")]
    for label, marker, fill, name in ((1, "P", POSITIVE, "positive"), (0, "X", NEGATIVE, "negative")):
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


def draw_masks(
    pixels: UInt8[np.ndarray, "height width 3"],
    masks: Bool[np.ndarray, "masks mask_height mask_width"],
    names: Sequence[str],
    scores: Float[np.ndarray, "masks"],
    colours: Sequence[RGB],
    *,
    ax: Axes | None = None,
    numbered: bool = False,
) -> Axes:
    """Masks over the picture, filled and outlined, each with a tag of its name and score.

    Large masks are drawn first, so that small ones stay visible. Tags keep clear of each other where there is room;
    one that had to move away from its mask is tied to it with a line.

    Args:
        masks: at the picture's own size; an empty mask is not drawn and gets no tag.
        names: one a mask; an empty one leaves the score alone on the tag.
        colours: one a mask, see `colour`.
        numbered: tags show the mask's place in the list, from 1, for where there are too many to name.

    Raises:
        ImageError: the masks are not of the picture's size.
    """
    height, width = pixels.shape[:2]
    if masks.shape[1:] != (height, width):
        raise ImageError(
            f"masks are {masks.shape[1]} x {masks.shape[2]} (height x width), the picture is {height} x {width}: "
            "give masks at the picture's own size"
        )
    canvas = _canvas(pixels)
    small = [_shrunk_mask(mask, canvas.shape[0], canvas.shape[1]) for mask in masks]
    order = sorted((i for i in range(len(small)) if small[i].any()), key=lambda i: -int(small[i].sum()))
    for i in order:
        canvas[small[i]] = (canvas[small[i]] * 0.5 + np.array(colours[i]) * (255 * 0.5)).astype(np.uint8)
    ax = _axes(height, width, ax)
    stroke = 1.5 / 72 * max(canvas.shape[:2]) / max(_inches(ax))  # 1.5 points, in pixels of the canvas
    for i in order:
        _outline(canvas, small[i], colours[i], stroke)
    _show(canvas, height, width, ax)
    tags = [(f"{i + 1}" if numbered else f"{_short(names[i], 28)} {scores[i]:.2f}".lstrip(), colours[i]) for i in order]
    _draw_tags(ax, tags, [small[i] for i in order])
    return ax


def label_figure(
    pixels: UInt8[np.ndarray, "height width 3"],
    name: str,
    similarity: Float[np.ndarray, "rows cols"],
    grid: Float[np.ndarray, "grid_rows grid_cols"],
    points: Sequence[Float[np.ndarray, "_ 3"]],
    masks: Bool[np.ndarray, "masks mask_height mask_width"],
    scores: Float[np.ndarray, "masks"],
    presence: float,
    *,
    absent: str = "",
    fill: RGB | None = None,
) -> Figure:
    """One label of one picture in three panels: similarity map, grid with points, masks.

    The panels are side by side, or one above the other where the picture is more than twice as wide as high.

    Args:
        similarity: raw scores of the label.
        grid: the pooled grid, 0 to 1.
        points: one array a prompt: x, y in continuous pixels, and 1 (positive) or 0 (negative).
        masks: this label's masks, at the picture's own size; there may be none.
        presence: the score that the presence decision was taken on.
        absent: why the label has no mask, if it has none.
        fill: the class's colour, `colour(0)` when left out.

    Raises:
        ImageError: the masks are not of the picture's size.
    """
    figure, (left, middle, right) = _three_panels(pixels.shape[0], pixels.shape[1])
    found = f"absent: {absent}" if absent else "no mask"
    if len(masks):
        found = f"mask score {', '.join(f'{score:.2f}' for score in scores[:8])}"
    wide, high = figure.get_size_inches()
    _write(figure, 0.2, high - 0.15, _short(name, 36), size=13.0)
    _write(figure, 0.2, high - 0.42, _short(f"presence {presence:.3f}  ·  {found}", int((wide - 0.4) * 13)), size=_FONT)

    draw_map(pixels, similarity, ax=left)
    left.set_title("similarity map, raw scores", fontsize=_FONT)
    draw_grid(pixels, grid, ax=middle)
    rows = np.concatenate([np.zeros((0, 3)), *points])
    draw_points(rows[:, :2], rows[:, 2].astype(int), ax=middle)
    middle.set_title(f"{grid.shape[0]} x {grid.shape[1]} grid and points", fontsize=_FONT)
    middle.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False, fontsize=_FONT - 1, handletextpad=0.2
    )
    draw_masks(pixels, masks, [""] * len(masks), scores, [fill or colour(0)] * len(masks), ax=right)
    right.set_title(("no mask", "mask", "masks")[min(len(masks), 2)], fontsize=_FONT)
    return figure


def overview_figure(
    pixels: UInt8[np.ndarray, "height width 3"],
    masks: Bool[np.ndarray, "masks mask_height mask_width"],
    names: Sequence[str],
    scores: Float[np.ndarray, "masks"],
    colours: Sequence[RGB],
    *,
    absent: Sequence[tuple[str, float]] = (),
) -> Figure:
    """All masks of one picture, with a legend on the right and the absent labels underneath.

    Up to twelve masks carry their name and score; more carry numbers, which the legend explains.

    Args:
        masks, names, scores, colours: as for `draw_masks`.
        absent: labels judged absent, with their presence scores.

    Raises:
        ImageError: the masks are not of the picture's size.
    """
    numbered = len(masks) > _TAGGED
    if numbered:
        entries = [(f"{i + 1}  {_short(name, 28)} {scores[i]:.2f}", colours[i]) for i, name in enumerate(names)]
    else:
        counts = {name: list(names).count(name) for name in names}
        entries = [
            (_short(name, 28) + (f" ({n})" if n > 1 else ""), colours[list(names).index(name)])
            for name, n in counts.items()
        ]
    wide, high = _fit(pixels.shape[0], pixels.shape[1], 8.5, 6.5)
    figure = Figure(figsize=(wide + 0.4, high + 0.8))
    ax = _place(figure, 0.2, 0.4, wide, high)
    legend_wide, legend_high = _draw_legend(ax, entries, rows=max(10, int(high / 0.22)))
    # The legend's size is known only now: make room for it.
    total_wide, total_high = max(wide + 0.4 + legend_wide, 4.0), max(high, legend_high) + (0.75 if absent else 0.5)
    figure.set_size_inches(total_wide, total_high)
    ax.set_position((0.2 / total_wide, 1 - (0.35 + high) / total_high, wide / total_wide, high / total_high))
    found = f"masks: {len(masks)}, labels found: {len(set(names))}"
    _write(figure, 0.2, total_high - 0.1, found)
    if absent:
        _write(figure, 0.2, 0.3, _short(_absent_line(absent), int((total_wide - 0.4) * 11)))
    draw_masks(pixels, masks, names, scores, colours, ax=ax, numbered=numbered)
    return figure


def result_figure(result: Drawable) -> Figure:
    """All masks of a result on its picture: `overview_figure` with each class in its own colour."""
    colours = [colour(int(i)) for i in result.label_indices]
    absent = [(a.label, a.score) for a in result.absent]
    return overview_figure(result.image.pixels, result.masks, result.labels, result.scores, colours, absent=absent)


def result_label_figure(result: Drawable, index: int) -> Figure:
    """One class of a result, by its index in `class_names`: `label_figure` with its map, grid, points and masks."""
    mine = np.flatnonzero(result.label_indices == index)
    name = result.class_names[index]
    return label_figure(
        result.image.pixels,
        name,
        result.maps[index],
        result.grids[index],
        [result.points[int(i)] for i in mine],
        result.masks[mine],
        result.scores[mine],
        float(result.presence[index]),
        absent=next((a.reason for a in result.absent if a.label == name), ""),
        fill=colour(index),
    )


def contact_sheet(images: Sequence[UInt8[np.ndarray, "_ _ 3"]], titles: Sequence[str]) -> Figure:
    """Many small pictures on one sheet, up to six in a row, each with its title.

    Raises:
        ImageError: there is not one title for every picture, or there is no picture.
    """
    if len(images) != len(titles) or not images:
        raise ImageError(
            f"a contact sheet needs one title for every picture: got {len(images)} pictures, {len(titles)} titles"
        )
    cols = min(len(images), 6)
    rows = -(-len(images) // cols)
    figure = Figure(figsize=(cols * 2.0 + 0.1, rows * 2.2 + 0.1))
    for i, (pixels, title) in enumerate(zip(images, titles, strict=True)):
        wide, high = _fit(pixels.shape[0], pixels.shape[1], 1.9, 1.9)
        left, top = 0.1 + 2.0 * (i % cols), figure.get_figheight() - 0.1 - 2.2 * (i // cols)
        draw_picture(pixels, ax=_place(figure, left + (1.9 - wide) / 2, top - 0.2 - high, wide, high))
        _write(figure, left, top, _short(title, 28), size=_FONT - 1)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, JPEG, PDF or SVG by the path's ending, at 150 dots an inch.

    The file appears whole or not at all: it is written beside its place and renamed. Folders are made.

    Raises:
        ConfigError: the path's ending names no known format.
        OSError: the file can't be written.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "jpg", "jpeg", "pdf", "svg"):
        raise ConfigError(f"can't write a figure as {path.name!r}: let the name end in .png, .jpg, .pdf or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".clip2sam-{uuid4().hex}.tmp")
    try:
        figure.savefig(temporary, format=kind, dpi=150)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# -- the canvas: what is drawn, at a size that is quick to draw


def _canvas_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) to draw at: the longest side within bounds, the other no shorter than an eighth of it."""
    longest = min(max(height, width, _SHORTEST), _LONGEST)
    scale = longest / max(height, width)
    least = longest // _STRETCH
    return max(round(height * scale), least), max(round(width * scale), least)


def _canvas(pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows cols 3"]:
    """A copy of the picture to draw on: averaged by area where it shrinks, bilinear where it grows."""
    height, width = pixels.shape[:2]
    rows, cols = _canvas_size(height, width)
    shrunk = cv2.resize(pixels, (min(cols, width), min(rows, height)), interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (cols, rows), interpolation=cv2.INTER_LINEAR)


def _shrunk_mask(mask: Bool[np.ndarray, "height width"], rows: int, cols: int) -> Bool[np.ndarray, "rows cols"]:
    """A mask at the canvas' size. One that is too thin to cover half of any pixel keeps every pixel it touches."""
    height, width = mask.shape
    cover = cv2.resize(mask.astype(np.uint8) * 255, (min(cols, width), min(rows, height)), interpolation=cv2.INTER_AREA)
    cover = cv2.resize(cover, (cols, rows), interpolation=cv2.INTER_LINEAR)
    return cover >= 128 if (cover >= 128).any() else cover > 0


def _outline(
    canvas: UInt8[np.ndarray, "rows cols 3"], mask: Bool[np.ndarray, "rows cols"], fill: RGB, stroke: float
) -> None:
    """Draw a mask's outline in its colour between two dark or light edges, whichever stands off from the colour."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    for tone, thickness in ((_ink(fill), 2 * stroke), (fill, stroke)):
        cv2.drawContours(canvas, contours, -1, [255 * c for c in tone], max(1, round(thickness)), cv2.LINE_AA)


def _write_values(
    ax: Axes, grid: Float[np.ndarray, "grid_rows grid_cols"], wide: float, high: float, size: float
) -> None:
    """Write the grid's finite values into its cells of so many picture pixels."""
    halo = [patheffects.withStroke(linewidth=1.6, foreground="black")]
    style: dict[str, Any] = {"color": "white", "fontsize": size, "va": "baseline", "path_effects": halo}
    for row, col in np.argwhere(np.isfinite(grid)):
        ax.text((col + 0.05) * wide, (row + 0.92) * high, f"{grid[row, col]:.2f}", **style)


# -- axes and their places


def _aspect(height: int, width: int) -> Literal["equal", "auto"]:
    """True to scale, or stretched to its axes where the picture would be a line."""
    return "equal" if 1 / _STRETCH <= height / width <= _STRETCH else "auto"


def _fit(height: int, width: int, most_wide: float, most_high: float) -> tuple[float, float]:
    """(width, height) in inches of a picture within a box; its ratio of sides is limited as that of the canvas."""
    ratio = min(max(width / height, 1 / _STRETCH), _STRETCH)
    return min(most_wide, most_high * ratio), min(most_high, most_wide / ratio)


def _place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """New axes at a place in inches."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / high, width / wide, height / high))


def _axes(height: int, width: int, ax: Axes | None) -> Axes:
    """Axes in the picture's coordinates: those given, or new ones on a figure of their own, with room for a bar."""
    if ax is None:
        wide, high = _fit(height, width, 7.0, 6.0)
        ax = _place(Figure(figsize=(wide + 1.0, high + 0.4)), 0.2, 0.2, wide, high)
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_aspect(_aspect(height, width))
    ax.apply_aspect()  # now, so that what is measured in these axes holds
    return ax


def _show(canvas: UInt8[np.ndarray, "rows cols 3"], height: int, width: int, ax: Axes | None) -> Axes:
    """Put a canvas on axes in the picture's coordinates."""
    ax = _axes(height, width, ax)
    ax.imshow(canvas, extent=(0, width, height, 0), aspect=_aspect(height, width))
    ax.set_axis_off()
    ax.autoscale(False)
    return ax


def _inches(ax: Axes) -> tuple[float, float]:
    """(width, height) of axes in inches, never nought."""
    box = ax.get_window_extent()
    dpi = cast(Figure, ax.figure).dpi
    return max(box.width / dpi, 0.01), max(box.height / dpi, 0.01)


def _three_panels(height: int, width: int) -> tuple[Figure, list[Axes]]:
    """A figure with room for two title lines, three panels with titles, a colour bar right of the first, a legend."""
    top, heading, bar, legend = 0.6, 0.3, 0.75, 0.35
    if width > 2 * height:
        wide, high = _fit(height, width, 8.0, 4.0)
        figure = Figure(figsize=(wide + bar + 0.2, top + 3 * (heading + high) + legend + 0.1))
        tops = [top + heading, top + 2 * heading + high, top + 3 * heading + 2 * high + legend]
        places = [(0.2, figure.get_figheight() - t - high) for t in tops]
    else:
        wide, high = _fit(height, width, 4.2, 4.2)
        slot = max(wide, 1.8)
        figure = Figure(figsize=(3 * slot + bar + 0.6, top + heading + high + legend))
        lefts = (0.2, 0.2 + slot + bar, 0.4 + 2 * slot + bar)
        places = [(left + (slot - wide) / 2, legend) for left in lefts]
    return figure, [_place(figure, left, bottom, wide, high) for left, bottom in places]


# -- colours


def _heat_colours() -> Any:
    return colormaps[_HEAT].with_extremes(bad=(0.5, 0.5, 0.5))


def _range(values: Float[np.ndarray, "values"]) -> tuple[float, float]:
    """The least and the greatest, or 0 and 1 where there is nothing."""
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def _ink(fill: RGB) -> RGB:
    """Black or white: what can be read on a colour (the higher contrast by WCAG's relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in fill]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0.0, 0.0, 0.0) if luminance > 0.179 else (1.0, 1.0, 1.0)


# -- tags and legend


def _draw_tags(ax: Axes, tags: Sequence[tuple[str, RGB]], masks: Sequence[Bool[np.ndarray, "rows cols"]]) -> None:
    """Write a tag for each mask, the last first: those of small masks, which have the least choice of places."""
    dots = cast(Figure, ax.figure).dpi / 72  # all that follows is in pixels of the figure, y up
    pad = 0.3 * _FONT * dots
    frame = np.array(ax.get_window_extent().extents)
    taken = np.zeros((0, 4))
    for (text, fill), mask in reversed(list(zip(tags, masks, strict=True))):
        tag = ax.text(0, 0, "", fontsize=_FONT, color=_ink(fill), ha="left", va="bottom", zorder=6)
        tag.set(**_style(text), bbox={"boxstyle": "square,pad=0.25", "fc": fill, "ec": _ink(fill), "lw": 0.6})
        box = tag.get_window_extent()
        size = np.array([box.width, box.height]) + 2 * pad
        heart, bounds = _heart_and_bounds(mask, frame)
        place = _free_place(size, heart, bounds, frame, taken)
        taken = np.vstack([taken, np.concatenate([place, place + size])])
        tag.set_position(tuple(ax.transData.inverted().transform(place + pad)))
        outside = np.maximum(bounds[:2] - place - size, place - bounds[2:]).max()
        if outside > size[1] / 2:  # too far from its mask to be read as its own
            ends = ax.transData.inverted().transform(np.stack([place + size / 2, heart]))
            edge = [patheffects.withStroke(linewidth=2.4, foreground=_ink(fill))]
            ax.plot(ends[:, 0], ends[:, 1], color=fill, linewidth=1, path_effects=edge, zorder=5)


def _heart_and_bounds(
    mask: Bool[np.ndarray, "rows cols"], frame: Float[np.ndarray, "4"]
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "4"]]:
    """A mask's point farthest from its edge (x, y) and its box (x0, y0, x1, y1), in the frame's y-up coordinates."""
    rows, cols = mask.shape
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 3)
    x, y, wide, high = cv2.boundingRect(mask.astype(np.uint8))
    deep = np.argwhere(depth >= 0.95 * depth.max())  # of a long shape's whole spine the middle
    row, col = deep[((deep - (y + high / 2, x + wide / 2)) ** 2).sum(axis=1).argmin()]
    scale = np.array([(frame[2] - frame[0]) / cols, (frame[1] - frame[3]) / rows])
    corner = np.array([frame[0], frame[3]])
    heart = corner + scale * (col - 0.5, row - 0.5)
    return heart, np.concatenate([corner + scale * (x, y + high), corner + scale * (x + wide, y)])


def _free_place(
    size: Float[np.ndarray, "2"],
    heart: Float[np.ndarray, "2"],
    bounds: Float[np.ndarray, "4"],
    frame: Float[np.ndarray, "4"],
    taken: Float[np.ndarray, "tags 4"],
) -> Float[np.ndarray, "2"]:
    """The lower left corner of the first place for a tag that covers no other tag, or else of the one covering least.

    Places in order: inside the mask if it is larger than the tag, above its box, below, right, left, then anywhere,
    the nearest first. All within the frame, if the tag fits in it.
    """
    wide, high = size
    low, top = bounds[:2], bounds[2:]
    near = [
        (low[0], top[1]),
        (low[0], low[1] - high),
        (top[0], heart[1] - high / 2),
        (low[0] - wide, heart[1] - high / 2),
    ]
    if (top - low > 1.3 * size).all():
        near.insert(0, tuple(heart - size / 2))
    step = np.maximum(size / 2, (frame[2:] - frame[:2]) / 40)
    grid = np.meshgrid(np.arange(frame[0], frame[2], step[0]), np.arange(frame[1], frame[3], step[1]))
    far = np.stack(grid, axis=-1).reshape(-1, 2)
    far = far[np.argsort(((far + size / 2 - heart) ** 2).sum(axis=1), kind="stable")]
    places = np.concatenate([np.array(near), far])
    places = np.maximum(np.minimum(places, frame[2:] - size), frame[:2])
    covered = np.minimum(places[:, None] + size, taken[:, 2:]) - np.maximum(places[:, None], taken[:, :2])
    across, down = covered.clip(0).transpose(2, 0, 1)
    return places[(across * down).sum(axis=1).argmin()]


def _draw_legend(ax: Axes, entries: Sequence[tuple[str, RGB]], rows: int) -> tuple[float, float]:
    """A legend right of the axes, in columns of so many rows; its (width, height) in inches."""
    if not entries:
        return 0.0, 0.0
    shown = list(entries[:_ENTRIES])
    handles = [Patch(facecolor=fill, edgecolor="black", linewidth=0.5) for _, fill in shown]
    if len(entries) > len(shown):
        shown.append((f"and {len(entries) - len(shown)} more", (0.0, 0.0, 0.0)))
        handles.append(Patch(facecolor="none", edgecolor="none"))
    # The names are set afterwards: before matplotlib 3.10, legends leave out any that begins with "_".
    legend = ax.legend(
        handles,
        ["name"] * len(handles),
        loc="upper left",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.3,
        ncols=-(-len(handles) // rows),
        fontsize=_FONT,
        frameon=False,
        handlelength=1.3,
    )
    for text, (name, _) in zip(legend.get_texts(), shown, strict=True):
        text.set(**_style(name))
    box = legend.get_window_extent()
    dpi = cast(Figure, ax.figure).dpi
    return box.width / dpi + 0.1, box.height / dpi + 0.1


def _absent_line(absent: Sequence[tuple[str, float]]) -> str:
    """The absent labels, the likeliest first, as many as make sense on a line."""
    ranked = sorted(absent, key=lambda pair: -pair[1])
    more = f" and {len(ranked) - 8} more" if len(ranked) > 8 else ""
    return "absent: " + ", ".join(f"{_short(name, 24)} {score:.3f}" for name, score in ranked[:8]) + more


# -- text: names are a person's own words, in any script


# Looked for in this order when DejaVu Sans, which comes with matplotlib, lacks a character.
_FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Tamil",
    "Noto Sans Thai",
    "Nirmala UI",
    "Leelawadee UI",
    "Noto Emoji",
    "Segoe UI Emoji",
    "Segoe UI Symbol",
)


@lru_cache
def _glyphs(family: str) -> frozenset[int]:
    """The code points that an installed font can draw; none if it is not installed."""
    if family not in font_manager.get_font_names():
        return frozenset()
    return frozenset(font_manager.get_font(font_manager.findfont(family)).get_charmap())


def _style(text: str) -> dict[str, Any]:
    """How to write a person's words, as properties of a matplotlib Text: as they are, "$" and "\\" included.

    A character that no installed font has is drawn as an empty box (install a font such as Noto Sans CJK for it),
    control characters as spaces.
    """
    families, written = ["DejaVu Sans"], ""
    for letter in text:
        kind = unicodedata.category(letter)
        if kind == "Cf" and letter not in "\u200c\u200d":  # invisible, and could turn the writing's direction
            continue
        if kind in ("Cc", "Zs", "Zl", "Zp"):
            letter = " "
        family = next((f for f in ("DejaVu Sans", *_FALLBACK_FONTS) if ord(letter) in _glyphs(f)), None)
        if family is None:
            letter = "□"
        elif family not in families:
            families.append(family)
        written += letter
    return {"text": written, "family": families, "parse_math": False, "usetex": False}


def _short(text: str, columns: int) -> str:
    """A text cut with an ellipsis to so many columns; those of East Asian scripts take two."""
    used = 0
    for i, letter in enumerate(text):
        used += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if used > columns:
            return text[:i] + "…"
    return text


def _write(figure: Figure, left: float, top: float, text: str, size: float = _FONT + 1) -> None:
    """A line of text whose upper left corner is at a place in inches, from the left and the bottom."""
    wide, high = figure.get_size_inches()
    figure.text(left / wide, top / high, "", fontsize=size, va="top").set(**_style(text))
