"""The thin adapter around a segment-anything model: the only place that knows its frame and its pixel indices."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image as PILImage
from torch import Tensor

from clip2sam.data.images import Image
from clip2sam.kernels.device import on_host, to_device
from clip2sam.kernels.relative import MASKED, Attention
from clip2sam.points import PADDING, pixel_indices
from clip2sam.sam.decoder import decode, embed_points
from clip2sam.sam.encoder import encode_image
from clip2sam.types import PointPrompts

PICTURES_A_BATCH = 4
"""Pictures that the encoders take at once in a run over a data set, on a device that is no CPU."""

PROMPTS_A_BATCH = {"cpu": 1, "cuda": 32}
"""Prompts decoded together. On a CPU one after the other stays in the cache; a GPU wants to be filled (40 MB each)."""

PIXELS_A_BATCH = {"cpu": 2**20, "cuda": 32 * 2**20}
"""Bounds the memory of masks at the picture's size: so many float pixels at once, or one mask."""


Candidates = tuple[Float[Tensor, "prompts candidates low low"], Float[Tensor, "prompts candidates"]]
"""Logits and predicted IoU of each prompt's three masks."""


class PointSAM:
    """A segment-anything model that takes point prompts for many labels at once.

    Args:
        sam: segment-anything's `Sam`, in evaluation mode, on its device. Its image encoder may be in bfloat16 or
            float16; the prompt encoder and the mask decoder are in float32.
        attention: how the image encoder computes its attention; `attention.fastest` measures it.
        compiled: put the image encoder through `torch.compile`, once for every batch size that comes.
    """

    def __init__(self, sam: Any, attention: Attention = MASKED, *, compiled: bool = False) -> None:
        self.sam = sam.eval()
        self.attention = attention
        self._encode = torch.compile(encode_image, dynamic=False) if compiled else encode_image

    @property
    def device(self) -> torch.device:
        return self.sam.pixel_mean.device

    @property
    def input_side(self) -> int:
        """Side in pixels of the square that the image encoder takes (1024 for the official models)."""
        return self.sam.image_encoder.img_size

    def frame_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that a picture of `size` has in SAM's frame: longest side resized, at least 1 pixel."""
        scale = self.input_side / max(size)
        height, width = (max(int(side * scale + 0.5), 1) for side in size)
        return height, width

    def preprocess(self, images: Sequence[Image]) -> Float[Tensor, "batch 3 side side"]:
        """Resize as `SamPredictor` does (longest side, PIL bilinear), normalise, pad at the right and the bottom."""
        return torch.cat([self._preprocess_one(image) for image in images])

    def _preprocess_one(self, image: Image) -> Float[Tensor, "1 3 side side"]:
        pixels = image.resized(*self.frame_size(image.size), PILImage.Resampling.BILINEAR)
        return self.sam.preprocess(to_device(pixels, self.device).permute(2, 0, 1)[None])

    def prepare(self, image: Image) -> None:
        """The host's part of `preprocess`, ahead."""
        image.resize_ahead(*self.frame_size(image.size), PILImage.Resampling.BILINEAR)

    @torch.no_grad()
    def encode_image(
        self, pixels: Float[Tensor, "batch 3 side side"]
    ) -> Float[Tensor, "batch channels rows cols"]:
        """The image embeddings, in float32 whatever the encoder's precision."""
        dtype = self.sam.image_encoder.neck[0].weight.dtype
        return self._encode(self.sam.image_encoder, pixels.to(dtype), self.attention).float()

    def decode(
        self,
        embedding: Float[Tensor, "channels rows cols"],
        prompts: PointPrompts,
        size: tuple[int, int],
    ) -> Candidates:
        """Decode all prompts of one picture of (height, width) `size`, as `decode_batch` does."""
        return self.decode_batch(embedding[None], [prompts], [size])[0]

    @torch.no_grad()
    def decode_batch(
        self,
        embeddings: Float[Tensor, "batch channels rows cols"],
        prompts: Sequence[PointPrompts],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Candidates]:
        """Decode all prompts of pictures of (height, width) `sizes` together.

        Returns:
            For each picture three candidates a prompt: mask logits in SAM's frame at a quarter of its input size
            (positive = in the mask), and the IoU that SAM predicts for each.
        """
        counts = [len(p.coords) for p in prompts]
        if not any(counts):
            return [self.no_candidates() for _ in prompts]
        longest = max(p.coords.shape[1] for p in prompts)
        coords = torch.cat(
            [self._in_frame(p, size, longest) for p, size in zip(prompts, sizes, strict=True)]
        )
        labels = torch.cat([_padded(p.point_labels, longest) for p in prompts])
        owner = torch.cat([torch.full((n,), i, device=self.device) for i, n in enumerate(counts)])
        encoder = self.sam.prompt_encoder
        logits, iou = decode(
            self.sam.mask_decoder,
            embeddings,
            encoder.get_dense_pe()[0],
            encoder.no_mask_embed.weight[0],
            embed_points(encoder, coords, labels),
            F.pad(labels != PADDING, (0, 1), value=True),
            owner,
            PROMPTS_A_BATCH.get(self.device.type, PROMPTS_A_BATCH["cuda"]),
        )
        return list(zip(logits.split(counts), iou.split(counts), strict=True))

    def _in_frame(
        self, prompts: PointPrompts, size: tuple[int, int], length: int
    ) -> Float[Tensor, "prompts length 2"]:
        """Pixel indices in SAM's frame, filled up to so many points."""
        height, width = self.frame_size(size)
        scale = torch.tensor([width / size[1], height / size[0]], device=self.device)
        coords = pixel_indices(prompts.coords) * scale
        return F.pad(coords, (0, 0, 0, length - coords.shape[1]))

    def no_candidates(self) -> Candidates:
        """What `decode` gives for no prompt at all."""
        low = self.input_side // 4
        return torch.zeros(0, 3, low, low, device=self.device), torch.zeros(
            0, 3, device=self.device
        )

    @torch.no_grad()
    def upscale(
        self, logits: Float[Tensor, "masks low low"], size: tuple[int, int]
    ) -> Iterator[Bool[Tensor, "some height width"]]:
        """Masks at the picture's (height, width), as many at once as memory allows, in order.

        Two bilinear resizes with the padding cut in between, as segment-anything's `postprocess_masks`.
        """
        if not len(logits):
            return
        height, width = self.frame_size(size)
        times = self.input_side // logits.shape[-1]
        # The padding is cut before the first resize too, but for the one row and column that it looks at.
        rows, cols = (min(-(-side // times) + 1, logits.shape[-1]) for side in (height, width))
        pixels = PIXELS_A_BATCH.get(self.device.type, PIXELS_A_BATCH["cuda"])
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
        """The logits `times` as large. On a CPU only around what is in a mask: beyond, they are below the threshold."""
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

    def pool_candidates(
        self,
        logits: Float[Tensor, "prompts candidates low low"],
        size: tuple[int, int],
        cells: tuple[int, int],
    ) -> Float[Tensor, "prompts candidates rows cols"]:
        """How much of each cell of a (rows, cols) grid over the picture every candidate mask covers, 0 to 1."""
        height, width = self.frame_size(size)
        low = logits.shape[-1]
        rows, cols = (max(-(-side * low // self.input_side), 1) for side in (height, width))
        inside = (logits[..., :rows, :cols] > self.sam.mask_threshold).float()
        return F.adaptive_avg_pool2d(inside, cells)


def _padded(labels: Int[Tensor, "prompts points"], length: int) -> Int[Tensor, "prompts length"]:
    return F.pad(labels, (0, length - labels.shape[1]), value=PADDING)


def _reach(inside: Bool[Tensor, "_"]) -> tuple[int, int]:
    """From the first place inside to behind the last, and two further: bilinear resizing looks one to either side."""
    places = inside.nonzero()
    return (
        (max(int(places[0]) - 2, 0), min(int(places[-1]) + 3, len(inside)))
        if len(places)
        else (0, 0)
    )
