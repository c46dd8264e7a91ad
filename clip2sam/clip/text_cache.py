"""Text features on disk: a text prompt's 85 templates are encoded once for each text tower.

One small file a prompt, named by hashes and written whole, so runs side by side can share a folder:
at worst both compute the same feature.
"""

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip2sam.clip.text import Tokenizer
from clip2sam.data.files import write_atomically
from clip2sam.kernels.tensors import state_sha256


class TextCache:
    """Features of one text tower in a folder.

    Args:
        folder: is made when the first feature is stored. If that fails, nothing is stored, with one
            warning.
        model, tokenizer: the open_clip CLIP whose text tower makes the features. Its weights, dtype
            and type of device are part of the file names, so features of another tower are never
            mistaken for its own.
    """

    def __init__(self, folder: Path, model: Any, tokenizer: Tokenizer) -> None:
        self.folder, self.model, self.tokenizer = folder, model, tokenizer
        self._tower: str | None = None
        self._writable = True

    def get(self, prompt: str, templates: Sequence[str]) -> Float[Tensor, "channels"] | None:
        """The prompt's feature on the CPU, or None if it is missing or its file is damaged."""
        try:
            return torch.from_numpy(np.load(self._path(prompt, templates), allow_pickle=False))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError):
            return None  # computed again, and written again

    def put(
        self, prompt: str, templates: Sequence[str], feature: Float[Tensor, "channels"]
    ) -> None:
        """Store a feature. After the first failure, which is a warning, nothing more is tried."""
        if not self._writable:
            return
        data = io.BytesIO()
        np.save(data, feature.cpu().numpy(), allow_pickle=False)
        try:
            write_atomically(self._path(prompt, templates), data.getvalue())
        except OSError as error:
            self._writable = False
            warnings.warn(f"text features are not kept in {self.folder}: {error}", stacklevel=5)

    def _path(self, prompt: str, templates: Sequence[str]) -> Path:
        # Hashed when first needed: that takes a moment, and some runs need no text feature.
        self._tower = self._tower or tower_hash(self.model, self.tokenizer)
        key = "\0".join([*templates, prompt])
        return self.folder / self._tower / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.npy"


def tower_hash(model: Any, tokenizer: Tokenizer) -> str:
    """40 hexadecimal digits for a CLIP's weights (without its image tower), its type of device and
    its tokenizer."""
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("visual.")
    }
    # A tokenizer has no weights: the tokens of a text that tokenizers disagree on stand for it.
    state["a tokenizer's tokens"] = tokenizer(
        ["The naïve £9 dog's 'café', a photo of 2 traffic-lights."]
    )
    return hashlib.sha256(
        f"{model.logit_scale.device.type} {state_sha256(state)}".encode()
    ).hexdigest()[:40]
