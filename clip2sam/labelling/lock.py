"""A run's lock: one process at a time, also where several machines see the run's folder.

There are two locks, as neither is enough alone. The flock on the file `lock` ends with its process,
whatever kills it; but on network storage it may hold on one machine only, or be missing. The file
`owner` is seen by every machine, and two of them can't create it at once; but it stays when its
process is killed. So its owner writes a new count into it every `BEAT` seconds, and one whose count
stands still for `LEASE` seconds is taken over from. Clocks of different machines are not compared.

A process that was suspended for longer may come back when another one has taken over. It must not
write any more: a run calls `RunLock.check` in front of what it writes.
"""

import errno
import json
import math
import os
import secrets
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from clip2sam.data.files import as_json, output_errors
from clip2sam.data.images import printable
from clip2sam.errors import RunError, RunLockedError
from clip2sam.labelling.storage import (
    create_new,
    make_folder,
    open_now,
    read_now,
    remove_empty,
)

LOCK = "lock"
OWNER = "owner"

BEAT = 5.0
"""Seconds between two counts of the owner, and for which `RunLock.check` trusts its last look."""
LEASE = 30.0
"""Seconds for which another machine watches a count before it takes over."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}
"""What flock says where there is none; ENOLCK: NFS without its lock service."""

_BEAT_AT = len('{"beat":"')


class Owner(NamedTuple):
    """Who works on a run."""

    token: str
    """Another one at each start: 32 hexadecimal digits."""
    host: str
    pid: int
    boot: str
    """The machine since it was started, see `BOOT_ID`."""
    started: str
    """By the owner's clock; to be shown, and for nothing else."""

    def __str__(self) -> str:
        return f"process {self.pid} on {printable(self.host)}, since {printable(self.started)}"


def owner_of(path: Path) -> Owner | None:
    """Who works on the run in a folder, as the storage has it now; None: nobody, or it can't be
    made out. Another machine that sees the same token sees the same folder.

    Raises:
        RunError: the owner file is there and can't be read.
    """
    data = _own_data(path)
    return None if data is None else _parsed(data)


class RunLock:
    """Being the owner of a run, from the creation of the owner file to `end`.

    Raises:
        FileExistsError: there is an owner file.
        OSError: it can't be created.
    """

    def __init__(self, folder: Path) -> None:
        started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        token = secrets.token_hex(16)
        self.folder = folder
        self.owner = Owner(token, socket.gethostname(), os.getpid(), _boot_id(), started)
        self._beats, self._trouble, self._checked = 0, "", time.monotonic()
        row = {"beat": f"{0:010d}", **self.owner._asdict()}
        create_new(folder / OWNER, as_json(row).encode() + b"\n")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="owner", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that no other process has taken over. Looks at the file once in `BEAT` seconds:
        so it may be called for every image.

        Raises:
            RunLockedError: another one has, or the owner file is gone.
            RunError: the owner file can't be read.
        """
        now = time.monotonic()
        if now - self._checked < BEAT:
            return
        if not self._is_own():
            time.sleep(BEAT / 10)  # a start that was too late may have it for a moment: _take_away
            if not self._is_own():
                other = owner_of(self.folder)
                raise RunLockedError(
                    f"{printable(self.folder)}: this process has lost the run to another one "
                    f"({other or f'its file {OWNER} is gone'}{self._trouble}), perhaps while it "
                    "was suspended. It writes no more; wait for the other one, then start the same "
                    "command again"
                )
        self._checked = now

    def end(self) -> None:
        """Remove the owner file, if it is still this owner's."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError, RunError):  # it stays then, and the next start takes over
            if self._is_own():
                _take_away(self.folder, self._is_token)

    def _live(self) -> None:
        """The thread's life. That the count can't be written (the disk is full) doesn't end the
        run: it is lost when another process has taken over, and `check` finds that out."""
        while not self._ended.wait(BEAT):
            try:
                self._beat()
            except OSError as error:
                self._trouble = f"; it could not be renewed: {error.strerror}"

    def _beat(self) -> None:
        """Count, in the file that has the name now: an open one would be written to when another
        file has its name."""
        file = open_now(self.folder / OWNER, os.O_RDWR)
        try:
            if not self._is_token(os.read(file, 4096)):
                self._checked = -math.inf  # look at once
                return
            self._beats += 1
            os.lseek(file, _BEAT_AT, os.SEEK_SET)
            os.write(file, b"%010d" % self._beats)
            os.fsync(file)
            self._trouble = ""
        finally:
            os.close(file)

    def _is_own(self) -> bool:
        data = _own_data(self.folder)
        return data is not None and self._is_token(data)

    def _is_token(self, data: bytes) -> bool:
        found = _parsed(data)
        return found is not None and found.token == self.owner.token


@contextmanager
def lock_run(path: Path) -> Iterator[RunLock]:
    """Make the run's folder and hold its lock.

    At the end its files are removed, and so are the folders that were made if no run has begun.
    A process that was killed leaves them. On the same machine they lock nothing then; another
    machine waits `LEASE` seconds for a sign of life, and says so by a `UserWarning`.

    Raises:
        RunLockedError: another process holds it. One that is alive is not waited for.
        OutputError: the folder or the lock can't be made.
    """
    with output_errors(path):
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            make_folder(path)
            flock = _flock(path)
        except OSError:
            remove_empty(made)
            raise
    lock = None
    try:
        with output_errors(path):
            lock = _become_owner(path, flocked=flock.is_locked)
        yield lock
    finally:
        if lock is not None:
            lock.end()
        # While it is held, so that only its owner removes it. Who has opened the file before and
        # gets its lock afterwards is refused by filelock: such a file has no name any more.
        if not os.path.lexists(path / OWNER):  # else it is that process's
            with suppress(OSError):  # on Windows an open file stays
                (path / LOCK).unlink()
        flock.release()
        remove_empty(made)  # last: on NFS a removed file stays under another name while it is open


def _flock(path: Path) -> FileLock:
    """The flock, held; not held where the file system has none."""
    lock = FileLock(path / LOCK, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunLockedError(_refusal(path, owner_of(path))) from error
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
    return lock


def _refusal(path: Path, owner: Owner | None) -> str:
    named = "" if owner is None else f" ({owner})"
    return (
        f"{printable(path)}: another process works on this run{named}; wait for it, or give "
        "another output folder"
    )


def _become_owner(path: Path, *, flocked: bool) -> RunLock:
    """Create the owner file. One that is there is taken over from when its process is dead.

    Args:
        flocked: the flock is held; so no other process of this machine works on the run.
    """
    watched = False
    while True:
        with suppress(FileExistsError):
            lock = RunLock(path)
            break
        left = read_now(path / OWNER)
        if left is None:  # it has just gone
            time.sleep(0.01)
            continue
        if not (flocked and _is_dead(left)):
            _watch(path, left)
            watched = True
        _take_away(path, left.__eq__)
    if watched:  # others may have watched the same: whoever was too late has done its harm by now
        try:
            time.sleep(BEAT / 5)
            lock._checked = -math.inf
            lock.check()
        except BaseException:
            lock.end()
            raise
    return lock


def _is_dead(data: bytes) -> bool:
    """Whether an owner file is of a process of this machine that has ended. The process's number is
    looked at too, as containers on one machine may reach the storage by different ways, where even
    there a flock doesn't lock; the same number is that of this process, or of one long gone."""
    owner = _parsed(data)
    if owner is None or (owner.boot, owner.host) != (_boot_id(), socket.gethostname()):
        return False
    if owner.pid == os.getpid() or os.name != "posix":
        return True
    try:
        with suppress(PermissionError):  # it is another user's
            os.kill(owner.pid, 0)  # asks only
    except ProcessLookupError:
        return True
    return False


def _watch(path: Path, left: bytes) -> None:
    """Look at an owner file for `LEASE` seconds, or until it is gone. Looks are counted, not
    seconds: this process may be suspended too, or wait for the storage.

    Raises:
        RunLockedError: it has changed: somebody is alive.
    """
    who, pause = _parsed(left) or f"another process (its file {OWNER} is damaged)", BEAT / 5
    warnings.warn(
        f"{printable(path)}: {who}, has begun to work on this run and not ended it; waiting up to "
        f"{LEASE:g} seconds for a sign of life",
        stacklevel=2,
    )
    for _ in range(math.ceil(LEASE / pause)):
        time.sleep(pause)
        now = read_now(path / OWNER)
        if now is None:
            return
        if now != left:
            raise RunLockedError(_refusal(path, _parsed(now)))
    warnings.warn(
        f"{printable(path)}: {who}, gave no sign of life for {LEASE:g} seconds; its run is taken "
        "over",
        stacklevel=2,
    )


def _take_away(path: Path, is_expected: Callable[[bytes], bool]) -> None:
    """Remove the owner file if it is the expected one.

    It is renamed first: of several processes only one succeeds with that. Who was too late may have
    got the next owner's: that is put back, but for the case that there is a third already.
    """
    aside = path / f".{OWNER}.{secrets.token_hex(4)}.tmp"
    with suppress(FileNotFoundError):  # or it was done, and only the answer was lost: look
        os.rename(path / OWNER, aside)
    data = read_now(aside)
    if data is None:
        return
    if not is_expected(data):
        try:
            os.link(aside, path / OWNER)  # unlike a rename, it overwrites nothing
        except FileExistsError:
            """The one that was taken away finds that out by `RunLock.check`."""
        except OSError:  # there are file systems without links
            os.rename(aside, path / OWNER)
    aside.unlink(missing_ok=True)


def _parsed(data: bytes) -> Owner | None:
    """What an owner file says; None for one that is damaged."""
    try:
        row = json.loads(data)
        owner = Owner(**{name: row[name] for name in Owner._fields})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    texts = all(isinstance(value, str) for value in owner._replace(pid=""))  # type: ignore[arg-type]
    return owner if texts and type(owner.pid) is int and 0 < owner.pid < 2**31 else None


def _own_data(path: Path) -> bytes | None:
    try:
        return read_now(path / OWNER)
    except OSError as error:
        raise RunError(
            f"{printable(path / OWNER)}: can't be read ({error.strerror}), so it isn't known "
            "whether another process has taken the run over; start the same command again"
        ) from error


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode():012x}"
