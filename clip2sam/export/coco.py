"""Records as a COCO dataset, one record in memory at a time, also added to a file that is there.

The rows are those of `clip2sam.coco.document`; here they are written as they come.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from clip2sam.coco.document import (
    annotation_row,
    category_rows,
    checked_masks,
    document_head,
    image_row,
)
from clip2sam.data.files import JsonList, as_json, atomic_file
from clip2sam.data.images import printable
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import ImageRecord
from clip2sam.errors import CocoError, ConfigError

_SECTIONS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoExporter:
    """A COCO dataset in one JSON file."""

    polygons: bool = False
    """Write polygons instead of RLE."""
    merge: str | os.PathLike[str] | None = None
    """A COCO file to add to: all its rows stay as they are, in front of the new ones. Images are
    matched by file name and categories by name; new ones get the next ids, and so do annotations.
    The file itself is only read."""

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> None:
        """Write the dataset into the file `output`.

        Raises:
            CocoError: the file to merge with can't be used, or has an image in another size; or a
                record doesn't fit (see `image_row` and `checked_masks`).
            ConfigError: the output is the file to merge with.
            OutputError: the file can't be written.
        """
        old = None if self.merge is None else read_coco(self.merge)
        if self.merge is not None and os.path.realpath(self.merge) == os.path.realpath(output):
            raise ConfigError(
                f"{printable(output)} is the file to merge with, which is never written to; "
                "give another output"
            )
        with atomic_file(output) as file, tempfile.TemporaryFile(dir=output.parent) as aside:
            rows = _Rows(file, aside, classes, self.polygons, old)
            for record in records:
                rows.add(record)
            rows.end()


class _Rows:
    """The rows of a dataset: images go straight into its file, annotations wait in another one."""

    def __init__(
        self,
        file: IO[bytes],
        aside: IO[bytes],
        classes: Sequence[LabelClass],
        polygons: bool,
        old: dict[str, Any] | None,
    ) -> None:
        self._file, self._aside, self._classes, self._polygons = file, aside, classes, polygons
        self._merging = old is not None
        images, annotations, self._categories = (_rows_of(old, section) for section in _SECTIONS)
        head = document_head()
        head |= {key: value for key, value in (old or {}).items() if key not in _SECTIONS}
        file.write(as_json(head).encode()[:-1] + b',"images":[')
        self._images_out = JsonList(file, images)
        self._annotations_out = JsonList(aside, annotations)
        self._old_images = {row["file_name"]: row for row in images}
        self._next_image, self._next_annotation = _next_id(images), _next_id(annotations)
        self._category_ids = self._join_categories()

    def _join_categories(self) -> list[int]:
        """The id of each class; categories that are new follow the old ones."""
        known = {row["name"]: row["id"] for row in self._categories}
        for row in category_rows(self._classes):
            if row["name"] not in known:
                known[row["name"]] = row["id"] = _next_id(self._categories)
                self._categories.append(row)
        return [known[c.name] for c in self._classes]

    def add(self, record: ImageRecord) -> None:
        """Write one image and its annotations."""
        image_id = self._add_image(record)
        for mask in checked_masks(record, self._classes):
            category_id = self._category_ids[mask.number - 1]
            row = annotation_row(mask, category_id, polygons=self._polygons)
            self._annotations_out.add({"id": self._next_annotation, "image_id": image_id, **row})
            self._next_annotation += 1

    def _add_image(self, record: ImageRecord) -> int:
        """Write the image's row unless it is there already; its id in the file."""
        row = image_row(record)
        height, width = row["height"], row["width"]
        there = self._old_images.get(record.file_name)
        if there is not None:
            if (there.get("height"), there.get("width")) != (height, width):
                raise CocoError(
                    f"{record.file_name!r} is {height} x {width} (height x width), but "
                    f"{there.get('height')} x {there.get('width')} in the file to merge with; "
                    "label that file's own images"
                )
            return int(there["id"])
        if self._merging:
            row["id"], self._next_image = self._next_image, self._next_image + 1
        self._images_out.add(row)
        return int(row["id"])

    def end(self) -> None:
        """Join the parts."""
        self._file.write(b'],"annotations":[')
        self._aside.seek(0)
        shutil.copyfileobj(self._aside, self._file, 1 << 20)
        self._file.write(b'],"categories":' + as_json(self._categories).encode() + b"}\n")


def read_coco(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A COCO file to merge with.

    Raises:
        CocoError: it can't be read, or lacks the ids and names that matching needs.
    """
    origin = printable(path)
    try:
        document = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise CocoError(
            f"{origin}: this file can't be read ({error.strerror}); check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CocoError(f"{origin}: expected a COCO file, but it is no JSON ({error})") from error
    if not isinstance(document, dict):
        raise CocoError(
            f"{origin}: expected a COCO dataset (an object), got {type(document).__name__}"
        )
    for section, key, kind in (
        ("images", "file_name", str),
        ("annotations", "id", int),
        ("categories", "name", str),
    ):
        for i, row in enumerate(_rows_of(document, section)):
            if (
                not isinstance(row, dict)
                or type(row.get("id")) is not int
                or not isinstance(row.get(key), kind)
            ):
                raise CocoError(
                    f"{origin}: {section}[{i}]: expected an object with an id and {key}; correct it"
                )
    return document


def _rows_of(document: dict[str, Any] | None, section: str) -> list[Any]:
    rows = (document or {}).get(section, [])
    if not isinstance(rows, list):
        raise CocoError(
            f"{section}: expected a list in the file to merge with, got {type(rows).__name__}; "
            "correct it"
        )
    return list(rows)


def _next_id(rows: list[Any]) -> int:
    return max((row["id"] for row in rows), default=0) + 1
