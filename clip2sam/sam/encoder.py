"""SAM's image encoder over segment-anything's own weights, without the scores of all tokens at once.

The official attention writes out every score, adds the relative positions to them, and takes the softmax: for a global
block of ViT-H that is 1 GB several times over. Here they never exist as a whole (`attention.py`). Windows that stick
out over the picture's edge are padded behind the qkv product, whose value for a padded token is known: its bias.

Source: Li et al., 2022, https://arxiv.org/abs/2112.01526 and https://arxiv.org/abs/2203.16527;
https://github.com/facebookresearch/segment-anything, `modeling/image_encoder.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import Tensor

from clip2sam.sam.attention import MASKED, WAYS, Attention
from clip2sam.transfer import on_host

TOKENS_AT_ONCE = 1024


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
    x = encoder.patch_embed(pixels).contiguous()  # it comes channels first, and all that follows would keep to that
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks:
        x = x + _block_attention(block, block.norm1(x), attention)
        x = x + _feed_forward(block.mlp, block.norm2(x))
    return encoder.neck(x.permute(0, 3, 1, 2))


def _block_attention(
    block: Any, x: Float[Tensor, "batch rows cols width"], attention: Attention
) -> Float[Tensor, "batch rows cols width"]:
    """One block's attention, over the whole picture or inside windows."""
    rows, cols = x.shape[1:3]
    attn, high, wide = block.attn, block.window_size or rows, block.window_size or cols
    biases = (None, None, None) if attn.qkv.bias is None else attn.qkv.bias.chunk(3)
    q, k, v = (
        _windows(part, bias, attn.num_heads, high, wide)
        for part, bias in zip(attn.qkv(x).chunk(3, dim=-1), biases, strict=True)
    )
    out = _attend(attn, q, k, v, attention.windows if block.window_size else attention.whole)
    return attn.proj(_picture(out, -(-rows // high), -(-cols // wide))[:, :rows, :cols])


def _feed_forward(mlp: Any, x: Float[Tensor, "batch rows cols width"]) -> Float[Tensor, "batch rows cols width"]:
    """The block's MLP. On a CPU for some tokens at a time, so that what is between its layers stays in the cache."""
    if not on_host(x):
        return mlp(x)
    tokens = x.flatten(0, 2)
    out = torch.empty_like(tokens)
    for some, place in zip(tokens.split(TOKENS_AT_ONCE), out.split(TOKENS_AT_ONCE), strict=True):
        place.copy_(mlp(some))
    return out.view(x.shape)


def _windows(
    x: Float[Tensor, "batch rows cols width"], padding: Float[Tensor, "width"] | None, heads: int, high: int, wide: int
) -> Float[Tensor, "windows heads high wide dim"]:
    """Cut into windows, row by row, and heads; what sticks out has the value of a token of zeros: the bias."""
    batch, rows, cols, width = x.shape
    down, across = -(-rows // high), -(-cols // wide)
    if (down * high, across * wide) != (rows, cols):
        padded = x.new_empty(batch, down * high, across * wide, width)
        padded[:, :rows, :cols] = x
        padded[:, rows:] = padded[:, :, cols:] = 0 if padding is None else padding
        x = padded
    windows = x.reshape(batch, down, high, across, wide, heads, -1).permute(0, 1, 3, 5, 2, 4, 6)
    return windows.flatten(0, 2)


def _picture(
    windows: Float[Tensor, "windows heads high wide dim"], down: int, across: int
) -> Float[Tensor, "batch rows cols width"]:
    """Windows and heads put together again."""
    _, heads, high, wide, dim = windows.shape
    parts = windows.view(-1, down, across, heads, high, wide, dim).permute(0, 1, 4, 2, 5, 3, 6)
    return parts.reshape(-1, down * high, across * wide, heads * dim)


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
