"""The boxes and areas of many RLEs at once; what is wrong with one is said with its place."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip2sam.coco.content import contents_of_runs
from clip2sam.coco.many import areas_and_boxes
from clip2sam.coco.rle import area_and_box, run_lengths, shortly
from clip2sam.coco.shapes import Fault, Mask, Shape, Size
from clip2sam.errors import CocoError

_BELOW_ONE = math.nextafter(1, 0)
_Known = tuple[int, list[int], int]
"""Area, box, content."""


def rle_shapes(masks: Sequence[Mask]) -> list[list[Fault] | Shape]:
    """The shapes of RLE objects, or what is wrong with them: all that look sound at once, the
    others one by one. Masks of the same pixels have the same content."""
    plain = [i for i, (rle, _) in enumerate(masks) if _is_plain(rle)]
    known: dict[int, _Known] = {}
    if plain:
        sizes = np.array([masks[i][0]["size"] for i in plain], np.int64)
        results = areas_and_boxes([masks[i][0]["counts"] for i in plain], sizes)
        for i, sound, *measured in zip(plain, *(r.tolist() for r in results), strict=True):
            if sound:
                known[i] = tuple(measured)
    return [_rle_shape(rle, size, known.get(i)) for i, (rle, size) in enumerate(masks)]


def _is_plain(rle: dict[str, Any]) -> bool:
    size = rle.get("size")
    return (
        type(rle.get("counts")) is str
        and type(size) is list
        and len(size) == 2
        and type(size[0]) is type(size[1]) is int
        and min(size) > 0
        and size[0] * size[1] < 2**32
    )


def _measured(rle: dict[str, Any]) -> _Known:
    """One by one, and of lists of counts.

    Raises:
        CocoError: the RLE is damaged.
    """
    area, box = area_and_box(rle)
    runs = run_lengths(rle)
    ends, inside = np.cumsum(runs)[1::2], runs[1::2]
    if area == 0:
        return area, box, 0
    return area, box, int(contents_of_runs(ends - inside, ends, np.zeros(1, np.int64))[0])


def _rle_shape(rle: dict[str, Any], size: Size | None, known: _Known | None) -> list[Fault] | Shape:
    try:
        area, (x, y, width, height), content = known or _measured(rle)
    except CocoError as error:
        return [Fault((), str(error))]
    if size is not None and tuple(rle["size"]) != size:
        return [
            Fault(
                ("size",),
                f"expected the image's [height, width], {list(size)}, got {shortly(rle['size'])}",
            )
        ]
    if area == 0:
        return [Fault((), "expected a mask of at least one pixel, got an empty one")]
    content = hash((*rle["size"], content))  # in images of an unknown size, masks may have several
    return Shape((x, y, x + width, y + height), 0.99, area, _BELOW_ONE, content)
