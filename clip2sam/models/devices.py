"""Names of devices and precisions. No PyTorch here: a wrong name is told before its import."""

import re
import sys
from typing import Any

from clip2sam.errors import ConfigError, shown

ACCELERATORS = ("cuda", "mps", "xpu")
"""Types of devices beside the CPU: those of PyTorch that compute with dense tensors."""

PRECISIONS = ("fp32", "bf16", "fp16")


def check_device(device: Any) -> None:
    """Refuse what no machine has, and MPS where there is none. Whether this machine has the device,
    PyTorch says later.

    Raises:
        ConfigError: no such device.
    """
    names = "|".join(("cpu", *ACCELERATORS))
    if not isinstance(device, str) or not re.fullmatch(
        rf"auto|({names})(:([0-9]|[1-9][0-9]))?", device
    ):
        raise ConfigError(
            f"clip2sam does not run on {shown(device)}; use auto, cpu, cuda, cuda:N or mps"
        )
    if device.startswith("mps") and sys.platform != "darwin":
        raise ConfigError(
            f"device {device!r} was given, but MPS is a Mac's, and this is none; use auto or cpu"
        )


def check_precision(precision: Any) -> None:
    """Refuse the name of none.

    Raises:
        ConfigError: no such precision.
    """
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ConfigError(
            f"no precision is called {shown(precision)}; choose one of {', '.join(PRECISIONS)}"
        )
