"""Prompts as SAM's prompt encoder embeds them: points, boxes and mask inputs, many prompts at once.

Source: https://github.com/facebookresearch/segment-anything, `modeling/prompt_encoder.py`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clip2sam.points import PADDING


def positions_of(
    prompt_encoder: Any, coords: Float[Tensor, "prompts points 2"]
) -> Float[Tensor, "prompts points channels"]:
    """The positional encoding of places in the frame.

    As segment-anything's `PositionEmbeddingRandom.forward_with_coords`, with the product by its two
    rows written out: of a matrix product, the last digits depend on how many points there are, and
    a prompt's must not depend on what comes with it.

    Args:
        coords: (x, y) in continuous pixels of the frame.
    """
    height, width = prompt_encoder.input_image_size
    rows = prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    x, y = ((2 * (coords[..., i : i + 1] / side) - 1) for i, side in enumerate((width, height)))
    angles = 2 * math.pi * (x.to(rows.dtype) * rows[0] + y.to(rows.dtype) * rows[1])
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def embed_points(
    prompt_encoder: Any,
    coords: Float[Tensor, "prompts points 2"],
    labels: Int[Tensor, "prompts points"],
) -> Float[Tensor, "prompts points_and_end channels"]:
    """Embed points, and the closing "not a point" token that SAM adds when no box is given.

    Args:
        prompt_encoder: segment-anything's `PromptEncoder`.
        coords: (x, y) as pixel indices in SAM's input frame; half a pixel is added here, as in SAM.
        labels: 1 positive, 0 negative; the embedding of padding doesn't matter.
    """
    positions = positions_of(prompt_encoder, coords + 0.5)
    negative, positive = (prompt_encoder.point_embeddings[i].weight for i in (0, 1))
    # `where` in place of SAM's boolean indexing, which would make the host wait for a GPU.
    points = positions + torch.where((labels == 1)[..., None], positive, negative)
    end = prompt_encoder.not_a_point_embed.weight.expand(len(points), 1, -1)
    return torch.cat([points, end], dim=1)


def embed_sparse(
    prompt_encoder: Any,
    coords: Float[Tensor, "prompts points 2"],
    labels: Int[Tensor, "prompts points"],
    boxes: Float[Tensor, "prompts 4"] | None,
) -> tuple[Float[Tensor, "prompts tokens channels"], Bool[Tensor, "prompts tokens"]]:
    """Points and boxes as tokens, and which of them may be attended to (all but padding).

    Args:
        prompt_encoder: segment-anything's `PromptEncoder`.
        coords: (x, y) as pixel indices in SAM's input frame; half a pixel is added here, as in SAM.
        labels: 1 positive, 0 negative, -1 padding.
        boxes: x0, y0, x1, y1 in SAM's input frame; half a pixel is added here too.
    """
    points = embed_points(prompt_encoder, coords, labels)
    attended = F.pad(labels != PADDING, (0, 1), value=True)
    if boxes is None:
        return points, attended
    corners = positions_of(prompt_encoder, boxes.view(-1, 2, 2) + 0.5)
    corners = corners + torch.cat([prompt_encoder.point_embeddings[i].weight for i in (2, 3)])
    # With a box SAM leaves out the closing "not a point" token; the box's corners are two tokens.
    return (
        torch.cat([points[:, :-1], corners], dim=1),
        F.pad(attended[:, :-1], (0, 2), value=True),
    )


def embed_masks(
    prompt_encoder: Any, mask_inputs: Float[Tensor, "prompts low low"]
) -> Float[Tensor, "prompts channels rows cols"]:
    """Mask inputs as SAM adds them to the image embedding of their prompt.

    Args:
        mask_inputs: logits in SAM's padded square frame, at 4 times the embedding's resolution.
    """
    return prompt_encoder.mask_downscaling(mask_inputs[:, None])
