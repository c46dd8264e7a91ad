"""From similarity maps to the places of single objects: each local maximum of a label's map, where
the grid is positive, is one object and becomes one prompt.

The 7x7 grid and its threshold say where the label is, as in `clip2sam.points`; the map at a finer
side says how many objects there are and where each of them is. CLIP's map peaks at objects, so the
places of the maxima are better prompts than the centres of cells. Measured in LOG.md, 2026-11-28.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clip2sam.kernels.device import on_host
from clip2sam.types import Instances, Prompts, SimilarityMaps

FINE = 64
"""Cells a side that maps are resized to (bilinearly) to find their maxima; at least two a token."""

NEAR = 2
"""A maximum may lie so many fine cells beside a positive cell of the grid: cells are coarse."""

TOKENS_APART = 2.0
"""Two objects of a label are at least so far apart, in tokens of the map."""

PEAKS_AN_OBJECT = 2
"""So many places are prompted for every object that a label may have: a ring has several maxima,
whose masks turn out to be one."""


def fine_maps(maps: Float[Tensor, "labels rows cols"]) -> Float[Tensor, "labels high wide"]:
    """Maps resized bilinearly to the side on which maxima are found and masks are measured."""
    high, wide = (max(FINE, 2 * side) for side in maps.shape[-2:])
    resized = F.interpolate(maps[:, None], (high, wide), mode="bilinear", align_corners=False)
    return resized[:, 0]


def find_instances(
    maps: SimilarityMaps,
    grids: Float[Tensor, "images labels grid_rows grid_cols"],
    threshold: float,
    most: int,
) -> Instances:
    """The places of the objects of each label that is present.

    A label's first object is at the highest place of its map in a positive cell of the grid. The
    others are local maxima there, from the highest on, at least `TOKENS_APART` tokens from those
    before, and of at least `threshold` of the first one's raw score. Only numbers of rows (shapes)
    become known to the host here, no value.

    Args:
        grids: the maps pooled and scaled to 0..1 by `clip2sam.points.pool_grid`. A grid with a NaN
            gives no object.
        threshold: in (0, 1]: cells of the grid at or above it are positive.
        most: so many objects of a label at most.
    """
    image, label = (maps.present & grids.isfinite().flatten(2).all(dim=-1)).nonzero(as_tuple=True)
    raw = maps.raw[image, label]
    fine = fine_maps(raw)
    allowed = _near_positive_cells(grids[image, label] >= threshold, fine.shape[-2:])
    place, height = _highest(fine, allowed, raw.shape[-2:], threshold, most)
    row, rank = height.isfinite().nonzero(as_tuple=True)
    owner = image[row]
    high, wide = fine.shape[-2:]
    cell = place[row, rank]
    centres = torch.stack([cell % wide + 0.5, cell // wide + 0.5], dim=-1)
    fine_cells = torch.tensor([(w / wide, h / high) for h, w in maps.sizes], device=raw.device)
    return Instances(
        coords=centres * fine_cells[owner],
        height=height[row, rank],
        label_index=label[row],
        counts=tuple(len((owner == i).nonzero()) for i in range(len(maps.sizes))),
        sizes=maps.sizes,
    )


def instance_prompts(
    instances: Instances,
    coords: Float[Tensor, "images labels points 2"] | None = None,
    point_labels: Int[Tensor, "images labels points"] | None = None,
) -> Prompts:
    """One prompt for each object: a positive point at its place, and its label's negative points.

    Args:
        coords, point_labels: from `clip2sam.points.select_points`, without positive points; None:
            there are no negative ones.
    """
    places, kinds = instances.coords[:, None], torch.ones_like(instances.label_index)[:, None]
    if coords is not None and point_labels is not None:
        own = instances.image_index, instances.label_index
        places = torch.cat([places, coords[own]], dim=1)
        kinds = torch.cat([kinds, point_labels[own]], dim=1)
    return Prompts(
        coords=places,
        point_labels=kinds,
        label_index=instances.label_index,
        counts=instances.counts,
        sizes=instances.sizes,
    )


def _near_positive_cells(
    positive: Bool[Tensor, "labels grid_rows grid_cols"], size: tuple[int, ...]
) -> Bool[Tensor, "labels high wide"]:
    """The fine cells in or near the positive ones."""
    fine = F.interpolate(positive[:, None].float(), tuple(size), mode="nearest")
    return F.max_pool2d(fine, 2 * NEAR + 1, stride=1, padding=NEAR)[:, 0] > 0


def _highest(
    fine: Float[Tensor, "labels high wide"],
    allowed: Bool[Tensor, "labels high wide"],
    tokens: tuple[int, ...],
    threshold: float,
    most: int,
) -> tuple[Int[Tensor, "labels objects"], Float[Tensor, "labels objects"]]:
    """The fine cell of each object, the highest first, and its height; -inf where there is none.
    On the host as many columns as are needed."""
    high, wide = fine.shape[-2:]
    is_maximum = fine >= F.max_pool2d(fine[:, None], 3, stride=1, padding=1)[:, 0]
    # distances are in tokens, which need not be square
    y = torch.arange(high, device=fine.device) * (tokens[0] / high)
    x = torch.arange(wide, device=fine.device) * (tokens[1] / wide)
    left = fine.masked_fill(~allowed, -torch.inf)
    places: list[Tensor] = []
    heights: list[Tensor] = []
    for rank in range(most):
        height, place = left.flatten(1).max(dim=1)
        if rank:
            height = height.masked_fill(height < threshold * heights[0], -torch.inf)
        else:  # only the first may be no maximum: where the map rises towards a cell left out
            left = left.masked_fill(~is_maximum, -torch.inf)
        down = (y - y[place // wide][:, None]).square()[:, :, None]
        across = (x - x[place % wide][:, None]).square()[:, None]
        left = left.masked_fill(down + across < TOKENS_APART**2, -torch.inf)
        places.append(place)
        heights.append(height)
        if on_host(fine) and not height.isfinite().any():  # a GPU would have to be waited for
            break
    return torch.stack(places, dim=1), torch.stack(heights, dim=1)
