"""clip2sam: typed labels in, masks out.

import clip2sam

segmenter = clip2sam.load("vit-h")
result = segmenter("street.jpg", ["person", "traffic light"])
result.masks, result.scores, result.labels, result.absent
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip2sam.analysis.explain import explain, explain_caption, labels_at
    from clip2sam.analysis.tune import tune
    from clip2sam.config import Config, published
    from clip2sam.data.images import Image, load_image
    from clip2sam.data.labels import LabelClass, LabelSet, as_label_set
    from clip2sam.data.records import Annotation
    from clip2sam.errors import (
        Clip2SamError,
        CocoError,
        ConfigError,
        ImageError,
        LabelError,
        RunError,
        WeightsError,
    )
    from clip2sam.labelling.decide import Decision
    from clip2sam.labelling.export import export
    from clip2sam.labelling.run import label, label_iter
    from clip2sam.models.loading import load
    from clip2sam.pipeline import Segmenter
    from clip2sam.result import Absent, Result

__version__ = "0.1.0"

_ROOMS = {
    "config": ("Config", "published"),
    "errors": (
        "Clip2SamError",
        "CocoError",
        "ConfigError",
        "ImageError",
        "LabelError",
        "RunError",
        "WeightsError",
    ),
    "analysis.explain": ("explain", "explain_caption", "labels_at"),
    "data.images": ("Image", "load_image"),
    "labelling.decide": ("Decision",),
    "labelling.export": ("export",),
    "labelling.run": ("label", "label_iter"),
    "data.labels": ("LabelClass", "LabelSet", "as_label_set"),
    "models.loading": ("load",),
    "pipeline": ("Segmenter",),
    "result": ("Absent", "Result"),
    "analysis.tune": ("tune",),
    "data.records": ("Annotation",),
}

__all__ = [
    "Absent",
    "Annotation",
    "Clip2SamError",
    "CocoError",
    "Config",
    "ConfigError",
    "Decision",
    "Image",
    "ImageError",
    "LabelClass",
    "LabelError",
    "LabelSet",
    "Result",
    "RunError",
    "Segmenter",
    "WeightsError",
    "as_label_set",
    "explain",
    "explain_caption",
    "export",
    "label",
    "label_iter",
    "labels_at",
    "load",
    "load_image",
    "published",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Open a room when something in it is first asked for, so that `clip2sam --help` needn't load PyTorch."""
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"clip2sam.{room}"), name)
    raise AttributeError(f"module 'clip2sam' has no attribute {name!r}")
