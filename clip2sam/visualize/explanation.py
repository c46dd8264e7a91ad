"""The stages from a label to its mask as one figure, and several maps side by side."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import patheffects
from matplotlib.axes import Axes

from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.data.palette import colour
from clip2sam.visualize.canvas import NotebookFigure, fit, place_axes, rows_and_columns
from clip2sam.visualize.draw import draw_image, draw_map, draw_masks, draw_numbers, draw_points
from clip2sam.visualize.figures import draw_grid_and_points, places
from clip2sam.visualize.text import FONT, short, style, write

# inches: a panel, between panels, for a colour bar, for a panel's title of one or two lines, for
# the two lines at the top, for a legend or a note below a row
_SIDE, _GAP, _BAR, _HEADING, _HEADING_2, _TOP, _LEGEND = 3.0, 0.15, 0.72, 0.32, 0.5, 0.62, 0.35
_SLOT = _SIDE + _BAR + _GAP
_RIVALS, _FEWEST = 7, 5  # labels shown beside the explained one; rows that there is room for
_ROW, _LISTED = 0.23, 16  # inches: a line of the table of objects; and the most lines
_COLUMNS = (0.0, 0.6, 1.2, 2.3, 3.05, 3.8, 4.4, 4.95)  # inches: of that table
_MADE_OF = (
    "peak: the map at the object's point",
    "contrast: the map inside the mask minus around it",
    "share: the map inside the mask as a part of the label's best one",
    "score: predicted IoU x stability x contrast / (contrast + 0.1) x contrast / the best contrast",
)
_WEAK = (0.62, 0.62, 0.62)  # the colour of masks that are left out


@runtime_checkable
class ExplainedCandidate(Protocol):
    """One of SAM's candidate masks."""

    @property
    def mask(self) -> Bool[np.ndarray, "height width"]: ...
    @property
    def predicted_iou(self) -> float: ...
    @property
    def agreement(self) -> float: ...
    @property
    def of_best(self) -> float:
        """Its agreement as a share of the best that can be expected, 0 to 1."""

    @property
    def kept(self) -> bool:
        """Whether the settings prefer it to the others."""


@runtime_checkable
class ExplainedThing(Protocol):
    """One prompt of the label with its mask."""

    @property
    def points(self) -> Float[np.ndarray, "points 3"]:
        """x, y in continuous pixels, and 1 (positive) or 0 (negative)."""

    @property
    def height(self) -> float: ...
    @property
    def mask(self) -> Bool[np.ndarray, "height width"]: ...
    @property
    def predicted_iou(self) -> float: ...
    @property
    def stability(self) -> float: ...
    @property
    def contrast(self) -> float: ...
    @property
    def share(self) -> float: ...
    @property
    def score(self) -> float: ...
    @property
    def left_out(self) -> str:
        """Why it is not shown; empty if it is."""


@runtime_checkable
class Explained(Protocol):
    """What an explanation must have to be drawn; see `explanation_figure`."""

    @property
    def image(self) -> Image: ...
    @property
    def label(self) -> str: ...
    @property
    def label_set(self) -> LabelSet:
        """All classes requested, distractors last."""

    @property
    def index(self) -> int:
        """The label's index in `label_set`."""

    @property
    def before(self) -> Float[np.ndarray, "rows cols"]: ...
    @property
    def redundant(self) -> Float[np.ndarray, "rows cols"]: ...
    @property
    def raw(self) -> Float[np.ndarray, "rows cols"]:
        """`before` minus `redundant`."""

    @property
    def weight(self) -> float: ...
    @property
    def presence(self) -> Float[np.ndarray, "labels"]: ...
    @property
    def presence_threshold(self) -> float | None: ...
    @property
    def reason(self) -> str:
        """Why the label has no mask; empty if it has one."""

    @property
    def grid(self) -> Float[np.ndarray, "grid_rows grid_cols"]: ...
    @property
    def prompts(self) -> str:
        """What a prompt is for: "object" or "label"."""

    @property
    def objects(self) -> Sequence[ExplainedThing]:
        """Those that are shown first."""

    @property
    def chosen(self) -> int:
        """The index of the object that the candidates are of."""

    @property
    def candidates(self) -> Sequence[ExplainedCandidate]: ...
    @property
    def shown(self) -> int:
        """How many of the objects became masks."""

    @property
    def kept(self) -> int | None:
        """The index of the candidate that became the chosen object's mask; None if it has none."""


def explanation_figure(explained: Explained) -> NotebookFigure:
    """One label of one image, three panels in a row, in the order of the stages.

    First the image, the label's similarity before feature surgery and the redundant part (both on
    one scale). Then their difference, which is the raw map, with the peak of each object, every
    class's presence with the threshold, and the grid with its points. Then SAM's candidates for one
    object. With one prompt an object, at last the masks of all objects, those that are left out in
    grey, and what their scores are made of.

    The agreement of a candidate is written as a share of the best one that a mask can be expected
    to reach with this map, which is not 1: see `clip2sam.analysis.agreement`.
    """
    pixels = explained.image.pixels
    wide, high = fit(pixels.shape[0], pixels.shape[1], _SIDE, _SIDE)
    tall = max(high, 1.9)  # of rows that hold more than images
    rows = [_HEADING + high, _HEADING + tall + _LEGEND]
    if explained.candidates:
        rows.append(_HEADING_2 + high + _LEGEND)
    if explained.prompts == "object" and explained.objects:
        lines = min(len(explained.objects), _LISTED) + 1.5 + len(_MADE_OF)
        rows.append(_HEADING + max(tall, lines * _ROW))
    figure = NotebookFigure(figsize=(3 * _SLOT + _GAP, _TOP + sum(rows) + _GAP * len(rows)))
    bottoms = figure.get_figheight() - _TOP - np.cumsum(rows) - _GAP * np.arange(len(rows))

    def panel(row: int, column: int) -> Axes:
        """Below a heading, at the top of its row; a narrow image stands in the middle."""
        heading = _HEADING_2 if row == 2 and explained.candidates else _HEADING
        bottom = float(bottoms[row]) + rows[row] - heading - high
        left = _GAP + column * _SLOT + (_SIDE - wide) / 2
        return place_axes(figure, left, bottom, wide, high)

    _headline(figure, explained)
    draw_image(pixels, ax=(plain := panel(0, 0)))
    plain.set_title("the image", fontsize=FONT)
    _draw_terms(explained, [panel(0, 1), panel(0, 2), panel(1, 0)])
    bars = float(bottoms[1]) + _LEGEND
    _draw_presence(explained, place_axes(figure, _GAP + _SLOT, bars, _SIDE, tall))
    points = [one.points for one in explained.objects]
    draw_grid_and_points(pixels, explained.grid, points, panel(1, 2))
    if explained.candidates:
        _draw_candidates(explained, [panel(2, i) for i in range(len(explained.candidates))])
        write(figure, _GAP, float(bottoms[2]) + _LEGEND - 0.05, _agreement_note(explained), FONT)
    else:
        write(figure, _GAP, float(bottoms[1]) + 0.15, "no points, so no candidates", FONT)
    if explained.prompts == "object" and explained.objects:
        _draw_objects(explained, panel(len(rows) - 1, 0))
        first = float(bottoms[-1]) + rows[-1] - _HEADING
        _write_table(figure, explained, _GAP + _SLOT, first)
    return figure


def maps_figure(
    pixels: UInt8[np.ndarray, "height width 3"],
    maps: Float[np.ndarray, "maps rows cols"],
    titles: Sequence[str],
    *,
    shared: bool = True,
) -> NotebookFigure:
    """Maps over one image, up to four in a row, each with its title.

    Args:
        maps: raw scores.
        shared: one scale of colours for all of them, which makes them comparable; else each has its
            own range.
    """
    wide, high = fit(pixels.shape[0], pixels.shape[1], 2.6, 2.6)
    rows, columns = rows_and_columns(len(maps), 4)
    slot = max(wide, 1.6) + _BAR + _GAP
    figure = NotebookFigure(figsize=(columns * slot + _GAP, rows * (high + _HEADING) + _GAP))
    limits = _limits(maps) if shared else None
    for i, (similarity, title) in enumerate(zip(maps, titles, strict=True)):
        bottom = figure.get_figheight() - (i // columns + 1) * (high + _HEADING)
        ax = place_axes(figure, _GAP + i % columns * slot, bottom, wide, high)
        draw_map(pixels, similarity, ax=ax, limits=limits)
        ax.title.set(**style(short(title, 36)), fontsize=FONT)
    return figure


def _limits(maps: Float[np.ndarray, "maps rows cols"]) -> tuple[float, float] | None:
    """The lowest and the highest finite score."""
    finite = maps[np.isfinite(maps)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def _headline(figure: NotebookFigure, explained: Explained) -> None:
    """The label, and the decision in one line."""
    wide, high = figure.get_size_inches()
    write(figure, _GAP, high - 0.12, short(explained.label, 60), size=13.0)
    score, threshold = explained.presence[explained.index], explained.presence_threshold
    needed = "no threshold" if threshold is None else f"threshold {threshold:g}"
    if explained.reason:
        verdict = f"absent: {explained.reason}"
    elif explained.prompts == "label":
        verdict = f"present: candidate {(explained.kept or 0) + 1}"
    else:
        verdict = f"present: {_objects(explained.shown)}"
        if left_out := len(explained.objects) - explained.shown:
            verdict += f", {left_out} left out"
    line = f"presence {score:.3f}  ·  {needed}  ·  {verdict}"
    write(figure, _GAP, high - 0.4, short(line, int(wide * 13)), size=FONT)


def _objects(count: int) -> str:
    return f"{count} object{'s' * (count != 1)}"


def _draw_terms(explained: Explained, axes: Sequence[Axes]) -> None:
    """Before surgery, the redundant part, and their difference; the first two on one scale."""
    pixels = explained.image.pixels
    limits = _limits(np.stack([explained.before, explained.redundant]))
    alone = len(explained.label_set.classes) == 1
    draw_map(pixels, explained.before, ax=axes[0], limits=limits)
    draw_map(pixels, explained.redundant, ax=axes[1], limits=limits)
    draw_map(pixels, explained.raw, ax=axes[2])
    if explained.prompts == "object":
        peaks = places([one.points for one in explained.objects])
        draw_points(peaks, np.ones(len(peaks), int), ax=axes[2])
        draw_numbers(peaks, ax=axes[2])
    titles = (
        f"similarity x weight {explained.weight:.2f}",
        f"minus {'the empty string' if alone else 'what all labels share'}",
        "is the raw map" + (", with its peaks" if explained.prompts == "object" else ""),
    )
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=FONT)


def _draw_presence(explained: Explained, ax: Axes) -> None:
    """Every class's highest raw score as a bar: the explained one first, then from the highest."""
    ranked = np.argsort(-np.nan_to_num(explained.presence), kind="stable")
    others = [int(i) for i in ranked if i != explained.index]
    shown = [explained.index, *others[:_RIVALS]]
    classes, threshold = explained.label_set.classes, explained.presence_threshold
    scores = np.nan_to_num(explained.presence[shown], posinf=0.0, neginf=0.0)
    fills = [colour(i) if i == explained.index else (0.8, 0.8, 0.8) for i in shown]
    ax.barh(range(len(shown)), scores, color=fills, height=0.8)
    left, right = min(0.0, *scores), max(0.0, *scores, threshold or 0.0)
    ax.set_xlim(left, right + 0.12 * (right - left or 1.0))
    ax.set_ylim(max(len(shown), _FEWEST) - 0.5, -0.5)
    ax.set_yticks([])
    ax.tick_params(labelsize=FONT - 1)
    ax.spines[["top", "right", "left"]].set_visible(False)
    halo = [patheffects.withStroke(linewidth=2, foreground="white")]
    for row, (i, score) in enumerate(zip(shown, explained.presence[shown], strict=True)):
        name = short(classes[i].name, 22) + (" (distractor)" if classes[i].distractor else "")
        text = ax.text(left, row, "", fontsize=FONT, va="center", path_effects=halo)
        text.set(**style(f" {name}  {score:.3f}"))
    if threshold is not None and left <= threshold <= ax.get_xlim()[1]:
        ax.axvline(threshold, color="black", linewidth=1, linestyle="--")
    more = f", {len(shown)} of {len(classes)} labels" if len(shown) < len(classes) else ""
    ax.set_title(f"presence and threshold{more}", fontsize=FONT)


def _draw_candidates(explained: Explained, axes: Sequence[Axes]) -> None:
    """SAM's candidates for one object, the preferred one in bold."""
    pixels, fill = explained.image.pixels, colour(explained.index)
    preferred = ", would be kept" if explained.kept is None else ", kept"
    of = f"object {explained.chosen + 1}, " if len(explained.objects) > 1 else ""
    for ax, (i, candidate) in zip(axes, enumerate(explained.candidates, 1), strict=True):
        draw_masks(pixels, candidate.mask[None], [""], np.zeros(1), [fill], ax=ax, tagged=False)
        ax.set_title(
            f"{of}candidate {i}{preferred if candidate.kept else ''}\n"
            f"predicted IoU {candidate.predicted_iou:.2f}, agreement {candidate.of_best:.0%}",
            fontsize=FONT,
            fontweight="bold" if candidate.kept else "normal",
        )


def _agreement_note(explained: Explained) -> str:
    """What the candidates' agreement is a share of."""
    best = max(explained.candidates, key=lambda one: one.of_best)
    most = best.agreement / best.of_best if best.of_best > 0 else 0.0
    return f"agreement with the map: 100% is {most:.2f}, the best that a mask reaches with this map"


def _draw_objects(explained: Explained, ax: Axes) -> None:
    """The masks of all objects with their numbers; those that are left out are grey, and not drawn
    where they show what another one shows."""
    height, width = explained.image.pixels.shape[:2]
    drawn = [
        (number, one)
        for number, one in enumerate(explained.objects, 1)
        if not one.left_out.startswith("shows the same")
    ]
    masks = np.array([one.mask for _, one in drawn], bool).reshape(-1, height, width)
    fills = [_WEAK if one.left_out else colour(explained.index) for _, one in drawn]
    draw_masks(
        explained.image.pixels,
        masks,
        [f"#{number}" for number, _ in drawn],
        np.array([one.score for _, one in drawn]),
        fills,
        ax=ax,
    )
    ax.set_title("all objects with their scores", fontsize=FONT)


def _write_table(figure: NotebookFigure, explained: Explained, left: float, top: float) -> None:
    """A row for each object: what its score is made of, and whether it is shown. The rest of very
    many are counted.

    Args:
        left, top: the place of the upper left corner, in inches.
    """
    rows: list[tuple[str, ...]] = []
    rows.append(("object", "peak", "predicted IoU", "stability", "contrast", "share", "score", ""))
    shown = "would be shown" if explained.reason else "shown"
    for number, one in enumerate(explained.objects, 1):
        values = (one.predicted_iou, one.stability, one.contrast, one.share, one.score)
        numbers = [f"{one.height:.3f}", *(f"{value:.2f}" for value in values)]
        verdict = f"left out: {one.left_out}" if one.left_out else shown
        rows.append((str(number), *numbers, verdict))
    if (more := len(rows) - 1 - _LISTED) > 0:
        rows = [*rows[:_LISTED], (f"and {more + 1} more", *[""] * 7)]
    for i, row in enumerate(rows):
        for column, text in zip(_COLUMNS, row, strict=True):
            write(figure, left + column, top - i * _ROW, text, FONT)
    for i, text in enumerate(_MADE_OF):
        write(figure, left, top - (len(rows) + 0.5 + i) * _ROW, text, FONT)
