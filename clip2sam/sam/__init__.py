"""SAM: one encoder pass a picture, all labels' point prompts decoded together."""

from clip2sam.sam.model import PointSAM

__all__ = ["PointSAM"]
