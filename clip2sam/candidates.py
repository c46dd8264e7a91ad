"""Which of SAM's three candidates a prompt keeps."""

import torch
from jaxtyping import Float
from torch import Tensor

from clip2sam.similarity import min_max


def agreement(
    coverage: Float[Tensor, "prompts candidates rows cols"],
    maps: Float[Tensor, "prompts rows cols"],
) -> Float[Tensor, "prompts candidates"]:
    """How well each candidate agrees with its label's similarity map: a soft IoU, 0 to 1.

    Args:
        coverage: how much of each of the map's cells the candidate covers, 0 to 1.
        maps: each prompt's label's raw map.
    """
    heat = min_max(maps)[:, None]
    overlap = torch.minimum(coverage, heat).sum(dim=(-2, -1))
    union = torch.maximum(coverage, heat).sum(dim=(-2, -1))
    return overlap / union
