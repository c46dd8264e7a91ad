"""Records as YOLO segmentation labels: a text file for each image.

Source of the format: https://docs.ultralytics.com/datasets/segment/
"""

import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from clip2sam.coco.document import CheckedMask, checked_masks
from clip2sam.coco.outlines import TOLERANCE, Fit, Outline, fit_of, outline_of
from clip2sam.coco.polygons import joined_polygons
from clip2sam.data.files import write_atomically
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import ImageRecord
from clip2sam.errors import ConfigError
from clip2sam.export.names import FileNames


@dataclass(frozen=True)
class YoloExporter:
    """YOLO segmentation: `labels/NAME.txt` for each image, and `data.yaml`, which expects the
    images in `images/` beside it.

    A line is a class (from 0) and a polygon: x and y alternately, as fractions of the image's width
    and height. A mask of several parts is one line: they are joined by lines there and back, which
    enclose nothing (a reader that also fills the pixels on an outline shows them one pixel wide).
    An image without a mask has an empty file. A name that is too long for a file system with .txt
    behind it is shortened (see `fitting_name`), with a `UserWarning`; `shortened_names.csv` lists
    such names, as their images must be renamed alike.
    """

    tolerance: float = TOLERANCE
    """Of the polygons, in pixels, see `outline_of`; 0: exact."""

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> Fit | None:
        """Write the folder `output`.

        Returns:
            How well the polygons fit their masks; None if there are none.

        Raises:
            ConfigError: two images differ only in their suffix, which this format can't tell apart.
            CocoError: a record doesn't fit, see `checked_masks`.
            OutputError: a file can't be written.
        """
        first: dict[str, str] = {}
        ious = array("d")
        file_names = FileNames()
        for record in records:
            name = record.file_name
            stem = os.path.splitext(name)[0]
            if first.setdefault(stem, name) != name:
                raise ConfigError(
                    f"YOLO's label files leave out the suffix of their image: {first[stem]!r} and "
                    f"{name!r} would share one; rename one of them"
                )
            lines = []
            for mask in checked_masks(record, classes):
                outline = outline_of(mask.annotation.rle, self.tolerance)
                ious.append(outline.iou)
                lines.append(_line(mask, outline, *record.size))
            path = file_names.path(output / "labels", stem, ".txt")
            write_atomically(path, "".join(lines).encode())
        names = {i: c.name for i, c in enumerate(classes)}
        data = {"train": "images", "val": "images", "names": names}
        text = yaml.safe_dump(data, allow_unicode=True, sort_keys=False)
        write_atomically(output / "data.yaml", text.encode())
        file_names.write_list(output)
        return fit_of(ious)


def _line(mask: CheckedMask, outline: Outline, height: int, width: int) -> str:
    corners = joined_polygons(outline.polygons) / (width, height)
    return f"{mask.number - 1} " + " ".join(f"{v:.6g}" for v in corners.ravel()) + "\n"
