"""Records as Label Studio tasks with predictions.

Source of the format: https://labelstud.io/guide/predictions
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from clip2sam import __version__
from clip2sam.coco.document import checked_masks
from clip2sam.coco.polygons import rle_to_polygons
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

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> None:
        """Write the file `output`, and the interface beside it.

        Raises:
            ConfigError: the output ends in .xml, the suffix of the interface.
            CocoError: a record doesn't fit, see `checked_masks`.
            OutputError: a file can't be written.
        """
        if output.suffix.lower() == ".xml":
            raise ConfigError(
                f"{printable(output)}: the labelling interface gets the suffix .xml; give the "
                "tasks another one, such as .json"
            )
        with atomic_file(output) as file:
            file.write(b"[")
            tasks = JsonList(file)
            for record in records:
                tasks.add(self._task(record, classes))
            file.write(b"]\n")
        write_atomically(output.with_suffix(".xml"), _interface(classes).encode())

    def _task(self, record: ImageRecord, classes: Sequence[LabelClass]) -> dict[str, Any]:
        masks = [mask.annotation for mask in checked_masks(record, classes)]
        prediction = {
            "model_version": f"clip2sam {__version__}",
            "score": min((mask.score for mask in masks), default=0.0),
            "result": [
                _region(mask, record.size, f"{i}-{part}", polygon)
                for i, mask in enumerate(masks)
                for part, polygon in enumerate(rle_to_polygons(mask.rle))
            ],
        }
        image = self.image_prefix + quote(os.fsencode(record.file_name))
        return {"data": {"image": image}, "predictions": [prediction]}


def _region(
    mask: Annotation, size: tuple[int, int], name: str, polygon: list[float]
) -> dict[str, Any]:
    """One polygon as a region."""
    height, width = size
    percent = np.reshape(polygon, (-1, 2)) * (100 / width, 100 / height)
    return {
        "id": name,
        "type": "polygonlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": mask.score,
        "value": {
            "points": [[round(x, 6), round(y, 6)] for x, y in percent.tolist()],
            "closed": True,
            "polygonlabels": [mask.label],
        },
    }


def _interface(classes: Sequence[LabelClass]) -> str:
    labels = "".join(f"    <Label value={quoteattr(c.name)}/>\n" for c in classes)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <PolygonLabels name="label" toName="image">\n{labels}  </PolygonLabels>\n</View>\n'
    )
