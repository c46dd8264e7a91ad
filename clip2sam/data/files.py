"""Files that appear whole or not at all, and JSON in the one form that all of them have."""

import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from clip2sam.data.images import printable
from clip2sam.errors import Clip2SamError, OutputError


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file to write to, which gets the name `path` at the end if nothing was raised.

    At every moment, also of a crash or a power cut, the old file or the new one is there whole:
    the bytes go into a new file beside it and to the disk (fsync), then it is renamed, then the
    folder's new entry goes to the disk. Missing folders are made.

    Raises:
        OutputError: the file can't be written; an older one stays as it was. Errors of this
            package that are raised inside the `with` block go through unchanged.
    """
    target = Path(path)
    # 40 characters of the name: with 4 bytes each it still fits the 255 bytes of a file name
    beside = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.tmp")
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """`atomic_file` for data that are at hand.

    Raises:
        OutputError: the file can't be written; an older one stays as it was.
    """
    with atomic_file(path) as file:
        file.write(data)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Bring a folder's entries to the disk: without it, a power cut can lose a new name."""
    if os.name != "posix":  # elsewhere a folder can't be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def output_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` into an `OutputError` that names the file; this package's own errors,
    some of which are `OSError`s too, go through unchanged."""
    try:
        yield
    except Clip2SamError:
        raise
    except OSError as error:
        raise OutputError(
            f"{printable(path)}: can't be written ({error.strerror or error}); make room or check "
            "the folder's permissions, then start the same command again"
        ) from error


def as_json(value: Any) -> str:
    """A value as compact JSON on one line. NaN is refused; text in any script stays as it is.

    Lone surrogates, which stand for the bytes of a file name that are not UTF-8, are escaped:
    UTF-8 can't encode them.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
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
