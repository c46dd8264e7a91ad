"""MobileSAM's image encoder: a TinyViT in the place of SAM's ViT, with the same output.

The layers are timm's. What differs from timm's TinyViT: the last stage keeps the resolution, and
SAM's neck follows. `fold` turns the published weights into the form that is computed here, once:
batch norms become a part of the convolutions before them, and a layer's biases of attention, one
for each offset of two tokens, become a table of all pairs.

Source: Zhang et al., 2023, https://arxiv.org/abs/2306.14289;
https://github.com/ChaoningZhang/MobileSAM, `modeling/tiny_vit_sam.py`; Wu et al., 2022,
https://arxiv.org/abs/2207.10666.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import ConvLayer, ConvNorm, PatchEmbed, PatchMerging, TinyVitStage
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clip2sam.kernels.convolution import convolution
from clip2sam.kernels.linear import linear
from clip2sam.sam.encoder import WindowIndices, window_indices

UNUSED = ("norm_head.", "head.")
"""What the published checkpoint has of the classifier that the encoder began as."""

RENAMED = (
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"^layers\.0\.downsample\.", "stages.1.downsample."),
    (r"^layers\.1\.downsample\.", "stages.2.downsample."),
    (r"^layers\.2\.downsample\.", "stages.3.downsample."),
    (r"^layers\.", "stages."),
    (r"(conv\d?)\.c\.", r"\1.conv."),
)
"""Patterns of the published names, and what they are called here: in timm, going down in resolution
begins a stage; in the published code it ends the one before."""


class TinyViT(nn.Module):
    """The encoder, untrained, in evaluation mode. It computes after `fold`.

    Args:
        img_size: side in pixels of the square that it takes, a multiple of 16.
        widths, depths, heads, windows: of the four stages; the first one has convolutions only.
        channels: of the output.
    """

    def __init__(
        self,
        img_size: int = 1024,
        *,
        widths: tuple[int, ...] = (64, 128, 160, 320),
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (2, 4, 5, 10),
        windows: tuple[int, ...] = (7, 7, 14, 7),
        channels: int = 256,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        # `fold` puts other layers into timm's, so these are of any class.
        self.patch_embed: Any = PatchEmbed(3, widths[0], nn.GELU)
        stages: list[Any] = [ConvLayer(widths[0], depths[0], nn.GELU)]
        for i in range(1, len(widths)):
            stages.append(
                TinyVitStage(
                    dim=widths[i - 1],
                    out_dim=widths[i],
                    depth=depths[i],
                    num_heads=heads[i],
                    window_size=windows[i],
                    downsample=PatchMerging,
                )
            )
        stages[-1].downsample.conv2.conv.stride = (1, 1)
        self.stages: Any = nn.ModuleList(stages)
        self.neck: Any = nn.Sequential(
            nn.Conv2d(widths[-1], channels, 1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            LayerNorm2d(channels),
        )
        self.eval()

    @torch.no_grad()
    def forward(
        self, pixels: Float[Tensor, "batch 3 side side"]
    ) -> Float[Tensor, "batch channels rows cols"]:
        """What the published encoder returns, up to rounding: normalised and padded images in the
        encoder's dtype, to embeddings of a 16th of the side."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        x = convolution(self.patch_embed.conv1, x, gelu=True)
        x = convolution(self.patch_embed.conv2, x)
        for block in self.stages[0].blocks:
            x = _convolutions(block, x)
        for stage in self.stages[1:]:
            x = _stage(stage, x)
        for reduce, norm in (self.neck[:2], self.neck[2:]):
            x = _norm(norm, convolution(reduce, x))
        return x


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published encoder ("layers.0.blocks.0.conv1.c.weight") under the names that
    they have in `TinyViT`, without the classifier's."""
    renamed = {}
    for published, tensor in state.items():
        if published.startswith(UNUSED):
            continue
        name = published
        for pattern, own in RENAMED:
            name = re.sub(pattern, own, name)
        renamed[name] = tensor
    return renamed


@torch.no_grad()
def fold(encoder: TinyViT) -> TinyViT:
    """Bring a filled encoder into the form that is computed, in place. Exact up to rounding, which
    is fp32's: a lower precision comes afterwards."""
    _fold_norms(encoder)
    for stage in encoder.stages[1:]:
        for block in stage.blocks:
            _fold_attention(block.attn, block.window_size)
    return encoder.to(memory_format=torch.channels_last)


def _fold_norms(module: nn.Module) -> None:
    """Put one convolution in the place of each with a batch norm behind it."""
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            setattr(module, name, fuse_conv_bn_eval(child.conv, child.bn))
        else:
            _fold_norms(child)


def _fold_attention(attn: Any, side: int) -> None:
    """Make the table of biases, (heads, tokens, tokens) of a window, and order the qkv layer as in
    SAM: all queries, then all keys, then all values. Published, each head has its three together.
    """
    place = torch.arange(side)
    apart = (place[:, None] - place).abs()
    # Offsets are numbered row by row, whatever their sign.
    offsets = (apart[:, None, :, None] * side + apart[:, None, :]).reshape(side**2, side**2)
    biases = attn.attention_biases[:, offsets].contiguous()
    del attn.attention_biases, attn.attention_bias_idxs
    attn.register_buffer("bias_table", biases)
    for tensor in (attn.qkv.weight, attn.qkv.bias):
        heads = tensor.view(attn.num_heads, 3, attn.key_dim, -1)
        tensor.copy_(heads.transpose(0, 1).reshape(tensor.shape))


def _convolutions(
    block: Any, x: Float[Tensor, "batch channels rows cols"]
) -> Float[Tensor, "batch channels rows cols"]:
    """An inverted bottleneck of the first stage."""
    hidden = convolution(block.conv1, x, gelu=True)
    hidden = convolution(block.conv2, hidden, gelu=True)
    return F.gelu(convolution(block.conv3, hidden).add_(x))


def _stage(
    stage: Any, x: Float[Tensor, "batch channels rows cols"]
) -> Float[Tensor, "batch out_channels out_rows out_cols"]:
    """Down in resolution, then blocks of attention, on channels that are last."""
    down = stage.downsample
    x = convolution(down.conv1, x, gelu=True)
    x = convolution(down.conv2, x, gelu=True)
    x = convolution(down.conv3, x).permute(0, 2, 3, 1)
    first = stage.blocks[0]  # all blocks of a stage have the same windows
    indices = window_indices(x, first.attn.num_heads, first.window_size, first.window_size)
    for block in stage.blocks:
        x = x + _attention(block.attn, x, indices)
        x = convolution(block.local_conv, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + _mlp(block.mlp, x)
    return x.permute(0, 3, 1, 2)


def _attention(
    attn: Any, x: Float[Tensor, "batch rows cols width"], indices: WindowIndices
) -> Float[Tensor, "batch rows cols width"]:
    """A block's attention within windows. Padding is attended to, as published: it isn't masked."""
    # As in SAM's encoder, one zero token stands for the whole padding; here it is normalised too.
    tokens = attn.norm(F.pad(x.flatten(0, 2), (0, 0, 0, 1)))
    rows = linear(attn.qkv, tokens).view(-1, attn.key_dim)
    gathered = (
        rows[part * attn.num_heads :].index_select(0, indices.partition.flatten())
        for part in range(3)
    )
    shape = (*indices.partition.shape[:2], -1, attn.key_dim)  # windows, heads, tokens, dim
    q, k, v = (part.view(shape) for part in gathered)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn.bias_table[None])
    merged = out.reshape(-1, attn.key_dim).index_select(0, indices.unpartition)
    return linear(attn.proj, merged.view(-1, attn.out_dim)).view(x.shape)


def _mlp(
    mlp: Any, x: Float[Tensor, "batch rows cols width"]
) -> Float[Tensor, "batch rows cols width"]:
    """A block's MLP. Windows play no part in it."""
    tokens = mlp.norm(x.flatten(0, 2))
    return linear(mlp.fc2, linear(mlp.fc1, tokens, gelu=True)).view(x.shape)


def _norm(
    norm: LayerNorm2d, x: Float[Tensor, "batch channels rows cols"]
) -> Float[Tensor, "batch channels rows cols"]:
    """SAM's norm over the channels, in one pass on channels that are last."""
    last = x.permute(0, 2, 3, 1)
    normed = F.layer_norm(last, last.shape[-1:], norm.weight, norm.bias, norm.eps)
    return normed.permute(0, 3, 1, 2)
