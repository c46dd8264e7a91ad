"""Linear layers on a CPU: in bf16 with weights that stay packed in oneDNN's blocked layout, and
with the GELU behind a layer in the same pass over memory.

A plain `nn.Linear` packs its weight again at every call. The operators used here are PyTorch's own:
`torch.compile` lowers linear layers to them on a CPU. Without them (another build of PyTorch, a CPU
without bf16 instructions) the layer itself is called.

Source: https://github.com/pytorch/pytorch, `aten/src/ATen/native/mkldnn/Linear.cpp`.
"""

from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clip2sam.kernels.device import on_host


class Packed(NamedTuple):
    """A packed weight and the plain weight that it was made from.

    The reference to the plain weight keeps its memory from being given to another tensor, so an
    equal `data_ptr` means the same weight.
    """

    weight: Tensor
    plain: Tensor
    version: int

    def is_current(self, weight: Tensor) -> bool:
        """Whether it was made from this weight, and the weight hasn't been changed in place."""
        return self.plain.data_ptr() == weight.data_ptr() and self.version == weight._version


packed_weights: WeakKeyDictionary[nn.Module, Packed] = WeakKeyDictionary()
"""The packed weight of each layer. Keys are weak: it is freed together with its layer."""


def linear(
    layer: nn.Linear, x: Float[Tensor, "tokens in_features"], *, gelu: bool = False
) -> Float[Tensor, "tokens out_features"]:
    """`layer(x)`, up to rounding, and GELU of it if asked for.

    The packed weight lives as long as the layer, beside the plain one: memory for speed.
    """
    weight = _weight(layer, x, gelu)
    if weight is None:
        return F.gelu(layer(x)) if gelu else layer(x)
    after: Any = ("gelu", [], "none") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, *after)


def _weight(layer: nn.Linear, x: Tensor, gelu: bool) -> Tensor | None:
    """The layer's weight as oneDNN's operator takes it here; None: the layer itself is called."""
    # The look-up below would break the graph, and a weight in inference mode has no version
    # counter: an in-place change would be missed.
    if not on_host(x) or torch.compiler.is_compiling() or layer.weight.is_inference():
        return None
    if x.dtype == torch.float32:  # PyTorch's own product is as fast, so it is for the GELU alone
        fuse = gelu and not torch.is_grad_enabled() and has_operators()
        return layer.weight if fuse else None
    if x.dtype != torch.bfloat16 or not packing_is_supported():
        return None
    packed = packed_weights.get(layer)
    if packed is None or not packed.is_current(layer.weight):
        # oneDNN picks the layout that suits this number of tokens; it serves any number.
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), len(x))
        packed_weights[layer] = packed = Packed(
            weight, layer.weight.detach(), layer.weight._version
        )
    return packed.weight


@cache
def packing_is_supported() -> bool:
    """Whether this build of PyTorch has the operators, and this CPU the instructions."""
    return has_operators() and bf16_is_supported()


@cache
def has_operators() -> bool:
    """Whether this build of PyTorch has oneDNN's linear layers."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(torch.ops.mkldnn, name) for name in names)


@cache
def bf16_is_supported() -> bool:
    """Whether oneDNN is there, and this CPU has bf16 instructions."""
    known = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
