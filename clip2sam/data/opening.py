"""Sources by what a person gives: which kind it is, listed; or taken up again without listing.

A kind is a class with the fields `origin`, `root`, `keys` and `ids`, as `FileSource` has them, and
a name that a run's manifest knows it by.
"""

import os
from collections.abc import Sequence
from typing import Protocol

from clip2sam.data.addresses import is_url
from clip2sam.data.sources import FileSource, PathLike, Source, find_source
from clip2sam.errors import ConfigError


class Kind(Protocol):
    """A class of sources."""

    def __call__(
        self, origin: str, root: str, keys: tuple[str, ...], ids: tuple[int, ...]
    ) -> Source:
        """The images of these names and ids: all that there are, or a part of them."""


KINDS: dict[str, Kind] = {"files": FileSource}
"""By the name in manifests."""


def open_source(given: PathLike | Sequence[PathLike], root: PathLike | None = None) -> Source:
    """List the images of a source.

    Args:
        given: what `find_source` takes.
        root: as for `find_source`.

    Raises:
        ImageError: as `find_source`.
    """
    return find_source(given, root)


def origin_of(given: PathLike) -> str:
    """What a source that is given so is known by, see `Source.origin`."""
    return str(given) if is_url(given) else os.path.abspath(given)


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
