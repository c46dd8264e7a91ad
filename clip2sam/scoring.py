"""How good the mask of a single object is: its score, its share of the label's best mask, and which
masks of a label show the same object.

    score = predicted IoU * stability * c / (c + 0.1) * c / best c

where the contrast c is the mean raw score of the label's map inside the mask minus that in a ring
around it, and best c that of the label's mask with the highest. A mask over something else has
little contrast; a false further object of a label has less than the true one beside it. Each factor
gained AP on drawn scenes: LOG.md, 2026-11-28.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

RING = 4
"""Width of the ring in cells of a fine map (`clip2sam.instances.fine_maps`)."""

HALF_CONTRAST = 0.1
"""The contrast at which its factor is 1/2: a presence score that is just enough for photographs.
From 0.1 to 0.5 it makes no difference for drawn scenes."""

SAME_IOU = 0.5
"""Two masks of a label with a higher IoU show one object."""

SAME_CONTAINED = 0.8
"""So do two of which the smaller one lies in the other with a greater part than this."""


PIXELS_AT_ONCE = 4096
"""Pixels of masks that are compared together."""


class Contrast(NamedTuple):
    """What a label's map says about masks."""

    inside: Float[Tensor, "prompts masks"]
    """Mean raw score inside the mask."""
    contrast: Float[Tensor, "prompts masks"]
    """`inside` minus the mean raw score in a ring around the mask; at least 0."""

    @property
    def agreement(self) -> Float[Tensor, "prompts masks"]:
        """The contrast's factor in a score, 0 to 1."""
        return self.contrast / (self.contrast + HALF_CONTRAST)


def contrast(
    coverage: Float[Tensor, "prompts masks high wide"], maps: Float[Tensor, "prompts high wide"]
) -> Contrast:
    """Compare a map inside masks and around them.

    Args:
        coverage: the share of each of the map's cells that each mask covers, 0 to 1.
        maps: the fine raw map of each prompt's label.
    """
    width = 2 * RING + 1  # rows, then columns: the same as a square, and faster
    tall = F.max_pool2d(coverage, (width, 1), stride=1, padding=(RING, 0))
    wider = F.max_pool2d(tall, (1, width), stride=1, padding=(0, RING))
    heat = maps[:, None]
    inside, around = (_weighted_mean(heat, weight) for weight in (coverage, wider - coverage))
    return Contrast(inside, (inside - around).clamp(min=0))


def _weighted_mean(
    maps: Float[Tensor, "prompts 1 high wide"], weights: Float[Tensor, "prompts masks high wide"]
) -> Float[Tensor, "prompts masks"]:
    """0 where there is no weight."""
    total = weights.sum(dim=(-2, -1))
    return (maps * weights).sum(dim=(-2, -1)) / total.clamp(min=1e-6)


def stability(logits: Float[Tensor, "masks low low"]) -> Float[Tensor, "masks"]:
    """SAM's stability score: how little a mask changes when its threshold moves by one logit, as
    the IoU of the two masks. Source: segment-anything, `calculate_stability_score`."""
    inner, outer = ((logits > level).sum(dim=(-2, -1)) for level in (1.0, -1.0))
    return inner / outer.clamp(min=1)


def same_object(
    inside: Bool[Tensor, "masks rows cols"],
    iou: float = SAME_IOU,
    contained: float = SAME_CONTAINED,
) -> Bool[Tensor, "masks masks"]:
    """Which masks of one image show the same object, by their overlap. Empty masks show none.

    Args:
        iou: those with a higher IoU.
        contained: and those of which the smaller one lies in the other with a greater part; 1: only
            the IoU counts.
    """
    flat = inside.flatten(1)
    shared = torch.zeros(len(flat), len(flat), device=flat.device)
    for part in flat.split(PIXELS_AT_ONCE, dim=1):  # many masks as floats are much memory
        shared += part.float() @ part.float().T  # whole numbers, exact in any order
    area = shared.diagonal()
    either = area[:, None] + area - shared
    smaller = torch.minimum(area[:, None], area)
    return (shared > iou * either) | (shared > contained * smaller)


def best_of_each(
    order: Float[Tensor, "masks"],
    group: Bool[Tensor, "masks masks"],
    same: Bool[Tensor, "masks masks"],
    most: int,
) -> Bool[Tensor, "masks"]:
    """Which masks are kept: in each group the best first, then the best of those that show none of
    the objects kept so far, and so on.

    Args:
        order: the quality of each mask; of equals the first is the better.
        group: which masks are of the same label.
        same: which masks show the same object.
        most: so many of a group at most.
    """
    rank = order.argsort(descending=True, stable=True).argsort(stable=True)
    rival = group & (rank[None] < rank[:, None])  # [i, j]: j comes before i
    alive = torch.ones_like(order, dtype=torch.bool)
    kept = torch.zeros_like(alive)
    for _ in range(min(most, len(order))):
        lead = alive & ~(rival & alive).any(dim=1)
        kept |= lead
        alive &= ~(lead | (group & same & lead).any(dim=1))
    return kept


def shares_of_best(
    values: Float[np.ndarray, "masks"],
    label_index: Int[np.ndarray, "masks"],
    kept: Bool[np.ndarray, "masks"] | None = None,
) -> Float[np.ndarray, "masks"]:
    """Each value divided by the highest among those of its label in one image, 0 to 1; 1 where that
    is not above 0, and there is nothing to compare with. On the host.

    Args:
        label_index: the label of each.
        kept: the masks that the highest value is looked for among; None: all.
    """
    group = label_index[:, None] == label_index
    if kept is not None:
        group &= kept
    best = np.where(group, values, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(best > 0, values / np.where(best > 0, best, 1), 1).clip(0, 1)
