"""Between the host and the device, without waiting."""

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor


def to_device(array: UInt8[np.ndarray, "..."], device: torch.device) -> UInt8[Tensor, "..."]:
    """An array as a tensor on the device. To CUDA it goes through pinned memory while the host goes on."""
    tensor = torch.from_numpy(array)
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


def on_host(tensor: Tensor) -> bool:
    """Whether the host may ask for a value without waiting for a device. Work that depends on values asks first."""
    return tensor.device.type == "cpu"
