"""The journal: one line of JSON an image, each with a checksum, appended and never changed.

A line is {"crc":"8 hexadecimal digits",REST, where the checksum (CRC-32) is that of {REST, and REST
begins with the image's id and state, and the size and time of its file, with the SHA-256 of its
bytes where that was asked for, and with a person's verdict where there is one. Lines are written to
the file one by one, so that a killed process loses none; they are brought to the disk (fsync) every
64 lines or 5 seconds, which is what a power cut can cost. A later line about the same image
replaces an earlier one; but what a person decided is replaced by another decision only, as long as
the image's file is the same.

On opening, a torn line at the end is cut off: what a killed process or a full disk left. A line in
front of good ones that can't be read is passed over, and its image is labelled again. Anything else
is cut off only after a copy of the whole file was made, and with a warning. Blanks and a carriage
return at the end of a line, which other programs may add, do no harm.
"""

import itertools
import json
import os
import re
import shutil
import stat
import time
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from clip2sam.data.files import as_json, atomic_file, file_sha256, output_errors, sync_folder
from clip2sam.data.images import printable
from clip2sam.data.records import ImageRecord, record_from_row, record_to_row
from clip2sam.errors import OutputError, RunError

FILE = "journal-0001.jsonl"
LINES_PER_SYNC = 64
SECONDS_PER_SYNC = 5.0

_HEAD = re.compile(
    rb'\{"crc":"([0-9a-f]{8})","image_id":([0-9]+),"state":"(done|empty|failed)",'
    rb'(?:"file":\[([0-9]+),(-?[0-9]+)(?:,"([0-9a-f]{64})")?\],)?'
    rb'(?:"review":"(accepted|corrected|rejected)",)?'
)
_OPENING = len('{"crc":"00000000",')


class Stamp(NamedTuple):
    """What a file is known by: another one, and it is taken for another image."""

    size: int
    """Bytes."""
    time: int
    """Of the last change (mtime), in nanoseconds."""
    sha256: str | None = None
    """Of its bytes, in hexadecimal digits; None if that was not asked for, or they can't be
    read."""


def is_other(then: Stamp, now: Stamp, moved: bool = False) -> bool:
    """Whether a file is another one than it was.

    Args:
        moved: the times don't count: a copy may have others.
    """
    if now.size != then.size:
        return True
    if now.sha256 is not None and then.sha256 is not None:
        return now.sha256 != then.sha256
    return now.time != then.time and not moved


def file_stamp(path: str, *, hashed: bool = False) -> Stamp | None:
    """The stamp of a file; None if there is none.

    Args:
        hashed: with the SHA-256 of its bytes, for which the whole file is read.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name with NUL
        return None
    regular = stat.S_ISREG(found.st_mode)  # reading a pipe would wait
    digest = _sha256(path) if hashed and regular else None
    return Stamp(found.st_size, found.st_mtime_ns, digest)


def _sha256(path: str) -> str | None:
    try:
        return file_sha256(path)
    except OSError:  # whoever decodes it says why
        return None


class Head(NamedTuple):
    """What a line says without reading all of it."""

    image_id: int
    state: str
    stamp: Stamp | None = None
    review: str = ""
    """A person's verdict, see `clip2sam.data.records.Review`; "" if it is the model's result."""


@dataclass
class Index:
    """Where each image's valid line starts. Some 300 bytes an image, 400 with hashes, are all that
    a run holds of it in memory."""

    offsets: dict[int, int] = field(default_factory=dict)
    """By image id."""
    failed: set[int] = field(default_factory=set)
    """Ids of failed images."""
    stamps: dict[int, Stamp] = field(default_factory=dict)
    """By image id: the file as it was when it was read; for images that were files."""
    proposed: dict[int, int] = field(default_factory=dict)
    """Of images with a person's decision, by image id: where the line starts that the model's
    result is in. Their `offsets` are those of the decision."""
    end: int = 0
    """Where the last good line ends."""
    passed_over: int = 0
    """Lines that can't be read, or are about images that the run doesn't have; without a torn line
    at the end."""
    behind: int = 0
    """Those of them that come after the last good line."""

    def add(self, head: "Head", start: int, length: int) -> None:
        """Take in a line."""
        image_id, self.behind = head.image_id, 0
        self.end = start + length
        if head.review:
            self.proposed.setdefault(image_id, self.offsets.get(image_id, start))
        elif image_id in self.proposed:
            if self._is_same_file(head):
                self.proposed[image_id] = start
                return
            del self.proposed[image_id]
        self.stamps.pop(image_id, None)
        if head.stamp is not None:
            self.stamps[image_id] = head.stamp
        self.offsets[image_id] = start
        (self.failed.add if head.state == "failed" else self.failed.discard)(image_id)

    def _is_same_file(self, head: "Head") -> bool:
        then = self.stamps.get(head.image_id)
        return then is None or head.stamp is None or not is_other(then, head.stamp)


def as_line(record: ImageRecord, classes: Sequence[str], stamp: Stamp | None = None) -> bytes:
    """A record as a line of the journal.

    Args:
        classes: the names of the run's classes.
        stamp: the image's file as it was when it was read, if it was a file.
    """
    row = record_to_row(record, classes)
    opening = {"image_id": row.pop("image_id"), "state": row.pop("state")}
    if stamp is not None:  # in front, where it is found without reading the rest
        opening["file"] = [part for part in stamp if part is not None]
    if "review" in row:
        opening["review"] = row.pop("review")
    row = {**opening, **row}
    body = as_json(row).encode()
    return b'{"crc":"%08x",' % zlib.crc32(body) + body[1:] + b"\n"


def read_index(path: Path, ids: Collection[int]) -> Index:
    """Check every line of a journal. A missing file has no line.

    Args:
        ids: those of the run's images; a line about another image is damaged.

    Raises:
        RunError: it is no regular file, or can't be read.
    """
    index, known, start = Index(), frozenset(ids), 0
    if not path.exists():
        return index
    with _open(path) as file:
        for line in file:
            head = _head(line)
            if head is not None and head.image_id in known:
                index.add(head, start, len(line))
            elif not _is_torn(line):
                index.passed_over, index.behind = index.passed_over + 1, index.behind + 1
            start += len(line)
    return index


def _open(path: Path) -> IO[bytes]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise RunError(
                f"{printable(path)}: expected the run's journal, which is a file; move away what "
                "is there"
            )
        return open(path, "rb")
    except OSError as error:
        raise RunError(
            f"{printable(path)}: the journal can't be read ({error.strerror}); check its "
            "permissions"
        ) from error


def _is_torn(line: bytes) -> bool:
    """Whether this can be the start of one line, which was never written to its end."""
    return b"\n" not in line and b"\r" not in line and line.count(b'"crc":') <= 1


def read_record(file: IO[bytes], offset: int, classes: Sequence[str]) -> ImageRecord:
    """The record whose line starts there.

    Raises:
        RunError: the line has changed since it was checked, or is no record of this run.
    """
    file.seek(offset)
    line = file.readline()
    if _head(line) is None:
        raise RunError(
            f"the journal has changed at byte {offset} while it was read; start the same command "
            "again"
        )
    try:
        return record_from_row(json.loads(line), classes)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise RunError(
            f"the line at byte {offset} of the journal is no record of this run ({error}); get a "
            "whole copy of the journal, or label again in a new output folder"
        ) from error


def read_records(
    path: Path, index: Index, ids: Sequence[int], classes: Sequence[str]
) -> Iterator[ImageRecord]:
    """The records of those images that have one, in the order of `ids`, one in memory at a time."""
    if not index.offsets:
        return
    with open(path, "rb") as file:
        for image_id in ids:
            if image_id in index.offsets:
                yield read_record(file, index.offsets[image_id], classes)


def _head(line: bytes) -> Head | None:
    """None for a line that is torn or damaged."""
    head, row = _HEAD.match(line), line.rstrip(b" \t\r\n")
    if head is None or not line.endswith(b"\n"):
        return None
    if zlib.crc32(row[_OPENING:], zlib.crc32(b"{")) != int(head[1], 16):
        return None
    stamp = None
    if head[4] is not None:
        stamp = Stamp(int(head[4]), int(head[5]), head[6].decode() if head[6] else None)
    return Head(int(head[2]), head[3].decode(), stamp, (head[7] or b"").decode())


class Journal:
    """The journal of a run, open for appending. One process at a time: the run's lock sees to that.

    Args:
        path: the file; made if it isn't there, else checked and cut back to its last good line. If
            that is more than one torn line, the file is first copied to NAME.damaged-1 (or -2,
            ...), and a `UserWarning` says so.
        ids: those of the run's images.
        classes: the names of the run's classes.
        check: called in front of what is written; if it raises, nothing is: `RunLock.check`.

    Raises:
        RunError: the file is no regular one, or can't be read.
        OutputError: the disk is full, or the file can't be written.
    """

    def __init__(
        self,
        path: Path,
        ids: Collection[int],
        classes: Sequence[str],
        check: Callable[[], object] = bool,
    ) -> None:
        self.path, self.classes, self._check = path, classes, check
        check()
        self.index = read_index(path, ids)
        if self.index.passed_over:
            self._keep_damaged()
        with output_errors(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            os.ftruncate(self._file, self.index.end)
            os.lseek(self._file, self.index.end, os.SEEK_SET)
            sync_folder(path.parent)
        self._unsynced, self._synced_at = 0, time.monotonic()

    def append(self, record: ImageRecord, stamp: Stamp | None = None) -> None:
        """Write a record's line. When that fails halfway, the half is cut off again.

        Args:
            stamp: the image's file as it was when it was read, if it was a file.

        Raises:
            OutputError: the disk is full, or the file can't be written.
        """
        line, start = as_line(record, self.classes, stamp), self.index.end
        self._check()
        try:
            self._write(line)
        except OSError as error:
            self._cut(start)
            raise OutputError(
                f"{printable(self.path)}: can't be written ({error.strerror}); make room, then "
                "start the same command again: it continues where it stopped"
            ) from error
        verdict = "" if record.review is None else record.review.verdict
        self.index.add(Head(record.image_id, record.state, stamp, verdict), start, len(line))
        self._unsynced += 1
        self.sync_if_due()

    def sync_if_due(self) -> None:
        """Bring what was written to the disk if that is many lines or a while ago."""
        late = time.monotonic() - self._synced_at >= SECONDS_PER_SYNC
        if self._unsynced >= LINES_PER_SYNC or (self._unsynced and late):
            self.sync()

    def sync(self) -> None:
        """Bring all that was written to the disk."""
        self._check()
        with output_errors(self.path):
            getattr(os, "fdatasync", os.fsync)(self._file)  # macOS has no fdatasync
        self._unsynced, self._synced_at = 0, time.monotonic()

    def close(self) -> None:
        """Sync and close."""
        try:
            self.sync()
        finally:
            os.close(self._file)

    def _keep_damaged(self) -> None:
        """Say how many lines can't be used; copy the file if some of them will be cut off."""
        name, copied = printable(self.path), ""
        if self.index.behind:
            numbers = itertools.count(1)
            names = (self.path.with_name(f"{self.path.name}.damaged-{n}") for n in numbers)
            copy = next(path for path in names if not os.path.lexists(path))
            with open(self.path, "rb") as old, atomic_file(copy) as new:
                shutil.copyfileobj(old, new)
            copied = f"; the file as it was is kept as {printable(copy.name)}"
        warnings.warn(
            f"{name}: {self.index.passed_over} of its lines can't be read, or are about images "
            f"that this run doesn't have{copied}. What they said is labelled again",
            stacklevel=3,
        )

    def _write(self, line: bytes) -> None:
        rest: Any = memoryview(line)
        while rest:  # a nearly full disk takes a part of it
            rest = rest[os.write(self._file, rest) :]

    def _cut(self, end: int) -> None:
        with suppress(OSError):  # if even that fails, the next start does it
            os.ftruncate(self._file, end)
            os.lseek(self._file, end, os.SEEK_SET)
