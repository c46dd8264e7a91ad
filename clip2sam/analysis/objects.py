"""The objects of one label, each with its mask and why that is shown or left out."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from clip2sam.analysis.agreement import best_agreement
from clip2sam.errors import ConfigError
from clip2sam.pipeline import Features, Segmenter
from clip2sam.result import check_finite, finite_if_all_are, prompt_points
from clip2sam.scoring import same_object, shares_of_best, stability
from clip2sam.types import Candidates, Masks, Prompts, SimilarityMaps


@dataclass(frozen=True)
class Candidate:
    """One of SAM's candidate masks for a prompt."""

    mask: Bool[np.ndarray, "height width"]
    predicted_iou: float
    """SAM's own estimate of its IoU with the truth, not clamped."""
    agreement: float
    """How well it agrees with the label's map, 0 to 1, see `Segmenter.agreement`."""
    of_best: float
    """Its agreement as a share of the best one that a mask of this prompt can be expected to reach,
    0 to 1: the highest of the candidates and of the masks that the map itself makes, see
    `best_agreement`. A true mask of an object may have an agreement of 0.2 with a coarse map; its
    share is near 1."""
    kept: bool
    """Whether the settings prefer it to the others. It becomes a mask if the label is present and
    the object is not left out."""


@dataclass(frozen=True)
class ExplainedObject:
    """One prompt of the label and the mask chosen for it: one object, or with one prompt a label
    all of it."""

    points: Float[np.ndarray, "points 3"]
    """Its prompt: x, y in continuous pixels, and 1 (positive) or 0 (negative)."""
    height: float
    """Raw score at its peak on the label's map."""
    mask: Bool[np.ndarray, "height width"]
    predicted_iou: float
    """SAM's own estimate of the mask's IoU with the truth, not clamped."""
    stability: float
    """SAM's stability score of the mask, 0 to 1."""
    contrast: float
    """How much higher the label's map is inside the mask than around it, at least 0. 1 with one
    prompt a label, as `share`."""
    share: float
    """Mean raw score inside the mask as a share of the label's best one in the image, 0 to 1."""
    score: float
    """0 to 1."""
    left_out: str
    """Why it is no mask of the result; empty if it is one, or would be if the label were
    present."""


def follow_objects(
    segmenter: Segmenter, features: Features, maps: SimilarityMaps, label: str, chosen: int
) -> tuple[tuple[ExplainedObject, ...], tuple[Candidate, ...]]:
    """The objects of the only label that is present in the maps of one image: those that are shown,
    the best score first, then those that are left out. And the candidates of one of them.

    Args:
        label: its name, for errors.
        chosen: the index of the object whose candidates are wanted; 0 where there is no object.

    Raises:
        ConfigError: there are not so many objects.
        ModelError: a value of SAM is not finite.
    """
    prompts = segmenter.prompt(maps)
    count = len(prompts.coords)
    if not 0 <= chosen < max(count, 1):
        raise ConfigError(
            f"expected an object from 0 to {max(count, 1) - 1}, got {chosen}: "
            f"{label!r} has {count} here"
        )
    if not count:
        return (), ()
    offered = segmenter.decode(features, prompts)
    (image,) = features.images
    check_finite(image, "SAM's predicted IoUs", offered.predicted_iou.cpu().numpy())
    check_finite(image, "SAM's mask logits", finite_if_all_are(offered.logits.flatten(0, 1)))
    masks = segmenter.choose(maps, prompts, offered)
    objects, order = _objects(segmenter, maps, prompts, masks)
    return objects, _candidates(segmenter, maps, prompts, offered, masks, order[chosen])


def _objects(
    segmenter: Segmenter, maps: SimilarityMaps, prompts: Prompts, masks: Masks
) -> tuple[tuple[ExplainedObject, ...], list[int]]:
    """The objects in their order, and the prompt of each."""
    full = _upscaled(segmenter, masks.logits, masks.sizes[0])
    columns = (masks.kept, masks.inside, masks.contrast, masks.score)
    kept, inside, contrast, alone = (column.cpu().numpy() for column in columns)
    label_index = prompts.label_index.cpu().numpy()  # the same for all
    score = alone * shares_of_best(contrast, label_index, kept)
    share = shares_of_best(inside, label_index, kept)
    least = segmenter.config.min_share
    empty = np.array([not mask.any() for mask in full])
    order = sorted(  # shown, weak, duplicate, empty
        range(len(full)), key=lambda k: (empty[k], not kept[k], share[k] < least, -score[k])
    )
    same = same_object(segmenter.sam.inside(masks.logits, masks.sizes[0])).cpu().numpy()
    heights = _heights(segmenter, maps, prompts)
    points = prompt_points(prompts, torch.arange(len(full), device=masks.kept.device))
    stable = stability(masks.logits).tolist()

    def why_left_out(k: int) -> str:
        if empty[k]:
            return "its mask is empty"
        if not kept[k]:  # the best of those that show the same is the one that is kept for it
            rival = max(np.flatnonzero(same[k] & kept).tolist(), key=lambda j: alone[j])
            return f"shows the same as object {order.index(rival) + 1}"
        return f"its share is below {least:g}" if share[k] < least else ""

    objects = tuple(
        ExplainedObject(
            points=points[k],
            height=heights[k],
            mask=full[k],
            predicted_iou=float(masks.predicted_iou[k]),
            stability=stable[k],
            contrast=float(contrast[k]),
            share=float(share[k]),
            score=float(score[k]),
            left_out=why_left_out(k),
        )
        for k in order
    )
    return objects, order


def _heights(segmenter: Segmenter, maps: SimilarityMaps, prompts: Prompts) -> list[float]:
    """The raw score at the peak of each prompt's object; with one prompt a label its highest."""
    if prompts.scores is not None:
        return prompts.scores.tolist()
    if segmenter.config.prompts == "object":
        return segmenter.instances(maps).height.tolist()
    return maps.presence[0, prompts.label_index].tolist()


def _candidates(
    segmenter: Segmenter,
    maps: SimilarityMaps,
    prompts: Prompts,
    offered: Candidates,
    masks: Masks,
    k: int,
) -> tuple[Candidate, ...]:
    """The candidates of one prompt."""
    agrees = segmenter.agreement(maps, prompts, offered)[k].tolist()
    full = _upscaled(segmenter, offered.logits[k], masks.sizes[0])
    best = int(masks.candidate[k])
    most = max(best_agreement(segmenter, maps, prompts, k), *agrees)
    shares = [one / most if most > 0 else 1.0 for one in agrees]
    rows = zip(full, offered.predicted_iou[k].tolist(), agrees, shares, strict=True)
    return tuple(Candidate(*row, kept=i == best) for i, row in enumerate(rows))


def _upscaled(
    segmenter: Segmenter, logits: Float[torch.Tensor, "masks low low"], size: tuple[int, int]
) -> list[Bool[np.ndarray, "height width"]]:
    """Masks at the image's size."""
    chunks = segmenter.sam.upscale(logits, size)
    return [mask for chunk in chunks for mask in chunk.cpu().numpy()]
