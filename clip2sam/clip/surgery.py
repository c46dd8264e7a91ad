"""Every method's inference architecture over the weights of an open_clip image tower.

Nothing here changes the model: its weights are read, its positional embedding is resized into a
copy, and its own `encode_image` works as before. Only what OpenAI's checkpoints fix is relied upon
(`in_proj_weight`, `in_proj_bias`, `out_proj`, `num_heads`, the norms and the feed-forward layers),
because open_clip's own attention class differs between releases. timm's towers come under the same
names (`clip2sam.clip.timm_tower`).

Source of the two paths: Li et al., "A Closer Look at the Explainability of Contrastive
Language-Image Pre-training", https://arxiv.org/abs/2304.05653, sections 3.2 and 3.3; published code
https://github.com/xmed-lab/CLIP_Surgery. The other methods' are with their records.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clip2sam.clip import timm_tower
from clip2sam.clip.methods import Method
from clip2sam.errors import ConfigError
from clip2sam.kernels.attention import attend as plain_attention

Bias = Float[Tensor, "tokens tokens"]
"""Additive attention logits, query first."""


@torch.no_grad()
def dense_features(
    visual: Any, pixels: Float[Tensor, "batch 3 height width"], method: Method
) -> Float[Tensor, "batch tokens channels"]:
    """Run an open_clip image tower with a method's inference architecture.

    Args:
        visual: `model.visual`: open_clip's `VisionTransformer` or `ModifiedResNet`, or a
            `TimmModel` whose trunk is timm's `VisionTransformer`, as SigLIP's.
        pixels: the preprocessed images (RGB, normalised with the model's own mean and standard
            deviation), of any height and width that hold at least one patch.
        method: how the dense features are computed.

    Returns:
        The projected, not normalised tokens: CLS first (a tower without one: its pooled feature of
        the image), then the patches row by row, in the tower's dtype.

    Raises:
        ConfigError: the tower is of another kind, its blocks have parts that surgery doesn't know,
            or the method isn't defined for it.
    """
    return _tokens_and_grid(visual, pixels, method)[0]


@torch.no_grad()
def dense_grid(
    visual: Any, pixels: Float[Tensor, "batch 3 height width"], method: Method
) -> tuple[Float[Tensor, "batch tokens channels"], tuple[int, int]]:
    """`dense_features`, and the (rows, cols) of the patch grid."""
    return _tokens_and_grid(visual, pixels, method)


def _tokens_and_grid(visual: Any, pixels: Tensor, method: Method) -> tuple[Tensor, tuple[int, int]]:
    if hasattr(visual, "attnpool") and hasattr(visual, "layer4"):
        return _resnet_features(visual, pixels, method)
    if hasattr(visual, "trunk"):
        timm_tower.check_timm(visual)
        x, grid = _embed_timm(visual.trunk, pixels)
        x, new = _dual_path(timm_tower.blocks_of(visual), x, method, _bias(method, grid, x))
        return timm_tower.project(visual, x, new), grid
    check_transformer(visual)
    x, grid = _embed(visual, pixels)
    x, new = _dual_path(list(visual.transformer.resblocks), x, method, _bias(method, grid, x))
    x = torch.cat([x[:, :1], new[:, 1:]], dim=1)  # the CLS token of the original path
    return visual.ln_post(x) @ visual.proj, grid


def grid_side(visual: Any, resolution: int) -> int:
    """How many rows (and columns) of patch tokens a square image of `resolution` pixels gives."""
    if hasattr(visual, "attnpool"):
        return resolution // 32
    if hasattr(visual, "trunk"):
        timm_tower.check_timm(visual)
        return resolution // visual.trunk.patch_embed.patch_size[0]
    return resolution // visual.patch_size[0]


def check_tower(visual: Any) -> None:
    """Raise a ConfigError unless surgery can take this image tower. Its weights are not read."""
    if hasattr(visual, "attnpool") and hasattr(visual, "layer4"):
        return
    if hasattr(visual, "trunk"):
        timm_tower.check_timm(visual)
    else:
        check_transformer(visual)


def check_transformer(visual: Any) -> None:
    """Raise a ConfigError unless `visual` is a ViT whose attention and pooling surgery knows."""
    needed = ("conv1", "class_embedding", "positional_embedding", "transformer", "ln_post", "proj")
    missing = [name for name in needed if getattr(visual, name, None) is None]
    if missing:
        raise ConfigError(
            "surgery works on open_clip's VisionTransformer and ModifiedResNet and on timm's "
            "VisionTransformer (SigLIP), but this image "
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
    embedding: Float[Tensor, "positions width"], rows: int, cols: int, prefix: int = 1
) -> Float[Tensor, "new_positions width"]:
    """Resize a square grid of positions bilinearly, without antialiasing, as published with CLIP
    Surgery. The first `prefix` rows stay as they are: the CLS token's."""
    side = round((embedding.shape[0] - prefix) ** 0.5)
    if (side, side) == (rows, cols):
        return embedding
    grid = embedding[prefix:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (rows, cols), mode="bilinear", align_corners=False)
    grid = grid.flatten(2)[0].T.to(embedding.dtype)
    return torch.cat([embedding[:prefix], grid])


def _embed(visual: Any, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Patch embedding, CLS token, positions and the first norm: (batch, 1 + patches, width)."""
    x = visual.conv1(pixels.to(visual.class_embedding.dtype))
    rows, cols = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    x = x + resize_positions(visual.positional_embedding, rows, cols).to(x.dtype)
    return visual.ln_pre(x), (rows, cols)


def _embed_timm(trunk: Any, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """As `_embed`: (batch, prefix + patches, width). The prefix is what there is of a CLS token and
    registers."""
    x = trunk.patch_embed.proj(pixels.to(trunk.patch_embed.proj.weight.dtype))
    rows, cols = x.shape[-2:]
    x = trunk.patch_embed.norm(x.flatten(2).transpose(1, 2))
    first = [token for token in (trunk.cls_token, trunk.reg_token) if token is not None]
    first = [token.expand(len(x), -1, -1) for token in first]
    if trunk.pos_embed is not None and trunk.no_embed_class:
        x = x + resize_positions(trunk.pos_embed[0], rows, cols, prefix=0)
    x = torch.cat([*first, x], dim=1)
    if trunk.pos_embed is not None and not trunk.no_embed_class:
        x = x + resize_positions(trunk.pos_embed[0], rows, cols, trunk.num_prefix_tokens)
    return trunk.norm_pre(x), (rows, cols)


def _bias(method: Method, grid: tuple[int, int], like: Tensor) -> Bias | None:
    """The method's prior as a bias of all tokens (batch, tokens, width), zero for those before the
    patches; None without a prior."""
    if method.prior is None:
        return None
    prior = torch.as_tensor(method.prior(*grid)).to(like)
    patches = grid[0] * grid[1]
    if prior.shape != (patches, patches):
        raise ConfigError(
            f"the prior of {method.name} must have the shape {(patches, patches)} for a grid of "
            f"{grid[0]} x {grid[1]}, but got {tuple(prior.shape)}"
        )
    for _ in range(like.shape[1] - patches):
        prior = F.pad(prior, (1, 0, 1, 0))
    return prior


def _dual_path(
    blocks: list[Any], x: Tensor, method: Method, bias: Bias | None
) -> tuple[Tensor, Tensor]:
    """Run the blocks, the last `method.blocks` of them on two paths: the original one's tokens and
    the new one's.

    A tower with fewer blocks than that has two paths from the first one on.
    """
    split = max(len(blocks) - method.blocks, 0)
    for block in blocks[:split]:
        x = block(x)
    shared = method.attention == "qk" and bias is None  # both paths then attend alike
    new, residual = x, float(method.residual)
    for block in blocks[split:]:
        q, k, v = _qkv(block, x)
        old_attention = _heads_out(block, plain_attention(q, k, v))
        new_attention = (
            old_attention if shared else _heads_out(block, _attend(block, x, q, k, v, method, bias))
        )
        x = x + old_attention
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
        new = torch.add(new_attention, new, alpha=residual) if residual else new_attention
        if method.feed_forward:
            new = new + block.ls_2(block.mlp(block.ln_2(new)))
    return x, new


def _attend(
    block: Any, x: Tensor, q: Tensor, k: Tensor, v: Tensor, method: Method, bias: Bias | None
) -> Tensor:
    """The new path's attention in a block whose input is x."""
    if method.attention == "self-self":
        length = block.ln_1(x).norm(dim=-1).mean(dim=-1)
        return self_self(q, k, v, length, method.iterations, bias)
    return attend(q, k, v, method.attention, bias)


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
            of two such attentions, "identity" is v; not "self-self", see `self_self`), or a
            function (q, k, v, bias).
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


def self_self(
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
    length: Float[Tensor, "batch"],
    iterations: int = 1,
    bias: Bias | None = None,
) -> Float[Tensor, "batch heads tokens dim"]:
    """GEM's attention: the mean of three, by queries, by keys and by values.

    Each of them clusters: unit vectors p become softmax(length * p p^T dim^-0.5 + bias) p, so many
    times; once more made to unit length they give the weights of the values.

    Args:
        q, k, v: the original path's query, key and value.
        length: of an image's tokens in the block's normalised input, before the projections, as a
            mean: the adaptive temperature's inverse, times dim^0.5.
        iterations: how often the vectors move.
        bias: added to all logits of every head.

    Source: Bousselham et al., 2023, https://arxiv.org/abs/2312.00878; published code
    https://github.com/WalBouss/GEM, gem/gem_utils.py, `SelfSelfAttention`.
    """
    sharpness = length[:, None, None, None]
    out = torch.zeros_like(v)
    for vectors in (q, k, v):
        for _ in range(iterations):
            unit = F.normalize(vectors, dim=-1)
            vectors = _one_attention(unit * sharpness, unit, unit, bias)
        unit = F.normalize(vectors, dim=-1)
        out = out + _one_attention(unit * sharpness, unit, v, bias)
    return out / 3


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
    the value projection alone. With "identity" (MaskCLIP) there are no positions, as published:
    https://github.com/chongzhou96/MaskCLIP, mmseg/models/decode_heads/maskclip_head.py.
    """
    attention = method.attention if method.blocks else "qk"
    if attention == "self-self":
        raise ConfigError(
            f"{method.name} isn't defined for a ResNet: its temperature is that of a ViT's block; "
            "use surgery, or a CLIP such as ViT-B-16-quickgelu"
        )
    x = visual.stem(pixels.to(visual.conv1.weight.dtype))
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(x))))
    rows, cols = x.shape[-2:]
    pool = visual.attnpool
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    if attention != "identity":
        x = x + resize_positions(pool.positional_embedding, rows, cols).to(x.dtype)
    q, k, v = (
        p(x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for p in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    bias = _bias(method, (rows, cols), x) if method.blocks else None
    out = attend(q, k, v, attention, bias)
    return pool.c_proj(out.transpose(1, 2).flatten(2)), (rows, cols)
