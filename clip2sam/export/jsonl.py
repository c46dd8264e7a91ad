"""Records as JSON lines: a line an annotation, and beside them a line an image."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from clip2sam.coco.document import checked_records
from clip2sam.data.files import as_json, atomic_file
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import ImageRecord
from clip2sam.export.tables import annotation_rows, image_columns, images_beside


@dataclass(frozen=True)
class JsonLinesExporter:
    """The annotations in one file, and the images in `images.NAME` beside it. Lines have the keys
    of `annotation_rows`, every line all of them; those of images the keys of `image_columns` and
    `annotations`, the number of lines that the image has in the other file."""

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> None:
        """Write the annotations into the file `output`, and the images beside it.

        Raises:
            CocoError: a record doesn't fit, see `annotation_rows`.
            OutputError: a file can't be written.
        """
        with atomic_file(images_beside(output)) as of_images, atomic_file(output) as file:
            for record, masks in checked_records(records, classes):
                for row in annotation_rows(record, masks, classes):
                    _add(file, row)
                _add(of_images, {**image_columns(record), "annotations": len(masks)})


def _add(file: IO[bytes], row: dict[str, Any]) -> None:
    file.write(as_json(row).encode() + b"\n")
