"""What is to be labelled: a folder, a list, a COCO file or a glob becomes a sorted list of names below one root.

A name ("key") is a POSIX path relative to the root, as the file system spells it; bytes that are not UTF-8 are kept
as lone surrogates, which JSON writes as escapes. Names that lead out of the root are refused: .., absolute ones and
NUL here, links when the picture is opened (`locate`).
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clip2sam.data.images import SUFFIXES, printable
from clip2sam.errors import ImageError

LIST_SUFFIXES = (".csv", ".txt")
CSV_COLUMNS = ("file_name", "path", "image")
"""The header of a CSV list's column of names, the first of these that is there; without a header, the first column."""


@dataclass(frozen=True)
class Source:
    """The pictures of a run."""

    origin: str
    """Absolute path of what was given, for messages and to tell a run's own source from another."""
    root: str
    """Absolute path of the folder that all keys are relative to."""
    keys: tuple[str, ...]
    """Sorted by their bytes, each once."""
    ids: tuple[int, ...] | None = None
    """The COCO file's own image ids; None: 1, 2, 3, ... in the order of the keys."""

    def image_id(self, picture: int) -> int:
        """The COCO id of the picture at this place in `keys`."""
        return picture + 1 if self.ids is None else self.ids[picture]


def find_source(
    source: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
) -> Source:
    """List the pictures of a source.

    Args:
        source: a folder (all levels; links to folders are not followed), a .txt list (a name a line), a .csv list, a
            COCO .json file, a glob such as "images/**/*.jpg" (** is any number of folders), or one picture.
        root: the folder that a list's or COCO file's names are relative to; by default the one it lies in.

    Raises:
        ImageError: nothing is there, no picture is found, or the list can't be read or names one that leads out of the
            root.
    """
    given = os.fspath(source)
    path = Path(os.path.abspath(given))
    if not os.path.lexists(path) and re.search(r"[*?\[]", given):
        base, pattern = _split_glob(os.path.abspath(given))
        return _source(path, root, base, (k for k in _walk(base) if pattern.fullmatch(k)))
    if path.is_dir():
        return _source(path, root, path, (k for k in _walk(path) if k.lower().endswith(SUFFIXES)))
    if not path.is_file():
        raise ImageError(
            f"{printable(given)}: no such file or folder; check the path, or quote a glob"
        )
    suffix = path.suffix.lower()
    if suffix == ".json":
        pairs = _coco_images(path)
        return _source(path, root, path.parent, [key for key, _ in pairs], dict(pairs))
    if suffix in LIST_SUFFIXES:
        return _source(path, root, path.parent, _listed(path))
    return _source(path, root, path.parent, [path.name])


def checked_key(name: str, place: str) -> str:
    """A name as a key, or an `ImageError` naming its place if it is empty, absolute, or leads upwards."""
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name or name.startswith("/") or ".." in parts:
        raise ImageError(
            f"{place}: expected the path of a picture below the root, with no '..' and no '/' in front, "
            f"got {printable(name)!r}; correct it, or give another --root"
        )
    return "/".join(parts)


def locate(root: str, key: str) -> str:
    """The path of a picture. Raises `ImageError` if a link leads out of the root, wherever it stands in the path."""
    path = os.path.realpath(os.path.join(root, key))
    top = os.path.realpath(root)
    if os.path.commonpath([top, path]) != top:
        raise ImageError(
            f"{printable(key)}: this link leads out of {printable(root)}; copy the picture there, or label the folder "
            "that it is in"
        )
    return path


def _source(
    origin: Path,
    root: str | os.PathLike[str] | None,
    default_root: Path,
    keys: Iterable[str],
    ids: dict[str, int] | None = None,
) -> Source:
    top = os.path.abspath(default_root if root is None else root)
    if not os.path.isdir(top):
        raise ImageError(
            f"{printable(top)}: expected the folder that the names are relative to; check the root"
        )
    chosen = tuple(sorted(set(keys), key=os.fsencode))
    if not chosen:
        raise ImageError(
            f"no picture found in {printable(origin)}: looked for names ending in {', '.join(SUFFIXES)}, or for the "
            "names in a list"
        )
    return Source(
        os.fspath(origin), top, chosen, None if ids is None else tuple(ids[key] for key in chosen)
    )


def _walk(top: Path) -> Iterator[str]:
    """Keys of all files below a folder; links to folders are not followed, so there is no loop."""

    def unreadable(error: OSError) -> None:
        raise ImageError(
            f"{printable(error.filename)}: this folder can't be read ({error.strerror}); check its permissions"
        ) from error

    for folder, _, names in os.walk(top, onerror=unreadable):
        below = os.path.relpath(folder, top)
        prefix = "" if below == "." else below.replace(os.sep, "/") + "/"
        yield from (prefix + name for name in names)


def _split_glob(given: str) -> tuple[Path, re.Pattern[str]]:
    """The folder in front of the first wildcard, and the rest as a pattern for keys."""
    parts = given.split("/")
    first = next(i for i, part in enumerate(parts) if re.search(r"[*?\[]", part))
    base = Path("/".join(parts[:first]) or "/")
    if not base.is_dir():
        raise ImageError(f"{printable(base)}: no such folder; check the glob")
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^]/]*\]|.", "/".join(parts[first:]), re.DOTALL)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return base, re.compile("".join(meaning.get(t) or _one_of(t) for t in tokens), re.DOTALL)


def _one_of(token: str) -> str:
    """A character as itself, and a bracket such as [a-c] or [!a-c] as a set without the slash."""
    if len(token) == 1:
        return re.escape(token)
    inside = re.sub(r"([\\[\]^])", r"\\\1", token[1:-1])
    return f"(?!/)[^{inside[1:]}]" if inside.startswith("!") else f"(?!/)[{inside}]"


def _listed(path: Path) -> list[str]:
    """The names in a .txt or .csv list. Empty lines count for nothing."""
    origin = printable(path)
    text = _text(path)
    if path.suffix.lower() == ".txt":
        rows = [(i, line) for i, line in enumerate(text.split("\n"), 1)]
        return [
            checked_key(line, f"{origin}, line {i}")
            for i, line in ((i, r.rstrip("\r")) for i, r in rows)
            if line
        ]
    reader = csv.reader(text.splitlines(keepends=True))
    try:
        table = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ImageError(
            f"{origin}, line {reader.line_num}: expected CSV, but {error}; save it anew"
        ) from error
    header = table[0][1] if table else []
    column = next((header.index(name) for name in CSV_COLUMNS if name in header), None)
    names = [(i, row[column or 0] if len(row) > (column or 0) else "") for i, row in table]
    return [
        checked_key(name, f"{origin}, line {i}")
        for i, name in (names if column is None else names[1:])
    ]


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
        if not isinstance(name, str) or type(number) is not int or number < 1:
            raise ImageError(
                f"{place}: expected a file_name and an id from 1, got {name!r} and {number!r}; correct it"
            )
        if found.setdefault(checked_key(name, place), number) != number:
            raise ImageError(
                f"{place}: {printable(name)!r} is there twice, under two ids; remove one of them"
            )
    if len(set(found.values())) != len(found):
        raise ImageError(
            f"{origin}: expected an id of its own for each image, but some are given twice; number anew"
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
