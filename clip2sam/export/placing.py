"""Images put into a dataset that is written elsewhere. The images themselves are only read."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clip2sam.data.files import output_errors, write_atomically
from clip2sam.data.images import printable, suffix_of
from clip2sam.data.sources import locate
from clip2sam.errors import ConfigError, ImageError

IMAGES = ("copy", "link", "none")


@dataclass(frozen=True)
class Placing:
    """How images are put into a dataset.

    Raises:
        ConfigError: images are none of `IMAGES`, or can't be had so.
    """

    images: str
    """"copy", "link" (hard links, which stay good wherever the images or the dataset are moved),
    or "none": not at all."""
    root: str | os.PathLike[str] | None
    """The folder that the records' names are relative to. Nothing is written there."""
    read: Callable[[str], bytes] | None
    """In place of a root, for images that are no files: from a record's name to the encoded bytes.
    A name without a suffix gets that of its image's format."""

    def __post_init__(self) -> None:
        if self.images not in IMAGES:
            raise ConfigError(f"images must be one of {', '.join(IMAGES)}, but got {self.images!r}")
        if self.images == "link" and self.read is not None:
            raise ConfigError(
                "images 'link' needs files, but the images are in other ones or at addresses; give "
                '--images copy (images="copy")'
            )
        if self.images != "none" and self.root is None and self.read is None:
            raise ConfigError(
                f"images {self.images!r} needs the folder that they are in, but root is None; "
                'give --images none (images="none")'
            )

    def data(self, name: str) -> bytes | None:
        """What is written as an image's file; None if it is placed, or left out."""
        return None if self.images == "none" or self.read is None else self.read(name)

    def suffix(self, name: str, data: bytes | None) -> str:
        """The suffix of an image's file: its own, or that of its format."""
        return os.path.splitext(name)[1] or suffix_of(data or b"")

    def put(self, name: str, data: bytes | None, target: Path) -> None:
        """Put an image at a place, unless images are left out; see `place_image`.

        Args:
            data: see `data`.
        """
        if data is not None:
            write_atomically(target, data)
        elif self.images != "none" and self.root is not None:
            place_image(self.root, name, target, link=self.images == "link")


def place_image(
    root: str | os.PathLike[str], name: str, target: Path, *, link: bool = False
) -> None:
    """Put an image at a place; what is there is replaced, and never written into.

    Args:
        root: the folder that names are relative to.
        name: the image's POSIX path.
        link: make a hard link instead of a copy. It stays good wherever the images or the dataset
            are moved.

    Raises:
        ImageError: the image is not there.
        ConfigError: it can't be linked, as the place is on another file system.
        OutputError: the file can't be written.
    """
    source = locate(os.fspath(root), name)
    if not os.path.isfile(source):
        raise ImageError(
            f"{printable(name)}: the image is not in {printable(root)} any more; if the images "
            "were moved, start the run again there with --moved, or give --images none (images="
            '"none") to write labels alone'
        )
    beside = target.with_name(f".{secrets.token_hex(8)}.tmp")
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if link:
                _link(source, beside, target)
            else:
                shutil.copyfile(source, beside)
            os.replace(beside, target)
        finally:
            # renaming a link to another one of the same file does nothing
            beside.unlink(missing_ok=True)


def _link(source: str, beside: Path, target: Path) -> None:
    try:
        os.link(source, beside)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        raise ConfigError(
            f"{printable(target)}: can't be a hard link to {printable(source)} "
            f'({error.strerror}); give --images copy (images="copy")'
        ) from error
