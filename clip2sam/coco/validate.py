"""COCO data checked without trusting it: every fault is found and named with its place, and no
input leads to a traceback.

Source of the format: https://cocodataset.org/#format-data
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as mask_utils

from clip2sam.coco.document import file_name_fault
from clip2sam.coco.rle import area_and_box, shortly
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
        The faults; an empty list for valid data. Nothing is raised for invalid data, whatever it
        is.
    """
    report = _Report()
    value = _load(source, report)
    known = None if against is None else _known(_load(against, report, "against"), report)
    if value is _NOTHING:
        return report.violations
    _check_json(value, report)
    if isinstance(value, list):
        _check_results(value, known, report)
    elif isinstance(value, dict):
        _check_document(value, report)
    else:
        report.add(
            "file", f"expected an object (a dataset) or a list (results), got {shortly(value)}"
        )
    return report.violations


_NOTHING = object()


class _Object(dict[str, Any]):
    """A JSON object that remembers keys given more than once."""

    repeated: tuple[str, ...] = ()

    @classmethod
    def of(cls, pairs: list[tuple[str, Any]]) -> "_Object":
        made = cls(pairs)
        if len(made) < len(pairs):
            made.repeated = tuple(
                k for k, times in Counter(k for k, _ in pairs).items() if times > 1
            )
        return made


class _Report:
    """Collects the faults."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def add(self, place: str, message: str) -> None:
        self.violations.append(Violation(place, message))

    def get(
        self, record: dict[str, Any], place: str, key: str, fits: Callable[[Any], bool], wanted: str
    ) -> Any:
        """A value that fits, or None with a fault reported."""
        where = _below(place, key)
        if key not in record:
            self.add(where, f"expected {wanted}, got nothing: the key is missing")
        elif not fits(record[key]):
            self.add(where, f"expected {wanted}, got {shortly(record[key])}")
        else:
            return record[key]
        return None

    def records(self, document: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The objects of a list, each with its place."""
        if key not in document:
            self.add(key, "expected a list, got nothing: the key is missing")
        elif not isinstance(document[key], list):
            self.add(key, f"expected a list, got {shortly(document[key])}")
        else:
            yield from self.objects(document[key], key)

    def objects(self, values: list[Any], place: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for i, value in enumerate(values):
            if isinstance(value, dict):
                yield f"{place}[{i}]", value
            else:
                self.add(f"{place}[{i}]", f"expected an object, got {shortly(value)}")

    def unique(self, value: Any, place: str, seen: dict[Any, str]) -> None:
        """`value`, unless None, has not come before at another place."""
        if value is not None and seen.setdefault(value, place) != place:
            self.add(
                place, f"expected a value of its own, got {shortly(value)} as at {seen[value]}"
            )


@dataclass(frozen=True)
class _Known:
    """What annotations may refer to: images by id, each with its (height, width) or None where
    that is faulty, and ids of categories."""

    images: dict[int, tuple[int, int] | None]
    categories: set[int]


def _known(document: Any, report: _Report) -> _Known | None:
    """What results may refer to in their dataset, whose own faults are not reported."""
    if isinstance(document, dict):
        return _Known(_check_images(document, _Report()), _check_categories(document, _Report()))
    if document is not _NOTHING:
        report.add("against", f"expected a dataset, an object, got {shortly(document)}")
    return None


def _load(source: Any, report: _Report, place: str = "file") -> Any:
    """The value of a JSON file, or `source` itself if it is no path."""
    if not isinstance(source, str | os.PathLike):
        return source
    try:
        if not Path(source).is_file():  # a pipe would wait for a writer
            report.add(
                place, f"expected a JSON file at {printable(source)}, found none; check the path"
            )
            return _NOTHING
        return json.loads(Path(source).read_bytes().decode("utf-8"), object_pairs_hook=_Object.of)
    except OSError as error:
        report.add(place, f"expected a file that can be read, got: {error.strerror}")
    except UnicodeDecodeError as error:
        report.add(place, f"expected UTF-8, got {error.reason} at byte {error.start}")
    except RecursionError:
        report.add(
            place, "expected COCO's few levels, got lists or objects nested too deep to read"
        )
    except ValueError as error:  # json.JSONDecodeError, or a number of thousands of digits
        report.add(place, f"expected JSON, got: {error}")
    return _NOTHING


def _check_json(root: Any, report: _Report) -> None:
    """Everything, at any depth, is JSON that every reader takes: finite numbers, text keys, no key
    twice."""
    rest: list[tuple[Any, str]] = [(root, "")]
    seen: set[int] = set()  # by identity, so that a list that contains itself ends
    while rest:
        node, place = rest.pop()
        if isinstance(node, dict | list) and id(node) not in seen and not _are_numbers(node):
            seen.add(id(node))
            for twice in node.repeated if isinstance(node, _Object) else ():
                report.add(_below(place, twice), "expected the key once, got it more than once")
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                if isinstance(node, dict) and not isinstance(key, str):
                    report.add(_below(place, key), f"expected a text as key, got {shortly(key)}")
                if isinstance(child, dict | list):
                    rest.append((child, _below(place, key)))
                elif isinstance(child, float):
                    if not math.isfinite(child):
                        report.add(
                            _below(place, key),
                            f"expected a finite number, got {child}, which is not JSON",
                        )
                elif not isinstance(child, str | int) and child is not None:
                    report.add(
                        _below(place, key), f"expected a JSON value, got {type(child).__name__}"
                    )


def _check_document(document: dict[str, Any], report: _Report) -> None:
    report.get(document, "", "info", lambda v: isinstance(v, dict), "an object")
    report.get(document, "", "licenses", lambda v: isinstance(v, list), "a list")
    known = _Known(_check_images(document, report), _check_categories(document, report))
    seen: dict[Any, str] = {}
    for place, record in report.records(document, "annotations"):
        report.unique(report.get(record, place, "id", _is_whole, _WHOLE), f"{place}.id", seen)
        size = _check_references(record, place, known, report)
        shape = _check_segmentation(record, place, size, report)
        _check_box(record, place, size, shape, report)
        _check_area(record, place, shape, report)
        report.get(record, place, "iscrowd", lambda v: _is_int(v) and v in (0, 1), "0 or 1")
        if "score" in record:
            report.get(record, place, "score", _is_score, "a number from 0 to 1")


def _check_images(document: dict[str, Any], report: _Report) -> dict[int, tuple[int, int] | None]:
    found: dict[int, tuple[int, int] | None] = {}
    ids: dict[Any, str] = {}
    names: dict[Any, str] = {}
    for place, record in report.records(document, "images"):
        number = report.get(record, place, "id", _is_whole, _WHOLE)
        report.unique(number, f"{place}.id", ids)
        name = report.get(record, place, "file_name", lambda v: isinstance(v, str), "a text")
        report.unique(name, f"{place}.file_name", names)
        if name is not None and (fault := file_name_fault(name)):
            report.add(f"{place}.file_name", fault)
        height = report.get(record, place, "height", _is_whole, "a whole number of pixels from 1")
        width = report.get(record, place, "width", _is_whole, "a whole number of pixels from 1")
        if number is not None:
            found[number] = (height, width) if height and width else None
    return found


def _check_categories(document: dict[str, Any], report: _Report) -> set[int]:
    ids: dict[Any, str] = {}
    names: dict[Any, str] = {}
    for place, record in report.records(document, "categories"):
        report.unique(report.get(record, place, "id", _is_whole, _WHOLE), f"{place}.id", ids)
        name = report.get(
            record,
            place,
            "name",
            lambda v: isinstance(v, str) and v.strip() != "",
            "a text, not empty",
        )
        report.unique(name, f"{place}.name", names)
        report.get(
            record,
            place,
            "supercategory",
            lambda v: isinstance(v, str),
            "a text, which may be empty",
        )
    return set(ids)


def _check_results(results: list[Any], known: _Known | None, report: _Report) -> None:
    for place, record in report.objects(results, ""):
        size = _check_references(record, place, known, report)
        _check_segmentation(record, place, size, report, polygons=False)
        report.get(record, place, "score", _is_score, "a number from 0 to 1")
        for key in ("bbox", "caption"):
            if key in record:
                report.add(
                    f"{place}.{key}",
                    "expected no such key: COCO's readers would take it in place of the mask",
                )


def _check_references(
    record: dict[str, Any], place: str, known: _Known | None, report: _Report
) -> tuple[int, int] | None:
    """Image and category exist; returns the image's (height, width) if it is known."""
    image = report.get(record, place, "image_id", _is_whole, _WHOLE)
    category = report.get(record, place, "category_id", _is_whole, _WHOLE)
    if known is None:
        return None
    if image is not None and image not in known.images:
        report.add(
            f"{place}.image_id", f"expected the id of one of the images, got {shortly(image)}"
        )
    if category is not None and category not in known.categories:
        report.add(
            f"{place}.category_id",
            f"expected the id of one of the categories, got {shortly(category)}",
        )
    return known.images.get(image) if image is not None else None


@dataclass(frozen=True)
class _Shape:
    """The box and area that a mask has."""

    corners: tuple[int | float, ...]
    """Left, top, right, bottom."""
    slack: float
    """By how many pixels each side of a box may differ."""
    area_fits: Callable[[int | float], bool]


def _check_segmentation(
    record: dict[str, Any],
    place: str,
    size: tuple[int, int] | None,
    report: _Report,
    *,
    polygons: bool = True,
) -> _Shape | None:
    kinds = (dict, list) if polygons else (dict,)
    wanted = "an RLE object or a list of polygons" if polygons else "an RLE object"
    segmentation = report.get(record, place, "segmentation", lambda v: isinstance(v, kinds), wanted)
    place = f"{place}.segmentation"
    if isinstance(segmentation, dict):
        return _check_rle(segmentation, place, size, report)
    return None if segmentation is None else _check_polygons(segmentation, place, size, report)


def _check_rle(
    rle: dict[str, Any], place: str, size: tuple[int, int] | None, report: _Report
) -> _Shape | None:
    try:
        area, (x, y, width, height) = area_and_box(rle)
    except CocoError as error:
        report.add(place, str(error))
        return None
    if size is not None and tuple(rle["size"]) != size:
        report.add(
            f"{place}.size",
            f"expected the image's [height, width], {list(size)}, got {shortly(rle['size'])}",
        )
    elif area == 0:
        report.add(place, "expected a mask of at least one pixel, got an empty one")
    else:
        return _Shape((x, y, x + width, y + height), 0.99, lambda given: abs(given - area) < 1)
    return None


def _check_polygons(
    polygons: list[Any], place: str, size: tuple[int, int] | None, report: _Report
) -> _Shape | None:
    faults = len(report.violations)
    if not polygons:
        report.add(place, "expected at least one polygon, got none")
    for i, polygon in enumerate(polygons):
        if not _are_numbers(polygon):
            report.add(
                f"{place}[{i}]", f"expected a list of finite numbers, got {shortly(polygon)}"
            )
        elif len(polygon) < 6 or len(polygon) % 2:
            report.add(
                f"{place}[{i}]",
                f"expected an even number of coordinates, 6 or more, got {len(polygon)}",
            )
    if len(report.violations) > faults:
        return None
    rings = [np.array(p, np.float64).reshape(-1, 2) for p in polygons]
    for i, ring in enumerate(rings):
        # coordinates that are off by one are common in real files
        if size is not None and (
            ring.min() < -1 or (ring.max(axis=0) > (size[1] + 1, size[0] + 1)).any()
        ):
            report.add(
                f"{place}[{i}]",
                f"expected points inside the image of [height, width] {list(size)}, got others",
            )
    if len(report.violations) > faults:
        return None
    points = np.concatenate(rings)
    corners = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
    return _Shape(corners, 1.5, lambda given: _polygon_area_fits(given, polygons, rings, size))


def _polygon_area_fits(
    given: int | float,
    polygons: list[Any],
    rings: list[Float[np.ndarray, "_ 2"]],
    size: tuple[int, int] | None,
) -> bool:
    """Tools compute a polygon's area by two methods: from its corners, or by counting the pixels of
    all parts together, where parts may overlap. Either is right."""
    outline = sum(float(np.abs(np.diff(r, axis=0, append=r[:1])).sum()) for r in rings)
    x_y = [(r[:, 0], r[:, 1]) for r in rings]
    from_corners = sum(abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2 for x, y in x_y)
    fits = abs(given - from_corners) <= 1 + outline / 2
    # counting takes memory for each pixel of the outline
    if fits or size is None or size[0] * size[1] >= 2**31 or outline > 1e6:
        return fits
    counted = int(mask_utils.area(mask_utils.merge(mask_utils.frPyObjects(polygons, *size))))
    return abs(given - counted) <= 1 + outline / 2


def _check_box(
    record: dict[str, Any],
    place: str,
    size: tuple[int, int] | None,
    shape: _Shape | None,
    report: _Report,
) -> None:
    box = report.get(
        record, place, "bbox", _is_box, "[x, y, width, height], finite, the last two above 0"
    )
    if box is None:
        return
    corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
    if size is not None and (
        min(corners) < -1 or corners[2] > size[1] + 1 or corners[3] > size[0] + 1
    ):
        report.add(
            f"{place}.bbox",
            f"expected a box inside the image of [height, width] {list(size)}, got {shortly(box)}",
        )
    elif shape is not None and any(
        abs(a - b) > shape.slack for a, b in zip(corners, shape.corners, strict=True)
    ):
        left, top, right, bottom = shape.corners
        wanted = [left, top, right - left, bottom - top]
        report.add(f"{place}.bbox", f"expected its mask's box, {wanted}, got {shortly(box)}")


def _check_area(record: dict[str, Any], place: str, shape: _Shape | None, report: _Report) -> None:
    area = report.get(
        record,
        place,
        "area",
        lambda v: _is_number(v) and v > 0,
        "a finite number of pixels above 0",
    )
    if area is not None and shape is not None and not shape.area_fits(area):
        report.add(f"{place}.area", f"expected its mask's area, got {shortly(area)}")


_WHOLE = "a whole number from 1"


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_int(value) and 1 <= value < 2**53  # beyond, readers that use floats confuse ids


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e15 < value < 1e15


def _are_numbers(value: Any) -> bool:
    """A list of such numbers: by built-in functions, as outlines are long."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float}:
        return False
    # Comparisons ignore NaN, a sum doesn't; they come first, as float plus huge int is an error.
    return not value or (min(value) > -1e15 and max(value) < 1e15 and math.isfinite(sum(value)))


def _is_score(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(map(_is_number, value))
        and min(value[2:]) > 0
    )


def _below(place: str, key: Any) -> str:
    """The place of an item of the list or object at `place`."""
    if isinstance(key, int):
        return f"{place}[{key}]"
    return f"{place}.{printable(str(key))}" if place else printable(str(key))
