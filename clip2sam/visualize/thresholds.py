"""Presence scores of every class as histograms, with the threshold, and what each threshold would give."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from clip2sam.analysis.tune import ClassScores, Tuning
from clip2sam.visualize.canvas import Picture, colour
from clip2sam.visualize.words import FONT, short, style

_COLUMNS, _DRAWN, _BINS = 4, 40, 24
_GREY = (0.72, 0.72, 0.72)


def tuning_figure(tuning: Tuning) -> Picture:
    """Two panels a class: above, how many pictures have which presence score; below, precision and recall.

    Pictures that show the label are in the class's colour and stand on the grey ones that don't; where the truth is
    not known all are grey and there is no lower panel. The dashed line is the suggested threshold. All panels share one
    axis of scores. Up to 40 classes are drawn.
    """
    shown = tuning.classes[:_DRAWN]
    columns, rows = min(len(shown), _COLUMNS), -(-len(shown) // _COLUMNS)
    known = any(c.truth is not None for c in shown)
    figure = Picture(
        figsize=(3.1 * columns + 0.3, (2.9 if known else 1.9) * rows + 0.45), layout="constrained"
    )
    grid = figure.subplots((2 if known else 1) * rows, columns, sharex=True, squeeze=False)
    edges = _edges(shown)
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        panels = grid[2 * row : 2 * row + 2, column] if known else grid[row : row + 1, column]
        if place >= len(shown):
            for ax in panels:
                ax.set_axis_off()
            continue
        _draw_histogram(panels[0], shown[place], edges, colour(place))
        if known:
            _draw_curves(panels[1], shown[place])
        lowest = panels[0] if shown[place].truth is None else panels[-1]
        lowest.tick_params(labelbottom=True)  # also where no panel, or an empty one, stands below
    more = f"; {_DRAWN} of {len(tuning.classes)} classes" if len(tuning.classes) > _DRAWN else ""
    how = (
        ": with the label in colour, without it grey; precision solid, recall dotted"
        if known
        else ""
    )
    figure.suptitle(f"pictures by presence score{how}{more}", fontsize=FONT + 1)
    return figure


def _edges(classes: tuple[ClassScores, ...]) -> np.ndarray:
    """Bins over all scores of all classes."""
    scores = np.concatenate([c.scores for c in classes])
    scores = scores[np.isfinite(scores)]
    low, high = (float(scores.min()), float(scores.max())) if scores.size else (0.0, 1.0)
    return np.linspace(low, high if high > low else low + 1, _BINS + 1)


def _draw_histogram(
    ax: Axes, scores: ClassScores, edges: np.ndarray, fill: tuple[float, float, float]
) -> None:
    truth = np.zeros(len(scores.scores), bool) if scores.truth is None else scores.truth
    ax.hist(
        [scores.scores[~truth], scores.scores[truth]],
        bins=edges.tolist(),
        stacked=True,
        color=[_GREY, fill],
    )
    _draw_threshold(ax, scores)
    limit = "no threshold" if scores.threshold is None else f"threshold {scores.threshold:.3g}"
    ax.set_title("", fontsize=FONT)
    ax.title.set(**style(f"{short(scores.name, 22)}: {limit}"))
    ax.tick_params(labelsize=FONT - 2)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _draw_curves(ax: Axes, scores: ClassScores) -> None:
    """Precision and recall, both black: the colour is the class's, above."""
    thresholds, precision, recall = scores.curve()
    if not len(thresholds):
        ax.set_axis_off()
        known = "truth not known" if scores.truth is None else "in no picture"
        ax.text(0.5, 0.5, known, transform=ax.transAxes, ha="center", va="center", fontsize=FONT)
        return
    ax.plot(thresholds, precision, color="black", linewidth=1.4)
    ax.plot(thresholds, recall, color="black", linewidth=1.4, linestyle=":")
    _draw_threshold(ax, scores)
    ax.set_ylim(0, 1.05)
    ax.tick_params(labelsize=FONT - 2)


def _draw_threshold(ax: Axes, scores: ClassScores) -> None:
    if scores.threshold is not None:
        ax.axvline(scores.threshold, color="black", linewidth=1, linestyle="--")
