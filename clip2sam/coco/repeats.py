"""Numbers that come more than once in a long section."""

from array import array
from collections.abc import Iterator

import numpy as np

from clip2sam.coco.report import Report


class Repeats:
    """Finds numbers that come more than once in a long section: 16 bytes a number."""

    def __init__(self) -> None:
        self._numbers, self._rows = array("q"), array("q")

    def add(self, number: int | None, row: int) -> None:
        if number is not None:
            self._numbers.append(number)
            self._rows.append(row)

    def found(self) -> Iterator[tuple[int, int, int]]:
        """Each number that has come before: number, row, and the row where it came first."""
        if not self._numbers:
            return
        numbers, rows = np.array(self._numbers), np.array(self._rows)
        order = np.argsort(numbers, kind="stable")
        numbers, rows = numbers[order], rows[order]
        again = np.flatnonzero(numbers[1:] == numbers[:-1]) + 1
        firsts = rows[np.searchsorted(numbers, numbers[again])]
        yield from zip(numbers[again].tolist(), rows[again].tolist(), firsts.tolist(), strict=True)

    def report(self, section: str, key: str, report: Report) -> None:
        for number, row, first in self.found():
            report.add(
                (section, row, key),
                f"expected a value of its own, got {number} as at {section}[{first}].{key}",
            )
