"""The published recipe, written plainly: the other side of every comparison.

One batch of 85 texts a label with the whole context, feature surgery with its (tokens, labels,
channels) tensor, one label at a time through segment-anything's `SamPredictor`, all in fp32.

Source of the recipe: https://github.com/xmed-lab/CLIP_Surgery (demo).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip2sam.clip import TEMPLATES


@torch.no_grad()
def text_features(model: Any, tokenizer: Any, labels: list[str]) -> Tensor:
    """Label by label, 85 texts of the whole context each: (labels, channels)."""
    rows = []
    for label in labels:
        features = model.encode_text(tokenizer([t.replace("{}", label) for t in TEMPLATES]))
        features = features / features.norm(dim=-1, keepdim=True)
        mean = features.mean(dim=0)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


@torch.no_grad()
def feature_surgery(tokens: Tensor, text: Tensor) -> Tensor:
    """The paper's algorithm 1 with all of its tensors, for one image: (tokens, labels)."""
    probability = (tokens[:1] @ text.T * 2).softmax(-1)
    weights = probability / probability.mean(-1, keepdim=True)
    features = tokens[:, None, :] * text[None, :, :]
    features = features * weights[..., None]
    return (features - features.mean(dim=1, keepdim=True)).sum(-1)


def masks(predictor: Any, prompts: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """One label after the other; of three masks at the image's size the one of the highest
    predicted IoU: bool (height, width) each."""
    chosen = []
    for coords, labels in prompts:
        candidates, iou, _ = predictor.predict(coords, labels, multimask_output=True)
        chosen.append(candidates[iou.argmax()])
    return chosen
