"""The published recipe, written plainly: the other side of every comparison.

One sentence batch a label with the whole context, feature surgery with its (tokens, labels, channels) tensor, one
label at a time through segment-anything's `SamPredictor`, everything in float32.
Source of the recipe: https://github.com/xmed-lab/CLIP_Surgery (demo).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip2sam.clip import TEMPLATES


@torch.no_grad()
def text_features(model: Any, tokenizer: Any, labels: list[str]) -> Tensor:
    """Label by label, 85 sentences of the whole context each: (labels, channels)."""
    rows = []
    for label in labels:
        sentences = model.encode_text(tokenizer([t.replace("{}", label) for t in TEMPLATES]))
        sentences = sentences / sentences.norm(dim=-1, keepdim=True)
        mean = sentences.mean(dim=0)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


@torch.no_grad()
def feature_surgery(tokens: Tensor, text: Tensor) -> Tensor:
    """The paper's algorithm 1 with all of its tensors, for one picture: (tokens, labels)."""
    probability = (tokens[:1] @ text.T * 2).softmax(-1)
    weights = probability / probability.mean(-1, keepdim=True)
    features = tokens[:, None, :] * text[None, :, :]
    features = features * weights[..., None]
    return (features - features.mean(dim=1, keepdim=True)).sum(-1)


def masks(predictor: Any, prompts: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """One label after the other; of three masks at the picture's size, SAM's favourite: bool (height, width) each."""
    chosen = []
    for coords, labels in prompts:
        candidates, iou, _ = predictor.predict(coords, labels, multimask_output=True)
        chosen.append(candidates[iou.argmax()])
    return chosen
