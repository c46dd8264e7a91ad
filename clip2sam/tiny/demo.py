"""The main job on images that the project draws itself, compared with the drawn truth."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from clip2sam.data.files import atomic_file
from clip2sam.pipeline import Segmenter
from clip2sam.result import Result
from clip2sam.tiny.scenes import Scene, label_mask, matches, requested_labels, scene, split_seed

SIZES = ((240, 320), (320, 240), (300, 300), (224, 400))
"""(height, width) of the demo's images."""


@dataclass(frozen=True)
class Row:
    """One label of one image, as drawn and as found."""

    image: str
    """File name."""
    label: str
    drawn: bool
    """Whether the image really shows it."""
    found: bool
    presence: float
    iou: float | None
    """IoU of the union of its masks with the union of the drawn ones; None if both are empty."""


def demo_scenes() -> list[Scene]:
    """Scenes of the test split, which no model was trained on, each with two objects or more."""
    return [
        scene(
            split_seed("test", 10_000 + i),
            size,
            objects=(2, 4),
            radius=(0.1 * min(size), 0.2 * min(size)),
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
        """The rows in one sentence."""
        present = [row for row in self.rows if row.drawn]
        ious = [row.iou or 0.0 for row in present]
        false = sum(row.found for row in self.rows if not row.drawn)
        return (
            f"{sum(row.found for row in present)} of {len(present)} drawn labels found, "
            f"mean IoU {np.mean(ious):.3f}; "
            f"{false} of {len(self.rows) - len(present)} absent labels got a mask"
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
        rows += [_compare(path.name, image, result, label) for label in result.class_names]
        overview = output / f"scene-{i}.png"
        save_figure(result.show(), overview)
        overlays = draw_overlays(result, output / "overlays" / path.name, "found")
        written += [overview, *overlays]
    return Report(tuple(rows), tuple(written))


def _compare(name: str, image: Scene, result: Result, label: str) -> Row:
    drawn = any(matches(item, label) for item in image.objects)
    masks = [m for m, of in zip(result.masks, result.labels, strict=True) if of == label]
    index = result.class_names.index(label)
    iou = None
    if drawn or masks:
        truth = label_mask(image, label)
        found = np.any(masks, axis=0) if masks else np.zeros_like(truth)
        iou = float((truth & found).sum() / (truth | found).sum())
    return Row(name, label, drawn, bool(masks), float(result.presence[index]), iou)
