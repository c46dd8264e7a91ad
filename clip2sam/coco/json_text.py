"""The text of a long JSON file, parsed while only a part of it is in memory."""

import codecs
import json
import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import IO, Any

CHUNK = 1 << 16
"""Bytes that are read at a time; an item that is longer is read whole."""
LAST = 1 << 14
"""How far from the end of a chunk the last complete object is looked for."""


class RepeatedKeys(dict[str, Any]):
    """A JSON object in which keys are given more than once; the last value of each counts."""

    repeated: tuple[str, ...] = ()


def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its keys and values, as an `object_pairs_hook` of `json`."""
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    odd = RepeatedKeys(made)
    times = Counter(key for key, _ in pairs)
    odd.repeated = tuple(key for key, count in times.items() if count > 1)
    return odd


PLAIN = json.JSONDecoder()
WITH_REPEATS = json.JSONDecoder(object_pairs_hook=as_object)
"""Makes `RepeatedKeys` of objects with repeated keys."""
_BETWEEN_OBJECTS = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*\{")
_DELIMITERS = frozenset(" \t\n\r,:]}")
_NOT_BLANK = re.compile(r"[^ \t\n\r]")


class JsonText:
    """The text of a file in UTF-8, of which a part is in memory: `text`, read up to `at`.

    What it raises for text that is no JSON, or not UTF-8, is a ValueError, or a RecursionError.
    """

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
        for _ in self.items(PLAIN):
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
