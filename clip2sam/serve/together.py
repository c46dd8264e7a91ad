"""Requests that come together are encoded together. What comes out for one doesn't depend on the
others, not in the last digit: the encoders take groups of a fixed size (on a CPU of one), see
`clip2sam.labelling.engine`, and everything behind them is computed request by request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from clip2sam.data.labels import LabelSet
from clip2sam.errors import Clip2SamError, ModelError
from clip2sam.features import Features, PreparedImage
from clip2sam.kernels.device import IMAGES_PER_BATCH
from clip2sam.labelling.engine import predict_within_memory, retried
from clip2sam.labelling.failures import is_refusal, reason_of
from clip2sam.locate import ClipLocator
from clip2sam.pipeline import Segmenter
from clip2sam.result import Result
from clip2sam.types import Prediction, Prompts, SimilarityMaps


@dataclass(frozen=True)
class Asked:
    """One request, as the model takes it."""

    image: PreparedImage
    labels: LabelSet
    segmenter: Segmenter
    """The models, with the settings of this request. Method and resolution are those of all."""
    file_name: str
    """For the result's record."""


class Together:
    """Segments requests, those that wait at the same time as a batch.

    Args:
        segmenter: the models.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self.group = 1 if segmenter.device.type == "cpu" else IMAGES_PER_BATCH
        """Images that the encoders take at once; halved when memory runs out."""

    def __call__(self, batch: Sequence[Asked]) -> list[Result | Clip2SamError]:
        """A result for each request, or why there is none. Where the batch fails as a whole, each
        is tried alone."""
        try:
            return list(predict_within_memory(self, batch, self._segment))
        except Exception as error:
            if len(batch) == 1:
                return [told(error)]
        return [outcome for asked in batch for outcome in self([asked])]

    def _segment(self, batch: Sequence[Asked]) -> list[Result | Clip2SamError]:
        whole = [asked for asked in batch if asked.segmenter.config.tile == "off"]
        made = dict(zip(map(id, whole), self._whole(whole), strict=True)) if whole else {}
        return [made[id(asked)] if id(asked) in made else self._tiled(asked) for asked in batch]

    def _tiled(self, asked: Asked) -> Result | Clip2SamError:
        """A large image's windows are a batch of their own."""
        features = asked.segmenter.encode([asked.image], group=self.group)
        names = (asked.file_name,)
        return _one(lambda: asked.segmenter.segment(features, asked.labels, names=names)[0])

    @torch.no_grad()
    def _whole(self, batch: Sequence[Asked]) -> list[Result | Clip2SamError]:
        first = batch[0].segmenter
        features = first.encode([asked.image for asked in batch], group=self.group)
        if isinstance(first.locator, ClipLocator):
            features.tokens(first.config.method, first.config.resolution)  # of all images
        maps = [a.segmenter.locate(features.alone(i), a.labels) for i, a in enumerate(batch)]
        prompts = [a.segmenter.prompt(own) for a, own in zip(batch, maps, strict=True)]
        cut = [i for i, own in enumerate(prompts) if any(own.counts) and own.candidates is None]
        if cut:
            features.embeddings(cut)
        return [
            _one(partial(_result, asked, features.alone(i), maps[i], prompts[i]))
            for i, asked in enumerate(batch)
        ]


def _result(asked: Asked, alone: Features, maps: SimilarityMaps, prompts: Prompts) -> Result:
    segmenter = asked.segmenter
    masks = segmenter.choose(maps, prompts, segmenter.decode(alone, prompts))
    (result,) = segmenter.results(alone, Prediction(maps, prompts, masks), names=(asked.file_name,))
    return result


def _one(call: Callable[[], Result]) -> Result | Clip2SamError:
    """The result of one request; values that are not finite cost this one alone."""
    try:
        return retried(call)
    except ModelError as error:
        return told(error)


def told(error: Exception) -> Clip2SamError:
    """What is told of an error from the model's part: an error of its own, without the frames, and
    all that they hold, of this one."""
    if isinstance(error, Clip2SamError) and is_refusal(error):
        return type(error)(str(error))
    return ModelError(reason_of(error))
