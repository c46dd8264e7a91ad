"""The model's part of a run: pictures in, masks as RLE out, in batches that shrink when the device is full.

What comes out for a picture does not depend on the pictures that come with it. On a CPU each is encoded alone. On
another device the encoders take pictures in groups of one fixed size, the last one filled up with repeats, so that
the same kernels run whatever the batch. What can still differ in the last digits: another kind of device or version of
PyTorch, another number of PyTorch's own threads (a run keeps to the one that it began with), and, on a device that is
no CPU, the pictures after one at which memory ran out, because the groups become smaller.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.data.records import FoundMask
from clip2sam.pipeline import Segmenter
from clip2sam.result import as_result
from clip2sam.sam.model import PICTURES_A_BATCH

T = TypeVar("T")


@runtime_checkable
class Engine(Protocol):
    """What the flow needs of a model; `SegmenterEngine` is the one in use."""

    group: int
    """How many pictures it computes together at most."""

    def prepare(self, image: Image) -> None:
        """What can be done to a picture ahead; called in the readers' threads."""

    def predict(self, images: Sequence[Image]) -> list[Any]:
        """The model's part, on the device. May raise that memory has run out."""

    def finish(
        self, image: Image, prediction: Any
    ) -> tuple[tuple[float | None, ...], tuple[FoundMask, ...]]:
        """Presence scores and masks of one picture, on the host; called in another thread than `predict`."""


class SegmenterEngine:
    """A segmenter and a label set.

    Args:
        segmenter: the models and settings.
        labels: checked labels.
        keep_above: also make masks of labels below their threshold, down to this presence score.
    """

    def __init__(
        self, segmenter: Segmenter, labels: LabelSet, keep_above: float | None = None
    ) -> None:
        self.labels = labels
        self.segmenter = segmenter
        if keep_above is not None:
            self.labels, self.segmenter = _lowered(segmenter, labels, keep_above)
        self.group = 1 if segmenter.clip.device.type == "cpu" else PICTURES_A_BATCH

    def prepare(self, image: Image) -> None:
        """Resize it for both models."""
        self.segmenter.prepare(image)

    def predict(self, images: Sequence[Image]) -> list[Any]:
        """A `Prediction` for each picture."""
        return self.segmenter.predict_batch(images, self.labels, group=self.group)

    @torch.no_grad()
    def finish(
        self, image: Image, prediction: Any
    ) -> tuple[tuple[float | None, ...], tuple[FoundMask, ...]]:
        """Presence scores and masks, to float32's precision."""
        result = as_result(
            image, self.labels, self.segmenter.config, self.segmenter.sam, prediction
        )
        masks = tuple(
            FoundMask(
                int(result.label_indices[i]),
                annotation.rle["counts"],
                shortest(annotation.score),
                tuple((shortest(x), shortest(y), int(kind)) for x, y, kind in result.points[i]),
            )
            for i, annotation in enumerate(result.annotations)
        )
        return tuple(shortest(p) if math.isfinite(p) else None for p in result.presence), masks


def shortest(value: Any) -> float:
    """The shortest decimal number that is this float32 and no other: 0.1, where float64 makes it 0.10000000149."""
    return float(str(np.float32(value)))


def predict_within_memory(engine: Engine, images: Sequence[Image]) -> list[Any]:
    """Predict a batch; where memory runs out, halve it, down to one picture, which is tried twice.

    Raises what was raised for one picture.
    """
    failure = _attempt(lambda: engine.predict(images))
    if not isinstance(failure, OutOfMemory):
        return failure
    release_memory()
    if len(images) == 1:
        return retried(lambda: engine.predict(images))
    half = (len(images) + 1) // 2
    engine.group = max(min(engine.group, half), 1)
    return predict_within_memory(engine, images[:half]) + predict_within_memory(
        engine, images[half:]
    )


def retried(call: Callable[[], T]) -> T:
    """Call; if memory runs out, give free what can be, and call again."""
    outcome = _attempt(call)
    if isinstance(outcome, OutOfMemory):
        release_memory()
        return call()
    return outcome


class OutOfMemory:
    """Stands for the error: the error itself would hold on to the memory of every frame that it went through."""


def _attempt(call: Callable[[], T]) -> T | OutOfMemory:
    try:
        return call()
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
    return OutOfMemory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left. PyTorch's CPU allocator has no error of its own."""
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)


def release_memory() -> None:
    """Give back what is cached. To be called when the error is gone, and with it what its frames held."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _lowered(segmenter: Segmenter, labels: LabelSet, floor: float) -> tuple[LabelSet, Segmenter]:
    """Labels and settings with every threshold above the floor lowered to it."""
    classes = tuple(
        c if c.threshold is None else replace(c, threshold=min(c.threshold, floor))
        for c in labels.classes
    )
    presence = segmenter.config.presence
    lowered = (
        segmenter if presence is None else segmenter.with_config(presence=min(presence, floor))
    )
    return replace(labels, classes=classes), lowered
