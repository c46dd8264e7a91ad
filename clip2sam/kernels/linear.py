"""Linear layers in bf16 on a CPU, with their weights kept in the order that oneDNN multiplies in.

A plain layer has its weight put in that order anew at every call. The operators are torch's own, which its compiler
puts linear layers through on a CPU; where torch was built without them, or the CPU has no bf16, it is a plain call.

Source: https://github.com/pytorch/pytorch, `aten/src/ATen/native/mkldnn/Linear.cpp`.
"""

from functools import cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clip2sam.kernels.device import on_host


class Packed(NamedTuple):
    """A weight in oneDNN's order, and what it was made of. Held on to, that place in memory is nothing else's."""

    weight: Tensor
    plain: Tensor
    version: int

    def holds(self, weight: Tensor) -> bool:
        """Whether it is made of that weight as it is now."""
        return self.plain.data_ptr() == weight.data_ptr() and self.version == weight._version


_packed: WeakKeyDictionary[nn.Module, Packed] = WeakKeyDictionary()


def linear(
    layer: nn.Linear, x: Float[Tensor, "tokens in_features"]
) -> Float[Tensor, "tokens out_features"]:
    """What the layer returns, to rounding. The packed weight lives as long as the layer, beside the plain one."""
    if (
        x.dtype != torch.bfloat16
        or not on_host(x)
        or torch.compiler.is_compiling()
        or not _has_operators()
    ):
        return layer(x)
    if layer.weight.is_inference():  # it counts no versions, so that a change to it would go unseen
        return layer(x)
    packed = _packed.get(layer)
    if packed is None or not packed.holds(layer.weight):
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), len(x))
        _packed[layer] = packed = Packed(weight, layer.weight.detach(), layer.weight._version)
    return torch.ops.mkldnn._linear_pointwise(x, packed.weight, layer.bias, "none", [], "")


@cache
def _has_operators() -> bool:
    """Whether this torch has the operators, and this CPU the instructions."""
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    operators = all(hasattr(torch.ops.mkldnn, name) for name in names)
    return operators and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
