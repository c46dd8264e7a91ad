"""Which images are for training and which for validation."""

import hashlib
import os

from clip2sam.errors import ConfigError

SPLITS = ("train", "val")


def check_share(val_share: float) -> None:
    """Refuse a share of images for validation that is none.

    Raises:
        ConfigError: it is not 0 or more and below 1.
    """
    if not 0 <= val_share < 1:
        raise ConfigError(f"val_share must be 0 or more and below 1, but got {val_share}; give 0.1")


def split_of(name: str, val_share: float) -> str:
    """Whether an image is in "train" or "val". It depends on its name alone, so images that come
    later don't change it. With a larger share, those in val stay there."""
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return "val" if int.from_bytes(digest[:6]) < val_share * 2**48 else "train"
