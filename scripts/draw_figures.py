"""Draw the README's figures with the tiny preset: found.png, flow.png and explained.png.

    .venv/bin/python scripts/draw_figures.py [--output docs]

The images are scenes of the test split with several objects of one label; what is drawn is what the
models found, right or wrong.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import clip2sam
from clip2sam.pipeline import Segmenter
from clip2sam.tiny.demo import demo_labels, demo_scenes
from clip2sam.tiny.scenes import Scene
from clip2sam.visualize import (
    colour,
    draw_grid,
    draw_image,
    draw_map,
    draw_masks,
    draw_numbers,
    draw_points,
    save_figure,
)
from clip2sam.visualize.figures import places


def draw_found(segmenter: Segmenter) -> Figure:
    """Two scenes with all masks found; half of the labels requested are absent."""
    scenes = demo_scenes()[2:]
    widths = [s.pixels.shape[1] / s.pixels.shape[0] for s in scenes]
    figure = Figure(figsize=(3.6 * sum(widths) + 0.2, 3.7), layout="constrained")
    for ax, scene in zip(figure.subplots(1, len(scenes), width_ratios=widths), scenes, strict=True):
        labels = demo_labels(scene)
        result = segmenter(scene.pixels, labels)
        colours = [colour(int(i)) for i in result.label_indices]
        figure.draw_without_rendering()  # the layout must be final before tags are placed in it
        draw_masks(scene.pixels, result.masks, result.labels, result.scores, colours, ax=ax)
    return figure


def draw_flow(segmenter: Segmenter) -> Figure:
    """One label through the pipeline: image and text prompt, map, a point for each object,
    masks."""
    scene = demo_scenes()[2]
    result = segmenter(scene.pixels, demo_labels(scene))
    name = _most_frequent(scene)
    index = result.class_names.index(name)
    mine = [i for i, label in enumerate(result.labels) if label == name]
    if not mine:
        raise SystemExit(f"{name!r} was not found: the weights are not good enough")

    figure, panels = _panels()
    draw_image(scene.pixels, ax=panels[0])
    draw_map(scene.pixels, result.maps[index], ax=panels[1])
    peaks = places([result.points[i] for i in mine])
    grid = draw_grid(scene.pixels, result.grids[index], ax=panels[2], around=peaks)
    draw_points(peaks, np.ones(len(peaks), int), ax=grid)
    draw_numbers(peaks, ax=grid)
    fills = [colour(index)] * len(mine)
    draw_masks(
        scene.pixels, result.masks[mine], [""] * len(mine), result.scores[mine], fills, ax=panels[3]
    )
    titles = (
        f'an image and "{name}"',
        "CLIP Surgery: where it is",
        "a point for each object",
        "SAM: a mask for each",
    )
    for ax, title in zip(panels, titles, strict=True):
        ax.set_title(title, fontsize=11)
    return figure


def _most_frequent(scene: Scene) -> str:
    """Colour and shape of most objects of a scene."""
    return Counter(f"{o.colour} {o.shape}" for o in scene.objects).most_common(1)[0][0]


def _panels() -> tuple[Figure, list[Axes]]:
    """Four square panels in a row with arrows between them."""
    side, lefts = 2.6, (0.1, 3.2, 6.95, 10.05)  # inches; the map's colour bar needs room
    width, height = lefts[-1] + side + 0.1, side + 0.5
    figure = Figure(figsize=(width, height))
    panels = [
        figure.add_axes((left / width, 0.1 / height, side / width, side / height)) for left in lefts
    ]
    middle = (0.1 + side / 2) / height
    for left in lefts[1:]:
        figure.text((left - 0.25) / width, middle, "→", fontsize=20, ha="center", va="center")
    return figure, panels


def draw_explained(segmenter: Segmenter) -> Figure:
    """All stages of the same label of the same scene."""
    scene = demo_scenes()[2]
    labels = demo_labels(scene)
    return clip2sam.explain(segmenter, scene.pixels, labels, _most_frequent(scene)).show()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder for the figures")
    folder = parser.parse_args().output
    segmenter = clip2sam.load("tiny", device="cpu")
    save_figure(draw_found(segmenter), folder / "found.png")
    save_figure(draw_flow(segmenter), folder / "flow.png")
    save_figure(draw_explained(segmenter), folder / "explained.png")


if __name__ == "__main__":
    main()
