"""What is in an image as a whole, by CLIP itself: zero-shot classification, and recognition of
several labels at once. SAM takes no part. A joined label has the highest cosine and the highest
score of its parts, and the sum of their probabilities.

The CLS token is CLIP's own, whatever `Config.method` says: surgery's new path never reaches it.

Sources: Radford et al., 2021, https://arxiv.org/abs/2103.00020, section 3.1 (classification); Li et
al., 2023, https://arxiv.org/abs/2304.05653, multi-label recognition: feature surgery on the cosine
similarities of the original path's CLS token, as its authors say in issues 13, 16 and 20 of
https://github.com/xmed-lab/CLIP_Surgery. What is taken out of an image is the same for all of its
labels, so it hardly changes their order in the image, but it makes images comparable.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip2sam.clip.methods import RAW_CLIP
from clip2sam.clip.model import SurgeryCLIP
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.features import Features
from clip2sam.locate import ClipLocator
from clip2sam.pipeline import Segmenter
from clip2sam.result import check_finite


@dataclass(frozen=True)
class Recognition:
    """What CLIP's CLS token says of one image, on the host. The dimension `classes` is all classes
    requested, in the user's order, without distractors."""

    image: Image
    label_set: LabelSet
    cosines: Float[np.ndarray, "classes"]
    """Cosine similarity of the image with each class's text prompts, -1 to 1."""
    probabilities: Float[np.ndarray, "classes"]
    """Which one class it is: softmax over the classes, distractors included, of CLIP's own logit
    scale times the cosine. For a class that stands alone, the empty string is the other one."""
    scores: Float[np.ndarray, "classes"]
    """Which classes are there: feature surgery on the cosines, comparable between images. Config's
    background prompts take part."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """All labels requested, as typed, in the order given, without distractors."""
        return tuple(c.name for c in self.label_set.wanted)


@torch.no_grad()
def recognise(segmenter: Segmenter, features: Features, labels: LabelSet) -> list[Recognition]:
    """Recognise labels in each image as a whole, without windows.

    Args:
        segmenter: its CLIP, at `Config.resolution`, whatever finds labels in its images otherwise.
        features: of the images, by `segmenter.encode`.
        labels: checked labels.

    Raises:
        ConfigError: the segmenter has no CLIP.
        ModelError: CLIP's similarities with an image are not finite.
    """
    clip, config = segmenter.clip, replace(segmenter.config, method=RAW_CLIP, feature_surgery=True)
    if len(features.images) > len(features.whole):
        features = segmenter.with_config(tile="off").encode(features.whole)
    parts = labels.apart()
    terms = ClipLocator(clip).terms(features, parts, config)
    scores = (terms.similarity - terms.redundant)[:, 0]
    cls = features.tokens(RAW_CLIP, config.resolution).tokens[:, 0]
    cosines = cls @ clip.encode_labels(parts).T
    probabilities = _probabilities(clip, cls, cosines, parts)
    scores, cosines = (
        torch.stack([t[:, g].amax(dim=1) for g in labels.groups], dim=1) for t in (scores, cosines)
    )
    probabilities = torch.stack([probabilities[:, g].sum(dim=1) for g in labels.groups], dim=1)
    wanted = len(labels.wanted)
    found = []
    for i, image in enumerate(features.whole):
        own = [t[i, :wanted].cpu().numpy() for t in (cosines, probabilities, scores)]
        check_finite(image, "CLIP's similarities", *own)
        found.append(Recognition(image, labels, *own))
    return found


def _probabilities(
    clip: SurgeryCLIP,
    cls: Float[Tensor, "images channels"],
    cosines: Float[Tensor, "images labels"],
    labels: LabelSet,
) -> Float[Tensor, "images labels"]:
    rivals = cosines
    if cosines.shape[1] == 1:
        empty = clip.encode_empty(labels.templates)
        rivals = torch.cat([cosines, cls @ empty.T], dim=1)
    scale = clip.model.logit_scale.exp().float()
    return (scale * rivals).softmax(dim=-1)[:, : cosines.shape[1]]
