"""What single values of COCO data must be, each with the words for it."""

import math
from typing import Any

WHOLE = "a whole number from 1 to 2**53 - 1"
PIXELS = "a whole number of pixels from 1"
LICENSE = "a whole number from 0 to 2**53 - 1"
SCORE = "a number from 0 to 1"
BOX = "[x, y, width, height], finite, the last two above 0"
AREA = "a finite number of pixels above 0"
CROWD = "0 or 1"
TEXT = "a text"
NAME = "a text, not empty"

_NUMBER = (int, float)
_NUMBERS = frozenset(_NUMBER)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, below what calculations with floats can take."""
    return isinstance(value, _NUMBER) and type(value) is not bool and -1e15 < value < 1e15


def are_numbers(value: Any) -> bool:
    """A list of such numbers: by built-in functions, as outlines are long."""
    if not isinstance(value, list) or not set(map(type, value)) <= _NUMBERS:
        return False
    # Comparisons ignore NaN, a sum doesn't; they come first, as float plus huge int is an error.
    return not value or (min(value) > -1e15 and max(value) < 1e15 and math.isfinite(sum(value)))


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_name(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def is_whole(value: Any) -> bool:
    # beyond, readers that use floats confuse ids
    return isinstance(value, int) and 1 <= value < 2**53 and value is not True


def is_license(value: Any) -> bool:
    # some tools count licenses from 0
    return isinstance(value, int) and 0 <= value < 2**53 and not isinstance(value, bool)


def is_area(value: Any) -> bool:
    return is_number(value) and value > 0


def is_score(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def is_crowd(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in (0, 1)


def is_box(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(map(is_number, value))
        and min(value[2:]) > 0
    )
