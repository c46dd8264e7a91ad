"""From checkpoint files to models. Only tensors are read.

safetensors can hold nothing else. A file of `torch.save` is a pickle: it goes through PyTorch's
restricted reader (`weights_only=True`), which refuses what isn't on its list. That is as safe as
the reader is: holes in it were found and closed (CVE-2025-32434 in PyTorch 2.6, CVE-2026-24747 in
2.10), so clip2sam requires 2.11; of a file from a stranger, safetensors are the form to ask for.
"""

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file
from torch import Tensor, nn

from clip2sam.errors import ConfigError, WeightsError, one_line
from clip2sam.kernels.tensors import not_finite
from clip2sam.models.architectures import load_tokenizer, pixels_of, record_of
from clip2sam.models.sam_layout import (
    SAM_TYPES,
    official_names,
    own_names,
    preset_for,
    type_of,
    untrained_sam,
    unwrapped,
)
from clip2sam.sam.tiny_vit import TinyViT, fold


def load_clip(
    model: str,
    checkpoint: str | os.PathLike[str],
    *,
    pretrained: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    offline: bool = False,
) -> tuple[nn.Module, Callable[..., Tensor]]:
    """Build one of open_clip's models and fill it from a file.

    Only tensors are read from the file, see this module. No hash is checked here, `fetch_clip` does
    that.

    Args:
        model: open_clip's name of the architecture, such as "ViT-B-16-quickgelu".
        checkpoint: safetensors, or a state dict saved by `torch.save`, in open_clip's key names.
        pretrained: open_clip's name of the weights, if they have one: then `check_quickgelu` is
            called, and pixels are normalised as they expect it.
        cache, offline: for the tokenizer, see `load_tokenizer`.

    Returns:
        (model, tokenizer): on the CPU, fp32, `eval`.

    Raises:
        ConfigError: open_clip has no such architecture, or the weights need the other activation.
        WeightsError: the file is missing, isn't plain tensors, or is for another architecture; or
            the tokenizer is missing.
    """

    if model not in open_clip.list_models():
        raise ConfigError(
            f"open_clip has no architecture {model!r}; see open_clip.list_models(), e.g. 'ViT-B-16'"
        )
    # Absolute: open_clip could take a bare file name for one of its names of weights. Links are not
    # resolved: in the hub's cache they end in .safetensors, and the blobs behind them don't.
    path = Path(os.path.abspath(checkpoint))
    _read_tensors(path)  # open_clip reads it again; this one refuses other files in clear words
    pixels = pixels_of(model, pretrained or "")
    try:
        clip = open_clip.create_model(
            model, pretrained=str(path), weights_only=True, force_preprocess_cfg=pixels
        )
    except Exception as error:  # it converts foreign checkpoints by their names, and trips on some
        raise WeightsError(
            f"{path} does not fit open_clip's {model}: {one_line(error)}; name its own model"
        ) from error
    if pretrained is not None:
        check_quickgelu(clip, model, pretrained)
    return clip.eval(), load_tokenizer(model, cache=cache, offline=offline)


def check_quickgelu(clip: nn.Module, model: str, pretrained: str) -> None:
    """Raise a ConfigError unless a model has the activation that its weights were trained with.

    Some weights (all of OpenAI's) were trained with QuickGELU, others with GELU. The two models
    have the same tensors, so the wrong one loads and runs, with worse similarities; open_clip only
    warns.

    Args:
        clip: the model to check.
        model: open_clip's name of its architecture, with or without "-quickgelu".
        pretrained: open_clip's name of its weights; unknown names are not checked.
    """

    plain = model.removesuffix("-quickgelu")
    source = record_of(model, pretrained)
    needed = bool(source.get("quick_gelu", False))
    if source and needed != any(isinstance(module, QuickGELU) for module in clip.modules()):
        names = ("GELU", "QuickGELU")
        raise ConfigError(
            f"the weights {pretrained!r} of {plain} were trained with {names[needed]}, but {model} "
            f"was built with {names[not needed]}; use {plain + '-quickgelu' * needed!r}"
        )


def load_sam(model_type: str, checkpoint: str | os.PathLike[str]) -> Any:
    """Build segment-anything's `Sam` and fill it from a file, with one copy of the weights in
    memory.

    The file is memory-mapped: pages are read when they are used. Only tensors are read from it, see
    this module. No hash is checked here, `fetch_sam` does that.

    Args:
        model_type: "vit_b", "vit_l", "vit_h", or "vit_t" for MobileSAM.
        checkpoint: a state dict in the official key names, saved by `torch.save` or as safetensors,
            or what MedSAM's or micro-sam's training saved; any float dtype.

    Returns:
        `segment_anything.modeling.Sam`: on the CPU, fp32, `eval`; MobileSAM's encoder is a folded
        `TinyViT`. The file must not be overwritten in place while the model lives (replacing or
        deleting it is harmless).

    Raises:
        ConfigError: no such model type.
        WeightsError: the file is missing, isn't plain tensors, or is for another architecture.
    """

    if model_type not in SAM_TYPES:
        raise ConfigError(
            f"SAM has no model type {model_type!r}; choose one of {', '.join(SAM_TYPES)}"
        )
    path = Path(checkpoint)
    tensors = official_names(_read_tensors(path, unwrapped), path)
    state = {name: tensor.float() for name, tensor in tensors.items()}
    # On "meta" no memory is allocated and nothing is initialised: all weights are replaced below.
    with torch.device("meta"):
        sam = untrained_sam(model_type)
    try:
        sam.load_state_dict(own_names(state, model_type), assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"{path} does not fit SAM {model_type}; {_advice(state, model_type)}: {one_line(error)}"
        ) from error
    # The pixel statistics are not in the checkpoint, and were built on "meta" too.
    sam.pixel_mean = torch.tensor([123.675, 116.28, 103.53], device="cpu").view(3, 1, 1)
    sam.pixel_std = torch.tensor([58.395, 57.12, 57.375], device="cpu").view(3, 1, 1)
    sam.eval()
    if isinstance(sam.image_encoder, TinyViT):
        fold(sam.image_encoder)
    empty = [name for name, t in [*sam.named_parameters(), *sam.named_buffers()] if t.is_meta]
    if empty:
        raise WeightsError(
            f"{path} left {', '.join(empty[:3])} of SAM {model_type} without values; "
            "use another release"
        )
    return sam


def _advice(state: dict[str, Tensor], model_type: str) -> str:
    """What to do with a SAM checkpoint that does not fit."""
    looks = type_of(state)
    if looks is not None and looks != model_type:
        return f"it looks like {looks}, name that, or the preset {preset_for(looks)}"
    return "use an official checkpoint or one in its form"


def _unwrapped(content: Any) -> Any:
    """The weights in what a training program saved, as open_clip finds them."""
    held = content.get("state_dict") if isinstance(content, dict) else None
    return held if isinstance(held, dict) else content


def _read_tensors(path: Path, unwrap: Callable[[Any], Any] = _unwrapped) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, memory-mapped where the format allows it.

    Args:
        unwrap: finds the weights in what `torch.save` was given.

    Raises:
        WeightsError: no such file, or it holds anything but tensors of finite values by name.
    """

    if not path.is_file():
        raise WeightsError(
            f"there is no file {path}; give the path of a checkpoint, or a preset to download one"
        )
    zipped = zipfile.is_zipfile(path)
    try:
        if path.suffix == ".safetensors":
            return _checked_values(path, load_file(path))
        if zipped and _is_torchscript(path):
            raise WeightsError(
                f"{path} is a TorchScript archive, a program, as OpenAI published its CLIP; it is "
                "not run. Leave the path out to get the same weights as tensors, or give those as "
                ".safetensors"
            )
        with warnings.catch_warnings():  # about old pickles; the refusal below says what matters
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except WeightsError:
        raise
    except Exception as error:  # parsers raise exceptions of any class on foreign bytes
        refused = isinstance(error, pickle.UnpicklingError)
        reason = (
            "it holds more than tensors, or isn't a checkpoint, and was not opened"
            if refused
            else one_line(error)
        )
        raise WeightsError(
            f"{path} can't be read as tensors: {reason}; use the official checkpoint or save a "
            "state dict"
        ) from error
    return _state_dict(path, unwrap(state))


def _state_dict(path: Path, state: Any) -> dict[str, Tensor]:
    """The weights, if they are tensors by name."""
    values = list(state.values()) if isinstance(state, dict) else []
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        kinds = ", ".join(sorted({type(value).__name__ for value in values})) or "nothing usable"
        raise WeightsError(
            f"{path} holds a {type(state).__name__} of {kinds}, expected tensors by name; save a "
            "state dict"
        )
    return _checked_values(path, state)


def _checked_values(path: Path, state: dict[Any, Tensor]) -> dict[str, Tensor]:
    """The tensors, if there are any, their names are texts and all values are there and finite."""
    if not state:
        raise WeightsError(f"{path} holds no tensors; use the official checkpoint, or get it again")
    for name, tensor in state.items():
        if not isinstance(name, str) or tensor.layout != torch.strided or tensor.is_quantized:
            raise WeightsError(
                f"{path} holds {name!r:.80} as {tensor.dtype} in the layout {tensor.layout}, "
                "expected plain tensors by name; save a state dict"
            )
        if tensor.is_meta:
            raise WeightsError(f"{path} holds {name} without values; save the model's real weights")
    if (name := not_finite(state)) is not None:
        raise WeightsError(
            f"{path} holds values that are not finite, in the tensor {name}: it is damaged, or its "
            "training went wrong; use the official checkpoint, or get it again"
        )
    return state


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
