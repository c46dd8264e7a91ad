"""The annotations of a dataset, and results: checked in batches, as masks are many."""

from collections.abc import Iterable, Iterator
from typing import Any

from clip2sam.coco.polygon_shapes import polygon_shapes
from clip2sam.coco.repeats import Repeats
from clip2sam.coco.report import Report, Row
from clip2sam.coco.rle import shortly
from clip2sam.coco.rle_shapes import rle_shapes
from clip2sam.coco.sections import Known
from clip2sam.coco.shapes import Fault, Mask, Shape, Size
from clip2sam.coco.strict import Place
from clip2sam.coco.values import (
    AREA,
    BOX,
    CROWD,
    SCORE,
    WHOLE,
    is_area,
    is_box,
    is_crowd,
    is_score,
    is_whole,
)


def check_annotations(document: dict[str, Any], known: Known, report: Report) -> None:
    """The annotations of a dataset, of whose images and categories `known` tells."""
    ids, masks = Repeats(), Repeats()
    for batch in _batches(report.rows(document, "annotations")):
        sizes = []
        for i, place, row in batch:
            ids.add(report.get(row, place, "id", is_whole, WHOLE), i)
            sizes.append(_check_references(row, place, known, report))
        shapes = _check_segmentations(batch, sizes, report)
        for (i, place, row), size, shape in zip(batch, sizes, shapes, strict=True):
            _check_box(row, place, size, shape, report)
            _check_area(row, place, shape, report)
            _check_crowd(row, place, report)
            if "score" in row:
                report.get(row, place, "score", is_score, SCORE)
            if shape is not None:
                masks.add(_content(row, shape), i)
    ids.report("annotations", "id", report)
    for _, again, first in masks.found():
        report.add(
            ("annotations", again),
            "expected a mask of its own, got the image, category and segmentation of "
            f"annotations[{first}]",
        )


def _content(row: dict[str, Any], shape: Shape) -> int | None:
    """A number of 64 bits, the same for the same image, category and mask."""
    image, category = row.get("image_id"), row.get("category_id")
    if not is_whole(image) or not is_whole(category):
        return None
    return hash((image, category, shape.content))


def check_results(results: Iterable[Any], known: Known | None, report: Report) -> None:
    """COCO results, of whose dataset `known` tells, if there is one."""
    for batch in _batches(report.objects(results)):
        sizes = [_check_references(row, place, known, report) for _, place, row in batch]
        _check_segmentations(batch, sizes, report, polygons=False)
        for _, place, row in batch:
            report.get(row, place, "score", is_score, SCORE)
            for key in ("bbox", "caption"):
                if key in row:
                    report.add(
                        (*place, key),
                        "expected no such key: COCO's readers would take it in place of the mask",
                    )


def _check_references(
    row: dict[str, Any], place: Place, known: Known | None, report: Report
) -> Size | None:
    """Image and category exist; returns the image's (height, width) if it is known."""
    image = report.get(row, place, "image_id", is_whole, WHOLE)
    category = report.get(row, place, "category_id", is_whole, WHOLE)
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
    batch: list[Row], sizes: list[Size | None], report: Report, *, polygons: bool = True
) -> list[Shape | None]:
    """The shapes of the masks that have one and fit their image."""
    kinds = (dict, list) if polygons else (dict,)
    wanted = "an RLE object or a list of polygons" if polygons else "an RLE object"
    masks = [
        (report.get(row, place, "segmentation", lambda v: isinstance(v, kinds), wanted), size)
        for (_, place, row), size in zip(batch, sizes, strict=True)
    ]
    shapes: list[Shape | None] = []
    for (_, place, _), found in zip(batch, _shapes(masks), strict=True):
        if isinstance(found, Shape):
            shapes.append(found)
            continue
        shapes.append(None)
        for fault in found:
            report.add((*place, "segmentation", *fault.place), fault.message)
    return shapes


def _shapes(masks: list[Mask]) -> list[list[Fault] | Shape]:
    """Of each mask its shape, or what is wrong with it: nothing, where it is of neither kind."""
    found: list[list[Fault] | Shape] = [[] for _ in masks]
    for kind, shapes in ((dict, rle_shapes), (list, polygon_shapes)):
        chosen = [i for i, (mask, _) in enumerate(masks) if isinstance(mask, kind)]
        for i, shape in zip(chosen, shapes([masks[i] for i in chosen]), strict=True):
            found[i] = shape
    return found


def _check_box(
    row: dict[str, Any], place: Place, size: Size | None, shape: Shape | None, report: Report
) -> None:
    box = report.get(row, place, "bbox", is_box, BOX)
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


def _check_area(row: dict[str, Any], place: Place, shape: Shape | None, report: Report) -> None:
    area = report.get(row, place, "area", is_area, AREA)
    if area is not None and shape is not None and not shape.area_fits(area):
        report.add((*place, "area"), f"expected its mask's area, got {shortly(area)}")


def _check_crowd(row: dict[str, Any], place: Place, report: Report) -> None:
    crowd = report.get(row, place, "iscrowd", is_crowd, CROWD)
    if crowd == 1 and isinstance(row.get("segmentation"), list):
        report.add(
            (*place, "iscrowd"), "expected 0 beside polygons, got 1: the mask of a crowd is an RLE"
        )


_BATCH = 1 << 14
"""Characters and numbers of the masks that are checked at once. With more, memory is asked of the
system for every array anew, which costs more than the calls of numpy."""


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
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
