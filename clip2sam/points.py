"""From similarity maps to points for SAM: a coarse grid, a threshold, the best and the worst cells.

Source: the published CLIP Surgery code, `similarity_map_to_points`
(https://github.com/xmed-lab/CLIP_Surgery), for all labels at once and without leaving the device.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clip2sam.errors import ConfigError
from clip2sam.similarity import min_max
from clip2sam.types import PointPrompts

PADDING = -1
"""The point label of a slot that holds no point."""

Grid = int | Literal["half"]


def pool_grid(
    maps: Float[Tensor, "labels rows cols"], grid: Grid = 7
) -> Float[Tensor, "labels grid_rows grid_cols"]:
    """Pool maps to a grid and scale each to 0..1; a map that is constant or not finite becomes NaN.

    Args:
        maps: raw or normalised scores.
        grid: cells a side, averaged by area; or "half", the published way: half the map's side by bilinear
            resizing, which at an even side is the same as averaging and at other sizes skips cells.

    Raises:
        ConfigError: the grid has fewer than 2 cells a side, so there is nothing to choose between.
    """
    side = maps.shape[-1] // 2 if grid == "half" else grid
    if side < 2:
        raise ConfigError(
            f"the grid needs 2 cells a side or more, but got {side}; use a larger grid or CLIP input"
        )
    if grid == "half":
        pooled = F.interpolate(maps[None], (side, side), mode="bilinear", align_corners=False)[0]
    else:
        pooled = F.adaptive_avg_pool2d(maps, (side, side))
    return min_max(pooled)


def select_points(
    grids: Float[Tensor, "labels grid_rows grid_cols"],
    size: tuple[int, int],
    threshold: float = 0.8,
    max_positive: int | None = None,
    max_negative: int | None = None,
) -> tuple[Float[Tensor, "labels points 2"], Int[Tensor, "labels points"]]:
    """Choose positive and negative points on grids scaled to 0..1.

    n is the number of cells at or above the threshold, at most half of all. The n highest cells are positive
    (the best last) and the n lowest negative (the lowest first), as published; the caps keep the best of each.

    Args:
        grids: pooled maps scaled to 0..1. A grid with a NaN gets no points.
        size: (height, width) of the picture in pixels.
        threshold: in (0, 1].
        max_positive, max_negative: at most so many of each kind; None for no cap, 0 for none.

    Returns:
        Cell centres (x, y) in continuous pixels, float32, and their labels: 1 positive, 0 negative, -1 padding.

    Raises:
        ConfigError: the threshold is outside (0, 1], or a cap is negative.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"the point threshold must be above 0 and at most 1, but got {threshold}")
    for name, cap in (("max_positive", max_positive), ("max_negative", max_negative)):
        if cap is not None and cap < 0:
            raise ConfigError(f"{name} must be 0 or more (or None for no cap), but got {cap}")
    labels, rows, cols = grids.shape
    cells = grids.reshape(labels, rows * cols)
    slots = torch.arange(rows * cols // 2, device=cells.device)
    rank = torch.nan_to_num(cells, nan=0.0).argsort(dim=-1, stable=True)
    count = (cells >= threshold).sum(dim=-1, keepdim=True).clamp(max=len(slots))
    positive = count if max_positive is None else count.clamp(max=max_positive)
    negative = count if max_negative is None else count.clamp(max=max_negative)
    best_last = rank.gather(1, (rows * cols - positive + slots).clamp(max=rows * cols - 1))
    chosen = torch.cat([best_last, rank[:, : len(slots)]], dim=1)
    point_labels = torch.cat(
        [torch.where(slots < positive, 1, PADDING), torch.where(slots < negative, 0, PADDING)],
        dim=1,
    )
    x = (chosen % cols + 0.5) * (size[1] / cols)
    y = (chosen // cols + 0.5) * (size[0] / rows)
    return torch.stack([x, y], dim=-1), point_labels


def point_prompts(
    coords: Float[Tensor, "labels points 2"],
    point_labels: Int[Tensor, "labels points"],
    keep: Tensor,
) -> PointPrompts:
    """One prompt for each kept label that has points.

    Args:
        coords, point_labels: from `select_points`.
        keep: bool (labels,): the labels that are present.

    Only the number of prompts (a shape) becomes known to the host here, no value.
    """
    rows = (keep & (point_labels == 1).any(dim=-1)).nonzero()[:, 0]
    return PointPrompts(coords=coords[rows], point_labels=point_labels[rows], label_index=rows)


def pixel_indices(coords: Float[Tensor, "*points 2"]) -> Int[Tensor, "*points 2"]:
    """The pixels (column, row) that hold continuous points: the published code's integer points."""
    return coords.floor().long()
