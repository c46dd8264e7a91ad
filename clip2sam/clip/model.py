"""The thin adapter around an open_clip model: the only file that knows its preprocessing and
tokenizer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image as PILImage
from torch import Tensor

from clip2sam.clip.methods import CLIP_SURGERY, Method
from clip2sam.clip.surgery import dense_grid, grid_side
from clip2sam.clip.text import TEMPLATES, Tokenizer, encode_prompts
from clip2sam.clip.text_cache import TextCache
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelClass, LabelSet
from clip2sam.errors import ConfigError
from clip2sam.kernels.device import to_device

MAX_PATCHES = 256
"""A side, of CLIP's input. The work of attention grows with the fourth power of it."""

TEXTS_KEPT = 20_000
"""Text features in memory, 2 to 4 KB each: all of a run's, but not all that a server's users ever
type."""


class SurgeryCLIP:
    """An open_clip model with surgery on its inference; the model itself stays as it was.

    Args:
        model: an open_clip CLIP, in evaluation mode, on its device and in its dtype.
        tokenizer: what `open_clip.get_tokenizer` gave for it; by default OpenAI's, which most CLIPs
            use.
        resolution: side in pixels of the square that images are squashed to; by default the
            model's own.
        text_folder: where text features are kept from one run to the next; None to keep them in
            memory only.
        on_labels: called with the classes of each label set that is asked for; it may warn of
            labels that the model doesn't know.

    Raises:
        ConfigError: the resolution holds no patch, or too many.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None = None,
        *,
        resolution: int | None = None,
        text_folder: Path | None = None,
        on_labels: Callable[[Sequence[LabelClass]], Any] | None = None,
    ) -> None:
        self.model = model.eval()
        self._on_labels = on_labels
        length = getattr(model, "context_length", 77)
        self.tokenizer = tokenizer or open_clip.SimpleTokenizer(context_length=length)
        self.resolution = self.checked_resolution(resolution or _native_resolution(model))
        settings = open_clip.model.get_model_preprocess_cfg(model)
        bicubic = settings.get("interpolation", "bicubic") == "bicubic"
        self._filter = PILImage.Resampling.BICUBIC if bicubic else PILImage.Resampling.BILINEAR
        mean = settings.get("mean", open_clip.OPENAI_DATASET_MEAN)
        std = settings.get("std", open_clip.OPENAI_DATASET_STD)
        self._mean, self._std = (
            torch.tensor(x, device=self.device).view(3, 1, 1) for x in (mean, std)
        )
        self.text_features: dict[tuple[str, tuple[str, ...]], Tensor] = {}
        """Unit text features (channels,) in memory, by text prompt and templates; of more than
        TEXTS_KEPT the oldest go."""
        self._disk = TextCache(text_folder, self.model, self.tokenizer) if text_folder else None

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    def checked_resolution(self, resolution: int) -> int:
        """The resolution itself; a ConfigError if a square image of that side holds no patch, or
        more than MAX_PATCHES a side."""
        side = grid_side(self.model.visual, resolution)
        if side > MAX_PATCHES:
            raise ConfigError(
                f"a CLIP input of {resolution} pixels has {side} x {side} patches, more than the "
                f"{MAX_PATCHES} x {MAX_PATCHES} that attention over all pairs of them can take in "
                "time and memory; use a lower resolution"
            )
        if side < 1:
            raise ConfigError(
                f"a CLIP input of {resolution} pixels holds no patch; use the model's own "
                f"resolution ({_native_resolution(self.model)}) or more"
            )
        return resolution

    def patches(self, resolution: int | None = None) -> int:
        """The rows, which are the columns too, of an image's map at a side of CLIP's square input
        in pixels (None: the model's own).

        Raises:
            ConfigError: the resolution holds no patch, or too many.
        """
        side = self.checked_resolution(resolution or self.resolution)
        return grid_side(self.model.visual, side)

    def resize(
        self, image: Image, resolution: int | None = None
    ) -> UInt8[np.ndarray, "side side 3"]:
        """Squash an image to CLIP's square input, by PIL as open_clip does: no crop, because points
        must land where they belong. On the host, RGB."""
        side = resolution or self.resolution
        return np.array(PILImage.fromarray(image.pixels).resize((side, side), self._filter))

    def preprocess(
        self, squares: Sequence[UInt8[np.ndarray, "side side 3"]]
    ) -> Float[Tensor, "images 3 side side"]:
        """Resized images as normalised pixels on the device."""
        pixels = to_device(np.stack(squares), self.device).permute(0, 3, 1, 2).float() / 255
        return (pixels - self._mean) / self._std

    def encode_image(
        self, pixels: Float[Tensor, "images 3 height width"], method: Method = CLIP_SURGERY
    ) -> tuple[Float[Tensor, "images tokens channels"], tuple[int, int]]:
        """Unit token features in fp32 (CLS first, then the patches row by row), and the (rows,
        cols) of the patches."""
        dense, grid = dense_grid(self.model.visual, pixels, method)
        return F.normalize(dense.float(), dim=-1), grid

    def encode_labels(self, labels: LabelSet) -> Float[Tensor, "labels channels"]:
        """Unit text features in fp32, one row a class: the normalised mean of its text prompts'
        features."""
        self.look_at(labels)
        return self._encode_classes(labels.classes, labels.templates)

    def look_at(self, labels: LabelSet) -> None:
        """Warn of labels that the model doesn't know, as far as that can be told. `encode_labels`
        does it too."""
        if self._on_labels is not None:
            self._on_labels(labels.classes)

    def forget_labels(self) -> None:
        """From now on keep no text feature on disk, and warn of no unknown label: both remember
        every label that was ever asked for."""
        self._disk = self._on_labels = None

    def encode_texts(
        self, texts: Sequence[str], templates: tuple[str, ...] | None = None
    ) -> Float[Tensor, "texts channels"]:
        """Unit text features in fp32, one row a text prompt."""
        return self._encode_classes([LabelClass(text, (text,)) for text in texts], templates)

    def encode_empty(self, templates: tuple[str, ...] | None = None) -> Float[Tensor, "1 channels"]:
        """The empty string's unit text feature: the redundant one for a label that stands alone."""
        return self._feature("", templates or TEMPLATES)[None]

    def _encode_classes(
        self, classes: Sequence[LabelClass], templates: tuple[str, ...] | None
    ) -> Tensor:
        rows = [
            torch.stack([self._feature(p, templates or TEMPLATES) for p in c.prompts]).mean(dim=0)
            for c in classes
        ]
        return F.normalize(torch.stack(rows), dim=-1)

    def _feature(self, prompt: str, templates: tuple[str, ...]) -> Float[Tensor, "channels"]:
        """From memory, from disk, or computed; each text prompt by itself, so that its last bit
        doesn't depend on the others."""
        known = self.text_features.get((prompt, templates))
        if known is None:
            known = self._disk.get(prompt, templates) if self._disk else None
            if known is None:
                known = encode_prompts(self.model, self.tokenizer, [prompt], templates)[0]
                if self._disk:
                    self._disk.put(prompt, templates, known)
            known = self.text_features[prompt, templates] = known.to(self.device)
            while len(self.text_features) > TEXTS_KEPT:
                del self.text_features[next(iter(self.text_features))]
        return known


def _native_resolution(model: Any) -> int:
    size = model.visual.image_size
    return size if isinstance(size, int) else size[0]
