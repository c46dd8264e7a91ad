"""Checkpoints with segment-anything's names, whoever trained them: where the tensors are in the
file, and for which SAM they are.

Training programs keep more than the weights, and wrap the model. MedSAM's has the weights under
"model", micro-sam's (torch_em) under "model_state", both with a prefix for each class around SAM.

Source: https://github.com/bowang-lab/MedSAM, `utils/ckpt_convert.py`;
https://github.com/computational-cell-analytics/micro-sam, `micro_sam/util.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segment_anything import sam_model_registry
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor

from clip2sam.errors import WeightsError
from clip2sam.models.presets import PRESETS, SamWeights
from clip2sam.sam.tiny_vit import TinyViT, published_names

SAM_TYPES = ("vit_b", "vit_l", "vit_h", "vit_t")
"""SAM's model types by segment-anything's names; "vit_t" is MobileSAM's."""

WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""SAM's model types by the width of their ViT."""

NESTED = ("state_dict", "model", "model_state")
"""Under which names training programs keep the weights."""

WRAPPERS = ("module.", "sam.")
"""Prefixes of the names: of PyTorch's parallel training, and of a class that holds SAM."""

PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")

SIDE, CHANNELS = 1024, 256


def untrained_sam(model_type: str) -> Sam:
    """segment-anything's `Sam` of that type, not trained; MobileSAM's encoder is not folded."""
    if model_type != "vit_t":
        return sam_model_registry[model_type]()
    cells = SIDE // 16
    return Sam(
        TinyViT(SIDE, channels=CHANNELS),
        PromptEncoder(CHANNELS, (cells, cells), (SIDE, SIDE), mask_in_chans=16),
        MaskDecoder(
            transformer_dim=CHANNELS,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=CHANNELS, num_heads=8, mlp_dim=2048
            ),
        ),
    )


def unwrapped(content: Any) -> Any:
    """The weights in what a training program saved; anything else as it is."""
    if isinstance(content, dict):
        for name in NESTED:
            if isinstance(content.get(name), dict):
                return content[name]
    return content


def official_names(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors under segment-anything's names, without wrappers.

    Raises:
        WeightsError: a part of SAM isn't there at all.
    """
    named = {_without_wrappers(name): tensor for name, tensor in state.items()}
    there = [part for part in PARTS if any(name.startswith(part) for name in named)]
    if there and there != list(PARTS):
        absent = " and ".join(part.rstrip(".") for part in PARTS if part not in there)
        raise WeightsError(
            f"{path} holds SAM's {' and '.join(part.rstrip('.') for part in there)} alone, without "
            f"{absent}; give a checkpoint of the whole model"
        )
    return named


def _without_wrappers(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def own_names(state: Mapping[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """The tensors by the names that they have in `untrained_sam`."""
    if model_type != "vit_t":
        return dict(state)
    encoder = {
        name.removeprefix(PARTS[0]): tensor
        for name, tensor in state.items()
        if name.startswith(PARTS[0])
    }
    others = {name: tensor for name, tensor in state.items() if not name.startswith(PARTS[0])}
    return {**{PARTS[0] + n: t for n, t in published_names(encoder).items()}, **others}


def type_of(state: Mapping[str, Tensor]) -> str | None:
    """For which model type a checkpoint with segment-anything's names looks, by its image encoder.
    None: for none that is known."""
    if "image_encoder.patch_embed.seq.0.c.weight" in state:
        return "vit_t"
    embedding = state.get("image_encoder.patch_embed.proj.weight")
    width = embedding.shape[0] if embedding is not None and embedding.ndim else 0
    return WIDTHS.get(width)


def preset_for(model_type: str) -> str:
    """The first preset with that SAM."""
    return next(
        preset.name
        for preset in PRESETS.values()
        if isinstance(preset.sam, SamWeights) and preset.sam.model_type == model_type
    )
