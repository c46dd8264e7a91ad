"""Linear layers in bf16 on a CPU whose weights stay packed in oneDNN's blocked layout.

A plain `nn.Linear` packs its weight again at every call. The operators used here are PyTorch's own:
`torch.compile` lowers linear layers to them on a CPU. Without them (another build of PyTorch, a CPU
without bf16 instructions) the layer itself is called.

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
    layer: nn.Linear, x: Float[Tensor, "tokens in_features"]
) -> Float[Tensor, "tokens out_features"]:
    """`layer(x)`, up to rounding.

    The packed weight lives as long as the layer, beside the plain one: memory for speed.
    """
    if (
        x.dtype != torch.bfloat16
        or not on_host(x)
        or torch.compiler.is_compiling()  # the look-up below would break the graph
        or not packing_is_supported()
    ):
        return layer(x)
    if layer.weight.is_inference():  # has no version counter: an in-place change would be missed
        return layer(x)
    packed = packed_weights.get(layer)
    if packed is None or not packed.is_current(layer.weight):
        # oneDNN picks the layout that suits this number of tokens; it serves any number.
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), len(x))
        packed_weights[layer] = packed = Packed(
            weight, layer.weight.detach(), layer.weight._version
        )
    return torch.ops.mkldnn._linear_pointwise(x, packed.weight, layer.bias, "none", [], "")


@cache
def packing_is_supported() -> bool:
    """Whether this build of PyTorch has the operators, and this CPU the instructions."""
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    operators = all(hasattr(torch.ops.mkldnn, name) for name in names)
    return operators and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
