"""From files to models. Nothing is unpickled: files are read as tensors only (`weights_only=True`, or safetensors)."""

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file
from segment_anything import sam_model_registry
from torch import Tensor, nn

from clip2sam.errors import ConfigError, WeightsError, one_line


def load_clip(
    model: str, checkpoint: str | os.PathLike[str], *, pretrained: str | None = None
) -> tuple[nn.Module, Callable[..., Tensor]]:
    """Build one of open_clip's models and fill it from a file.

    Only tensors are read from the file, so one from anywhere runs no code; whether it holds what it says it does,
    nobody checks here.

    Args:
        model: open_clip's name of the architecture, such as "ViT-B-16-quickgelu".
        checkpoint: safetensors, or a state dict saved by `torch.save`, in open_clip's key names.
        pretrained: open_clip's name of the weights, if they have one: then `check_quickgelu` is done.

    Returns:
        (model, tokenizer): on the CPU, fp32, `eval`.

    Raises:
        ConfigError: open_clip has no such architecture, or the weights need the other activation.
        WeightsError: the file is missing, isn't plain tensors, or is for another architecture.
    """

    if model not in open_clip.list_models():
        raise ConfigError(
            f"open_clip has no architecture {model!r}; see open_clip.list_models(), e.g. 'ViT-B-16'"
        )
    path = Path(
        checkpoint
    ).resolve()  # a bare name could be taken for one of open_clip's names of weights
    _read_tensors(
        path
    )  # open_clip opens it again; this refuses what holds more than tensors, in our words
    try:
        clip = open_clip.create_model(model, pretrained=str(path), weights_only=True)
    except (RuntimeError, KeyError) as error:
        raise WeightsError(
            f"{path} does not fit open_clip's {model}: {one_line(error)}; name its own model"
        ) from error
    if pretrained is not None:
        check_quickgelu(clip, model, pretrained)
    return clip.eval(), open_clip.get_tokenizer(model)


def check_quickgelu(clip: nn.Module, model: str, pretrained: str) -> None:
    """Raise a ConfigError unless a model's activation is the one that its weights were trained with.

    Some weights (all of OpenAI's) were trained with QuickGELU, others with GELU. Nothing else differs, so the wrong
    one loads and runs, and gives similarities that are quietly worse; open_clip only warns.

    Args:
        clip: the model to check.
        model: open_clip's name of its architecture, with or without "-quickgelu".
        pretrained: open_clip's name of its weights; nothing is checked for weights that it doesn't know.
    """

    plain = model.removesuffix("-quickgelu")
    source = get_pretrained_cfg(plain, pretrained)
    needed = bool(source.get("quick_gelu", False))
    if source and needed != any(isinstance(module, QuickGELU) for module in clip.modules()):
        names = ("GELU", "QuickGELU")
        raise ConfigError(
            f"the weights {pretrained!r} of {plain} were trained with {names[needed]}, but {model} was built with "
            f"{names[not needed]}; use {plain + '-quickgelu' * needed!r}"
        )


def load_sam(model_type: str, checkpoint: str | os.PathLike[str]) -> Any:
    """Build segment-anything's `Sam` and fill it from a file, holding the weights in memory once.

    The file is mapped, not read: pages come in as they are used. Only tensors are read from it
    (`weights_only=True`), so one from anywhere runs no code; nobody checks a hash here, `fetch_sam` does.

    Args:
        model_type: "vit_b", "vit_l" or "vit_h".
        checkpoint: a state dict in the official key names, saved by `torch.save` or as safetensors; any float
            dtype.

    Returns:
        `segment_anything.modeling.Sam`: on the CPU, fp32, `eval`. The file must not be overwritten in place while
        the model lives (replacing or deleting it is harmless).

    Raises:
        ConfigError: no such model type.
        WeightsError: the file is missing, isn't plain tensors, or is for another architecture.
    """

    types = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # by the encoder's width
    if model_type not in types.values():
        raise ConfigError(
            f"SAM has no model type {model_type!r}; choose one of {', '.join(types.values())}"
        )
    path = Path(checkpoint)
    state = {name: tensor.float() for name, tensor in _read_tensors(path).items()}
    with torch.device(
        "meta"
    ):  # no memory and no random numbers for weights that are replaced at once
        sam = sam_model_registry[model_type]()
    try:
        sam.load_state_dict(state, assign=True)
    except RuntimeError as error:
        embedding = state.get("image_encoder.patch_embed.proj.weight")
        found = types.get(embedding.shape[0]) if embedding is not None and embedding.ndim else None
        advice = (
            f"it looks like {found}, name that"
            if found
            else "use an official checkpoint or one in its form"
        )
        raise WeightsError(
            f"{path} does not fit SAM {model_type}; {advice}: {one_line(error)}"
        ) from error
    # Not in the checkpoint: the pixel statistics, whose constructor doesn't heed the device today.
    sam.pixel_mean = torch.tensor([123.675, 116.28, 103.53], device="cpu").view(3, 1, 1)
    sam.pixel_std = torch.tensor([58.395, 57.12, 57.375], device="cpu").view(3, 1, 1)
    empty = [name for name, t in [*sam.named_parameters(), *sam.named_buffers()] if t.is_meta]
    if empty:
        raise WeightsError(
            f"{path} left {', '.join(empty[:3])} of SAM {model_type} without values; use another release"
        )
    return sam.eval()


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _kinds(state: Any) -> str:
    """What a foreign object holds, for a message."""
    kinds = (
        sorted({type(value).__name__ for value in state.values()})
        if isinstance(state, dict)
        else []
    )
    return ", ".join(kinds) or "nothing usable"


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, mapped into memory where the format allows; nothing else is opened."""

    if not path.is_file():
        raise WeightsError(
            f"there is no file {path}; give the path of a checkpoint, or a preset to download one"
        )
    packed = zipfile.is_zipfile(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if packed and _is_torchscript(path):
            raise WeightsError(
                f"{path} is a TorchScript archive, a program, as OpenAI published its CLIP; it is not run. "
                "Leave the path out to get the same weights as tensors, or give those as .safetensors"
            )
        with (
            warnings.catch_warnings()
        ):  # what it says of old and odd pickles adds nothing to the refusal
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except WeightsError:
        raise
    except Exception as error:  # whatever a parser may raise on foreign bytes
        refused = isinstance(error, pickle.UnpicklingError)
        reason = (
            "it holds more than tensors, or isn't a checkpoint, and was not opened"
            if refused
            else one_line(error)
        )
        raise WeightsError(
            f"{path} can't be read as tensors: {reason}; use the official checkpoint or save a state dict"
        ) from error
    if isinstance(state, dict) and isinstance(
        state.get("state_dict"), dict
    ):  # as training programs wrap it
        state = state["state_dict"]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(t, torch.Tensor) for t in state.values())
    ):
        raise WeightsError(
            f"{path} holds a {type(state).__name__} of {_kinds(state)}, expected tensors by name; save a state dict"
        )
    return state
