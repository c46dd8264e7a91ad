"""What is written on a figure, as it is after drawing: text that is only set before may be gone."""

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def written(figure: Figure) -> list[str]:
    """Every text on a figure. None may stick out of the figure, where it would be cut."""
    FigureCanvasAgg(figure).draw()
    texts = [text for text in _texts(figure) if text.get_visible() and text.get_text()]
    page = figure.bbox.padded(1)
    for text in texts:
        box = text.get_window_extent()
        assert page.contains(box.x0, box.y0), f"{text.get_text()!r} is cut at {box}"
        assert page.contains(box.x1, box.y1), f"{text.get_text()!r} is cut at {box}"
    return [text.get_text() for text in texts]


def tick_texts(axis: Axis) -> list[str]:
    """The labels of an axis' ticks, those within its range."""
    low, high = sorted(axis.get_view_interval())
    pairs = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)  # shared axes have none
    return [label.get_text() for place, label in pairs if low <= place <= high]


def _texts(figure: Figure) -> Iterator[Text]:
    yield from figure.texts  # the title of all is among them
    for ax in figure.axes:
        yield from _texts_of(ax)


def _texts_of(ax: Axes) -> Iterator[Text]:
    yield from ax.texts
    yield ax.title
    yield ax.xaxis.label
    yield ax.yaxis.label
    if legend := ax.get_legend():
        yield from legend.get_texts()
    for axis in (ax.xaxis, ax.yaxis) if ax.axison else ():
        inside = tick_texts(axis)
        yield from (label for label in axis.get_ticklabels() if label.get_text() in inside)
    for child in ax.child_axes:
        yield from _texts_of(child)
