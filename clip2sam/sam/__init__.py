"""Cutters: one encoder pass an image, the prompts of all labels decoded together."""

from clip2sam.sam.cutter import Cutter
from clip2sam.sam.model import PromptSAM

__all__ = ["Cutter", "PromptSAM"]
