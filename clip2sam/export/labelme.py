"""Records as LabelMe's files: a JSON file of polygons for each image.

Source of the format: https://github.com/wkentaro/labelme (`labelme/_label_file.py`)
"""

import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from clip2sam.coco.document import CheckedMask, checked_records
from clip2sam.coco.outlines import TOLERANCE, Fit, Outline, fit_of, outline_of
from clip2sam.coco.polygons import Ring
from clip2sam.coco.rle import decode_rle
from clip2sam.data.files import as_json, write_atomically
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import ImageRecord
from clip2sam.export.names import FileNames
from clip2sam.export.placing import Placing

VERSION = "5.5.0"
"""Of LabelMe, whose form the files have."""
INWARDS = 0.01
"""Pixels by which corners are moved, see `_drawn_alike`."""


@dataclass(frozen=True)
class LabelMeExporter:
    """`NAME.json` for each image, where NAME is its file name without suffix.

    A part of a mask is a polygon, with its holes cut out. Parts of one mask have its number in the
    image as `group_id`; a mask of one part has none. `score` is kept as a key of its own.

    `imagePath` leads from the file to the image: to the one beside it if images are put there, else
    to the one in the root, else it is the image's last name, and the files are to be put beside the
    images. `imageData` is null. Names are those of `FileNames`, with a `UserWarning` where they had
    to be changed.
    """

    images: str = "none"
    """How images are put beside their files, see `Placing`."""
    root: str | os.PathLike[str] | None = None
    """The folder that the records' names are relative to. Nothing is written there."""
    tolerance: float = TOLERANCE
    """Of the polygons, in pixels, see `outline_of`; 0: exact."""
    read: Callable[[str], bytes] | None = None
    """In place of a root, for images that are no files, see `Placing`."""

    def __post_init__(self) -> None:
        _ = self._placing

    @property
    def _placing(self) -> Placing:
        return Placing(self.images, self.root, self.read)

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> Fit | None:
        """Write the folder `output`.

        Returns:
            How well the polygons fit their masks; None if there are none.

        Raises:
            ConfigError: the tolerance is below 0, or images can't be linked.
            CocoError: a record doesn't fit, see `checked_masks`.
            ImageError: an image is not there any more.
            OutputError: a file can't be written.
        """
        ious = array("d")
        placing, names = self._placing, FileNames()
        for record, masks in checked_records(records, classes):
            shapes: list[dict[str, Any]] = []
            for number, mask in enumerate(masks, 1):
                outline = outline_of(mask.annotation.rle, self.tolerance)
                ious.append(outline.iou)
                shapes += _shapes(mask, outline, number)
            data = placing.data(record.file_name)
            suffix = placing.suffix(record.file_name, data)
            stem = names.stem(record.file_name, max(".json", suffix, key=len))
            path = output / f"{stem}.json"
            document: dict[str, Any] = {
                "version": VERSION,
                "flags": {},
                "shapes": shapes,
                "imagePath": self._image_path(record.file_name, path, suffix),
                "imageData": None,
                "imageHeight": record.size[0],
                "imageWidth": record.size[1],
            }
            write_atomically(path, as_json(document).encode() + b"\n")
            placing.put(record.file_name, data, output / (stem + suffix))
        names.write_list(output)
        return fit_of(ious)

    def _image_path(self, name: str, path: Path, suffix: str) -> str:
        if self.images != "none":
            return path.stem + suffix
        if self.root is None:
            return os.path.basename(name)
        root = os.path.realpath(self.root)
        return Path(os.path.relpath(f"{root}/{name}", os.path.realpath(path.parent))).as_posix()


def _shapes(mask: CheckedMask, outline: Outline, number: int) -> list[dict[str, Any]]:
    """The parts of a mask, which is the image's mask of this number."""
    pixels = decode_rle(mask.annotation.rle)
    return [
        {
            "label": mask.annotation.label,
            "points": _drawn_alike(np.reshape(polygon, (-1, 2)), pixels).tolist(),
            "group_id": number if len(outline.polygons) > 1 else None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "score": mask.annotation.score,
        }
        for polygon in outline.polygons
    ]


def _drawn_alike(ring: Ring, mask: Bool[np.ndarray, "height width"]) -> Ring:
    """A polygon that LabelMe itself draws as the mask, too.

    Its coordinates are continuous, but its converters take whole parts, and draw the pixels there:
    a polygon along the edges of pixels gets a row too many below and a column at the right. So
    corners with the mask above or to the left are moved there, by `INWARDS`.
    """
    columns, rows = ring.astype(int).T + 1  # of the four pixels around a corner
    around = np.pad(mask, 1).astype(int)
    above_left, above = around[rows - 1, columns - 1], around[rows - 1, columns]
    left, here = around[rows, columns - 1], around[rows, columns]
    to_the_left = above_left + left > above + here
    upwards = above_left + above > left + here
    return np.round(ring - INWARDS * np.column_stack([to_the_left, upwards]), 3)
