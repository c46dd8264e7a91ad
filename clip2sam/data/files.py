"""Files that appear whole or not at all, for those too large to hold in memory."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from clip2sam.data.images import printable
from clip2sam.errors import OutputError


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the name `path` at the end if nothing was raised; its folders are made.

    The bytes go into a new file beside it and to the disk; then it is renamed, and the folder goes to the disk.
    Raises `OutputError` when the disk refuses, with an older file left as it was.
    """
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: without it, a new name can be lost when the power is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into a `OutputError` that names the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{printable(path)}: can't be written ({error.strerror or error}); make room or check the folder's "
            "permissions, then start the same command again: it goes on where it stopped"
        ) from error


def as_json(value: Any) -> str:
    """A value as compact JSON on one line. NaN is refused; names in any script stay as they are.

    Lone surrogates, which stand for bytes of a file name that are not UTF-8, are escaped: UTF-8 has none.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return (
        text
        if text.isascii()
        else "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text)
    )
