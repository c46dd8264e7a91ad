"""The main job on pictures that the project draws itself, held against the drawn truth."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from clip2sam.labelling.segment import draw_overlays
from clip2sam.pipeline import Segmenter
from clip2sam.result import Result
from clip2sam.tiny.scenes import Scene, asked_labels, label_mask, matches, scene, split_seed

SIZES = ((240, 320), (320, 240), (300, 300), (224, 400))
"""(height, width) of the demo's pictures."""


@dataclass(frozen=True)
class Row:
    """One label of one picture, asked and drawn."""

    picture: str
    label: str
    drawn: bool
    """Whether the picture really shows it."""
    found: bool
    presence: float
    iou: float | None
    """IoU of the union of its masks with the union of the drawn ones; None where neither exists."""


def demo_scenes() -> list[Scene]:
    """Pictures of the test split, which no model was trained on, each with two objects or more."""
    return [
        scene(
            split_seed("test", 10_000 + i),
            size,
            objects=(2, 4),
            radius=(0.1 * min(size), 0.2 * min(size)),
        )
        for i, size in enumerate(SIZES)
    ]


def demo_labels(picture: Scene) -> list[str]:
    """The labels of each object by colour and shape, and as many that sound alike and aren't there."""
    there = list(dict.fromkeys(f"{item.colour} {item.shape}" for item in picture.objects))
    near = [label for label in asked_labels(picture)["colour + shape"] if label not in there]
    return there + near[: len(there)]


@dataclass(frozen=True)
class Report:
    """What the demo found and wrote."""

    rows: tuple[Row, ...]
    written: tuple[Path, ...]

    def summary(self) -> str:
        """The rows in one sentence."""
        there = [r for r in self.rows if r.drawn]
        ious = [r.iou or 0.0 for r in there]
        false = sum(r.found for r in self.rows if not r.drawn)
        return (
            f"{sum(r.found for r in there)} of {len(there)} drawn labels found, mean IoU {np.mean(ious):.3f}; "
            f"{false} of {len(self.rows) - len(there)} labels that are not there got a mask"
        )


def run_demo(segmenter: Segmenter, output: Path) -> Report:
    """Draw the scenes into `output/pictures`, segment each from its file, draw the results, compare with the truth."""
    from clip2sam.visualize import save_figure

    rows: list[Row] = []
    written: list[Path] = []
    (output / "pictures").mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(demo_scenes(), 1):
        path = output / "pictures" / f"scene-{i}.png"
        PILImage.fromarray(picture.pixels).save(path)
        result = segmenter(path, demo_labels(picture))
        rows += [_compare(path.name, picture, result, label) for label in result.class_names]
        save_figure(result.show(), output / f"scene-{i}.png")
        written += [
            output / f"scene-{i}.png",
            *draw_overlays(result, output / "overlays" / path.name, "found"),
        ]
    return Report(tuple(rows), tuple(written))


def _compare(name: str, picture: Scene, result: Result, label: str) -> Row:
    drawn = any(matches(item, label) for item in picture.objects)
    mine = [m for m, of in zip(result.masks, result.labels, strict=True) if of == label]
    index = result.class_names.index(label)
    iou = None
    if drawn or mine:
        truth = label_mask(picture, label)
        found = np.any(mine, axis=0) if mine else np.zeros_like(truth)
        iou = float((truth & found).sum() / (truth | found).sum())
    return Row(name, label, drawn, bool(mine), float(result.presence[index]), iou)
