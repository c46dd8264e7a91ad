"""Images in Parquet files: img2dataset's, Hugging Face's. Needs pyarrow, an extra.

A listing reads footers and the column of names. Images are read in batches, as the file has them: a
row group may have gigabytes, so it is never held as a whole.
"""

import json
import os
import re
import threading
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any

from clip2sam.data.containers import find_containers, open_natively
from clip2sam.data.images import printable
from clip2sam.data.remote import MAX_BYTES
from clip2sam.data.sources import PathLike, checked_key
from clip2sam.errors import ConfigError, ImageError, one_line

PARQUET_SUFFIX = ".parquet"

FORMAT_COLUMNS = ("jpg", "jpeg", "png", "webp")
"""Columns of images that are named by their format, as img2dataset does: also the suffix of names
that have none."""

IMAGE_COLUMNS = ("image", *FORMAT_COLUMNS, "img")
"""Names of a column of images, the preferred ones in front."""

NAME_COLUMN = "key"
"""img2dataset's column of names, for image columns that bring none."""

BATCH_BYTES = 8 * 2**20
"""Of images that are read at once, or one image that is larger."""

MOST_ROWS = 1024
"""That are read at once."""

BATCHES_HELD = 2
"""Of each row group that is read: readers are at most some images apart."""

GROUPS_READ = 2
"""Row groups that are read at a time: readers may be on both sides of a border. Each takes twice
the bytes of a page, which is what the writer made it: 1024 rows with pyarrow's defaults."""

FILES_AT_HAND = 4
"""So many files have their rows looked up by a dict."""

BUFFER = 1 << 20
"""Bytes of a file that are read at once; without it, a whole column of a row group is."""


@dataclass(frozen=True)
class ParquetSource:
    """Images in Parquet files. Readers may call it from several threads, and are quick as long as
    they go forward."""

    origin: str
    """As of `FileSource`; addresses as they were given."""
    root: str
    """Absolute path of the folder, or address, that all keys are relative to."""
    keys: tuple[str, ...]
    """The file below the root, "/", the row's name. The files are sorted by the bytes of their
    names, the rows have the file's order. A row's name is the image's path (Hugging Face), or its
    key with the column's name as suffix (img2dataset); where there is none, or none that is good
    and the only one in the file, it is the row's number: "000000123"."""
    ids: tuple[int, ...]
    """1, 2, 3, ... in the order of the keys."""
    _reader: "_Reader" = field(default_factory=lambda: _Reader(), compare=False, repr=False)

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The Parquet files, relative to the root."""
        return tuple(dict.fromkeys(map(file_of, self.keys)))

    @cached_property
    def units(self) -> tuple[int, ...]:
        """The numbers of consecutive images that are in one row group. Footers and names are read
        for it.

        Raises:
            ImageError: as `read`.
        """
        groups = (self._reader.group_of(self.root, file_of(key), key) for key in self.keys)
        return tuple(sum(1 for _ in images) for _, images in groupby(groups))

    def read(self, key: str) -> bytes:
        """An image's encoded bytes.

        Raises:
            ImageError: the row has no image, or one of more than MAX_BYTES; the file is gone,
                damaged or another one than before.
            ConfigError: pyarrow is missing.
        """
        data = self._reader.read(self.root, file_of(key), key)
        if data is None:
            raise ImageError(
                f"{printable(key)}: this row has no image (null, as img2dataset writes where a "
                "download failed); leave the row out, or download the image again"
            )
        if len(data) > MAX_BYTES:
            raise ImageError(
                f"{printable(key)}: expected at most {MAX_BYTES} bytes, got {len(data)}; make the "
                "image smaller"
            )
        return data


def find_parquet(
    given: PathLike | Sequence[PathLike], root: PathLike | None = None
) -> ParquetSource:
    """List the images in Parquet files.

    Args:
        given: see `find_containers`. In folders, files without a column of images are passed over.
        root: as for `find_source`; of addresses an address.

    Raises:
        ImageError: see `find_containers`; a file can't be read; it has no column of images, or
            several and none of IMAGE_COLUMNS; or no row is found.
        ConfigError: pyarrow is missing.
    """
    found, reader = find_containers(given, root, (PARQUET_SUFFIX,)), _Reader()
    keys: list[str] = []
    without = None
    for name in found.names:
        try:
            keys += reader.keys(found.root, name)
        except _NoColumnError as error:
            if not _is_folder(given):
                raise
            without = without or error
    if not keys:
        raise without or _no_rows(found.names)
    ids = tuple(range(1, len(keys) + 1))
    return ParquetSource(found.origin, found.root, tuple(keys), ids, reader)


def check_parquet(given: PathLike | Sequence[PathLike], root: PathLike | None = None) -> None:
    """Find out whether there is an image, without listing them all.

    Raises:
        ImageError, ConfigError: as `find_parquet`, for files up to the first that has a row.
    """
    found = find_containers(given, root, (PARQUET_SUFFIX,))
    without = None
    for name in found.names:
        try:
            with _opened(found.root, name) as file:
                _image_column(file, name)
                if file.metadata.num_rows:
                    return
        except _NoColumnError as error:
            if not _is_folder(given):
                raise
            without = without or error
    raise without or _no_rows(found.names)


def _is_folder(given: PathLike | Sequence[PathLike]) -> bool:
    return isinstance(given, str | os.PathLike) and os.path.isdir(given)


def _no_rows(names: Sequence[str]) -> ImageError:
    return ImageError(
        f"no image found in {len(names)} Parquet files, {printable(names[0])} among them: they "
        "have no rows"
    )


def file_of(key: str) -> str:
    """The Parquet file that a key is in, relative to the root: up to the last ".parquet" that is
    followed by a slash. Folders may be named so as well, as Spark does; rows are not.

    Raises:
        ImageError: it is in none.
    """
    found = re.match(r".*\.parquet(?=/)", key, re.IGNORECASE | re.ASCII | re.DOTALL)
    if found is None:
        raise ImageError(
            f"{printable(key)}: expected a Parquet file and a row's name; correct the name"
        )
    return found[0]


class _NoColumnError(ImageError):
    """A Parquet file without a column of images, or with several."""


@dataclass(frozen=True)
class _Rows:
    """What is known of a file without its images."""

    column: str
    """The path of the images' bytes in the schema."""
    metadata: Any
    """The footer, by which another file at its place is noticed."""
    by_name: dict[str, int]
    """The rows' numbers, in their order."""

    @cached_property
    def firsts(self) -> list[int]:
        """The number of the first row of each row group, and that behind the last one."""
        groups = range(self.metadata.num_row_groups)
        counts = (self.metadata.row_group(group).num_rows for group in groups)
        return list(accumulate(counts, initial=0))


class _Reader:
    """Reads rows, for one thread at a time."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, _Rows] = OrderedDict()
        self._groups: list[_Group] = []
        """Those that are being read, the last used at the end."""
        self._broken: dict[tuple[str, int], tuple[int, str]] = {}
        """By file and row group: from which row on it can't be read, and why."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["_Reader"], tuple[()]]:
        return _Reader, ()  # in another process everything is opened anew

    def keys(self, root: str, name: str) -> list[str]:
        """The keys of a file's rows."""
        with self._lock:
            return [f"{name}/{row}" for row in self._rows(root, name).by_name]

    def group_of(self, root: str, name: str, key: str) -> tuple[str, int]:
        """The file and the row group that an image is in."""
        with self._lock:
            rows = self._rows(root, name)
            return name, bisect_right(rows.firsts, _number(rows, name, key)) - 1

    def read(self, root: str, name: str, key: str) -> bytes | None:
        """The bytes of an image; None where there is none."""
        with self._lock:
            rows = self._rows(root, name)
            row = _number(rows, name, key)
            number = bisect_right(rows.firsts, row) - 1
            first, why = self._broken.get((name, number), (row + 1, ""))
            if row < first:
                group = self._group(root, name, number, row)
                try:
                    return group.read(row)
                except _BrokenError as error:
                    self._broken[name, number] = error.row, why = error.row, str(error)
                    self._let_go(group)
                except ImageError:  # of an address: Arrow would not read on behind it
                    self._let_go(group)
                    raise
            raise ImageError(
                f"{printable(key)}: this row can't be read ({why}); get a whole copy of the file"
            )

    def _let_go(self, group: "_Group") -> None:
        self._groups.remove(group)
        group.close()

    def _rows(self, root: str, name: str) -> _Rows:
        if name not in self._files:
            with _opened(root, name) as file:
                bytes_path, names_path = _image_column(file, name)
                names = _row_names(file, names_path, bytes_path)
                by_name = {row: number for number, row in enumerate(names)}
                self._files[name] = _Rows(bytes_path, file.metadata, by_name)
            while len(self._files) > FILES_AT_HAND:
                self._files.popitem(last=False)
        self._files.move_to_end(name)
        return self._files[name]

    def _group(self, root: str, name: str, number: int, row: int) -> "_Group":
        """A row group that is being read and has not passed a row: the nearest one, else anew."""
        there = [g for g in self._groups if (g.name, g.number) == (name, number) and g.has(row)]
        if there:
            group = max(there, key=lambda one: one.first)
            self._groups.remove(group)
        else:
            group = _Group(root, name, number, self._rows(root, name))
        self._groups.append(group)
        while len(self._groups) > GROUPS_READ:
            self._groups.pop(0).close()
        return group


def _number(rows: _Rows, name: str, key: str) -> int:
    number = rows.by_name.get(key[len(name) + 1 :])
    if number is None:
        raise ImageError(
            f"{printable(key)}: no longer in its Parquet file, where it was when it was listed; "
            "put it back, then use --retry-failed"
        )
    return number


class _BrokenError(Exception):
    """A row group can't be read from a row on."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(why)
        self.row = row


class _Group:
    """A row group that is read from its first row to its last, with the last batches held."""

    def __init__(self, root: str, name: str, number: int, rows: _Rows) -> None:
        self.name, self.number = name, number
        self.first = self._next = rows.firsts[number]
        """The first row that is held; the one behind the last."""
        self._held: list[Any] = []
        self._file = _open(root, name)
        if not self._file.metadata.equals(rows.metadata):
            self.close()
            raise ImageError(
                f"{printable(name)}: this Parquet file is another one than when it was listed; "
                "start again, with --retry-failed"
            )
        self._batches = self._file.iter_batches(
            row_groups=[number],
            columns=[rows.column],
            batch_size=_batch_rows(rows, number),
            use_threads=False,
        )

    def has(self, row: int) -> bool:
        """Whether a row is held or comes later."""
        return row >= self.first

    def read(self, row: int) -> bytes | None:
        """The bytes of an image.

        Raises:
            _BrokenError: the file is damaged in front of it or there.
        """
        while row >= self._next:
            self._read_on()
        first = self.first
        for column in self._held:
            if row < first + len(column):
                data: bytes | None = column[row - first].as_py()
                return data
            first += len(column)
        raise AssertionError("the row is held")

    def _read_on(self) -> None:
        if len(self._held) == BATCHES_HELD:
            self.first += len(self._held.pop(0))
        try:
            column = _leaf(next(self._batches).column(0))
        except ImageError:  # of an address: another try may be luckier
            raise
        except Exception as error:  # Arrow's, the system's, or StopIteration
            raise _BrokenError(self._next, one_line(error)) from error
        self._held.append(column)
        self._next += len(column)

    def close(self) -> None:
        """Let go of the file."""
        self._held.clear()
        self._file.close(force=True)


def _batch_rows(rows: _Rows, number: int) -> int:
    """How many rows of a row group are about BATCH_BYTES."""
    group = rows.metadata.row_group(number)
    columns = map(group.column, range(group.num_columns))
    size = next(c.total_uncompressed_size for c in columns if c.path_in_schema == rows.column)
    return max(1, min(MOST_ROWS, BATCH_BYTES * group.num_rows // max(size, 1)))


def _open(root: str, name: str) -> Any:
    """A `pyarrow.parquet.ParquetFile`."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ConfigError(
            f"{printable(name)}: Parquet files need pyarrow, which is not installed; pip install "
            '"clip2sam[parquet]"'
        ) from error
    file = open_natively(root, name)
    try:
        return ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, ImageError):  # of an address
            raise
        raise ImageError(
            f"{printable(name)}: expected a Parquet file, but it can't be read "
            f"({one_line(error)}); get a whole copy of it"
        ) from error


@contextmanager
def _opened(root: str, name: str) -> Iterator[Any]:
    file = _open(root, name)
    try:
        yield file
    finally:
        file.close(force=True)


def _image_column(file: Any, name: str) -> tuple[str, str | None]:
    """The paths in the schema of the images' bytes and of their names.

    Raises:
        _NoColumnError: there is no column of images, or several, none of IMAGE_COLUMNS.
    """
    from pyarrow import types

    columns = {f.name: f.type for f in file.schema_arrow}
    structs = {
        c for c, t in columns.items() if types.is_struct(t) and _is_bytes(_inner(t, "bytes"))
    }
    found = [c for c, t in columns.items() if c in structs or _is_bytes(t)]
    found = [c for c in found if c in _marked(file.schema_arrow)] or found
    chosen = next((c for c in IMAGE_COLUMNS if c in found), found[0] if len(found) == 1 else None)
    if chosen is None:
        listed = ", ".join(map(printable, found or columns))
        what = f"of {len(found)} such columns none is named so" if found else "the columns are"
        raise _NoColumnError(
            f"{printable(name)}: expected a column of images (bytes, or {{bytes, path}}), the only "
            f"one or one named {', '.join(IMAGE_COLUMNS)}, but {what}: {listed}; rename the one "
            "that is meant"
        )
    if chosen in structs:
        has_path = _is_text(_inner(columns[chosen], "path"))
        return f"{chosen}.bytes", f"{chosen}.path" if has_path else None
    return chosen, NAME_COLUMN if _is_text(columns.get(NAME_COLUMN)) else None


def _inner(struct: Any, name: str) -> Any:
    index = struct.get_field_index(name)
    return None if index < 0 else struct.field(index).type


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return kind is not None and (types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return kind is not None and (types.is_string(kind) or types.is_large_string(kind))


def _marked(schema: Any) -> set[str]:
    """The columns that Hugging Face's own metadata calls images."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name for name, feature in features.items() if feature["_type"] == "Image"}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return set()


def _row_names(file: Any, names_path: str | None, bytes_path: str) -> list[str]:
    """A name for each row, different ones."""
    given: list[str | None] = [None] * file.metadata.num_rows
    if names_path is not None:
        given = [_good_name(name, bytes_path) for name in _texts(file, names_path)]
    counts = Counter(given)
    return [
        name if name is not None and counts[name] == 1 else f"{row:09d}"
        for row, name in enumerate(given)
    ]


def _texts(file: Any, path: str) -> Iterator[str | None]:
    for batch in file.iter_batches(columns=[path], use_threads=False):
        yield from _leaf(batch.column(0)).to_pylist()


def _leaf(column: Any) -> Any:
    """The only field that was read of a column."""
    while hasattr(column, "field"):
        column = column.field(0)
    return column


def _good_name(name: str | None, bytes_path: str) -> str | None:
    """A row's name for keys; None if it is no good, or could be taken for a number or a file."""
    if name is None:
        return None
    if bytes_path in FORMAT_COLUMNS and not name.lower().endswith(f".{bytes_path}"):
        name = f"{name}.{bytes_path}"
    try:
        name = checked_key(name, "")
    except ImageError:
        return None
    odd = r"\d+|.*\.parquet/.*|.*\\.*"
    return None if re.fullmatch(odd, name, re.IGNORECASE | re.ASCII | re.DOTALL) else name
