"""Weights identified by their content, and checked."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict: names, dtypes, shapes and bytes, as 64 hexadecimal digits.

    The order of the entries and their device don't matter.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Viewed as bytes, because numpy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The name of the first floating tensor of a state dict that holds NaN or infinity in fp32.

    Speed: a sum is not finite if a term isn't, and reads each value once without a second tensor,
    so a mapped file stays mapped. Only where the sum overflows are the values looked at one by one.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point():
            values = tensor if tensor.dtype in _SUMMED else tensor.float()
            finite = values.sum(dtype=torch.float32).isfinite() or values.isfinite().all()
            if not finite:
                return name
    return None


_SUMMED = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that PyTorch sums in fp32 on every device."""
