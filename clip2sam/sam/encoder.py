"""SAM's image encoder over segment-anything's own weights, without the scores of all tokens at once.

The official attention writes out every score, adds the relative positions to them, and takes the softmax: for a global
block of ViT-H that is 1 GB several times over. Here they never exist as a whole (`attention.py`). Windows stick out
over the picture's edge; all tokens there are the same one, of zeros, so that only one goes through the qkv product.

Source: Li et al., 2022, https://arxiv.org/abs/2112.01526 and https://arxiv.org/abs/2203.16527;
https://github.com/facebookresearch/segment-anything, `modeling/image_encoder.py`.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import Tensor, nn

from clip2sam.kernels.device import on_host
from clip2sam.kernels.linear import linear
from clip2sam.kernels.relative import MASKED, WAYS, Attention

TOKENS_AT_ONCE = 1024


class Windows(NamedTuple):
    """Where a picture's tokens are when they are cut into windows and heads, and back.

    Rows are what one head has of a token. `cut` takes the queries' from the qkv product of all tokens in the picture's
    order, behind which comes a token of zeros for what sticks out over the edge; `join` takes them from the windows.
    """

    cut: Int[Tensor, "windows heads high wide"]
    join: Int[Tensor, "rows"]


@torch.no_grad()
def encode_image(
    encoder: Any, pixels: Float[Tensor, "batch 3 side side"], attention: Attention = MASKED
) -> Float[Tensor, "batch channels rows cols"]:
    """What segment-anything's `ImageEncoderViT` returns, to rounding.

    Args:
        encoder: the `ImageEncoderViT`, in any floating-point dtype.
        pixels: normalised and padded pictures in the encoder's dtype.
        attention: the ways to compute it; they differ in speed, and in their last digits.
    """
    x = _embed_patches(encoder.patch_embed, pixels)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    kinds = {(block.window_size, block.attn.num_heads) for block in encoder.blocks}
    windows = {
        (side, heads): _windows(x, heads, side or x.shape[1], side or x.shape[2])
        for side, heads in kinds
    }
    for block in encoder.blocks:
        here = windows[block.window_size, block.attn.num_heads]
        way = attention.windows if block.window_size else attention.whole
        x = x + _self_attention(block.attn, block.norm1(x), here, way)
        x = x + _feed_forward(block.mlp, block.norm2(x))
    return encoder.neck(x.permute(0, 3, 1, 2))


def _embed_patches(
    embed: Any, pixels: Float[Tensor, "batch 3 side side"]
) -> Float[Tensor, "batch rows cols width"]:
    """The patch embedding, with the channels last in memory too: all that follows would keep to another order.

    A convolution whose stride is its kernel's side is one linear layer per patch.
    """
    convolution = embed.proj
    if not isinstance(convolution, nn.Conv2d) or convolution.stride != convolution.kernel_size:
        return embed(pixels).contiguous()  # a stem of several layers
    high, wide = convolution.kernel_size
    patches = (
        pixels.unflatten(3, (-1, wide))
        .unflatten(2, (-1, high))
        .permute(0, 2, 4, 1, 3, 5)
        .flatten(3)
    )
    return F.linear(patches, convolution.weight.flatten(1), convolution.bias)


def _windows(
    x: Float[Tensor, "batch rows cols width"], heads: int, high: int, wide: int
) -> Windows:
    """Windows of high x wide tokens, row by row."""
    batch, rows, cols, _ = x.shape
    count = batch * rows * cols
    tokens = torch.arange(count, device=x.device).view(batch, rows, cols)
    tokens = F.pad(tokens, (0, -cols % wide, 0, -rows % high), value=count)
    tokens = tokens.unflatten(2, (-1, wide)).unflatten(1, (-1, high)).transpose(2, 3).flatten(0, 2)
    cut = tokens[:, None] * 3 * heads + torch.arange(heads, device=x.device)[:, None, None]
    return Windows(cut, cut.flatten().argsort()[: count * heads])


def _self_attention(
    attn: Any, x: Float[Tensor, "batch rows cols width"], windows: Windows, way: str
) -> Float[Tensor, "batch rows cols width"]:
    """One block's attention inside windows. What sticks out are tokens of zeros: query, key and value are biases."""
    heads, dim = attn.num_heads, x.shape[-1] // attn.num_heads
    rows = linear(attn.qkv, F.pad(x.flatten(0, 2), (0, 0, 0, 1))).view(-1, dim)
    parts = (rows[part * heads :].index_select(0, windows.cut.flatten()) for part in range(3))
    q, k, v = (part.view(*windows.cut.shape, dim) for part in parts)
    out = _attend(attn, q, k, v, way)
    joined = out.view(-1, dim).index_select(0, windows.join).view(-1, heads * dim)
    return linear(attn.proj, joined).view(x.shape)


def _feed_forward(
    mlp: Any, x: Float[Tensor, "batch rows cols width"]
) -> Float[Tensor, "batch rows cols width"]:
    """The block's MLP. On a CPU for some tokens at a time, so that what is between its layers stays in the cache."""
    if not on_host(x):
        return mlp(x)
    tokens = x.flatten(0, 2)
    out = torch.empty_like(tokens)
    for some, place in zip(tokens.split(TOKENS_AT_ONCE), out.split(TOKENS_AT_ONCE), strict=True):
        place.copy_(linear(mlp.lin2, mlp.act(linear(mlp.lin1, some))))
    return out.view(x.shape)


def _attend(
    attention: Any,
    q: Float[Tensor, "windows heads rows cols dim"],
    k: Float[Tensor, "windows heads rows cols dim"],
    v: Float[Tensor, "windows heads rows cols dim"],
    way: str,
) -> Float[Tensor, "windows heads rows cols dim"]:
    """Multi-head attention with decomposed relative positions."""
    rows, cols = q.shape[2:4]
    queries, keys, values = (x.flatten(2, 3) for x in (q, k, v))
    if not attention.use_rel_pos:
        return F.scaled_dot_product_attention(queries, keys, values).view(q.shape)
    down = torch.einsum("bnhwc,hkc->bnhwk", q, get_rel_pos(rows, rows, attention.rel_pos_h))
    across = torch.einsum("bnhwc,wkc->bnhwk", q, get_rel_pos(cols, cols, attention.rel_pos_w))
    return WAYS[way](queries, keys, values, down, across).view(q.shape)
