"""From a preset, or from your own models, to a segmenter on a device."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clip2sam.clip.methods import Method
from clip2sam.clip.model import SurgeryCLIP
from clip2sam.config import Config, as_config
from clip2sam.errors import ConfigError, one_line, shown
from clip2sam.kernels.device import IMAGES_PER_BATCH
from clip2sam.kernels.relative import fastest
from clip2sam.locate import Locator
from clip2sam.models import clips, files
from clip2sam.models.checkpoints import load_clip, load_sam
from clip2sam.models.devices import check_device, check_precision
from clip2sam.models.download import fetch
from clip2sam.models.files import Kind
from clip2sam.models.locators import (
    checked_method,
    is_training_free,
    make_locator,
    needs_clip,
    settings_for,
)
from clip2sam.models.presets import EmbeddedWeights, HubSamWeights, Preset, get_preset
from clip2sam.models.transformers_sam import load_transformers_sam
from clip2sam.pipeline import Segmenter
from clip2sam.sam import CUTTERS, Cutter, PromptSAM
from clip2sam.tiny.models import load_tiny_clip, load_tiny_sam
from clip2sam.tiny.vocabulary import UnknownLabels
from clip2sam.trained.hub import needed_transformers

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtypes by the names of `load`'s precisions."""


def load(
    preset: str | Preset | None = None,
    *,
    clip: Any = None,
    tokenizer: Any = None,
    sam: Any = None,
    config: Config | None = None,
    method: str | Method | Locator | None = None,
    device: str = "auto",
    precision: str = "fp32",
    compiled: bool = False,
    resolution: int | None = None,
    clip_checkpoint: str | os.PathLike[str] | None = None,
    sam_checkpoint: str | os.PathLike[str] | None = None,
    sha256: str | Sequence[str] = (),
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
) -> Segmenter:
    """Load a segmenter.

    Args:
        preset: a name of `clip2sam.models.presets.PRESETS`, such as "tiny" (inside the package;
            knows only drawn shapes), "mobile" or "vit-h", or a `Preset` of your own: missing files
            are downloaded and verified. None if both models are given.
        clip, tokenizer, sam: your own open_clip model (with its tokenizer, if that isn't OpenAI's)
            and your own segment-anything model, `Sam2Model`, `EdgeTamModel` or `SamHQModel` of
            transformers, or `clip2sam.sam.Cutter`, in place of the preset's. They are moved to the
            device; a `Cutter` keeps its precision. `clip` may also be the name of any CLIP that
            open_clip offers and surgery can take, "MODEL:WEIGHTS", such as "ViT-L-14:openai", which
            is downloaded. The settings stay the preset's, but scores of another CLIP have another
            scale: choose a presence threshold (`clip2sam tune`).
        config: the settings; by default the preset's. `clip2sam.published()` is the published demo.
        method: how labels are found, in the place of the settings' method: a name of
            `clip2sam.clip.METHODS` or of `clip2sam.models.locators.LOCATORS`, a `Method`, or a
            `Locator` of your own. Where it needs no CLIP none is loaded.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1" or "mps".
        precision: "fp32", or "bf16" or "fp16" for the two image encoders and the text tower.
        compiled: apply `torch.compile` to SAM's image encoder: it takes minutes at first and is
            faster then, which pays off in long runs.
        resolution: side of CLIP's square input in pixels; by default the settings', else the
            preset's, else the model's own.
        clip_checkpoint, sam_checkpoint: files of your own for the preset's architectures; only
            tensors are read from them.
        sha256: of these files, 64 hexadecimal digits each: a file with another one is refused.
        weights_dir: the weights folder; by default CLIP2SAM_WEIGHTS, else the user's cache folder.
        offline: never use the network.

    With "tiny" an `UnknownLabelWarning` names the labels of each set that its models don't know.

    Raises:
        ConfigError: an unknown preset, device or precision, a precision that the device can't
            compute in, a model is missing, or an argument of another type.
        WeightsError: weights that are missing, damaged, or can't be downloaded.
    """
    where = as_device(device)
    dtype = as_dtype(precision, where)
    chosen = None if preset is None else get_preset(preset)
    method = None if method is None else checked_method(method)
    with_clip = method is None or needs_clip(method)
    if chosen is None and (sam is None or (clip is None and with_clip)):
        raise ConfigError(
            'give a preset, such as load("tiny"), or both models: load(clip=..., sam=...)'
        )
    if isinstance(clip, str):
        if not with_clip:
            raise ConfigError(f"{shown(method)} works without a CLIP; leave {shown(clip)} out")
        base = chosen or get_preset("vit-b")  # whose SAM isn't loaded: one is given
        chosen, clip = clips.with_clip(base, clip, own_file=clip_checkpoint is not None), None
    settings = as_config(config if config is not None or chosen is None else chosen.config)
    if resolution is not None:
        settings = replace(settings, resolution=resolution)
    if method is not None and (config is None or is_training_free(method)):
        settings = settings_for(method, settings)
    _check_models(clip=clip, sam=sam)
    _check_paths("file", clip_checkpoint=clip_checkpoint, sam_checkpoint=sam_checkpoint)
    _check_paths("folder", weights_dir=weights_dir)
    embedded = chosen is not None and clip is None and isinstance(chosen.clip, EmbeddedWeights)
    files.check_own_files([clip_checkpoint, sam_checkpoint], sha256)
    kept = files.weights_dir(weights_dir)
    if chosen is not None:
        needed: list[Kind] = ["clip"] if clip is None and with_clip else []
        needed += ["sam"] if sam is None else []
        if "sam" in needed and isinstance(chosen.sam, HubSamWeights):
            needed_transformers(f"the preset {chosen.name}")  # ahead of a download
        own = {"clip": clip_checkpoint, "sam": sam_checkpoint}
        kinds = [kind for kind in needed if own[kind] is None]
        fetched = fetch(chosen, weights_dir=weights_dir, offline=offline, kinds=kinds)
        if "clip" in needed:
            clip, tokenizer = _load_clip(
                chosen,
                clip_checkpoint,
                fetched.get("clip"),
                cache=kept / "hub",
                offline=offline,
            )
        if "sam" in needed:
            sam = _load_sam(chosen, sam_checkpoint or fetched["sam"])
    cutter = _as_cutter(sam, where, dtype, kept, compiled=compiled)
    surgery = None
    if clip is not None:
        surgery = SurgeryCLIP(
            clip.to(where, dtype),
            tokenizer,
            resolution=None if chosen is None else chosen.resolution,
            text_folder=kept / "text_features",
            on_labels=UnknownLabels() if embedded else None,
        )
    locator = make_locator(method, surgery, cutter, offline=offline, weights_dir=weights_dir)
    return Segmenter(surgery, cutter, settings, locator)


def with_method(
    segmenter: Segmenter,
    method: str | Method | Locator,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
) -> Segmenter:
    """The same models and settings with another way to find labels, see `load`."""
    checked_method(method)
    clip = segmenter.clip if needs_clip(method) else None
    sam = segmenter.sam
    locator = make_locator(method, clip, sam, offline=offline, weights_dir=weights_dir)
    return Segmenter(clip, segmenter.sam, settings_for(method, segmenter.config), locator)


def _check_models(clip: Any, sam: Any) -> None:
    for name, model, kinds in (
        ("clip", clip, (torch.nn.Module,)),
        ("sam", sam, (torch.nn.Module, Cutter)),
    ):
        if model is not None and not isinstance(model, kinds):
            named = ', the name of one such as "ViT-L-14:openai"' if name == "clip" else ""
            raise ConfigError(
                f"{name} must be a model (a torch.nn.Module){named} or None, but got {shown(model)}"
            )


def _as_cutter(
    sam: Any, device: torch.device, dtype: torch.dtype, kept: Path, *, compiled: bool
) -> Cutter:
    """A cutter as it is, a segment-anything model in one; on the device.

    Args:
        kept: the folder that remembers which implementation of attention is the fastest here.
    """
    if isinstance(sam, Cutter):
        sam.model.to(device)
        return sam
    sam = sam.to(device)
    kind = getattr(getattr(sam, "config", None), "model_type", None)
    if kind is not None:
        return _transformers_cutter(sam, kind, dtype, compiled=compiled)
    # Prompt encoder and mask decoder stay in fp32: they are cheap and decide the mask's edge.
    sam.image_encoder.to(dtype)
    attention = fastest(sam.image_encoder, IMAGES_PER_BATCH, kept / "attention.json")
    return PromptSAM(sam, attention, compiled=compiled)


def _transformers_cutter(sam: Any, kind: str, dtype: torch.dtype, *, compiled: bool) -> Cutter:
    if kind not in CUTTERS:
        raise ConfigError(
            f"sam is transformers' {type(sam).__name__}, which can't be used here; give its "
            "Sam2Model, EdgeTamModel or SamHQModel"
        )
    if compiled:
        raise ConfigError(
            f"compiled is for segment-anything's models, but sam is a {type(sam).__name__}; leave "
            "it out"
        )
    sam.float().vision_encoder.to(dtype)
    return CUTTERS[kind](sam)


def _check_paths(kind: str, **paths: Any) -> None:
    for name, path in paths.items():
        given = isinstance(path, str | os.PathLike) and os.fspath(path)
        if path is not None and not given:
            raise ConfigError(f"{name} must be the path of a {kind}, but got {shown(path)}")


def _load_clip(
    preset: Preset,
    checkpoint: str | os.PathLike[str] | None,
    fetched: Path | None,
    *,
    cache: Path,
    offline: bool,
) -> tuple[Any, Any]:
    """A preset's CLIP and tokenizer, from the user's own file if there is one.

    Args:
        cache, offline: for the tokenizer, see `load_tokenizer`.
    """
    weights, path = preset.clip, checkpoint or fetched
    assert path is not None, "one of the two"
    if isinstance(weights, EmbeddedWeights):
        return load_tiny_clip(path)
    # a file of one's own stands for the preset's weights: it gets their pixels and activation
    return load_clip(
        weights.model, path, pretrained=weights.pretrained, cache=cache, offline=offline
    )


def _load_sam(preset: Preset, checkpoint: str | os.PathLike[str]) -> Any:
    """A preset's SAM."""
    weights = preset.sam
    if isinstance(weights, EmbeddedWeights):
        return load_tiny_sam(checkpoint)
    if isinstance(weights, HubSamWeights):
        return load_transformers_sam(weights.architecture, checkpoint)
    return load_sam(weights.model_type, checkpoint)


def as_device(device: str) -> torch.device:
    """The device of that name; "auto" is CUDA if there is one.

    Raises:
        ConfigError: no such device here, or one on which nothing can be computed.
    """
    check_device(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    kind = chosen.type
    if kind == "cpu":
        return chosen
    module = getattr(torch, kind)
    if not module.is_available():
        raise ConfigError(
            f"device {device!r} was given, but PyTorch finds no {kind} here; use auto or cpu"
        )
    if chosen.index is not None and chosen.index >= module.device_count():
        raise ConfigError(
            f"device {device!r} was given, but there are {module.device_count()} of {kind}, from "
            f"{kind}:0; use one of them"
        )
    return chosen


def as_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a precision's name, if the device can compute in it.

    Raises:
        ConfigError: no such precision, or not on this device.
    """
    check_precision(precision)
    dtype = DTYPES[precision]
    try:
        one = torch.ones(1, 1, dtype=dtype, device=device)
        one @ one
    except (RuntimeError, TypeError) as error:  # NotImplementedError is a RuntimeError
        raise ConfigError(
            f"precision {precision!r} was given, but {str(device)!r} can't compute in it "
            f"({one_line(error)}); use fp32"
        ) from error
    return dtype
