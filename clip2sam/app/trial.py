"""A canvas whose masks are computed: image, labels and settings come from a person."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from clip2sam.analysis.bench import Points
from clip2sam.analysis.explain import Explanation
from clip2sam.analysis.session import Session, typed_labels
from clip2sam.app.canvas import Canvas
from clip2sam.clip.methods import METHODS
from clip2sam.coco.document import coco_document
from clip2sam.config import Config
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.data.records import Annotation
from clip2sam.pipeline import Segmenter
from clip2sam.result import Result


@dataclass(frozen=True)
class Why:
    """What was decided about a label, and by what."""

    label: str
    presence: float
    threshold: float | None
    """None: no decision is taken."""
    masks: int
    points: int
    """Points of its masks, or those that were set; a box counts as two."""
    says: str


@dataclass(frozen=True)
class _State:
    labels: LabelSet
    label: str
    settings: dict[str, Any]
    changed: dict[str, Points]


class Trial(Canvas):
    """An image that labels and settings are tried on.

    Args:
        segmenter: the models, and the settings to start with.
        image: the image.
        labels: typed, separated by semicolons or by lines.
        settings: as for `update`.

    Raises:
        LabelError: a label is given twice, or none is typed.
    """

    def __init__(
        self, segmenter: Segmenter, image: Image, labels: str, settings: dict[str, Any]
    ) -> None:
        super().__init__(image)
        self.notes: list[str] = []
        """What the models said of the labels."""
        label_set = as_label_set(typed_labels(labels))
        self._own = segmenter.config.method
        other = self._moved(segmenter.config, settings)
        with _noted(self.notes):
            self.session = Session(segmenter.with_config(**other), image, label_set)

    @property
    def result(self) -> Result:
        """What was computed, before any edit."""
        return self.session.result

    @property
    def label(self) -> str:
        """The selected one."""
        return self.session.label

    @label.setter
    def label(self, name: str) -> None:
        self.session.label = name

    @property
    def names(self) -> tuple[str, ...]:
        return self.session.result.class_names

    def found(self) -> Sequence[Annotation]:
        return self.result.annotations

    def marks(self) -> Points:
        return self.session.bench.points(self.result, self.label)

    def update(self, labels: str, settings: dict[str, Any]) -> None:
        """Other labels, and other settings. Nothing is computed where both are as they were.

        Args:
            settings: as controls show them, see `shown_settings`.

        Raises:
            LabelError, ConfigError: as they are refused; then nothing has changed.
        """
        session, other = self.session, self._moved(self.session.config, settings)
        names = typed_labels(labels)
        if not other and tuple(names) == self.names:
            return

        def act() -> None:
            session.settings.update(other)
            with _noted(self.notes):
                session.relabel(labels)

        self._change(act)

    def _moved(self, config: Config, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings that are not shown so already, as `Config` takes them."""
        shown = shown_settings(config)
        other = {name: value for name, value in settings.items() if shown[name] != value}
        if "method" in other:
            other["method"] = METHODS.get(other["method"], self._own)
        return other

    def why(self) -> list[Why]:
        """Of every label whether it is there, and why."""
        result, session = self.result, self.session
        limits = session.label_set.thresholds(session.config.presence_threshold)
        reasons = {a.label: a.reason for a in result.absent}
        counts = [label for _, a in self.masks() for label in [a.label]]
        rows, selected = [], self.label
        for index, name in enumerate(self.names):
            session.label = name
            says = reasons.get(name) or session.found()
            if name in session.bench.changed:
                says = f"set by hand; {session.found()}"
            points = len(session.bench.points(result, name))
            score = float(result.presence[index])
            rows.append(Why(name, score, limits[index], counts.count(name), points, says))
        session.label = selected
        return rows

    def explain(self) -> Explanation:
        """The selected label through all stages, without the points that were set by hand.

        Raises:
            ConfigError: the labels are not found on CLIP's maps.
        """
        session = self.session
        with _noted(self.notes):
            return session.bench.explain(session.label_set, session.label, **session.settings)

    def coco(self) -> dict[str, Any]:
        """The masks as they are right now, as a COCO dataset of this image."""
        record = replace(self.result.record, annotations=self.annotations())
        return coco_document([record], self.session.label_set.wanted)

    def release(self) -> None:
        """Free what the models keep of the image; it is computed again when it is needed."""
        self.session.bench.release()

    def _click(self, x: float, y: float, kind: int) -> None:
        self.session.click(x, y, kind)

    def _box(self, one: tuple[float, float], other: tuple[float, float]) -> None:
        self.session.box(one, other)

    def _forget(self) -> None:
        self.session.forget()

    def _state(self) -> _State:
        session = self.session
        changed = dict(session.bench.changed)
        return _State(session.label_set, session.label, dict(session.settings), changed)

    def _restore(self, state: _State, *, run: bool) -> None:
        session = self.session
        session.label_set, session.label = state.labels, state.label
        session.settings = dict(state.settings)
        session.bench.changed.clear()
        session.bench.changed.update(state.changed)
        if run:
            with _noted(self.notes):
                session.run()


@contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Warnings inside become notes, in the place of earlier ones."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    notes[:] = dict.fromkeys(str(warning.message) for warning in caught)


def shown_settings(config: Config) -> dict[str, Any]:
    """The fields of `Config` that have a control, with the values that it shows: a method is shown
    by its name, and what isn't set as what it stands for."""
    return {
        "method": config.method.name,
        "presence_threshold": config.presence_threshold or 0.0,
        "point_threshold": config.positive_from,
        "prompts": config.prompts,
        "min_share": config.min_share,
    }
