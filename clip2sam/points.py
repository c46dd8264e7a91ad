"""From similarity maps to points for SAM: a coarse grid, a threshold, the best and the worst cells.

Source: the published CLIP Surgery code, `similarity_map_to_points`
(https://github.com/xmed-lab/CLIP_Surgery), for all labels at once and without leaving the device.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clip2sam.config import Grid
from clip2sam.errors import ConfigError
from clip2sam.similarity import min_max
from clip2sam.types import Prompts, Sizes

PADDING = -1
"""The point label of a slot that holds no point."""


def grid_cells(rows: int, cols: int, grid: Grid) -> tuple[int, int]:
    """The rows and columns of the grid that a map of so many cells is pooled to.

    Raises:
        ConfigError: the grid has fewer than 2 cells a side, so there is nothing to choose between,
            or more than the map, whose cells would be there several times.
    """
    cells = (rows // 2, cols // 2) if grid == "half" else (grid, grid)
    if min(cells) < 2:
        raise ConfigError(
            f"the grid needs 2 cells a side or more, but got {min(cells)}; "
            "use a larger grid or CLIP input"
        )
    if cells[0] > rows or cells[1] > cols:
        raise ConfigError(
            f"a grid of {cells[0]} x {cells[1]} cells is finer than CLIP's map of {rows} x {cols}; "
            f"use a grid of {min(rows, cols)} or less, or a larger CLIP input"
        )
    return cells


def pool_grid(
    maps: Float[Tensor, "images labels rows cols"], grid: Grid = 7
) -> Float[Tensor, "images labels grid_rows grid_cols"]:
    """Pool maps to a grid and scale each to 0..1; a map that is constant or not finite gives NaN.

    Args:
        maps: raw or normalised scores.
        grid: cells a side, averaged by area; or "half", the published way: half the map's rows and
            columns by bilinear resizing, which at even sides is the same as averaging and at other
            sizes skips cells.

    Raises:
        ConfigError: the grid does not fit the maps, see `grid_cells`.
    """
    rows, cols = maps.shape[-2:]
    cells = grid_cells(rows, cols, grid)
    if grid == "half":
        pooled = F.interpolate(maps, cells, mode="bilinear", align_corners=False)
    else:
        pooled = F.adaptive_avg_pool2d(maps, cells)
    return min_max(pooled)


def select_points(
    grids: Float[Tensor, "images labels grid_rows grid_cols"],
    sizes: Sizes,
    threshold: float = 0.8,
    max_positive: int | None = None,
    max_negative: int | None = None,
) -> tuple[Float[Tensor, "images labels points 2"], Int[Tensor, "images labels points"]]:
    """Choose positive and negative points on grids scaled to 0..1.

    n is the number of cells at or above the threshold, at most half of all. The n highest cells are
    positive (the best last) and the n lowest negative (the lowest first), as published; the caps
    keep the best of each.

    Args:
        grids: pooled maps scaled to 0..1. A grid with a NaN gets no points.
        sizes: (height, width) of each image in pixels.
        threshold: in (0, 1].
        max_positive, max_negative: at most so many of each kind; None for no cap, 0 for none.

    Returns:
        Cell centres (x, y) in continuous pixels, fp32, and their labels: 1 positive, 0 negative,
        -1 padding.

    Raises:
        ConfigError: the threshold is outside (0, 1], or a cap is negative.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"the point threshold must be above 0 and at most 1, but got {threshold}")
    for name, cap in (("max_positive", max_positive), ("max_negative", max_negative)):
        if cap is not None and cap < 0:
            raise ConfigError(f"{name} must be 0 or more (or None for no cap), but got {cap}")
    rows, cols = grids.shape[-2:]
    cells = grids.flatten(2)
    slots = torch.arange(rows * cols // 2, device=cells.device)
    rank = torch.nan_to_num(cells, nan=0.0).argsort(dim=-1, stable=True)
    count = (cells >= threshold).sum(dim=-1, keepdim=True).clamp(max=len(slots))
    positive = count if max_positive is None else count.clamp(max=max_positive)
    negative = count if max_negative is None else count.clamp(max=max_negative)
    last = rows * cols - 1
    best_last = rank.gather(2, (rows * cols - positive + slots).clamp(max=last))
    chosen = torch.cat([best_last, rank[..., : len(slots)]], dim=2)
    kinds = [torch.where(slots < positive, 1, PADDING), torch.where(slots < negative, 0, PADDING)]
    cell_sizes = torch.tensor([(width / cols, height / rows) for height, width in sizes])
    cell_sizes = cell_sizes.to(cells.device, torch.float32)[:, None, None]
    centres = torch.stack([chosen % cols + 0.5, chosen // cols + 0.5], dim=-1) * cell_sizes
    return centres, torch.cat(kinds, dim=2)


def point_prompts(
    coords: Float[Tensor, "images labels points 2"],
    point_labels: Int[Tensor, "images labels points"],
    keep: Bool[Tensor, "images labels"],
    sizes: Sizes,
) -> Prompts:
    """One prompt for each kept label that has positive points.

    Only the number of prompts of each image (a shape) becomes known to the host here, no value.

    Args:
        coords, point_labels: from `select_points`.
        keep: the labels that are present.
        sizes: (height, width) of each image in pixels.
    """
    prompted = keep & (point_labels == 1).any(dim=-1)
    rows = [one.nonzero()[:, 0] for one in prompted]
    return Prompts(
        coords=torch.cat([xy[row] for xy, row in zip(coords, rows, strict=True)]),
        point_labels=torch.cat([kind[row] for kind, row in zip(point_labels, rows, strict=True)]),
        label_index=torch.cat(rows),
        counts=tuple(len(row) for row in rows),
        sizes=sizes,
    )


def pixel_indices(coords: Float[Tensor, "*points 2"]) -> Int[Tensor, "*points 2"]:
    """The pixels (column, row) that hold continuous points: the published code's integer points."""
    return coords.floor().long()
