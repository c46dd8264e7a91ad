"""The masks of an image in one array, as formats have them whose pixels belong to one object."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from clip2sam.coco.document import CheckedMask
from clip2sam.coco.rle import decode_rle


def painted(
    size: tuple[int, int], masks: Sequence[CheckedMask]
) -> Int32[np.ndarray, "height width"]:
    """The mask that each pixel belongs to: 1, 2, 3, ... in the order given; 0 where there is none.

    Where masks overlap, the one with the best score is on top.

    Args:
        size: height and width of the image.
    """
    index = np.zeros(size, np.int32)
    for i in sorted(range(len(masks)), key=lambda i: masks[i].annotation.score):
        index[decode_rle(masks[i].annotation.rle)] = i + 1
    return index
