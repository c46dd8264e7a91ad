"""Presence scores of every class as histograms with the threshold, and the precision and recall of
each threshold."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from clip2sam.data.palette import RGB, colour
from clip2sam.visualize.canvas import NotebookFigure, rows_and_columns
from clip2sam.visualize.text import FONT, short, style

_COLUMNS, _DRAWN, _BINS = 4, 40, 24
_GREY = (0.72, 0.72, 0.72)


@runtime_checkable
class ScoredClass(Protocol):
    """One label over all images."""

    @property
    def name(self) -> str: ...
    @property
    def scores(self) -> Float[np.ndarray, "images"]:
        """Presence scores."""

    @property
    def truth(self) -> Bool[np.ndarray, "images"] | None:
        """Whether each image shows the label; None where that is not known."""

    @property
    def threshold(self) -> float | None: ...
    def curve(
        self,
    ) -> tuple[
        Float[np.ndarray, "thresholds"],
        Float[np.ndarray, "thresholds"],
        Float[np.ndarray, "thresholds"],
    ]:
        """Thresholds, ascending, with the precision and the recall of each."""


@runtime_checkable
class Tuned(Protocol):
    """What a tuning must have to be drawn; see `tuning_figure`."""

    @property
    def classes(self) -> Sequence[ScoredClass]: ...


def tuning_figure(tuning: Tuned) -> NotebookFigure:
    """Two panels a class: above, the number of images by presence score; below, precision and
    recall.

    Images that show the label are in the class's colour, on top of the grey ones that don't. Where
    the truth is not known, all are grey and there is no lower panel. The dashed line is the
    suggested threshold. All panels share one axis of scores. Up to 40 classes are drawn.
    """
    shown = tuning.classes[:_DRAWN]
    rows, columns = rows_and_columns(len(shown), _COLUMNS)
    known = any(c.truth is not None for c in shown)
    figure = NotebookFigure(
        figsize=(3.1 * columns + 0.3, (2.9 if known else 1.9) * rows + 0.45), layout="constrained"
    )
    grid = figure.subplots((2 if known else 1) * rows, columns, sharex=True, squeeze=False)
    edges = _edges(shown)
    for i in range(rows * columns):
        row, column = divmod(i, columns)
        panels = grid[2 * row : 2 * row + 2, column] if known else grid[row : row + 1, column]
        if i < len(shown):
            _draw_class(panels.tolist(), shown[i], edges, colour(i))
        else:
            for ax in panels:
                ax.set_axis_off()
    more = f"; {_DRAWN} of {len(tuning.classes)} classes" if len(tuning.classes) > _DRAWN else ""
    legend = ": with the label in colour, without it grey; precision solid, recall dotted"
    title = f"images by presence score{legend if known else ''}{more}"
    figure.suptitle(title, fontsize=FONT + 1)
    return figure


def _edges(classes: Sequence[ScoredClass]) -> Float[np.ndarray, "edges"]:
    """Bins over all scores of all classes."""
    scores = np.concatenate([c.scores for c in classes])
    scores = scores[np.isfinite(scores)]
    low, high = (float(scores.min()), float(scores.max())) if scores.size else (0.0, 1.0)
    return np.linspace(low, high if high > low else low + 1, _BINS + 1)


def _draw_class(
    panels: Sequence[Axes], scored: ScoredClass, edges: Float[np.ndarray, "edges"], fill: RGB
) -> None:
    """A class's histogram and, where there is a second panel, its curves."""
    _draw_histogram(panels[0], scored, edges, fill)
    if len(panels) > 1:
        _draw_curves(panels[1], scored)
    lowest = panels[0] if scored.truth is None else panels[-1]
    lowest.tick_params(labelbottom=True)  # also where no panel, or an empty one, is below


def _draw_histogram(
    ax: Axes, scored: ScoredClass, edges: Float[np.ndarray, "edges"], fill: RGB
) -> None:
    truth = np.zeros(len(scored.scores), bool) if scored.truth is None else scored.truth
    ax.hist(
        [scored.scores[~truth], scored.scores[truth]],
        bins=edges.tolist(),
        stacked=True,
        color=[_GREY, fill],
    )
    _draw_threshold(ax, scored)
    limit = "no threshold" if scored.threshold is None else f"threshold {scored.threshold:.3g}"
    ax.set_title("", fontsize=FONT - 1)
    ax.title.set(**style(f"{short(scored.name, 22)}: {limit}"))
    ax.tick_params(labelsize=FONT - 2)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _draw_curves(ax: Axes, scored: ScoredClass) -> None:
    """Precision and recall, both black: the colour is the class's, above."""
    thresholds, precision, recall = scored.curve()
    if not len(thresholds):
        ax.set_axis_off()
        known = "truth not known" if scored.truth is None else "in no image"
        ax.text(0.5, 0.5, known, transform=ax.transAxes, ha="center", va="center", fontsize=FONT)
        return
    ax.plot(thresholds, precision, color="black", linewidth=1.4)
    ax.plot(thresholds, recall, color="black", linewidth=1.4, linestyle=":")
    _draw_threshold(ax, scored)
    ax.set_ylim(0, 1.05)
    ax.tick_params(labelsize=FONT - 2)


def _draw_threshold(ax: Axes, scored: ScoredClass) -> None:
    if scored.threshold is not None:
        ax.axvline(scored.threshold, color="black", linewidth=1, linestyle="--")
