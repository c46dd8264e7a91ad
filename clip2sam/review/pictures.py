"""Small images for the page."""

import io

import PIL.Image

from clip2sam.data.images import load_image, printable
from clip2sam.data.records import ImageRecord
from clip2sam.data.sources import Source
from clip2sam.errors import Clip2SamError, ImageError, one_line

SIDE = 320
"""Pixels of the longer side."""
QUALITY = 80
"""JPEG's. WebP takes a third of the bytes, and nearly twice the time."""


def picture(source: Source | None, record: ImageRecord, max_pixels: int) -> bytes:
    """An image as a small JPEG.

    Args:
        source: that of the image's run; None: of the user's own.
        record: a done or empty one.

    Raises:
        ImageError: it can't be read, or isn't the image that was labelled.
    """
    if source is None:
        raise ImageError("no picture: the images of this run came from an object, not from files")
    try:
        image = load_image(source.read(record.file_name), max_pixels=max_pixels)
    except (Clip2SamError, OSError) as error:
        raise ImageError(printable(one_line(error))) from error
    if image.size != record.size:
        (height, width), (now_high, now_wide) = record.size, image.size
        raise ImageError(
            f"the image has changed since: it was {height} x {width} (height x width), and is now "
            f"{now_high} x {now_wide}"
        )
    small = PIL.Image.fromarray(image.pixels)
    small.thumbnail((SIDE, SIDE), PIL.Image.Resampling.BILINEAR, reducing_gap=2.0)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
