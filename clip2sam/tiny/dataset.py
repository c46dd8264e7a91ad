"""Scenes as a data set on disk: PNG pictures and their true masks as a COCO file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from clip2sam.coco.document import coco_document, encode_mask, write_coco
from clip2sam.data.labels import LabelClass, LabelSet
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.tiny.scenes import SHAPES, scene, scene_ground_truth, split_seed


def write_scenes(
    folder: Path,
    split: str,
    count: int,
    *,
    labels: Sequence[str] = SHAPES,
    size: int | tuple[int, int] = 224,
) -> dict[str, Any]:
    """Draw the first `count` scenes of a split into `folder/pictures`, and write `folder/annotations.json`.

    labels: the categories; an object that several are true of has an annotation for each. Masks are the visible parts.
    size: the side of a square, or (height, width), in pixels.
    Returns the COCO document as it was written. Raises ConfigError for an unknown split or size, CocoError where the
    file can't be written.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    records, annotations = [], []
    for index in range(count):
        picture = scene(split_seed(split, index), size)
        name = f"{split}-{index:06d}.png"
        PILImage.fromarray(picture.pixels).save(pictures / name)
        records.append(ImageRecord(f"pictures/{name}", *picture.size))
        truth = scene_ground_truth(picture, labels)
        annotations.append([Annotation(x, encode_mask(m), 1.0) for x in labels for m in truth[x]])
    label_set = LabelSet(tuple(LabelClass(x, (x,)) for x in labels))
    document = coco_document(
        records, annotations, label_set, info={"description": f"clip2sam scenes, {split}"}
    )
    write_coco(folder / "annotations.json", document)
    return document
