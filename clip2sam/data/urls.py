"""Images at addresses of the web, beside files: fetched one by one when they are read.

Only http and https, also after a redirection. An address that gives no image costs that image.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from clip2sam.data.addresses import WEB, check_address, is_url, shown_url
from clip2sam.data.files import cut_to_bytes
from clip2sam.data.images import printable
from clip2sam.data.remote import read_whole
from clip2sam.data.sources import (
    FileSource,
    PathLike,
    Source,
    as_several,
    check_output,
    find_source,
    without_drawings,
)
from clip2sam.errors import ConfigError, ImageError


@dataclass(frozen=True)
class WebSource:
    """Image files, and behind them images of the web."""

    files: FileSource | None
    urls: dict[str, str] = field(default_factory=dict)
    """By key: the address."""

    @property
    def origin(self) -> str:
        """That of the files, and the addresses, joined by NUL."""
        given = () if self.files is None else (self.files.origin,)
        return "\0".join((*given, *map(shown_url, self.urls.values())))

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of the files, then the names made of the addresses, in the order given."""
        return (*(() if self.files is None else self.files.keys), *self.urls)

    @property
    def ids(self) -> tuple[int, ...]:
        """Those of the files; the addresses have the next ones."""
        known = () if self.files is None else self.files.ids
        first = max(known, default=0) + 1
        return (*known, *range(first, first + len(self.urls)))

    def read(self, key: str) -> str | bytes:
        """A file's path, or what an address gives.

        Raises:
            ImageError: it can't be read, or is no image.
        """
        if key in self.urls:
            return fetch_image(self.urls[key], key)
        assert self.files is not None  # it has the other keys
        return self.files.read(key)


def find_images(
    sources: PathLike | Sequence[PathLike], *, offline: bool = False
) -> FileSource | WebSource:
    """What `find_source` takes, with addresses of images among it.

    Raises:
        ImageError: as `find_source`; or an address is none of http or https.
        ConfigError: there is an address, and the network is not to be used.
    """
    given = as_several(sources)
    urls = list(dict.fromkeys(str(one) for one in given if is_url(one)))
    if not urls:
        return find_source(sources)
    for url in urls:
        check_address(url, WEB)
    if offline:
        raise ConfigError(
            f"{shown_url(urls[0])} is an address, but the network is not to be used (offline); "
            "leave it out, or allow the network"
        )
    paths = [one for one in given if not is_url(one)]
    files = find_source(paths) if paths else None
    taken = {key.casefold() for key in (() if files is None else files.keys)}
    named: dict[str, str] = {}
    for url in urls:
        key = _free_key(url, taken)
        taken.add(key.casefold())
        named[key] = url
    return WebSource(files, named)


def _free_key(url: str, taken: set[str]) -> str:
    """The last part of an address as the name of a file that no other image has, in any case."""
    last = unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2])
    name = re.sub(r'[\\/:*?"<>|]', "_", printable(last)).lstrip(".")
    stem, ending = os.path.splitext(name)
    stem, ending = cut_to_bytes(stem, 100) or "image", cut_to_bytes(ending, 20)
    key, number = stem + ending, 1
    while key.casefold() in taken:
        number += 1
        key = f"{stem}-{number}{ending}"
    return str(PurePosixPath(key))


def fetch_image(url: str, key: str) -> bytes:
    """The bytes of an image at an address.

    Raises:
        ImageError: as `read_whole`. The message begins with the key.
    """
    try:
        return read_whole(url)
    except ImageError as error:
        raise ImageError(f"{printable(key)}: {error}") from error


def without_own(source: FileSource | WebSource) -> tuple[FileSource | WebSource, dict[str, int]]:
    """`without_drawings`, also where there are addresses among the images."""
    if isinstance(source, FileSource):
        return without_drawings(source)
    if source.files is None:
        return source, {}
    files, drawn = without_drawings(source.files)
    return replace(source, files=files), drawn


def check_place(source: Source, output: Path) -> None:
    """`check_output` for an output that may be a folder below the images: it isn't read again.

    Raises:
        ConfigError: it lies where images are read.
    """
    files = source.files if isinstance(source, WebSource) else source
    if files is not None:
        check_output(files, output, below=True)
