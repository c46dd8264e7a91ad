"""CLIP with surgery: images and labels in, dense token features and text features out.

Nothing is imported here before it is needed: `clip2sam.clip.methods` works without PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip2sam.clip.methods import (
        CLEARCLIP,
        CLIP_SURGERY,
        GEM,
        MASKCLIP,
        METHODS,
        NACLIP,
        RAW_CLIP,
        SCLIP,
        Method,
        as_method,
    )
    from clip2sam.clip.model import SurgeryCLIP
    from clip2sam.clip.surgery import dense_features
    from clip2sam.clip.text import TEMPLATES, encode_prompts

__all__ = [
    "CLEARCLIP",
    "CLIP_SURGERY",
    "GEM",
    "MASKCLIP",
    "METHODS",
    "NACLIP",
    "RAW_CLIP",
    "SCLIP",
    "TEMPLATES",
    "Method",
    "SurgeryCLIP",
    "as_method",
    "dense_features",
    "encode_prompts",
]

_FILES = {
    "SurgeryCLIP": "model",
    "dense_features": "surgery",
    "TEMPLATES": "text",
    "encode_prompts": "text",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'clip2sam.clip' has no attribute {name!r}")
    return getattr(import_module(f"clip2sam.clip.{_FILES.get(name, 'methods')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
