"""What is drawn on: axes in image coordinates, images at a size that is quick to draw, colours."""

from io import BytesIO
from typing import Any, Literal, cast

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clip2sam.data.palette import RGB

POSITIVE: RGB = (0xE6 / 255, 0x9F / 255, 0x00 / 255)
NEGATIVE: RGB = (0x00 / 255, 0x72 / 255, 0xB2 / 255)
"""The colours of points, Okabe and Ito's orange and blue: no class has them."""

SCREEN = 100
"""Dots an inch of a figure in a notebook: the width of a page is then about that of a screen."""

_HEAT = "inferno"  # perceptually uniform: brightness alone gives the score
_LONGEST, _SHORTEST = 1600, 640  # bounds on the longest side of what is drawn, in pixels
_STRETCH = 8  # the greatest ratio of sides that is drawn true to scale


class NotebookFigure(Figure):
    """A matplotlib Figure that shows itself in a notebook; a plain one does so only after pyplot
    was set up."""

    def _repr_jpeg_(self) -> bytes:
        """The figure as JPEG in true colour at `SCREEN` dots an inch, with colours as sharp as
        brightness. As PNG, photographs take two to three times as much room in a notebook."""
        drawn = BytesIO()
        quality = {"quality": 90, "subsampling": 0, "optimize": True}
        self.savefig(drawn, format="jpeg", dpi=SCREEN, pil_kwargs=quality)
        return drawn.getvalue()


def heat_colours() -> Any:
    """The colour map of similarity maps and grids; values that are not finite are grey."""
    return colormaps[_HEAT].with_extremes(bad=(0.5, 0.5, 0.5))


def ink(fill: RGB) -> RGB:
    """Black or white, whichever contrasts more with a colour, by WCAG's relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in fill]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0.0, 0.0, 0.0) if luminance > 0.179 else (1.0, 1.0, 1.0)


# -- the image, at a size that is quick to draw


def _canvas_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) to draw at: the longest side within bounds, the other at least an eighth of
    it."""
    longest = min(max(height, width, _SHORTEST), _LONGEST)
    scale = longest / max(height, width)
    least = longest // _STRETCH
    return max(round(height * scale), least), max(round(width * scale), least)


def canvas_of(pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows cols 3"]:
    """A copy of the image to draw on: area average where it shrinks, bilinear where it grows."""
    height, width = pixels.shape[:2]
    rows, cols = _canvas_size(height, width)
    shrunk = cv2.resize(pixels, (min(cols, width), min(rows, height)), interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (cols, rows), interpolation=cv2.INTER_LINEAR)


def shrunk_mask(
    mask: Bool[np.ndarray, "height width"], rows: int, cols: int
) -> Bool[np.ndarray, "rows cols"]:
    """A mask at the canvas' size. One that is too thin to cover half of any pixel keeps every pixel
    that it touches."""
    height, width = mask.shape
    cover = cv2.resize(
        mask.astype(np.uint8) * 255,
        (min(cols, width), min(rows, height)),
        interpolation=cv2.INTER_AREA,
    )
    cover = cv2.resize(cover, (cols, rows), interpolation=cv2.INTER_LINEAR)
    return cover >= 128 if (cover >= 128).any() else cover > 0


# -- axes and their positions


def aspect_of(height: int, width: int) -> Literal["equal", "auto"]:
    """True to scale, or stretched to its axes where the image would be a line."""
    return "equal" if 1 / _STRETCH <= height / width <= _STRETCH else "auto"


def fit(height: int, width: int, most_wide: float, most_high: float) -> tuple[float, float]:
    """(width, height) in inches of an image within a box; the ratio of its sides is limited as that
    of the canvas."""
    ratio = min(max(width / height, 1 / _STRETCH), _STRETCH)
    return min(most_wide, most_high * ratio), min(most_high, most_wide / ratio)


def rows_and_columns(count: int, most: int) -> tuple[int, int]:
    """Rows of at most so many columns for that many panels, with as few empty places as there can
    be: six are two rows of three, not of four and two."""
    rows = max(-(-count // most), 1)
    return rows, max(-(-count // rows), 1)


def place_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """New axes at a position in inches."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / high, width / wide, height / high))


def axes_for(height: int, width: int, ax: Axes | None) -> Axes:
    """Axes in the image's coordinates: those given, or new ones on a figure of their own, with room
    for a colour bar."""
    if ax is None:
        wide, high = fit(height, width, 7.0, 6.0)
        ax = place_axes(NotebookFigure(figsize=(wide + 1.0, high + 0.4)), 0.2, 0.2, wide, high)
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_aspect(aspect_of(height, width))
    ax.apply_aspect()  # now: what is measured in these axes depends on it
    return ax


def show_canvas(
    canvas: UInt8[np.ndarray, "rows cols 3"], height: int, width: int, ax: Axes | None
) -> Axes:
    """Put a canvas on axes in the image's coordinates."""
    ax = axes_for(height, width, ax)
    ax.imshow(canvas, extent=(0, width, height, 0), aspect=aspect_of(height, width))
    ax.set_axis_off()
    ax.autoscale(False)
    return ax


def inches(ax: Axes) -> tuple[float, float]:
    """(width, height) of axes in inches, above 0."""
    box = ax.get_window_extent()
    dpi = cast(Figure, ax.figure).dpi
    return max(box.width / dpi, 0.01), max(box.height / dpi, 0.01)
