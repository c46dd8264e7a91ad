"""Scenes as a dataset on disk: PNG images, and their true masks as a COCO file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from clip2sam.coco.document import coco_document
from clip2sam.coco.rle import encode_mask
from clip2sam.coco.write import write_coco
from clip2sam.data.files import atomic_file
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.tiny.scenes import SHAPES, Scene, scene, scene_ground_truth, split_seed


def write_scenes(
    folder: str | os.PathLike[str],
    split: str,
    count: int,
    *,
    labels: Sequence[str] = SHAPES,
    size: int | tuple[int, int] = 224,
) -> dict[str, Any]:
    """Draw the first `count` scenes of a split into `folder/images`, and write
    `folder/annotations.json`.

    Args:
        labels: the categories. An object has an annotation for each of them that is true of it; its
            mask is its visible part.
        size: the side of a square, or (height, width), in pixels.

    Returns:
        The COCO document as written.

    Raises:
        ConfigError: an unknown split, or a size that can't be drawn.
        OutputError: a file can't be written.
    """
    records = []
    for index in range(count):
        image = scene(split_seed(split, index), size)
        name = f"images/{split}-{index:06d}.png"
        with atomic_file(Path(folder) / name) as file:
            PILImage.fromarray(image.pixels).save(file, "PNG")
        records.append(_record(index + 1, name, image, labels))
    document = coco_document(
        records,
        [LabelClass(label, (label,)) for label in labels],
        info={"description": f"clip2sam scenes, {split}"},
    )
    write_coco(Path(folder) / "annotations.json", document)
    return document


def _record(image_id: int, name: str, image: Scene, labels: Sequence[str]) -> ImageRecord:
    """The truth of a scene as a record; drawn masks have the score 1."""
    truth = scene_ground_truth(image, labels)
    annotations = tuple(
        Annotation(label, encode_mask(mask), 1.0) for label in labels for mask in truth[label]
    )
    return ImageRecord(
        image_id=image_id,
        file_name=name,
        size=image.size,
        state="done" if annotations else "empty",
        annotations=annotations,
    )
