"""SAM's prompt encoder and mask decoder over segment-anything's own modules, many prompts at once.

Prompts have different numbers of points. segment-anything can't batch those: its padding token is attended to, so
adding it changes the masks. Here the padding is left out of every attention instead, which makes a padded prompt
the same as the prompt alone. What depends on the image alone is made once for all prompts, and its embedding is
broadcast, never repeated, until the first layer has made it depend on them; on a GPU no step asks the host anything.

Source: Kirillov et al., 2023, https://arxiv.org/abs/2304.02643, appendix A;
https://github.com/facebookresearch/segment-anything, `modeling/mask_decoder.py` and `modeling/transformer.py`.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clip2sam.kernels.device import on_host


def embed_points(
    prompt_encoder: Any,
    coords: Float[Tensor, "prompts points 2"],
    labels: Int[Tensor, "prompts points"],
) -> Float[Tensor, "prompts points_and_end channels"]:
    """Embed points, and the closing "not a point" token that SAM adds when no box is given.

    Args:
        prompt_encoder: segment-anything's `PromptEncoder`.
        coords: (x, y) as pixel indices in SAM's input frame; half a pixel is added here, as in SAM.
        labels: 1 positive, 0 negative; what padded slots become doesn't matter.
    """
    positions = prompt_encoder.pe_layer.forward_with_coords(
        coords + 0.5, prompt_encoder.input_image_size
    )
    negative, positive = (prompt_encoder.point_embeddings[i].weight for i in (0, 1))
    points = positions + torch.where((labels == 1)[..., None], positive, negative)
    end = prompt_encoder.not_a_point_embed.weight.expand(len(points), 1, -1)
    return torch.cat([points, end], dim=1)


class ImageSide(NamedTuple):
    """What depends on the images alone: made once, for all prompts."""

    keys: Float[Tensor, "images places channels"]
    size: tuple[int, int]
    weights: list[Tensor]
    """Of each layer, then of the final attention: the linear layers that the keys go through, below each other."""
    fixed: list[Tensor]
    """What the places' positions and the biases add to their products."""
    first: Float[Tensor, "images places three_inner"]
    """The first layer's products: its keys are still the image's own."""


def decode(
    decoder: Any,
    images: Float[Tensor, "images channels rows cols"],
    image_positions: Float[Tensor, "channels rows cols"],
    no_mask: Float[Tensor, "channels"],
    sparse: Float[Tensor, "prompts tokens channels"],
    attended: Bool[Tensor, "prompts tokens"],
    owner: Int[Tensor, "prompts"],
    at_once: int,
) -> tuple[Float[Tensor, "prompts candidates low low"], Float[Tensor, "prompts candidates"]]:
    """Decode prompts on images into the three candidate masks.

    Args:
        decoder: segment-anything's `MaskDecoder`.
        images: the image encoder's output.
        image_positions: the prompt encoder's `get_dense_pe`.
        no_mask: the embedding that stands for "no mask given".
        sparse: embedded points; `attended` is False at padding.
        owner: the image that each prompt is about.
        at_once: how many prompts go through together, always: the last ones are repeated to fill up, so that the same
            kernels run for a prompt whatever comes with it. It bounds the memory.

    Returns:
        Logits at 4 times the embedding's resolution, and the predicted IoU of each candidate.
    """
    count = len(sparse)
    filled = torch.arange(count + -count % at_once, device=sparse.device).clamp(max=count - 1)
    side = _image_side(decoder.transformer, images + no_mask[:, None, None], image_positions)
    chunks = [
        _decode_some(decoder, side, sparse[i], attended[i], owner[i]) for i in filled.split(at_once)
    ]
    logits, iou = zip(*chunks, strict=True)
    return torch.cat(logits)[:count], torch.cat(iou)[:count]


def _decode_some(
    decoder: Any, side: ImageSide, sparse: Tensor, attended: Tensor, owner: Tensor
) -> tuple[Tensor, Tensor]:
    if on_host(sparse):  # no more padding than the longest of these needs
        used = attended.any(dim=0)
        sparse, attended = sparse[:, used], attended[:, used]
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(
        len(sparse), -1, -1
    )
    tokens = torch.cat([outputs, sparse], dim=1)
    keep = F.pad(attended, (outputs.shape[1], 0), value=True)[:, None, None]
    if len(side.keys) > 1:  # one image is broadcast over the prompts
        side = side._replace(keys=side.keys[owner], first=side.first[owner])
    tokens, keys = _two_way(decoder.transformer, side, tokens, keep)
    many = range(1, decoder.num_mask_tokens)  # token 0 is the single-mask output
    hyper = torch.stack(
        [decoder.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in many], dim=1
    )
    iou = decoder.iou_prediction_head(tokens[:, 0])[:, 1:]
    return _mask_logits(decoder.output_upscaling, keys, side.size, hyper), iou


def _image_side(transformer: Any, images: Tensor, image_positions: Tensor) -> ImageSide:
    keys, places = (
        x.flatten(2).transpose(1, 2).contiguous() for x in (images, image_positions[None])
    )
    final = transformer.final_attn_token_to_image
    weights, fixed = [], []
    for attention, back in [
        *(
            (x.cross_attn_token_to_image, [x.cross_attn_image_to_token.q_proj])
            for x in transformer.layers
        ),
        (final, []),
    ]:
        linears = [attention.k_proj, attention.v_proj, *back]
        weights.append(torch.cat([linear.weight for linear in linears]))
        here = [
            torch.zeros_like(places) if linear is attention.v_proj else places for linear in linears
        ]
        fixed.append(
            torch.cat([linear(x) for linear, x in zip(linears, here, strict=True)], dim=-1)
        )
    size = (images.shape[2], images.shape[3])
    # One image at a time: the last digits must not depend on how many there are.
    first = torch.cat([F.linear(image[None], weights[0]) + fixed[0] for image in keys])
    return ImageSide(keys, size, weights, fixed, first)


def _two_way(
    transformer: Any, side: ImageSide, query_pe: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor]:
    """The two-way transformer: tokens (prompts, tokens, C) and image (prompts, places, C) attend in turn.

    `keep` (prompts, 1, 1, tokens) says which tokens may be attended to.
    """
    queries, keys = query_pe, side.keys
    for i, layer in enumerate(transformer.layers):
        k, v, q = (side.first if i == 0 else _products(side, i, keys)).chunk(3, dim=-1)
        if layer.skip_first_layer_pe:
            queries = _self_attend(layer.self_attn, queries, queries, keep)
        else:
            queries = queries + _self_attend(layer.self_attn, queries + query_pe, queries, keep)
        queries = layer.norm1(queries)
        to_image = layer.cross_attn_token_to_image
        queries = layer.norm2(
            queries + _attend(to_image, to_image.q_proj(queries + query_pe), k, v)
        )
        queries = layer.norm3(queries + layer.mlp(queries))
        back = layer.cross_attn_image_to_token
        to_tokens = _attend(back, q, back.k_proj(queries + query_pe), back.v_proj(queries), keep)
        keys = layer.norm4(to_tokens.add_(keys))
    final = transformer.final_attn_token_to_image
    k, v = _products(side, -1, keys).chunk(2, dim=-1)
    last = _attend(final, final.q_proj(queries + query_pe), k, v)
    return transformer.norm_final_attn(queries + last), keys


def _products(side: ImageSide, i: int, keys: Tensor) -> Tensor:
    """All that the i-th layer wants to know of the image in one product: (prompts, places, inner) beside each other."""
    return F.linear(keys, side.weights[i]).add_(side.fixed[i])


def _self_attend(attention: Any, positioned: Tensor, values: Tensor, keep: Tensor) -> Tensor:
    q, k, v = attention.q_proj(positioned), attention.k_proj(positioned), attention.v_proj(values)
    return _attend(attention, q, k, v, keep)


def _attend(attention: Any, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
    """segment-anything's attention behind its input projections, with a mask; a batch of 1 is broadcast."""
    batch = max(len(q), len(k))
    q, k, v = (
        x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2).expand(batch, -1, -1, -1)
        for x in (q, k, v)
    )
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    return attention.out_proj(out.transpose(1, 2).flatten(2))


def _mask_logits(
    upscaling: Any,
    keys: Float[Tensor, "prompts places channels"],
    size: tuple[int, int],
    hyper: Float[Tensor, "prompts candidates low_channels"],
) -> Float[Tensor, "prompts candidates low_rows low_cols"]:
    """Upscale the image 4 times and multiply it with each candidate's vector.

    A transposed convolution whose stride is its kernel's side is one linear layer per place. With the channels last
    the norm over them is one pass, and only the logits are ever put in the order of pixels.
    """
    first, norm, activation, second, _ = upscaling
    x = _spread(first, keys)  # (prompts, places, 2, 2, channels / 4)
    x = activation(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
    x = activation(_spread(second, x))  # (prompts, places, 2, 2, 2, 2, channels / 8)
    logits = x.flatten(1, -2) @ hyper.transpose(1, 2)
    logits = logits.unflatten(
        1, (*size, 2, 2, 2, 2)
    )  # row, col, half row, half col, quarter row, quarter col
    return logits.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5).flatten(2, 4)


def _spread(
    convolution: nn.ConvTranspose2d, x: Float[Tensor, "*places channels"]
) -> Float[Tensor, "*places 2 2 out"]:
    """A transposed convolution of kernel and stride 2, with the four results of each place beside each other."""
    weight, bias = convolution.weight, convolution.bias
    assert bias is not None
    return F.linear(x, weight.permute(2, 3, 1, 0).flatten(0, 2), bias.repeat(4)).unflatten(
        -1, (2, 2, -1)
    )
