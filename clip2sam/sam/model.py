"""The thin adapter around a segment-anything model: the only file that knows its pixel indices."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from clip2sam.kernels.device import PROMPTS_PER_BATCH, budget, to_device
from clip2sam.kernels.relative import MASKED, AttentionChoice
from clip2sam.points import pixel_indices
from clip2sam.sam.cutter import Cutter
from clip2sam.sam.decoder import decode
from clip2sam.sam.encoder import encode_image
from clip2sam.sam.prompts import embed_masks, embed_sparse
from clip2sam.types import Candidates, Embeddings, Prompts, image_index


def encode(encoder: Any, pixels: Tensor, attention: AttentionChoice) -> Tensor:
    """The image encoder's output: of SAM's ViT by `encode_image`, of another one by itself."""
    if hasattr(encoder, "blocks"):
        return encode_image(encoder, pixels, attention)
    return encoder(pixels)


class PromptSAM(Cutter):
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

    @torch.no_grad()
    def decode(self, embeddings: Embeddings, prompts: Prompts) -> Candidates:
        if not len(prompts.coords):
            return self.no_candidates()
        (images,) = embeddings
        encoder = self.sam.prompt_encoder
        owner = image_index(tuple(n for n in prompts.counts if n), self.device)
        scale = self.frame_scale(prompts.sizes)[prompts.image_index]
        coords = pixel_indices(prompts.coords) * scale[:, None]
        boxes = None if prompts.boxes is None else prompts.boxes * scale.repeat(1, 2)
        sparse, attended = embed_sparse(encoder, coords, prompts.point_labels, boxes)
        positions, no_mask = encoder.get_dense_pe()[0], encoder.no_mask_embed.weight[0]
        at_once = budget(PROMPTS_PER_BATCH, self.device)
        if prompts.mask_inputs is None:
            made = decode(
                self.sam.mask_decoder,
                images,
                positions,
                no_mask,
                sparse,
                attended,
                owner,
                at_once,
            )
            return Candidates(*made)
        # Each prompt has its own mask, so its own image embedding: a few prompts at a time.
        chunks = []
        for rows in torch.arange(len(owner), device=self.device).split(at_once):
            dense = embed_masks(encoder, prompts.mask_inputs[rows])
            chunks.append(
                decode(
                    self.sam.mask_decoder,
                    images[owner[rows]] + dense,
                    positions,
                    torch.zeros_like(no_mask),
                    sparse[rows],
                    attended[rows],
                    torch.arange(len(rows), device=self.device),
                    at_once,
                )
            )
        logits, predicted_iou = zip(*chunks, strict=True)
        return Candidates(torch.cat(logits), torch.cat(predicted_iou))
