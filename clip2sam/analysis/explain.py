"""Why a mask came out as it did: the whole chain for one label of one picture, as data and as a figure.

Also a map for every word of a caption, and the labels that are nearest to a place in the picture.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clip2sam.data.images import Image, load_image
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.errors import ConfigError, LabelError
from clip2sam.pipeline import ImageLike, LabelsLike, Segmenter
from clip2sam.result import Result, why_absent
from clip2sam.similarity import TEMPERATURE, similarity_maps
from clip2sam.types import SimilarityMaps


@dataclass(frozen=True)
class Candidate:
    """One of the masks that SAM offers for a label's points."""

    mask: Bool[np.ndarray, "height width"]
    predicted_iou: float
    """What SAM thinks of it: its guess at the IoU with the truth, as its head gives it."""
    agreement: float
    """How well it covers the label's map, 0 to 1."""
    kept: bool
    """Whether the settings prefer it to the others. It becomes a mask if the label is present."""


@dataclass(frozen=True)
class Explanation:
    """The chain from a label to its mask. Arrays are numpy's, on the host; maps cover the whole picture."""

    image: Image
    label: str
    label_set: LabelSet
    """All classes that were asked, distractors last: they shape each other's maps."""
    before: Float[np.ndarray, "rows cols"]
    """Similarity of each place with the label, times the label's weight: before feature surgery."""
    redundant: Float[np.ndarray, "rows cols"]
    """What feature surgery takes out: the mean of `before` over all classes (or, for a label that stands alone,
    the similarity with the empty string)."""
    raw: Float[np.ndarray, "rows cols"]
    """`before` minus `redundant`: the raw scores."""
    weight: float
    """How much the picture as a whole speaks for the label: 1 on the classes' average."""
    presence: Float[np.ndarray, "labels"]
    """The highest raw score of every class, in the order of `label_set`."""
    threshold: float | None
    """What the label's presence must reach; None: nothing is asked of it."""
    reason: str
    """Why the label has no mask; empty if it has one."""
    grid: Float[np.ndarray, "grid_rows grid_cols"]
    """The raw map pooled and scaled to 0..1; NaN if the map has no range."""
    points: Float[np.ndarray, "points 3"]
    """x, y in continuous pixels, and 1 (positive) or 0 (negative). An absent label has those that it would get."""
    candidates: tuple[Candidate, ...]
    """What SAM makes of the points, also for an absent label; none where there are no points."""

    def __repr__(self) -> str:
        presence = self.presence[self.index]
        return f"Explanation({self.image!r}, {self.label!r}, presence {presence:.3f}, {self.reason or 'a mask'})"

    @property
    def index(self) -> int:
        """The label's place in `label_set`."""
        return self.label_set.names.index(self.label)

    @property
    def kept(self) -> int | None:
        """The place of the candidate that became the mask; None if the label has no mask."""
        return None if self.reason else next(i for i, c in enumerate(self.candidates) if c.kept)

    def show(self) -> Any:
        """The chain as a matplotlib Figure, which shows itself in a notebook."""
        from clip2sam.visualize.explanation import explanation_figure

        return explanation_figure(self)

    def _repr_png_(self) -> bytes:
        """How a notebook shows it: `show()` as PNG."""
        return self.show()._repr_png_()


@torch.no_grad()
def explain(
    segmenter: Segmenter,
    image: ImageLike,
    labels: LabelsLike,
    label: str,
    *,
    distractors: Sequence[str] = (),
) -> Explanation:
    """Follow one label of one picture through all the stages, with the segmenter's settings.

    Args:
        image, labels, distractors: as for the segmenter. Ask the same labels: each one changes the others' maps.
        label: the one to explain, as typed. An absent one is followed to the end as well.

    Raises:
        LabelError: the label is not one of the labels, or is a distractor, which is never prompted.
        ImageError: the picture can't be read.
    """
    picture, label_set = load_image(image), as_label_set(labels, distractors=distractors)
    if label not in [c.name for c in label_set.wanted]:
        raise LabelError(
            f"expected one of the labels asked, {_listed(label_set)}, got {label!r}; add it or take another"
        )
    index, config = label_set.names.index(label), segmenter.config
    tokens = segmenter.clip.encode_image(segmenter.clip.preprocess([picture]), config.method)
    maps = segmenter._maps(tokens, label_set)
    before, redundant, weights = _surgery_terms(segmenter, tokens[0], label_set)
    present, grids, _ = segmenter._prompts(picture, label_set, maps)
    prompts = segmenter.with_config(presence=None)._prompts(picture, _only(label_set, index), maps)[
        2
    ]
    logits, iou = segmenter._decode(picture, prompts)
    agrees, best = segmenter._choose(picture, maps, prompts, (logits, iou))
    masks = [
        m
        for chunk in segmenter.sam.upscale(logits.flatten(0, 1), picture.size)
        for m in chunk.cpu().numpy()
    ]
    chosen = int(best[0]) if len(best) else -1
    candidates = tuple(
        Candidate(mask, float(iou[0, i]), float(agrees[0, i]), i == chosen)
        for i, mask in enumerate(masks)
    )
    found = bool(present[index]) and chosen >= 0 and bool(masks[chosen].any())
    points = (
        torch.cat([prompts.coords, prompts.point_labels[..., None].float()], dim=-1)
        .flatten(0, 1)
        .cpu()
        .numpy()
    )
    own = label_set.classes[index].threshold
    return Explanation(
        picture,
        label,
        label_set,
        before=_as_map(before, index),
        redundant=_as_map(redundant.expand_as(before), index),
        raw=maps.raw[index].cpu().numpy(),
        weight=float(weights[index]),
        presence=maps.presence.cpu().numpy(),
        threshold=config.presence if own is None else own,
        reason="" if found else why_absent(index, label_set, config, maps, present),
        grid=grids[index].cpu().numpy(),
        points=points[points[:, 2] >= 0],
        candidates=candidates,
    )


def _surgery_terms(
    segmenter: Segmenter, tokens: Float[Tensor, "tokens channels"], labels: LabelSet
) -> tuple[Float[Tensor, "tokens texts"], Float[Tensor, "tokens 1"], Float[Tensor, "texts"]]:
    """The two terms whose difference is `feature_surgery`, and the weights; see `clip2sam.similarity`."""
    text = segmenter._texts(labels)
    scores = tokens @ text.T
    if len(text) == 1:
        return scores, tokens @ segmenter.clip.encode_empty(labels.templates).T, torch.ones(1)
    weights = (TEMPERATURE * scores[0]).softmax(dim=-1) * len(text)
    return scores * weights, (scores * weights).mean(dim=-1, keepdim=True), weights


def _as_map(scores: Float[Tensor, "tokens labels"], index: int) -> Float[np.ndarray, "rows cols"]:
    return similarity_maps(scores).raw[index].cpu().numpy()


def _only(labels: LabelSet, index: int) -> LabelSet:
    """The same classes where nothing decides on presence and only one is wanted."""
    return replace(
        labels,
        classes=tuple(
            replace(c, threshold=None, distractor=i != index) for i, c in enumerate(labels.classes)
        ),
    )


def _listed(labels: LabelSet) -> str:
    names = [repr(c.name) for c in labels.wanted]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# -- captions and places


@dataclass(frozen=True)
class CaptionMaps:
    """A map for each word of a caption."""

    image: Image
    words: tuple[str, ...]
    maps: Float[np.ndarray, "words rows cols"]
    """Raw scores, comparable between the words."""
    presence: Float[np.ndarray, "words"]
    """Each word's highest score: which words the picture speaks of."""

    def __repr__(self) -> str:
        words = ", ".join(
            f"{word!r} {score:.3f}" for word, score in zip(self.words, self.presence, strict=True)
        )
        return f"CaptionMaps({self.image!r}, {words})"

    def show(self) -> Any:
        """The maps side by side on one scale, as a matplotlib Figure, which shows itself in a notebook."""
        from clip2sam.visualize.explanation import maps_figure

        titles = [
            f"{word}  {score:.3f}" for word, score in zip(self.words, self.presence, strict=True)
        ]
        return maps_figure(self.image.pixels, self.maps, titles)

    def _repr_png_(self) -> bytes:
        """How a notebook shows them: `show()` as PNG."""
        return self.show()._repr_png_()


@torch.no_grad()
def explain_caption(segmenter: Segmenter, image: ImageLike, caption: str) -> CaptionMaps:
    """Say which words of a caption are where in the picture.

    Each different word competes with the others as a label of its own, so that what all words share is taken out of
    every map: words that name nothing ("a", "of") stay low. It is the multimodal view of Li et al., 2023
    (https://arxiv.org/abs/2304.05653), with a word on its own in the place of its token in the sentence.

    Raises:
        LabelError: the caption has no word.
        ImageError: the picture can't be read.
    """
    words = tuple(
        dict.fromkeys(w for word in caption.split() if (w := word.strip(string.punctuation)))
    )
    if not words:
        raise LabelError(
            f"expected a caption with at least one word, got {caption!r}; write what is in the picture"
        )
    picture = load_image(image)
    maps: SimilarityMaps = segmenter.similarity(picture, as_label_set(words))
    return CaptionMaps(picture, words, maps.raw.cpu().numpy(), maps.presence.cpu().numpy())


def labels_at(result: Result, x: float | int, y: float | int) -> list[tuple[str, float]]:
    """The labels nearest to a place in the picture: names with their raw scores there, the highest first.

    Args:
        x, y: in continuous pixels of the picture.

    Raises:
        ConfigError: the place lies outside of the picture.
    """
    height, width = result.image.size
    if not (0 <= x <= width and 0 <= y <= height):
        raise ConfigError(
            f"expected x from 0 to {width} and y from 0 to {height}, got ({x:g}, {y:g})"
        )
    rows, cols = result.maps.shape[1:]
    scores = result.maps[
        :, min(int(y / height * rows), rows - 1), min(int(x / width * cols), cols - 1)
    ]
    return [(result.class_names[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]
