"""Records as a COCO dataset, a few records in memory at a time, also added to a file that is there.

The rows are those of `clip2sam.coco.document`; here they are written as they come.
"""

import os
import posixpath
import shutil
import tempfile
import warnings
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pycocotools import mask as mask_utils

from clip2sam.coco.document import (
    CheckedMask,
    annotation_row,
    category_rows,
    check_id,
    checked_records,
    document_head,
    image_row,
)
from clip2sam.coco.outlines import TOLERANCE, Fit, fit_of, outline_of
from clip2sam.coco.reading import read_json
from clip2sam.coco.report import in_short
from clip2sam.coco.rle import area_and_box, decode_rle, encode_mask
from clip2sam.coco.validate import validate
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
    tolerance: float = TOLERANCE
    """Of polygons, in pixels, see `outline_of`; 0: exact."""
    merge: str | os.PathLike[str] | None = None
    """A COCO file to add to: all its rows stay as they are, in front of the new ones. Images are
    matched by file name (`./a.png` is `a.png`) and categories by name; new ones get the next ids,
    and so do annotations. An annotation whose image, category and mask are there is not added
    again, be it to the pixel, or as the polygons of this tolerance; a `UserWarning` says how many
    these are. The file itself is only read."""
    info: Mapping[str, Any] | None = None
    """What the new file's `info` says; None: that clip2sam made it. A file to merge with keeps its
    own."""

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> Fit | None:
        """Write the dataset into the file `output`.

        Returns:
            How well the polygons fit their masks; None without polygons.

        Raises:
            CocoError: the file to merge with is not valid COCO, or has an image in another size; or
                a record doesn't fit (see `image_row` and `checked_masks`).
            ConfigError: the output is the file to merge with, or the tolerance is below 0.
            OutputError: the file can't be written.
        """
        old = None if self.merge is None else read_coco(self.merge)
        if self.merge is not None and os.path.realpath(self.merge) == os.path.realpath(output):
            raise ConfigError(
                f"{printable(output)} is the file to merge with, which is never written to; "
                "give another output"
            )
        with atomic_file(output) as file, tempfile.TemporaryFile(dir=output.parent) as aside:
            rows = _Rows(file, aside, classes, self, old)
            for record, masks in checked_records(records, classes):
                rows.add(record, masks)
            rows.end()
        if self.merge is not None and rows.there:
            warnings.warn(
                f"{printable(self.merge)} had {rows.there} of {rows.there + rows.added} "
                "annotations already (same image, category and mask); they are not added again",
                stacklevel=2,
            )
        return fit_of(rows.ious)


class _Rows:
    """The rows of a dataset: images go straight into its file, annotations wait in another one."""

    def __init__(
        self,
        file: IO[bytes],
        aside: IO[bytes],
        classes: Sequence[LabelClass],
        exporter: CocoExporter,
        old: dict[str, Any] | None,
    ) -> None:
        self.added = self.there = 0
        """Annotations: new ones, and those that the file to merge with has already."""
        self.ious = array("d")
        """Of new polygons with their masks."""
        self._file, self._aside, self._classes = file, aside, classes
        self._polygons, self._tolerance = exporter.polygons, exporter.tolerance
        self._old = None if old is None else _Old(old, exporter.tolerance)
        images, annotations, categories = ([] if old is None else old[s] for s in _SECTIONS)
        self._categories = list(categories)
        head = document_head(exporter.info)
        head |= {key: value for key, value in (old or {}).items() if key not in _SECTIONS}
        file.write(as_json(head).encode()[:-1] + b',"images":[')
        self._images_out = JsonList(file, images)
        self._annotations_out = JsonList(aside, annotations)
        self._next_image, self._next_annotation = _next_id(images), _next_id(annotations)
        self._category_ids = self._join_categories()

    def _join_categories(self) -> list[int]:
        """The id of each class; categories that are new follow the old ones."""
        known = {row["name"]: row["id"] for row in self._categories}
        for row in category_rows(self._classes):
            if row["name"] not in known:
                known[row["name"]] = row["id"] = _next_id(self._categories)
                check_id(row["id"], f"category {row['name']!r}")
                self._categories.append(row)
        return [known[c.name] for c in self._classes]

    def add(self, record: ImageRecord, masks: Iterable[CheckedMask]) -> None:
        """Write one image and its annotations."""
        row = image_row(record)
        there = None if self._old is None else self._old.image(row)
        if there is None and self._old is not None:
            row["id"], self._next_image = self._next_image, self._next_image + 1
            check_id(row["id"], f"image {record.file_name!r}")
        image_id = row["id"] if there is None else there
        if there is None:
            self._images_out.add(row)
        for mask in masks:
            category_id = self._category_ids[mask.number - 1]
            if self._old is not None and self._old.has(image_id, category_id, mask):
                self.there += 1
                continue
            outline = None
            if self._polygons:
                outline = outline_of(mask.annotation.rle, self._tolerance)
                self.ious.append(outline.iou)
            made = annotation_row(mask, category_id, outline)
            check_id(self._next_annotation, f"annotation of {record.file_name!r}")
            self._annotations_out.add({"id": self._next_annotation, "image_id": image_id, **made})
            self._next_annotation += 1
            self.added += 1

    def end(self) -> None:
        """Join the parts."""
        self._file.write(b'],"annotations":[')
        self._aside.seek(0)
        shutil.copyfileobj(self._aside, self._file, 1 << 20)
        self._file.write(b'],"categories":' + as_json(self._categories).encode() + b"}\n")


class _Old:
    """What a file to merge with has."""

    def __init__(self, document: dict[str, Any], tolerance: float) -> None:
        self._tolerance = tolerance
        self._images = {posixpath.normpath(row["file_name"]): row for row in document["images"]}
        self._annotations: dict[int, list[dict[str, Any]]] = {}
        for row in document["annotations"]:
            self._annotations.setdefault(row["image_id"], []).append(row)

    def image(self, row: dict[str, Any]) -> int | None:
        """The id under which an image is there.

        Raises:
            CocoError: it is there in another size.
        """
        there = self._images.get(posixpath.normpath(row["file_name"]))
        if there is None:
            return None
        if (there["height"], there["width"]) != (row["height"], row["width"]):
            raise CocoError(
                f"{row['file_name']!r} is {row['height']} x {row['width']} (height x width), but "
                f"{there['height']} x {there['width']} in the file to merge with; "
                "label that file's own images"
            )
        return int(there["id"])

    def has(self, image_id: int, category_id: int, mask: CheckedMask) -> bool:
        """Whether an image has an annotation of this category with exactly these pixels, or with
        their polygons."""
        rows = [r for r in self._annotations.get(image_id, ()) if r["category_id"] == category_id]
        near = [
            row["segmentation"]
            for row in rows
            if all(abs(a - b) < 2 for a, b in zip(row["bbox"], mask.box, strict=True))
        ]
        if any(_is_same(segmentation, mask) for segmentation in near):
            return True
        drawn = [row["segmentation"] for row in rows if isinstance(row["segmentation"], list)]
        return bool(drawn) and outline_of(mask.annotation.rle, self._tolerance).polygons in drawn


def _is_same(segmentation: Any, mask: CheckedMask) -> bool:
    """Whether a segmentation, RLE or polygons, has exactly a mask's pixels."""
    rle = mask.annotation.rle
    if isinstance(segmentation, list):
        drawn = mask_utils.merge(mask_utils.frPyObjects(segmentation, *rle["size"]))
        return bool(drawn["counts"].decode("ascii") == rle["counts"])
    if segmentation["counts"] == rle["counts"]:
        return True
    area, _ = area_and_box(segmentation)
    if area != mask.area:
        return False
    # the same runs may be written in several ways: as a list, or with runs of no length
    return encode_mask(decode_rle(segmentation)) == encode_mask(decode_rle(rle))


def read_coco(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A COCO file to merge with.

    Raises:
        CocoError: it can't be read, or is not valid.
    """
    origin = printable(path)
    try:
        document = read_json(path)
    except CocoError as error:
        raise CocoError(f"{origin}: {error}") from error
    if not isinstance(document, dict):
        raise CocoError(
            f"{origin}: expected a COCO dataset (an object), got {type(document).__name__}"
        )
    if violations := validate(document):
        raise CocoError(
            f"{origin} is not valid COCO, so nothing is added to it: {in_short(violations)}; "
            "`clip2sam validate` lists all faults, correct them first"
        )
    return document


def _next_id(rows: list[Any]) -> int:
    return max((row["id"] for row in rows), default=0) + 1
