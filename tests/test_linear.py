"""Packed weights: the same as plain ones, and never those of before."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clip2sam.kernels import linear as module
from clip2sam.kernels.linear import linear, packed_weights


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(96, 64).to(torch.bfloat16)


@pytest.fixture
def x():
    return torch.randn(50, 96, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


def assert_same(layer, x):
    with torch.no_grad():
        right = F.linear(
            x.float(), layer.weight.float(), None if layer.bias is None else layer.bias.float()
        )
        # bf16 keeps 8 digits of two: half of the last one is lost once, when the sum is rounded.
        assert torch.allclose(linear(layer, x).float(), right, rtol=2**-8, atol=2**-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 50, 51, 1024])
def test_it_is_the_layer(bias, tokens):
    layer = nn.Linear(96, 64, bias=bias).to(torch.bfloat16)
    for _ in range(2):
        assert_same(layer, torch.randn(tokens, 96).to(torch.bfloat16))


def test_other_dtypes_go_through_the_layer_itself(layer, x):
    plain = layer.float()
    with torch.no_grad():
        assert torch.equal(linear(plain, x.float()), plain(x.float()))
    assert plain not in packed_weights


def test_a_machine_without_the_operators_goes_through_the_layer_itself(layer, x, monkeypatch):
    monkeypatch.setattr(module, "packing_is_supported", lambda: False)
    with torch.no_grad():
        assert torch.equal(linear(layer, x), layer(x))
    assert layer not in packed_weights


def test_weights_of_inference_mode_go_through_the_layer_itself(x):
    with torch.inference_mode():
        layer = nn.Linear(96, 64).to(torch.bfloat16)
        assert torch.equal(linear(layer, x), layer(x))
    assert layer not in packed_weights


@torch.no_grad()
def test_changed_weights_are_packed_again(layer, x):
    assert_same(layer, x)
    layer.weight.mul_(2)
    assert_same(layer, x)
    layer.load_state_dict(nn.Linear(96, 64).state_dict())
    assert_same(layer, x)
    layer.weight.data = torch.randn(64, 96).to(torch.bfloat16)
    assert_same(layer, x)
    layer.weight = nn.Parameter(torch.randn(64, 96).to(torch.bfloat16))
    assert_same(layer, x)
    layer.float().load_state_dict(nn.Linear(96, 64).state_dict())
    assert_same(layer.to(torch.bfloat16), x)


@torch.no_grad()
def test_packed_weights_go_with_their_layer(x):
    layer = nn.Linear(96, 64).to(torch.bfloat16)
    linear(layer, x)
    assert (layer in packed_weights) == module.packing_is_supported()
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
