"""One image in hand: what a person does to its masks, and the way back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from clip2sam.analysis.bench import Points
from clip2sam.coco.rle import decode_rle
from clip2sam.data.images import Image
from clip2sam.data.records import Annotation
from clip2sam.errors import ConfigError

TOOLS = {
    "add": "point on the object",
    "beside": "point beside it",
    "box": "box (two corners)",
    "mask": "choose a mask",
}
"""What a click does, and what is said of it."""

Key = tuple[str, str]
"""A mask as it was found: its label, and the counts of its RLE."""

MOST_BACK = 100
"""So many steps can be taken back."""


SAME = 0.5
"""Two masks with a higher IoU show the same."""


def key_of(found: Annotation) -> Key:
    """By what a mask is known when the image is computed anew."""
    return found.label, str(found.rle["counts"])


def same(one: Annotation, other: Annotation) -> bool:
    """Whether two masks of one image show the same."""
    return bool(mask_utils.iou([one.rle], [other.rle], [0])[0, 0] > SAME)


class Canvas(ABC):
    """The masks of one image, and a person's edits of them, which outlive that the others are
    computed anew. A mask that was moved to another label stays as it is, and its old label has none
    that shows the same. One that was removed is known by its pixels.

    Args:
        image: the one in hand.
    """

    def __init__(self, image: Image) -> None:
        self.image = image
        self.tool = "add"
        self.corner: tuple[float, float] | None = None
        """The first of a box's two."""
        self.chosen: Key | None = None
        """The mask that `move` and `remove` are about."""
        self.edits: dict[Key, Annotation | None] = {}
        """Masks that were moved to another label, as they are there; None: removed."""
        self._earlier: list[tuple[Any, dict[Key, Annotation | None]]] = []

    # -- what a kind of canvas says of itself

    label: str
    """The selected one: points and boxes are for it."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """All labels, in their order."""

    @abstractmethod
    def found(self) -> Sequence[Annotation]:
        """The masks before any edit."""

    @abstractmethod
    def marks(self) -> Points:
        """The selected label's points and boxes."""

    @abstractmethod
    def _click(self, x: float, y: float, kind: int) -> None: ...

    @abstractmethod
    def _box(self, one: tuple[float, float], other: tuple[float, float]) -> None: ...

    @abstractmethod
    def _forget(self) -> None: ...

    @abstractmethod
    def _state(self) -> Any:
        """All that `_restore` needs to compute the same again."""

    @abstractmethod
    def _restore(self, state: Any, *, run: bool) -> None: ...

    # -- what is shown

    def masks(self) -> list[tuple[Key, Annotation]]:
        """Every mask with its key, as edited, in the order of the labels."""
        moved = [(key, one) for key, one in self.edits.items() if one and one.label in self.names]
        shown = list(moved)
        for one in self.found():
            again = any(key[0] == one.label and same(one, other) for key, other in moved)
            if key_of(one) not in self.edits and not again:
                shown.append((key_of(one), one))
        return sorted(shown, key=lambda pair: (self.names.index(pair[1].label), -pair[1].score))

    def annotations(self) -> tuple[Annotation, ...]:
        """The masks as they are right now."""
        return tuple(one for _, one in self.masks())

    # -- what a person does

    def select(self, label: str) -> None:
        """Points and boxes are for this label from now on; not one of `names`: nothing happens."""
        if label in self.names:
            self.label, self.corner = label, None

    def take(self, tool: str) -> None:
        """What clicks do from now on, see TOOLS."""
        self.tool, self.corner = tool, None

    def click(self, x: float | int, y: float | int) -> str:
        """A click, in continuous pixels of the image; gives what is to be said of it.

        Raises:
            ConfigError: a box without an area.
        """
        if self.tool == "mask":
            self.chosen = self._under(x, y)
            return "" if self.chosen else "there is no mask"
        if self.tool != "box":
            self._change(lambda: self._click(float(x), float(y), int(self.tool == "add")))
            return ""
        if self.corner is None:
            self.corner = (float(x), float(y))
            return "now click the opposite corner"
        first, self.corner = self.corner, None
        if min(abs(first[0] - x), abs(first[1] - y)) < 1:
            raise ConfigError("expected a box's two opposite corners, got two clicks in one line")
        self._change(lambda: self._box(first, (float(x), float(y))))
        return ""

    def choose(self, number: int) -> None:
        """Choose a mask by its place in `masks`."""
        self.chosen = self.masks()[number][0]

    def move(self, label: str) -> None:
        """Give the chosen mask to another label.

        Raises:
            ConfigError: there is none.
        """
        self._edit(label)

    def remove(self) -> None:
        """Take the chosen mask away.

        Raises:
            ConfigError: there is none.
        """
        self._edit(None)
        self.chosen = None

    def forget(self) -> None:
        """Drop the points and boxes that were set for the selected label."""
        self._change(self._forget)

    def undo(self) -> bool:
        """Take the last change back; False if there is none."""
        if not self._earlier:
            return False
        state, self.edits = self._earlier.pop()
        self.corner = None
        self._restore(state, run=True)
        return True

    def _edit(self, label: str | None) -> None:
        found = [pair for pair in self.masks() if pair[0] == self.chosen]
        if not found:
            raise ConfigError('no mask is chosen; choose one in the list, or by "choose a mask"')
        ((key, one),) = found

        def act() -> None:
            moved = None if label is None else replace(one, label=label)
            self.edits = {**self.edits, key: moved}

        self._change(act)

    def _change(self, act: Callable[[], None]) -> None:
        """Do something that can be taken back. If it fails, nothing has changed."""
        state, edits = self._state(), self.edits
        try:
            act()
        except BaseException:
            self._restore(state, run=False)
            raise
        self._earlier = [*self._earlier, (state, edits)][-MOST_BACK:]

    def _under(self, x: float | int, y: float | int) -> Key | None:
        """The smallest mask at a place."""
        height, width = self.image.size
        row, column = min(int(y), height - 1), min(int(x), width - 1)
        pixels = [(key, decode_rle(one.rle)) for key, one in self.masks()]
        hit = [(int(np.count_nonzero(m)), key) for key, m in pixels if m[row, column]]
        return min(hit)[1] if hit else None
