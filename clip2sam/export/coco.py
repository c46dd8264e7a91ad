"""The journal as COCO files, one picture in memory at a time.

The rows are those of `clip2sam.coco.document.coco_document`; what is new here is that they are written as they come, and that
they can be added to a file that is there already.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from clip2sam.coco.document import area_and_box, rle_to_polygons
from clip2sam.data.files import as_json, atomic_file
from clip2sam.data.images import printable
from clip2sam.data.records import FoundMask, Labelled
from clip2sam.errors import CocoError
from clip2sam.labelling.manifest import RunFolder

Add = Callable[[Labelled, Sequence[FoundMask]], None]
"""What every format gives: takes pictures one by one, in the order of the run's list, without those that failed, each
with the masks that were decided upon."""


@contextmanager
def coco_file(
    run: RunFolder, path: Path, *, polygons: bool = False, merge: dict[str, Any] | None = None
) -> Iterator[Add]:
    """A COCO data set, which appears under `path` when all went well.

    Args:
        polygons: write polygons instead of RLE.
        merge: a document from `read_coco`, whose rows all stay as they are, in front of what is added. Pictures are
            matched by their name, categories by theirs; new ones get the next ids, and so do the annotations.

    Raises:
        CocoError: a picture has another size than in the document to merge with.
        OutputError: the disk refuses.
    """
    with atomic_file(path) as file, tempfile.TemporaryFile(dir=path.parent) as aside:
        rows = _CocoRows(run, file, aside, polygons, merge)
        yield rows.add
        rows.end()


@contextmanager
def results_file(run: RunFolder, path: Path) -> Iterator[Add]:
    """COCO results, which appear under `path` when all went well. Ids are those of `coco_file` without a merge."""
    with atomic_file(path) as file:
        file.write(b"[")
        rows = JsonList(file)

        def add(record: Labelled, masks: Sequence[FoundMask]) -> None:
            image_id = run.source.image_id(record.picture)
            for mask in masks:
                row = {"image_id": image_id, "category_id": mask.label + 1, "score": mask.score}
                rows.add({**row, "segmentation": record.rle(mask)})

        yield add
        file.write(b"]\n")


class _CocoRows:
    """The rows of a data set: images go straight into its file, annotations wait in another one."""

    def __init__(
        self,
        run: RunFolder,
        file: IO[bytes],
        aside: IO[bytes],
        polygons: bool,
        merge: dict[str, Any] | None,
    ) -> None:
        self._run, self._file, self._aside, self._polygons, self._merging = (
            run,
            file,
            aside,
            polygons,
            bool(merge),
        )
        images, annotations, self._categories = (_rows(merge, section) for section in _SECTIONS)
        head = {"info": {"description": "Made with clip2sam", "version": "1.0"}, "licenses": []}
        head |= {key: value for key, value in (merge or {}).items() if key not in _SECTIONS}
        file.write(as_json(head).encode()[:-1] + b',"images":[')
        self._images_out, self._annotations_out = (
            JsonList(file, images),
            JsonList(aside, annotations),
        )
        self._old_images = {row["file_name"]: row for row in images}
        self._next_image, self._next_annotation = _next_id(images), _next_id(annotations)
        self._category_ids = self._join_categories()

    def _join_categories(self) -> list[int]:
        """The id of each of the run's classes; new ones are added behind the old ones."""
        known = {row["name"]: row["id"] for row in self._categories}
        for label in self._run.classes:
            if label.name not in known:
                known[label.name] = _next_id(self._categories)
                row = {
                    "id": known[label.name],
                    "name": label.name,
                    "supercategory": label.supercategory,
                }
                self._categories.append(row)
        return [known[label.name] for label in self._run.classes]

    def add(self, record: Labelled, masks: Sequence[FoundMask]) -> None:
        """Write one picture."""
        image_id = self._image_id(record)
        for mask in masks:
            row = annotation_row(
                record, mask, self._category_ids[mask.label], polygons=self._polygons
            )
            self._annotations_out.add({"id": self._next_annotation, "image_id": image_id, **row})
            self._next_annotation += 1

    def _image_id(self, record: Labelled) -> int:
        name, (height, width) = record.key, record.size
        old = self._old_images.get(name)
        if old is not None:
            if (old.get("height"), old.get("width")) != (height, width):
                raise CocoError(
                    f"{name!r} is {height} x {width} (height x width), but {old.get('height')} x {old.get('width')} in "
                    "the file to merge with; label that file's own pictures"
                )
            return int(old["id"])
        image_id = self._run.source.image_id(record.picture)
        if self._merging:
            image_id, self._next_image = self._next_image, self._next_image + 1
        self._images_out.add({"id": image_id, "file_name": name, "height": height, "width": width})
        return image_id

    def end(self) -> None:
        """Join the parts."""
        self._file.write(b'],"annotations":[')
        self._aside.seek(0)
        shutil.copyfileobj(self._aside, self._file, 1 << 20)
        self._file.write(b'],"categories":' + as_json(self._categories).encode() + b"}\n")


def annotation_row(
    record: Labelled, mask: FoundMask, category_id: int, *, polygons: bool
) -> dict[str, Any]:
    """A mask as a COCO annotation, without its ids."""
    rle = record.rle(mask)
    area, box = area_and_box(rle)
    return {
        "category_id": category_id,
        "segmentation": rle_to_polygons(rle) if polygons else rle,
        "area": area,
        "bbox": box,
        "iscrowd": 0,
        "score": mask.score,
    }


def read_coco(path: Path) -> dict[str, Any]:
    """A COCO file to merge with. Raises `CocoError` if it can't be read or lacks what matching needs."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise CocoError(
            f"{printable(path)}: this file can't be read ({error.strerror}); check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CocoError(
            f"{printable(path)}: expected a COCO file, but it is no JSON ({error})"
        ) from error
    if not isinstance(document, dict):
        raise CocoError(
            f"{printable(path)}: expected a COCO data set (an object), got {type(document).__name__}"
        )
    for section, key, kind in (
        ("images", "file_name", str),
        ("annotations", "id", int),
        ("categories", "name", str),
    ):
        for i, row in enumerate(_rows(document, section)):
            if (
                not isinstance(row, dict)
                or type(row.get("id")) is not int
                or not isinstance(row.get(key), kind)
            ):
                raise CocoError(
                    f"{printable(path)}: {section}[{i}]: expected an object with an id and {key}; correct it"
                )
    return document


_SECTIONS = ("images", "annotations", "categories")


class JsonList:
    """The items of a JSON list, with commas between them."""

    def __init__(self, file: IO[bytes], first: Sequence[Any] = ()) -> None:
        self._file, self._comma = file, b""
        for value in first:
            self.add(value)

    def add(self, value: Any) -> None:
        """Write one more item."""
        self._file.write(self._comma + as_json(value).encode())
        self._comma = b","


def _rows(document: dict[str, Any] | None, section: str) -> list[Any]:
    rows = (document or {}).get(section, [])
    if not isinstance(rows, list):
        raise CocoError(
            f"{section}: expected a list in the file to merge with, got {type(rows).__name__}; correct it"
        )
    return list(rows)


def _next_id(rows: list[Any]) -> int:
    return max((row["id"] for row in rows), default=0) + 1
