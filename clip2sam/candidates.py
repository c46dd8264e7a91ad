"""Which of SAM's candidate masks a prompt keeps.

A rule takes the candidates and their agreement with the label's map, (prompts, candidates), and
gives a quality of the same shape; the candidate with the highest quality is kept. Pass a function
of your own as `Config(candidate=rule)`.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from clip2sam.similarity import min_max
from clip2sam.types import Candidates

Quality = Float[Tensor, "prompts candidates"]
CandidateRule = Callable[[Candidates, Quality], Quality]


def by_predicted_iou(candidates: Candidates, agreement: Quality) -> Quality:
    """SAM's own choice, as published. It is often the background."""
    return candidates.predicted_iou


def by_agreement(candidates: Candidates, agreement: Quality) -> Quality:
    """The candidate that covers the label's map best."""
    return agreement


def by_both(candidates: Candidates, agreement: Quality) -> Quality:
    """The sum of the two."""
    return agreement + candidates.predicted_iou


CANDIDATE_RULES: Mapping[str, CandidateRule] = {
    "both": by_both,
    "agreement": by_agreement,
    "predicted_iou": by_predicted_iou,
}


def as_rule(candidate: str | CandidateRule) -> CandidateRule:
    """The rule of that name, or the function itself."""
    return candidate if callable(candidate) else CANDIDATE_RULES[candidate]


def agreement(
    coverage: Float[Tensor, "prompts candidates rows cols"],
    maps: Float[Tensor, "prompts rows cols"],
) -> Float[Tensor, "prompts candidates"]:
    """How well each candidate agrees with its label's similarity map: a soft IoU, 0 to 1.

    Args:
        coverage: the share of each of the map's cells that the candidate covers, 0 to 1.
        maps: the raw map of each prompt's label.
    """
    heat = min_max(maps)[:, None]
    overlap = torch.minimum(coverage, heat).sum(dim=(-2, -1))
    union = torch.maximum(coverage, heat).sum(dim=(-2, -1))
    return overlap / union
