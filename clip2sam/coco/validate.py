"""COCO data checked without trusting it: every fault is found and named with its place, and no
input leads to a traceback.

Of a file, only a few hundred annotations are in memory at a time.

Source of the format: https://cocodataset.org/#format-data
"""

import os
from typing import Any

from clip2sam.coco.annotations import check_annotations, check_results
from clip2sam.coco.json_text import RepeatedKeys
from clip2sam.coco.reading import JsonRows, read_rows
from clip2sam.coco.report import NOTHING, SECTIONS, Report, Violation
from clip2sam.coco.rle import shortly
from clip2sam.coco.sections import Known, check_categories, check_images
from clip2sam.coco.strict import json_faults
from clip2sam.errors import CocoError


def validate(
    source: dict[str, Any] | list[Any] | str | os.PathLike[str],
    against: dict[str, Any] | str | os.PathLike[str] | None = None,
) -> list[Violation]:
    """All faults of a COCO dataset (an object) or of COCO results (a list).

    Ids may be any whole numbers from 1 to 2**53 - 1, with gaps. Boxes and areas are compared with
    their masks: to the pixel for RLE, within the rounding of a polygon to pixels for polygons. A
    document in memory must be JSON as it is: no numpy integers, no bytes.

    Args:
        source: the data, or the path of a JSON file.
        against: the dataset that results belong to: its images and categories. Its own faults are
            not reported.

    Returns:
        The faults, in the order of the data; an empty list for valid data. Nothing is raised for
        invalid data, whatever it is.
    """
    report = Report()
    value = _load(source, "file", report)
    try:
        known = None if against is None else _known(_load(against, "against", report), report)
        if value is not NOTHING:
            _check(value, known, report)
    except CocoError as error:  # while rows were read
        report.add(("file",), str(error))
    return report.violations()


def _load(source: Any, place: str, report: Report) -> Any:
    """The value of a JSON file, or `source` itself if it is no path."""
    if not isinstance(source, str | os.PathLike):
        return source
    try:
        return read_rows(source, SECTIONS)
    except CocoError as error:
        report.add((place,), str(error))
    return NOTHING


def _known(document: Any, report: Report) -> Known | None:
    """What results may refer to in their dataset."""
    if isinstance(document, dict):
        return Known(check_images(document, Report()), check_categories(document, Report()))
    if document is not NOTHING:
        shown = "a list" if isinstance(document, list | JsonRows) else shortly(document)
        report.add(("against",), f"expected a dataset, an object, got {shown}")
    return None


def _check(value: Any, known: Known | None, report: Report) -> None:
    if isinstance(value, list | JsonRows):
        check_results(value, known, report)
    elif isinstance(value, dict):
        _check_dataset(value, report)
    else:
        report.add(
            ("file",), f"expected an object (a dataset) or a list (results), got {shortly(value)}"
        )


def _check_dataset(document: dict[str, Any], report: Report) -> None:
    # lists of a section are looked into row by row
    rows = {k: None for k in SECTIONS if isinstance(document.get(k), list)}
    head = RepeatedKeys({**document, **rows})
    head.repeated = document.repeated if isinstance(document, RepeatedKeys) else ()
    report.add_all(json_faults(head, ()))
    report.get(document, (), "info", lambda v: isinstance(v, dict), "an object")
    known = Known(check_images(document, report), check_categories(document, report))
    check_annotations(document, known, report)
