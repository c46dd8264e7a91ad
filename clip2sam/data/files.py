"""Files that appear whole or not at all, their SHA-256, and JSON in the one form that all have."""

import errno
import hashlib
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

from clip2sam.data.images import printable
from clip2sam.errors import Clip2SamError, OutputError


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file as 64 hexadecimal digits; the file is read in chunks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_sha256(text: str) -> bool:
    """Whether a text is 64 hexadecimal digits, in lower case."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file to write to, which gets the name `path` at the end if nothing was raised.

    At every moment, also of a crash or a power cut, the old file or the new one is there whole:
    the bytes go into a new file beside it and to the disk (fsync), then it is renamed, then the
    folder's new entry goes to the disk. Missing folders are made.

    A link at `path` is replaced, and what it leads to stays as it is; nothing is ever written
    through a link.

    Raises:
        OutputError: the file can't be written; an older one stays as it was. Errors of this
            package that are raised inside the `with` block go through unchanged.
    """
    target = Path(path)
    with output_errors(target):
        _check_target(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        # 40 characters of the name: with 4 bytes each it still fits the 255 bytes of a file name
        beside = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")
        # x: a new file, not one that a link leads to; if that fails, there is none to remove
        new = open(beside, "xb")  # noqa: SIM115 (closed below)
        try:
            with new as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


def _check_target(target: Path) -> None:
    """Refuse what a file can't be renamed to, or would take the place of, such as /dev/null."""
    if not target.name or "\0" in os.fspath(target):
        raise OutputError(f"expected the path of a file to write, got {printable(target)!r}")
    if os.path.lexists(target):
        mode = target.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise OutputError(
                f"{printable(target)}: expected a file or nothing there, found a device, pipe or "
                "socket; give another output"
            )


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """`atomic_file` for data that are at hand.

    Raises:
        OutputError: the file can't be written; an older one stays as it was.
    """
    with atomic_file(path) as file:
        file.write(data)


def check_writable(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Find out in front of a long job whether its output can be written. Nothing is left behind.

    Args:
        folder: the output is a folder, which may be there; else a file.

    Raises:
        OutputError: as writing it would raise it.
    """
    target = Path(path)
    with output_errors(target):
        if not folder:
            _check_target(target)
        if folder != target.is_dir() and target.exists():
            number = errno.EEXIST if folder else errno.EISDIR
            raise OSError(number, os.strerror(number))
        above = target
        while not above.exists():
            above = above.parent
        if above == target and not folder:
            above = target.parent
        # Permission bits don't say it of every file system. Where the system can, the file has no
        # name at all.
        with tempfile.TemporaryFile(dir=above):
            """It can be made."""


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Bring a folder's entries to the disk: without it, a power cut can lose a new name."""
    if os.name != "posix":  # elsewhere a folder can't be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_ADVICE = {
    errno.ENOSPC: "make room, then start the same command again",
    errno.EDQUOT: "make room, then start the same command again",
    errno.EROFS: "this place is read-only: give an output elsewhere",
    errno.EACCES: "check the folder's permissions, or give an output elsewhere",
    errno.EPERM: "check the folder's permissions, or give an output elsewhere",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a file stands where a folder is needed: move it, or give another output",
    errno.EEXIST: "a file stands where a folder is needed: move it, or give another output",
    errno.EISDIR: "a folder has this name: move it, or give another output",
    errno.ENOENT: "check the path",
}


@contextmanager
def output_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` into an `OutputError` that names the file and says what helps; this
    package's own errors, some of which are `OSError`s too, go through unchanged."""
    try:
        yield
    except Clip2SamError:
        raise
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        advice = _ADVICE.get(error.errno or 0, "check the disk, then start the same command again")
        raise OutputError(f"{printable(path)}: can't be written ({reason}); {advice}") from error


NAME_BYTES = 255
"""The longest name that file systems take."""


def fitting_name(name: str, ending: str) -> str:
    """`name` + `ending` as the name of a file.

    If that is longer than file systems take, the name is cut between two characters, and
    "~" and 8 hexadecimal digits of its SHA-256 stand for the rest: the same name gives the same.
    """
    whole = name + ending
    if len(os.fsencode(whole)) <= NAME_BYTES:
        return whole
    ending = f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{ending}"
    return cut_to_bytes(name, NAME_BYTES - len(os.fsencode(ending))) + ending


def cut_to_bytes(text: str, limit: int) -> str:
    """As much of the start of a text as fits `limit` bytes of a file name, in whole characters."""
    sizes = accumulate(len(os.fsencode(character)) for character in text)
    return text[: sum(size <= limit for size in sizes)]


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def as_json(value: Any) -> str:
    """A value as compact JSON on one line. NaN is refused; text in any script stays as it is.

    Lone surrogates, which stand for the bytes of a file name that are not UTF-8, are escaped:
    UTF-8 can't encode them.
    """
    text = _ENCODER.encode(value)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


class JsonList:
    """Writes the items of a JSON list one at a time, with commas between them."""

    def __init__(self, file: IO[bytes], first: Sequence[Any] = ()) -> None:
        self._file, self._comma = file, b""
        for value in first:
            self.add(value)

    def add(self, value: Any) -> None:
        """Write one more item."""
        self._file.write(self._comma + as_json(value).encode())
        self._comma = b","
