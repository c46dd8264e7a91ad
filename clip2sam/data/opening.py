"""Sources by what a person gives: which kind it is, listed; or taken up again without listing.

A kind is a class with the fields `origin`, `root`, `keys` and `ids`, as `FileSource` has them, and
a name that a run's manifest knows it by.
"""

import os
from collections.abc import Sequence
from typing import Protocol

from clip2sam.data import sources
from clip2sam.data.addresses import is_url, plain_address
from clip2sam.data.remote_source import RemoteSource, check_remote, find_remote, is_remote
from clip2sam.data.sources import FileSource, PathLike, Source, find_source
from clip2sam.errors import ConfigError


class Kind(Protocol):
    """A class of sources."""

    def __call__(
        self, origin: str, root: str, keys: tuple[str, ...], ids: tuple[int, ...]
    ) -> Source:
        """The images of these names and ids: all that there are, or a part of them."""


KINDS: dict[str, Kind] = {"files": FileSource, "remote": RemoteSource}
"""By the name in manifests."""


def open_source(given: PathLike | Sequence[PathLike], root: PathLike | None = None) -> Source:
    """List the images of a source.

    Args:
        given: what `find_source` takes; or an address of a folder, glob or image, or a list of
            addresses, see `find_remote`.
        root: as for these two.

    Raises:
        ImageError: as these two.
    """
    if isinstance(given, str | os.PathLike) and is_remote(given):
        return find_remote(given, root)
    return find_source(given, root)


def check_found(given: PathLike, root: PathLike | None = None, *, offline: bool = False) -> None:
    """Find out in front of a long job whether there is an image, without listing them all.

    Args:
        given, root: as for `open_source`.
        offline: the network is not to be used.

    Raises:
        ImageError: as `open_source`.
        ConfigError: there is an address, and the network is not to be used.
    """
    if is_remote(given):
        check_remote(given, offline=offline)
    else:
        sources.check_found(given, root)


def origin_of(given: PathLike) -> str:
    """What a source that is given so is known by, see `Source.origin`."""
    return plain_address(str(given)) if is_url(given) else os.path.abspath(given)


def kind_of(source: Source) -> str | None:
    """The name of a source's kind; None for an object of the user's own."""
    return next((name for name, kind in KINDS.items() if type(source) is kind), None)


def source_of(kind: str, origin: str, root: str, keys: Sequence[str], ids: Sequence[int]) -> Source:
    """Images that were listed before.

    Args:
        kind: one of `KINDS`.
        origin, root: those of the source that listed them.
        keys, ids: of all of its images, or of some.

    Raises:
        ConfigError: this version doesn't know the kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"sources of the kind {kind!r} are not known here; use a newer clip2sam")
    return KINDS[kind](origin, root, tuple(keys), tuple(ids))
