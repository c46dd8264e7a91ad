"""Pictures of what was found: maps, grids, points and masks drawn over the picture with matplotlib.

Nothing here shows a window: every function returns matplotlib's Figure, of a kind that shows itself in a notebook, or
Axes for the `draw_*` ones, which draw on the axes they are given or else on a figure of their own (`axes.figure`).
Axes carry the picture's own continuous pixel coordinates (origin top left, x right, y down) whatever the resolution
drawn, so more can be drawn on top. A picture over eight times as long as wide is stretched, for it would be a line
otherwise.

    words      a person's words, in any script
    canvas     colours, axes, and the picture at a size that is quick to draw
    draw       map, grid, points, masks: one thing over one picture
    figures    whole figures, and their files
"""

from clip2sam.visualize.canvas import NEGATIVE, POSITIVE, RGB, Picture, colour
from clip2sam.visualize.draw import draw_grid, draw_map, draw_masks, draw_picture, draw_points
from clip2sam.visualize.figures import (
    Drawable,
    Missing,
    contact_sheet,
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
    "Picture",
    "colour",
    "contact_sheet",
    "draw_grid",
    "draw_map",
    "draw_masks",
    "draw_picture",
    "draw_points",
    "label_figure",
    "overview_figure",
    "result_figure",
    "result_label_figure",
    "save_figure",
]
