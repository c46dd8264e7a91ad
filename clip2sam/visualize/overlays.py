"""Drawings of a result as files: all masks in one, and for each label its map, grid, points and
masks over the image."""

import re
from pathlib import Path
from typing import Literal

from clip2sam.data.files import cut_to_bytes, fitting_name
from clip2sam.visualize.figures import (
    Drawable,
    result_figure,
    result_label_figure,
    save_figure,
)

Overlays = Literal["found", "all", "none"]
"""Which labels are drawn by themselves: those that have a mask, all that were requested, or none;
with none there is no drawing of all masks either."""


def draw_overlays(result: Drawable, stem: Path, which: Overlays) -> tuple[Path, ...]:
    """Draw one file with all masks, `STEM.00-all.png`, if there are any; then one for each label,
    `STEM.NN-LABEL.png`, with NN from 01 in the labels' order. No two names are the same, whatever
    images and labels are called: what stands behind the last full stop but one is never in a
    label. A name that is too long for a file system is shortened, see `fitting_name`.

    Returns:
        The paths of the files, in the same order.

    Raises:
        OutputError: a file can't be written.
    """
    if which == "none":
        return ()
    found = set(result.labels)
    paths = []
    if found:
        paths.append(stem.with_name(fitting_name(stem.name, ".00-all.png")))
        save_figure(result_figure(result), paths[-1])
    for i, name in enumerate(result.class_names):
        if which == "all" or name in found:
            ending = f".{i + 1:02d}-{slug(name)}.png"
            paths.append(stem.with_name(fitting_name(stem.name, ending)))
            save_figure(result_label_figure(result, i), paths[-1])
    return tuple(paths)


def slug(label: str) -> str:
    """A label as a part of a file name: letters and digits of any script, hyphens for the rest; at
    most 60 bytes."""
    return cut_to_bytes(re.sub(r"[\W_]+", "-", label).strip("-"), 60) or "label"
