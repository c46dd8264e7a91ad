"""SAM's prompt encoder and mask decoder on segment-anything's own modules, many prompts together.

Prompts have different numbers of points, which segment-anything can't batch: its padding token is
attended to, so adding it changes the masks. Here padding is masked out of every attention, so a
padded prompt gives the same masks as the prompt alone. What depends on the image alone is computed
once for all prompts. An image's embedding is broadcast, not repeated, until the first layer has
made it depend on the prompt. On a GPU no step waits for a value.

Source: Kirillov et al., 2023, https://arxiv.org/abs/2304.02643, appendix A;
https://github.com/facebookresearch/segment-anything, `modeling/mask_decoder.py` and
`modeling/transformer.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clip2sam.kernels.device import on_host


class ImageTerms(NamedTuple):
    """What depends on the images alone: computed once, for all prompts and chunks.

    The image is a sequence of `places`, one for each place of the embedding. In each layer three
    linear layers take it (keys and values of token-to-image attention, queries of image-to-token
    attention). Their weights are concatenated, so that one product serves all three. Two of them
    add the positional encoding to their input; by linearity its part is a constant summand.
    """

    keys: Float[Tensor, "images places channels"]
    """The embedding, before the first layer."""
    size: tuple[int, int]
    """Rows and columns of places."""
    weights: list[Float[Tensor, "_ channels"]]
    """Concatenated weights of each layer, then those of the final attention (keys and values)."""
    constants: list[Float[Tensor, "1 places _"]]
    """What the positional encoding and the biases add to those products."""
    first: Float[Tensor, "images places three_inner"]
    """The first layer's products, which don't depend on the prompt yet."""


Finish = Callable[[Tensor, Tensor, tuple[int, int], Tensor], tuple[Tensor, Tensor]]
"""What a decoder makes of its transformer's output: from the tokens (prompts, tokens, channels),
the image (prompts, places, channels), its rows and columns of places, and the image of each prompt,
the logits (prompts, candidates, low, low) and the predicted IoU (prompts, candidates)."""


class Parts(NamedTuple):
    """A mask decoder in parts: what differs between models is around the two-way transformer."""

    outputs: Float[Tensor, "outputs channels"]
    """The decoder's own tokens, ahead of those of the prompt."""
    transformer: Any
    """With the names of segment-anything's `TwoWayTransformer`."""
    finish: Finish


def decode(
    decoder: Any,
    images: Float[Tensor, "images channels rows cols"],
    image_positions: Float[Tensor, "channels rows cols"],
    no_mask: Float[Tensor, "channels"],
    sparse: Float[Tensor, "prompts tokens channels"],
    attended: Bool[Tensor, "prompts tokens"],
    image_index: Int[Tensor, "prompts"],
    batch_size: int,
) -> tuple[Float[Tensor, "prompts candidates low low"], Float[Tensor, "prompts candidates"]]:
    """Decode prompts on images into the three candidate masks.

    Args:
        decoder: segment-anything's `MaskDecoder`, or another model's as `Parts`.
        images: the image encoder's output.
        image_positions: the prompt encoder's `get_dense_pe`.
        no_mask: the embedding that stands for "no mask given".
        sparse: embedded points; `attended` is False at padding.
        image_index: the image that each prompt is about.
        batch_size: how many prompts are decoded together, always: the last prompt is repeated to
            fill the last batch. So the same kernels run for a prompt whatever comes with it, and
            its last digits don't change. It bounds the memory.

    Returns:
        Logits at 4 times the embedding's resolution, and the predicted IoU of each candidate.
    """
    parts = decoder if isinstance(decoder, Parts) else _parts(decoder)
    count = len(sparse)
    filled = torch.arange(count + -count % batch_size, device=sparse.device).clamp(max=count - 1)
    terms = _image_terms(parts.transformer, images + no_mask[:, None, None], image_positions)
    batches = [
        _decode_batch(parts, terms, sparse[i], attended[i], image_index[i])
        for i in filled.split(batch_size)
    ]
    logits, iou = zip(*batches, strict=True)
    return torch.cat(logits)[:count], torch.cat(iou)[:count]


def _parts(decoder: Any) -> Parts:
    """Those of segment-anything's `MaskDecoder`."""

    def finish(
        tokens: Tensor, keys: Tensor, size: tuple[int, int], _: Tensor
    ) -> tuple[Tensor, Tensor]:
        multimask = range(1, decoder.num_mask_tokens)  # token 0 is the single-mask output
        hyper = torch.stack(
            [decoder.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in multimask], dim=1
        )
        iou = decoder.iou_prediction_head(tokens[:, 0])[:, 1:]
        return _mask_logits(decoder.output_upscaling, keys, size, hyper), iou

    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    return Parts(outputs, decoder.transformer, finish)


def _decode_batch(
    parts: Parts, terms: ImageTerms, sparse: Tensor, attended: Tensor, image_index: Tensor
) -> tuple[Tensor, Tensor]:
    if on_host(sparse):  # cut padding that no prompt here needs; a GPU would have to be waited for
        used = attended.any(dim=0)
        sparse, attended = sparse[:, used], attended[:, used]
    tokens = torch.cat([parts.outputs.expand(len(sparse), -1, -1), sparse], dim=1)
    keep = F.pad(attended, (len(parts.outputs), 0), value=True)[:, None, None]
    if len(terms.keys) > 1:  # a single image is broadcast over the prompts, without a copy
        terms = terms._replace(keys=terms.keys[image_index], first=terms.first[image_index])
    tokens, keys = _two_way(parts.transformer, terms, tokens, keep)
    return parts.finish(tokens, keys, terms.size, image_index)


def _image_terms(transformer: Any, images: Tensor, image_positions: Tensor) -> ImageTerms:
    # Images and positions as sequences of places.
    keys, positions = (
        x.flatten(2).transpose(1, 2).contiguous() for x in (images, image_positions[None])
    )
    weights, constants = [], []
    for to_image, queries_of_image in [
        *((x.cross_attn_token_to_image, x.cross_attn_image_to_token) for x in transformer.layers),
        (transformer.final_attn_token_to_image, None),
    ]:
        linears = [to_image.k_proj, to_image.v_proj]
        if queries_of_image is not None:
            linears.append(queries_of_image.q_proj)
        weights.append(torch.cat([linear.weight for linear in linears]))
        # W (x + p) + b = W x + (W p + b). Values are taken without positions, so only their bias.
        constants.append(
            torch.cat(
                [
                    linear(torch.zeros_like(positions) if linear is to_image.v_proj else positions)
                    for linear in linears
                ],
                dim=-1,
            )
        )
    size = (images.shape[2], images.shape[3])
    # One image at a time: the last digits must not depend on how many there are.
    first = torch.cat([F.linear(image[None], weights[0]) + constants[0] for image in keys])
    return ImageTerms(keys, size, weights, constants, first)


def _two_way(
    transformer: Any,
    terms: ImageTerms,
    query_pe: Float[Tensor, "prompts tokens channels"],
    keep: Bool[Tensor, "prompts 1 1 tokens"],
) -> tuple[Float[Tensor, "prompts tokens channels"], Float[Tensor, "prompts places channels"]]:
    """The two-way transformer: tokens and image attend to each other in turn.

    Args:
        query_pe: the tokens; as in SAM they are their own positional encoding too.
        keep: the tokens that may be attended to: all but padding.
    """
    queries, keys = query_pe, terms.keys
    for i, layer in enumerate(transformer.layers):
        k, v, q = (terms.first if i == 0 else _image_products(terms, i, keys)).chunk(3, dim=-1)
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
        # In place, in the attention's fresh output: the image is the largest tensor here.
        keys = layer.norm4(to_tokens.add_(keys))
    final = transformer.final_attn_token_to_image
    k, v = _image_products(terms, -1, keys).chunk(2, dim=-1)
    last = _attend(final, final.q_proj(queries + query_pe), k, v)
    return transformer.norm_final_attn(queries + last), keys


def _image_products(
    terms: ImageTerms, i: int, keys: Float[Tensor, "prompts places channels"]
) -> Float[Tensor, "prompts places inner"]:
    """The i-th layer's projections of the image, one behind the other, in one product."""
    return F.linear(keys, terms.weights[i]).add_(terms.constants[i])


def _self_attend(attention: Any, positioned: Tensor, values: Tensor, keep: Tensor) -> Tensor:
    q, k, v = attention.q_proj(positioned), attention.k_proj(positioned), attention.v_proj(values)
    return _attend(attention, q, k, v, keep)


def _attend(attention: Any, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
    """segment-anything's attention after its input projections, with a mask.

    A batch of 1 (the image, in the first layer) is broadcast over the prompts.
    """
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

    With the channels last, SAM's norm over channels is PyTorch's fused layer norm. Pixels are put
    in order at the very end: the logits have far fewer channels than the upscaled image.
    """
    first, norm, activation, second, _ = upscaling
    x = upscale_twice(first, keys)  # (prompts, places, 2, 2, channels / 4)
    x = activation(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
    x = activation(upscale_twice(second, x))  # (prompts, places, 2, 2, 2, 2, channels / 8)
    return in_order(x.flatten(1, -2) @ hyper.transpose(1, 2), size)


def in_order(
    pixels: Float[Tensor, "prompts pixels channels"], size: tuple[int, int]
) -> Float[Tensor, "prompts channels low_rows low_cols"]:
    """Pixels of places that were upscaled twice, put in order: 4 times `size`, rows and columns."""
    # row, col, then row and col within the place at half and at quarter resolution
    pixels = pixels.unflatten(1, (*size, 2, 2, 2, 2))
    return pixels.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5).flatten(2, 4)


def upscale_twice(
    convolution: nn.ConvTranspose2d, x: Float[Tensor, "*places channels"]
) -> Float[Tensor, "*places 2 2 out"]:
    """A transposed convolution of kernel and stride 2: each place gives 2 x 2 results.

    They don't overlap, so it is one linear layer per place, which is faster.
    """
    weight, bias = convolution.weight, convolution.bias
    assert bias is not None
    # (in, out, 2, 2) -> (2 * 2 * out, in); the bias is the same at all four.
    out = F.linear(x, weight.permute(2, 3, 1, 0).flatten(0, 2), bias.repeat(4))
    return out.unflatten(-1, (2, 2, -1))
