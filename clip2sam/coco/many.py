"""Areas and boxes of many masks at once, for files of several 100,000 annotations.

One by one, nearly all the time is the overhead of numpy's calls on a few dozen numbers. Here the
numbers of all masks stand in one array; cumulative sums run over it as a whole, and each mask
subtracts their value at its start.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt64

from clip2sam.coco.content import contents_of_runs

_COUNTS = re.compile("[0-o]*[0-O]")
"""The strings that split into numbers."""


def areas_and_boxes(
    counts: Sequence[str], sizes: Int[np.ndarray, "masks 2"]
) -> tuple[
    Bool[np.ndarray, "masks"],
    Int[np.ndarray, "masks"],
    Int[np.ndarray, "masks 4"],
    UInt64[np.ndarray, "masks"],
]:
    """`area_and_box` of many compressed RLEs, and `contents_of_runs`.

    Args:
        counts: the strings. Memory: about 100 bytes a character for the time of the call.
        sizes: (height, width) of each, from 1, with fewer than 2**32 pixels.

    Returns:
        Whether each RLE is sound, its area, its box, and its content. For one that is not sound
        these are 0; `run_lengths` says what is wrong with it.
    """
    sound = np.array([_COUNTS.fullmatch(text) is not None for text in counts], np.bool_)
    area, box = np.zeros(len(counts), np.int64), np.zeros((len(counts), 4), np.int64)
    content = np.zeros(len(counts), np.uint64)
    chosen = np.flatnonzero(sound)
    if len(chosen):
        numbers, each = _numbers([counts[i] for i in chosen.tolist()])
        outside, inside, pairs = _runs(numbers, each)
        fits, areas, boxes, contents = _of_runs(outside, inside, pairs, sizes[chosen])
        sound[chosen] = fits
        chosen = chosen[fits]
        area[chosen], box[chosen], content[chosen] = areas[fits], boxes[fits], contents[fits]
    return sound, area, box, content


def _numbers(
    counts: Sequence[str],
) -> tuple[Int[np.ndarray, "numbers"], Int[np.ndarray, "masks"]]:
    """The numbers of all strings, and how many there are in each. For the code see
    `clip2sam.coco.rle`. In place of a number of more than 7 characters stands _TOO_LONG."""
    codes = np.frombuffer("".join(counts).encode("ascii"), np.uint8) - np.uint8(ord("0"))
    last = codes < 32
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    numbers = (codes[starts] & 31).astype(np.int64)
    for k in range(1, min(7, int(lengths.max()))):
        longer = np.flatnonzero(lengths > k)
        numbers[longer] |= (codes[starts[longer] + k] & 31).astype(np.int64) << (5 * k)
    negative = np.flatnonzero(codes[ends] & 16)
    numbers[negative] -= 1 << (5 * np.minimum(lengths[negative], 7))
    numbers[lengths > 7] = _TOO_LONG
    characters = np.fromiter(map(len, counts), np.int64, len(counts))
    return numbers, np.add.reduceat(last, np.cumsum(characters) - characters, dtype=np.int64)


_TOO_LONG = -(1 << 40)
"""So far below 0 that no sum of two neighbours is a length."""


def _runs(
    numbers: Int[np.ndarray, "numbers"], each: Int[np.ndarray, "masks"]
) -> tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"], Int[np.ndarray, "masks"]]:
    """The runs outside and inside of the masks, in pairs, and how many pairs each mask has. The
    last run inside has no length where the mask ends outside."""
    pairs = (each + 1) // 2
    firsts = np.cumsum(pairs) - pairs
    both = np.zeros((int(pairs.sum()), 2), np.int64)
    place = np.arange(len(numbers)) + np.repeat(2 * firsts - (np.cumsum(each) - each), each)
    both.ravel()[place] = numbers
    outside, inside = both[:, 0].copy(), both[:, 1].copy()  # sums of neighbours are faster
    # From the fourth number on, each is the difference to the number two places before. The first
    # number stands alone.
    alone = outside[firsts]
    outside[firsts] = 0
    for runs in (outside, inside):
        before = np.concatenate([[0], np.cumsum(runs)])[firsts]
        np.cumsum(runs, out=runs)
        runs -= np.repeat(before, pairs)
    outside[firsts] = alone
    inside[np.cumsum(pairs)[each % 2 == 1] - 1] = 0
    return outside, inside, pairs


def _of_runs(
    outside: Int[np.ndarray, "pairs"],
    inside: Int[np.ndarray, "pairs"],
    pairs: Int[np.ndarray, "masks"],
    sizes: Int[np.ndarray, "masks 2"],
) -> tuple[
    Bool[np.ndarray, "masks"],
    Int[np.ndarray, "masks"],
    Int[np.ndarray, "masks 4"],
    UInt64[np.ndarray, "masks"],
]:
    """Whether runs fit their mask's size, and the areas, boxes and contents of the masks."""
    firsts = np.cumsum(pairs) - pairs
    ends = np.cumsum(outside + inside)
    before = np.concatenate([[0], ends])[firsts]
    fits = ends[firsts + pairs - 1] - before == sizes[:, 0] * sizes[:, 1]
    if min(outside.min(), inside.min()) < 0:
        fits &= np.minimum.reduceat(np.minimum(outside, inside), firsts) >= 0
    if max(outside.max(), inside.max()) >= 2**32:  # sums of these might overflow
        fits &= np.maximum.reduceat(np.maximum(outside, inside), firsts) < 2**32
    area, box = np.add.reduceat(inside, firsts), np.zeros((len(pairs), 4), np.int64)
    content = np.zeros(len(pairs), np.uint64)
    ends -= np.repeat(before, pairs)
    mask = np.repeat(np.arange(len(pairs)), pairs)
    filled = np.flatnonzero(inside > 0)
    if len(filled) == 0:
        return fits, area, box, content
    if len(filled) < len(inside):
        mask, ends, inside = mask[filled], ends[filled], inside[filled]
    starts = np.flatnonzero(np.diff(mask, prepend=-1))
    # fp64: these whole numbers are below 2**32, so quotients are exact, and several times as fast
    height, last = sizes[:, 0].astype(np.float64)[mask], ends - 1.0
    first = ends - inside
    left, right = np.floor(first / height), np.floor(last / height)
    # a run over two columns touches the bottom of the one and the top of the other
    one = left == right
    top = np.where(one, first - left * height, 0)
    bottom = np.where(one, last - right * height, height - 1)
    x, y = left[starts], np.minimum.reduceat(top, starts)
    x_end, y_end = np.maximum.reduceat(right, starts) + 1, np.maximum.reduceat(bottom, starts) + 1
    with np.errstate(invalid="ignore"):  # of runs that don't fit, anything may come out
        box[mask[starts]] = np.stack([x, y, x_end - x, y_end - y], axis=1).astype(np.int64)
    content[mask[starts]] = contents_of_runs(first, ends, starts)
    return fits, area, box, content
