"""Any CLIP that open_clip offers and surgery can take, by its name: "ViT-L-14:openai".

Imports no torch before a name is looked up: open_clip does.
"""

from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from clip2sam.config import Config
from clip2sam.errors import ConfigError, shown
from clip2sam.models.presets import HUB_FILE, PRESETS, ClipWeights, EmbeddedWeights, Preset

OWN_FILE = "get that file and give it with --clip-checkpoint (clip_checkpoint)"
"""What to do about weights that aren't downloaded."""


def split_clip_name(name: str) -> tuple[str, str]:
    """(model, weights) of "MODEL:WEIGHTS", as open_clip writes them: "ViT-B/32:OpenAI" may be
    written for "ViT-B-32:openai".

    Raises:
        ConfigError: it has another form.
    """
    model, _, weights = (part.strip() for part in name.partition(":"))
    if not model or not weights or ":" in weights:
        raise ConfigError(
            "a CLIP is named MODEL:WEIGHTS as in open_clip, such as 'ViT-L-14:openai', but got "
            f"{shown(name)}"
        )
    return model.replace("/", "-"), weights.lower().replace("-", "_")


def clip_weights(name: str, *, own_file: bool = False) -> ClipWeights:
    """The weights of that name, with the architecture that has the activation they were trained
    with. Nothing is downloaded.

    Args:
        name: "MODEL:WEIGHTS" of open_clip's.
        own_file: the user has the file; it need not be one that can be downloaded.

    Raises:
        ConfigError: another form, unknown names, a tower or tokenizer that can't be used, or
            weights that are published as a pickle only.
    """
    from clip2sam.models.architectures import check_image_tower, check_text_tower, check_tokenizer

    model, weights = split_clip_name(name)
    source = _source(model, weights)
    check_text_tower(model)
    architecture = architecture_of(model, weights, bool(source.get("quick_gelu")))
    for preset in PRESETS.values():  # those have a pinned revision and a SHA-256
        own = preset.clip
        if isinstance(own, ClipWeights) and (own.model, own.pretrained) == (architecture, weights):
            return own
    check_image_tower(architecture)
    check_tokenizer(architecture)
    hub = "" if own_file else _repository(name, source)
    return ClipWeights(architecture, weights, hub, licence="its repository's")


def with_clip(preset: Preset, name: str, *, own_file: bool = False) -> Preset:
    """The preset with another CLIP, at that CLIP's own resolution. The SAM stays, and so do the
    settings; only those of "tiny" fit no other CLIP, and become the usual ones.

    Raises:
        ConfigError: as `clip_weights`.
    """
    clip = clip_weights(name, own_file=own_file)
    return replace(preset, clip=clip, resolution=None, config=settings_of(preset))


def settings_of(preset: Preset) -> Config:
    """A preset's settings for another CLIP than its own."""
    return Config() if isinstance(preset.clip, EmbeddedWeights) else preset.config


def _source(model: str, weights: str) -> dict[str, Any]:
    """open_clip's record of the weights."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    found: dict[str, Any] = get_pretrained_cfg(model, weights)
    if found:
        return found
    known = [f"{m}:{w}" for m, w in open_clip.list_pretrained()]
    near = get_close_matches(f"{model}:{weights}", known, n=4)
    same = [name for name in known if name.startswith(f"{model}:")]
    near = [name for name in near if name in same] or same[:4] or near
    advice = f"did you mean {', '.join(near)}?" if near else "see open_clip.list_pretrained()"
    raise ConfigError(f"open_clip has no CLIP {model}:{weights}; {advice}")


def architecture_of(model: str, weights: str, quick_gelu: bool) -> str:
    """The name under which open_clip builds the model with that activation: both have the same
    tensors, so that the wrong one would load and run."""
    import open_clip

    plain = model.removesuffix("-quickgelu")
    for name in (model, plain, f"{plain}-quickgelu"):
        config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
        if config is not None and bool(config.get("quick_gelu")) == quick_gelu:
            return name
    activation = "QuickGELU" if quick_gelu else "GELU"
    raise ConfigError(
        f"the weights {weights} of {model} were trained with {activation}, and open_clip has no "
        f"{plain} with it; choose other weights"
    )


def _repository(name: str, source: dict[str, Any]) -> str:
    """ "owner/name" on the hub."""
    parts = str(source.get("hf_hub") or "").split("/")
    if len(parts) < 2:
        raise ConfigError(
            f"open_clip has {name} as a pickle from {source.get('url')}, which is not downloaded; "
            f"{OWN_FILE}"
        )
    repository, file = "/".join(parts[:2]), "/".join(parts[2:])
    if file not in ("", HUB_FILE):
        raise ConfigError(
            f"open_clip has {name} as {file} of https://huggingface.co/{repository}; only "
            f"{HUB_FILE} is downloaded; {OWN_FILE}"
        )
    return repository
