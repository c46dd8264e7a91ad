"""The presence scores of a run as histograms, one a class, with its threshold: what thresholds are chosen from."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from matplotlib.figure import Figure

from clip2sam.visualize import _short, _style  # how that room writes a person's words, in any script

COLUMNS = 4
DRAWN = 80
"""Classes on the picture; the summary has them all."""


@runtime_checkable
class Scores(Protocol):
    """A class's presence scores."""

    name: str
    threshold: float | None
    histogram: dict[float, int]
    """Lower edge of each bin that is not empty, and number of pictures in it."""


def presence_figure(classes: Sequence[Scores], width: float) -> Figure:
    """Small histograms side by side, all on one axis of scores. Pictures are counted on a logarithmic axis.

    Args:
        width: of a bin.
    """
    shown = classes[:DRAWN]
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 1.9 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharex=True, squeeze=False).ravel()
    for ax, found in zip(grid, shown, strict=False):
        edges = list(found.histogram)
        ax.bar(edges, list(found.histogram.values()), width=width, align="edge", color="#4477aa", log=bool(edges))
        if found.threshold is not None:
            ax.axvline(found.threshold, color="#cc3311", linewidth=1)
        ax.title.set(**_style(_short(found.name, 28)), fontsize=9)
        ax.tick_params(labelsize=7)
    for ax in grid[len(shown) :]:
        ax.set_axis_off()
    more = f"; the first {DRAWN} of {len(classes)} classes" if len(classes) > DRAWN else ""
    figure.suptitle(f"pictures by presence score; the line is the threshold{more}", fontsize=10)
    return figure
