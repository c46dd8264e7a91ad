"""Text features kept on disk: a label costs its 85 sentences once for each text tower, not once a run.

One small file a prompt, named by hashes and moved into place whole, so that runs side by side can share a folder:
at worst both compute the same feature.
"""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip2sam.clip.text import Tokenizer
from clip2sam.kernels.tensors import state_sha256


class TextCache:
    """Features of one text tower in a folder.

    Args:
        folder: is made when the first feature is kept. If that fails, nothing is kept, with one warning.
        model, tokenizer: the open_clip CLIP whose text tower makes the features. Its weights, dtype and kind of device
            name the files, so that others' are never mistaken for its own.
    """

    def __init__(self, folder: Path, model: Any, tokenizer: Tokenizer) -> None:
        self.folder, self.model, self.tokenizer = folder, model, tokenizer
        self._tower: str | None = None
        self._works = True

    def get(self, prompt: str, templates: Sequence[str]) -> Float[Tensor, "channels"] | None:
        """The prompt's feature on the CPU, or None if it isn't there or its file is damaged."""
        try:
            return torch.from_numpy(np.load(self._path(prompt, templates), allow_pickle=False))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError):
            return None  # computed again, and written again

    def put(
        self, prompt: str, templates: Sequence[str], feature: Float[Tensor, "channels"]
    ) -> None:
        """Keep a feature."""
        if not self._works:
            return
        path = self._path(prompt, templates)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
                np.save(part, feature.cpu().numpy(), allow_pickle=False)
            os.replace(part.name, path)
        except OSError as error:
            self._works = False
            warnings.warn(
                f"text features are not kept in {self.folder}: {error}; free or allow it",
                stacklevel=5,
            )

    def _path(self, prompt: str, templates: Sequence[str]) -> Path:
        self._tower = self._tower or tower_hash(self.model, self.tokenizer)
        words = "\0".join([*templates, prompt])
        return self.folder / self._tower / f"{hashlib.sha256(words.encode()).hexdigest()[:40]}.npy"


def tower_hash(model: Any, tokenizer: Tokenizer) -> str:
    """40 hexadecimal digits for a CLIP's weights (without its image tower), its kind of device and its tokenizer."""
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("visual.")
    }
    state["a tokenizer's tokens"] = tokenizer(
        ["The naïve £9 dog's 'café', a photo of 2 traffic-lights."]
    )
    return hashlib.sha256(
        f"{model.logit_scale.device.type} {state_sha256(state)}".encode()
    ).hexdigest()[:40]
