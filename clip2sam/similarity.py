"""Feature surgery: how well every label fits every place, with what all labels share taken out.

Source: Li et al., 2023, https://arxiv.org/abs/2304.05653, section 3.4 and algorithm 1. The published code builds
a (tokens, labels, channels) tensor; the same sum is one matrix product. With unit tokens F, unit texts T and
P = F T^T, the weighted elementwise product f_c t_lc w_l minus its mean over labels, summed over channels, is

    S = w * P - mean over labels (w * P),      w = softmax over labels (2 * CLS similarity) / its mean.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clip2sam.types import SimilarityMaps

TEMPERATURE = 2.0
"""What CLS similarities are multiplied by before the softmax over labels, as published."""


def feature_surgery(
    tokens: Float[Tensor, "batch tokens channels"],
    text: Float[Tensor, "labels channels"],
    redundant: Float[Tensor, "1 channels"] | None = None,
) -> Float[Tensor, "batch tokens labels"]:
    """Similarity of every token with every label, without what the labels have in common.

    Args:
        tokens: unit token features, CLS first, of one or more pictures; each picture has its own weights.
        text: unit text features.
        redundant: a unit text feature to take out instead of the labels' mean: the empty string's, which is
            what a label that stands alone needs (its own mean would leave nothing).

    Returns:
        Raw scores, in the tokens' dtype. Adding a label changes the others'; permuting labels permutes them.
    """
    if redundant is not None:
        return tokens @ (text - redundant).T
    scores = tokens @ text.T
    weights = (TEMPERATURE * scores[:, :1]).softmax(dim=-1)
    scores *= weights / weights.mean(dim=-1, keepdim=True)
    scores -= scores.mean(dim=-1, keepdim=True)
    return scores


def similarity_maps(scores: Float[Tensor, "tokens labels"]) -> SimilarityMaps:
    """One picture's scores as maps: patch tokens in rows and columns, presence = each map's highest score.

    The scores are not normalised, so an absent label's map stays low.
    """
    patches = scores[1:].T
    side = round(patches.shape[-1] ** 0.5)
    raw = patches.reshape(len(patches), side, side)
    return SimilarityMaps(raw=raw, presence=patches.amax(dim=-1))


def min_max(maps: Float[Tensor, "*batch rows cols"]) -> Float[Tensor, "*batch rows cols"]:
    """Scale each map to 0..1. A constant map, or one with a value that isn't finite, becomes NaN."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low)


def resize_maps(
    maps: Float[Tensor, "labels rows cols"], size: tuple[int, int]
) -> Float[Tensor, "labels height width"]:
    """Maps scaled to 0..1 and resized bilinearly to a picture of (height, width), as published."""
    return F.interpolate(min_max(maps)[None], size, mode="bilinear", align_corners=False)[0]


def usable(maps: Float[Tensor, "labels rows cols"]) -> Bool[Tensor, "labels"]:
    """Which maps can be pointed at: finite everywhere, and not the same everywhere."""
    spread = maps.amax(dim=(-2, -1)) - maps.amin(dim=(-2, -1))
    return torch.isfinite(maps).all(dim=-1).all(dim=-1) & (spread > 0)


def beats_distractors(
    maps: Float[Tensor, "labels rows cols"], is_distractor: Bool[Tensor, "labels"]
) -> Bool[Tensor, "labels"]:
    """Which labels score at least as high as every distractor at the place of their own peak."""
    cells = maps.flatten(1)
    peak = cells.argmax(dim=-1)
    rivals = torch.where(is_distractor[:, None], cells, -torch.inf).amax(dim=0)
    return cells.amax(dim=-1) >= rivals[peak]


def is_present(
    maps: SimilarityMaps,
    thresholds: Float[Tensor, "labels"] | None,
    is_distractor: Bool[Tensor, "labels"],
) -> Bool[Tensor, "labels"]:
    """Which labels get a prompt: wanted, usable, at or above their threshold, and not beaten by a distractor.

    The decision is taken on raw scores, because scaling a map to 0..1 gives every label, absent ones as well, a
    peak of 1. Without thresholds there is no decision: every wanted label with a usable map is present.
    """
    candidates = usable(maps.raw) & ~is_distractor
    if thresholds is None:
        return candidates
    return candidates & (maps.presence >= thresholds) & beats_distractors(maps.raw, is_distractor)
