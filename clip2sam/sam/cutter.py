"""What the pipeline needs of a model that cuts masks out of an image by prompts: `Cutter`.

A model of your own is a subclass with six members; where masks are in an image is computed here,
from the frame in which the model sees it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image as PILImage
from torch import Tensor, nn

from clip2sam.data.images import Image
from clip2sam.kernels.device import MASK_PIXELS_PER_BATCH, budget, on_host
from clip2sam.proposals import box_fit, mask_boxes
from clip2sam.types import Candidates, Embeddings, Prompts, Sizes


class Cutter(ABC):
    """A promptable model: it encodes an image once, and decodes any number of prompts on it.

    The model sees images in its frame: a square of `input_side` pixels with the resized image in
    its upper left corner. Masks are logits of that square at a quarter of its side ("low").
    """

    mask_threshold: float = 0.0
    """Logits above it are inside of the mask."""

    # -- what a model has of its own

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The model, in evaluation mode: its weights are in a run's fingerprint."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """In which images are encoded."""

    @property
    @abstractmethod
    def input_side(self) -> int:
        """Side in pixels of the square that the image encoder takes, a multiple of 4."""

    @abstractmethod
    def preprocess(
        self, frames: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Float[Tensor, "images 3 side side"]:
        """Resized images (RGB, of `resize`) as the image encoder takes them, on the device."""

    @abstractmethod
    def encode_image(self, pixels: Float[Tensor, "images 3 side side"]) -> Embeddings:
        """What is computed of images once for all prompts, in fp32 whatever the encoder's
        precision."""

    @abstractmethod
    def decode(self, embeddings: Embeddings, prompts: Prompts) -> Candidates:
        """Decode all prompts of a batch together. What comes with a prompt makes no difference to
        its masks.

        Args:
            embeddings: of those images that have a prompt, in order.
            prompts: the prompts of all images of the batch.

        Returns:
            Three candidates a prompt.
        """

    def frame_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that an image of `size` has in the model's frame. Here as in SAM: longest
        side resized, at least 1 pixel."""
        scale = self.input_side / max(size)
        height, width = (max(int(side * scale + 0.5), 1) for side in size)
        return height, width

    # -- what follows from it

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def resize(self, image: Image) -> UInt8[np.ndarray, "frame_height frame_width 3"]:
        """Resize an image to the frame with PIL's bilinear filter, as `SamPredictor` does. On the
        host, RGB."""
        height, width = self.frame_size(image.size)
        resized = PILImage.fromarray(image.pixels)
        return np.array(resized.resize((width, height), PILImage.Resampling.BILINEAR))

    def no_candidates(self) -> Candidates:
        """What `decode` gives for no prompt at all."""
        low = self.input_side // 4
        return Candidates(
            torch.zeros(0, 3, low, low, device=self.device), torch.zeros(0, 3, device=self.device)
        )

    def frame_scale(self, sizes: Sizes) -> Float[Tensor, "images 2"]:
        """(x, y) factors from each image's pixels to the frame."""
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
            yield masks[0] > self.mask_threshold

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
        frame = torch.full((len(logits), rows * times, cols * times), self.mask_threshold - 1.0)
        inside = (logits > self.mask_threshold).any(dim=0)
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
        """Masks of one image of (height, width) `size` at the low resolution, without the
        padding."""
        height, width = self.frame_size(size)
        low = logits.shape[-1]
        rows, cols = (max(-(-side * low // self.input_side), 1) for side in (height, width))
        return logits[..., :rows, :cols] > self.mask_threshold

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
        cells = self.frame_scale((size,)) * (logits.shape[-1] / self.input_side)
        return box_fit(self.inside(logits, size), boxes * cells.repeat(1, 2))

    def boxes(
        self, logits: Float[Tensor, "*masks low low"], size: tuple[int, int]
    ) -> Float[Tensor, "*masks 4"]:
        """The box around each mask of one image of (height, width) `size`: x0, y0, x1, y1 in
        continuous pixels of the image, as exact as the low resolution is; all 0 for an empty
        mask."""
        cells = self.frame_scale((size,)) * (logits.shape[-1] / self.input_side)
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
