"""timm's Vision Transformers as open_clip's image towers (`TimmModel`), which SigLIP has.

A tower either has a CLS token, or it has a pooling head in its place (MAP, "multi-head attention
pooling": one learned query attends to all tokens). Then the pooled image stands for the CLS token,
and a dense token is what the head makes of that token alone, as if all attention fell on it: its
value through the head's output projection and feed-forward layers. That is MaskCLIP's step in the
only place where SigLIP's features meet its text, and what projects that read SigLIP's patches do;
the patches before the head don't live in the text's space.

Sources: Zhai et al., 2023, https://arxiv.org/abs/2303.15343 (SigLIP);
https://github.com/huggingface/pytorch-image-models, timm/models/vision_transformer.py and
timm/layers/attention_pool.py; Zhou et al., 2022, https://arxiv.org/abs/2112.01071 (MaskCLIP).
"""

from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clip2sam.errors import ConfigError

INSTEAD = "use ViT-B-16-SigLIP or a plain CLIP such as ViT-B-16-quickgelu"


def check_timm(visual: Any) -> None:
    """Raise a ConfigError unless `visual` holds a ViT of timm whose parts surgery knows.

    Parts are known by the names of timm's classes: a subclass or a relative (EVA's, PE's) computes
    something else.
    """
    trunk = visual.trunk
    _expect("trunk", trunk, "VisionTransformer")
    _expect("patch embedding", trunk.patch_embed, "PatchEmbed")
    for block in trunk.blocks:
        _expect("block", block, "Block")
        _expect("attention", block.attn, "Attention")
        odd = [
            name
            for name in ("q_norm", "k_norm", "norm", "gate")
            if not isinstance(getattr(block.attn, name, None) or nn.Identity(), nn.Identity)
        ]
        if odd:
            raise ConfigError(
                "surgery needs plain multi-head attention, but this timm tower's has "
                f"{', '.join(odd)}; {INSTEAD}"
            )
    if trunk.attn_pool is not None:
        _expect("pooling head", trunk.attn_pool, "AttentionPoolLatent")
        if trunk.attn_pool.pos_embed is not None or trunk.attn_pool.latent_len != 1:
            raise ConfigError(
                "surgery needs a pooling head with one query and no positions, but this timm "
                f"tower's has others; {INSTEAD}"
            )
    elif trunk.global_pool != "token":
        raise ConfigError(
            "surgery needs a CLS token or SigLIP's pooling head, but this timm tower pools its "
            f"tokens by {trunk.global_pool!r}; {INSTEAD}"
        )


def _expect(part: str, module: Any, name: str) -> None:
    if type(module).__name__ != name:
        raise ConfigError(
            f"of timm's image towers surgery works on those whose {part} is a {name}, but this "
            f"one's is a {type(module).__name__}; {INSTEAD}"
        )


def blocks_of(visual: Any) -> list[Any]:
    """The trunk's blocks, callable, with the parts that surgery reads under open_clip's names."""
    return [_Block(block) for block in visual.trunk.blocks]


class _Block:
    def __init__(self, block: Any) -> None:
        self._block = block
        self.ln_1, self.ls_1 = block.norm1, block.ls1
        self.ln_2, self.ls_2, self.mlp = block.norm2, block.ls2, block.mlp
        self.attn = SimpleNamespace(
            in_proj_weight=block.attn.qkv.weight,
            in_proj_bias=block.attn.qkv.bias,
            out_proj=block.attn.proj,
            num_heads=block.attn.num_heads,
        )

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._block(x)
        return out


def project(
    visual: Any,
    x: Float[Tensor, "batch tokens width"],
    new: Float[Tensor, "batch tokens width"],
) -> Float[Tensor, "batch projected channels"]:
    """Both paths' tokens after the last block to the tower's output: the image's own feature by the
    original path, then the new path's patches."""
    trunk = visual.trunk
    image = visual.head(trunk.forward_head(trunk.norm(x)))
    patches = trunk.norm(new[:, trunk.num_prefix_tokens :])
    if trunk.attn_pool is not None:
        alone = patches.flatten(0, 1)[:, None]
        patches = trunk.attn_pool(alone).unflatten(0, patches.shape[:2])
    patches = visual.head(trunk.head(trunk.fc_norm(patches)))
    return torch.cat([image[:, None], patches], dim=1)
