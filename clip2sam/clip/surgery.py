"""CLIP Surgery's inference architecture over the weights of an open_clip image tower.

Nothing here changes the model: its weights are read, its positional embedding is resized into a
copy, and its own `encode_image` works as before. Only what OpenAI's checkpoints fix is relied upon
(`in_proj_weight`, `in_proj_bias`, `out_proj`, `num_heads`, the norms and the feed-forward layers),
because open_clip's own attention class differs between releases.

Source: Li et al., "A Closer Look at the Explainability of Contrastive Language-Image Pre-training",
https://arxiv.org/abs/2304.05653, sections 3.2 and 3.3; published code
https://github.com/xmed-lab/CLIP_Surgery.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clip2sam.clip.methods import Method
from clip2sam.errors import ConfigError
from clip2sam.kernels.attention import attend as plain_attention

Bias = Float[Tensor, "tokens tokens"]
"""Additive attention logits, query first."""


def dense_features(
    visual: Any, pixels: Float[Tensor, "batch 3 height width"], method: Method
) -> Float[Tensor, "batch tokens channels"]:
    """Run an open_clip image tower with a method's inference architecture.

    Args:
        visual: `model.visual`: open_clip's `VisionTransformer` or `ModifiedResNet`.
        pixels: the preprocessed images (RGB, normalised with the model's own mean and standard
            deviation), of any height and width that hold at least one patch.
        method: how the dense features are computed.

    Returns:
        The projected, not normalised tokens: CLS first, then the patches row by row, in the
        tower's dtype.

    Raises:
        ConfigError: the tower is of another kind, or its blocks have parts that surgery doesn't
            know.
    """
    return dense_grid(visual, pixels, method)[0]


@torch.no_grad()
def dense_grid(
    visual: Any, pixels: Float[Tensor, "batch 3 height width"], method: Method
) -> tuple[Float[Tensor, "batch tokens channels"], tuple[int, int]]:
    """`dense_features`, and the (rows, cols) of the patch grid."""
    if hasattr(visual, "attnpool") and hasattr(visual, "layer4"):
        return _resnet_features(visual, pixels, method)
    check_transformer(visual)
    x, grid = _embed(visual, pixels)
    x = _dual_path(list(visual.transformer.resblocks), x, method, _bias(method, grid, x))
    return visual.ln_post(x) @ visual.proj, grid


def grid_side(visual: Any, resolution: int) -> int:
    """How many rows (and columns) of patch tokens a square image of `resolution` pixels gives."""
    patch = 32 if hasattr(visual, "attnpool") else visual.patch_size[0]
    return resolution // patch


def check_transformer(visual: Any) -> None:
    """Raise a ConfigError unless `visual` is a ViT whose attention and pooling surgery knows."""
    needed = ("conv1", "class_embedding", "positional_embedding", "transformer", "ln_post", "proj")
    missing = [name for name in needed if getattr(visual, name, None) is None]
    if missing:
        raise ConfigError(
            "surgery works on open_clip's VisionTransformer and ModifiedResNet, but this image "
            f"tower is a {type(visual).__name__} without {', '.join(missing)}; use a CLIP such as "
            "ViT-B-16-quickgelu or RN50"
        )
    if (
        getattr(visual, "attn_pool", None) is not None
        or getattr(visual, "pool_type", "tok") != "tok"
    ):
        raise ConfigError(
            "surgery needs a CLS token; this image tower pools its tokens (use a plain CLIP ViT)"
        )
    if getattr(visual, "final_ln_after_pool", False):
        raise ConfigError(
            "surgery needs ln_post on every token; this image tower normalises only the pooled one"
        )
    for block in visual.transformer.resblocks:
        attention = block.attn
        odd = [n for n in ("logit_scale", "head_scale") if getattr(attention, n, None) is not None]
        odd += [
            n
            for n in ("ln_q", "ln_k", "ln_inner")
            if not isinstance(getattr(attention, n, None) or nn.Identity(), nn.Identity)
        ]
        if odd or getattr(attention, "in_proj_weight", None) is None:
            raise ConfigError(
                "surgery needs plain multi-head attention with in_proj_weight; this tower's "
                f"{type(attention).__name__} differs ({', '.join(odd) or 'separate projections'})"
            )


def resize_positions(
    embedding: Float[Tensor, "positions width"], rows: int, cols: int
) -> Float[Tensor, "new_positions width"]:
    """Resize a square grid of positions (first row: CLS) bilinearly, without antialiasing, as
    published."""
    side = round((embedding.shape[0] - 1) ** 0.5)
    if (side, side) == (rows, cols):
        return embedding
    grid = embedding[1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (rows, cols), mode="bilinear", align_corners=False)
    grid = grid.flatten(2)[0].T.to(embedding.dtype)
    return torch.cat([embedding[:1], grid])


def _embed(visual: Any, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Patch embedding, CLS token, positions and the first norm: (batch, 1 + patches, width)."""
    x = visual.conv1(pixels.to(visual.class_embedding.dtype))
    rows, cols = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    x = x + resize_positions(visual.positional_embedding, rows, cols).to(x.dtype)
    return visual.ln_pre(x), (rows, cols)


def _bias(method: Method, grid: tuple[int, int], like: Tensor) -> Bias | None:
    """The method's prior as a bias of all tokens, zero for the CLS token; None without a prior."""
    if method.prior is None:
        return None
    prior = torch.as_tensor(method.prior(*grid)).to(like)
    patches = grid[0] * grid[1]
    if prior.shape != (patches, patches):
        raise ConfigError(
            f"the prior of {method.name} must have the shape {(patches, patches)} for a grid of "
            f"{grid[0]} x {grid[1]}, but got {tuple(prior.shape)}"
        )
    return F.pad(prior, (1, 0, 1, 0))


def _dual_path(blocks: list[Any], x: Tensor, method: Method, bias: Bias | None) -> Tensor:
    """Run the blocks, the last `method.blocks` of them on two paths; the CLS token comes from the
    original one.

    A tower with fewer blocks than that has two paths from the first one on.
    """
    split = max(len(blocks) - method.blocks, 0)
    for block in blocks[:split]:
        x = block(x)
    shared = method.attention == "qk" and bias is None  # both paths then attend alike
    new = x
    for block in blocks[split:]:
        q, k, v = _qkv(block, x)
        old_attention = _heads_out(block, plain_attention(q, k, v))
        new_attention = (
            old_attention if shared else _heads_out(block, attend(q, k, v, method.attention, bias))
        )
        x = x + old_attention
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
        new = new + new_attention if method.residual else new_attention
        if method.feed_forward:
            new = new + block.ls_2(block.mlp(block.ln_2(new)))
    return torch.cat([x[:, :1], new[:, 1:]], dim=1)


def attend(
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
    attention: str | Callable[..., Any],
    bias: Bias | None = None,
) -> Float[Tensor, "batch heads tokens dim"]:
    """The attention of the new path.

    Args:
        q, k, v: the original path's query, key and value.
        attention: a name, "vv" for softmax(v v^T dim^-0.5 + bias) v and so on ("qq+kk" is the sum
            of two such attentions, "identity" is v), or a function (q, k, v, bias).
        bias: added to the logits of every head.
    """
    if callable(attention):
        return attention(q, k, v, bias)
    if attention == "identity":
        return v
    pairs = {
        "qk": [(q, k)],
        "vv": [(v, v)],
        "qq": [(q, q)],
        "kk": [(k, k)],
        "qq+kk": [(q, q), (k, k)],
    }
    first, *rest = (_one_attention(left, right, v, bias) for left, right in pairs[attention])
    return first + rest[0] if rest else first


def _one_attention(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None) -> Tensor:
    if bias is None:
        return plain_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _qkv(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The original stream's query, key and value, each (batch, heads, tokens, dim)."""
    attention = block.attn
    qkv = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def _heads_out(block: Any, heads: Tensor) -> Tensor:
    """Join the heads and go through the block's own output projection."""
    return block.ls_1(block.attn.out_proj(heads.transpose(1, 2).flatten(2)))


def _resnet_features(visual: Any, pixels: Tensor, method: Method) -> tuple[Tensor, tuple[int, int]]:
    """A ResNet's last feature map through its attention pool, every token kept.

    With "vv" this is the published code's result, in which both paths, and so the CLS token, use
    the value projection alone.
    """
    x = visual.stem(pixels.to(visual.conv1.weight.dtype))
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(x))))
    rows, cols = x.shape[-2:]
    pool = visual.attnpool
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    x = x + resize_positions(pool.positional_embedding, rows, cols).to(x.dtype)
    q, k, v = (
        p(x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for p in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    attention = method.attention if method.blocks else "qk"
    bias = _bias(method, (rows, cols), x) if method.blocks else None
    out = attend(q, k, v, attention, bias)
    return pool.c_proj(out.transpose(1, 2).flatten(2)), (rows, cols)
