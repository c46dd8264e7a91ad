"""clip2sam: typed labels in, masks out.

import clip2sam

segmenter = clip2sam.load("vit-h")
result = segmenter("street.jpg", ["person", "traffic light"])
result.masks, result.scores, result.labels, result.absent
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip2sam.analysis.evaluate import evaluate
    from clip2sam.analysis.explain import explain, explain_caption, labels_at
    from clip2sam.analysis.explorer import Explorer
    from clip2sam.analysis.tune import tune
    from clip2sam.clip.methods import Method
    from clip2sam.config import Config, published
    from clip2sam.data.captions import labels_of_caption
    from clip2sam.data.images import Image, load_image
    from clip2sam.data.labels import LabelClass, LabelSet, as_label_set
    from clip2sam.data.records import Annotation, ImageRecord
    from clip2sam.errors import (
        Clip2SamError,
        CocoError,
        ConfigError,
        ImageError,
        LabelError,
        ModelError,
        OutOfTimeError,
        OutputError,
        RunError,
        RunLockedError,
        TooManyFailuresError,
        UnavailableError,
        UnknownLabelWarning,
        WeightsError,
    )
    from clip2sam.labelling.decide import Decision
    from clip2sam.labelling.export import export_run
    from clip2sam.labelling.merge import merge_run
    from clip2sam.labelling.run import label_dataset, label_dataset_iter
    from clip2sam.models.loading import load
    from clip2sam.models.presets import Preset
    from clip2sam.pipeline import Segmenter
    from clip2sam.result import Absent, Result

__version__ = "0.1.0"

__all__ = [
    "Absent",
    "Annotation",
    "Clip2SamError",
    "CocoError",
    "Config",
    "ConfigError",
    "Decision",
    "Explorer",
    "Image",
    "ImageError",
    "ImageRecord",
    "LabelClass",
    "LabelError",
    "LabelSet",
    "Method",
    "ModelError",
    "OutOfTimeError",
    "OutputError",
    "Preset",
    "Result",
    "RunError",
    "RunLockedError",
    "Segmenter",
    "TooManyFailuresError",
    "UnavailableError",
    "UnknownLabelWarning",
    "WeightsError",
    "as_label_set",
    "evaluate",
    "explain",
    "explain_caption",
    "export_run",
    "label_dataset",
    "label_dataset_iter",
    "labels_at",
    "labels_of_caption",
    "load",
    "load_image",
    "merge_run",
    "published",
    "tune",
]

_MODULES = {
    "Absent": "result",
    "Annotation": "data.records",
    "Config": "config",
    "Decision": "labelling.decide",
    "Explorer": "analysis.explorer",
    "Image": "data.images",
    "ImageRecord": "data.records",
    "LabelClass": "data.labels",
    "LabelSet": "data.labels",
    "Method": "clip.methods",
    "Preset": "models.presets",
    "Result": "result",
    "Segmenter": "pipeline",
    "as_label_set": "data.labels",
    "evaluate": "analysis.evaluate",
    "explain": "analysis.explain",
    "explain_caption": "analysis.explain",
    "export_run": "labelling.export",
    "label_dataset": "labelling.run",
    "label_dataset_iter": "labelling.run",
    "labels_at": "analysis.explain",
    "labels_of_caption": "data.captions",
    "load": "models.loading",
    "load_image": "data.images",
    "merge_run": "labelling.merge",
    "published": "config",
    "tune": "analysis.tune",
}
"""Where each name is defined; the others are errors."""


if not TYPE_CHECKING:  # with it, type checkers would accept every name

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used: `clip2sam --help` needs no PyTorch."""
        if name not in __all__:
            raise AttributeError(f"module 'clip2sam' has no attribute {name!r}")
        return getattr(import_module(f"clip2sam.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
