"""Faults of COCO data, collected with their places."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from clip2sam.coco.reading import JsonRows
from clip2sam.coco.rle import shortly
from clip2sam.coco.strict import Place, is_clean, json_faults
from clip2sam.data.images import printable

SECTIONS = ("licenses", "images", "categories", "annotations")
"""The lists of rows of a dataset, in the order in which their faults are reported."""
Row = tuple[int, Place, dict[str, Any]]
"""The index of an object in its section, its place, and itself."""
NOTHING = object()
"""In place of a value that is not there."""


@dataclass(frozen=True)
class Violation:
    """One fault: where it is, such as "annotations[3].bbox", and what is expected there."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def in_short(violations: list[Violation]) -> str:
    """The first three faults, and how many more there are, on one line."""
    more = f" (and {len(violations) - 3} more)" if len(violations) > 3 else ""
    return "; ".join(map(str, violations[:3])) + more


class Report:
    """Collects the faults."""

    def __init__(self) -> None:
        self._found: list[tuple[Place, str]] = []

    def violations(self) -> list[Violation]:
        """The faults: of no section first, then by section and row."""

        def order(found: tuple[Place, str]) -> tuple[int, int]:
            first, second = (*found[0], -1, -1)[:2]
            if isinstance(first, int):
                return 0, first
            section = SECTIONS.index(first) if first in SECTIONS else -1
            return section, second if isinstance(second, int) else -1

        found = sorted(self._found, key=order)
        return [Violation(_written(place), message) for place, message in found]

    def add(self, place: Place, message: str) -> None:
        self._found.append((place, message))

    def add_all(self, faults: Iterable[tuple[Place, str]]) -> None:
        self._found += faults

    def get(
        self, row: dict[str, Any], place: Place, key: str, fits: Callable[[Any], bool], wanted: str
    ) -> Any:
        """A value that fits, or None with a fault reported."""
        value = row.get(key, NOTHING)
        if fits(value):
            return value
        got = "nothing: the key is missing" if value is NOTHING else shortly(value)
        self.add((*place, key), f"expected {wanted}, got {got}")
        return None

    def rows(self, document: dict[str, Any], key: str) -> Iterator[Row]:
        """The objects of a section."""
        section = document.get(key, NOTHING)
        if section is NOTHING:
            self.add((key,), "expected a list, got nothing: the key is missing")
        elif not isinstance(section, list | JsonRows):
            self.add((key,), f"expected a list, got {shortly(section)}")
        else:
            yield from self.objects(section, (key,))

    def objects(self, values: Iterable[Any], place: Place = ()) -> Iterator[Row]:
        """The objects of a list, after a look at what is inside."""
        for i, value in enumerate(values):
            row_place = (*place, i)
            if not is_clean(value):
                self.add_all(json_faults(value, row_place))
            if isinstance(value, dict):
                yield i, row_place, value
            else:
                self.add(row_place, f"expected an object, got {shortly(value)}")


def _written(place: Place) -> str:
    """A place as text, such as "annotations[3].bbox"."""
    text = ""
    for key in place:
        if isinstance(key, int):
            text = f"{text}[{key}]"
        else:
            text = f"{text}.{printable(str(key))}" if text else printable(str(key))
    return text
