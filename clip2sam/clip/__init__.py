"""CLIP with surgery: pictures and labels in, dense token features and text features out."""

from clip2sam.clip.methods import (
    CLEARCLIP,
    CLIP_SURGERY,
    MASKCLIP,
    METHODS,
    RAW_CLIP,
    Method,
    as_method,
)
from clip2sam.clip.model import SurgeryCLIP
from clip2sam.clip.surgery import dense_features
from clip2sam.clip.text import TEMPLATES, encode_prompts

__all__ = [
    "CLEARCLIP",
    "CLIP_SURGERY",
    "MASKCLIP",
    "METHODS",
    "RAW_CLIP",
    "TEMPLATES",
    "Method",
    "SurgeryCLIP",
    "as_method",
    "dense_features",
    "encode_prompts",
]
