"""Missing weight files from the network, verified before they get their name.

SAM's checkpoints are fetched into `<file>.part`, resumed where the server can, and renamed once
their size and SHA-256 are right. CLIP's come through open_clip into the
Hugging Face hub's cache.
"""

import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import requests
import urllib3
from huggingface_hub import constants
from tqdm import tqdm

from clip2sam.data.files import file_sha256
from clip2sam.errors import WeightsError, one_line
from clip2sam.models.files import ENVIRONMENT, local_file
from clip2sam.models.presets import (
    ClipWeights,
    EmbeddedWeights,
    HubSamWeights,
    Preset,
    SamWeights,
    get_preset,
)
from clip2sam.tiny.files import embedded_file

_log = logging.getLogger(__name__)

TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and seconds of silence; a slow but steady transfer may take any time."""
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
) -> dict[str, Path]:
    """Both files of a preset, verified, downloaded if need be: {"clip": path, "sam": path}.

    Raises:
        ConfigError: no such preset.
        WeightsError: as `fetch_clip` and `fetch_sam`.
    """
    return {
        "clip": fetch_clip(preset, weights_dir=weights_dir, offline=offline),
        "sam": fetch_sam(preset, weights_dir=weights_dir, offline=offline, progress=progress),
    }


def fetch_sam(
    which: str | Preset | SamWeights | HubSamWeights,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    progress: bool = True,
) -> Path:
    """The verified SAM file of a preset, downloaded if it is missing.

    An interrupted download is resumed, at once or at the next start. Of several processes one
    downloads and the others wait for it.

    Args:
        which: a preset, its name, or the weights themselves.
        weights_dir: the weights folder, see `clip2sam.models.files.weights_dir`.
        offline: never use the network.
        progress: show a bar (on a terminal only).

    Raises:
        ConfigError: no such preset.
        WeightsError: the file is missing and can't be downloaded, or is not the published one. A
            wrong file that exists already is neither used nor replaced.
    """
    weights = which if isinstance(which, SamWeights | HubSamWeights) else get_preset(which).sam
    if isinstance(weights, EmbeddedWeights):
        return embedded_file(weights.file)
    if isinstance(weights, HubSamWeights):
        weights = _published(weights)
    local = local_file(weights, weights_dir)
    path = local.path
    with _disk_errors(path):
        if path.exists():
            return local.check()
        if offline:
            raise WeightsError(_missing(weights, path, "the download is forbidden (offline)"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_name(f".{weights.file}.lock")):
            if not path.exists():
                _download(weights, path, progress)
                local.remember(weights.sha256)
            return local.check()


def _published(weights: HubSamWeights) -> SamWeights:
    """The file as one that is downloaded from its address, which takes its size and hash."""
    if weights.size is None or weights.sha256 is None:
        raise WeightsError(
            f"the size or the SHA-256 of {weights.url} is not known, so it is not downloaded; get "
            "it by hand and give its path as sam_checkpoint"
        )
    return SamWeights(
        weights.architecture,
        weights.file,
        weights.size,
        weights.sha256,
        weights.url,
        weights.licence,
    )


def fetch_clip(
    which: str | Preset | ClipWeights,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
) -> Path:
    """The CLIP file of a preset, downloaded by open_clip into `hub/` of the weights folder if it is
    missing.

    A file that a user put into the weights folder under `ClipWeights.file` takes precedence; its
    content is checked only if `ClipWeights.sha256` is known. The hub's own file is compared with
    the SHA-256 that the hub names.

    Args:
        which: a preset, its name, or the weights themselves.
        weights_dir: the weights folder, see `clip2sam.models.files.weights_dir`.
        offline: never use the network (HF_HUB_OFFLINE has the same effect).

    Raises:
        ConfigError: no such preset.
        WeightsError: the file is missing and can't be downloaded, or changed after its download.
    """
    weights = which if isinstance(which, ClipWeights) else get_preset(which).clip
    if isinstance(weights, EmbeddedWeights):
        return embedded_file(weights.file)
    local = local_file(weights, weights_dir)
    if not local.path.exists():
        if offline or constants.HF_HUB_OFFLINE:
            reason = "the download is forbidden (offline)"
            raise WeightsError(_missing(weights, local.path, reason))
        local = replace(local, path=_download_clip(weights, local.path))
    with _disk_errors(local.path):
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


def _missing(weights: ClipWeights | SamWeights, path: Path, reason: str, again: str = "") -> str:
    return f"{weights.file} is missing: {reason}; {again}get {weights.url} and put it at {path}"


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


def _download_clip(weights: ClipWeights, by_hand: Path) -> Path:
    """Let open_clip download into the hub's cache beside `by_hand`; return the file's path."""
    from open_clip.pretrained import (
        download_pretrained,
    )  # imports torch, which `fetch_sam` needs not

    try:
        # The hub's client retries an address that does not answer for most of a minute. One
        # request of our own fails sooner.
        requests.head(weights.url, timeout=TIMEOUT).close()
        cache = by_hand.with_name("hub")
        # The slash at the end: a repository, in which open_clip looks for its own file names.
        return Path(download_pretrained({"hf_hub": f"{weights.hub}/"}, cache_dir=str(cache)))
    except Exception as error:  # the hub's client and its two HTTP libraries have no common base
        reason = f"the download failed ({one_line(error)})"
        raise WeightsError(_missing(weights, by_hand, reason)) from error


def _download(weights: SamWeights, path: Path, progress: bool) -> None:
    """Download a file to `path`, resuming from `.part` if an earlier download left one.

    If a resumed file has the wrong hash it is downloaded once more from the start: the content of
    an old `.part` is not known, and it may be too long.
    """
    part = path.with_name(path.name + ".part")
    left = _check_part(part)
    free = shutil.disk_usage(path.parent).free
    if free < weights.size - left:
        raise WeightsError(
            f"{path} needs {weights.size - left} more bytes, but {path.parent} has {free} free; "
            f"make room or choose another folder with --weights-dir or {ENVIRONMENT}"
        )
    _transfer(weights, path, part, progress)
    sha256 = file_sha256(part)
    if sha256 != weights.sha256 and left:
        part.unlink()
        _transfer(weights, path, part, progress)
        sha256 = file_sha256(part)
    if sha256 != weights.sha256:
        part.unlink()
        raise WeightsError(
            f"{weights.url} gave a file with SHA-256 {sha256}, expected {weights.sha256}; it was "
            f"deleted. Try another network, or get it elsewhere and put it at {path}"
        )
    os.replace(part, path)


def _transfer(weights: SamWeights, path: Path, part: Path, progress: bool) -> None:
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
                if not _may_pass(error):
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


def _may_pass(error: Exception) -> bool:
    """Whether another try may succeed."""
    if isinstance(error, requests.HTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    lost = (
        requests.ConnectionError,
        requests.Timeout,
        urllib3.exceptions.ProtocolError,
        urllib3.exceptions.TimeoutError,
    )
    return isinstance(error, lost) and not isinstance(error, requests.exceptions.SSLError)


def _connect(weights: SamWeights, part: Path, bar: "tqdm[Any]") -> None:
    """One connection: append the missing bytes to `part`, or start again if the server can't
    resume."""
    with _open_part(part) as file, requests.Session() as session:
        have = file.seek(0, os.SEEK_END)
        # identity: a compressed answer would have another length.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with session.get(weights.url, headers=headers, timeout=TIMEOUT, stream=True) as response:
            response.raise_for_status()
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


def _check_headers(response: requests.Response, weights: SamWeights, part: Path, have: int) -> None:
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
