"""Convolutions and linear layers with a GELU behind them give what the two give in turn."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clip2sam.kernels.convolution import convolution
from clip2sam.kernels.linear import linear

TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2**-7, "atol": 2**-6},
}


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 16, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_a_convolution(layer, dtype, gelu):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 9, 7).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        plain = layer.float()(x.to(dtype).float())
        expected = F.gelu(plain) if gelu else plain
        ours = convolution(layer.to(dtype), x.to(dtype), gelu=gelu)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_linear_layer_with_gelu(dtype):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40), torch.randn(30, 24)
    with torch.no_grad():
        expected = F.gelu(layer(x.to(dtype).float()))
        ours = linear(layer.to(dtype), x.to(dtype), gelu=True)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), expected, **TOLERANCE[dtype])


def test_gradients_go_through():
    """The fused operators have none, so they aren't used where one is wanted."""
    conv, dense = nn.Conv2d(3, 4, 1), nn.Linear(3, 4)
    convolution(conv, torch.randn(1, 3, 5, 5), gelu=True).sum().backward()
    linear(dense, torch.randn(5, 3), gelu=True).sum().backward()
    assert conv.weight.grad.abs().sum() > 0
    assert dense.weight.grad.abs().sum() > 0
