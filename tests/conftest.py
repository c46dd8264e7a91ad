"""Every function of the package is checked against its shapes: jaxtyping's import hook with beartype."""

import sys

import pytest
import torch
from jaxtyping import install_import_hook

assert "clip2sam" not in sys.modules, "the hook must be in place before the package is imported"
install_import_hook("clip2sam", "beartype.beartype")

torch.set_num_threads(1)  # the models are small: threads cost more than they give


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
