"""Joined labels ("dog+frisbee"): their parts are located, prompted and cut like labels of their
own; here they become one label.

Source: the published CLIP Surgery demo, "CLIP Surgery + SAM for combined targets"
(https://github.com/xmed-lab/CLIP_Surgery, demo.py), for one prompt a label: positive points from
the map of each part, negative ones from the mean of their maps, each scaled to 0..1 before. There
the parts are compared with an empty text; here with all other labels, as every label is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pycocotools import mask as mask_utils
from torch import Tensor

from clip2sam.points import PADDING
from clip2sam.similarity import min_max

Groups = Sequence[Sequence[int]]
"""The places of each class's parts among all parts, see `LabelSet.groups`."""


def mean_maps(
    raw: Float[Tensor, "images parts rows cols"], groups: Groups
) -> Float[Tensor, "images parts rows cols"]:
    """The maps, with those of the parts of a joined label replaced by their mean: each scaled to
    0..1 before, and the mean back to the range of them all. A map without a range counts as 0."""
    mixed = raw.clone()
    for rows in groups:
        if len(rows) > 1:
            own = raw[:, rows]
            low, high = (f(dim=(1, 2, 3), keepdim=True) for f in (own.amin, own.amax))
            mean = min_max(own).nan_to_num(nan=0.0).mean(dim=1, keepdim=True)
            mixed[:, rows] = low + (high - low) * mean
    return mixed


Points = tuple[Float[Tensor, "images parts points 2"], Int[Tensor, "images parts points"]]
"""As `clip2sam.points.select_points` gives them."""


def joined_points(
    positive: Points, negative: Points, present: Bool[Tensor, "images parts"], groups: Groups
) -> tuple[
    Float[Tensor, "images parts more 2"],
    Int[Tensor, "images parts more"],
    Bool[Tensor, "images parts"],
]:
    """The points of labels with one prompt each: those of a joined one are at its first part that
    is present, with the positive points of all its parts that are.

    Args:
        positive: without negative points.
        negative: without positive points.

    Returns:
        Points and their labels, and which parts are prompted.
    """
    coords, kinds = positive
    kinds = torch.where(present[..., None], kinds, PADDING)
    largest = max(len(rows) for rows in groups)
    every = kinds.new_full((*kinds.shape[:2], largest * kinds.shape[2]), PADDING)
    places = coords.new_zeros(*every.shape, 2)
    prompted = present.clone()
    for rows in groups:
        width = len(rows) * kinds.shape[2]
        every[:, rows, :width] = kinds[:, rows].flatten(1)[:, None]
        places[:, rows, :width] = coords[:, rows].flatten(1, 2)[:, None]
        prompted[:, rows] &= present[:, rows].cumsum(dim=1) == 1
    return torch.cat([places, negative[0]], 2), torch.cat([every, negative[1]], 2), prompted


def union(rles: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All pixels of some masks of one image, as compressed RLE."""
    merged = mask_utils.merge(list(rles))
    return {"size": list(merged["size"]), "counts": merged["counts"].decode("ascii")}


def mean_by_area(score: Float[np.ndarray, "masks"], rles: Sequence[dict[str, Any]]) -> float:
    """The mean score of masks: one with twice the pixels counts twice."""
    return float(np.average(score, weights=mask_utils.area(list(rles))))
