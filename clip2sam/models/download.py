"""Missing weight files from the network, verified before they get their name.

All come the same way: into `<file>.part`, resumed where the server can, and renamed once size and
SHA-256 are right, those that are published or else those that the server states. Imports no torch.
"""

import logging
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import requests
import urllib3
from huggingface_hub import constants
from tqdm import tqdm

from clip2sam.data.files import file_sha256
from clip2sam.data.network import address, session, surroundings
from clip2sam.data.retries import may_pass
from clip2sam.errors import WeightsError, one_line
from clip2sam.models.files import ENVIRONMENT, Kind, by_hand, local_file, status
from clip2sam.models.network import TIMEOUT, check_no_page, hub_file, stated
from clip2sam.models.presets import (
    HUB_FILE,
    ClipWeights,
    EmbeddedWeights,
    HubSamWeights,
    Preset,
    SamWeights,
    Weights,
    get_preset,
)
from clip2sam.tiny.files import embedded_file

_log = logging.getLogger(__name__)

TRIES = 4
"""Connections in a row that bring nothing new before a download is given up."""
FIRST_WAIT = 1.0
"""Seconds before the second try, doubled for each further one."""
CHUNK = 1 << 18
"""Bytes that are read and written at once, at most."""


def fetch(
    preset: str | Preset,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    progress: bool = True,
    kinds: Iterable[Kind] = ("clip", "sam"),
) -> dict[Kind, Path]:
    """The files of a preset, verified, downloaded if need be: {"clip": path, "sam": path}.

    Args:
        kinds: those that are needed.

    Raises:
        ConfigError: no such preset.
        WeightsError: as `fetch_clip` and `fetch_sam`; it also names the other files that are
            missing, so that all can be got at once.
    """
    chosen, left = get_preset(preset), list(kinds)
    found: dict[Kind, Path] = {}
    while left:
        kind = left.pop(0)
        try:
            weights = chosen.clip if kind == "clip" else chosen.sam
            found[kind] = fetch_file(
                weights, weights_dir=weights_dir, offline=offline, progress=progress
            )
        except WeightsError as error:
            others = [file for file in status(weights_dir, [chosen]) if file.kind in left]
            also = [
                f"{file.file} is missing too: {by_hand(file.url, file.size, file.path)}"
                for file in others
                if file.state == "missing"
            ]
            if not also:
                raise
            raise WeightsError("; ".join([str(error), *also])) from error
    return found


def fetch_sam(
    which: str | Preset | SamWeights | HubSamWeights,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    progress: bool = True,
) -> Path:
    """The verified SAM file of a preset, downloaded if it is missing. Arguments and errors: see
    `fetch_file`.

    Args:
        which: a preset, its name, or the weights themselves.

    Raises:
        ConfigError: no such preset.
    """
    weights = which if isinstance(which, SamWeights | HubSamWeights) else get_preset(which).sam
    return fetch_file(weights, weights_dir=weights_dir, offline=offline, progress=progress)


def fetch_clip(
    which: str | Preset | ClipWeights,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    progress: bool = True,
) -> Path:
    """The verified CLIP file of a preset, as `fetch_sam`."""
    weights = which if isinstance(which, ClipWeights) else get_preset(which).clip
    return fetch_file(weights, weights_dir=weights_dir, offline=offline, progress=progress)


def fetch_file(
    weights: Weights,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    progress: bool = True,
) -> Path:
    """The verified file, downloaded if it is missing.

    A copy in the hub's own cache is used if it is the right one. An interrupted download is
    resumed, at once or at the next start. Of several processes one downloads and the others wait
    for it.

    Args:
        weights_dir: the weights folder, see `clip2sam.models.files.weights_dir`.
        offline: never use the network (HF_HUB_OFFLINE has the same effect for files of the hub).
        progress: show a bar (on a terminal only).

    Raises:
        WeightsError: the file is missing and can't be downloaded, or is not the published one. A
            wrong file that exists already is neither used nor replaced.
    """
    if isinstance(weights, EmbeddedWeights):
        return embedded_file(weights.file)
    local = local_file(weights, weights_dir)
    with _disk_errors(local.place):
        if local.path != local.place:
            try:
                return local.check()
            except WeightsError as error:  # the file of another program: it is left as it is
                _log.warning("%s; it is not used", error)
                local = replace(local, path=local.place)
        if local.path.exists():
            return local.check()
        if offline or (constants.HF_HUB_OFFLINE and hub_file(weights.url) is not None):
            reason = "the download is forbidden (offline)"
            raise WeightsError(_missing(weights, local.path, reason))
        local.path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(local.path.with_name(f".{weights.file}.lock")):
            if not local.path.exists():
                wanted = _wanted(weights, local.path)
                local.remember(_download(wanted, local.path, progress), wanted.sha256)
            return local.check()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the file system into a WeightsError of one line."""
    try:
        yield
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(
            f"{path} can't be written or read: {error.strerror or one_line(error)}; give it room "
            f"and rights, or choose another folder with --weights-dir or {ENVIRONMENT}"
        ) from error


def _missing(wanted: "Published", path: Path, reason: str, again: str = "") -> str:
    around = surroundings(wanted.url)
    reason = f"{reason}; {around}" if around and "offline" not in reason else reason
    return f"{wanted.file} is missing: {reason}; {again}{by_hand(wanted.url, wanted.size, path)}"


def _lock(path: Path) -> Any:
    """A lock between processes, as a context; the kernel drops it when its process ends, even by
    kill -9."""
    lock = filelock.FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        file = path.name.removesuffix(".lock")[1:]
        _log.warning("another process is downloading %s: waiting for it", file)
        return lock.acquire()


@dataclass(frozen=True)
class _Wanted:
    """A file to download, with all that is known of it."""

    file: str
    url: str
    """As published."""
    size: int
    """Bytes."""
    sha256: str | None
    """None: nobody states it."""


Published = ClipWeights | SamWeights | HubSamWeights | _Wanted


def _wanted(weights: ClipWeights | SamWeights | HubSamWeights, path: Path) -> _Wanted:
    """What is published of a file; what isn't is asked of the server."""
    size, sha256 = weights.size, weights.sha256
    if size is None or sha256 is None:
        try:
            told = stated(weights.url)
        except requests.RequestException as error:
            reason = f"the download failed ({one_line(error)})"
            if isinstance(weights, ClipWeights) and _is_not_there(error):
                raise WeightsError(
                    f"https://huggingface.co/{weights.hub} has no {HUB_FILE}, and nothing else is "
                    "downloaded, for a pickle can run code; get its file from there and give it "
                    "with --clip-checkpoint (clip_checkpoint)"
                ) from error
            raise WeightsError(_missing(weights, path, reason)) from error
        size, sha256 = size or told.size, sha256 or told.sha256
        _log.info("%s: the server states %s bytes, SHA-256 %s", weights.url, size, sha256)
    if size is None:
        reason = "the server does not state its size, so it can't be known when it is whole"
        raise WeightsError(_missing(weights, path, reason))
    return _Wanted(weights.file, weights.url, size, sha256)


def _is_not_there(error: requests.RequestException) -> bool:
    return error.response is not None and error.response.status_code == 404


def _download(weights: _Wanted, path: Path, progress: bool) -> str:
    """Download a file to `path`, resuming from `.part` if an earlier download left one.

    If a resumed file has the wrong hash it is downloaded once more from the start: the content of
    an old `.part` is not known, and it may be too long.

    Returns:
        Its SHA-256.
    """
    part = path.with_name(path.name + ".part")
    left = _check_part(part)
    if left and weights.sha256 is None:
        part.unlink()  # it may be of another file, which nothing would show
        left = 0
    free = shutil.disk_usage(path.parent).free
    if free < weights.size - left:
        raise WeightsError(
            f"{path} needs {weights.size - left} more bytes, but {path.parent} has {free} free; "
            f"make room or choose another folder with --weights-dir or {ENVIRONMENT}"
        )
    _transfer(weights, path, part, progress)
    sha256 = file_sha256(part)
    if weights.sha256 not in (None, sha256) and left:
        part.unlink()
        _transfer(weights, path, part, progress)
        sha256 = file_sha256(part)
    if weights.sha256 not in (None, sha256):
        part.unlink()
        raise WeightsError(
            f"{weights.url} gave a file with SHA-256 {sha256}, expected {weights.sha256}; it was "
            f"deleted. Try another network, or get it elsewhere and put it at {path}"
        )
    if weights.sha256 is None:
        _log.warning("nobody states the SHA-256 of %s; it has %s", weights.file, sha256)
    os.replace(part, path)
    return sha256


def _transfer(weights: _Wanted, path: Path, part: Path, progress: bool) -> None:
    """Fill `part` to the expected size over any number of connections, until TRIES of them in a row
    bring nothing new."""
    furthest = reached = _check_part(part)
    failures, reason = 0, ""
    with tqdm(
        desc=weights.file,
        total=weights.size,
        initial=reached,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: shown on a terminal only
    ) as bar:
        while reached < weights.size:
            if reason:
                _log.info("%s: %s; trying again", weights.url, reason)
                time.sleep(FIRST_WAIT * 2 ** max(failures - 1, 0))
            reason = "the connection ended early"
            try:
                _connect(weights, part, bar)
            # requests lets what read1 raises through, and what it finds wrong with an address that
            # a server redirects to
            except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
                reason = one_line(error)
                if not may_pass(error):
                    failed = f"the download failed ({reason})"
                    raise WeightsError(_missing(weights, path, failed)) from error
            reached = _check_part(part)
            failures = failures + 1 if reached <= furthest else 0
            furthest = max(furthest, reached)
            if failures == TRIES:
                stopped = f"the download stopped at {reached} of {weights.size} bytes ({reason})"
                raise WeightsError(_missing(weights, path, stopped, "run again to go on, or "))
    with part.open("rb") as file:
        os.fsync(file.fileno())


def _connect(weights: _Wanted, part: Path, bar: "tqdm[Any]") -> None:
    """One connection: append the missing bytes to `part`, or start again if the server can't
    resume."""
    with session(WeightsError) as connection, _open_part(part) as file:
        have = file.seek(0, os.SEEK_END)
        # identity: a compressed answer would have another length.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        where = address(weights.url)
        with connection.get(where, headers=headers, timeout=TIMEOUT, stream=True) as response:
            response.raise_for_status()
            check_no_page(response, weights.url)
            _check_headers(response, weights, part, have)
            if response.status_code != 206:
                file.truncate(0)
            # read1 and not iter_content: what has come is written, though the connection may be
            # cut before a whole chunk has.
            while content := response.raw.read1(CHUNK, decode_content=True):
                file.write(content)
                position = file.tell()
                if position > weights.size:
                    file.truncate(0)
                    raise WeightsError(
                        f"{weights.url} gave more than the expected {weights.size} bytes: it is "
                        f"another file and was deleted; get {weights.file} elsewhere"
                    )
                bar.update(position - bar.n)


def _check_headers(response: requests.Response, weights: _Wanted, part: Path, have: int) -> None:
    """Compare the announced length with the expected one before any content is read.

    Raises:
        WeightsError: it is another file.
    """
    if response.status_code == 206:
        expected = f"bytes {have}-{weights.size - 1}/{weights.size}"
        offered = response.headers.get("Content-Range", "no range")
    else:  # the whole file, whether or not a range was requested
        expected = str(weights.size)
        offered = response.headers.get("Content-Length", expected)
    if offered != expected:
        raise WeightsError(
            f"{weights.url} offers {offered!r:.80} bytes, expected {expected}: it is another "
            f"file, nothing was taken; get {weights.file} elsewhere and put it at "
            f"{part.with_suffix('')}"
        )


def _open_part(part: Path) -> Any:
    """The unfinished file, to append to, without a buffer.

    Raises:
        WeightsError: under its name is something that someone else put there, such as a link: what
            is behind it would be overwritten.
    """
    _check_part(part)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    return open(os.open(part, flags | getattr(os, "O_BINARY", 0), 0o666), "ab", buffering=0)


def _check_part(part: Path) -> int:
    """The unfinished file's size in bytes, 0 if there is none. Errors as for `_open_part`."""
    try:
        found = part.lstat()
    except FileNotFoundError:
        return 0
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return found.st_size
    kind = "a link" if stat.S_ISLNK(found.st_mode) or found.st_nlink > 1 else "no regular file"
    kind = "a folder" if stat.S_ISDIR(found.st_mode) else kind
    raise WeightsError(
        f"{part} is {kind}, expected an unfinished download; nothing was written to it: delete it "
        "and run again"
    )
