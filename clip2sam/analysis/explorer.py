"""An interactive view of images in Jupyter: type labels, move settings, click points, see the masks
at once, accept them, go on to the next image.

    clip2sam.Explorer(clip2sam.load("tiny"), "photos/", ["person", "traffic light"])

Needs the extra `explorer`: pip install "clip2sam[explorer]". The widgets are in `controls.py`, what
they change is in `session.py`.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from io import BytesIO
from typing import Any

import numpy as np

from clip2sam.analysis.session import Accepted, Session, counted
from clip2sam.coco.write import write_coco
from clip2sam.data.palette import colour
from clip2sam.errors import Clip2SamError, ConfigError
from clip2sam.pipeline import ImageLike, LabelsLike, Segmenter
from clip2sam.result import Result
from clip2sam.visualize import draw_masks, result_label_figure
from clip2sam.visualize.canvas import NotebookFigure

FIELDS = ("method", "presence_threshold", "point_threshold", "grid", "min_share", "prompts")
"""The fields of `Config` that have a control."""


class Explorer:
    """The controls and three panels: map and grid of the selected label, masks of all labels. A
    notebook shows it as a cell's last line.

    A click on a panel adds a positive point to the selected label, with the shift key a negative
    one; a click on a point removes it. With one mask an object a positive point is an object.

    Args:
        segmenter: the models, and the settings to start with.
        images: an image as for the segmenter; or several: a folder, a glob, a list, or a list of
            paths, as `clip2sam label` takes them.
        labels: as for the segmenter; others can be typed, separated by ; or on a line each.

    Raises:
        ConfigError: a package of the extra is not installed.
        ImageError: there is no image, or the first can't be read.
        LabelError: a label is empty, given twice, or there is none.
    """

    def __init__(
        self, segmenter: Segmenter, images: ImageLike | Sequence[ImageLike], labels: LabelsLike
    ) -> None:
        try:
            from clip2sam.analysis.controls import Controls
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"the explorer needs the package {error.name}: pip install 'clip2sam[explorer]'"
            ) from error
        self.session = Session(segmenter, images, labels)
        side = segmenter.clip.patches(segmenter.config.resolution)
        names = self.session.result.class_names
        self.controls = Controls(segmenter.config, names, side, self.session.count > 1)
        self._scale()
        self._observe()
        self._draw()

    @property
    def result(self) -> Result:
        """What is shown of the current image."""
        return self.session.result

    @property
    def accepted(self) -> tuple[Accepted, ...]:
        """The accepted masks: one entry for each label of each image."""
        return self.session.accepted

    def coco(self) -> dict[str, Any]:
        """The accepted masks as a COCO dataset of their images; the categories are their labels."""
        return self.session.coco()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self.controls.box._repr_mimebundle_(**kwargs)

    def _observe(self) -> None:
        c = self.controls
        c.text.observe(lambda change: self._relabel(change["new"]), "value")
        for field in FIELDS:
            getattr(c, field).observe(partial(self._set, field), "value")
        c.label.observe(self._select, "value")
        c.image.observe(lambda change: self._clicked(*change["new"][:3]), "click")
        for button, act in (
            (c.reset, self._forget),
            (c.accept, self._accept),
            (c.undo, self._undo),
            (c.remove, self._remove),
            (c.previous, partial(self._go, -1)),
            (c.following, partial(self._go, 1)),
            (c.export, self._export),
        ):
            button.on_click(partial(_pressed, act))

    # -- what changes the result

    def _relabel(self, text: str) -> None:
        """Other labels were typed."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self.session.relabel(text)
            except Clip2SamError as error:
                self._say(str(error))
                return
        label = self.controls.label
        # The options and the value change one after the other: draw only after both.
        label.unobserve(self._select, "value")
        label.options = self.result.class_names
        label.value = self.session.label
        label.observe(self._select, "value")
        self._scale()
        self._draw()
        if caught:
            self._say("; ".join(str(warning.message) for warning in caught))

    def _select(self, change: Any) -> None:
        self.session.label = change["new"]
        self._draw()

    def _set(self, field: str, change: Any) -> None:
        """A control was moved. Fields whose control was never moved keep the segmenter's value,
        which the control may be unable to show (None, "half")."""
        positive_from = self.session.config.positive_from
        if field == "point_threshold" and change["new"] == positive_from:
            return  # it is what the settings mean already
        self.session.set(**{field: change["new"]})
        if field == "method":
            self._scale()
        self._draw()
        shown = self.controls.point_threshold
        shown.value = self.session.config.positive_from  # other prompts, other default

    def _clicked(self, across: float, down: float, kind: int) -> None:
        """A click, as shares of the figure's width and height. One beside the panels does
        nothing."""
        place = self.figure.bbox.width * across, self.figure.bbox.height * (1 - down)
        panel = next((ax for ax in self.figure.axes if ax.bbox.contains(*place)), None)
        if panel is not None:
            x, y = panel.transData.inverted().transform(place)
            self.session.click(float(x), float(y), int(kind))
            self._draw()

    def _forget(self) -> None:
        self.session.forget()
        self._draw()

    def _go(self, step: int) -> None:
        """To another image."""
        index = self.session.index + step
        if not 0 <= index < self.session.count:
            self._say(f"this is the {'last' if step > 0 else 'first'} image")
            return
        try:
            self.session.open(index)
        except Clip2SamError as error:
            self._say(str(error))
            return
        self._scale()
        self._draw()

    # -- what is accepted

    def _accept(self) -> None:
        label = self.session.label
        if self.session.accept():
            self._list(f"accepted: {self.accepted[-1]}")
        else:
            self._say(f"{label} has no mask, so nothing was accepted")

    def _undo(self) -> None:
        if self.session.undo():
            self._list("took back the last change of the accepted masks")
        else:
            self._say("there is nothing to undo")

    def _remove(self) -> None:
        number = self.controls.accepted.value
        if number is None:
            self._say("select one of the accepted masks to remove it")
            return
        gone = self.accepted[number]
        self.session.remove(number)
        self._list(f"removed: {gone}")

    def _list(self, said: str) -> None:
        self.controls.accepted.options = [(str(a), i) for i, a in enumerate(self.accepted)]
        self._say(said)

    def _export(self) -> None:
        path = self.controls.path.value
        if not self.accepted:
            self._say(f"no mask is accepted yet, so {path} was not written")
            return
        document = self.coco()
        try:
            write_coco(path, document)
        except Clip2SamError as error:
            self._say(str(error))
        else:
            masks = counted(len(document["annotations"]), "mask")
            images = counted(len(document["images"]), "image")
            self._say(f"wrote {masks} of {images} to {path}")

    # -- what is shown

    def _say(self, text: str) -> None:
        self.controls.status.value = escape(text, quote=False)

    def _scale(self) -> None:
        """The presence slider's range: the scores of this image."""
        from clip2sam.analysis.controls import show_range

        show_range(self.controls.presence_threshold, *self.session.score_range())

    def _draw(self) -> None:
        from clip2sam.analysis.controls import legend

        session, c = self.session, self.controls
        self.figure = session_figure(session)
        drawn = BytesIO()  # quick: a notebook's own small PNG takes longer to pack than to draw
        self.figure.savefig(drawn, format="png", dpi=72, pil_kwargs={"compress_level": 1})
        c.image.png = drawn.getvalue()
        counts = Counter(self.result.labels)
        names = self.result.class_names
        c.legend.value = legend(
            [(n, colour(i), counts[n], n == session.label) for i, n in enumerate(names)]
        )
        c.place.value = f"{session.index + 1} of {session.count}: {session.name}"
        index = names.index(session.label)
        score = self.result.presence[index]
        self._say(f"{session.label}: presence {score:.3f}, {session.found()}")


def session_figure(session: Session) -> NotebookFigure:
    """The selected label in three panels; where other labels have masks too, the last panel shows
    those of all, each in its label's colour, the selected label's on top."""
    result = session.result
    index = result.class_names.index(session.label)
    figure = result_label_figure(result, index, session.prompts())
    if np.any(result.label_indices != index):
        panel = figure.axes[2]
        panel.clear()
        colours = [colour(int(i)) for i in result.label_indices]
        draw_masks(
            result.image.pixels,
            result.masks,
            result.labels,
            result.scores,
            colours,
            ax=panel,
            top=np.flatnonzero(result.label_indices == index).tolist(),
        )
        panel.set_title("masks of all labels", fontsize=9, y=1.0)
    return figure


def _pressed(act: Callable[[], None], _: Any) -> None:
    """A button gives itself to what it calls."""
    act()
