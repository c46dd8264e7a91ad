"""The names of files that are made for each image: they get an ending, and may be too long then."""

import csv
import io
import warnings
from pathlib import Path

from clip2sam.data.files import fitting_name, write_atomically
from clip2sam.data.images import printable

LIST_NAME = "shortened_names.csv"


class FileNames:
    """Gives names, and keeps a list of those that it had to shorten."""

    def __init__(self) -> None:
        self._shortened: list[tuple[str, str]] = []

    def path(self, folder: Path, name: str, ending: str) -> Path:
        """The path of the file `name` + `ending` in a folder; see `fitting_name`.

        Args:
            name: POSIX path of an image, with or without its suffix.
        """
        above, slash, last = name.rpartition("/")
        fitted = fitting_name(last, ending)
        if fitted != last + ending:
            self._shortened.append((name + ending, above + slash + fitted))
        return folder / above / fitted

    def write_list(self, folder: Path) -> None:
        """Write the names that had to be shortened, if any, into a list, and warn.

        Raises:
            OutputError: the list can't be written.
        """
        if not self._shortened:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([("name", "written_as"), *self._shortened])
        path = folder / LIST_NAME
        write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))
        warnings.warn(
            f"{len(self._shortened)} names are too long for a file system with their ending, and "
            f"were shortened: {printable(path)} lists them",
            stacklevel=3,
        )
