"""The sections of a dataset that annotations refer to: licenses, images, categories."""

import posixpath
from dataclasses import dataclass
from typing import Any

from clip2sam.coco.document import file_name_fault
from clip2sam.coco.reading import JsonRows
from clip2sam.coco.repeats import Repeats
from clip2sam.coco.report import Report
from clip2sam.coco.rle import shortly
from clip2sam.coco.shapes import Size
from clip2sam.coco.values import (
    LICENSE,
    NAME,
    PIXELS,
    TEXT,
    WHOLE,
    is_license,
    is_name,
    is_text,
    is_whole,
)


@dataclass(frozen=True)
class Known:
    """What annotations may refer to: images by id, each with its (height, width) or None where
    that is faulty, and ids of categories."""

    images: dict[int, Size | None]
    categories: set[int]


def _check_licenses(document: dict[str, Any], report: Report) -> set[int] | None:
    """The ids of the licenses; None if there is no list of them."""
    ids = Repeats()
    known = set()
    for i, place, row in report.rows(document, "licenses"):
        number = report.get(row, place, "id", is_license, LICENSE)
        ids.add(number, i)
        known.add(number)
    ids.report("licenses", "id", report)
    known.discard(None)
    return known if isinstance(document.get("licenses"), list | JsonRows) else None


def check_images(document: dict[str, Any], report: Report) -> dict[int, Size | None]:
    """Images, and the licenses that they name. Returns the size of each image by its id."""
    licenses = _check_licenses(document, report)
    found: dict[int, Size | None] = {}
    sizes: dict[Size, Size] = {}  # most images have one of a few: 100 bytes less for each image
    ids = Repeats()
    names: dict[str, int] = {}
    for i, place, row in report.rows(document, "images"):
        number = report.get(row, place, "id", is_whole, WHOLE)
        ids.add(number, i)
        name = report.get(row, place, "file_name", is_text, TEXT)
        if name is not None:
            _check_name(name, i, names, report)
        height = report.get(row, place, "height", is_whole, PIXELS)
        width = report.get(row, place, "width", is_whole, PIXELS)
        if licenses is not None and "license" in row:
            report.get(
                row,
                place,
                "license",
                lambda v: is_license(v) and v in licenses,
                "the id of one of the licenses",
            )
        if number is not None:
            size = (height, width) if height and width else None
            found[number] = None if size is None else sizes.setdefault(size, size)
    ids.report("images", "id", report)
    return found


def _check_name(name: str, row: int, names: dict[str, int], report: Report) -> None:
    """A file's name is a path below the root, and no other image's, also not written otherwise."""
    place = ("images", row, "file_name")
    first = names.setdefault(posixpath.normpath(name), row)
    if first != row:
        report.add(
            place,
            f"expected a file of its own, got {shortly(name)}, as at images[{first}].file_name",
        )
    if fault := file_name_fault(name):
        report.add(place, fault)


def check_categories(document: dict[str, Any], report: Report) -> set[int]:
    """Returns their ids."""
    ids = Repeats()
    known = set()
    names: dict[str, int] = {}
    for i, place, row in report.rows(document, "categories"):
        number = report.get(row, place, "id", is_whole, WHOLE)
        ids.add(number, i)
        known.add(number)
        name = report.get(row, place, "name", is_name, NAME)
        if name is not None and (first := names.setdefault(name, i)) != i:
            report.add(
                (*place, "name"),
                f"expected a value of its own, got {shortly(name)} as at categories[{first}].name",
            )
        report.get(row, place, "supercategory", is_text, "a text, which may be empty")
    ids.report("categories", "id", report)
    known.discard(None)
    return known
