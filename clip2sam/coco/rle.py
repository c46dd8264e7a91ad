"""Masks as run-length encoding (RLE).

The form is pycocotools' compressed one as text: {"size": [height, width], "counts": str}, the runs
going down the columns. A box is [x, y, width, height] in pixels; [0, 0, 1, 1] is the first pixel.
Source: common/maskApi.c of https://github.com/cocodataset/cocoapi
"""

import reprlib
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as mask_utils

from clip2sam.errors import CocoError


def encode_mask(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """A mask as RLE.

    Raises:
        CocoError: the array is not boolean, not of two dimensions, or has no pixels.
    """
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise CocoError(
            f"expected a boolean mask (height, width), got {mask.dtype} of shape {mask.shape}; "
            "convert it"
        )
    # pycocotools wants Fortran order: the transpose of a C-ordered transpose is that without a copy
    columns = cv2.transpose(np.ascontiguousarray(mask).view(np.uint8)).reshape(mask.shape[::-1])
    rle = mask_utils.encode(columns.T)
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: dict[str, Any]) -> Bool[np.ndarray, "height width"]:
    """The mask of an RLE, compressed or not.

    Raises:
        CocoError: the RLE is damaged, see `run_lengths`.
    """
    runs = run_lengths(rle)
    height, width = rle["size"]
    inside = (np.arange(len(runs)) % 2).astype(np.uint8)
    columns = np.repeat(inside, runs).reshape(width, height)
    return np.ascontiguousarray(cv2.transpose(columns).reshape(height, width)).view(np.bool_)


def run_lengths(rle: dict[str, Any]) -> Int[np.ndarray, "runs"]:
    """The lengths of a mask's runs down its columns: int64, alternately outside and inside the
    mask, starting outside. They sum to height * width.

    Args:
        rle: {"size": [height, width], "counts": a compressed string or a list of lengths}.

    Raises:
        CocoError: it is no such thing, or the lengths don't fit the size.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not (
        isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    ):
        raise CocoError(
            f"expected an RLE size of [height, width], whole numbers from 1, got {shortly(size)}"
        )
    pixels = size[0] * size[1]
    if pixels >= 2**32:
        raise CocoError(
            f"expected an RLE of fewer than 2**32 pixels, got a size of {shortly(size)}"
        )
    if isinstance(counts, str):
        runs = _unpack(counts)
    elif isinstance(counts, list) and all(type(n) is int and 0 <= n <= pixels for n in counts):
        runs = np.array(counts, np.int64)
    else:
        raise CocoError(
            f"expected RLE counts as a string or a list of lengths, got {shortly(counts)}"
        )
    if (runs < 0).any():
        raise CocoError(f"expected RLE counts from 0, got {runs.min()} at position {runs.argmin()}")
    if runs.max(initial=0) > pixels or runs.sum() != pixels:  # sums of larger ones might overflow
        raise CocoError(
            f"expected RLE counts that sum to {pixels} (height * width), got {runs.sum()}"
        )
    return runs


def area_and_box(rle: dict[str, Any]) -> tuple[int, list[int]]:
    """Number of pixels and box [x, y, width, height] of a mask; all 0 for an empty one.

    Raises:
        CocoError: the RLE is damaged, see `run_lengths`.
    """
    runs = run_lengths(rle)
    height = rle["size"][0]
    inside = runs[1::2]
    ends = np.cumsum(runs)[1::2][inside > 0]
    if len(ends) == 0:
        return 0, [0, 0, 0, 0]
    first, last = ends - inside[inside > 0], ends - 1
    left, right = int(first[0]) // height, int(last[-1]) // height
    # a run over two columns touches the bottom of the one and the top of the other
    if (first // height != last // height).any():
        top, bottom = 0, height - 1
    else:
        top, bottom = int((first % height).min()), int((last % height).max())
    return int(inside.sum()), [left, top, right - left + 1, bottom - top + 1]


def _unpack(counts: str) -> Int[np.ndarray, "runs"]:
    """The numbers in a compressed RLE string.

    A character holds 5 bits of a number, the lowest first; its sixth bit says that more follow. The
    fifth bit of a number's last character is the sign. From the fourth number on, each is the
    difference to the number two places before.
    """
    codes = np.frombuffer(counts.encode("ascii", "replace"), np.uint8).astype(np.int64) - ord("0")
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or not counts.isascii():
        raise CocoError(f"expected RLE counts of the characters '0' to 'o', got {shortly(counts)}")
    ends = np.flatnonzero(codes < 32)
    if len(ends) == 0 or ends[-1] != len(codes) - 1:
        raise CocoError("expected RLE counts, got a string that ends within a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise CocoError("expected RLE counts below 2**32, got a number of more than 7 characters")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def shortly(value: Any) -> str:
    """A value for a message: short, on one line."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
