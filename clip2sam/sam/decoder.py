"""SAM's prompt encoder and mask decoder over segment-anything's own modules, many prompts at once.

Prompts have different numbers of points. segment-anything can't batch those: its padding token is attended to, so
adding it changes the masks. Here the padding is left out of every attention instead, which makes a padded prompt
the same as the prompt alone. The image's embedding is broadcast over the prompts, never repeated, until the first
layer has made it depend on them; and no step asks the host anything.

Source: Kirillov et al., 2023, https://arxiv.org/abs/2304.02643, appendix A;
https://github.com/facebookresearch/segment-anything, `modeling/mask_decoder.py` and `modeling/transformer.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def embed_points(
    prompt_encoder: Any, coords: Float[Tensor, "prompts points 2"], labels: Int[Tensor, "prompts points"]
) -> Float[Tensor, "prompts points_and_end channels"]:
    """Embed points, and the closing "not a point" token that SAM adds when no box is given.

    Args:
        prompt_encoder: segment-anything's `PromptEncoder`.
        coords: (x, y) as pixel indices in SAM's input frame; half a pixel is added here, as in SAM.
        labels: 1 positive, 0 negative; what padded slots become doesn't matter.
    """
    positions = prompt_encoder.pe_layer.forward_with_coords(coords + 0.5, prompt_encoder.input_image_size)
    negative, positive = (prompt_encoder.point_embeddings[i].weight for i in (0, 1))
    points = positions + torch.where((labels == 1)[..., None], positive, negative)
    end = prompt_encoder.not_a_point_embed.weight.expand(len(points), 1, -1)
    return torch.cat([points, end], dim=1)


def decode(
    decoder: Any,
    image: Float[Tensor, "channels rows cols"],
    image_positions: Float[Tensor, "channels rows cols"],
    no_mask: Float[Tensor, "channels"],
    sparse: Float[Tensor, "prompts tokens channels"],
    attended: Bool[Tensor, "prompts tokens"],
) -> tuple[Float[Tensor, "prompts candidates low low"], Float[Tensor, "prompts candidates"]]:
    """Decode prompts on one image into the three candidate masks.

    Args:
        decoder: segment-anything's `MaskDecoder`.
        image: the image encoder's output.
        image_positions: the prompt encoder's `get_dense_pe`.
        no_mask: the embedding that stands for "no mask given".
        sparse: embedded points; `attended` is False at padding.

    Returns:
        Logits at 4 times the embedding's resolution, and the predicted IoU of each candidate.
    """
    channels, rows, cols = image.shape
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(len(sparse), -1, -1)
    tokens = torch.cat([outputs, sparse], dim=1)
    keep = F.pad(attended, (outputs.shape[1], 0), value=True)[:, None, None]
    keys = (image + no_mask[:, None, None]).flatten(1).T[None]
    tokens, keys = _two_way(decoder.transformer, keys, image_positions.flatten(1).T[None], tokens, keep)
    upscaled = decoder.output_upscaling(keys.transpose(1, 2).reshape(-1, channels, rows, cols))
    many = range(1, decoder.num_mask_tokens)  # token 0 is the single-mask output
    hyper = torch.stack([decoder.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in many], dim=1)
    logits = (hyper @ upscaled.flatten(2)).unflatten(-1, upscaled.shape[-2:])
    return logits, decoder.iou_prediction_head(tokens[:, 0])[:, 1:]


def _two_way(transformer: Any, keys: Tensor, key_pe: Tensor, query_pe: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The two-way transformer: tokens (prompts, tokens, C) and image (1 or prompts, positions, C) attend in turn.

    `keep` (prompts, 1, 1, tokens) says which tokens may be attended to.
    """
    queries = query_pe
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = _attend(layer.self_attn, queries, queries, queries, keep)
        else:
            q = queries + query_pe
            queries = queries + _attend(layer.self_attn, q, q, queries, keep)
        queries = layer.norm1(queries)
        to_image = _attend(layer.cross_attn_token_to_image, queries + query_pe, keys + key_pe, keys)
        queries = layer.norm2(queries + to_image)
        queries = layer.norm3(queries + layer.mlp(queries))
        to_tokens = _attend(layer.cross_attn_image_to_token, keys + key_pe, queries + query_pe, queries, keep)
        keys = layer.norm4(keys + to_tokens)
    last = _attend(transformer.final_attn_token_to_image, queries + query_pe, keys + key_pe, keys)
    return transformer.norm_final_attn(queries + last), keys


def _attend(attention: Any, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
    """segment-anything's attention layer with a mask; a batch of 1 on either side is broadcast."""
    heads = [
        projection(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projection, x in ((attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v))
    ]
    batch = max(len(q), len(k))
    q, k, v = (x.expand(batch, -1, -1, -1) for x in heads)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    return attention.out_proj(out.transpose(1, 2).flatten(2))
