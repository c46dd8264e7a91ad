"""Draw the README's figures with the tiny preset: found.png, flow.png and explained.png.

    .venv/bin/python scripts/draw_figures.py [--output docs]

The images are scenes of the test split; what is drawn is what the models found, right or wrong.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

import clip2sam
from clip2sam.pipeline import Segmenter
from clip2sam.tiny.demo import demo_labels, demo_scenes
from clip2sam.visualize import (
    colour,
    draw_grid,
    draw_image,
    draw_map,
    draw_masks,
    draw_points,
    save_figure,
)


def draw_found(segmenter: Segmenter) -> Figure:
    """Two scenes with all masks found; half of the labels requested are absent."""
    scenes = demo_scenes()[:2]
    widths = [s.pixels.shape[1] / s.pixels.shape[0] for s in scenes]
    figure = Figure(figsize=(3.6 * sum(widths) + 0.2, 3.7), layout="constrained")
    for ax, scene in zip(figure.subplots(1, len(scenes), width_ratios=widths), scenes, strict=True):
        labels = demo_labels(scene)
        result = segmenter(scene.pixels, labels)
        colours = [colour(int(i)) for i in result.label_indices]
        figure.draw_without_rendering()  # the layout is settled before tags are placed in it
        draw_masks(scene.pixels, result.masks, result.labels, result.scores, colours, ax=ax)
    return figure


def draw_flow(segmenter: Segmenter) -> Figure:
    """One label through the stages: image and label, map, points, mask."""
    scene = demo_scenes()[2]
    labels = demo_labels(scene)
    result = segmenter(scene.pixels, labels)
    if not result.labels:
        raise SystemExit(
            "no label was found in the scene: the weights are not good enough for a figure"
        )
    best = int(result.scores.argmax())
    index, name = int(result.label_indices[best]), result.labels[best]

    side, lefts = 2.6, (0.1, 3.2, 6.95, 10.05)  # inches; the map's colour bar needs room
    wide, high = lefts[-1] + side + 0.1, side + 0.5
    figure = Figure(figsize=(wide, high))
    panels = [
        figure.add_axes((left / wide, 0.1 / high, side / wide, side / high)) for left in lefts
    ]
    for left in lefts[1:]:
        figure.text(
            (left - 0.25) / wide,
            (0.1 + side / 2) / high,
            "→",
            fontsize=20,
            ha="center",
            va="center",
        )

    points = result.points[best]
    draw_image(scene.pixels, ax=panels[0])
    draw_map(scene.pixels, result.maps[index], ax=panels[1])
    draw_points(
        points[:, :2],
        points[:, 2].astype(int),
        ax=draw_grid(scene.pixels, result.grids[index], ax=panels[2]),
    )
    draw_masks(
        scene.pixels,
        result.masks[[best]],
        [name],
        result.scores[[best]],
        [colour(index)],
        ax=panels[3],
    )
    titles = (
        f'an image and "{name}"',
        "CLIP Surgery: where it is",
        "7 x 7 grid: points",
        "SAM: the mask",
    )
    for ax, title in zip(panels, titles, strict=True):
        ax.set_title(title, fontsize=11)
    return figure


def draw_explained(segmenter: Segmenter) -> Figure:
    """All stages of the same scene's first label."""
    scene = demo_scenes()[2]
    labels = demo_labels(scene)
    return clip2sam.explain(segmenter, scene.pixels, labels, labels[0]).show()


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
