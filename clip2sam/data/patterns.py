"""What a path with wildcards or braces stands for, and the files below a folder."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from clip2sam.data.images import printable
from clip2sam.errors import ImageError

MOST_PATHS = 1_000_000
"""That braces may stand for: more is a slip of the finger."""


def walk(top: str) -> Iterator[str]:
    """Paths of all files below a folder; links to folders are not followed, so there is no loop."""

    def unreadable(error: OSError) -> None:
        raise ImageError(
            f"{printable(error.filename)}: this folder can't be read ({error.strerror}); "
            "check its permissions"
        ) from error

    for folder, _, names in os.walk(top, onerror=unreadable):
        yield from (os.path.join(folder, name) for name in names)


def is_glob(path: str) -> bool:
    """Whether a path has wildcards, and nothing has exactly this name."""
    return re.search(r"[*?\[]", path) is not None and not os.path.lexists(path)


def split_glob(path: str) -> tuple[str, str]:
    """The folder in front of the first wildcard, and the rest."""
    parts = path.split(os.sep)
    first = next(i for i in range(len(parts)) if is_glob(os.sep.join(parts[: i + 1])))
    return os.sep.join(parts[:first]) or os.sep, os.sep.join(parts[first:])


def matches(base: str, pattern: str) -> Iterator[str]:
    """Paths of the files that match a pattern.

    By `Path.glob`: `glob.glob` follows links at `**`, and never ends where two of them lead
    upwards.
    """
    if not os.path.isdir(base):
        raise ImageError(f"{printable(base)}: no such folder; check the glob")
    # to pathlib, ** at the end means folders alone (before Python 3.13), and a**b is an error
    parts = [p if p == "**" else re.sub(r"\*+", "*", p) for p in pattern.split(os.sep)]
    whole = os.sep.join([*parts, "*"] if parts[-1] == "**" else parts)
    return (os.fspath(file) for file in Path(base).glob(whole) if not file.is_dir())


def expand_braces(pattern: str) -> list[str]:
    """The paths that a pattern with braces stands for, in its order: "{000..127}.tar", numbers of
    one width where a bound begins with 0; "{0..10..2}", with a step; "{a..e}"; "{train,val}"; also
    several, and braces within braces. Other braces are text.

    As in WebDataset, whose package `braceexpand` has this from the Bash.

    Raises:
        ImageError: they stand for more than MOST_PATHS.
    """
    for opening in (i for i, c in enumerate(pattern) if c == "{"):
        choices, end = _choices(pattern, opening)
        if choices:
            heads = [head for choice in choices for head in expand_braces(choice)]
            rests = expand_braces(pattern[end:])
            _check_count(pattern, len(heads) * len(rests))
            return [pattern[:opening] + head + rest for head in heads for rest in rests]
    return [pattern]


def _choices(pattern: str, opening: int) -> tuple[list[str], int]:
    """What the brace at a place offers, and where it ends; nothing if it is text."""
    depth, parts, begin = 0, [], opening + 1
    for i in range(opening, len(pattern)):
        c = pattern[i]
        depth += (c == "{") - (c == "}")
        if depth == 0 or (depth == 1 and c == ","):
            parts.append(pattern[begin:i])
            begin = i + 1
        if depth == 0:
            return (parts if len(parts) > 1 else _range(pattern, parts[0])), i + 1
    return [], len(pattern)


def _range(pattern: str, text: str) -> list[str]:
    """The members of "first..last" or "first..last..step"; none if it is something else."""
    if found := re.fullmatch(r"([A-Za-z])\.\.([A-Za-z])", text):
        return [chr(number) for number in _between(ord(found[1]), ord(found[2]), 1)]
    found = re.fullmatch(r"(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\.-?([0-9]+))?", text)
    if found is None or len(text) > 60:
        return []
    first, last, step = found.groups(default="1")
    numbers = _between(int(first), int(last), int(step) or 1)
    _check_count(pattern, len(numbers))
    padded = any(re.match(r"-?0[0-9]", bound) for bound in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{number:0{width}d}" for number in numbers]


def _between(first: int, last: int, step: int) -> range:
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)


def _check_count(pattern: str, count: int) -> None:
    if count > MOST_PATHS:
        raise ImageError(
            f"{printable(pattern)}: these braces stand for {count} paths, expected at most "
            f"{MOST_PATHS}; correct them"
        )
