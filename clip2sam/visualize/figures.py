"""Whole figures: one label in three panels, all masks of an image; and writing them to a file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from clip2sam.data.files import atomic_file
from clip2sam.data.images import Image
from clip2sam.data.palette import RGB, colour
from clip2sam.errors import ConfigError
from clip2sam.visualize.canvas import NotebookFigure, fit, place_axes
from clip2sam.visualize.draw import draw_grid, draw_map, draw_masks, draw_numbers, draw_points
from clip2sam.visualize.text import FONT, short, short_names, style, wrapped, write

_TAGGED = 12  # with more masks than this, tags are numbers and the legend explains them
_ENTRIES = 60  # the legend's length
_ABSENT = 100  # labels listed underneath
_LINE = 0.2  # inches: a line of text underneath


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
        """All classes requested, in order; maps, grids and presence have a row for each."""

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
) -> NotebookFigure:
    """One label of one image in three panels: similarity map, grid with points, masks. Several
    prompts and their masks have the same numbers, from 1.

    The panels are side by side, or one above the other where the image is more than twice as wide
    as high.

    Args:
        similarity: raw scores of the label.
        grid: the pooled grid, 0 to 1.
        points: one array a prompt: x, y in continuous pixels, and 1 (positive) or 0 (negative).
        masks: this label's masks, at the image's own size; there may be none.
        presence: the score that the presence decision was taken on.
        absent: why the label has no mask, if it has none.
        fill: the class's colour, `colour(0)` when left out.

    Raises:
        ImageError: the masks are not of the image's size.
    """
    figure, (left, middle, right) = _three_panels(pixels.shape[0], pixels.shape[1])
    found = f"absent: {absent}" if absent else "no mask"
    if len(masks):
        kind = "mask score" if len(masks) == 1 else f"{len(masks)} masks, scores"
        found = f"{kind} {', '.join(f'{score:.2f}' for score in scores[:8])}"
    wide, high = figure.get_size_inches()
    line = short(f"presence {presence:.3f}  ·  {found}", int((wide - 0.4) * 13))
    write(figure, 0.2, high - 0.15, short(name, 36), size=13.0)
    write(figure, 0.2, high - 0.42, line, size=FONT)

    draw_map(pixels, similarity, ax=left)
    left.set_title("similarity map, raw scores", fontsize=FONT, y=1.0)
    draw_grid_and_points(pixels, grid, points, middle)
    draw_masks(pixels, masks, [""] * len(masks), scores, [fill or colour(0)] * len(masks), ax=right)
    right.set_title(("no mask", "mask", "masks")[min(len(masks), 2)], fontsize=FONT, y=1.0)
    return figure


def draw_grid_and_points(
    pixels: UInt8[np.ndarray, "height width 3"],
    grid: Float[np.ndarray, "grid_rows grid_cols"],
    points: Sequence[Float[np.ndarray, "_ 3"]],
    ax: Axes,
) -> None:
    """The pooled grid with its points, a title and a legend. Several prompts are numbered at their
    first positive points.

    Args:
        points: one array a prompt: x, y in continuous pixels, and 1 (positive) or 0 (negative).
    """
    every = np.concatenate([np.zeros((0, 3)), *points])
    corner = every[:, 2] > 1
    # prompts of one label share negative points; corners stay in pairs
    each = np.concatenate([np.unique(every[~corner], axis=0), every[corner]])
    draw_grid(pixels, grid, ax=ax, around=each[:, :2])
    draw_points(each[:, :2], each[:, 2].astype(int), ax=ax)
    if len(firsts := places(points)) > 1:
        draw_numbers(firsts, ax=ax)
    ax.set_title(f"{grid.shape[0]} x {grid.shape[1]} grid and points", fontsize=FONT, y=1.0)
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=2,
        frameon=False,
        fontsize=FONT - 1,
        handletextpad=0.2,
    )


def places(points: Sequence[Float[np.ndarray, "_ 3"]]) -> Float[np.ndarray, "prompts 2"]:
    """The first positive point (x, y) of each prompt that has one."""
    positive = [one[one[:, 2] == 1, :2] for one in points]
    return np.array([one[0] for one in positive if len(one)]).reshape(-1, 2)


def overview_figure(
    pixels: UInt8[np.ndarray, "height width 3"],
    masks: Bool[np.ndarray, "masks mask_height mask_width"],
    names: Sequence[str],
    scores: Float[np.ndarray, "masks"],
    colours: Sequence[RGB],
    *,
    absent: Sequence[tuple[str, float]] = (),
) -> NotebookFigure:
    """All masks of one image, with the absent labels underneath.

    Tags show name and score, and a number where several masks have one name; with more than twelve
    masks they are numbers, which a legend on the right explains.

    Args:
        masks, names, scores, colours: as for `draw_masks`.
        absent: absent labels with their presence scores.

    Raises:
        ImageError: the masks are not of the image's size.
    """
    numbered = len(masks) > _TAGGED
    wide, high = fit(pixels.shape[0], pixels.shape[1], 8.5, 6.5)
    figure = NotebookFigure(figsize=(wide + 0.4, high + 0.8))
    ax = place_axes(figure, 0.2, 0.4, wide, high)
    legend_wide, legend_high = 0.0, 0.0
    if numbered:
        legend_wide, legend_high = _draw_legend(
            ax, _entries(names, scores, colours), rows=max(10, int(high / 0.22))
        )
    # The legend's size is known only now: make room for it, and for the lines underneath.
    total_wide = max(wide + 0.4 + legend_wide, 4.0)
    lines = wrapped(_absent_pieces(absent), total_wide - 0.4, FONT + 1) if absent else []
    below = 0.15 + _LINE * len(lines)
    total_high = 0.35 + max(high, legend_high) + below
    figure.set_size_inches(total_wide, total_high)
    ax.set_position(
        (0.2 / total_wide, 1 - (0.35 + high) / total_high, wide / total_wide, high / total_high)
    )
    found = f"masks: {len(masks)}, labels found: {len(set(names))}"
    write(figure, 0.2, total_high - 0.1, found)
    for i, line in enumerate(lines):
        write(figure, 0.2, below - 0.08 - i * _LINE, line)
    draw_masks(pixels, masks, names, scores, colours, ax=ax, numbered=numbered)
    return figure


def result_figure(result: Drawable) -> NotebookFigure:
    """All masks of a result on its image: `overview_figure` with each class in its own colour."""
    colours = [colour(int(i)) for i in result.label_indices]
    absent = [(a.label, a.score) for a in result.absent]
    return overview_figure(
        result.image.pixels, result.masks, result.labels, result.scores, colours, absent=absent
    )


def result_label_figure(
    result: Drawable, index: int, points: Sequence[Float[np.ndarray, "_ 3"]] | None = None
) -> NotebookFigure:
    """`label_figure` of one class of a result, by its index in `class_names`.

    Args:
        points: the prompts that are drawn; None: those of the masks.
    """
    mine = np.flatnonzero(result.label_indices == index)
    name = result.class_names[index]
    return label_figure(
        result.image.pixels,
        name,
        result.maps[index],
        result.grids[index],
        [result.points[int(i)] for i in mine] if points is None else points,
        result.masks[mine],
        result.scores[mine],
        float(result.presence[index]),
        absent=next((a.reason for a in result.absent if a.label == name), ""),
        fill=colour(index),
    )


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, JPEG, PDF or SVG by the path's ending, at 150 dots an inch.

    The file is written whole or not at all. Missing folders are made.

    Raises:
        ConfigError: the path's ending names no known format.
        OutputError: the file can't be written; an older one stays as it was.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "jpg", "jpeg", "pdf", "svg"):
        raise ConfigError(
            f"can't write a figure as {path.name!r}: let the name end in .png, .jpg, .pdf or .svg"
        )
    with atomic_file(path) as file:
        figure.savefig(file, format=kind, dpi=150)


# -- panels and legend


def _three_panels(height: int, width: int) -> tuple[NotebookFigure, list[Axes]]:
    """A figure with two title lines, three panels with titles, a colour bar beside the first, and a
    legend below the second."""
    top, heading, bar, legend = 0.6, 0.3, 0.75, 0.35
    if width > 2 * height:
        wide, high = fit(height, width, 8.0, 4.0)
        figure = NotebookFigure(
            figsize=(wide + bar + 0.2, top + 3 * (heading + high) + legend + 0.1)
        )
        tops = [top + heading, top + 2 * heading + high, top + 3 * heading + 2 * high + legend]
        places = [(0.2, figure.get_figheight() - t - high) for t in tops]
    else:
        wide, high = fit(height, width, 4.2, 4.2)
        slot = max(wide, 1.8)
        figure = NotebookFigure(figsize=(3 * slot + bar + 0.6, top + heading + high + legend))
        lefts = (0.2, 0.2 + slot + bar, 0.4 + 2 * slot + bar)
        places = [(left + (slot - wide) / 2, legend) for left in lefts]
    return figure, [place_axes(figure, left, bottom, wide, high) for left, bottom in places]


def _entries(
    names: Sequence[str], scores: Float[np.ndarray, "masks"], colours: Sequence[RGB]
) -> list[tuple[str, RGB]]:
    """The legend's entries: each mask with its number."""
    rows = enumerate(zip(names, scores, colours, strict=True), 1)
    return [(f"{i}  {short(n, 28)} {score:.2f}", fill) for i, (n, score, fill) in rows]


def _draw_legend(ax: Axes, entries: Sequence[tuple[str, RGB]], rows: int) -> tuple[float, float]:
    """A legend right of the axes, in columns of `rows` entries; its (width, height) in inches."""
    shown = list(entries[:_ENTRIES])
    handles = [Patch(facecolor=fill, edgecolor="black", linewidth=0.5) for _, fill in shown]
    if len(entries) > len(shown):
        shown.append((f"and {len(entries) - len(shown)} more", (0.0, 0.0, 0.0)))
        handles.append(Patch(facecolor="none", edgecolor="none"))
    # Names are set afterwards: before matplotlib 3.10, a legend leaves out those that begin with
    # "_".
    legend = ax.legend(
        handles,
        ["name"] * len(handles),
        loc="upper left",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.3,
        ncols=-(-len(handles) // rows),
        fontsize=FONT,
        frameon=False,
        handlelength=1.3,
    )
    for text, (name, _) in zip(legend.get_texts(), shown, strict=True):
        text.set(**style(name))
    box = legend.get_window_extent()
    dpi = cast(Figure, ax.figure).dpi
    return box.width / dpi + 0.1, box.height / dpi + 0.1


def _absent_pieces(absent: Sequence[tuple[str, float]]) -> list[str]:
    """The absent labels, those with the highest scores first; very many are counted."""
    ranked = sorted(absent, key=lambda pair: -pair[1])
    cut = short_names([name for name, _ in ranked[:_ABSENT]], 40)
    listed = [f"{name} {score:.3f}," for name, (_, score) in zip(cut, ranked, strict=False)]
    if len(ranked) > _ABSENT:
        listed.append(f"and {len(ranked) - _ABSENT} more")
    return ["absent:", *listed[:-1], listed[-1].rstrip(",")]
