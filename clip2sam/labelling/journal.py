"""The journal: one line of JSON a picture, each with a checksum, appended and never changed.

A line is {"crc":"8 hexadecimal digits",REST, where the checksum (CRC-32) is that of {REST. Lines are handed to the
operating system one by one, so that a killed process loses none; they are brought to the disk every 64 lines or
5 seconds, which is what a power cut can cost. A later line about the same picture takes the place of an earlier one.

On opening, all that follows the last good line is cut off: a torn line, or what a full disk left. A damaged line in
front of good ones is passed over, and its picture is done again.
"""

import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from clip2sam.data.files import as_json, disk_errors, sync_folder
from clip2sam.data.images import printable
from clip2sam.data.records import Labelled, from_row, to_row
from clip2sam.errors import OutputError, RunError

FILE = "journal-0001.jsonl"
LINES_A_SYNC = 64
SECONDS_A_SYNC = 5.0

_HEAD = re.compile(rb'\{"crc":"([0-9a-f]{8})",("picture":([0-9]+),"state":"(done|empty|failed)",)')
_OPENING = len('{"crc":"00000000",')


@dataclass
class Index:
    """Where each picture's valid line starts. Some 100 bytes a picture are all that a run holds of it in memory."""

    offsets: dict[int, int] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    end: int = 0
    """Where the last good line ends."""
    damaged: int = 0
    """Damaged lines in front of good ones."""

    def add(self, picture: int, state: str, start: int, length: int) -> None:
        self.offsets[picture] = start
        (self.failed.add if state == "failed" else self.failed.discard)(picture)
        self.end = start + length


def as_line(record: Labelled) -> bytes:
    """A record as a line of the journal."""
    body = as_json(to_row(record)).encode()
    return b'{"crc":"%08x",' % zlib.crc32(body) + body[1:] + b"\n"


def read_index(path: Path, pictures: int) -> Index:
    """Check every line of a journal. A missing file has no line.

    Args:
        pictures: how many the run has; a line about another is damaged.
    """
    index, waiting = Index(), 0
    if not path.exists():
        return index
    start = 0
    with open(path, "rb") as file:
        for line in file:
            head = _head(line)
            if head is not None and head[0] < pictures:
                index.damaged += waiting
                waiting = 0
                index.add(*head, start, len(line))
            else:
                waiting += 1
            start += len(line)
    return index


def read_record(file: IO[bytes], offset: int) -> Labelled:
    """The record whose line starts there. Raises `RunError` if the line has changed since it was checked."""
    file.seek(offset)
    line = file.readline()
    if _head(line) is None:
        raise RunError(
            f"the journal has changed at byte {offset} while it was read; start the same command again"
        )
    return from_row(json.loads(line))


def read_records(path: Path, index: Index) -> Iterator[Labelled]:
    """All records, one in memory at a time, in the order of the run's list of pictures."""
    if not index.offsets:
        return
    with open(path, "rb") as file:
        for picture in sorted(index.offsets):
            yield read_record(file, index.offsets[picture])


def _head(line: bytes) -> tuple[int, str] | None:
    """Picture and state of a line; None for one that is torn or damaged."""
    head = _HEAD.match(line)
    if head is None or not line.endswith(b"}\n"):
        return None
    if zlib.crc32(line[_OPENING:-1], zlib.crc32(b"{")) != int(head[1], 16):
        return None
    return int(head[3]), head[4].decode()


class Journal:
    """The journal of a run, open for appending. One process at a time: the run's lock sees to that.

    Args:
        path: the file; made if it isn't there, else checked and cut back to its last good line.
        pictures: how many the run has.

    Raises:
        OutputError: the disk is full, or the file can't be written.
    """

    def __init__(self, path: Path, pictures: int) -> None:
        self.path = path
        self.index = read_index(path, pictures)
        with disk_errors(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            os.ftruncate(self._file, self.index.end)
            os.lseek(self._file, self.index.end, os.SEEK_SET)
            sync_folder(path.parent)
        self._unsynced, self._synced_at = 0, time.monotonic()

    def append(self, record: Labelled) -> None:
        """Write a record's line. When that fails halfway, the half is cut off again."""
        line, start = as_line(record), self.index.end
        try:
            self._write(line)
        except OSError as error:
            self._cut(start)
            raise OutputError(
                f"{printable(self.path)}: can't be written ({error.strerror}); make room, then start the same command "
                "again: it goes on where it stopped"
            ) from error
        self.index.add(record.picture, record.state, start, len(line))
        self._unsynced += 1
        self.sync_if_due()

    def sync_if_due(self) -> None:
        """Bring what was written to the disk if that is many lines or a while ago."""
        late = time.monotonic() - self._synced_at >= SECONDS_A_SYNC
        if self._unsynced >= LINES_A_SYNC or (self._unsynced and late):
            self.sync()

    def sync(self) -> None:
        """Bring all that was written to the disk."""
        with disk_errors(self.path):
            getattr(os, "fdatasync", os.fsync)(self._file)  # macOS has no fdatasync
        self._unsynced, self._synced_at = 0, time.monotonic()

    def close(self) -> None:
        """Sync and close."""
        try:
            self.sync()
        finally:
            os.close(self._file)

    def records(self) -> Iterator[Labelled]:
        """All records, in the order of the run's list of pictures."""
        return read_records(self.path, self.index)

    def _write(self, line: bytes) -> None:
        rest: Any = memoryview(line)
        while rest:  # a nearly full disk takes a part of it
            rest = rest[os.write(self._file, rest) :]

    def _cut(self, end: int) -> None:
        with suppress(OSError):  # if even that fails, the next start does it
            os.ftruncate(self._file, end)
            os.lseek(self._file, end, os.SEEK_SET)
