"""The rows of two tables, annotations and images, as JSON lines and Parquet have them.

Keys and values are those of `clip2sam.coco.document`, so a row says of a mask what COCO says of it.
The images are a table of their own: an image in which nothing was found is a fact for who trains on
the masks, but a row without a mask among the annotations would be counted, and decoded, as one.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clip2sam.coco.document import CheckedMask, annotation_row, image_row
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import ImageRecord

_OF_MASK = ("segmentation", "bbox", "area", "score", "share", "presence", "prompt")


def images_beside(output: Path) -> Path:
    """Where the images of a table of annotations are: `images.NAME` beside `NAME`. So the pattern
    `annotations*.parquet` has annotations only, and `images.*.parquet` images only."""
    return output.with_name(f"images.{output.name}")


def image_columns(record: ImageRecord) -> dict[str, Any]:
    """What both tables say of an image: image_id, file_name, height and width in pixels.

    A file name that is not UTF-8 has `\\udc80` to `\\udcff`, six characters each, for the bytes
    that are not: what the COCO file has there. No other name has a backslash.

    Raises:
        CocoError: see `image_row`.
    """
    row = image_row(record)
    name = row["file_name"].encode("utf-8", "backslashreplace").decode()
    return {
        "image_id": row["id"],
        "file_name": name,
        "height": row["height"],
        "width": row["width"],
    }


def annotation_rows(
    record: ImageRecord, masks: Iterable[CheckedMask], classes: Sequence[LabelClass]
) -> Iterator[dict[str, Any]]:
    """An image's annotations: its `image_columns`, category_id (1, 2, 3, ... in the order of the
    classes), category (its name), and of the mask what `annotation_row` says, with None where it
    says nothing.

    Args:
        masks: see `checked_records`.

    Raises:
        CocoError: see `image_row`.
    """
    image = image_columns(record)
    for mask in masks:
        row = annotation_row(mask, mask.number)
        yield {
            **image,
            "category_id": mask.number,
            "category": classes[mask.number - 1].name,
            **{key: row.get(key) for key in _OF_MASK},
        }
