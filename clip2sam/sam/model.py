"""The thin adapter around a segment-anything model: the only file that knows its frame and its
pixel indices."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image as PILImage
from torch import Tensor

from clip2sam.data.images import Image
from clip2sam.kernels.device import (
    MASK_PIXELS_PER_BATCH,
    PROMPTS_PER_BATCH,
    budget,
    on_host,
    to_device,
)
from clip2sam.kernels.relative import MASKED, AttentionChoice
from clip2sam.points import pixel_indices
from clip2sam.proposals import box_fit, mask_boxes
from clip2sam.sam.decoder import decode
from clip2sam.sam.encoder import encode_image
from clip2sam.sam.prompts import embed_masks, embed_sparse
from clip2sam.types import Candidates, Prompts, Sizes, image_index


class PromptSAM:
    """A segment-anything model that takes the prompts of many labels at once.

    Args:
        sam: segment-anything's `Sam`, in evaluation mode, on its device. Its image encoder may be
            in bfloat16 or float16; the prompt encoder and the mask decoder are in fp32.
        attention: how the image encoder computes its attention, see `clip2sam.kernels.relative`.
        compiled: put the image encoder through `torch.compile`, once for every batch size.
    """

    def __init__(
        self, sam: Any, attention: AttentionChoice = MASKED, *, compiled: bool = False
    ) -> None:
        self.sam = sam.eval()
        self.attention = attention
        self._encode = torch.compile(encode_image, dynamic=False) if compiled else encode_image

    @property
    def device(self) -> torch.device:
        return self.sam.pixel_mean.device

    @property
    def input_side(self) -> int:
        """Side in pixels of the square that the image encoder takes (1024 for the official
        models)."""
        return self.sam.image_encoder.img_size

    def frame_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that an image of `size` has in SAM's frame: longest side resized, at
        least 1 pixel."""
        scale = self.input_side / max(size)
        height, width = (max(int(side * scale + 0.5), 1) for side in size)
        return height, width

    def resize(self, image: Image) -> UInt8[np.ndarray, "frame_height frame_width 3"]:
        """Resize an image to SAM's frame as `SamPredictor` does (longest side, PIL bilinear). On
        the host, RGB."""
        height, width = self.frame_size(image.size)
        resized = PILImage.fromarray(image.pixels)
        return np.array(resized.resize((width, height), PILImage.Resampling.BILINEAR))

    def preprocess(
        self, frames: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Float[Tensor, "images 3 side side"]:
        """Resized images as normalised pixels on the device, padded at the right and the bottom."""
        pixels = (to_device(frame, self.device).permute(2, 0, 1)[None] for frame in frames)
        return torch.cat([self.sam.preprocess(one) for one in pixels])

    @torch.no_grad()
    def encode_image(
        self, pixels: Float[Tensor, "images 3 side side"]
    ) -> Float[Tensor, "images channels rows cols"]:
        """The image embeddings, in fp32 whatever the encoder's precision."""
        dtype = self.sam.image_encoder.neck[0].weight.dtype
        return self._encode(self.sam.image_encoder, pixels.to(dtype), self.attention).float()

    @torch.no_grad()
    def decode(
        self, embeddings: Float[Tensor, "images channels rows cols"], prompts: Prompts
    ) -> Candidates:
        """Decode all prompts of a batch together.

        Args:
            embeddings: of those images that have a prompt, in order.
            prompts: the prompts of all images of the batch.

        Returns:
            Three candidates a prompt.
        """
        if not len(prompts.coords):
            return self.no_candidates()
        encoder = self.sam.prompt_encoder
        owner = image_index(tuple(n for n in prompts.counts if n), self.device)
        scale = self._frame_scale(prompts.sizes)[prompts.image_index]
        coords = pixel_indices(prompts.coords) * scale[:, None]
        boxes = None if prompts.boxes is None else prompts.boxes * scale.repeat(1, 2)
        sparse, attended = embed_sparse(encoder, coords, prompts.point_labels, boxes)
        positions, no_mask = encoder.get_dense_pe()[0], encoder.no_mask_embed.weight[0]
        at_once = budget(PROMPTS_PER_BATCH, self.device)
        if prompts.mask_inputs is None:
            made = decode(
                self.sam.mask_decoder,
                embeddings,
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
                    embeddings[owner[rows]] + dense,
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

    def no_candidates(self) -> Candidates:
        """What `decode` gives for no prompt at all."""
        low = self.input_side // 4
        return Candidates(
            torch.zeros(0, 3, low, low, device=self.device), torch.zeros(0, 3, device=self.device)
        )

    def _frame_scale(self, sizes: Sizes) -> Float[Tensor, "images 2"]:
        """(x, y) factors from each image's pixels to SAM's frame."""
        frames = [self.frame_size(size) for size in sizes]
        factors = [
            (wide / width, high / height)
            for (high, wide), (height, width) in zip(frames, sizes, strict=True)
        ]
        return torch.tensor(factors, device=self.device)

    @torch.no_grad()
    def upscale(
        self, logits: Float[Tensor, "masks low low"], size: tuple[int, int]
    ) -> Iterator[Bool[Tensor, "some height width"]]:
        """Masks of one image at its (height, width), as many at once as memory allows, in order.

        Two bilinear resizes with the padding cut in between, as in segment-anything's
        `postprocess_masks`.
        """
        if not len(logits):
            return
        height, width = self.frame_size(size)
        times = self.input_side // logits.shape[-1]
        # The padding is cut before the first resize too, but for the row and column next to it,
        # which bilinear resizing reads.
        rows, cols = (min(-(-side // times) + 1, logits.shape[-1]) for side in (height, width))
        pixels = budget(MASK_PIXELS_PER_BATCH, self.device)
        at_once = max(pixels // max(size[0] * size[1], rows * cols * times**2), 1)
        for chunk in logits[:, :rows, :cols].split(at_once):
            frame = self._frame(chunk, times)
            masks = F.interpolate(
                frame[None, :, :height, :width], size, mode="bilinear", align_corners=False
            )
            yield masks[0] > self.sam.mask_threshold

    def _frame(
        self, logits: Float[Tensor, "masks rows cols"], times: int
    ) -> Float[Tensor, "masks high wide"]:
        """The logits resized by a factor. On a CPU only the part around the masks is computed: the
        rest is below the threshold anyway."""
        _, rows, cols = logits.shape
        if not on_host(logits):
            return F.interpolate(
                logits[None], (rows * times, cols * times), mode="bilinear", align_corners=False
            )[0]
        frame = torch.full((len(logits), rows * times, cols * times), self.sam.mask_threshold - 1.0)
        inside = (logits > self.sam.mask_threshold).any(dim=0)
        (top, bottom), (left, right) = (_reach(inside.any(dim=axis)) for axis in (1, 0))
        if top < bottom:
            part = logits[None, :, top:bottom, left:right]
            size = ((bottom - top) * times, (right - left) * times)
            near = F.interpolate(part, size, mode="bilinear", align_corners=False)
            frame[:, top * times : bottom * times, left * times : right * times] = near[0]
        return frame

    def inside(
        self, logits: Float[Tensor, "*masks low low"], size: tuple[int, int]
    ) -> Bool[Tensor, "*masks low_rows low_cols"]:
        """Masks of one image of (height, width) `size` at SAM's low resolution, without the
        padding."""
        height, width = self.frame_size(size)
        low = logits.shape[-1]
        rows, cols = (max(-(-side * low // self.input_side), 1) for side in (height, width))
        return logits[..., :rows, :cols] > self.sam.mask_threshold

    def fit(
        self,
        logits: Float[Tensor, "prompts masks low low"],
        boxes: Float[Tensor, "prompts 4"],
        size: tuple[int, int],
    ) -> Float[Tensor, "prompts masks"]:
        """How well masks of one image of (height, width) `size` fit the box of their prompt, 0 to
        1.

        Args:
            boxes: x0, y0, x1, y1 in continuous pixels of the image.
        """
        cells = self._frame_scale((size,)) * (logits.shape[-1] / self.input_side)
        return box_fit(self.inside(logits, size), boxes * cells.repeat(1, 2))

    def boxes(
        self, logits: Float[Tensor, "*masks low low"], size: tuple[int, int]
    ) -> Float[Tensor, "*masks 4"]:
        """The box around each mask of one image of (height, width) `size`: x0, y0, x1, y1 in
        continuous pixels of the image, as exact as SAM's low resolution is; all 0 for an empty
        mask."""
        cells = self._frame_scale((size,)) * (logits.shape[-1] / self.input_side)
        height, width = size
        most = torch.tensor([width, height, width, height], device=logits.device)
        return (mask_boxes(self.inside(logits, size)) / cells.repeat(1, 2)[0]).minimum(most)

    def coverage(
        self,
        logits: Float[Tensor, "*masks low low"],
        size: tuple[int, int],
        cells: tuple[int, int],
    ) -> Float[Tensor, "*masks rows cols"]:
        """The share of each cell of a (rows, cols) grid over one image of (height, width) `size`
        that each mask covers, 0 to 1."""
        inside = self.inside(logits, size).float()
        pooled = F.adaptive_avg_pool2d(inside.flatten(0, -3)[None], cells)[0]
        return pooled.unflatten(0, logits.shape[:-2])


def _reach(inside: Bool[Tensor, "_"]) -> tuple[int, int]:
    """The range from the first True to behind the last, two wider at both ends: bilinear resizing
    reads one neighbour to either side."""
    places = inside.nonzero()
    return (
        (max(int(places[0]) - 2, 0), min(int(places[-1]) + 3, len(inside)))
        if len(places)
        else (0, 0)
    )
