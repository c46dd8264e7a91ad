"""Convolutions on a CPU with the GELU behind them in the same pass over memory.

A convolution with few channels at a high resolution takes no longer than a pass over its output, so
a GELU of its own doubles it. The operator used here is PyTorch's own: `torch.compile` lowers
convolutions to it on a CPU. Without it (another build of PyTorch, a CPU without bf16 instructions)
the layer itself is called.

Source: https://github.com/pytorch/pytorch, `aten/src/ATen/native/mkldnn/Conv.cpp`.
"""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clip2sam.kernels.device import on_host
from clip2sam.kernels.linear import bf16_is_supported


def convolution(
    layer: nn.Conv2d, x: Float[Tensor, "batch channels rows cols"], *, gelu: bool = False
) -> Float[Tensor, "batch out_channels out_rows out_cols"]:
    """`layer(x)`, up to rounding, and GELU of it if asked for. It is the fastest with the channels
    last in memory, for the input and the weight."""
    if not _can_fuse(layer, x):
        return F.gelu(layer(x)) if gelu else layer(x)
    return torch.ops.mkldnn._convolution_pointwise(
        x,
        layer.weight,
        layer.bias,
        layer.padding,
        layer.stride,
        layer.dilation,
        layer.groups,
        "gelu" if gelu else "none",
        [],
        "none" if gelu else "",
    )


def _can_fuse(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether the operator takes this layer and this input. It has no gradient, and knows padding
    with zeros only."""
    return (
        on_host(x)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # fuses by itself
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and fusing_is_supported(x.dtype)
    )


@cache
def fusing_is_supported(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch has the operator, and this CPU the instructions."""
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bf16_is_supported())
