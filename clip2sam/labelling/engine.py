"""The model's part of a run: images in, presence scores and masks out, in batches that shrink when
memory runs out.

What comes out for an image doesn't depend on the images that come with it. On a CPU each is encoded
alone. On another device the encoders take images in groups of one fixed size, the last one filled
up with repeats, so that the same kernels run whatever the batch. The last digits can still differ:
on another kind of device or version of PyTorch, with another number of PyTorch's own threads (a run
keeps the number that it began with), and, on a device that is no CPU, after memory ran out, because
the groups become smaller.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch

from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.data.presence import is_present
from clip2sam.data.records import Annotation
from clip2sam.features import Features
from clip2sam.kernels.device import IMAGES_PER_BATCH
from clip2sam.kernels.tensors import state_sha256
from clip2sam.labelling.fingerprint import plain
from clip2sam.labelling.readers import Prepared
from clip2sam.locate import ClipLocator
from clip2sam.pipeline import PreparedImage, Segmenter
from clip2sam.result import Found, as_result, finished
from clip2sam.types import Prediction, SimilarityMaps

T = TypeVar("T")

KeepAbove = float | Literal["auto"] | None

BELOW = 0.1
"""How far below its threshold a label's masks are made, as a part of it."""

Thresholds = tuple[float | None, ...]

Outcome = tuple[tuple[float | None, ...], tuple[bool, ...], tuple[Annotation, ...]]
"""What becomes of an image: presence, beaten and annotations, as in its `ImageRecord`."""


@runtime_checkable
class Engine(Protocol):
    """What a run needs of models. `SegmenterEngine` is the one in use; your own works too."""

    group: int
    """How many images are computed together at most; halved when memory runs out."""

    @property
    def thresholds(self) -> Thresholds:
        """For each class without the distractors: the presence score that it must reach to be
        present; None: no decision is taken."""

    @property
    def floors(self) -> Thresholds:
        """Likewise: the presence score down to which the engine makes masks, at most the threshold.
        None: it makes them all."""

    @property
    def min_share(self) -> float:
        """The share from which on an annotation is shown, see `Annotation.share`; 0: all are."""

    def fingerprint(self) -> dict[str, Any]:
        """All that the results depend on beside the labels, as JSON: settings, resolution, hashes
        of weights. A run is only continued with an equal one."""

    def prepare(self, image: Image) -> Prepared:
        """What can be done to an image ahead; called in the threads of the readers."""

    def predict(self, prepared: Sequence[Any]) -> Sequence[Any]:
        """The model's part, on the device: one prediction for each image. May raise that memory has
        run out."""

    def finish(self, image: Image, prediction: Any) -> Outcome:
        """The host's part for one image; called in another thread than `predict`."""


@runtime_checkable
class Grouped(Protocol):
    """What computes images in groups."""

    group: int
    """As in `Engine`."""


class SegmenterEngine:
    """A segmenter and a label set.

    Args:
        segmenter: the models and settings.
        labels: checked labels.
        keep_above: also make masks of labels below their threshold, down to this presence score.
            "auto": `BELOW` of each threshold, where labels are found on CLIP's maps of the whole
            image and none is joined. It changes nothing of the masks above it, not the last digit.
    """

    def __init__(
        self, segmenter: Segmenter, labels: LabelSet, keep_above: KeepAbove = None
    ) -> None:
        segmenter.look_at(labels)
        config, wanted = segmenter.config, len(labels.wanted)
        whole = isinstance(segmenter.locator, ClipLocator) and config.tile == "off"
        whole = whole and not labels.has_joined
        self.keep_above = None if keep_above == "auto" and not whole else keep_above
        self.config, self.labels, self.segmenter = config, labels, segmenter
        self.thresholds: Thresholds = labels.thresholds(config.presence_threshold)[:wanted]
        self.floors, self.min_share = self.thresholds, config.min_share
        if self.keep_above is not None:
            low, lowered = _lowered(segmenter, labels, self.keep_above)
            self.floors = low.thresholds(lowered.config.presence_threshold)[:wanted]
            if self.keep_above != "auto":
                self.labels, self.segmenter = low, lowered
        self.group = 1 if segmenter.device.type == "cpu" else IMAGES_PER_BATCH

    @property
    def device(self) -> str:
        """The kind of device."""
        return self.segmenter.device.type

    def fingerprint(self) -> dict[str, Any]:
        """Settings, resolution and weights. The weights are there as the SHA-256 of what is loaded,
        whatever file it came from; their dtype is a part of that, and is there by its name as well,
        before them: a refusal names it first."""
        locator, sam = self.segmenter.locator, self.segmenter.sam
        return {
            "config": plain(asdict(self.config)),
            "locator": locator.name,
            "precision": str(sam.dtype).removeprefix("torch."),
            "resolution": self.segmenter.view_side,
            "keep_above": self.keep_above,
            "weights": {**locator.weights(), "sam": state_sha256(sam.model.state_dict())},
        }

    def prepare(self, image: Image) -> PreparedImage:
        """Resize it for both models."""
        return self.segmenter.prepare(image)

    def predict(
        self, prepared: Sequence[PreparedImage]
    ) -> Sequence[tuple[Prediction, Prediction | None, int] | Found]:
        """The batch's prediction, and that of labels below their threshold, for each image with its
        place in it. With tiles what was found in each image: an image's views don't fit into one
        batch."""
        features = self.segmenter.encode(prepared, group=self.group)
        if self.config.tile != "off":
            return self.segmenter.find(features, self.labels)
        prediction = self.segmenter.predict(features, self.labels)
        below = None
        if self.keep_above == "auto":
            below = self._below(features, prediction.maps)
        return [(prediction, below, i) for i in range(len(prepared))]

    @torch.no_grad()
    def _below(self, features: Features, maps: SimilarityMaps) -> Prediction | None:
        """The prediction for labels between their floor and their threshold. Apart from the others:
        how many prompts are decoded together is seen in the last digits of scores."""
        wanted = len(self.floors)
        floors = maps.presence.new_tensor([torch.nan if f is None else f for f in self.floors])
        near = torch.zeros_like(maps.present)
        near[:, :wanted] = is_present(maps.presence[:, :wanted], maps.beaten[:, :wanted], floors)
        near &= ~maps.present
        if not near.any():
            return None
        maps, segmenter = replace(maps, present=near), self.segmenter
        prompts = segmenter.prompt(maps)
        masks = segmenter.choose(maps, prompts, segmenter.decode(features, prompts))
        return Prediction(maps, prompts, masks)

    @torch.no_grad()
    def finish(
        self, image: Image, prediction: tuple[Prediction, Prediction | None, int] | Found
    ) -> Outcome:
        """Presence scores and masks."""
        config, sam = self.segmenter.config, self.segmenter.sam
        if isinstance(prediction, Found):
            result = finished(image, prediction, config, thresholds=self.thresholds)
            return result.record.presence, result.record.beaten, result.everything
        found, below, i = prediction
        result = as_result(image, found, i, config, sam, thresholds=self.thresholds)
        masks = result.everything
        if below is not None:
            order = {name: n for n, name in enumerate(self.labels.names)}
            more = as_result(image, below, i, config, sam).everything
            masks = tuple(sorted((*masks, *more), key=lambda mask: order[mask.label]))
        return result.record.presence, result.record.beaten, masks


def engine_device(engine: Engine) -> str:
    """The kind of device that it computes on, such as "cpu"; "" if it doesn't say, by a `device`
    that a segmenter's engine has."""
    return str(getattr(engine, "device", ""))


def _lowered(
    segmenter: Segmenter, labels: LabelSet, floor: float | Literal["auto"]
) -> tuple[LabelSet, Segmenter]:
    """Labels and settings with every threshold above the floor lowered to it."""

    def lower(threshold: float | None) -> float | None:
        if threshold is None:
            return None
        if floor == "auto":  # a number that messages show in full
            return float(f"{threshold - BELOW * abs(threshold):.6g}")
        return min(threshold, floor)

    classes = tuple(
        replace(c, presence_threshold=lower(c.presence_threshold)) for c in labels.classes
    )
    general = lower(segmenter.config.presence_threshold)
    return replace(labels, classes=classes), segmenter.with_config(presence_threshold=general)


def predict_within_memory(
    engine: Grouped, items: Sequence[T], predict: Callable[[Sequence[T]], Sequence[Any]]
) -> Sequence[Any]:
    """Predict a batch; where memory runs out, halve it (and the engine's group), down to one item,
    which is tried twice. Raises what was raised for one item."""
    outcome = _attempt(lambda: predict(items))
    if not isinstance(outcome, OutOfMemory):
        return outcome
    release_memory()
    if len(items) == 1:
        return retried(lambda: predict(items))
    half = (len(items) + 1) // 2
    engine.group = max(min(engine.group, half), 1)
    return [
        prediction
        for part in (items[:half], items[half:])
        for prediction in predict_within_memory(engine, part, predict)
    ]


def retried(call: Callable[[], T]) -> T:
    """Call; if memory runs out, release what is cached and call again."""
    outcome = _attempt(call)
    if isinstance(outcome, OutOfMemory):
        release_memory()
        return call()
    return outcome


class OutOfMemory:
    """Stands for the error, which would keep the memory of every frame that it went through."""


def _attempt(call: Callable[[], T]) -> T | OutOfMemory:
    try:
        return call()
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
    return OutOfMemory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left."""
    # PyTorch's CPU allocator has no error of its own
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)


def release_memory() -> None:
    """Give back what is cached. To be called when the error is gone, with all that its frames
    held."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
