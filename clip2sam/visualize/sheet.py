"""A contact sheet: what several methods see of the same labels; a column is a method."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from clip2sam.visualize.canvas import NotebookFigure, fit, place_axes
from clip2sam.visualize.draw import draw_image, draw_map, draw_masks
from clip2sam.visualize.text import FONT, short, style

_SIDE, _GAP, _HEADING = 1.5, 0.12, 0.3
_TRUTH, _FOUND = (0.0, 0.62, 0.45), (0.90, 0.62, 0.0)


@runtime_checkable
class Seen(Protocol):
    """What one method sees of one label, see `clip2sam.analysis.compare.Sight`."""

    @property
    def method(self) -> str: ...
    @property
    def raw(self) -> Float[np.ndarray, "rows cols"]: ...
    @property
    def mask(self) -> Bool[np.ndarray, "height width"]: ...
    @property
    def iou(self) -> float: ...


def sheet_figure(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    labels: Sequence[str],
    truths: Sequence[Bool[np.ndarray, "_ _"]],
    seen: Sequence[Sequence[Seen]],
) -> NotebookFigure:
    """Two lines for each label: the image, then the map of each method, each with its own range of
    colours; below, the true mask, then the mask of each method with its IoU.

    Args:
        images: RGB, one for each label.
        truths: the label's true mask at the image's size.
        seen: for each label what each method sees, the methods in the same order.
    """
    sizes = [fit(pixels.shape[0], pixels.shape[1], _SIDE, _SIDE) for pixels in images]
    columns = 1 + max((len(row) for row in seen), default=0)
    heights = [2 * (high + _HEADING) + _GAP for _, high in sizes]
    figure = NotebookFigure(figsize=(columns * (_SIDE + _GAP) + _GAP, sum(heights) + _GAP))
    top = figure.get_figheight()
    rows = zip(images, labels, truths, seen, sizes, heights, strict=True)
    for pixels, label, truth, sights, (wide, high), height in rows:
        upper, lower = top - _HEADING - high, top - 2 * (_HEADING + high)
        left = _GAP
        for sight in (None, *sights):
            above = place_axes(figure, left, upper, wide, high)
            below = place_axes(figure, left, lower, wide, high)
            if sight is None:
                draw_image(pixels, ax=above)
                mask, tone, title, subtitle = truth, _TRUTH, label, "truth"
            else:
                draw_map(pixels, sight.raw, ax=above, bar=False)
                mask, tone, title = sight.mask, _FOUND, sight.method
                subtitle = f"IoU {sight.iou:.2f}" if mask.any() else "absent"
            draw_masks(pixels, mask[None], [""], np.ones(1), [tone], ax=below, tagged=False)
            for ax, text in ((above, title), (below, subtitle)):
                ax.title.set(**style(short(text, 19)), fontsize=FONT)
            left += _SIDE + _GAP
        top -= height
    return figure
