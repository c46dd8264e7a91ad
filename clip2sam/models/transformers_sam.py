"""From a checkpoint file to a cutter's model of transformers. The architectures are data here: the
one file with the weights is all that is needed, and nothing is asked of the hub."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from clip2sam.errors import ConfigError, WeightsError, one_line
from clip2sam.kernels.tensors import not_finite
from clip2sam.trained.hub import needed_transformers

HIERA: dict[str, dict[str, Any]] = {
    "sam2.1-t": {},
    "sam2.1-s": {"blocks_per_stage": [1, 2, 11, 2], "global_attention_blocks": [7, 10, 13]},
    "sam2.1-b": {
        "hidden_size": 112,
        "embed_dim_per_stage": [112, 224, 448, 896],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "blocks_per_stage": [2, 3, 16, 3],
        "global_attention_blocks": [12, 16, 20],
        "window_positional_embedding_background_size": [14, 14],
    },
    "sam2.1-l": {
        "hidden_size": 144,
        "embed_dim_per_stage": [144, 288, 576, 1152],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "blocks_per_stage": [2, 6, 36, 4],
        "global_attention_blocks": [23, 33, 43],
        "window_positional_embedding_background_size": [7, 7],
        "window_size_per_stage": [8, 4, 16, 8],
    },
}
"""What the sizes of SAM 2.1 change in transformers' `Sam2HieraDetConfig`.

Source: https://github.com/huggingface/transformers, `models/sam2/convert_sam2_to_hf.py`."""

VITS: dict[str, tuple[int, int, int, list[int]]] = {
    "sam-hq-b": (768, 12, 12, [2, 5, 8, 11]),
    "sam-hq-l": (1024, 24, 16, [5, 11, 17, 23]),
    "sam-hq-h": (1280, 32, 16, [7, 15, 23, 31]),
}
"""Width, blocks, heads and global blocks of SAM-HQ's encoders."""

ARCHITECTURES = (*HIERA, *VITS, "edgetam")

VIDEO_ONLY = (
    "mask_downsample.",
    "memory_attention.",
    "memory_encoder.",
    "memory_temporal_positional_encoding",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "object_pointer_proj.",
    "occlusion_spatial_embedding_parameter",
    "spatial_perceiver.",
    "temporal_positional_encoding_projection_layer.",
)
"""How the names of weights start that are for videos: the published files have them too."""


def load_transformers_sam(architecture: str, checkpoint: str | os.PathLike[str]) -> Any:
    """Build a model of transformers and fill it from a file.

    Args:
        architecture: a name of `ARCHITECTURES`.
        checkpoint: safetensors in transformers' names; any float dtype. What is in it for videos
            alone is left out.

    Returns:
        `Sam2Model`, `EdgeTamModel` or `SamHQModel`: on the CPU, fp32, `eval`.

    Raises:
        ConfigError: no such architecture, or transformers is missing or too old.
        WeightsError: the file is missing, isn't safetensors, or is for another architecture.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"no architecture is called {architecture!r}; choose one of {', '.join(ARCHITECTURES)}"
        )
    transformers = needed_transformers(architecture)
    path = Path(checkpoint)
    state = _tensors(path)
    # On "meta" no memory is allocated and nothing is initialised: all weights are replaced below.
    with torch.device("meta"):
        model = build(transformers, architecture)
    names = set(model.state_dict())
    # The positional encoding is there twice; a file may have it once.
    first, second = (
        f"{owner}.positional_embedding"
        for owner in ("shared_image_embedding", "prompt_encoder.shared_embedding")
    )
    for name, other in ((first, second), (second, first)):
        if name not in state and other in state:
            state[name] = state[other]
    _check_names(path, architecture, names, set(state))
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"{path} does not fit {architecture}; name its own preset: {one_line(error)}"
        ) from error
    return model.eval()


def build(transformers: Any, architecture: str) -> Any:
    """The model of that architecture with the weights that transformers initialises it with.

    Args:
        transformers: the module.
    """
    builders: dict[str, Callable[[Any, str], Any]] = {"edgetam": _edgetam}
    builders |= dict.fromkeys(HIERA, _sam2) | dict.fromkeys(VITS, _sam_hq)
    return builders[architecture](transformers, architecture)


def _sam2(transformers: Any, architecture: str) -> Any:
    backbone = transformers.Sam2HieraDetConfig(**HIERA[architecture])
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=backbone.embed_dim_per_stage[::-1]
    )
    config = transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config=transformers.Sam2PromptEncoderConfig(),
        mask_decoder_config=transformers.Sam2MaskDecoderConfig(),
    )
    return transformers.Sam2Model(config)


def _edgetam(transformers: Any, _: str) -> Any:
    backbone = transformers.TimmWrapperConfig(
        architecture="repvit_m1",
        model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
    )
    config = transformers.EdgeTamConfig(
        vision_config=transformers.EdgeTamVisionConfig(backbone_config=backbone),
        prompt_encoder_config=transformers.EdgeTamPromptEncoderConfig(),
        mask_decoder_config=transformers.EdgeTamMaskDecoderConfig(),
    )
    return transformers.EdgeTamModel(config)


def _sam_hq(transformers: Any, architecture: str) -> Any:
    width, blocks, heads, of_the_whole = VITS[architecture]
    vision = transformers.SamHQVisionConfig(
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        global_attn_indexes=of_the_whole,
    )
    config = transformers.SamHQConfig(
        vision_config=vision,
        prompt_encoder_config=transformers.SamHQPromptEncoderConfig(),
        mask_decoder_config=transformers.SamHQMaskDecoderConfig(vit_dim=width),
    )
    return transformers.SamHQModel(config)


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file that images need, in fp32.

    Raises:
        WeightsError: no such file, another format, or values that are not finite.
    """
    if not path.is_file():
        raise WeightsError(
            f"there is no file {path}; give the path of a safetensors file, or a preset to "
            "download one"
        )
    try:
        state = load_file(path)
    except Exception as error:  # the parser's errors have no common base
        raise WeightsError(
            f"{path} can't be read as safetensors: {one_line(error)}; this model's weights are the "
            "file model.safetensors of its repository on the hub"
        ) from error
    state = {name: tensor for name, tensor in state.items() if not name.startswith(VIDEO_ONLY)}
    if (name := not_finite(state)) is not None:
        raise WeightsError(
            f"{path} holds values that are not finite, in the tensor {name}: it is damaged; get it "
            "again"
        )
    # Counters of batch norms are integers, and stay so.
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def _check_names(path: Path, architecture: str, expected: set[str], found: set[str]) -> None:
    for kind, names in (("lacks", expected - found), ("also has", found - expected)):
        if names:
            raise WeightsError(
                f"{path} does not fit {architecture}: it {kind} {len(names)} tensors, such as "
                f"{min(names)}; name its own preset, or use the published file"
            )
