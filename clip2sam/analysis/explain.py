"""Why a mask came out as it did: one label of one image followed through all the stages.

Also a map for each word of a caption, and the labels nearest to a place in the image.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from clip2sam.analysis.objects import Candidate, ExplainedObject, follow_objects
from clip2sam.data.captions import words_of
from clip2sam.data.images import Image, load_image
from clip2sam.data.labels import LabelClass, LabelSet, as_label_set
from clip2sam.data.presence import presence_of_classes
from clip2sam.errors import ConfigError, LabelError, UnknownLabelWarning
from clip2sam.pipeline import Features, ImageLike, LabelsLike, Segmenter
from clip2sam.points import pool_grid
from clip2sam.result import Result, check_finite, why_absent
from clip2sam.similarity import score_maps
from clip2sam.types import SimilarityMaps


@dataclass(frozen=True)
class Explanation:
    """What each stage computed for one label. Arrays are numpy's, on the host; maps cover the whole
    image. Of a joined label the objects are those of its parts that are present (of all, if none
    is), `raw` and `grid` are of the highest of their maps, and `before`, `redundant` and `weight`
    those of the strongest part."""

    image: Image
    label: str
    label_set: LabelSet
    """All classes requested, distractors last: they influence each other's maps."""
    before: Float[np.ndarray, "rows cols"]
    """Similarity with the label, times the label's weight: before feature surgery."""
    redundant: Float[np.ndarray, "rows cols"]
    """The part that feature surgery takes out: the mean of `before` over all classes and background
    prompts, or the similarity with the empty string for a label that stands alone."""
    raw: Float[np.ndarray, "rows cols"]
    """`before` minus `redundant`: the raw scores."""
    weight: float
    """How much the image as a whole speaks for the label; 1 on average over the classes."""
    presence: Float[np.ndarray, "labels"]
    """The highest raw score of every class, in the order of `label_set`."""
    presence_threshold: float | None
    """What the label's presence score must reach; None: nothing."""
    reason: str
    """Why the label has no mask; empty if it has one."""
    grid: Float[np.ndarray, "grid_rows grid_cols"]
    """The raw map pooled and scaled to 0..1; NaN if the map has no range."""
    prompts: str
    """What a prompt is for, `Config.prompts`: "object" or "label"."""
    objects: tuple[ExplainedObject, ...]
    """Those that are shown, the best score first, then those that are left out. For an absent label
    those that it would get; none where there is no point."""
    chosen: int
    """The index of the object whose candidates are explained."""
    candidates: tuple[Candidate, ...]
    """SAM's candidates for the chosen object; none where there is no object."""

    def __repr__(self) -> str:
        presence = self.presence[self.index]
        return (
            f"Explanation({self.image!r}, {self.label!r}, presence {presence:.3f}, "
            f"{self.reason or f'masks: {self.shown}'})"
        )

    @property
    def index(self) -> int:
        """The label's index in `label_set`."""
        return self.label_set.names.index(self.label)

    @property
    def points(self) -> Float[np.ndarray, "points 3"]:
        """The points of all objects, each once: x, y in continuous pixels, and 1 (positive) or 0
        (negative)."""
        rows = dict.fromkeys(tuple(row) for o in self.objects for row in o.points.tolist())
        return np.array(list(rows), np.float32).reshape(-1, 3)

    @property
    def shown(self) -> int:
        """How many of the objects became masks."""
        return 0 if self.reason else sum(not o.left_out for o in self.objects)

    @property
    def kept(self) -> int | None:
        """The index of the candidate that became the chosen object's mask; None if it has none."""
        if self.reason or self.objects[self.chosen].left_out:
            return None
        return next(i for i, c in enumerate(self.candidates) if c.kept)

    def show(self) -> Any:
        """All stages as a matplotlib Figure, which shows itself in a notebook."""
        from clip2sam.visualize.explanation import explanation_figure  # matplotlib is slow to load

        return explanation_figure(self)

    def _repr_jpeg_(self) -> bytes:
        """How a notebook shows it: `show()` as JPEG."""
        return self.show()._repr_jpeg_()


def explain(
    segmenter: Segmenter,
    image: ImageLike,
    labels: LabelsLike,
    label: str,
    *,
    distractors: Sequence[str] = (),
    object: int = 0,
) -> Explanation:
    """Follow one label of one image through all the stages, with the segmenter's settings, but for
    tiles: it is the whole image that is looked at.

    Args:
        image, labels, distractors: as for the segmenter. Give the same labels: each of them
            influences the others' maps.
        label: the one to explain, as typed. An absent label is followed to the end as well.
        object: the index of the object whose candidates are explained: 0 for the best.

    Raises:
        ConfigError: there are not so many objects.
        LabelError: the label is not one of the labels, or is a distractor, which is never prompted.
        ImageError: the image can't be read.
        ModelError: a model's values are not finite.
    """
    label_set = as_label_set(labels, distractors=distractors)
    _check_wanted(label, label_set)
    segmenter = _without_tiles(segmenter)
    features = segmenter.encode([load_image(image)])
    return explain_features(segmenter, features, label_set, label, object=object)


def explain_features(
    segmenter: Segmenter, features: Features, label_set: LabelSet, label: str, *, object: int = 0
) -> Explanation:
    """`explain` for an image that is encoded already.

    Args:
        features: of one image, without tiles.

    Raises:
        ConfigError, LabelError, ModelError: as `explain`.
    """
    _check_wanted(label, label_set)
    index = label_set.names.index(label)
    maps = _checked_maps(segmenter, features, label_set)
    parts = list(label_set.groups[index])
    there = [part for part in parts if maps.present[0, part]]
    only = _only(maps, there or parts)
    objects, candidates = follow_objects(segmenter, features, only, label, object)
    present = bool(there)
    found = present and any(not o.left_out for o in objects)
    together = maps.raw[:, parts].amax(dim=1, keepdim=True)
    raw = together[0, 0].cpu().numpy()
    presence, _ = presence_of_classes(
        maps.presence[0].cpu().numpy(), maps.beaten[0].cpu().numpy(), label_set.groups
    )
    threshold = label_set.thresholds(segmenter.config.presence_threshold)[index]
    strongest = parts[int(maps.presence[0, parts].argmax())]
    before, redundant, weight = _terms(segmenter, features, maps, strongest)
    return Explanation(
        features.whole[0],
        label,
        label_set,
        before,
        redundant,
        raw,
        weight,
        presence=presence,
        presence_threshold=threshold,
        reason="" if found else why_absent(raw, threshold, present),
        grid=pool_grid(together, segmenter.config.grid)[0, 0].cpu().numpy(),
        prompts=segmenter.config.prompts,
        objects=objects,
        chosen=object,
        candidates=candidates,
    )


def _check_wanted(label: str, label_set: LabelSet) -> None:
    if label not in [c.name for c in label_set.wanted]:
        raise LabelError(
            f"expected one of the labels requested, {_listed(label_set)}, got {label!r}; "
            "add it or choose another"
        )


def _checked_maps(segmenter: Segmenter, features: Features, labels: LabelSet) -> SimilarityMaps:
    """The maps of one image; a ModelError if a value is not finite."""
    maps = segmenter.locate(features, labels)
    check_finite(features.images[0], "CLIP's similarity maps", maps.raw[0].cpu().numpy())
    return maps


def _without_tiles(segmenter: Segmenter) -> Segmenter:
    return segmenter if segmenter.config.tile == "off" else segmenter.with_config(tile="off")


def _only(maps: SimilarityMaps, parts: Sequence[int]) -> SimilarityMaps:
    """The maps with these parts of a label present and nothing else, whatever their scores."""
    present = torch.zeros_like(maps.present)
    present[:, list(parts)] = True
    return replace(maps, present=present)


def _terms(
    segmenter: Segmenter, features: Features, maps: SimilarityMaps, index: int
) -> tuple[Float[np.ndarray, "rows cols"], Float[np.ndarray, "rows cols"], float]:
    """The two terms of feature surgery for a label, as maps, and the label's weight."""
    terms = segmenter.surgery_terms(features, maps.labels)
    rows, cols = maps.raw.shape[-2:]
    before = score_maps(terms.similarity, rows, cols)[0, index]
    redundant = score_maps(terms.redundant, rows, cols)[0, 0]
    return before.cpu().numpy(), redundant.cpu().numpy(), float(terms.weights[0, index])


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
    """Each word's highest raw score: high for words that name something in the image."""

    def __repr__(self) -> str:
        pairs = zip(self.words, self.presence, strict=True)
        words = ", ".join(f"{word!r} {score:.3f}" for word, score in pairs)
        return f"CaptionMaps({self.image!r}, {words})"

    def show(self) -> Any:
        """The maps side by side on one scale, as a matplotlib Figure, which shows itself in a
        notebook."""
        from clip2sam.visualize.explanation import maps_figure  # matplotlib is slow to load

        pairs = zip(self.words, self.presence, strict=True)
        titles = [f"{word}  {score:.3f}" for word, score in pairs]
        return maps_figure(self.image.pixels, self.maps, titles)

    def _repr_jpeg_(self) -> bytes:
        """How a notebook shows them: `show()` as JPEG."""
        return self.show()._repr_jpeg_()


def explain_caption(segmenter: Segmenter, image: ImageLike, caption: str) -> CaptionMaps:
    """Where in the image the words of a caption are.

    Each different word is a label of its own and competes with the others, so that what all words
    share is taken out of every map, and words that name nothing ("a", "of") stay low. This is the
    multimodal view of Li et al., 2023 (https://arxiv.org/abs/2304.05653), with single words in
    place of the tokens of the sentence. `clip2sam.labels_of_caption` makes labels of the phrases
    that the same words form.

    Raises:
        LabelError: the caption has no word.
        ImageError: the image can't be read.
        ModelError: CLIP's values are not finite.
    """
    words = tuple(dict.fromkeys(word.text for word in words_of(caption)))
    if not words:
        raise LabelError(
            f"expected a caption with at least one word, got {caption!r}; "
            "write what is in the image"
        )
    loaded, segmenter = load_image(image), _without_tiles(segmenter)
    labels = LabelSet(tuple(LabelClass(word, (word,)) for word in words))
    with (
        warnings.catch_warnings()
    ):  # most words of a sentence name nothing, whatever the models know
        warnings.simplefilter("ignore", UnknownLabelWarning)
        maps = _checked_maps(segmenter, segmenter.encode([loaded]), labels)
    return CaptionMaps(loaded, words, maps.raw[0].cpu().numpy(), maps.presence[0].cpu().numpy())


def labels_at(result: Result, x: float | int, y: float | int) -> list[tuple[str, float]]:
    """The labels at a place in the image: names with their raw scores there, the highest first.

    Args:
        x, y: in continuous pixels of the image.

    Raises:
        ConfigError: the place lies outside of the image.
    """
    height, width = result.image.size
    if not (0 <= x <= width and 0 <= y <= height):
        raise ConfigError(
            f"expected x from 0 to {width} and y from 0 to {height}, got ({x:g}, {y:g})"
        )
    rows, cols = result.maps.shape[1:]
    row, col = min(int(y / height * rows), rows - 1), min(int(x / width * cols), cols - 1)
    scores = result.maps[:, row, col]
    return [(result.class_names[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]
