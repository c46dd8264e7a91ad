"""Records as index images: a PNG for each image, whose pixels are class numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16

from clip2sam.coco.document import checked_records
from clip2sam.data.files import write_atomically
from clip2sam.data.labels import LabelClass
from clip2sam.data.palette import colour
from clip2sam.data.records import ImageRecord
from clip2sam.export.names import FileNames
from clip2sam.export.painting import painted, png_of


@dataclass(frozen=True)
class PngExporter:
    """`NAME.png` for each image, where NAME is its file name without suffix: 0 is background, 1 the
    first class, and so on; `classes.txt` has the names.

    With up to 255 classes 8 bits with a palette, else 16 bits. Where masks of several classes
    overlap, the one with the best score is on top, unless the decision has separated them. Names
    are those of `FileNames`, with a `UserWarning` where they had to be changed.
    """

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> None:
        """Write the folder `output`.

        Raises:
            CocoError: a record doesn't fit, see `checked_masks`.
            OutputError: a file can't be written.
        """
        file_names = FileNames()
        for record, masks in checked_records(records, classes):
            path = file_names.path(output, record.file_name, ".png")
            numbers = np.array([0, *(mask.number for mask in masks)], np.uint16)
            index = numbers[painted(record.size, masks)]
            write_atomically(path, index_png(index, len(classes)))
        names = "".join(f"{i} {c.name}\n" for i, c in enumerate(classes, 1))
        write_atomically(output / "classes.txt", names.encode())
        file_names.write_list(output)


def index_png(numbers: UInt16[np.ndarray, "height width"], classes: int) -> bytes:
    """Class numbers as a PNG: with up to 255 classes 8 bits with a palette, in which 0 is black,
    else 16 bits.

    Args:
        numbers: 0 is background, 1 the first class, and so on.
        classes: how many there are.
    """
    if classes > 255:
        return png_of(numbers.astype(np.uint16))
    return png_of(numbers.astype(np.uint8), class_colours(255))


def class_colours(classes: int) -> UInt8[np.ndarray, "numbers 3"]:
    """The colour of each class number, RGB; black for 0, background."""
    colours = np.array([(0, 0, 0), *(colour(i) for i in range(classes))])
    return np.rint(255 * colours).astype(np.uint8)
