"""COCO data checked without trusting it: every fault is found and named with its place, and no
input leads to a traceback.

Of a file, only a few hundred annotations are in memory at a time.

Source of the format: https://cocodataset.org/#format-data
"""

import math
import os
import posixpath
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip2sam.coco.document import file_name_fault
from clip2sam.coco.reading import JsonRows, RepeatedKeys, read_rows
from clip2sam.coco.rle import shortly
from clip2sam.coco.shapes import Shape, Size, are_numbers, is_number, shapes_of
from clip2sam.data.images import printable
from clip2sam.errors import CocoError


@dataclass(frozen=True)
class Violation:
    """One fault: where it is, such as "annotations[3].bbox", and what is expected there."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def validate(
    source: dict[str, Any] | list[Any] | str | os.PathLike[str],
    against: dict[str, Any] | str | os.PathLike[str] | None = None,
) -> list[Violation]:
    """All faults of a COCO dataset (an object) or of COCO results (a list).

    Ids may be any whole numbers from 1, with gaps. Boxes and areas are compared with their masks:
    to the pixel for RLE, within the rounding of a polygon to pixels for polygons. A document in
    memory must be JSON as it is: no numpy integers, no bytes.

    Args:
        source: the data, or the path of a JSON file.
        against: the dataset that results belong to: its images and categories.

    Returns:
        The faults, in the order of the data; an empty list for valid data. Nothing is raised for
        invalid data, whatever it is.
    """
    report = _Report()
    value = _load(source, "file", report)
    try:
        known = None if against is None else _known(_load(against, "against", report), report)
        if value is not _NOTHING:
            _check(value, known, report)
    except CocoError as error:  # while rows were read
        report.add(("file",), str(error))
    return report.violations()


def in_short(violations: list[Violation]) -> str:
    """The first three faults, and how many more there are, on one line."""
    more = f" (and {len(violations) - 3} more)" if len(violations) > 3 else ""
    return "; ".join(map(str, violations[:3])) + more


_NOTHING = object()
_SECTIONS = ("licenses", "images", "categories", "annotations")
Place = tuple[str | int, ...]
"""Keys and indices from the top of the data."""
_Row = tuple[int, Place, dict[str, Any]]
"""The index of an object in its section, its place, and itself."""


class _Report:
    """Collects the faults."""

    def __init__(self) -> None:
        self._found: list[tuple[Place, str]] = []

    def violations(self) -> list[Violation]:
        """The faults: of no section first, then by section and row."""

        def order(found: tuple[Place, str]) -> tuple[int, int]:
            first, second = (*found[0], -1, -1)[:2]
            if isinstance(first, int):
                return 0, first
            section = _SECTIONS.index(first) if first in _SECTIONS else -1
            return section, second if isinstance(second, int) else -1

        found = sorted(self._found, key=order)
        return [Violation(_written(place), message) for place, message in found]

    def add(self, place: Place, message: str) -> None:
        self._found.append((place, message))

    def get(
        self, row: dict[str, Any], place: Place, key: str, fits: Callable[[Any], bool], wanted: str
    ) -> Any:
        """A value that fits, or None with a fault reported."""
        value = row.get(key, _NOTHING)
        if value is _NOTHING:
            self.add((*place, key), f"expected {wanted}, got nothing: the key is missing")
        elif not fits(value):
            self.add((*place, key), f"expected {wanted}, got {shortly(value)}")
        else:
            return value
        return None

    def rows(self, document: dict[str, Any], key: str) -> Iterator[_Row]:
        """The objects of a section."""
        section = document.get(key, _NOTHING)
        if section is _NOTHING:
            self.add((key,), "expected a list, got nothing: the key is missing")
        elif not isinstance(section, list | JsonRows):
            self.add((key,), f"expected a list, got {shortly(section)}")
        else:
            yield from self.objects(section, (key,))

    def objects(self, values: Iterable[Any], place: Place = ()) -> Iterator[_Row]:
        """The objects of a list, after a look at what is inside."""
        for i, value in enumerate(values):
            row_place = (*place, i)
            if not _is_clean(value):
                _check_json(value, row_place, self)
            if isinstance(value, dict):
                yield i, row_place, value
            else:
                self.add(row_place, f"expected an object, got {shortly(value)}")


class _Repeats:
    """Finds numbers that come more than once in a long section: 16 bytes a number."""

    def __init__(self) -> None:
        self._numbers, self._rows = array("q"), array("q")

    def add(self, number: int | None, row: int) -> None:
        if number is not None:
            self._numbers.append(number)
            self._rows.append(row)

    def found(self) -> Iterator[tuple[int, int, int]]:
        """Each number that has come before: number, row, and the row where it came first."""
        if not self._numbers:
            return
        numbers, rows = np.array(self._numbers), np.array(self._rows)
        order = np.argsort(numbers, kind="stable")
        numbers, rows = numbers[order], rows[order]
        again = np.flatnonzero(numbers[1:] == numbers[:-1]) + 1
        firsts = rows[np.searchsorted(numbers, numbers[again])]
        yield from zip(numbers[again].tolist(), rows[again].tolist(), firsts.tolist(), strict=True)

    def report(self, section: str, key: str, report: _Report) -> None:
        for number, row, first in self.found():
            report.add(
                (section, row, key),
                f"expected a value of its own, got {number} as at {section}[{first}].{key}",
            )


@dataclass(frozen=True)
class _Known:
    """What annotations may refer to: images by id, each with its (height, width) or None where
    that is faulty, and ids of categories."""

    images: dict[int, Size | None]
    categories: set[int]


def _known(document: Any, report: _Report) -> _Known | None:
    """What results may refer to in their dataset, whose own faults are not reported."""
    if isinstance(document, dict):
        return _Known(_check_images(document, _Report()), _check_categories(document, _Report()))
    if document is not _NOTHING:
        shown = "a list" if isinstance(document, JsonRows) else shortly(document)
        report.add(("against",), f"expected a dataset, an object, got {shown}")
    return None


def _load(source: Any, place: str, report: _Report) -> Any:
    """The value of a JSON file, or `source` itself if it is no path."""
    if not isinstance(source, str | os.PathLike):
        return source
    try:
        return read_rows(source, _SECTIONS)
    except CocoError as error:
        report.add((place,), str(error))
    return _NOTHING


_SCALARS = frozenset({str, int, bool, type(None)})


def _is_clean(value: Any) -> bool:
    """A quick look at whether `_check_json` has nothing to say."""
    if type(value) is list:
        if set(map(type, value)) <= _SCALARS or are_numbers(value):
            return True
        children: Iterable[Any] = value
    elif type(value) is dict:
        if not set(map(type, value)) <= {str}:
            return False
        children = value.values()
    else:
        return type(value) in _SCALARS or (type(value) is float and math.isfinite(value))
    for child in children:
        kind = type(child)
        if kind in _SCALARS or (kind is float and math.isfinite(child)):
            continue
        if kind is not list and kind is not dict:
            return False
        try:
            if not _is_clean(child):
                return False
        except RecursionError:
            return False
    return True


def _check_json(root: Any, place: Place, report: _Report) -> None:
    """Everything, at any depth, is JSON that every reader takes: finite numbers, text keys, no key
    twice."""
    rest: list[tuple[Any, Place]] = [(root, place)]
    seen: set[int] = set()  # by identity, so that a list that contains itself ends
    while rest:
        node, place = rest.pop()
        if isinstance(node, list):
            children: Iterable[tuple[Any, Any]] = enumerate(node)
        elif isinstance(node, dict):
            children = node.items()
        elif isinstance(node, JsonRows):
            continue
        else:
            _check_value(node, place, report)
            continue
        if id(node) in seen or are_numbers(node):
            continue
        seen.add(id(node))
        for twice in node.repeated if isinstance(node, RepeatedKeys) else ():
            report.add((*place, twice), "expected the key once, got it more than once")
        for key, child in children:
            below = (*place, key if isinstance(key, int) else str(key))
            if isinstance(node, dict) and not isinstance(key, str):
                report.add(below, f"expected a text as key, got {shortly(key)}")
            rest.append((child, below))


def _check_value(value: Any, place: Place, report: _Report) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            report.add(place, f"expected a finite number, got {value}, which is not JSON")
    elif not isinstance(value, str | int) and value is not None:
        report.add(place, f"expected a JSON value, got {type(value).__name__}")


def _check(value: Any, known: _Known | None, report: _Report) -> None:
    if isinstance(value, list | JsonRows):
        _check_results(value, known, report)
    elif isinstance(value, dict):
        # lists of a section are looked into row by row
        rows = {k: None for k in _SECTIONS if isinstance(value.get(k), list)}
        head = RepeatedKeys({**value, **rows})
        head.repeated = value.repeated if isinstance(value, RepeatedKeys) else ()
        _check_json(head, (), report)
        _check_document(value, report)
    else:
        report.add(
            ("file",), f"expected an object (a dataset) or a list (results), got {shortly(value)}"
        )


def _check_document(document: dict[str, Any], report: _Report) -> None:
    report.get(document, (), "info", lambda v: isinstance(v, dict), "an object")
    known = _Known(_check_images(document, report), _check_categories(document, report))
    ids, masks = _Repeats(), _Repeats()
    for batch in _batches(report.rows(document, "annotations")):
        sizes = []
        for i, place, row in batch:
            ids.add(report.get(row, place, "id", _is_whole, _WHOLE), i)
            sizes.append(_check_references(row, place, known, report))
        shapes = _check_segmentations(batch, sizes, report)
        for (i, place, row), size, shape in zip(batch, sizes, shapes, strict=True):
            _check_box(row, place, size, shape, report)
            _check_area(row, place, shape, report)
            _check_crowd(row, place, report)
            if "score" in row:
                report.get(row, place, "score", _is_score, _SCORE)
            if shape is not None:
                masks.add(_content(row), i)
    ids.report("annotations", "id", report)
    for _, again, first in masks.found():
        report.add(
            ("annotations", again),
            "expected a mask of its own, got the image, category and segmentation of "
            f"annotations[{first}]",
        )


def _content(row: dict[str, Any]) -> int | None:
    """A number of 64 bits, the same for the same image, category and mask."""
    image, category, mask = row.get("image_id"), row.get("category_id"), row["segmentation"]
    if not _is_whole(image) or not _is_whole(category):
        return None
    if isinstance(mask, list):
        return hash((image, category, tuple(map(tuple, mask))))
    counts = mask["counts"]
    return hash((image, category, counts if isinstance(counts, str) else tuple(counts)))


_BATCH = 1 << 14
"""Characters and numbers of the masks that are checked at once. With more, memory is asked of the
system for every array anew, which costs more than the calls of numpy."""


def _batches(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    weight = 0
    for row in rows:
        batch.append(row)
        weight += 100 + _weight(row[2].get("segmentation"))
        if weight >= _BATCH:
            yield batch
            batch, weight = [], 0
    yield batch


def _weight(mask: Any) -> int:
    """Characters or numbers of a mask, whatever it is."""
    if isinstance(mask, dict):
        counts = mask.get("counts")
        return len(counts) if isinstance(counts, str | list) else 0
    if isinstance(mask, list):
        return sum(len(part) for part in mask if isinstance(part, list))
    return 0


def _check_licenses(document: dict[str, Any], report: _Report) -> set[int] | None:
    """The ids of the licenses; None if there is no list of them."""
    ids = _Repeats()
    known = set()
    for i, place, row in report.rows(document, "licenses"):
        number = report.get(row, place, "id", _is_license, _LICENSE)
        ids.add(number, i)
        known.add(number)
    ids.report("licenses", "id", report)
    known.discard(None)
    return known if isinstance(document.get("licenses"), list | JsonRows) else None


def _check_images(document: dict[str, Any], report: _Report) -> dict[int, Size | None]:
    licenses = _check_licenses(document, report)
    found: dict[int, Size | None] = {}
    sizes: dict[Size, Size] = {}  # most images have one of a few: 100 bytes less for each image
    ids = _Repeats()
    names: dict[str, int] = {}
    for i, place, row in report.rows(document, "images"):
        number = report.get(row, place, "id", _is_whole, _WHOLE)
        ids.add(number, i)
        name = report.get(row, place, "file_name", _is_text, "a text")
        if name is not None:
            _check_name(name, i, names, report)
        height = report.get(row, place, "height", _is_whole, _PIXELS)
        width = report.get(row, place, "width", _is_whole, _PIXELS)
        if licenses is not None and "license" in row:
            report.get(
                row,
                place,
                "license",
                lambda v: _is_license(v) and v in licenses,
                "the id of one of the licenses",
            )
        if number is not None:
            size = (height, width) if height and width else None
            found[number] = None if size is None else sizes.setdefault(size, size)
    ids.report("images", "id", report)
    return found


def _check_name(name: str, row: int, names: dict[str, int], report: _Report) -> None:
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


def _check_categories(document: dict[str, Any], report: _Report) -> set[int]:
    ids = _Repeats()
    known = set()
    names: dict[str, int] = {}
    for i, place, row in report.rows(document, "categories"):
        number = report.get(row, place, "id", _is_whole, _WHOLE)
        ids.add(number, i)
        known.add(number)
        name = report.get(row, place, "name", _is_name, "a text, not empty")
        if name is not None and (first := names.setdefault(name, i)) != i:
            report.add(
                (*place, "name"),
                f"expected a value of its own, got {shortly(name)} as at categories[{first}].name",
            )
        report.get(row, place, "supercategory", _is_text, "a text, which may be empty")
    ids.report("categories", "id", report)
    known.discard(None)
    return known


def _check_results(results: Iterable[Any], known: _Known | None, report: _Report) -> None:
    for batch in _batches(report.objects(results)):
        sizes = [_check_references(row, place, known, report) for _, place, row in batch]
        _check_segmentations(batch, sizes, report, polygons=False)
        for _, place, row in batch:
            report.get(row, place, "score", _is_score, _SCORE)
            for key in ("bbox", "caption"):
                if key in row:
                    report.add(
                        (*place, key),
                        "expected no such key: COCO's readers would take it in place of the mask",
                    )


def _check_references(
    row: dict[str, Any], place: Place, known: _Known | None, report: _Report
) -> Size | None:
    """Image and category exist; returns the image's (height, width) if it is known."""
    image = report.get(row, place, "image_id", _is_whole, _WHOLE)
    category = report.get(row, place, "category_id", _is_whole, _WHOLE)
    if known is None:
        return None
    if image is not None and image not in known.images:
        report.add(
            (*place, "image_id"), f"expected the id of one of the images, got {shortly(image)}"
        )
    if category is not None and category not in known.categories:
        report.add(
            (*place, "category_id"),
            f"expected the id of one of the categories, got {shortly(category)}",
        )
    return known.images.get(image) if image is not None else None


def _check_segmentations(
    batch: list[_Row], sizes: list[Size | None], report: _Report, *, polygons: bool = True
) -> list[Shape | None]:
    """The shapes of the masks that have one and fit their image."""
    kinds = (dict, list) if polygons else (dict,)
    wanted = "an RLE object or a list of polygons" if polygons else "an RLE object"
    masks = [
        (report.get(row, place, "segmentation", lambda v: isinstance(v, kinds), wanted), size)
        for (_, place, row), size in zip(batch, sizes, strict=True)
    ]
    shapes: list[Shape | None] = []
    for (_, place, _), found in zip(batch, shapes_of(masks), strict=True):
        if isinstance(found, Shape):
            shapes.append(found)
            continue
        shapes.append(None)
        for fault in found:
            report.add((*place, "segmentation", *fault.place), fault.message)
    return shapes


def _check_box(
    row: dict[str, Any], place: Place, size: Size | None, shape: Shape | None, report: _Report
) -> None:
    box = report.get(row, place, "bbox", _is_box, _BOX)
    if box is None:
        return
    x, y, width, height = box
    right, bottom = x + width, y + height
    if size is not None and (
        min(x, y, right, bottom) < -1 or right > size[1] + 1 or bottom > size[0] + 1
    ):
        report.add(
            (*place, "bbox"),
            f"expected a box inside the image of [height, width] {list(size)}, got {shortly(box)}",
        )
    elif shape is not None and not shape.box_fits((x, y, right, bottom)):
        left, top, right, bottom = shape.corners
        wanted = [left, top, right - left, bottom - top]
        report.add((*place, "bbox"), f"expected its mask's box, {wanted}, got {shortly(box)}")


def _check_area(row: dict[str, Any], place: Place, shape: Shape | None, report: _Report) -> None:
    area = report.get(row, place, "area", _is_area, "a finite number of pixels above 0")
    if area is not None and shape is not None and not shape.area_fits(area):
        report.add((*place, "area"), f"expected its mask's area, got {shortly(area)}")


def _check_crowd(row: dict[str, Any], place: Place, report: _Report) -> None:
    crowd = report.get(row, place, "iscrowd", lambda v: _is_int(v) and v in (0, 1), "0 or 1")
    if crowd == 1 and isinstance(row.get("segmentation"), list):
        report.add(
            (*place, "iscrowd"), "expected 0 beside polygons, got 1: the mask of a crowd is an RLE"
        )


_WHOLE = "a whole number from 1"
_PIXELS = "a whole number of pixels from 1"
_LICENSE = "a whole number from 0"
_SCORE = "a number from 0 to 1"
_BOX = "[x, y, width, height], finite, the last two above 0"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    # beyond, readers that use floats confuse ids
    return isinstance(value, int) and 1 <= value < 2**53 and value is not True


def _is_license(value: Any) -> bool:
    return _is_int(value) and 0 <= value < 2**53  # some tools count licenses from 0


def _is_area(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_score(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(map(is_number, value))
        and min(value[2:]) > 0
    )


def _written(place: Place) -> str:
    """A place as text, such as "annotations[3].bbox"."""
    text = ""
    for key in place:
        if isinstance(key, int):
            text = f"{text}[{key}]"
        else:
            text = f"{text}.{printable(str(key))}" if text else printable(str(key))
    return text
