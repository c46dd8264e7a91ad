"""A model of transformers with its processor: images and texts in, tensors on its device out."""

import hashlib
import json
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from clip2sam.config import Config
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.errors import ConfigError
from clip2sam.kernels.device import TEXT_PROMPTS_PER_BATCH
from clip2sam.kernels.tensors import state_sha256

NOT_OF_THE_RESULT = (
    "_name_or_path",
    "transformers_version",
    "name_or_path",
    "padding",
    "truncation",
)
"""Settings that say where a model came from, or how the last texts were padded."""


T = TypeVar("T")


class Last(Generic[T]):
    """The last value that was made, and what it was made of: all images of a run have the same
    labels."""

    def __init__(self) -> None:
        self._made: tuple[Hashable, T] | None = None

    def of(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value that belongs to the key."""
        if self._made is None or self._made[0] != key:
            self._made = key, make()
        return self._made[1]


class Pair:
    """A model and its processor.

    Args:
        model: of transformers, on the segmenter's device.
        processor: its processor, with an `image_processor` and a `tokenizer`.
        commit: of the hub, if they are from there.
    """

    def __init__(self, model: Any, processor: Any, commit: str = "") -> None:
        self.model = model.eval()
        self.processor = processor
        self.images = processor.image_processor
        self.tokenizer = processor.tokenizer
        self._commit = commit
        self._tokens: Last[dict[str, Tensor]] = Last()
        self._encoded: Last[Tensor] = Last()

    @property
    def side(self) -> int:
        """Side in pixels of the image that the model sees; of its shorter side, if it keeps the
        image's proportions."""
        size = self.images.size
        return int(size.get("shortest_edge") or size["height"])

    def pixels(self, image: Image, **settings: Any) -> dict[str, Tensor]:
        """One image, prepared: at least `pixel_values`, (1, 3, height, width)."""
        # The layout is told: of an image that is three pixels high it could not be guessed.
        made = self.images(
            image.pixels, input_data_format="channels_last", return_tensors="pt", **settings
        )
        return {key: value.to(self.model.device) for key, value in made.items()}

    def tokens(self, texts: Sequence[str], context: int) -> dict[str, Tensor]:
        """Texts as `input_ids` and `attention_mask`, (texts, context).

        Warns:
            UserWarning: a text is longer than the context; its end is cut.
        """
        return self._tokens.of((*texts, context), lambda: self._tokenised(texts, context))

    def _tokenised(self, texts: Sequence[str], context: int) -> dict[str, Tensor]:
        for text, ids in zip(
            texts, self.tokenizer(list(texts), verbose=False)["input_ids"], strict=True
        ):
            if len(ids) > context:
                warn_of_long(text, len(ids), context)
        made = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=context,
            return_tensors="pt",
        )
        names = ("input_ids", "attention_mask")
        return {name: made[name].to(self.model.device) for name in names}

    def encoded(self, texts: Sequence[str], context: int, encode: Callable[..., Tensor]) -> Tensor:
        """What a text tower makes of texts, a few at a time."""

        def made() -> Tensor:
            tokens = self.tokens(texts, context)
            parts = zip(*(t.split(TEXT_PROMPTS_PER_BATCH) for t in tokens.values()), strict=True)
            return torch.cat([encode(**dict(zip(tokens, part, strict=True))) for part in parts])

        return self._encoded.of((*texts, context), made)

    def weights(self) -> dict[str, str]:
        """SHA-256 of the model's weights and of both ones' settings, and the commit."""
        settings = [
            self.model.config.to_dict(),
            self.images.to_dict(),
            json.loads(self.tokenizer.backend_tokenizer.to_str()),
        ]
        text = json.dumps(_plain(settings), sort_keys=True, default=str)
        known = {"commit": self._commit} if self._commit else {}
        return {
            "model": state_sha256(self.model.state_dict()),
            "settings": hashlib.sha256(text.encode()).hexdigest(),
            **known,
        }


def texts_of(labels: LabelSet) -> tuple[list[str], list[int]]:
    """The texts of all classes in order, and how many each class has: its text prompts as they are,
    or in each of the label set's own templates."""
    templates = labels.templates or ("{}",)
    own = [[t.replace("{}", p) for p in c.prompts for t in templates] for c in labels.classes]
    return [text for texts in own for text in texts], [len(texts) for texts in own]


def best_of_each(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """(classes, ...) from the scores of texts, (texts, ...): a class has the scores of its best
    text, place by place."""
    return torch.stack([own.amax(dim=0) for own in scores.split(list(counts))])


def check_own_side(name: str, config: Config, side: int) -> None:
    """For locators that see images at one size.

    Raises:
        ConfigError: another one is asked for.
    """
    if config.resolution is not None:
        raise ConfigError(
            f"{name} sees images at its own {side} pixels, so resolution must be left out, but "
            f"got {config.resolution}"
        )


def warn_of_long(text: str, length: int, context: int) -> None:
    """Tell that a text's end is not read."""
    warnings.warn(
        f"label {text!r} is {length} tokens long with start and end, but the model reads "
        f"{context}: its end is ignored; shorten it",
        stacklevel=4,
    )


def _plain(value: Any) -> Any:
    """A value without the settings that don't change results."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k not in NOT_OF_THE_RESULT}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
