"""JSON that every reader takes: finite numbers, text keys, no key twice, nothing that only Python
knows."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from clip2sam.coco.json_text import RepeatedKeys
from clip2sam.coco.reading import JsonRows
from clip2sam.coco.rle import shortly
from clip2sam.coco.values import are_numbers

Place = tuple[str | int, ...]
"""Keys and indices from the top of the data."""
_SCALARS = frozenset({str, int, bool, type(None)})


def is_clean(value: Any) -> bool:
    """A quick look at whether `json_faults` finds nothing."""
    if type(value) is list:
        if set(map(type, value)) <= _SCALARS or are_numbers(value):
            return True
        children: Iterable[Any] = value
    elif type(value) is dict:
        if not set(map(type, value)) <= {str}:
            return False
        children = value.values()
    else:
        return type(value) in _SCALARS or (type(value) is float and math.isfinite(value))
    for child in children:
        kind = type(child)
        if kind in _SCALARS or (kind is float and math.isfinite(child)):
            continue
        if kind is not list and kind is not dict:
            return False
        try:
            if not is_clean(child):
                return False
        except RecursionError:
            return False
    return True


def json_faults(root: Any, place: Place) -> Iterator[tuple[Place, str]]:
    """The places, at any depth, of what is no such JSON, and what is wrong there.

    Args:
        root: a JSON value; the rows of `JsonRows` in it are not looked into.
        place: where it stands.
    """
    rest: list[tuple[Any, Place]] = [(root, place)]
    seen: set[int] = set()  # by identity, so that a list that contains itself ends
    while rest:
        node, place = rest.pop()
        if isinstance(node, list):
            children: Iterable[tuple[Any, Any]] = enumerate(node)
        elif isinstance(node, dict):
            children = node.items()
        elif isinstance(node, JsonRows):
            continue
        else:
            if fault := _value_fault(node):
                yield place, fault
            continue
        if id(node) in seen or are_numbers(node):
            continue
        seen.add(id(node))
        for twice in node.repeated if isinstance(node, RepeatedKeys) else ():
            yield (*place, twice), "expected the key once, got it more than once"
        for key, child in children:
            below = (*place, key if isinstance(key, int) else str(key))
            if isinstance(node, dict) and not isinstance(key, str):
                yield below, f"expected a text as key, got {shortly(key)}"
            rest.append((child, below))


def _value_fault(value: Any) -> str | None:
    """What is wrong with a value that is neither a list nor an object; None if nothing is."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return f"expected a finite number, got {value}, which is not JSON"
    elif not isinstance(value, str | int) and value is not None:
        return f"expected a JSON value, got {type(value).__name__}"
    return None
