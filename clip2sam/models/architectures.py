"""What open_clip builds by the name of an architecture: whether surgery can take it, its tokenizer,
and what its weights expect of pixels."""

import os
from typing import Any

import open_clip
import torch
from huggingface_hub import snapshot_download
from open_clip.pretrained import get_pretrained_cfg
from open_clip.tokenizer import HFTokenizer

from clip2sam.clip.surgery import check_tower
from clip2sam.errors import ConfigError, WeightsError, one_line
from clip2sam.trained.hub import needed_transformers

TOKENIZER_FILES = ("*.json", "*.txt", "*.model")
"""What is downloaded of a tokenizer's repository: settings and vocabularies."""


def check_text_tower(architecture: str) -> None:
    """Refuse an architecture whose text tower transformers would build.

    Raises:
        ConfigError: it is such a one.
    """
    text = open_clip.get_model_config(architecture)["text_cfg"]
    if "hf_model_name" in text:
        raise ConfigError(
            f"{architecture} has a text tower of transformers ({text['hf_model_name']}), expected "
            "one of open_clip's own; use a CLIP such as ViT-B-16:openai, or "
            "ViT-B-16-SigLIP-i18n-256:webli for other languages"
        )


def check_image_tower(architecture: str) -> None:
    """Refuse an architecture that can't be used, before anything of it is downloaded: its image
    tower is built without memory for its weights.

    Args:
        architecture: open_clip's name of it.

    Raises:
        ConfigError: surgery can't take the image tower.
    """
    config = open_clip.get_model_config(architecture)
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    quick_gelu = bool(config.get("quick_gelu"))
    with torch.device("meta"):
        clip = open_clip.CLIP(config["embed_dim"], vision, _ANY_TEXT_TOWER, quick_gelu=quick_gelu)
    try:
        check_tower(clip.visual)
    except ConfigError as error:
        raise ConfigError(f"{architecture} can't be used: {error}") from error


def check_tokenizer(architecture: str) -> None:
    """Raise a ConfigError if the tokenizer needs the package transformers, which isn't there."""
    if tokenizer := _tokenizer_repository(architecture):
        needed_transformers(f"the tokenizer of {architecture}, {tokenizer},")


_ANY_TEXT_TOWER = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}


def load_tokenizer(
    architecture: str, *, cache: str | os.PathLike[str] | None = None, offline: bool = False
) -> Any:
    """The tokenizer of one of open_clip's architectures. SigLIP's is downloaded; those of plain
    CLIPs are inside open_clip.

    Args:
        cache: the folder for what is downloaded, in the form of the hub's cache; None: its own.
        offline: never use the network.

    Raises:
        ConfigError: it needs the package transformers, which isn't there.
        WeightsError: it is missing and can't be downloaded, or can't be read.
    """
    repository = _tokenizer_repository(architecture)
    if not repository:
        return open_clip.get_tokenizer(architecture)
    check_tokenizer(architecture)
    what = f"the tokenizer of {architecture}"
    folder = None if cache is None else os.fspath(cache)
    try:
        files = snapshot_download(
            repository,
            cache_dir=folder,
            allow_patterns=list(TOKENIZER_FILES),
            local_files_only=offline,
        )
    except Exception as error:  # the hub's client and its HTTP library have no common base
        reason = "the download is forbidden (offline)" if offline else one_line(error)
        raise WeightsError(
            f"{what}, {repository}, is missing in {folder or 'the cache of the hub'}: {reason}; "
            "run once with a network and without --offline, or use a CLIP that needs none, such "
            "as ViT-B-16:openai"
        ) from error
    try:
        text = open_clip.get_model_config(architecture)["text_cfg"]
        return HFTokenizer(
            files,
            context_length=text.get("context_length", 77),
            tokenizer_mode=text.get("tokenizer_mode"),
            **text.get("tokenizer_kwargs", {}),
        )
    except Exception as error:  # transformers' readers have no common base
        raise WeightsError(
            f"{what}, {repository}, can't be read ({one_line(error)}); delete {files} and run again"
        ) from error


def _tokenizer_repository(architecture: str) -> str:
    """ "owner/name" of a tokenizer on the hub; empty for those inside open_clip."""
    return str(open_clip.get_model_config(architecture)["text_cfg"].get("hf_tokenizer_name") or "")


def record_of(architecture: str, pretrained: str) -> dict[str, Any]:
    """open_clip's record of weights, which it may have under the architecture's name without
    "-quickgelu" only; empty if it has none."""
    names = (architecture, architecture.removesuffix("-quickgelu"))
    return next((found for name in names if (found := get_pretrained_cfg(name, pretrained))), {})


def pixels_of(architecture: str, pretrained: str) -> dict[str, Any]:
    """The mean, standard deviation and interpolation that weights were trained with, as
    `open_clip.create_model` takes them. Of weights that open_clip doesn't know: those of others of
    their architecture; empty if there are none, and then OpenAI's are meant."""
    tags = (pretrained, *open_clip.list_pretrained_tags_by_model(architecture))
    found = next((known for tag in tags if (known := record_of(architecture, tag))), {})
    return {name: found[name] for name in ("mean", "std", "interpolation") if name in found}
