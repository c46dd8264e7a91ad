"""The tiny preset: a small CLIP and a small SAM, trained on `scenes`, that need no network.

Both are open_clip's and segment-anything's own models with small sizes, so that everything that
works on them works on the large ones. What is new is the patch embedding: a stack of 3x3
convolutions in the place of one wide one (a plain patch embedding did not learn shapes in the time
that two CPU cores have).
"""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import Tensor, nn

from clip2sam.clip.text import TEMPLATES
from clip2sam.errors import WeightsError, one_line
from clip2sam.kernels.tensors import not_finite
from clip2sam.tiny.files import CLIP_FILE, SAM_FILE, embedded_file
from clip2sam.tiny.scenes import COLOURS, SHAPES, TEXTURES

# The longest template with a label of three words has 15 tokens; longer labels are cut.
CONTEXT_LENGTH = 24
VOCABULARY_SIZE = 49408
CLIP_SIDE = 224
SAM_SIDE = 256
SAM_PATCH = 16
STEM_CHANNELS = (24, 48, 64, 96, 96, 160, 160)
STEM_STRIDES = (2, 2, 1, 2, 1, 2, 1)


class LaterConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2 that is padded right and below instead of on all sides.

    Padded on all sides, its receptive field is centred half a pixel up and left of its cell's
    centre. Four in a row are 7.5 pixels off the centre of a patch of 16, which shifts similarity
    maps; one of these as the last of the four moves it by 8 pixels.
    """

    def forward(
        self, input: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out rows cols"]:
        return super().forward(F.pad(input, (0, 1, 0, 1)))


def conv_stem(
    channels: Sequence[int], strides: Sequence[int], width: int, centred: bool
) -> nn.Sequential:
    """A patch embedding of 3x3 convolutions, each with batch norm and ReLU, then 1x1 to `width`.

    It maps (batch, 3, height, width) to (batch, width, height / patch, width / patch).

    Args:
        channels: of each convolution.
        strides: 1 or 2 each; their product is the patch size.
        width: channels of the output.
        centred: whether a token's receptive field is centred on its patch, up to half a pixel; else
            it is 7.5 pixels up and left of that (patch 16).
    """
    layers: list[nn.Module] = []
    last = len(strides) - 1 - tuple(strides)[::-1].index(2)
    for i, (before, after, stride) in enumerate(
        zip((3, *channels), channels, strides, strict=False)
    ):
        shifted = centred and i == last
        convolution = LaterConv2d if shifted else nn.Conv2d
        layers += [
            convolution(before, after, 3, stride, padding=0 if shifted else 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Conv2d(channels[-1], width, 1))


# CLIP


def build_tiny_clip(rows: int = VOCABULARY_SIZE) -> open_clip.model.CLIP:
    """The untrained CLIP: 224 pixels, 14 x 14 tokens, 6 blocks of width 192 with heads of 32,
    embedding 128.

    Args:
        rows: of the token embedding. Training uses one row for each of `known_tokens()` and one row
            for all other tokens.
    """
    vision = open_clip.model.CLIPVisionCfg(
        layers=6, width=192, head_width=32, patch_size=16, image_size=CLIP_SIDE, mlp_ratio=4.0
    )
    text = open_clip.model.CLIPTextCfg(
        context_length=CONTEXT_LENGTH, vocab_size=rows, width=64, heads=2, layers=2, mlp_ratio=4.0
    )
    model = open_clip.model.CLIP(128, vision, text, init_logit_scale=2.3, init_logit_bias=-4.0)
    model.visual.conv1 = conv_stem(STEM_CHANNELS, STEM_STRIDES, 192, centred=True)
    model.visual.image_mean, model.visual.image_std = (
        open_clip.OPENAI_DATASET_MEAN,
        open_clip.OPENAI_DATASET_STD,
    )
    return model


def tiny_tokenizer() -> open_clip.SimpleTokenizer:
    """open_clip's standard BPE tokenizer with the tiny CLIP's context length."""
    return open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)


def known_tokens() -> list[int]:
    """Ids, ascending, of the tokens of the training texts: templates, the words of labels, start,
    end, padding."""
    tokenizer = tiny_tokenizer()
    words = (
        *(t.replace("{}", "") for t in TEMPLATES),
        *COLOURS,
        *TEXTURES,
        *SHAPES,
        "thing",
        "object",
    )
    ids = {i for text in words for i in tokenizer.encode(text)}
    return sorted(ids | {0, tokenizer.sot_token_id, tokenizer.eot_token_id})


def compact_rows(known: Sequence[int]) -> Int[Tensor, "vocabulary"]:
    """For each token id its row in the compact embedding: 0 for every unknown token, then the known
    ones in order.

    The end-of-text token, the highest id, keeps the highest row: open_clip finds it by argmax.
    """
    rows = torch.zeros(VOCABULARY_SIZE, dtype=torch.long)
    rows[torch.as_tensor(known, dtype=torch.long)] = torch.arange(1, len(known) + 1)
    return rows


def save_tiny_clip(model: open_clip.model.CLIP, known: Sequence[int], path: Path) -> None:
    """Write a CLIP in fp16 whose token embedding is compact: a row for all unknown tokens, then
    those of `known`."""
    tensors = {
        name: tensor.half().contiguous()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
    save_file(tensors, path, {"known_tokens": json.dumps(list(known))})


def load_tiny_clip(
    path: str | os.PathLike[str] | None = None,
) -> tuple[open_clip.model.CLIP, open_clip.SimpleTokenizer]:
    """The trained CLIP and its tokenizer: on the CPU, fp32, `eval`.

    Args:
        path: a file of `save_tiny_clip`; by default the embedded one.

    Raises:
        WeightsError: the file is missing, changed, not a tiny CLIP's, or holds values that are not
            finite.
    """
    file = Path(path) if path else embedded_file(CLIP_FILE)
    tensors, metadata = _read(file)
    known = _known_ids(metadata.get("known_tokens", ""))
    compact = tensors.get("token_embedding.weight")
    if known is None or compact is None or compact.shape[:1] != (len(known) + 1,):
        raise WeightsError(
            f"expected a tiny CLIP's weights in {file}, got others: restore the file"
        )
    tensors["token_embedding.weight"] = compact[compact_rows(known)]
    model = build_tiny_clip()
    _fill(model, tensors, file)
    return model.eval(), tiny_tokenizer()


def _known_ids(text: str) -> list[int] | None:
    """The ascending token ids in a file's metadata; None if it isn't that."""
    try:
        known = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(known, list) or not all(type(i) is int for i in known):
        return None
    fit = all(0 <= i < VOCABULARY_SIZE for i in known) and known == sorted(set(known))
    return known if fit else None


# SAM


def build_tiny_sam() -> Sam:
    """The untrained SAM of segment-anything's modules: 256 pixels, 16 x 16 tokens, low-resolution
    masks of 64 x 64."""
    width, tokens = 128, SAM_SIDE // SAM_PATCH
    encoder = ImageEncoderViT(
        img_size=SAM_SIDE,
        patch_size=SAM_PATCH,
        embed_dim=128,
        depth=4,
        num_heads=4,
        mlp_ratio=4,
        out_chans=width,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=8,
        global_attn_indexes=(1, 3),
    )
    encoder.patch_embed.proj = conv_stem(STEM_CHANNELS, STEM_STRIDES, 128, centred=False)
    prompts = PromptEncoder(width, (tokens, tokens), (SAM_SIDE, SAM_SIDE), mask_in_chans=16)
    decoder = MaskDecoder(
        transformer_dim=width,
        transformer=TwoWayTransformer(depth=2, embedding_dim=width, num_heads=4, mlp_dim=256),
        iou_head_hidden_dim=128,
    )
    return Sam(encoder, prompts, decoder)


def save_tiny_sam(model: Sam, path: Path) -> None:
    """Write a tiny SAM in fp16."""
    save_file(
        {n: t.half().contiguous() for n, t in model.state_dict().items() if t.is_floating_point()},
        path,
    )


def load_tiny_sam(path: str | os.PathLike[str] | None = None) -> Sam:
    """The trained SAM: on the CPU, fp32, `eval`.

    Args:
        path: a file of `save_tiny_sam`; by default the embedded one.

    Raises:
        WeightsError: the file is missing, changed, not a tiny SAM's, or holds values that are not
            finite.
    """
    file = Path(path) if path else embedded_file(SAM_FILE)
    tensors, _ = _read(file)
    model = build_tiny_sam()
    _fill(model, tensors, file)
    return model.eval()


# Files


def _read(path: Path) -> tuple[dict[str, Float[Tensor, "..."]], dict[str, str]]:
    """Every tensor of a safetensors file, in fp32, and its metadata."""
    if not path.is_file():
        raise WeightsError(
            f"expected tiny weights at {path}, found no file: give another path, or none"
        )
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except Exception as error:  # safetensors' own exceptions have no other common base class
        raise WeightsError(
            f"expected a safetensors file at {path}, got {one_line(error)}: restore the file"
        ) from error
    if (name := not_finite(tensors)) is not None:
        raise WeightsError(
            f"the tensor {name} in {path} has values that are not finite: restore the file"
        )
    return tensors, metadata


def _fill(model: nn.Module, tensors: dict[str, Float[Tensor, "..."]], path: Path) -> None:
    """Load all tensors. Only batch norm's counters, which training alone uses, may be missing."""
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise WeightsError(
            f"expected tensors of the tiny model in {path}: {one_line(error)}"
        ) from error
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise WeightsError(
            f"expected the tiny model's tensors in {path}, missing {missing[:3]}, unexpected "
            f"{unexpected[:3]}: restore the file that belongs to this version"
        )
