"""JSON files: read whole, or one item of a long list at a time, so that memory doesn't grow with
the file."""

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from clip2sam.coco.json_text import PLAIN, WITH_REPEATS, JsonText, as_object
from clip2sam.data.images import printable
from clip2sam.errors import CocoError


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value of a JSON file in UTF-8. Objects with repeated keys are `RepeatedKeys`.

    Raises:
        CocoError: there is no such file, or it is no JSON. The message doesn't name the file.
    """
    _check_file(path)
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8"), object_pairs_hook=as_object)
    except OSError as error:
        raise CocoError(f"expected a file that can be read, got: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CocoError(f"expected UTF-8, got {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise CocoError(
            "expected COCO's few levels, got lists or objects nested too deep to read"
        ) from error
    except ValueError as error:  # json.JSONDecodeError, or a number of thousands of digits
        raise CocoError(f"expected JSON, got: {error}") from error


def read_rows(path: str | os.PathLike[str], sections: Collection[str]) -> Any:
    """The value of a JSON file, as `read_json`, but long lists stay in the file: a list at the top,
    or those of an object's `sections`, are `JsonRows`.

    The file is read to its end once, so that rows are given of valid JSON only.

    Raises:
        CocoError: as `read_json`.
    """
    _check_file(path)
    try:
        with open(path, "rb") as file:
            return _rows(path, JsonText(file), sections)
    # The two readers take the same files. Whatever this one can't take, the other one explains, or
    # reads: a repeated key, for one.
    except (OSError, ValueError, RecursionError):
        return read_json(path)


class JsonRows:
    """A list in a JSON file. Each iteration reads it anew, one item in memory at a time."""

    def __init__(self, path: str | os.PathLike[str], start: int) -> None:
        """`start`: the byte of its opening bracket."""
        self._path, self._start = path, start

    def __iter__(self) -> Iterator[Any]:
        """The items.

        Raises:
            CocoError: the file is not what it was.
        """
        try:
            with open(self._path, "rb") as file:
                yield from JsonText(file, self._start).items(WITH_REPEATS)
        except (OSError, ValueError, RecursionError) as error:
            raise CocoError("expected a file at rest, got one that changed meanwhile") from error


def _check_file(path: str | os.PathLike[str]) -> None:
    try:
        found = Path(path).is_file()  # a pipe would wait for a writer
    except (OSError, ValueError):  # no permission; a NUL in the path
        found = False
    if not found:
        raise CocoError(f"expected a JSON file at {printable(path)}, found none; check the path")


def _rows(path: str | os.PathLike[str], text: JsonText, sections: Collection[str]) -> Any:
    """As `read_rows`.

    Raises:
        ValueError: the file is no JSON, or not of the plain kind.
    """
    value: Any
    opening = text.next()
    if opening == "[":
        value = JsonRows(path, text.skip_list())
    elif opening == "{":
        value = {}
        text.at += 1
        while text.next() != "}":
            if value:
                text.expect(",")
            key = text.value(PLAIN)
            text.expect(":")
            if not isinstance(key, str) or key in value:
                raise ValueError("not plain")
            if key in sections and text.next() == "[":
                value[key] = JsonRows(path, text.skip_list())
            else:
                value[key] = text.value(WITH_REPEATS)
        text.at += 1
    else:
        raise ValueError("not plain")
    if text.next():
        raise ValueError("not plain")
    return value
