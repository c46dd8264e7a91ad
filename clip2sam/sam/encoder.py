"""SAM's image encoder over segment-anything's own weights, through `scaled_dot_product_attention`.

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


def encode_image(
    encoder: Any, pixels: Float[Tensor, "batch 3 side side"], attention: Attention = MASKED
) -> Float[Tensor, "batch channels rows cols"]:
    """What segment-anything's `ImageEncoderViT` returns, to rounding.

    Args:
        encoder: the `ImageEncoderViT`, in any floating-point dtype.
        pixels: normalised and padded pictures in the encoder's dtype.
        attention: the ways to compute it; they differ in speed, and in their last digits.
    """
    x = encoder.patch_embed(pixels)
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
    rows, cols, side = x.shape[1], x.shape[2], block.window_size
    qkv = block.attn.qkv(x)
    if not side:
        return block.attn.proj(_attend(block.attn, qkv, attention.whole))
    windows = _windows(qkv, block.attn.qkv.bias, side)
    down, across = -(-rows // side), -(-cols // side)
    out = _attend(block.attn, windows, attention.windows).unflatten(0, (-1, down, across))
    out = out.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :rows, :cols]
    return block.attn.proj(out)


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
    qkv: Float[Tensor, "batch rows cols triple"], padding: Float[Tensor, "triple"] | None, side: int
) -> Float[Tensor, "windows side side triple"]:
    """Cut into windows, row by row; what sticks out has the qkv of a token of zeros."""
    batch, rows, cols, triple = qkv.shape
    down, across = -(-rows // side), -(-cols // side)
    if (down * side, across * side) != (rows, cols):
        padded = qkv.new_zeros(batch, down * side, across * side, triple)
        if padding is not None:
            padded += padding
        padded[:, :rows, :cols] = qkv
        qkv = padded
    return qkv.reshape(batch, down, side, across, side, triple).transpose(2, 3).reshape(-1, side, side, triple)


def _attend(
    attention: Any, qkv: Float[Tensor, "batch rows cols triple"], way: str
) -> Float[Tensor, "batch rows cols width"]:
    """Multi-head attention with decomposed relative positions."""
    batch, rows, cols, _ = qkv.shape
    q, k, v = qkv.reshape(batch, rows * cols, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    if not attention.use_rel_pos:
        return _join(F.scaled_dot_product_attention(q, k, v), rows, cols)
    grid = q.unflatten(2, (rows, cols))
    down = torch.einsum("bnhwc,hkc->bnhwk", grid, get_rel_pos(rows, rows, attention.rel_pos_h))
    across = torch.einsum("bnhwc,wkc->bnhwk", grid, get_rel_pos(cols, cols, attention.rel_pos_w))
    return _join(WAYS[way](q, k, v, down, across), rows, cols)


def _join(
    heads: Float[Tensor, "batch heads tokens dim"], rows: int, cols: int
) -> Float[Tensor, "batch rows cols width"]:
    """Heads side by side again, tokens in rows and columns."""
    return heads.transpose(1, 2).flatten(2).unflatten(1, (rows, cols))
