"""A canvas whose masks are given: those of a run's record. Models are loaded at the first click."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip2sam.analysis.bench import Bench, Points
from clip2sam.app.canvas import Canvas, same
from clip2sam.config import MAX_OBJECTS
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelClass, LabelSet
from clip2sam.data.records import Annotation
from clip2sam.pipeline import Segmenter
from clip2sam.result import Result

BY_HAND = {"prompts": "object", "min_share": 0.0, "max_objects": MAX_OBJECTS}
"""The settings of masks by hand: each point and each box is an object, and none is left out."""


class Correction(Canvas):
    """The masks of a record, and what a person adds to them.

    Points and boxes make masks of their own. The record's stay as they are, but for those of the
    same label that show the same (see `same`).

    Args:
        load: gives the models.
        image: the record's.
        classes: of the run.
        given: the masks that count now.
    """

    def __init__(
        self,
        load: Callable[[], Segmenter],
        image: Image,
        classes: tuple[LabelClass, ...],
        given: Sequence[Annotation],
    ) -> None:
        super().__init__(image)
        self.label_set = LabelSet(classes)
        self.label = classes[0].name
        self.given = tuple(given)
        self._load = load
        self._bench: Bench | None = None
        self._result: Result | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.label_set.wanted)

    @property
    def changed(self) -> bool:
        """Whether the masks are others than those that were given."""
        before, now = ({(a.label, str(a.rle["counts"])) for a in some} for some in self._both())
        return before != now

    def _both(self) -> tuple[Sequence[Annotation], Sequence[Annotation]]:
        return self.given, self.annotations()

    def found(self) -> Sequence[Annotation]:
        made = () if self._result is None else self._result.everything
        kept = [
            a for a in self.given if not any(a.label == new.label and same(a, new) for new in made)
        ]
        return (*kept, *made)

    def marks(self) -> Points:
        none = np.zeros((0, 3))
        return none if self._bench is None else self._bench.changed.get(self.label, none)

    def release(self) -> None:
        """Free what the models keep of the image; it is computed again when it is needed."""
        if self._bench is not None:
            self._bench.release()

    def _ready(self) -> tuple[Bench, Result]:
        """The image with the models, and what was made by hand so far."""
        if self._bench is None or self._result is None:
            self._bench = Bench(self._load(), self.image)
            self._result = self._run(self._bench)
        # no point was computed: what is not set by hand is not there
        self._bench.changed.setdefault(self.label, np.zeros((0, 3)))
        return self._bench, self._result

    def _run(self, bench: Bench) -> Result:
        return bench.run(self.label_set, only_changed=True, **BY_HAND)

    def _click(self, x: float, y: float, kind: int) -> None:
        bench, result = self._ready()
        bench.click(result, self.label, x, y, kind)
        self._result = self._run(bench)

    def _box(self, one: tuple[float, float], other: tuple[float, float]) -> None:
        bench, result = self._ready()
        bench.box(result, self.label, one, other)
        self._result = self._run(bench)

    def _forget(self) -> None:
        if self._bench is not None:
            self._bench.changed.pop(self.label, None)
            self._result = self._run(self._bench)

    def _state(self) -> Any:
        return self.label, {} if self._bench is None else dict(self._bench.changed)

    def _restore(self, state: Any, *, run: bool) -> None:
        self.label, changed = state
        if self._bench is not None:
            self._bench.changed = dict(changed)
            if run:
                self._result = self._run(self._bench)
