"""SAM's image encoder on segment-anything's own weights, without storing the scores of all tokens.

The official attention stores every score, adds the relative positions to them and takes the
softmax: for a global block of ViT-H that is 1 GB several times over. Here only a part of the scores
exists at a time (`kernels/relative.py`). Windows extend beyond the image; all tokens out there are
the same zero token, so only one of them goes through the qkv layer.

Source: Li et al., 2022, https://arxiv.org/abs/2112.01526 and https://arxiv.org/abs/2203.16527;
https://github.com/facebookresearch/segment-anything, `modeling/image_encoder.py`.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import Tensor, nn

from clip2sam.kernels.device import TOKENS_PER_CHUNK, on_host
from clip2sam.kernels.linear import linear
from clip2sam.kernels.relative import IMPLEMENTATIONS, MASKED, AttentionChoice


class WindowIndices(NamedTuple):
    """Gather indices for window partition together with the split into heads, and for its inverse.

    A row is one head's channels of one token.
    """

    partition: Int[Tensor, "windows heads window_rows window_cols"]
    """Rows of the queries in the qkv layer's output, with the zero token for padding last."""
    unpartition: Int[Tensor, "rows"]
    """Rows of the attention's output, in the order of the image's tokens and their heads."""


@torch.no_grad()
def encode_image(
    encoder: Any, pixels: Float[Tensor, "batch 3 side side"], attention: AttentionChoice = MASKED
) -> Float[Tensor, "batch channels rows cols"]:
    """What segment-anything's `ImageEncoderViT` returns, up to rounding.

    Args:
        encoder: the `ImageEncoderViT`, in any floating-point dtype.
        pixels: normalised and padded images in the encoder's dtype.
        attention: its implementations; they differ in speed, and in their last digits.
    """
    x = _embed_patches(encoder.patch_embed, pixels)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    # Blocks share their indices: they depend on the window's size and the number of heads only.
    kinds = {(block.window_size, block.attn.num_heads) for block in encoder.blocks}
    # Window size 0 stands for global attention: one window of the image's size, without padding.
    indices = {
        (side, heads): window_indices(x, heads, side or x.shape[1], side or x.shape[2])
        for side, heads in kinds
    }
    for block in encoder.blocks:
        here = indices[block.window_size, block.attn.num_heads]
        name = attention.windowed if block.window_size else attention.full
        x = x + _self_attention(block.attn, block.norm1(x), here, name)
        x = x + _mlp(block.mlp, block.norm2(x))
    return encoder.neck(x.permute(0, 3, 1, 2))


def _embed_patches(
    embed: Any, pixels: Float[Tensor, "batch 3 side side"]
) -> Float[Tensor, "batch rows cols width"]:
    """The patch embedding, contiguous with the channels last.

    All later sums and norms keep the memory layout of this output. With the channels first, as a
    convolution leaves them, each norm takes ten times as long.
    """
    convolution = embed.proj
    if not isinstance(convolution, nn.Conv2d) or convolution.stride != convolution.kernel_size:
        return embed(pixels).contiguous()  # a stem of several layers
    # Patches don't overlap, so the convolution is one linear layer per patch, which is faster: one
    # large product, and its output has the channels last already.
    patch_rows, patch_cols = convolution.kernel_size
    patches = (
        pixels.unflatten(3, (-1, patch_cols))
        .unflatten(2, (-1, patch_rows))
        .permute(0, 2, 4, 1, 3, 5)  # batch, row, col, channel, patch row, patch col
        .flatten(3)
    )
    return F.linear(patches, convolution.weight.flatten(1), convolution.bias)


def window_indices(
    x: Float[Tensor, "batch rows cols width"], heads: int, window_rows: int, window_cols: int
) -> WindowIndices:
    """Indices for windows of that many tokens: image by image, windows row by row."""
    batch, rows, cols, _ = x.shape
    count = batch * rows * cols
    tokens = torch.arange(count, device=x.device).view(batch, rows, cols)
    # Padding at the right and the bottom, as in SAM; token `count` is the zero token.
    tokens = F.pad(tokens, (0, -cols % window_cols, 0, -rows % window_rows), value=count)
    tokens = (
        tokens.unflatten(2, (-1, window_cols))
        .unflatten(1, (-1, window_rows))
        .transpose(2, 3)  # batch, window's row, window's col, row within, col within
        .flatten(0, 2)
    )
    # The qkv layer gives each token 3 x heads rows: all queries, then all keys, then all values.
    head = torch.arange(heads, device=x.device)
    partition = tokens[:, None] * 3 * heads + head[:, None, None]
    # Back: each token's window and its place there, by division.
    image, row, col = (torch.arange(n, device=x.device) for n in (batch, rows, cols))
    high, wide = -(-rows // window_rows), -(-cols // window_cols)
    window = (image[:, None] * high + row // window_rows)[..., None] * wide + col // window_cols
    place = (row % window_rows)[:, None] * window_cols + col % window_cols
    of_head = window[..., None] * heads + head  # batch, row, col, head
    unpartition = of_head * (window_rows * window_cols) + place[..., None]
    return WindowIndices(partition, unpartition.flatten())


def _self_attention(
    attn: Any, x: Float[Tensor, "batch rows cols width"], indices: WindowIndices, name: str
) -> Float[Tensor, "batch rows cols width"]:
    """A block's attention within windows. Padding is attended to, as in SAM: it isn't masked."""
    heads, dim = attn.num_heads, x.shape[-1] // attn.num_heads
    # q, k and v in one product, of all tokens and one zero token. SAM pads the windows first, and
    # so computes the same keys and values, which are the layer's biases, for every padded token.
    rows = linear(attn.qkv, F.pad(x.flatten(0, 2), (0, 0, 0, 1))).view(-1, dim)
    # One gather makes windows and heads at once, where permutes would copy twice. `index_select`
    # because plain indexing takes four times as long. Keys lie `heads` rows behind the queries,
    # values twice as far, so one index serves all three.
    gathered = (
        rows[part * heads :].index_select(0, indices.partition.flatten()) for part in range(3)
    )
    q, k, v = (part.view(*indices.partition.shape, dim) for part in gathered)
    out = _attend(attn, q, k, v, name)
    # Back with one gather too, which leaves the padding out.
    merged = out.view(-1, dim).index_select(0, indices.unpartition).view(-1, heads * dim)
    return linear(attn.proj, merged).view(x.shape)


def _mlp(
    mlp: Any, x: Float[Tensor, "batch rows cols width"]
) -> Float[Tensor, "batch rows cols width"]:
    """A block's MLP; on a CPU in chunks of tokens, so the hidden activations stay in the cache."""
    if not on_host(x):
        return mlp(x)
    tokens = x.flatten(0, 2)
    out = torch.empty_like(tokens)
    chunks = zip(tokens.split(TOKENS_PER_CHUNK), out.split(TOKENS_PER_CHUNK), strict=True)
    for chunk, target in chunks:
        target.copy_(linear(mlp.lin2, mlp.act(linear(mlp.lin1, chunk))))
    return out.view(x.shape)


def _attend(
    attn: Any,
    q: Float[Tensor, "windows heads rows cols dim"],
    k: Float[Tensor, "windows heads rows cols dim"],
    v: Float[Tensor, "windows heads rows cols dim"],
    name: str,
) -> Float[Tensor, "windows heads rows cols dim"]:
    """Multi-head attention with decomposed relative positions."""
    rows, cols = q.shape[2:4]
    queries, keys, values = (x.flatten(2, 3) for x in (q, k, v))
    if not attn.use_rel_pos:
        return F.scaled_dot_product_attention(queries, keys, values).view(q.shape)
    # Decomposed: rows + cols products per query, in place of rows x cols. With the unscaled query,
    # as SAM was trained, so they are a term of their own beside scale * q.k.
    rel_h = torch.einsum("bnhwc,hkc->bnhwk", q, get_rel_pos(rows, rows, attn.rel_pos_h))
    rel_w = torch.einsum("bnhwc,wkc->bnhwk", q, get_rel_pos(cols, cols, attn.rel_pos_w))
    return IMPLEMENTATIONS[name](queries, keys, values, rel_h, rel_w).view(q.shape)
