"""Files that hold many images each (tars, Parquet): found by what is given, and read at a place.

They are local files or lie at addresses (s3://, https://, ...); nothing else depends on which. An
image's key is the file's path relative to the root, "/", and the image's name in the file.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import BinaryIO

from clip2sam.data import remote
from clip2sam.data.addresses import is_url, plain_address
from clip2sam.data.images import printable
from clip2sam.data.patterns import expand_braces, is_glob, matches, split_glob, walk
from clip2sam.data.remote_source import check_open
from clip2sam.data.sources import PathLike, as_several, below, checked_root, locate
from clip2sam.errors import ImageError

NAMED = 5
"""So many files are named; the others are counted."""


@dataclass(frozen=True)
class Containers:
    """The files of a source."""

    origin: str
    """What was given, see `FileSource.origin`; addresses as they are."""
    root: str
    """Absolute path of a folder, or the address of one without a slash at its end."""
    names: tuple[str, ...]
    """The files' POSIX paths below the root, sorted by their bytes, each once."""


def find_containers(
    given: PathLike | Sequence[PathLike], root: PathLike | None, suffixes: tuple[str, ...]
) -> Containers:
    """List the files that hold images.

    Args:
        given: a file, a folder (all levels), a glob, braces as in "{000..127}.tar" (see
            `expand_braces`), an address with these; or several of them.
        root: as for `find_source`; of addresses an address.
        suffixes: of the files that are taken from folders, in lower case.

    Raises:
        ImageError: a file is missing, none is found, or some are local and some are not.
    """
    several = as_several(given)
    far = [is_url(one) for one in several]
    if any(far) and not all(far):
        raise ImageError("expected paths or addresses, got both; give them to two runs")
    paths = [plain_address(str(p)) if is_url(p) else os.path.abspath(p) for p in several]
    paths = list(dict.fromkeys(paths))
    if not paths:
        raise ImageError("no image found in an empty list of paths; give at least one")
    files = [file for path in paths for file in _files(path, suffixes)]
    top = _common([_top(path) for path in paths]) if root is None else _given_root(root)
    names = sorted({below(top, file) for file in files}, key=os.fsencode)
    if not names:
        raise ImageError(
            f"no image found in {', '.join(map(printable, paths[:3]))}: looked for files ending in "
            f"{', '.join(suffixes)}"
        )
    return Containers("\0".join(paths), top, tuple(names))


def _files(path: str, suffixes: tuple[str, ...]) -> list[str]:
    """The files that one of the things given stands for."""
    if is_url(path):
        check_open(path)
        return [file for one in expand_braces(path) for file in remote.expand(one)]
    if os.path.isdir(path):
        return [file for file in walk(path) if file.lower().endswith(suffixes)]
    several = [path] if os.path.lexists(path) else expand_braces(path)
    missing = [one for one in several if not is_glob(one) and not os.path.lexists(one)]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise ImageError(
            f"{', '.join(map(printable, missing[:NAMED]))}{more}: no such file; check the path, or "
            "quote a pattern"
        )
    return [
        file for one in several for file in (matches(*split_glob(one)) if is_glob(one) else [one])
    ]


def _top(path: str) -> str:
    """The folder that is searched or in which a file lies: in front of the first wildcard or brace,
    if there is one.

    Args:
        path: an absolute path or an address, as in `Containers.origin`.
    """
    if os.path.isdir(path):
        return path
    parts = path.split("/" if is_url(path) else os.sep)
    for i, part in enumerate(parts):
        front = os.sep.join(parts[: i + 1])
        if any(c in part for c in "*?[{") and not os.path.lexists(front):
            return os.sep.join(parts[:i]) or os.sep
    return os.sep.join(parts[:-1]) or os.sep


def _common(tops: list[str]) -> str:
    if not is_url(tops[0]):
        return os.path.commonpath(tops)
    levels = zip(*(top.split("/") for top in tops), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    if len(shared) < 3:
        raise ImageError(
            f"{printable(tops[0])} and {printable(tops[-1])} have no folder in common; give them "
            "to two runs"
        )
    return "/".join(shared)


def _given_root(root: PathLike) -> str:
    if not is_url(root):
        return checked_root(root)
    check_open(str(root))
    return plain_address(str(root))


def open_container(root: str, name: str) -> BinaryIO:
    """Open one of the files, for reading at any place.

    Raises:
        ImageError: it is not there, can't be read, or is a link that leads out of the root.
    """
    if is_url(root):
        return remote.open_seekable(f"{root}/{name}")
    path = _checked_path(root, name)
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise unreadable(name, error) from error


def open_natively(root: str, name: str) -> str | BinaryIO:
    """For libraries that open files themselves: a local file's path; what lies at an address,
    opened.

    Raises:
        ImageError: as `open_container`.
    """
    return open_container(root, name) if is_url(root) else _checked_path(root, name)


def _checked_path(root: str, name: str) -> str:
    path = locate(root, name)
    if not os.path.isfile(path):  # opening a pipe would wait for a writer
        raise ImageError(f"{printable(name)}: no such file in {printable(root)}; put it back")
    return path


def read_range(root: str, name: str, start: int, end: int) -> bytes:
    """The bytes of one of the files from `start` to in front of `end`; fewer if it is shorter.

    A local file is opened each time: that takes 0.1 ms, and nothing is held.

    Raises:
        ImageError: as `open_container`.
    """
    if is_url(root):
        return remote.read_range(f"{root}/{name}", start, end)
    with open_container(root, name) as file:
        try:
            file.seek(start)
            return read_all(file, end - start)
        except OSError as error:
            raise unreadable(name, error) from error


def read_all(file: BinaryIO, count: int) -> bytes:
    """The next bytes; fewer only at the end. An unbuffered file may give less at once."""
    data = file.read(count)
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data


def unreadable(name: str, error: OSError) -> ImageError:
    """The message about a file that the system doesn't give."""
    return ImageError(
        f"{printable(name)}: this file can't be read ({error.strerror or error}); check its "
        "permissions and the disk"
    )
