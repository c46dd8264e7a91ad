"""SAM: one encoder pass an image, the prompts of all labels decoded together."""

from clip2sam.sam.model import PromptSAM

__all__ = ["PromptSAM"]
