"""The names of files that are made for each image: its own, without suffix, with another ending."""

import csv
import hashlib
import io
import os
import re
import warnings
from collections.abc import Collection
from pathlib import Path

from clip2sam.data.files import NAME_BYTES, cut_to_bytes, fitting_name, write_atomically
from clip2sam.data.images import printable
from clip2sam.errors import CocoError

LIST_NAME = "renamed.csv"


class FileNames:
    """Gives each image a name of its own, and keeps a list of those that had to be changed.

    A name that is too long for a file system with its ending is cut (see `fitting_name`). Where
    another image has the name already, as x.png has that of x.jpg, "~" and 8 hexadecimal digits of
    the SHA-256 of its whole name are added: the first image in the source's order keeps it.
    """

    def __init__(self, reserved: Collection[str] = (), *, for_lists: bool = False) -> None:
        """`reserved`: names of folders that mean something to the reader; they get a "_".
        `for_lists`: names are to stand on lines of a UTF-8 file, so characters that can't be
        printed, and spaces at either end, become "_"."""
        self._reserved, self._for_lists = reserved, for_lists
        self._taken: set[str] = set()
        self._renamed: list[tuple[str, str]] = []

    def path(self, folder: Path, name: str, ending: str) -> Path:
        """The path of an image's file in a folder; see `stem`."""
        return folder / (self.stem(name, ending) + ending)

    def stem(self, name: str, ending: str, drop: str = "") -> str:
        """What an image's files are called, without ending: a POSIX path. To be called once.

        Args:
            name: POSIX path of the image, with its suffix.
            ending: the longest that the files have.
            drop: left out where the name ends in it, without its suffix.

        Raises:
            CocoError: the name leads out of the output folder.
        """
        if name.startswith("/") or ".." in name.split("/"):
            raise CocoError(
                f"{printable(name)}: expected a path below the dataset's root, so nothing is "
                "written for it; rename the image"
            )
        own = os.path.splitext(name)[0].removesuffix(drop)
        usable = _on_a_line(own) if self._for_lists else own
        above, slash, last = usable.rpartition("/")
        if self._reserved:
            parts = (f"{part}_" if part in self._reserved else part for part in above.split("/"))
            above = "/".join(parts)
        fitted = fitting_name(last, ending).removesuffix(ending)
        if above + slash + fitted in self._taken:
            mark = f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
            fitted = cut_to_bytes(last, NAME_BYTES - len(os.fsencode(mark + ending))) + mark
        stem = above + slash + fitted
        self._taken.add(stem)
        if fitted != last or usable != own:
            self._renamed.append((name, stem))
        return stem

    def write_list(self, folder: Path) -> None:
        """Write the names that had to be changed, if any, into a list, and warn.

        Raises:
            OutputError: the list can't be written.
        """
        if not self._renamed:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([("name", "written_as"), *self._renamed])
        path = folder / LIST_NAME
        write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))
        odd = ", or have characters that break a list" if self._for_lists else ""
        warnings.warn(
            f"{len(self._renamed)} names were changed, as another image has the same without its "
            f"suffix, or they are too long for a file system{odd}: {printable(path)} lists them",
            stacklevel=3,
        )


def _on_a_line(name: str) -> str:
    printed = "".join(c if c.isprintable() else "_" for c in name)
    return re.sub("^ +| +$", lambda spaces: "_" * len(spaces[0]), printed)
