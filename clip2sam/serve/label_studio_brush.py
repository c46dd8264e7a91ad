"""Masks as Label Studio's brush regions: its own RLE.

It is a stream of bits, the highest of a byte first. It begins with the number of values (32 bits),
the bits of a value less 1 (5), and the sizes of four kinds of lengths less 1 (4 each). Runs follow:
a 1, the kind of the length (2 bits), the length less 1, the value. (A 0 would begin values that are
written one by one.) The values are those of an image in RGBA, 8 bits each, row by row.

Source: https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack, which Label Studio uses.
"""

import numpy as np
from jaxtyping import Bool, Int, UInt8

SIZES = np.array([3, 4, 8, 16])
"""Bits of the four kinds of lengths."""
CHANNELS = 4
INSIDE = 255
"""In all four channels of a pixel of the mask; 0 outside."""


def brush_rle(mask: Bool[np.ndarray, "height width"]) -> UInt8[np.ndarray, "bytes"]:
    """A mask as Label Studio's RLE."""
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    runs = np.diff(np.append(starts, flat.size)) * CHANNELS
    lengths, owner = _cut(runs, 1 << int(SIZES[-1]))
    kinds = np.searchsorted(SIZES, _bits(lengths - 1))
    sizes = SIZES[kinds]
    values = np.where(flat[starts], INSIDE, 0)[owner]
    words = ((4 + kinds << sizes) + lengths - 1 << 8) + values
    head = [flat.size * CHANNELS, 8 - 1, *(SIZES - 1)]
    return _packed(
        np.concatenate([head, words]), np.concatenate([[32, 5, 4, 4, 4, 4], 3 + sizes + 8])
    )


def _cut(
    runs: Int[np.ndarray, "runs"], most: int
) -> tuple[Int[np.ndarray, "parts"], Int[np.ndarray, "parts"]]:
    """Runs in parts of at most `most` values, and the run of each part."""
    counts = -(-runs // most)
    owner = np.repeat(np.arange(len(runs)), counts)
    lengths = np.full(len(owner), most)
    lengths[np.cumsum(counts) - 1] = runs - (counts - 1) * most
    return lengths, owner


def _bits(numbers: Int[np.ndarray, "some"]) -> Int[np.ndarray, "some"]:
    """How many bits a number from 0 to 2**16 - 1 needs."""
    return np.searchsorted(1 << np.arange(17), numbers, side="right")


def _packed(
    words: Int[np.ndarray, "words"], sizes: Int[np.ndarray, "words"]
) -> UInt8[np.ndarray, "bytes"]:
    """Numbers of so many bits each, one after the other, filled up with zeros to whole bytes."""
    ends = np.cumsum(sizes)
    owner = np.repeat(np.arange(len(words)), sizes)
    left = ends[owner] - 1 - np.arange(ends[-1])  # bits of the number behind this one
    return np.packbits((words[owner] >> left & 1).astype(np.uint8))
