"""Storage that several machines share: files as they are there now; whether it is fit for a run.

See docs/shared_folders.md for its habits.
"""

import errno
import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from clip2sam.data.files import output_errors
from clip2sam.data.images import printable
from clip2sam.errors import RunError

MOUNTS = Path("/proc/self/mountinfo")
BUCKETS = ("s3fs", "gcsfuse", "rclone", "mountpoint-s3", "goofys", "geesefs", "blobfuse")
"""Programs that show an object store as a folder. Most pass every test that one machine can make,
and still let two machines create the same file."""


def read_now(path: Path) -> bytes | None:
    """A file of at most 4096 bytes as the storage has it now, by opening it anew: what is open, and
    what `stat` says, may be old on network storage. None: there is none."""
    for _ in range(2):
        try:
            file = open_now(path, os.O_RDONLY)
            try:
                return os.read(file, 4096)
            finally:
                os.close(file)
        except OSError as error:  # ESTALE: another machine has removed it
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        # An NFS client remembers which names a folder doesn't have, until the folder is opened.
        with suppress(OSError):
            os.scandir(path.parent).close()
    return None


def open_now(path: Path, flags: int) -> int:
    """Without following a link, and without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def create_new(path: Path, data: bytes) -> None:
    """Create a file that must not be there, whole or not at all, on the disk."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            os.write(file, data)
            os.fsync(file)
        finally:
            os.close(file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def make_folder(path: Path) -> None:
    """Make a folder, if it isn't there, and those above it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if path.exists():  # and is no folder
            raise
        path.mkdir(parents=True, exist_ok=True)  # a start that was refused has just removed it


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that are empty, the inner ones first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def check_shared(path: Path) -> None:
    """Try in a run's folder, which is made, all that a run needs of storage that several machines
    share. Files that are made for that are removed. Whether the other machines see the same folder
    can't be tried here: compare `owner_of` there.

    Raises:
        RunError: something is missing; the message names it.
        OutputError: the folder can't be written to.
    """
    name = f".shared-{secrets.token_hex(8)}.tmp"
    file, other = path / name, path / f"{name}2"
    with output_errors(path):
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        make_folder(path)
        try:
            if (program := _bucket(path)) is not None:
                raise RunError(_not_shared(path, f"it is an object store, mounted by {program}"))
            create_new(file, b"first")
            for need, works in _NEEDS.items():
                _try(need, works, file, other)
        except BaseException:
            _remove(file, other)
            remove_empty(made)
            raise


def _try(need: str, works: Callable[[Path, Path], bool], file: Path, other: Path) -> None:
    reason = ""
    try:
        if works(file, other):
            return
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # this says nothing of the kind of storage
            raise
        reason = f" ({error.strerror})"
    raise RunError(_not_shared(file.parent, f"{need} doesn't work{reason}"))


def _not_shared(path: Path, what: str) -> str:
    return (
        f"{printable(path)}: several machines can't share a run here: {what}. Expected a folder on "
        "NFS (version 3 or newer), Lustre, GPFS, CephFS or the like; an object store that is "
        "mounted as a folder (s3fs, gcsfuse, rclone, mountpoint-s3) is none. Give another output "
        "folder, or label on one machine"
    )


def _bucket(path: Path) -> str | None:
    """The program that shows an object store as this folder. None: it is something else, or can't
    be found out, which is so anywhere but on Linux."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        place, _, mounted = line.partition(" - ")
        kind, source = [*mounted.split(), "", ""][:2]
        if place.split()[2:3] == [number] and kind.startswith("fuse"):
            return next((name for name in BUCKETS if name in f"{kind} {source}"), None)
    return None


def _creates_once(file: Path, _: Path) -> bool:
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return True
    return False


def _reads_back(file: Path, _: Path) -> bool:
    return read_now(file) == b"first"


def _is_described(file: Path, _: Path) -> bool:
    found = os.stat(file)
    return found.st_size == len(b"first") and found.st_mtime_ns > 0


def _appends(file: Path, _: Path) -> bool:
    _write(file, b" second", os.O_APPEND)
    return read_now(file) == b"first second"


def _overwrites(file: Path, _: Path) -> bool:
    _write(file, b"FIRST")
    os.truncate(file, len(b"FIRST sec"))
    return read_now(file) == b"FIRST sec"


def _replaces(file: Path, other: Path) -> bool:
    create_new(other, b"third")
    os.replace(other, file)
    return read_now(file) == b"third" and read_now(other) is None


def _removes(file: Path, _: Path) -> bool:
    file.unlink()
    return read_now(file) is None


_NEEDS = {
    "creating a file only where there is none": _creates_once,
    "reading what was just written": _reads_back,
    "the size and time of a new file": _is_described,
    "appending to a file": _appends,
    "changing a file in place and cutting it": _overwrites,
    "renaming a file over another one": _replaces,
    "removing a file": _removes,
}
"""In this order, on one file; the second one is there for the renaming only."""


def _write(path: Path, data: bytes, flags: int = 0) -> None:
    file = os.open(path, os.O_WRONLY | flags)
    try:
        os.write(file, data)
        os.fsync(file)
    finally:
        os.close(file)


def _remove(*files: Path) -> None:
    for file in files:
        with suppress(OSError):
            file.unlink()
