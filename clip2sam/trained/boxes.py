"""From a detector's queries to objects of labels: boxes in pixels of the image, clipped to it, the
best of each label, without duplicates."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import nms

from clip2sam.data.images import Image
from clip2sam.locate import Located, box_maps, proposals_of
from clip2sam.result import check_finite
from clip2sam.types import Candidates, Sizes

Objects = tuple[Float[Tensor, "_ 4"], Float[Tensor, "_"], Int[Tensor, "_"]]
"""Boxes, scores and classes of one image."""


def corners(
    centred: Float[Tensor, "queries 4"], width: int, height: int, size: tuple[int, int]
) -> Float[Tensor, "queries 4"]:
    """x0, y0, x1, y1 in continuous pixels of an image of (height, width) `size`, clipped to it.

    Args:
        centred: centre x, centre y, width, height, as parts of `width` and `height`.
        width, height: in pixels of the image: what the model's 1 stands for.
    """
    x, y, wide, high = centred.unbind(dim=-1)
    sides = torch.stack([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], dim=-1)
    return clipped(sides * sides.new_tensor([width, height, width, height]), size)


def clipped(boxes: Float[Tensor, "queries 4"], size: tuple[int, int]) -> Float[Tensor, "queries 4"]:
    """Boxes without what lies outside of an image of (height, width) `size`."""
    height, width = size
    most = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), most)


def best_objects(
    boxes: Float[Tensor, "queries 4"],
    score: Float[Tensor, "queries"],
    most: int,
    same: float | None,
) -> Int[Tensor, "kept"]:
    """Which queries are objects of one label, the best first: those with an area in the image, at
    most so many.

    Args:
        same: of boxes whose IoU is above it the best is kept; None: they all are.
    """
    there = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & (score > 0)
    rows = there.nonzero()[:, 0]
    rows = rows[score[rows].argsort(descending=True, stable=True)]
    if same is not None:
        rows = rows[: 8 * most]  # what comes after has no chance
        rows = rows[nms(boxes[rows], score[rows], same)]
    return rows[:most]


def check_scores(name: str, image: Image, *values: Tensor) -> None:
    """Refuse an image on which the model failed.

    Raises:
        ModelError: a value is not finite.
    """
    check_finite(image, f"{name}'s scores and boxes", *(v.cpu().numpy() for v in values))


def located(
    found: Sequence[Objects], sizes: Sizes, labels: int, cut: Candidates | None = None
) -> Located:
    """What was found in each image, for so many labels.

    Args:
        cut: the masks of all objects, if they come with masks.
    """
    maps = [  # image by image, for memory
        box_maps(proposals_of([one], (size,)), labels)
        for one, size in zip(found, sizes, strict=True)
    ]
    return Located(torch.cat(maps), replace(proposals_of(found, sizes), candidates=cut))
