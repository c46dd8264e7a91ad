"""From a name to a model of the Hugging Face hub with its processor. Only safetensors are read,
never pickles: these can run code."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError

from clip2sam.errors import ConfigError, WeightsError, one_line

FILES = ("*.json", "*.txt", "*.safetensors")
"""What is downloaded of a repository: settings, vocabularies, weights."""


@dataclass(frozen=True)
class HubModel:
    """A model of the hub: what is downloaded, and what reads it."""

    repository: str
    """"owner/name"."""
    revision: str
    """The commit, or a branch; then the commit that it stood at is in a run's fingerprint."""
    licence: str
    """Of the weights."""
    model: str
    """Its class in transformers."""
    processor: str
    """The class of its processor."""
    gated: bool = False
    """Whether its owner must have given the weights to you."""


def load_from_hub(name: str, hub: HubModel, cache: Path, *, offline: bool) -> tuple[Any, Any, str]:
    """A model on the CPU in fp32 and evaluation mode, its processor, and the commit they are of.

    Args:
        name: of the method, for messages.
        cache: the folder for what is downloaded, in the form of the hub's cache.
        offline: never use the network.

    Raises:
        ConfigError: transformers is missing or too old.
        WeightsError: files are missing, damaged, or can't be downloaded.
    """
    transformers = needed_transformers(name)
    folder = _downloaded(name, hub, cache, offline)
    if not any(folder.glob("*.safetensors")):
        raise WeightsError(
            f"{hub.repository} at {hub.revision} has no safetensors file in {folder}, and nothing "
            "else is read, for a pickle can run code; convert it to model.safetensors there, or "
            f"give a locator of clip2sam.trained your own {hub.model}"
        )
    try:
        with _without_bars(transformers):
            model, found = getattr(transformers, hub.model).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            reader = getattr(transformers, hub.processor)
            processor = reader.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers' readers have no common base
        raise WeightsError(
            f"{folder} can't be read as {hub.model} ({one_line(error)}); delete it and run again"
        ) from error
    missing = sorted(str(key) for key in (*found["missing_keys"], *found["mismatched_keys"]))
    if missing:
        raise WeightsError(
            f"{folder} does not fit {hub.model}: {len(missing)} tensors are missing or of another "
            f"shape, such as {missing[0]}; delete it and run again"
        )
    return model.eval(), processor, folder.name


def needed_transformers(name: str) -> Any:
    """The module.

    Args:
        name: what needs it, for messages.

    Raises:
        ConfigError: it is not installed, or too old.
    """
    wanted = "pip install 'clip2sam[transformers]'"
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(f"{name} needs the package transformers: {wanted}") from error
    if int(transformers.__version__.split(".")[0]) < 5:
        raise ConfigError(
            f"{name} needs transformers 5, but {transformers.__version__} is installed: {wanted}"
        )
    return transformers


@contextmanager
def _without_bars(transformers: Any) -> Iterator[None]:
    """Reading a file is no progress that a person waits for."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _downloaded(name: str, hub: HubModel, cache: Path, offline: bool) -> Path:
    """The folder of the files; its name is the commit."""
    gated = (
        "; it is for those who have been given its weights: ask for them at "
        f"https://huggingface.co/{hub.repository} and set HF_TOKEN to your token"
        if hub.gated
        else ""
    )
    try:
        return Path(
            snapshot_download(
                hub.repository,
                revision=hub.revision,
                cache_dir=str(cache),
                allow_patterns=list(FILES),
                local_files_only=offline,
            )
        )
    except GatedRepoError as error:
        raise WeightsError(f"the hub does not give {hub.repository} to you{gated}") from error
    except Exception as error:  # the hub's client and its HTTP library have no common base
        reason = (
            "the download is forbidden (offline)"
            if offline
            else f"the download failed ({one_line(error)})"
        )
        raise WeightsError(
            f"{name} needs {hub.repository}, which is not complete in {cache}: {reason}; run once "
            f"with a network and without --offline, or copy the folder from elsewhere{gated}"
        ) from error
