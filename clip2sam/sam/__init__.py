"""Cutters: one encoder pass an image, the prompts of all labels decoded together."""

from clip2sam.sam.cutter import Cutter
from clip2sam.sam.model import PromptSAM
from clip2sam.sam.transformers_sam import CUTTERS

__all__ = ["CUTTERS", "Cutter", "PromptSAM"]
