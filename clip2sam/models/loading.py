"""From a preset's name, or your own models, to a segmenter on a device."""

import os
from typing import Any

import torch

from clip2sam.clip import SurgeryCLIP
from clip2sam.config import Config
from clip2sam.errors import ConfigError
from clip2sam.kernels.relative import fastest
from clip2sam.models import weights
from clip2sam.models.checkpoints import load_clip, load_sam
from clip2sam.pipeline import Segmenter
from clip2sam.sam import PointSAM
from clip2sam.sam.model import PICTURES_A_BATCH
from clip2sam.tiny.models import load_tiny_clip, load_tiny_sam
from clip2sam.tiny.scenes import COLOURS, SHAPES

DTYPES = {"exact": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

TINY_WORDS = (
    *SHAPES,
    *(f"{c} thing" for c in COLOURS),
    *(f"{c} {s}" for c in COLOURS for s in SHAPES),
)
"""Always asked along, so that scores don't depend on what else is asked."""

PRESET_CONFIGS = {"tiny": Config(presence=0.3, references=TINY_WORDS)}
"""Settings that belong to a preset's weights; the others take the defaults."""


def load(
    preset: str | None = None,
    *,
    clip: Any = None,
    tokenizer: Any = None,
    sam: Any = None,
    config: Config | None = None,
    device: str = "auto",
    precision: str = "exact",
    compiled: bool = False,
    resolution: int | None = None,
    clip_checkpoint: str | os.PathLike[str] | None = None,
    sam_checkpoint: str | os.PathLike[str] | None = None,
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
) -> Segmenter:
    """Load a segmenter.

    Args:
        preset: "tiny" (inside the package; knows only drawn shapes), "vit-b", "vit-l", "vit-h", ...: what isn't
            there is downloaded and verified. Or None, with both models given.
        clip, tokenizer, sam: your own open_clip model (with its tokenizer, if that isn't OpenAI's) and your own
            segment-anything model, in place of the preset's. They are moved to the device.
        config: the settings; by default what suits the preset. `clip2sam.published()` is the published recipe.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1".
        precision: "exact" (float32), or "bf16" or "fp16" for the two image encoders and the text tower.
        compiled: put SAM's image encoder through `torch.compile`: minutes at first, faster then, for long runs.
        resolution: side of CLIP's square input in pixels; by default the model's own.
        clip_checkpoint, sam_checkpoint: files of your own for the preset's architectures; opened as tensors only.
        weights_dir: where weights are kept; by default CLIP2SAM_WEIGHTS, else the user's cache folder.
        offline: never use the network.

    Raises:
        ConfigError: an unknown preset, device or precision, or a model is missing.
        WeightsError: weights that are missing, damaged, or out of reach.
    """
    where, dtype = as_device(device), as_dtype(precision)
    if clip is None or sam is None:
        if preset is None:
            raise ConfigError(
                'give a preset, such as load("tiny"), or both models: load(clip=..., sam=...)'
            )
        chosen, place = weights.get_preset(preset), {"weights_dir": weights_dir, "offline": offline}
        if clip is None:
            clip, tokenizer = _load_clip(chosen, clip_checkpoint, place)
        if sam is None:
            sam = _load_sam(chosen, sam_checkpoint, place)
    clip, sam = clip.to(where, dtype), sam.to(where)
    sam.image_encoder.to(dtype)
    settings = config or PRESET_CONFIGS.get(preset or "", Config())
    kept = weights.weights_dir(weights_dir)
    surgery = SurgeryCLIP(
        clip, tokenizer, resolution=resolution, text_folder=kept / "text_features"
    )
    attention = fastest(sam.image_encoder, PICTURES_A_BATCH, kept / "attention.json")
    return Segmenter(surgery, PointSAM(sam, attention, compiled=compiled), settings)


def _load_clip(preset: weights.Preset, checkpoint: Any, place: dict[str, Any]) -> tuple[Any, Any]:
    """A preset's CLIP and tokenizer, from the user's own file if there is one."""
    if isinstance(preset.clip, weights.EmbeddedWeights):
        return load_tiny_clip(checkpoint)
    if checkpoint is not None:
        return load_clip(preset.clip.model, checkpoint)
    path = weights.fetch_clip(preset.clip, **place)
    return load_clip(preset.clip.model, path, pretrained=preset.clip.pretrained)


def _load_sam(preset: weights.Preset, checkpoint: Any, place: dict[str, Any]) -> Any:
    """A preset's SAM, from the user's own file if there is one."""
    if isinstance(preset.sam, weights.EmbeddedWeights):
        return load_tiny_sam(checkpoint)
    return load_sam(preset.sam.model_type, checkpoint or weights.fetch_sam(preset.sam, **place))


def as_device(device: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"no device is called {device!r}; use auto, cpu or cuda") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {device!r} was asked for, but PyTorch finds no CUDA here; use auto or cpu"
        )
    return chosen


def as_dtype(precision: str) -> torch.dtype:
    """The dtype of a precision's name."""
    if precision not in DTYPES:
        raise ConfigError(
            f"no precision is called {precision!r}; choose one of {', '.join(DTYPES)}"
        )
    return DTYPES[precision]
