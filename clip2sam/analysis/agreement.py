"""The best agreement that a mask can be expected to reach with a map: what to read one against."""

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip2sam.candidates import agreement
from clip2sam.instances import fine_maps
from clip2sam.joins import mean_maps
from clip2sam.pipeline import Segmenter
from clip2sam.proposals import proposal_contrast
from clip2sam.scoring import contrast
from clip2sam.types import Prompts, SimilarityMaps

LEVELS = 48
"""Heights at which a map is cut."""


def best_agreement(segmenter: Segmenter, maps: SimilarityMaps, prompts: Prompts, k: int) -> float:
    """The highest `Segmenter.agreement` of the masks that the label's own map makes, for a prompt.

    These masks are the cells at or above a height, for many heights in the upper half of the map's
    range; with one prompt an object only those connected with its first point. The lower half is
    left out: all of the image would agree well with a map that is not much lower around the object.
    Maps are coarser than objects, and of a flat map no mask
    agrees much with it: the true mask of an object can have an agreement of 0.2, and be as good as
    this map allows. Of a proposal with a box it is that of a mask that fits the box.

    Args:
        k: the prompt's row.
    """
    if prompts.scores is not None:
        return float(proposal_contrast(prompts.scores[k, None], torch.ones(1, 1)).agreement)
    image, label = prompts.image_index[k], prompts.label_index[k]
    if segmenter.config.prompts == "label":
        raw = mean_maps(maps.raw, maps.labels.groups) if maps.labels.has_joined else maps.raw
        heat = raw[image, label, None].cpu()
        return float(agreement(_cut(heat[0]), heat).max())
    heat = fine_maps(maps.raw[image, label, None]).cpu()
    height, width = prompts.sizes[int(image)]
    x, y = prompts.coords[k, 0].tolist()
    rows, cols = heat.shape[-2:]
    cell = (min(int(y / height * rows), rows - 1), min(int(x / width * cols), cols - 1))
    return float(contrast(_connected(_cut(heat[0]), cell), heat).agreement.max())


def _cut(heat: Float[Tensor, "rows cols"]) -> Float[Tensor, "1 levels rows cols"]:
    """The cells at or above each height, from the middle of the range to the highest."""
    low, high = float(heat.min()), float(heat.max())
    heights = torch.linspace((low + high) / 2, high, LEVELS)
    return (heat >= heights[:, None, None])[None].float()


def _connected(
    masks: Float[Tensor, "1 levels rows cols"], cell: tuple[int, int]
) -> Float[Tensor, "1 levels rows cols"]:
    """The part of each mask that is connected with a cell (row, column); empty where it has not
    that cell."""
    parts = []
    for mask in masks[0].numpy().astype(np.uint8):
        _, number = cv2.connectedComponents(mask)
        parts.append((number == number[cell]) & (number[cell] > 0))
    return torch.from_numpy(np.stack(parts))[None].float()
