"""Records as label images like those of Cityscapes: ids of classes, ids of objects, colours.

Source of the format: https://github.com/mcordts/cityscapesScripts
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clip2sam.coco.document import CheckedMask, checked_records
from clip2sam.data.files import as_json, write_atomically
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import ImageRecord
from clip2sam.errors import CocoError, ConfigError
from clip2sam.export.names import FileNames
from clip2sam.export.painting import painted, png_of
from clip2sam.export.png import class_colours

MOST_CLASSES = 64
"""An id of an object is 1,000 times that of its class, and more, in 16 bits."""
MOST_OBJECTS = 1000
"""Of a class in an image, for the same reason."""
IMAGE_ENDING = "_leftImg8bit"
"""What the names of Cityscapes' own images end in; their labels' names don't have it."""


@dataclass(frozen=True)
class CityscapesExporter:
    """Three PNG files for each image, where NAME is its file name without suffix and without
    `_leftImg8bit`: `NAME_gtFine_labelIds.png` (8 bits: 0 is unlabeled, 1 the first class, and so
    on), `NAME_gtFine_instanceIds.png` (16 bits: 1,000 times the class, plus the object's number,
    from 0, among those of its class; 0 is unlabeled) and `NAME_gtFine_color.png` (RGBA).
    `classes.json` says what the ids mean.

    A pixel belongs to one mask: where masks overlap, the one with the best score is on top, unless
    the decision has separated them. Names are those of `FileNames`, with a `UserWarning` where they
    had to be changed.
    """

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> None:
        """Write the folder `output`.

        Raises:
            ConfigError: there are more than `MOST_CLASSES` classes.
            CocoError: an image has more than `MOST_OBJECTS` masks of a class, or see
                `checked_masks`.
            OutputError: a file can't be written.
        """
        if len(classes) > MOST_CLASSES:
            raise ConfigError(
                f"Cityscapes' ids of objects hold {MOST_CLASSES} classes, but there are "
                f"{len(classes)}; choose the format png, or keep fewer with --class"
            )
        names = FileNames()
        colours = np.pad(class_colours(len(classes)), ((0, 0), (0, 1)), constant_values=255)
        for record, masks in checked_records(records, classes):
            ids = np.array([0, *_object_ids(record, masks)])[painted(record.size, masks)]
            of_class = (ids // 1000).astype(np.uint8)
            stem = names.stem(record.file_name, "_gtFine_instanceIds.png", drop=IMAGE_ENDING)
            for kind, pixels in (
                ("labelIds", of_class),
                ("instanceIds", ids.astype(np.uint16)),
                ("color", colours[of_class]),
            ):
                write_atomically(output / f"{stem}_gtFine_{kind}.png", png_of(pixels))
        labels = [_label(i, c, colours[i].tolist()) for i, c in enumerate((None, *classes))]
        write_atomically(output / "classes.json", as_json({"labels": labels}).encode() + b"\n")
        names.write_list(output)


def _object_ids(record: ImageRecord, masks: Sequence[CheckedMask]) -> list[int]:
    seen: dict[int, int] = {}
    ids = []
    for mask in masks:
        number = seen[mask.number] = seen.get(mask.number, -1) + 1
        if number == MOST_OBJECTS:
            raise CocoError(
                f"{record.file_name} has more than {MOST_OBJECTS} masks of "
                f"{mask.annotation.label!r}, which is what Cityscapes' ids of objects hold; keep "
                "fewer with --max-objects or --min-score"
            )
        ids.append(1000 * mask.number + number)
    return ids


def _label(number: int, label: LabelClass | None, colour: list[int]) -> dict[str, Any]:
    """A class by Cityscapes' own keys; None: unlabeled."""
    return {
        "name": "unlabeled" if label is None else label.name,
        "id": number,
        "trainId": 255 if label is None else number - 1,
        "category": "void" if label is None else label.supercategory,
        "hasInstances": label is not None,
        "ignoreInEval": label is None,
        "color": colour[:3],
    }
