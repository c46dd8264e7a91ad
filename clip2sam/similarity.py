"""Feature surgery: how well every label fits every place, without what all labels share; and which
labels are present.

Source: Li et al., 2023, https://arxiv.org/abs/2304.05653, section 3.4 and algorithm 1. The
published code builds a (tokens, labels, channels) tensor; the same sum is one matrix product. With
unit tokens F, unit texts T and P = F T^T, the weighted elementwise product f_c t_lc w_l minus its
mean over labels, summed over channels, is

    S = w * P - mean over labels (w * P),      w = softmax over labels (2 * CLS similarity) / mean.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

TEMPERATURE = 2.0
"""CLS similarities are multiplied by it before the softmax over labels, as published."""


class SurgeryTerms(NamedTuple):
    """The two terms whose difference is feature surgery, and the weights."""

    similarity: Float[Tensor, "images tokens labels"]
    """Weighted similarity of each token with each label: w * P."""
    redundant: Float[Tensor, "images tokens 1"]
    """What is taken out: the mean over labels, or the similarity with the redundant feature."""
    weights: Float[Tensor, "images labels"]
    """w: how much the image as a whole speaks for each label, 1 on average over the labels."""


def surgery_terms(
    tokens: Float[Tensor, "images tokens channels"],
    text: Float[Tensor, "labels channels"],
    redundant: Float[Tensor, "1 channels"] | None = None,
) -> SurgeryTerms:
    """The terms of `feature_surgery`, which see for the arguments."""
    similarity = tokens @ text.T
    if redundant is not None:
        return SurgeryTerms(similarity, tokens @ redundant.T, torch.ones_like(similarity[:, 0]))
    weights = (TEMPERATURE * similarity[:, 0]).softmax(dim=-1)
    weights = weights / weights.mean(dim=-1, keepdim=True)
    similarity *= weights[:, None]
    return SurgeryTerms(similarity, similarity.mean(dim=-1, keepdim=True), weights)


def feature_surgery(
    tokens: Float[Tensor, "images tokens channels"],
    text: Float[Tensor, "labels channels"],
    redundant: Float[Tensor, "1 channels"] | None = None,
) -> Float[Tensor, "images tokens labels"]:
    """Similarity of every token with every label, without what the labels have in common.

    Args:
        tokens: unit token features, CLS first; each image has its own weights.
        text: unit text features.
        redundant: a unit text feature to take out instead of the labels' mean: the empty string's,
            for a label that stands alone (its own mean would leave nothing).

    Returns:
        Raw scores, in the tokens' dtype. Adding a label changes the others'; permuting labels
        permutes them.
    """
    terms = surgery_terms(tokens, text, redundant)
    return terms.similarity.sub_(terms.redundant)


def plain_similarity(
    tokens: Float[Tensor, "images tokens channels"], text: Float[Tensor, "labels channels"]
) -> Float[Tensor, "images tokens labels"]:
    """Cosine of every token with every label: no feature surgery. The labels don't influence each
    other, and what all have in common stays in."""
    return tokens @ text.T


def score_maps(
    scores: Float[Tensor, "images tokens labels"], rows: int, cols: int
) -> Float[Tensor, "images labels rows cols"]:
    """Token scores as maps: without the CLS token, the patches in their rows and columns.

    The scores are not normalised, so an absent label's map stays low.
    """
    return scores[:, 1:].transpose(1, 2).unflatten(2, (rows, cols))


def min_max(maps: Float[Tensor, "*batch rows cols"]) -> Float[Tensor, "*batch rows cols"]:
    """Scale each map to 0..1. A constant map, or one with a value that is not finite, gives NaN."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low)


def resize_maps(
    maps: Float[Tensor, "labels rows cols"], size: tuple[int, int]
) -> Float[Tensor, "labels height width"]:
    """One image's maps scaled to 0..1 and resized bilinearly to (height, width), as published."""
    return F.interpolate(min_max(maps)[None], size, mode="bilinear", align_corners=False)[0]


def beaten_by_distractors(
    maps: Float[Tensor, "images labels rows cols"], is_distractor: Bool[Tensor, "labels"]
) -> Bool[Tensor, "images labels"]:
    """Which labels score lower than some distractor at the place of their own peak."""
    cells = maps.flatten(2)
    peak = cells.argmax(dim=-1)
    rivals = torch.where(is_distractor[:, None], cells, -torch.inf).amax(dim=1)
    return cells.amax(dim=-1) < rivals.gather(1, peak)
