"""Budgets, transfers, and the hash that names weights."""

import numpy as np
import pytest
import torch

from clip2sam.kernels.device import budget, on_host, to_device
from clip2sam.kernels.tensors import state_sha256


def test_a_device_without_a_budget_of_its_own_takes_that_of_cuda():
    table = {"cpu": 1, "cuda": 32}
    devices = ("cpu", "cuda", "cuda:1", "mps")
    assert [budget(table, torch.device(name)) for name in devices] == [1, 32, 32, 32]


def test_an_array_on_the_host_is_a_tensor_there():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    tensor = to_device(array, torch.device("cpu"))
    assert tensor.dtype == torch.uint8
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert on_host(tensor)
    assert not on_host(torch.empty(1, device="meta"))


def test_the_hash_of_weights_is_this_one():
    """Literally: it is in files that later versions read."""
    state = {"b": torch.tensor([[1.0, -2.0]]), "a": torch.tensor([3], dtype=torch.bfloat16)}
    expected = "638561bdcde84398c10a10f5ab380830d0fa2cb03d780629374c2d987a7945e9"
    assert state_sha256(state) == expected
    assert state_sha256(dict(reversed(state.items()))) == expected, "the order doesn't matter"
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
    assert state_sha256(parameters) == expected
    assert state_sha256({**state, "b": torch.tensor([[1.0, 5, -2.0, 5]])[:, ::2]}) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"weigh": torch.zeros(2, 3)},
        {"weight": torch.zeros(3, 2)},
        {"weight": torch.zeros(2, 3, dtype=torch.int32)},
        {"weight": torch.tensor([[0.0, 0, 0], [0, 0, -0.0]])},
        {"weight": torch.zeros(2, 3), "bias": torch.zeros(0)},
    ],
    ids=["name", "shape", "dtype", "sign of a zero", "empty tensor"],
)
def test_other_weights_have_another_hash(other):
    assert state_sha256(other) != state_sha256({"weight": torch.zeros(2, 3)})
