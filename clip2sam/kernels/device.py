"""Transfers between host and device without waiting, and every budget for batch sizes and memory.

Budgets change speed and memory only. Results don't depend on them beyond the last digits, which is
why the same budget always applies on the same kind of device.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

IMAGES_PER_BATCH = 4
"""Images that the image encoders take together in a run over a dataset; on a CPU it is one."""

PROMPTS_PER_BATCH = {"cpu": 1, "cuda": 32}
"""Prompts that SAM's mask decoder takes together.

One prompt's activations (40 MB) stay near a CPU's cache; a GPU needs many prompts to be busy.
"""

REGION_PROMPTS = {"cpu": 32, "cuda": 128}
"""Prompts of the grid of `clip2sam.regions` whose masks are there at once, three of 256 KB each."""

REGION_CROPS = {"cpu": 8, "cuda": 64}
"""Crops of regions that CLIP takes together."""

MASK_PIXELS_PER_BATCH = {"cpu": 2**20, "cuda": 32 * 2**20}
"""Float pixels of masks that are upscaled to the image's size together; at least one mask is."""

DENSE_SCORES = 2**22
"""Scores, labels times pixels, that a label map is made of together; at least one row of pixels
is."""

SCORES_BYTES = 8 * 2**20
"""Attention scores that a CPU computes together: they should stay in its cache."""

MASK_BYTES = {"cpu": SCORES_BYTES, "cuda": 512 * 2**20}
"""Additive attention mask of one call: a CPU turns it into the scores, in place; a GPU is idle with
a small one."""

TOKENS_PER_CHUNK = 1024
"""Tokens that go through an MLP of SAM's image encoder together on a CPU: the hidden activations
should stay in its cache."""

TEXT_PROMPTS_PER_BATCH = 128
"""Text prompts that CLIP's text transformer takes together.

Their common prefix is computed once a batch, so one label's 85 templates should fit into one.
"""


def budget(table: Mapping[str, int], device: torch.device) -> int:
    """The entry for the device's type; types without one, such as "mps", use that of "cuda"."""
    return table.get(device.type, table["cuda"])


def to_device(array: UInt8[np.ndarray, "..."], device: torch.device) -> UInt8[Tensor, "..."]:
    """An array as a tensor on the device.

    For CUDA it is copied to pinned memory first: only from there is a transfer asynchronous.
    """
    tensor = torch.from_numpy(array)
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


def on_host(tensor: Tensor) -> bool:
    """Whether the tensor is in host memory, where reading a value doesn't wait for a device.

    Code that depends on values (`any`, `nonzero`, `int(...)`) checks this first.
    """
    return tensor.device.type == "cpu"
