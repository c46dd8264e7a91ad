"""The masks of an image in one array, as formats have them whose pixels belong to one object."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, UInt8, UInt16
from PIL import Image as PILImage

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


def png_of(
    pixels: UInt8[np.ndarray, "height width *channels"] | UInt16[np.ndarray, "height width"],
    palette: UInt8[np.ndarray, "numbers 3"] | None = None,
) -> bytes:
    """An array as a PNG.

    Args:
        palette: RGB of the numbers 0, 1, 2, ... that the pixels are; for 8 bits.
    """
    image = PILImage.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.tobytes())
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
