"""The presence scores of a run as histograms, one row a class, with its threshold."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from matplotlib.figure import Figure

from clip2sam.visualize.text import short_names, style

DRAWN = 100
"""Classes in the figure; the summary has them all."""


@runtime_checkable
class Scores(Protocol):
    """A class's presence scores."""

    @property
    def name(self) -> str: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def histogram(self) -> Mapping[float, int]:
        """Lower edge of each bin that is not empty, and the number of images in it."""


def presence_figure(classes: Sequence[Scores], width: float) -> Figure:
    """All histograms on one axis of scores, the first class on top. Heights are logarithmic, on one
    scale for all.

    Args:
        width: of a bin.
    """
    shown = classes[:DRAWN]
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(shown)), layout="constrained")
    ax = figure.subplots()
    most = max((n for c in shown for n in c.histogram.values()), default=1)
    edges = [edge for c in shown for edge in c.histogram] or [0.0]
    bins = np.arange(round(min(edges) / width), round(max(edges) / width) + 2)
    for row, found in enumerate(shown):
        counts = {round(edge / width): n for edge, n in found.histogram.items()}
        heights = np.array([counts.get(int(b), 0) for b in bins])
        ax.fill_between(
            bins * width,
            row,
            row - 0.85 * np.log1p(heights) / np.log1p(most),
            step="post",
            color="#4477aa",
        )
        if found.threshold is not None:
            ax.vlines(found.threshold, row - 0.9, row, color="#cc3311", linewidth=1.5)
    ax.set_ylim(len(shown) - 0.9, -1)
    names = [style(name) for name in short_names([found.name for found in shown], 32)]
    # The texts are given as labels too: what is only set on a tick is gone as soon as it is drawn.
    ax.set_yticks(range(len(shown)), labels=[name["text"] for name in names])
    for tick, name in zip(ax.get_yticklabels(), names, strict=True):
        tick.set(fontsize=8, **name)
    ax.set_xlabel("presence score")
    more = f"; the first {DRAWN} of {len(classes)} classes" if len(classes) > DRAWN else ""
    title = f"images by presence score (up to {most} in a bin); red: the threshold{more}"
    ax.set_title(title, fontsize=9)
    return figure
