"""Where the images of a dataset come from: a folder, a list, a COCO file, a glob, some files, or
an object of your own.

An image's name ("key") is a POSIX path relative to the dataset's root, as the file system spells
it; bytes that are not UTF-8 are kept as lone surrogates, which JSON writes as escapes. Names that
lead out of the root are refused: "..", absolute paths and NUL when the source is listed, links
when the image is read.
"""

import csv
import json
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

from clip2sam.data.addresses import is_url
from clip2sam.data.images import SUFFIXES, printable
from clip2sam.data.patterns import is_glob, matches, split_glob, walk
from clip2sam.errors import ConfigError, ImageError

PathLike = str | os.PathLike[str]

LIST_SUFFIXES = (".csv", ".txt")
CSV_COLUMNS = ("file_name", "path", "image", "url", "URL")
"""The header of a CSV list's column of names: the first of these that is there; without a header,
the first column is taken."""


@runtime_checkable
class Source(Protocol):
    """The images of a dataset. An object of your own works too; the kinds that clip2sam has are in
    `clip2sam.data.opening`."""

    @property
    def origin(self) -> str:
        """What identifies the source, for messages and to tell it from another."""

    @property
    def keys(self) -> Sequence[str]:
        """The images' names: POSIX paths, each once. Their order is that of all outputs."""

    @property
    def ids(self) -> Sequence[int]:
        """The images' COCO ids, from 1, each once; as many as `keys`, in the same order."""

    def read(self, key: str) -> str | bytes:
        """The path of the image's file, or its encoded bytes.

        Raises:
            ImageError: there is no such image, or it can't be read.
        """


@runtime_checkable
class InFiles(Protocol):
    """What is known of a source whose images are files, or in files, below a root."""

    @property
    def origin(self) -> str:
        """What was given: see `FileSource.origin`."""

    @property
    def root(self) -> str:
        """Absolute path of a folder, or an address."""

    @property
    def files(self) -> Sequence[str]:
        """The files that are read, as POSIX paths below the root."""


@dataclass(frozen=True)
class FileSource:
    """Image files below a root folder."""

    origin: str
    """Absolute path of what was given; several are joined by NUL, which no path contains."""
    root: str
    """Absolute path of the folder that all keys are relative to."""
    keys: tuple[str, ...]
    """Sorted by their bytes, each once."""
    ids: tuple[int, ...]
    """The COCO file's own image ids; else 1, 2, 3, ... in the order of the keys."""

    @property
    def files(self) -> tuple[str, ...]:
        """Each image is a file."""
        return self.keys

    def read(self, key: str) -> str:
        """The absolute path of an image.

        Raises:
            ImageError: a link, wherever it stands in the path, leads out of the root.
        """
        return locate(self.root, key)


def as_several(given: PathLike | Sequence[PathLike]) -> list[PathLike]:
    """One path or several, as a list."""
    return [given] if isinstance(given, str | os.PathLike) else list(given)


def find_source(sources: PathLike | Sequence[PathLike], root: PathLike | None = None) -> FileSource:
    """List the images of a source.

    Args:
        sources: a folder (all levels; links to folders are not followed), a .txt list (a name on
            each line), a .csv list, a COCO .json file, a glob such as "images/**/*.jpg" (`**` is
            any number of folders, hidden ones too, without following links), or an image; or
            several folders, globs and images.
        root: the folder that the names are relative to. By default a folder itself, the folder in
            front of a glob's first wildcard, and the folder in which a file lies; of several, the
            deepest folder that holds them all.

    Raises:
        ImageError: a path doesn't exist, no image is found, a list can't be read, or a name leads
            out of the root.
    """
    if not isinstance(sources, str | os.PathLike):
        several = list(dict.fromkeys(os.path.abspath(path) for path in sources))
        if len(several) != 1:
            return _several(several, root)
        sources = several[0]
    path = os.path.abspath(sources)
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".json" and os.path.isfile(path):
        pairs = _coco_images(Path(path))
        top = checked_root(os.path.dirname(path) if root is None else root)
        return _source(path, top, [key for key, _ in pairs], dict(pairs))
    if suffix in LIST_SUFFIXES and os.path.isfile(path):
        top = checked_root(os.path.dirname(path) if root is None else root)
        return _source(path, top, _listed(Path(path)))
    return _several([path], root)


def check_found(source: PathLike, root: PathLike | None = None) -> None:
    """Find out in front of a long job whether there is an image, without listing them all.

    Args:
        source, root: as for `find_source`.

    Raises:
        ImageError: as `find_source`.
    """
    path = os.path.abspath(source)
    if path.lower().endswith((".json", *LIST_SUFFIXES)) and os.path.isfile(path):
        find_source(path, root)
        return
    if root is not None:
        checked_root(root)
    _, files = _files(path, alone=True)
    if not any(True for _ in files):
        raise none_found(path)


def _several(paths: Sequence[str], root: PathLike | None) -> FileSource:
    """Folders, globs and images, each given as an absolute path."""
    if not paths:
        raise ImageError("no image found in an empty list of paths; give at least one")
    tops, found = zip(*(_files(path, alone=len(paths) == 1) for path in paths), strict=True)
    top = checked_root(os.path.commonpath(tops) if root is None else root)
    return _source("\0".join(paths), top, (below(top, file) for some in found for file in some))


def _files(path: str, *, alone: bool) -> tuple[str, Iterable[str]]:
    """A folder, glob or image: the folder that holds it all, and the paths of its image files."""
    if is_glob(path):
        base, pattern = split_glob(path)
        return base, matches(base, pattern)
    if os.path.isdir(path):
        return path, (file for file in walk(path) if file.lower().endswith(SUFFIXES))
    if not os.path.lexists(path):
        raise ImageError(
            f"{printable(path)}: no such file or folder; check the path, or quote a glob"
        )
    if not alone and path.lower().endswith((".json", *LIST_SUFFIXES)):
        raise ImageError(
            f"{printable(path)}: expected folders, globs and images; give a list or COCO file alone"
        )
    return os.path.dirname(path), [path]


def below(root: str, path: str) -> str:
    """An absolute path, or an address, as a key.

    Raises:
        ImageError: it lies outside of the root.
    """
    top = root.rstrip(os.sep) + os.sep
    if not path.startswith(top):
        raise ImageError(
            f"{printable(path)}: this image lies outside of the root {printable(root)}; "
            "give another --root"
        )
    return path[len(top) :].replace(os.sep, "/")


def checked_key(name: str, place: str) -> str:
    """A name as a key.

    Raises:
        ImageError: it is empty, absolute, leads upwards, or can't be a file's name; the message
            names `place`.
    """
    try:  # bytes that are not UTF-8 may be written as escapes, and so may those that are
        name = os.fsdecode(os.fsencode(name))
    except UnicodeEncodeError as error:
        raise ImageError(
            f"{place}: expected a name that a file can have, got {name!r} with half a character; "
            "write it as UTF-8"
        ) from error
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name or name.startswith("/") or ".." in parts:
        raise ImageError(
            f"{place}: expected the path of an image below the root, with no '..' and no '/' in "
            f"front, got {printable(name)!r}; correct it, or give another --root"
        )
    return "/".join(parts)


def locate(root: str, key: str) -> str:
    """The absolute path of an image, with all links resolved.

    Raises:
        ImageError: a link, wherever it stands in the path, leads out of the root.
    """
    path = os.path.realpath(os.path.join(root, key))
    if not _lies_in(path, os.path.realpath(root)):
        raise ImageError(
            f"{printable(key)}: this link leads out of {printable(root)}; copy the image there, or "
            "label the folder that it is in"
        )
    return path


_DRAWING = re.compile(r"\.\d{2,}-[^./]+\.png$")
"""How names of drawings end, see `clip2sam.visualize.overlays`."""


def without_drawings(source: FileSource) -> tuple[FileSource, dict[str, int]]:
    """A source without what clip2sam has drawn into folders that are searched: images with names of
    drawings, in `overlays/` beside an `annotations.json` of ours, and the `presence.png` of a run.
    Images that were given one by one stay.

    Returns:
        The source, with ids counted anew; and how many images each folder of drawings has.

    Raises:
        ImageError: no other image is left.
    """
    given = source.origin.split("\0")
    if any(path.lower().endswith((".json", *LIST_SUFFIXES)) for path in given):
        return source, {}
    drawn: dict[str, int] = {}
    ours: dict[str, bool] = {}
    kept = []
    for key in source.keys:
        path = os.path.join(source.root, key)
        folder = _drawings_folder(path, ours) if _DRAWING.search(key) else _run_folder(path)
        if folder is None or path in given:
            kept.append(key)
        else:
            drawn[folder] = drawn.get(folder, 0) + 1
    if not drawn:
        return source, {}
    if not kept:
        raise ImageError(
            f"no image found in {', '.join(map(printable, given[:3]))}: all that is there was "
            "drawn by clip2sam; give a folder of images"
        )
    return _source(source.origin, source.root, kept), drawn


def _drawings_folder(path: str, known: dict[str, bool]) -> str | None:
    """The folder of our drawings that a path lies in, if any.

    Args:
        known: folders of that name that were looked at, and whether they are ours.
    """
    folder = os.path.dirname(path)
    while folder != os.path.dirname(folder):
        if os.path.basename(folder) == "overlays":
            if folder not in known:
                known[folder] = _is_ours(os.path.join(os.path.dirname(folder), "annotations.json"))
            if known[folder]:
                return folder
        folder = os.path.dirname(folder)
    return None


def _run_folder(path: str) -> str | None:
    """The folder of the run that a path is the histogram of, if it is one."""
    folder, name = os.path.split(path)
    files = ("manifest.json", "journal-0001.jsonl")
    beside = name == "presence.png" and all(os.path.exists(f"{folder}/{file}") for file in files)
    return folder if beside else None


def _is_ours(path: str) -> bool:
    """Whether a COCO file says in its first lines that it is ours."""
    try:
        with open(path, "rb") as file:
            return b"Made with clip2sam" in file.read(4096)
    except OSError:
        return False


def check_output(source: Source, output: PathLike, *, below: bool = False) -> None:
    """Refuse an output that would be written where a source is read. Nothing is ever written there.

    Links are resolved first. Refused are, whatever the command:

    - an output in (or equal to) a folder that was given, or the folder in front of a glob's first
      wildcard: these are searched, so a later start would take outputs for inputs;
    - an output that is an image, tar, list or COCO file of the source, or the very folder in which
      one of them lies. Other folders below the root are free: a dataset's top folder may hold
      `images/` and `run/`.

    Of an object of the user's own nothing is known, and nothing is refused; nor of addresses.

    Args:
        below: a folder below a folder that is searched may be the output, if no image of the source
            lies in it: for jobs that leave their own outputs out, see `without_drawings`.

    Raises:
        ConfigError: as said.
    """
    if not isinstance(source, InFiles) or "://" in source.root:
        return
    target = os.path.realpath(output)
    same_name = [f for f in source.files if os.path.basename(f) == os.path.basename(target)]
    folders = {os.path.dirname(file) for file in source.files}
    read = [os.path.join(source.root, key) for key in (*sorted(folders), *same_name)]
    for origin in source.origin.split("\0"):
        searched = split_glob(origin)[0] if is_glob(origin) else origin
        if not os.path.isdir(searched):
            read += [origin, os.path.dirname(origin)]
            continue
        folder = os.path.realpath(searched)
        free = below and target != folder and not _has_files(source, target)
        if _lies_in(target, folder) and not free:
            raise _read_here(output, searched)
    for path in read:
        if target == os.path.realpath(path):
            raise _read_here(output, path)


def _has_files(source: InFiles, folder: str) -> bool:
    paths = (os.path.realpath(os.path.join(source.root, file)) for file in source.files)
    return any(_lies_in(path, folder) for path in paths)


def _read_here(output: PathLike, path: str) -> ConfigError:
    return ConfigError(
        f"the output {printable(output)} lies where images are read ({printable(path)}), which is "
        "never written to; give one elsewhere"
    )


def _lies_in(path: str, folder: str) -> bool:
    return os.path.commonpath([folder, path]) == folder


def checked_root(folder: PathLike) -> str:
    """The absolute path of a root.

    Raises:
        ImageError: there is no such folder.
    """
    top = os.path.abspath(folder)
    if not os.path.isdir(top):
        raise ImageError(
            f"{printable(top)}: expected the folder that the names are relative to; check the root"
        )
    return top


def _source(
    origin: str, root: str, keys: Iterable[str], ids: dict[str, int] | None = None
) -> FileSource:
    chosen = tuple(sorted(set(keys), key=os.fsencode))
    if not chosen:
        raise none_found(origin)
    numbers = range(1, len(chosen) + 1) if ids is None else [ids[key] for key in chosen]
    return FileSource(origin, root, chosen, tuple(numbers))


def none_found(origin: str) -> ImageError:
    """The error of a source without an image."""
    where = ", ".join(map(printable, origin.split("\0")[:3]))
    return ImageError(
        f"no image found in {where}: looked for names ending in {', '.join(SUFFIXES)}, or for "
        "the names in a list"
    )


def _listed(path: Path) -> list[str]:
    """The names in a .txt or .csv list."""
    origin = printable(path)
    names = []
    for line, name in list_entries(path):
        if is_url(name):
            raise ImageError(
                f"{origin}, line {line}: expected a path as in the first line, got an address; put "
                "the addresses into a list of their own"
            )
        names.append(checked_key(name, f"{origin}, line {line}"))
    return names


def list_entries(path: PathLike) -> Iterator[tuple[int, str]]:
    """Line and text of each entry of a .txt or .csv list, unchecked, in its order; it is not held
    in memory. Empty lines are skipped.

    Raises:
        ImageError: it can't be read, or is no CSV.
    """
    origin, is_csv = printable(path), os.fspath(path).lower().endswith(".csv")
    ends = "" if is_csv else "\n"
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline=ends) as file:
            if is_csv:
                yield from _csv_entries(csv.reader(file), origin)
                return
            for i, line in enumerate(file, 1):
                if text := line.rstrip("\n").rstrip("\r"):
                    yield i, text
    except OSError as error:
        raise ImageError(
            f"{origin}: this list can't be read ({error.strerror}); check it"
        ) from error


def _csv_entries(reader: Any, origin: str) -> Iterator[tuple[int, str]]:
    column: int | None = None
    try:
        for row in filter(None, reader):
            if column is None:
                header = (row.index(name) for name in CSV_COLUMNS if name in row)
                column = next(header, None)
                if column is not None:
                    continue
                column = 0
            yield reader.line_num, row[column] if len(row) > column else ""
    except csv.Error as error:
        raise ImageError(
            f"{origin}, line {reader.line_num}: expected CSV, but {error}; save it anew"
        ) from error


def _coco_images(path: Path) -> list[tuple[str, int]]:
    """Name and id of every image of a COCO file."""
    origin = printable(path)
    try:
        document = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ImageError(
            f"{origin}: expected a COCO file, but it is no JSON ({error}); get a whole copy"
        ) from error
    images: Any = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise ImageError(
            f"{origin}: expected a COCO file with a list of images, got none; check the file"
        )
    found: dict[str, int] = {}
    for i, image in enumerate(images):
        name, number = (
            (image.get("file_name"), image.get("id")) if isinstance(image, dict) else (None, None)
        )
        place = f"{origin}, images[{i}]"
        # beyond 2**53, readers that use floats confuse ids
        if not isinstance(name, str) or type(number) is not int or not 1 <= number < 2**53:
            raise ImageError(
                f"{place}: expected a file_name and an id from 1 to 2**53 - 1, got "
                f"{reprlib.repr(name)} and {reprlib.repr(number)}; correct it"
            )
        if found.setdefault(checked_key(name, place), number) != number:
            raise ImageError(
                f"{place}: {printable(name)!r} is there twice, under two ids; remove one of them"
            )
    if len(set(found.values())) != len(found):
        raise ImageError(
            f"{origin}: expected an id of its own for each image, but some are given twice; "
            "number them anew"
        )
    return list(found.items())


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"{printable(path)}: this list can't be read ({error.strerror}); check it"
        ) from error
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
