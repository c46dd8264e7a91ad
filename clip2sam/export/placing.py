"""Images put into a dataset that is written elsewhere. The images themselves are only read."""

import errno
import os
import secrets
import shutil
from pathlib import Path

from clip2sam.data.files import output_errors
from clip2sam.data.images import printable
from clip2sam.data.sources import locate
from clip2sam.errors import ConfigError, ImageError


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
