"""Masks to RLE where they are: on a GPU only the places where a mask changes come to the host, not its pixels.

Source of the format: common/maskApi.c of https://github.com/cocodataset/cocoapi
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from pycocotools import mask as mask_utils
from torch import Tensor

from clip2sam.coco.document import encode_mask


def encode_masks(masks: Bool[Tensor, "masks height width"]) -> list[dict[str, Any]]:
    """Each mask as `clip2sam.coco.document.encode_mask` encodes it."""
    if masks.device.type == "cpu":
        return [encode_mask(mask) for mask in masks.numpy()]
    return encode_changes(masks)


def encode_changes(masks: Bool[Tensor, "masks height width"]) -> list[dict[str, Any]]:
    """The same by way of the places, down the columns, where a pixel is another than the one before it."""
    count, height, width = masks.shape
    columns = masks.transpose(1, 2).flatten(1)
    before = torch.cat(
        [torch.zeros_like(columns[:, :1]), columns[:, :-1]], dim=1
    )  # runs begin outside of the mask
    which, place = (columns != before).nonzero().cpu().numpy().T
    ends = np.searchsorted(which, np.arange(count + 1))
    return [_compressed(place[a:b], height, width) for a, b in pairwise(ends)]


def _compressed(changes: Int[np.ndarray, "changes"], height: int, width: int) -> dict[str, Any]:
    lengths = np.diff(changes, prepend=0, append=height * width)
    rle = mask_utils.frPyObjects(
        {"size": [height, width], "counts": lengths.tolist()}, height, width
    )
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
