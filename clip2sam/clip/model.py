"""The thin adapter around an open_clip model: the only place that knows its preprocessing and tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from clip2sam.clip.methods import CLIP_SURGERY, Method
from clip2sam.clip.surgery import dense_features, grid_side
from clip2sam.clip.text import TEMPLATES, Tokenizer, encode_prompts
from clip2sam.clip.text_cache import TextCache
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.errors import ConfigError
from clip2sam.kernels.device import to_device


class SurgeryCLIP:
    """An open_clip model with surgery on its inference; the model itself stays as it was.

    Args:
        model: an open_clip CLIP, in evaluation mode, on its device and in its dtype.
        tokenizer: what `open_clip.get_tokenizer` gave for it; by default OpenAI's, which most CLIPs use.
        resolution: side in pixels of the square that pictures are squashed to; by default the model's own.
        text_folder: where text features are kept from one run to the next; None to keep them in memory only.

    Raises:
        ConfigError: the resolution holds no patch.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None = None,
        *,
        resolution: int | None = None,
        text_folder: Path | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer or open_clip.SimpleTokenizer(
            context_length=getattr(model, "context_length", 77)
        )
        self.resolution = resolution or _native_resolution(model)
        if grid_side(model.visual, self.resolution) < 1:
            raise ConfigError(
                f"a CLIP input of {self.resolution} pixels holds no patch; use its own resolution or more"
            )
        settings = open_clip.model.get_model_preprocess_cfg(model)
        self._bicubic = settings.get("interpolation", "bicubic") == "bicubic"
        mean, std = (
            settings.get("mean", open_clip.OPENAI_DATASET_MEAN),
            settings.get("std", open_clip.OPENAI_DATASET_STD),
        )
        self._mean, self._std = (
            torch.tensor(x, device=self.device).view(3, 1, 1) for x in (mean, std)
        )
        self._cache: dict[tuple[str, tuple[str, ...]], Tensor] = {}
        self._kept = TextCache(text_folder, self.model, self.tokenizer) if text_folder else None

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def preprocess(self, images: Sequence[Image]) -> Float[Tensor, "batch 3 side side"]:
        """Squash pictures to a square (no crop: points must land where they belong) and normalise them."""
        squares = np.stack([image.resized(*self._input_size) for image in images])
        pixels = to_device(squares, self.device).permute(0, 3, 1, 2).float() / 255
        return (pixels - self._mean) / self._std

    def prepare(self, image: Image) -> None:
        """The host's part of `preprocess`, ahead."""
        image.resize_ahead(*self._input_size)

    @property
    def _input_size(self) -> tuple[int, int, PILImage.Resampling]:
        filter_ = PILImage.Resampling.BICUBIC if self._bicubic else PILImage.Resampling.BILINEAR
        return self.resolution, self.resolution, filter_

    def encode_image(
        self, pixels: Float[Tensor, "batch 3 height width"], method: Method = CLIP_SURGERY
    ) -> Float[Tensor, "batch tokens channels"]:
        """Unit token features in float32: CLS first, then the patches row by row."""
        return F.normalize(dense_features(self.model.visual, pixels, method).float(), dim=-1)

    def encode_labels(self, labels: LabelSet) -> Float[Tensor, "labels channels"]:
        """Unit text features in float32, a row a class: the normalised mean of its prompts' features."""
        templates = labels.templates or TEMPLATES
        self._fill_cache([p for c in labels.classes for p in c.prompts], templates)
        rows = [
            torch.stack([self._cache[p, templates] for p in c.prompts]).mean(dim=0)
            for c in labels.classes
        ]
        return F.normalize(torch.stack(rows), dim=-1)

    def encode_empty(self, templates: tuple[str, ...] | None = None) -> Float[Tensor, "1 channels"]:
        """The empty string's unit text feature: the redundant one when a label stands alone."""
        self._fill_cache([""], templates or TEMPLATES)
        return self._cache["", templates or TEMPLATES][None]

    def _fill_cache(self, prompts: Sequence[str], templates: tuple[str, ...]) -> None:
        for prompt in prompts:
            if (prompt, templates) not in self._cache:
                self._cache[prompt, templates] = self._text_feature(prompt, templates).to(
                    self.device
                )

    def _text_feature(self, prompt: str, templates: tuple[str, ...]) -> Float[Tensor, "channels"]:
        """From disk or computed; by itself, so that its last bit doesn't depend on what else is asked."""
        kept = self._kept.get(prompt, templates) if self._kept else None
        if kept is not None:
            return kept
        feature = encode_prompts(self.model, self.tokenizer, [prompt], templates)[0]
        if self._kept:
            self._kept.put(prompt, templates, feature)
        return feature


def _native_resolution(model: Any) -> int:
    size = model.visual.image_size
    return size if isinstance(size, int) else size[0]
