"""Masks to RLE where they are: from a GPU only the changes along the columns reach the host.

Source of the format: common/maskApi.c of https://github.com/cocodataset/cocoapi
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from pycocotools import mask as mask_utils
from torch import Tensor

from clip2sam.coco.rle import encode_mask


def encode_masks(masks: Bool[Tensor, "masks height width"]) -> list[dict[str, Any]]:
    """COCO's compressed RLE of each mask: `size` [height, width] and `counts` (str)."""
    if masks.device.type == "cpu":
        return [encode_mask(mask) for mask in masks.numpy()]  # on a CPU pycocotools is faster
    return encode_changes(masks)


def encode_changes(masks: Bool[Tensor, "masks height width"]) -> list[dict[str, Any]]:
    """The same, from the places where a pixel differs from the one before it.

    RLE counts pixels down the columns, beginning with those outside the mask. The places are found
    on the device, for all masks together; they are far fewer than the pixels.
    """
    count, height, width = masks.shape
    columns = masks.transpose(1, 2).flatten(1)
    outside = torch.zeros_like(columns[:, :1])  # the first run is outside, perhaps of length 0
    before = torch.cat([outside, columns[:, :-1]], dim=1)
    mask_index, place = (columns != before).nonzero().cpu().numpy().T
    ends = np.searchsorted(mask_index, np.arange(count + 1))
    return [_compress(place[a:b], height, width) for a, b in pairwise(ends)]


def _compress(changes: Int[np.ndarray, "changes"], height: int, width: int) -> dict[str, Any]:
    """The RLE of one mask of that size that changes at these places."""
    lengths = np.diff(changes, prepend=0, append=height * width)
    size = [height, width]
    rle = mask_utils.frPyObjects({"size": size, "counts": lengths.tolist()}, height, width)
    return {"size": size, "counts": rle["counts"].decode("ascii")}
