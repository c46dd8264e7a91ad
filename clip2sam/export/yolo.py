"""Records as a YOLO segmentation dataset: images, and a text file for each of them.

Source of the format: https://docs.ultralytics.com/datasets/segment/
"""

import os
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from clip2sam.coco.document import CheckedMask, checked_records
from clip2sam.coco.outlines import TOLERANCE, Fit, Outline, fit_of, outline_of
from clip2sam.coco.polygons import joined_polygons
from clip2sam.data.files import output_errors, write_atomically
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import ImageRecord
from clip2sam.export.names import FileNames
from clip2sam.export.placing import Placing
from clip2sam.export.splits import SPLITS, check_share, split_of

READ = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""The suffixes of ours that ultralytics reads, in lower case."""


@dataclass(frozen=True)
class YoloExporter:
    """YOLO segmentation: `images/train/`, `images/val/`, `labels/train/`, `labels/val/`, and
    `data.yaml`, which leads to them.

    A line of a label file is a class (from 0) and a polygon: x and y alternately, as fractions of
    the image's width and height. A mask of several parts is one line: they are joined by lines
    there and back, which enclose nothing (a reader that also fills the pixels on an outline shows
    them one pixel wide). An image without a mask has an empty file.

    Names are those of `FileNames`, with a `UserWarning` where they had to be changed; folders stay,
    but `images` becomes `images_`: readers find a label file by replacing the last `/images/` of
    its image's path by `/labels/`.
    """

    images: str = "none"
    """How images are put beside their label files, see `Placing`."""
    root: str | os.PathLike[str] | None = None
    """The folder that the records' names are relative to. Nothing is written there."""
    val_share: float = 0.1
    """The share of the images in `val`, 0 or more and below 1, see `split_of`."""
    tolerance: float = TOLERANCE
    """Of the polygons, in pixels, see `outline_of`; 0: exact."""
    read: Callable[[str], bytes] | None = None
    """In place of a root, for images that are no files, see `Placing`."""

    def __post_init__(self) -> None:
        _ = self._placing
        check_share(self.val_share)

    @property
    def _placing(self) -> Placing:
        return Placing(self.images, self.root, self.read)

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> Fit | None:
        """Write the folder `output`. What an earlier export has written of the same images is
        replaced, also where an image was in the other split.

        Returns:
            How well the polygons fit their masks; None if there are none.

        Raises:
            ConfigError: the tolerance is below 0, or images can't be linked.
            CocoError: a record doesn't fit, see `checked_masks`.
            ImageError: an image is not there any more.
            OutputError: a file can't be written.
        """
        ious, placing = array("d"), self._placing
        names, counts, unread = FileNames(reserved=("images",)), Counter[str](), 0
        for record, masks in checked_records(records, classes):
            text = ""
            for mask in masks:
                outline = outline_of(mask.annotation.rle, self.tolerance)
                ious.append(outline.iou)
                text += _line(mask, outline, *record.size)
            data = placing.data(record.file_name)
            suffix = placing.suffix(record.file_name, data)
            stem = names.stem(record.file_name, max(".txt", suffix, key=len))
            split = split_of(record.file_name, self.val_share)
            self._write_labels(text, output, split, stem)
            if self.images != "none":
                self._remove_old(output / "images", split, stem + suffix)
                placing.put(record.file_name, data, output / "images" / split / (stem + suffix))
            counts[split] += 1
            unread += suffix.lower() not in READ
        _write_yaml(output, classes, has_val=counts["val"] > 0)
        names.write_list(output)
        if counts["train"] and self.val_share and not counts["val"]:
            _warn(
                f"none of {counts['train']} images is in val, so data.yaml has train in its place; "
                "give a larger --val-share (val_share)"
            )
        if unread:
            _warn(
                f"{unread} images have a suffix that ultralytics passes over, which reads "
                f"{', '.join(READ)}; convert them"
            )
        return fit_of(ious)

    def _write_labels(self, text: str, output: Path, split: str, stem: str) -> None:
        self._remove_old(output / "labels", split, f"{stem}.txt")
        write_atomically(output / "labels" / split / f"{stem}.txt", text.encode())

    def _remove_old(self, folder: Path, split: str, file: str) -> None:
        """An earlier export may have had the image in the other split."""
        (other,) = {*SPLITS} - {split}
        with output_errors(folder / other / file):
            (folder / other / file).unlink(missing_ok=True)


def _write_yaml(output: Path, classes: Sequence[LabelClass], *, has_val: bool) -> None:
    data = {
        "path": os.path.abspath(output),
        "train": "images/train",
        "val": "images/val" if has_val else "images/train",
        "names": {i: c.name for i, c in enumerate(classes)},
    }
    note = "# If this folder is moved: correct path, or delete its line.\n"
    text = note + yaml.safe_dump(data, allow_unicode=True, sort_keys=False)
    write_atomically(output / "data.yaml", text.encode())


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)


def _line(mask: CheckedMask, outline: Outline, height: int, width: int) -> str:
    corners = joined_polygons(outline.polygons) / (width, height)
    return f"{mask.number - 1} " + " ".join(f"{v:.6g}" for v in corners.ravel()) + "\n"
