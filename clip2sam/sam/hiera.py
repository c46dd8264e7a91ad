"""Hiera, the image encoder of SAM 2, on transformers' own modules.

What it returns is what transformers' `Sam2HieraDetModel` does, up to rounding, in less time: the
channels come last throughout, a window's queries, keys and values are one gather, and windows that
extend beyond the image cost no linear layer (all tokens out there are the same zero token).

Source: Ryali et al., 2023, https://arxiv.org/abs/2306.00989; Ravi et al., 2024,
https://arxiv.org/abs/2408.00714; https://github.com/facebookresearch/sam2,
`sam2/modeling/backbones/hieradet.py`.
"""

from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clip2sam.kernels.device import SCORES_BYTES, TOKENS_PER_CHUNK, on_host
from clip2sam.kernels.linear import linear


class Windows(NamedTuple):
    """Windows over the tokens of a batch of images."""

    tokens: Int[Tensor, "windows tokens"]
    """The tokens of each; those beyond the image have the index behind the last."""
    places: Int[Tensor, "tokens"]
    """Where each token of the images is in `tokens`, flattened: the inverse."""


@torch.no_grad()
def encode_stages(
    backbone: Any, pixels: Float[Tensor, "images 3 side side"]
) -> list[Float[Tensor, "images _ _ _"]]:
    """The tokens at the end of each stage, (images, rows, cols, channels), the finest first.

    Args:
        backbone: transformers' `Sam2HieraDetModel`, in any floating-point dtype.
        pixels: normalised images in its dtype.
    """
    projection = backbone.patch_embed.projection
    # With the channels last in the convolution too its output needs no reordering.
    patches = F.conv2d(
        pixels.contiguous(memory_format=torch.channels_last),
        projection.weight.contiguous(memory_format=torch.channels_last),
        projection.bias,
        projection.stride,
        projection.padding,
    )
    x = patches.permute(0, 2, 3, 1).contiguous()
    x = x + _positions(backbone, (x.shape[1], x.shape[2]))
    stages = []
    for i, block in enumerate(backbone.blocks):
        if block.window_size and on_host(x):
            # Rows of windows don't know of each other: one after the other stays in the cache.
            x = torch.cat([_block(block, strip) for strip in x.split(block.window_size, 1)], dim=1)
        else:
            x = _block(block, x)
        if i in backbone.stage_ends:
            stages.append(x)
    return stages


def _positions(backbone: Any, size: tuple[int, int]) -> Float[Tensor, "1 rows cols channels"]:
    """The positional encoding: a coarse one, resized, and one of each window, repeated."""
    coarse = F.interpolate(backbone.pos_embed, size, mode="bicubic")
    window = backbone.pos_embed_window
    times = [side // own for side, own in zip(size, window.shape[2:], strict=True)]
    return (coarse + window.repeat(1, 1, *times)).permute(0, 2, 3, 1).contiguous()


def _block(
    block: Any, x: Float[Tensor, "images rows cols channels"]
) -> Float[Tensor, "images new_rows new_cols new_channels"]:
    """One block; the first of a stage halves the sides and has more channels."""
    normed = block.layer_norm1(x)
    shortcut = x
    if block.dim != block.dim_out:
        shortcut = _linear(block.proj, normed)
        if block.query_stride:
            shortcut = _pool(shortcut, block.query_stride)
    x = shortcut + _attention(block.attn, normed, block.window_size, block.query_stride)
    return x + _mlp(block.mlp, block.layer_norm2(x))


def _attention(
    attn: Any,
    x: Float[Tensor, "images rows cols channels"],
    side: int,
    stride: Sequence[int] | None,
) -> Float[Tensor, "images new_rows new_cols new_channels"]:
    """Attention within windows of `side` tokens, or 0: within the whole image. Padding is attended
    to, as in SAM 2. With a stride the queries are pooled."""
    images, rows, cols, _ = x.shape
    heads, width = attn.num_attention_heads, attn.dim_out
    tall, wide = (side, side) if side else (rows, cols)
    windows = _windows(images, rows, cols, tall, wide, x.device)
    padded = windows.tokens.numel() > images * rows * cols
    tokens = x.flatten(0, 2)
    qkv = linear(attn.qkv, F.pad(tokens, (0, 0, 0, 1)) if padded else tokens)
    # One gather for all three; the whole image is in order already.
    inside = qkv.index_select(0, windows.tokens.flatten()) if side else qkv
    q, k, v = inside.view(*windows.tokens.shape, 3, heads, -1).transpose(1, 3).unbind(2)
    if stride:
        queries = _pool(qkv[: len(tokens), :width].view(images, rows, cols, width), stride)
        rows, cols = queries.shape[1:3]
        tall, wide = tall // stride[0], wide // stride[1]
        windows = _windows(images, rows, cols, tall, wide, x.device)
        taken = windows.tokens.clamp(max=images * rows * cols - 1)  # what padding asks is dropped
        q = queries.flatten(0, 2).index_select(0, taken.flatten())
        q = q.view(*taken.shape, heads, -1).transpose(1, 2)
    out = _attend(q, k, v).transpose(1, 2).reshape(-1, width)
    if side:
        out = out.index_select(0, windows.places)
    return linear(attn.proj, out).view(images, rows, cols, width)


def _attend(
    q: Float[Tensor, "windows heads queries dim"],
    k: Float[Tensor, "windows heads tokens dim"],
    v: Float[Tensor, "windows heads tokens dim"],
) -> Float[Tensor, "windows heads queries dim"]:
    """Attention. In bf16 on a CPU the scores of some queries at a time: two plain products take
    less than half of the time of PyTorch's fused attention there."""
    if q.dtype != torch.bfloat16 or not on_host(q):
        return F.scaled_dot_product_attention(q, k, v)
    keys = (k * q.shape[-1] ** -0.5).transpose(-2, -1)
    scores = q.element_size() * k.shape[0] * k.shape[1] * k.shape[2]  # bytes of one query's
    some = q.split(max(SCORES_BYTES // scores, 1), dim=2)
    return torch.cat([(part @ keys).softmax(dim=-1) @ v for part in some], dim=2)


@lru_cache(maxsize=32)
def _windows(
    images: int, rows: int, cols: int, tall: int, wide: int, device: torch.device
) -> Windows:
    """Windows of `tall` x `wide` tokens, image by image, row by row."""
    count = images * rows * cols
    index = torch.arange(count, device=device).view(images, rows, cols)
    index = F.pad(index, (0, -cols % wide, 0, -rows % tall), value=count)
    index = index.unflatten(2, (-1, wide)).unflatten(1, (-1, tall)).transpose(2, 3)
    tokens = index.flatten(3).flatten(0, 2)
    places = torch.empty(count + 1, dtype=torch.long, device=device)
    places[tokens.flatten()] = torch.arange(tokens.numel(), device=device)
    return Windows(tokens, places[:count])


def _pool(
    x: Float[Tensor, "images rows cols channels"], stride: Sequence[int]
) -> Float[Tensor, "images new_rows new_cols channels"]:
    """The maximum of each `stride` (rows, cols) of tokens."""
    tall, wide = stride
    # Of slices: `amax` over two dimensions takes ten times as long on a CPU.
    rows = reduce(torch.maximum, (x[:, i::tall] for i in range(tall)))
    return reduce(torch.maximum, (rows[:, :, i::wide] for i in range(wide)))


def _linear(
    layer: Any, x: Float[Tensor, "images rows cols channels"]
) -> Float[Tensor, "images rows cols out"]:
    return linear(layer, x.flatten(0, 2)).view(*x.shape[:3], -1)


def _mlp(
    mlp: Any, x: Float[Tensor, "images rows cols channels"]
) -> Float[Tensor, "images rows cols channels"]:
    """A block's MLP; on a CPU in chunks of tokens, so the hidden activations stay in the cache."""
    tokens = x.flatten(0, 2)
    if not on_host(x):
        return mlp(tokens).view(x.shape)
    out = torch.empty_like(tokens)
    chunks = zip(tokens.split(TOKENS_PER_CHUNK), out.split(TOKENS_PER_CHUNK), strict=True)
    for chunk, target in chunks:
        target.copy_(linear(mlp.proj_out, mlp.activation(linear(mlp.proj_in, chunk))))
    return out.view(x.shape)
