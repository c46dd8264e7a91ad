"""Bytes at addresses: http and https by requests, all other schemes by fsspec. Each read has limits
of time and size, and is tried again where that may help.
"""

import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from clip2sam import __version__
from clip2sam.data.addresses import (
    WEB,
    check_address,
    scheme_of,
    shown_url,
    without_secrets,
)
from clip2sam.data.retries import retried, status_of
from clip2sam.errors import ImageError, one_line

if TYPE_CHECKING:  # requests and fsspec are slow to import, and few need them
    import requests

TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and seconds of silence."""

MOST_SECONDS = 120.0
"""For one read with all its tries, however steadily it comes."""

MAX_BYTES = 200_000_000
"""Of one read."""

CHUNK = 1 << 16

AHEAD = 1 << 22
"""Bytes that a file of `open_seekable` requests at once, at least."""

NEEDS = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
"""By scheme: the package by which fsspec reads it."""
EXTRAS = {"aiohttp": "remote", "s3fs": "s3", "gcsfs": "gcs"}
"""By package: the extra of clip2sam that installs it."""

Given = TypeVar("Given")


def read_whole(url: str) -> bytes:
    """What is at an address.

    Raises:
        ImageError: it can't be reached in time, refuses, is a web page, or has no byte or more than
            MAX_BYTES.
    """
    check_address(url)
    if scheme_of(url) in WEB:
        data = _tried(url, lambda end: _from_web(url, None, end))
    else:
        data = _tried(url, lambda end: _from_files(url, 0, MAX_BYTES + 1, end))
    if len(data) > MAX_BYTES:
        raise ImageError(f"{shown_url(url)} gives more than {MAX_BYTES} bytes; fetch it by hand")
    if not data:
        raise ImageError(f"{shown_url(url)} gave nothing; check the address")
    return data


def read_range(url: str, start: int, end: int) -> bytes:
    """The bytes from `start` to before `end` of what is at an address: all of them.

    Raises:
        ImageError: as `read_whole`; or there are not as many, or the server gives no parts.
    """
    check_address(url)
    if end - start > MAX_BYTES:
        raise ImageError(
            f"{shown_url(url)}: expected at most {MAX_BYTES} bytes at once, but bytes {start} to "
            f"{end} are wanted; fetch it by hand"
        )
    if scheme_of(url) in WEB:
        data = _tried(url, lambda until: _from_web(url, (start, end), until))
    else:
        data = _tried(url, lambda until: _from_files(url, start, end, until))
    if len(data) != end - start:
        raise ImageError(
            f"{shown_url(url)} gave {len(data)} bytes in place of bytes {start} to {end}; get a "
            "whole copy"
        )
    return data


def size_of(url: str) -> int:
    """Bytes of what is at an address, by one request.

    Raises:
        ImageError: as `read_whole`; or the server doesn't say it.
    """
    check_address(url)
    if scheme_of(url) in WEB:
        return _tried(url, lambda end: _web_size(url))

    def ask(end: float) -> Any:
        files, path = file_system(url)
        return files.info(path, **_limited(files, end))["size"]

    size = _tried(url, ask)
    if type(size) is not int:
        raise ImageError(f"{shown_url(url)}: its size is not known; fetch it by hand")
    return size


def open_seekable(url: str) -> io.BufferedReader:
    """A file to read in any order, of which only those parts are requested that are read, AHEAD
    bytes at a time. Not for several threads at once.

    Raises:
        ImageError: as `size_of`; reading it raises what `read_range` does.
    """
    return io.BufferedReader(_Parts(url), AHEAD)


def expand(url_pattern: str) -> list[str]:
    """The addresses of the files that match a pattern (`*`, `**`, `?`, `[...]`), sorted by their
    bytes; an address without a wildcard is itself the only one, and nothing is requested.

    Raises:
        ImageError: as `read_whole`.
    """
    check_address(url_pattern)
    return sorted(found(url_pattern), key=str.encode) if is_glob(url_pattern) else [url_pattern]


def is_glob(url: str) -> bool:
    """Whether an address has wildcards. On the web a "?" begins a query."""
    return re.search(r"[*\[]" if scheme_of(url) in WEB else r"[*?\[]", url) is not None


def found(url: str) -> list[str]:
    """Addresses of all files below a folder, or of those that match a pattern; listed anew.

    Raises:
        ImageError: as `read_whole`; no such folder.
    """

    def ask(end: float) -> list[str]:
        files, path = file_system(url)
        files.invalidate_cache()
        if is_glob(url):
            matches = files.glob(path, detail=True)
            names = [name for name, row in matches.items() if row["type"] == "file"]
        else:
            files.info(path, **_limited(files, end))  # `find` gives nothing for what isn't there
            names = files.find(path)
        return [_address(url, name) for name in names]

    return _tried(url, ask, once=True)


def check_there(url: str) -> None:
    """Whether there is a file or folder at an address, by one request.

    Raises:
        ImageError: there is none, or it can't be asked.
    """

    def ask(end: float) -> None:
        if scheme_of(url) in WEB:
            with _answer(url):
                return
        files, path = file_system(url)
        files.info(path, **_limited(files, end))

    _tried(url, ask)


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it.

    Raises:
        ImageError: the package for it is missing.
    """
    import fsspec

    scheme = scheme_of(url)
    connect, silence = TIMEOUT
    options: dict[str, dict[str, Any]] = {
        "s3": {"config_kwargs": {"connect_timeout": connect, "read_timeout": silence}},
        "gs": {"requests_timeout": silence},
    }
    if scheme in WEB and find_spec("aiohttp") is not None:
        import aiohttp

        limits = aiohttp.ClientTimeout(sock_connect=connect, sock_read=silence)
        options[scheme] = {"client_kwargs": {"timeout": limits, "trust_env": True}}
    try:
        files, path = fsspec.core.url_to_fs(url, **options.get(scheme, {}))
    except ImportError as error:
        package = NEEDS.get(scheme, "")
        extra = f'pip install "clip2sam[{EXTRAS[package]}]"' if package else "install it"
        raise ImageError(
            f"{shown_url(url)}: expected {package or one_line(error)} to read {scheme}:// "
            f"addresses, but it is not installed; {extra}"
        ) from error
    return files, path


def _address(url: str, name: str) -> str:
    """A file system's own name as an address of the same scheme as `url`."""
    scheme = scheme_of(url)
    if scheme in WEB:
        return name
    return f"{scheme}://{name if scheme == 'file' else name.lstrip('/')}"


def _limited(files: Any, until: float) -> dict[str, float]:
    """The limit of time for one call of a file system. fsspec's asynchronous ones take it."""
    return {"timeout": max(until - time.monotonic(), 0.001)} if files.async_impl else {}


def _from_files(url: str, start: int, end: int, until: float) -> bytes:
    """Bytes of a file by fsspec, fewer where it ends before."""
    files, path = file_system(url)
    data: bytes = files.cat_file(path, start=start, end=end, **_limited(files, until))
    return data


def _tried(url: str, action: Callable[[float], Given], *, once: bool = False) -> Given:
    """What an action gives, tried again where that may help.

    Args:
        action: called with the moment (`time.monotonic`) at which it must have ended.
        once: it has no such moment.

    Raises:
        ImageError: it failed.
    """
    end = time.monotonic() + MOST_SECONDS
    with errors_at(url):
        return retried(lambda: action(end), float("inf") if once else end)


@contextmanager
def errors_at(url: str) -> Iterator[None]:
    """Turn whatever a library raises into an ImageError of one line, without secrets."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(_reason(url, error)) from error


def _reason(url: str, error: Exception) -> str:
    where, status = shown_url(url), status_of(error)
    if status is None and isinstance(error, FileNotFoundError):
        return f"{where}: there is nothing at this address; check it"
    if status is not None:
        said = getattr(getattr(error, "response", None), "reason", "") or type(error).__name__
        help_ = "check the address"
        if status in (401, 403):
            help_ += ", and that your credentials are in the environment"
        return f"{where} answered {status} ({said}); {help_}"
    around = _surroundings(url)
    late = isinstance(error, TimeoutError) and not str(error)
    text = "no answer in time" if late else without_secrets(one_line(error))
    return (
        f"{where} can't be fetched ({text}); check the address and the network"
        f"{f' ({around})' if around else ''}"
    )


def _surroundings(url: str) -> str:
    from clip2sam.data.network import surroundings

    return surroundings(url) if scheme_of(url) in WEB else ""


class _Parts(io.RawIOBase):
    """A file at an address."""

    mode = "rb"

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url, self._size, self._at = url, size_of(url), 0

    @property
    def name(self) -> str:
        """Its address, without secrets."""
        return shown_url(self._url)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"expected a place from 0 on, got {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._at + min(len(view), MAX_BYTES), self._size)
        if end <= self._at:
            return 0
        data = read_range(self._url, self._at, end)
        view[: len(data)] = data
        self._at = end
        return len(data)


# The web

_connections = threading.local()


def _session() -> "requests.Session":
    """This thread's connections: images of one host share them. Made anew where the environment
    has changed."""
    from clip2sam.data.network import certificates, session

    kept: requests.Session | None = getattr(_connections, "session", None)
    if kept is None or kept.verify != certificates(ImageError):
        _connections.session = kept = session(ImageError)
    return kept


@contextmanager
def _answer(url: str, part: tuple[int, int] | None = None) -> Iterator["requests.Response"]:
    """A good answer to a request of an address, its body not read.

    Raises:
        requests.RequestException: there is none.
    """
    from clip2sam.data.network import address

    # identity: the length that is announced is that of the image
    headers = {"User-Agent": f"clip2sam/{__version__}", "Accept-Encoding": "identity"}
    if part is not None:
        headers["Range"] = f"bytes={part[0]}-{part[1] - 1}"
    with _session().get(address(url), headers=headers, timeout=TIMEOUT, stream=True) as response:
        response.raise_for_status()
        yield response


def _web_size(url: str) -> int:
    """By a request of the first byte: a signed address may allow no HEAD."""
    with _answer(url, (0, 1)) as response:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status_code != 206 or not total.isdecimal():
            raise ImageError(_no_parts(url))
        return int(total)


def _no_parts(url: str) -> str:
    return f"{shown_url(url)}: this server gives no parts of files; download the file first"


def _from_web(url: str, part: tuple[int, int] | None, end: float) -> bytes:
    """The body of an answer, up to the limits of bytes and time."""
    from clip2sam.data.network import is_page

    where, data = shown_url(url), bytearray()
    with _answer(url, part) as response:
        if part is not None and response.status_code != 206:
            raise ImageError(_no_parts(url))
        if is_page(response):
            raise ImageError(_web_page(where))
        most = MAX_BYTES if part is None else part[1] - part[0]
        for chunk in response.iter_content(CHUNK):
            data += chunk
            if len(data) > most:
                raise ImageError(f"{where} gives more than {most} bytes; fetch it by hand")
            if time.monotonic() > end:
                raise ImageError(f"{where} takes more than {MOST_SECONDS:g} s; fetch it by hand")
    if part is None and re.match(rb"\s*<(!doctype html|html)", data[:200], re.IGNORECASE):
        raise ImageError(_web_page(where))
    return bytes(data)


def _web_page(where: str) -> str:
    return f"{where} is a web page, expected an image; give the address of the image itself"
