"""Sources by what a person gives: which kind it is, listed; or taken up again without listing.

Names tell the kind: tars and Parquet files by their endings, also in patterns; a folder by what is
in it. Loose images come first: tars beside them may be what they were unpacked from.

A kind is a class with the fields `origin`, `root`, `keys` and `ids`, as `FileSource` has them, and
a name that a run's manifest knows it by.
"""

import os
import warnings
from collections.abc import Sequence
from typing import Protocol

from clip2sam.data import sources
from clip2sam.data.addresses import is_url, plain_address
from clip2sam.data.images import SUFFIXES, printable
from clip2sam.data.parquet import PARQUET_SUFFIX, ParquetSource, check_parquet, find_parquet
from clip2sam.data.patterns import expand_braces, walk
from clip2sam.data.remote_source import RemoteSource, check_remote, find_remote, is_remote
from clip2sam.data.sources import FileSource, PathLike, Source, as_several, find_source
from clip2sam.data.tars import TAR_SUFFIXES, TarSource, check_tars, find_tars
from clip2sam.errors import ConfigError, ImageError


class Kind(Protocol):
    """A class of sources."""

    def __call__(
        self, origin: str, root: str, keys: tuple[str, ...], ids: tuple[int, ...]
    ) -> Source:
        """The images of these names and ids: all that there are, or a part of them."""


KINDS: dict[str, Kind] = {
    "files": FileSource,
    "tar": TarSource,
    "parquet": ParquetSource,
    "remote": RemoteSource,
}
"""By the name in manifests."""


def open_source(given: PathLike | Sequence[PathLike], root: PathLike | None = None) -> Source:
    """List the images of a source.

    Args:
        given: what `find_source` takes; tars (`find_tars`) or Parquet files (`find_parquet`), also
            at addresses; a folder without loose images: the tars in it, else the Parquet files; the
            address of a folder, glob or image, or a list of addresses (`find_remote`).
        root: as for these.

    Raises:
        ImageError: as these; or files of several kinds are given.
        ConfigError: Parquet files are given, and pyarrow is missing.
    """
    kind = kind_given(given)
    if kind == "tar":
        return find_tars(given, root)
    if kind == "parquet":
        return find_parquet(given, root)
    if isinstance(given, str | os.PathLike) and is_remote(given):
        return find_remote(given, root)
    _say_passed_over(given)
    return find_source(given, root)


def check_found(given: PathLike, root: PathLike | None = None, *, offline: bool = False) -> None:
    """Find out in front of a long job whether there is an image, without listing them all.

    Args:
        given, root: as for `open_source`.
        offline: the network is not to be used.

    Raises:
        ImageError: as `open_source`, as far as it looks.
        ConfigError: as `open_source`; or there is an address, and the network is not to be used.
    """
    far = is_remote(given)
    if far:  # of braces, the first one stands for all
        check_remote(expand_braces(str(given))[0] if is_url(given) else given, offline=offline)
    kind = kind_given(given)
    if kind == "tar":
        check_tars(given, root)
    elif kind == "parquet":
        check_parquet(given, root)
    elif not far:
        sources.check_found(given, root)


def kind_given(given: PathLike | Sequence[PathLike]) -> str:
    """The name of the kind that `open_source` makes of something; "files" also for images at
    addresses, which may stand beside files.

    Raises:
        ImageError: it is of several kinds.
    """
    kinds = sorted({_kind(one) for one in as_several(given)} or {"files"})
    if len(kinds) > 1:
        raise ImageError(
            f"expected sources of one kind, got {' and '.join(kinds)}; give them to two runs"
        )
    return kinds[0]


def _kind(given: PathLike) -> str:
    if not is_url(given) and os.path.isdir(given):
        return _kind_in(os.path.abspath(given))
    return _kind_named(os.fspath(given))


def _kind_named(name: str) -> str:
    """The kind of a file by its name; that of images too."""
    if name.lower().endswith(TAR_SUFFIXES):
        return "tar"
    return "parquet" if name.lower().endswith(PARQUET_SUFFIX) else "files"


def _kind_in(folder: str) -> str:
    """The kind of what is in a folder: looked at up to the first image."""
    kinds = set()
    for file in walk(folder):
        if file.lower().endswith(SUFFIXES):
            return "files"
        kinds.add(_kind_named(file))
    # img2dataset writes a Parquet file of captions beside each tar
    return next((kind for kind in ("tar", "parquet") if kind in kinds), "files")


def _say_passed_over(given: PathLike | Sequence[PathLike]) -> None:
    """Loose images are taken as ever, but who meant the tars beside them should hear of it."""
    for folder in filter(os.path.isdir, as_several(given)):
        tars = [name for name in os.listdir(folder) if _kind_named(name) == "tar"]
        if tars:
            warnings.warn(
                f"{printable(folder)}: {len(tars)} tars beside images are passed over; give "
                f"{printable(os.path.join(folder, '*.tar'))} for the images in them",
                stacklevel=3,
            )


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
