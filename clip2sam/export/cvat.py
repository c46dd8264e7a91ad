"""Records as CVAT's XML, "CVAT for images 1.1".

Source of the format: https://docs.cvat.ai/docs/dataset_management/formats/xml_format/
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from clip2sam.coco.document import CheckedMask, checked_records
from clip2sam.coco.outlines import TOLERANCE, Fit, Outline, fit_of, outline_of
from clip2sam.coco.rle import decode_rle
from clip2sam.data.files import as_json, atomic_file, write_atomically
from clip2sam.data.labels import LabelClass
from clip2sam.data.palette import colour
from clip2sam.data.records import ImageRecord
from clip2sam.export.xml_text import xml_text

_ALIKE = 'source="auto" occluded="0" z_order="0"'


@dataclass(frozen=True)
class CvatExporter:
    """CVAT's annotations in one XML file, and beside it `NAME.labels.json`: the labels with their
    colours, to be pasted into the "Raw" tab of a task's labels.

    Masks are CVAT's own RLE: alternately pixels outside and inside the mask, along the rows of its
    box. Polygons have holes cut out; the parts of a mask have its number in the image as
    `group_id`. Images are numbered from 0; CVAT finds them by their names.
    """

    polygons: bool = False
    """Write polygons instead of masks."""
    tolerance: float = TOLERANCE
    """Of polygons, in pixels, see `outline_of`; 0: exact."""

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> Fit | None:
        """Write the file `output`, and the labels beside it.

        Returns:
            How well the polygons fit their masks; None without polygons.

        Raises:
            ConfigError: the tolerance is below 0.
            CocoError: a record doesn't fit, see `checked_masks`.
            OutputError: a file can't be written.
        """
        ious = array("d")
        with atomic_file(output) as file:
            file.write(_head(classes, "polygon" if self.polygons else "mask").encode())
            for i, (record, masks) in enumerate(checked_records(records, classes)):
                height, width = record.size
                outlines: list[Outline | None] = [
                    outline_of(mask.annotation.rle, self.tolerance) if self.polygons else None
                    for mask in masks
                ]
                ious.extend(outline.iou for outline in outlines if outline)
                numbered = zip(count(1), masks, outlines, strict=False)
                shapes = "".join(_shape(n, mask, outline) for n, mask, outline in numbered)
                name = xml_text(record.file_name)
                file.write(
                    f'  <image id="{i}" name="{name}" width="{width}" height="{height}">\n'
                    f"{shapes}  </image>\n".encode()
                )
            file.write(b"</annotations>\n")
        labels = [
            {"name": c.name, "color": _hex(i), "attributes": []} for i, c in enumerate(classes)
        ]
        write_atomically(output.with_suffix(".labels.json"), as_json(labels).encode() + b"\n")
        return fit_of(ious)


def _shape(number: int, mask: CheckedMask, outline: Outline | None) -> str:
    """An image's mask of this number as an element, or as one for each part of its outline."""
    label = f'label="{xml_text(mask.annotation.label)}"'
    if outline is None:
        x, y, width, height = mask.box
        place = f'left="{x}" top="{y}" width="{width}" height="{height}"'
        return f'    <mask {label} {_ALIKE} rle="{_rle(mask)}" {place}></mask>\n'
    group = f' group_id="{number}"' if len(outline.polygons) > 1 else ""
    return "".join(
        f'    <polygon {label} {_ALIKE} points="{_points(polygon)}"{group}></polygon>\n'
        for polygon in outline.polygons
    )


def _rle(mask: CheckedMask) -> str:
    x, y, width, height = mask.box
    flat = decode_rle(mask.annotation.rle)[y : y + height, x : x + width].ravel()
    ends = [*(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    runs = np.diff([0, *ends]).tolist()
    return ", ".join(map(str, [0, *runs] if flat[0] else runs))


def _points(polygon: list[float]) -> str:
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in np.reshape(polygon, (-1, 2)).tolist())


def _head(classes: Sequence[LabelClass], kind: str) -> str:
    labels = "".join(
        f"        <label><name>{xml_text(c.name)}</name><color>{_hex(i)}</color>"
        f"<type>{kind}</type><attributes></attributes></label>\n"
        for i, c in enumerate(classes)
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        "  <meta>\n    <task>\n      <name>clip2sam</name>\n      <mode>annotation</mode>\n"
        f"      <labels>\n{labels}      </labels>\n    </task>\n  </meta>\n"
    )


def _hex(index: int) -> str:
    """The colour of a class as CVAT has it, #rrggbb."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour(index))
