"""From objects that a locator found one by one to prompts for SAM: a box each, or the mask that
came with it; and how well a mask fits the box that asked for it.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clip2sam.scoring import Contrast
from clip2sam.types import Candidates, Prompts, Proposals

CORNERS = (2, 3)
"""SAM's own kinds of point for the upper left and the lower right corner of a box."""


def proposal_prompts(
    proposals: Proposals, present: Bool[Tensor, "images labels"], threshold: float, most: int
) -> Prompts:
    """One prompt for each proposal of the labels that are present, in the order of the proposals.

    Args:
        threshold: in (0, 1]: a proposal has at least this share of its label's highest score in the
            image, as maxima of maps have.
        most: so many of a label in an image at most, those with the highest scores.
    """
    image, label, score = proposals.image_index, proposals.label_index, proposals.score
    labels = present.shape[1]
    group = image * labels + label
    best = score.new_full((present.numel(),), -torch.inf)
    best = best.scatter_reduce(0, group, score, "amax")
    # two stable sorts: by group, and by score within each
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    starts = torch.zeros_like(best, dtype=torch.long)
    starts[1:] = torch.bincount(group, minlength=len(best)).cumsum(0)[:-1]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - starts[group[order]]
    keep = present[image, label] & (score >= threshold * best[group]) & (rank < most)
    rows = keep.nonzero()[:, 0]
    owner, cut = image[rows], proposals.candidates
    return Prompts(
        coords=score.new_zeros(len(rows), 1, 2),
        point_labels=torch.full((len(rows), 1), -1, device=score.device),  # padding: no point
        label_index=label[rows],
        counts=tuple(len((owner == i).nonzero()) for i in range(len(proposals.counts))),
        sizes=proposals.sizes,
        boxes=proposals.boxes[rows],
        scores=score[rows],
        candidates=None if cut is None else Candidates(cut.logits[rows], cut.predicted_iou[rows]),
    )


def proposal_contrast(
    scores: Float[Tensor, "prompts"], fit: Float[Tensor, "prompts masks"]
) -> Contrast:
    """What a proposal says about its masks, in the place of the contrast of a map.

    Args:
        fit: how well each mask fits the proposal's box, 0 to 1.
    """
    score = scores[:, None] * fit
    return Contrast(score, score)


def box_fit(
    inside: Bool[Tensor, "prompts masks rows cols"], boxes: Float[Tensor, "prompts 4"]
) -> Float[Tensor, "prompts masks"]:
    """IoU of the box around each mask with the prompt's box; 0 for an empty mask.

    Args:
        inside: the masks at a low resolution.
        boxes: x0, y0, x1, y1 in cells of that resolution.
    """
    left, top, right, bottom = mask_boxes(inside).unbind(dim=-1)
    x0, y0, x1, y1 = (side[:, None] for side in boxes.unbind(dim=1))
    wide = (torch.minimum(right, x1) - torch.maximum(left, x0)).clamp(min=0)
    high = (torch.minimum(bottom, y1) - torch.maximum(top, y0)).clamp(min=0)
    shared = wide * high
    both = (right - left) * (bottom - top) + (x1 - x0) * (y1 - y0) - shared
    return torch.where(right > left, shared / both.clamp(min=1e-6), 0.0)


def mask_boxes(inside: Bool[Tensor, "*masks rows cols"]) -> Float[Tensor, "*masks 4"]:
    """The box around each mask, x0, y0, x1, y1 in cells; all 0 for an empty mask."""
    (top, bottom), (left, right) = (_extent(inside.any(dim=axis)) for axis in (-1, -2))
    return torch.stack([left, top, right, bottom], dim=-1)


def _extent(
    some: Bool[Tensor, "*masks cells"],
) -> tuple[Float[Tensor, "*masks"], Float[Tensor, "*masks"]]:
    """From the first True to behind the last one; 0, 0 without any."""
    at = torch.arange(some.shape[-1], device=some.device, dtype=torch.float32)
    first = torch.where(some, at, torch.inf).amin(dim=-1)
    last = torch.where(some, at + 1, 0.0).amax(dim=-1)
    return torch.where(last > 0, first, 0.0), last
