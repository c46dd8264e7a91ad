"""Pictures of a canvas, as JPEG: the image with its masks, and the selected label's maps."""

from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clip2sam.app.canvas import Canvas
from clip2sam.app.trial import Trial
from clip2sam.coco.rle import decode_rle
from clip2sam.data.palette import colour
from clip2sam.visualize import draw_masks, draw_points, result_label_figure
from clip2sam.visualize.canvas import POSITIVE, SCREEN, NotebookFigure, fit, place_axes

WIDE, HIGH = 9.0, 7.0
"""Inches that a picture of the canvas fits into; 100 pixels an inch."""

TAGGED = 12
"""With more masks than this, tags are their numbers in the list."""


def canvas_picture(canvas: Canvas) -> bytes:
    """The image alone, edge to edge, with masks, points and boxes: a share of the picture's width
    is that share of the image's."""
    height, width = canvas.image.size
    figure = NotebookFigure(figsize=fit(height, width, WIDE, HIGH))
    ax = place_axes(figure, 0.0, 0.0, *figure.get_size_inches())
    shown = canvas.masks()
    keys = [key for key, _ in shown]
    masks = [decode_rle(one.rle) for _, one in shown]
    labels = [one.label for _, one in shown]
    chosen = [i for i, key in enumerate(keys) if key == canvas.chosen]
    draw_masks(
        canvas.image.pixels,
        np.array(masks, bool).reshape(-1, height, width),
        labels,
        np.array([one.score for _, one in shown], np.float32),
        [colour(canvas.names.index(name)) for name in labels],
        ax=ax,
        numbered=len(masks) > TAGGED,
        top=chosen,
    )
    for number in chosen:
        _ring(ax, masks[number])
    marks = canvas.marks()
    draw_points(marks[:, :2], marks[:, 2].astype(int), ax=ax)
    if canvas.corner is not None:
        ax.plot(*canvas.corner, marker="+", markersize=14, markeredgewidth=2.5, color=POSITIVE)
    return _jpeg(figure)


def maps_picture(trial: Trial) -> bytes:
    """The selected label's map, its grid with points, its masks."""
    session = trial.session
    index = trial.names.index(trial.label)
    return _jpeg(result_label_figure(session.result, index, session.prompts()))


def why_picture(trial: Trial) -> bytes:
    """The selected label through all the stages.

    Raises:
        ConfigError: the labels are not found on CLIP's maps.
    """
    return _jpeg(trial.explain().show())


def _ring(ax: Axes, mask: np.ndarray) -> None:
    """A white line around the mask that is chosen."""
    rows, columns = np.arange(mask.shape[0]) + 0.5, np.arange(mask.shape[1]) + 0.5
    if mask.any() and min(mask.shape) > 1:
        ax.contour(columns, rows, mask, [0.5], colors="black", linewidths=4)
        ax.contour(columns, rows, mask, [0.5], colors="white", linewidths=2, linestyles="dashed")


def _jpeg(figure: Figure) -> bytes:
    drawn = BytesIO()
    figure.savefig(drawn, format="jpeg", dpi=SCREEN, pil_kwargs={"quality": 88, "subsampling": 0})
    return drawn.getvalue()
