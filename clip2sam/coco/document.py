"""The rows of a COCO dataset: one source for documents in memory and for files written row by row.

Source of the format: https://cocodataset.org/#format-data
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from clip2sam.coco.many import areas_and_boxes
from clip2sam.coco.outlines import TOLERANCE, Outline, outline_of
from clip2sam.coco.rle import area_and_box, shortly
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.errors import CocoError


def file_name_fault(name: str) -> str | None:
    """What is wrong with an image's name; None if nothing is.

    It must be a POSIX path below the dataset's root.
    """
    wanted = "expected a POSIX path relative to the dataset's root"
    if not name:
        return f"{wanted}, got an empty text"
    if "\\" in name:
        return f"{wanted}, with / between folders, got a backslash in {shortly(name)}"
    if "\0" in name:
        return f"{wanted}, got a NUL in {shortly(name)}"
    if name.startswith("/") or name[1:3] == ":/":
        return f"{wanted}, got the absolute {shortly(name)}"
    if ".." in name.split("/"):
        return f"{wanted}, got one that leads out of a folder: {shortly(name)}"
    return None


def check_id(number: int, what: str) -> None:
    """Refuse an id that readers which use floats would confuse with another.

    Raises:
        CocoError: it is not from 1 to 2**53 - 1.
    """
    if not 1 <= number < 2**53:
        raise CocoError(f"{what}: expected an id from 1 to 2**53 - 1, got {number}; number it anew")


def made_by(version: str = "", caption: str = "") -> dict[str, Any]:
    """How every `info` of ours begins: with the caption that named the classes, if one did."""
    made = {"description": f"Made with clip2sam {version}".rstrip(), "version": "1.0"}
    return {**made, "caption": caption} if caption else made


def document_head(info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What stands in front of the rows: `info` (default: made with clip2sam) and no licenses."""
    return {"info": made_by() if info is None else dict(info), "licenses": []}


def category_rows(classes: Sequence[LabelClass]) -> list[dict[str, Any]]:
    """The classes as categories; ids are 1, 2, 3, ... in their order. Those of a caption have
    `caption_spans`, a key of our own: where it names them, [first character, the one behind the
    last] of each place."""
    return [
        {
            "id": i,
            "name": c.name,
            "supercategory": c.supercategory,
            **({"caption_spans": [list(span) for span in c.spans]} if c.spans else {}),
        }
        for i, c in enumerate(classes, 1)
    ]


def image_row(record: ImageRecord) -> dict[str, Any]:
    """An image, under its own id. Beside COCO's own keys: `review`, a person's verdict, if there is
    one.

    Raises:
        CocoError: its name is no POSIX path below the root, its id is not from 1 to 2**53 - 1, or
            the image failed.
    """
    if fault := file_name_fault(record.file_name):
        raise CocoError(
            f"image {record.image_id}: {fault}; rename it or name it from the dataset's root"
        )
    check_id(record.image_id, f"image {record.file_name!r}")
    if record.state == "failed":
        raise CocoError(
            f"image {record.image_id}: {record.file_name!r} failed ({record.reason}); leave it out"
        )
    height, width = record.size
    return {
        "id": int(record.image_id),
        "file_name": record.file_name,
        "height": int(height),
        "width": int(width),
        **({"coco_url": record.url} if record.url else {}),
        **({"review": record.review.verdict} if record.review else {}),
    }


@dataclass(frozen=True)
class CheckedMask:
    """An annotation that fits its image, has a pixel, and is of one of the classes."""

    number: int
    """Of its class: 1, 2, 3, ... in the order of the classes."""
    annotation: Annotation
    area: int
    """Pixels."""
    box: list[int]
    """[x, y, width, height] in pixels."""
    presence: float | None
    """Presence score of its label in the image; None if it isn't known."""


CHUNK = 64
"""So many records are measured together; twice as many are in memory."""

_Measure = tuple[int, list[int]] | None
"""Area and box of a mask; None: it is to be looked at alone."""


def checked_records(
    records: Iterable[ImageRecord], classes: Sequence[LabelClass]
) -> Iterator[tuple[ImageRecord, list[CheckedMask]]]:
    """Each record with its `checked_masks`; several times as fast, as `CHUNK` of them are read and
    measured together.

    Raises:
        CocoError: see `checked_masks`.
    """
    rest = iter(records)
    while chunk := list(islice(rest, CHUNK)):
        for record, measured in zip(chunk, _measured(chunk), strict=True):
            yield record, list(checked_masks(record, classes, measured))


def _measured(records: Sequence[ImageRecord]) -> Iterator[list[_Measure]]:
    """For each record a measure of each of its masks."""
    sound = [[_fits(a.rle, record) for a in record.annotations] for record in records]
    rles = [
        annotation.rle
        for record, fits in zip(records, sound, strict=True)
        for annotation, fit in zip(record.annotations, fits, strict=True)
        if fit
    ]
    measures: Iterator[_Measure] = iter(())
    if rles:
        sizes = np.array([rle["size"] for rle in rles], np.int64)
        good, areas, boxes, _ = areas_and_boxes([rle["counts"] for rle in rles], sizes)
        found = zip(good.tolist(), areas.tolist(), boxes.tolist(), strict=True)
        measures = iter([(area, box) if fine else None for fine, area, box in found])
    for fits in sound:
        yield [next(measures) if fit else None for fit in fits]


def _fits(rle: Mapping[str, Any], record: ImageRecord) -> bool:
    """Whether a mask has the form that `areas_and_boxes` takes."""
    height, width = record.size
    alike = isinstance(rle.get("counts"), str) and rle.get("size") == [height, width]
    return alike and min(height, width) > 0 and height * width < 2**32


def checked_masks(
    record: ImageRecord,
    classes: Sequence[LabelClass],
    measured: Sequence[_Measure] | None = None,
) -> Iterator[CheckedMask]:
    """The annotations of an image, as every format takes them; those without a pixel are left out,
    and of a mask that is there more than once under one label all but the first.

    Args:
        measured: area and box of each annotation, where they are known.

    Raises:
        CocoError: a label that is none of the classes, a score outside 0..1, a damaged RLE, or a
            mask of another size than its image.
    """
    numbers = {c.name: i for i, c in enumerate(classes, 1)}
    seen: set[tuple[str, str]] = set()
    for i, annotation in enumerate(record.annotations):
        where = f"{record.file_name}, {annotation.label!r}"
        if annotation.label not in numbers:
            raise CocoError(
                f"{where}: expected one of the labels {shortly(list(numbers))}; add it to them"
            )
        if not 0 <= annotation.score <= 1:
            raise CocoError(f"{where}: expected a score from 0 to 1, got {annotation.score}")
        try:
            known = None if measured is None else measured[i]
            area, box = known or area_and_box(annotation.rle)
        except CocoError as error:
            raise CocoError(f"{where}: {error}") from error
        if annotation.rle["size"] != list(record.size):
            raise CocoError(
                f"{where}: expected a mask of the image's [height, width] {list(record.size)}, "
                f"got {annotation.rle['size']}; scale it first"
            )
        mask = (annotation.label, str(annotation.rle["counts"]))
        if area > 0 and mask not in seen:
            seen.add(mask)
            number = numbers[annotation.label]
            presence = record.presence[number - 1] if number <= len(record.presence) else None
            yield CheckedMask(number, annotation, area, box, presence)


def annotation_row(
    mask: CheckedMask, category_id: int, outline: Outline | None = None
) -> dict[str, Any]:
    """A mask, without its own id and its image's; with its outline's polygons, area and box if one
    is given.

    Beside COCO's own keys: `score`; `share`, how strong it is beside its label's best mask in the
    image; `presence`, the label's presence score, if it is known; and `prompt`, the points [x, y,
    1 (positive) or 0 (negative)] that it came from, if there are any.
    """
    rle = mask.annotation.rle
    rle = {"size": list(rle["size"]), "counts": rle["counts"]}
    known: dict[str, Any] = {} if mask.presence is None else {"presence": mask.presence}
    if mask.annotation.points:
        known["prompt"] = [list(point) for point in mask.annotation.points]
    return {
        "category_id": category_id,
        "segmentation": rle if outline is None else outline.polygons,
        "area": mask.area if outline is None else outline.area,
        "bbox": mask.box if outline is None else outline.box,
        "iscrowd": 0,
        "score": float(mask.annotation.score),
        "share": float(mask.annotation.share),
        **known,
    }


def coco_document(
    records: Iterable[ImageRecord],
    classes: Sequence[LabelClass],
    *,
    polygons: bool = False,
    tolerance: float = TOLERANCE,
    info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A COCO dataset, ready for `write_coco`: the same input gives the same document.

    Images keep their ids. Categories are the classes, numbered from 1 in their order; annotations
    are numbered from 1 in the order of the records. Boxes and areas are those of what is written,
    RLE or polygons. Masks without a pixel and repeated ones are left out, images without masks are
    kept. `annotation_row` says what an annotation has beside COCO's own keys.

    Args:
        classes: without distractors.
        polygons: give polygons instead of RLE.
        tolerance: of the polygons, see `outline_of`.
        info: put into the document as it is.

    Raises:
        CocoError: an image id or name that is given twice, what `image_row` and
            `checked_masks` refuse.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ids: dict[int, str] = {}
    names: dict[str, int] = {}
    for record in records:
        row = image_row(record)
        number, name = row["id"], row["file_name"]
        if name in names:
            raise CocoError(
                f"image {number}: {name!r} is given twice, first as image {names[name]}"
            )
        if number in ids:
            raise CocoError(f"image {number}: expected an id of its own, {ids[number]!r} has it")
        ids[number], names[name] = name, number
        images.append(row)
        for mask in checked_masks(record, classes):
            outline = outline_of(mask.annotation.rle, tolerance) if polygons else None
            made = annotation_row(mask, mask.number, outline)
            annotations.append({"id": len(annotations) + 1, "image_id": number, **made})
    return {
        **document_head(info),
        "images": images,
        "annotations": annotations,
        "categories": category_rows(classes),
    }
