"""The thin adapter around a segment-anything model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from clip2sam.kernels.device import to_device
from clip2sam.kernels.relative import MASKED, AttentionChoice
from clip2sam.sam.encoder import encode_image
from clip2sam.sam.prompted import PromptedCutter
from clip2sam.sam.prompts import embed_masks, embed_sparse
from clip2sam.types import Embeddings


def encode(encoder: Any, pixels: Tensor, attention: AttentionChoice) -> Tensor:
    """The image encoder's output: of SAM's ViT by `encode_image`, of another one by itself."""
    if hasattr(encoder, "blocks"):
        return encode_image(encoder, pixels, attention)
    return encoder(pixels)


class PromptSAM(PromptedCutter):
    """A segment-anything model that takes the prompts of many labels at once.

    Args:
        sam: segment-anything's `Sam`, in evaluation mode, on its device. Its image encoder is SAM's
            ViT, or another one with its output, `img_size` and `neck`, such as MobileSAM's; it may
            be in bfloat16 or float16. The prompt encoder and the mask decoder are in fp32.
        attention: how SAM's ViT computes its attention, see `clip2sam.kernels.relative`.
        compiled: put the image encoder through `torch.compile`, once for every batch size.
    """

    def __init__(
        self, sam: Any, attention: AttentionChoice = MASKED, *, compiled: bool = False
    ) -> None:
        self.sam = sam.eval()
        self.attention = attention
        self.mask_threshold = sam.mask_threshold
        self._encode = torch.compile(encode, dynamic=False) if compiled else encode

    @property
    def model(self) -> nn.Module:
        return self.sam

    @property
    def dtype(self) -> torch.dtype:
        return self.sam.image_encoder.neck[0].weight.dtype

    @property
    def input_side(self) -> int:
        """Side in pixels of the square that the image encoder takes (1024 for the official
        models)."""
        return self.sam.image_encoder.img_size

    def preprocess(
        self, frames: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Float[Tensor, "images 3 side side"]:
        """Resized images as normalised pixels on the device, padded at the right and the bottom."""
        pixels = (to_device(frame, self.device).permute(2, 0, 1)[None] for frame in frames)
        return torch.cat([self.sam.preprocess(one) for one in pixels])

    @torch.no_grad()
    def encode_image(self, pixels: Float[Tensor, "images 3 side side"]) -> Embeddings:
        """One tensor: (images, channels, rows, cols)."""
        encoder = self.sam.image_encoder
        return (self._encode(encoder, pixels.to(self.dtype), self.attention).float(),)

    def _embed(
        self,
        coords: Float[Tensor, "prompts points 2"],
        labels: Int[Tensor, "prompts points"],
        boxes: Float[Tensor, "prompts 4"] | None,
    ) -> tuple[Float[Tensor, "prompts tokens channels"], Bool[Tensor, "prompts tokens"]]:
        return embed_sparse(self.sam.prompt_encoder, coords, labels, boxes)

    def _embed_masks(
        self, mask_inputs: Float[Tensor, "prompts low low"]
    ) -> Float[Tensor, "prompts channels rows cols"]:
        return embed_masks(self.sam.prompt_encoder, mask_inputs)

    def _around(self) -> tuple[Float[Tensor, "channels rows cols"], Float[Tensor, "channels"]]:
        encoder = self.sam.prompt_encoder
        return encoder.get_dense_pe()[0], encoder.no_mask_embed.weight[0]

    def _decoder(self, levels: Sequence[Tensor]) -> Any:
        return self.sam.mask_decoder
