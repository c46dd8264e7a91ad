"""The main job on images that the project draws itself, compared with the drawn truth object by
object."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image as PILImage
from pycocotools import mask as mask_utils

from clip2sam.coco.rle import encode_mask
from clip2sam.data.files import atomic_file
from clip2sam.pipeline import Segmenter
from clip2sam.result import Result
from clip2sam.tiny.scenes import (
    Scene,
    instance_masks,
    requested_labels,
    several_scene,
    split_seed,
)

SIZES = ((240, 320), (320, 240), (300, 300), (224, 400))
"""(height, width) of the demo's images."""

FOUND = 0.5
"""A drawn object is found by a mask with at least this IoU."""


@dataclass(frozen=True)
class Row:
    """One label of one image, as drawn and as found."""

    image: str
    """File name."""
    label: str
    drawn: int
    """How many objects the image really shows."""
    masks: int
    """How many masks there are."""
    ious: tuple[float, ...]
    """The IoU of each drawn object that was found with its mask, the best first."""
    presence: float

    @property
    def false(self) -> int:
        """How many masks are on no drawn object, or on one that has a better mask."""
        return self.masks - len(self.ious)


def demo_scenes() -> list[Scene]:
    """Scenes of the test split, which no model was trained on, each with several objects of one
    look and some others."""
    return [
        several_scene(
            split_seed("test", 10_006 + i, "several"),
            size,
            repeats=(2, 4),
            others=(1, 2),
            radius=(0.1, 0.2),
        )
        for i, size in enumerate(SIZES)
    ]


def demo_labels(image: Scene) -> list[str]:
    """Colour and shape of each object, and as many similar labels that are absent."""
    present = list(dict.fromkeys(f"{item.colour} {item.shape}" for item in image.objects))
    similar = [x for x in requested_labels(image)["colour + shape"] if x not in present]
    return present + similar[: len(present)]


@dataclass(frozen=True)
class Report:
    """What the demo found and wrote."""

    rows: tuple[Row, ...]
    written: tuple[Path, ...]

    def summary(self) -> str:
        """The rows in one sentence. A drawn object that is not found has IoU 0."""
        drawn, absent = sum(row.drawn for row in self.rows), [r for r in self.rows if not r.drawn]
        ious = [iou for row in self.rows for iou in row.ious]
        masks, false = sum(r.masks for r in self.rows), sum(r.false for r in self.rows)
        return (
            f"{len(ious)} of {drawn} drawn objects found, mean IoU {sum(ious) / drawn:.3f}; "
            f"{false} of {masks} masks are false; "
            f"{sum(r.masks > 0 for r in absent)} of {len(absent)} absent labels got a mask"
        )


def run_demo(segmenter: Segmenter, output: Path) -> Report:
    """Draw the scenes into `output/images`, segment each file, draw the results, compare them with
    the truth.

    Raises:
        OutputError: a file can't be written.
    """
    # matplotlib is slow to import, and `demo_scenes` needs none
    from clip2sam.visualize.figures import save_figure
    from clip2sam.visualize.overlays import draw_overlays

    rows: list[Row] = []
    written: list[Path] = []
    for i, image in enumerate(demo_scenes(), 1):
        path = output / "images" / f"scene-{i}.png"
        with atomic_file(path) as file:
            PILImage.fromarray(image.pixels).save(file, "PNG")
        result = segmenter(path, demo_labels(image))
        rows += [compare(path.name, image, result, label) for label in result.class_names]
        overview = output / f"scene-{i}.png"
        save_figure(result.show(), overview)
        overlays = draw_overlays(result, output / "overlays" / path.name, "found")
        written += [overview, *overlays]
    return Report(tuple(rows), tuple(written))


def compare(name: str, image: Scene, result: Result, label: str) -> Row:
    """A label of a scene as it was drawn and as it was found."""
    truth = instance_masks(image, label)
    masks = [m for m, of in zip(result.masks, result.labels, strict=True) if of == label]
    presence = float(result.presence[result.class_names.index(label)])
    return Row(name, label, len(truth), len(masks), matched_ious(masks, truth), presence)


def matched_ious(
    masks: Sequence[Bool[np.ndarray, "height width"]],
    truth: Sequence[Bool[np.ndarray, "height width"]],
) -> tuple[float, ...]:
    """Give each drawn object at most one mask, the pair with the highest IoU first, down to FOUND.

    Returns:
        The IoU of each pair.
    """
    if not (len(masks) and len(truth)):
        return ()
    found, drawn = ([encode_mask(mask) for mask in some] for some in (masks, truth))
    ious = np.array(mask_utils.iou(found, drawn, [0] * len(drawn)))
    matched: list[float] = []
    while (best := float(ious.max())) >= FOUND:
        mask, item = np.unravel_index(ious.argmax(), ious.shape)
        ious[mask], ious[:, item] = -1, -1
        matched.append(best)
    return tuple(matched)
