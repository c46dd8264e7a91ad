"""Compare the ways to find labels, on the same images, labels, SAM and evaluation: a table in
Markdown, all figures as JSON, and a contact sheet.

    scripts/compare_methods                                  # on drawn scenes, with tiny
    scripts/compare_methods --preset vit-b --dataset instances.json --images photos/

Each method gets the presence threshold that keeps 1.5 % of the absent labels on other images: with
a dataset, on its first half, while the second half is judged.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np

import clip2sam
from clip2sam.analysis.compare import Compared, Sight, compare_methods, sights
from clip2sam.analysis.examples import CocoExamples, Example, scene_examples
from clip2sam.clip.methods import METHODS
from clip2sam.errors import Clip2SamError, ConfigError
from clip2sam.models.loading import with_method
from clip2sam.models.locators import LOCATORS, checked_method, is_training_free
from clip2sam.pipeline import Segmenter
from clip2sam.visualize import save_figure
from clip2sam.visualize.sheet import sheet_figure

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from about import about

COLUMNS = {
    "pointing": "pointing game",
    "map_iou": "map IoU",
    "miou_all_kept": "mask mIoU, all kept",
    "presence_auc": "presence AUC",
    "miou": "mask mIoU",
    "ap": "AP",
    "false_masks": "false masks",
    "seconds": "seconds",
}
SHOWN = 4
"""Images on the contact sheet."""


def with_methods(segmenter: Segmenter, names: Sequence[str], plain: bool) -> dict[str, Segmenter]:
    """The segmenter with each method; with `plain` also without feature surgery."""
    tried = {}
    for name in names:
        tried[name] = with_method(segmenter, name)
        if plain and is_training_free(name):
            tried[f"{name}, plain"] = tried[name].with_config(feature_surgery=False)
    return tried


def examples_of(given: argparse.Namespace) -> tuple[list[Example], list[Example]]:
    """The examples that thresholds are chosen on, and those that are judged."""
    if given.dataset is None:
        chosen_on = scene_examples("validation", given.scenes)
        return list(chosen_on), list(scene_examples("test", given.scenes, kind=given.kind))
    images = given.images or given.dataset.parent
    every = list(islice(CocoExamples(given.dataset, images), 2 * given.scenes))
    if len(every) < 2:
        raise ConfigError(f"expected a dataset of two images or more, got {len(every)}")
    half = len(every) // 2
    return every[:half], every[half:]


def table(rows: Sequence[Compared]) -> str:
    """The figures as a Markdown table."""
    lines = ["| method | threshold | " + " | ".join(COLUMNS.values()) + " |"]
    lines.append("| --- " * (len(COLUMNS) + 2) + "|")
    for row in rows:
        values = [f"{getattr(row, key):.3f}" for key in COLUMNS]
        values[-1] += f" ({row.spread[0]:.3f}, {row.spread[1]:.3f})"
        lines.append(f"| {row.name} | {row.threshold:.3f} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def draw_sheet(tried: dict[str, Segmenter], examples: Sequence[Example], path: Path) -> None:
    """The first present label of each of some images, as all methods see it."""
    chosen: list[tuple[Example, str]] = []
    seen: list[list[Sight]] = []
    for example in examples:
        labels = example.labels(None)
        present = [c.name for c in labels.wanted if example.truth[c.name]]
        if present and len(chosen) < SHOWN:
            label = present[len(chosen) % len(present)]
            chosen.append((example, label))
            seen.append(sights(tried, example, label, labels))
    figure = sheet_figure(
        [example.image.pixels for example, _ in chosen],
        [label for _, label in chosen],
        [np.any(example.truth[label], axis=0) for example, label in chosen],
        seen,
    )
    save_figure(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", default="tiny")
    parser.add_argument(
        "--method", action="append", help=f"repeatable: {', '.join((*METHODS, *LOCATORS))}"
    )
    parser.add_argument(
        "--plain", action="store_true", help="also each method without feature surgery"
    )
    parser.add_argument("--scenes", type=int, default=40, help="images to choose on, and to judge")
    parser.add_argument("--kind", default="plain", help="of scene: plain, crowd, several or large")
    parser.add_argument("--dataset", type=Path, help="a COCO dataset with masks, for scenes")
    parser.add_argument("--images", type=Path, help="folder of its images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=Path("compared"))
    given = parser.parse_args()
    try:
        of_clip = [name for name, kind in LOCATORS.items() if kind.with_clip]
        names = [checked_method(name) for name in given.method or (*METHODS, *of_clip)]
        tried = with_methods(clip2sam.load(given.preset, device=given.device), names, given.plain)
        chosen_on, judged_on = examples_of(given)
        rows = compare_methods(tried, chosen_on, judged_on)
        given.output.mkdir(parents=True, exist_ok=True)
        thresholds = {row.name: row.threshold for row in rows}
        decided = {
            name: one.with_config(presence_threshold=thresholds[name])
            for name, one in tried.items()
        }
        draw_sheet(decided, judged_on, given.output / "sheet.png")
    except Clip2SamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report = {**about(), "images": len(judged_on), "methods": [asdict(row) for row in rows]}
    (given.output / "compared.json").write_text(json.dumps(report, indent=1) + "\n")
    (given.output / "compared.md").write_text(table(rows))
    print(table(rows), end="")
    print(
        f"{len(judged_on)} images; wrote compared.md, compared.json and sheet.png in {given.output}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
