"""JSON files: read whole, or one item of a long list at a time, so that memory doesn't grow with
the file."""

import codecs
import json
import os
import re
from collections import Counter, deque
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from clip2sam.data.images import printable
from clip2sam.errors import CocoError

CHUNK = 1 << 16
"""Bytes that are read at a time; an item that is longer is read whole."""
LAST = 1 << 14
"""How far from the end of a chunk the last complete object is looked for."""


class RepeatedKeys(dict[str, Any]):
    """A JSON object in which keys are given more than once; the last value of each counts."""

    repeated: tuple[str, ...] = ()


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value of a JSON file in UTF-8. Objects with repeated keys are `RepeatedKeys`.

    Raises:
        CocoError: there is no such file, or it is no JSON. The message doesn't name the file.
    """
    _check_file(path)
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8"), object_pairs_hook=_object)
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
            return _rows(path, _Text(file), sections)
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
                yield from _Text(file, self._start).items(_WITH_REPEATS)
        except (OSError, ValueError, RecursionError) as error:
            raise CocoError("expected a file at rest, got one that changed meanwhile") from error


def _check_file(path: str | os.PathLike[str]) -> None:
    try:
        found = Path(path).is_file()  # a pipe would wait for a writer
    except (OSError, ValueError):  # no permission; a NUL in the path
        found = False
    if not found:
        raise CocoError(f"expected a JSON file at {printable(path)}, found none; check the path")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    odd = RepeatedKeys(made)
    times = Counter(key for key, _ in pairs)
    odd.repeated = tuple(key for key, count in times.items() if count > 1)
    return odd


_PLAIN = json.JSONDecoder()
_WITH_REPEATS = json.JSONDecoder(object_pairs_hook=_object)
_BETWEEN_OBJECTS = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*\{")
_DELIMITERS = frozenset(" \t\n\r,:]}")
_NOT_BLANK = re.compile(r"[^ \t\n\r]")


def _rows(path: str | os.PathLike[str], text: "_Text", sections: Collection[str]) -> Any:
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
            key = text.value(_PLAIN)
            text.expect(":")
            if not isinstance(key, str) or key in value:
                raise ValueError("not plain")
            if key in sections and text.next() == "[":
                value[key] = JsonRows(path, text.skip_list())
            else:
                value[key] = text.value(_WITH_REPEATS)
        text.at += 1
    else:
        raise ValueError("not plain")
    if text.next():
        raise ValueError("not plain")
    return value


class _Text:
    """The text of a file in UTF-8, of which a part is in memory: `text`, read up to `at`."""

    def __init__(self, file: IO[bytes], start: int = 0) -> None:
        file.seek(start)
        self._file, self._start = file, start
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._ended = self._fresh = False
        self.text, self.at = "", 0

    def next(self) -> str:
        """The next character that is no blank, which stays unread; "" at the end."""
        while True:
            if found := _NOT_BLANK.search(self.text, self.at):
                self.at = found.start()
                return found[0]
            self.at = len(self.text)
            if self._ended:
                return ""
            self._more()

    def expect(self, character: str) -> None:
        if self.next() != character:
            raise ValueError(f"expected {character}")
        self.at += 1

    def value(self, decoder: json.JSONDecoder) -> Any:
        """The next value."""
        self.next()
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except ValueError:
                if self._ended:
                    raise
            else:
                # else a number may go on: what is "12." so far is read as 12
                if self.text[end : end + 1] in _DELIMITERS or self._ended:
                    self.at = end
                    return value
            self._more()

    def items(self, decoder: json.JSONDecoder) -> Iterator[Any]:
        """The items of the next value, a list."""
        self.expect("[")
        if self.next() != "]":
            yield from self._several(decoder)
            yield self.value(decoder)
            while self.next() != "]":
                self.expect(",")
                yield from self._several(decoder)
                yield self.value(decoder)
        self.at += 1

    def _several(self, decoder: json.JSONDecoder) -> list[Any]:
        """Of objects in a list, all but the last that are in memory as a whole, with the comma
        behind them: one call for hundreds of them. None if that fails, as with objects inside of
        objects; then it's tried again when more of the file is there.

        Where the guess is wrong that two objects part at the last "}, {", the text up to there has
        a quote or more than one bracket that is not closed, and so is no list.
        """
        if not self._fresh:
            return []
        self._fresh = False
        between = _BETWEEN_OBJECTS.finditer(self.text, max(self.at, len(self.text) - LAST))
        parted = next(iter(deque(between, maxlen=1)), None)
        if parted is None:
            return []
        try:
            found: list[Any] = decoder.decode(f"[{self.text[self.at : parted.start() + 1]}]")
        except ValueError:
            return []
        self.at = parted.end() - 1
        return found

    def skip_list(self) -> int:
        """Read a list without keeping it; the byte of the file where it starts."""
        start = self._start + len(self.text[: self.at].encode())
        for _ in self.items(_PLAIN):
            pass
        return start

    def _more(self) -> None:
        """Drop what was read, and read on: at least as much as is left, so that a long item is not
        begun too often."""
        self._start += len(self.text[: self.at].encode())
        rest = self.text[self.at :]
        data = self._file.read(max(CHUNK, len(rest)))
        self._ended = not data
        self._fresh = True
        self.text, self.at = rest + self._decode(data, self._ended), 0
