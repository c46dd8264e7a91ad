"""Drawings: maps, grids, points and masks over the image, with matplotlib.

Nothing here opens a window. Figures are matplotlib's, of a kind that shows itself in a notebook.
The `draw_*` functions return Axes: those given, or new ones on a figure of their own
(`axes.figure`). Axes are in the image's own continuous pixel coordinates (origin top left, x right,
y down) whatever the resolution drawn, so more can be drawn on top. An image whose sides differ by
more than a factor of eight is stretched; it would be a line otherwise.

    text         labels as typed, in any script
    canvas       axes, and the image at a size that is quick to draw
    tags         where the names of masks are written
    draw         map, grid, points, masks: one thing over one image
    figures      whole figures of a result, and their files
    overlays     a figure for each label of a result, as files
    explanation  one label through all the stages
    thresholds   presence scores, precision and recall of each label
    histogram    presence scores of a run
"""

from clip2sam.data.palette import RGB, colour
from clip2sam.visualize.canvas import NEGATIVE, POSITIVE, NotebookFigure
from clip2sam.visualize.draw import (
    draw_grid,
    draw_image,
    draw_map,
    draw_masks,
    draw_numbers,
    draw_points,
)
from clip2sam.visualize.figures import (
    Drawable,
    Missing,
    label_figure,
    overview_figure,
    result_figure,
    result_label_figure,
    save_figure,
)

__all__ = [
    "NEGATIVE",
    "POSITIVE",
    "RGB",
    "Drawable",
    "Missing",
    "NotebookFigure",
    "colour",
    "draw_grid",
    "draw_image",
    "draw_map",
    "draw_masks",
    "draw_numbers",
    "draw_points",
    "label_figure",
    "overview_figure",
    "result_figure",
    "result_label_figure",
    "save_figure",
]
