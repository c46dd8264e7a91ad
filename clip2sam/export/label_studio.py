"""Records as Label Studio tasks with predictions.

Source of the format: https://labelstud.io/guide/predictions
"""

import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from clip2sam import __version__
from clip2sam.coco.document import checked_records
from clip2sam.coco.outlines import TOLERANCE, Fit, fit_of, outline_of
from clip2sam.data.files import JsonList, atomic_file, write_atomically
from clip2sam.data.images import printable
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.errors import ConfigError

LOCAL_FILES = "/data/local-files/?d="
"""What Label Studio puts in front of images in its own storage folder."""


@dataclass(frozen=True)
class LabelStudioExporter:
    """Tasks in one JSON file, and beside it `NAME.xml`: the labelling interface that they fit.

    Masks are polygons in percent of the image's width and height, one region for each part.
    """

    image_prefix: str = LOCAL_FILES
    """What stands in front of an image's name; the name is escaped as in a URL."""
    tolerance: float = TOLERANCE
    """Of the polygons, in pixels, see `outline_of`; 0: exact."""

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> Fit | None:
        """Write the file `output`, and the interface beside it.

        Returns:
            How well the polygons fit their masks; None if there are none.

        Raises:
            ConfigError: the output ends in .xml, the suffix of the interface, or the tolerance is
                below 0.
            CocoError: a record doesn't fit, see `checked_masks`.
            OutputError: a file can't be written.
        """
        if output.suffix.lower() == ".xml":
            raise ConfigError(
                f"{printable(output)}: the labelling interface gets the suffix .xml; give the "
                "tasks another one, such as .json"
            )
        ious = array("d")
        with atomic_file(output) as file:
            file.write(b"[")
            tasks = JsonList(file)
            for record, checked in checked_records(records, classes):
                masks = [mask.annotation for mask in checked]
                outlines = [outline_of(mask.rle, self.tolerance) for mask in masks]
                ious.extend(outline.iou for outline in outlines)
                tasks.add(self._task(record, masks, [o.polygons for o in outlines]))
            file.write(b"]\n")
        write_atomically(output.with_suffix(".xml"), _interface(classes).encode())
        return fit_of(ious)

    def _task(
        self,
        record: ImageRecord,
        masks: Sequence[Annotation],
        polygons: Sequence[list[list[float]]],
    ) -> dict[str, Any]:
        prediction = {
            "model_version": f"clip2sam {__version__}",
            "score": least_score(masks),
            "result": [
                polygon_region(mask, record.size, polygon, name=f"{i}-{part}")
                for i, mask in enumerate(masks)
                for part, polygon in enumerate(polygons[i])
            ],
        }
        image = self.image_prefix + quote(os.fsencode(record.file_name))
        return {"data": {"image": image}, "predictions": [prediction]}


def least_score(masks: Iterable[Annotation]) -> float:
    """Of a prediction: that of its worst mask, as tasks are sorted by it; 0 without masks."""
    return min((mask.score for mask in masks), default=0.0)


def polygon_region(
    mask: Annotation,
    size: tuple[int, int],
    polygon: list[float],
    *,
    name: str,
    from_name: str = "label",
    to_name: str = "image",
) -> dict[str, Any]:
    """One polygon as a region.

    Args:
        mask: its label and score.
        size: height and width of the image.
        polygon: x1, y1, x2, y2, ... in pixels.
        name: which no other region of the image has.
        from_name, to_name: the names of the tags PolygonLabels and Image.
    """
    percent = np.reshape(polygon, (-1, 2)) * (100 / size[1], 100 / size[0])
    value = {
        "points": np.round(percent, 4).tolist(),  # 0.01 pixels of 10,000
        "closed": True,
        "polygonlabels": [mask.label],
    }
    return region(mask, size, "polygonlabels", value, name, from_name, to_name)


def region(
    mask: Annotation,
    size: tuple[int, int],
    kind: str,
    value: dict[str, Any],
    name: str,
    from_name: str,
    to_name: str,
) -> dict[str, Any]:
    """A region of any kind; see `polygon_region`.

    Args:
        kind: its `type`.
        value: its place and label, which depend on the kind.
    """
    height, width = size
    return {
        "id": name,
        "type": kind,
        "from_name": from_name,
        "to_name": to_name,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": mask.score,
        "value": value,
    }


def _interface(classes: Sequence[LabelClass]) -> str:
    labels = "".join(f"    <Label value={quoteattr(c.name)}/>\n" for c in classes)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <PolygonLabels name="label" toName="image">\n{labels}  </PolygonLabels>\n</View>\n'
    )
