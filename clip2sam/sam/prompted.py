"""Decoding that SAM and its relatives have in common: the prompts of a batch into the frame, into
tokens, and through the two-way transformer, a bounded number at a time. The only file that knows
SAM's pixel indices."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clip2sam.kernels.device import PROMPTS_PER_BATCH, budget
from clip2sam.points import pixel_indices
from clip2sam.sam.cutter import Cutter
from clip2sam.sam.decoder import decode
from clip2sam.types import Candidates, Embeddings, Prompts, image_index


class PromptedCutter(Cutter):
    """A cutter whose prompt encoder and mask decoder are SAM's, or SAM's with additions."""

    @abstractmethod
    def _embed(
        self,
        coords: Float[Tensor, "prompts points 2"],
        labels: Int[Tensor, "prompts points"],
        boxes: Float[Tensor, "prompts 4"] | None,
    ) -> tuple[Float[Tensor, "prompts tokens channels"], Bool[Tensor, "prompts tokens"]]:
        """Points and boxes in the frame as tokens, and which of them may be attended to."""

    @abstractmethod
    def _embed_masks(
        self, mask_inputs: Float[Tensor, "prompts low low"]
    ) -> Float[Tensor, "prompts channels rows cols"]:
        """Mask inputs as they are added to the image embedding of their prompt."""

    @abstractmethod
    def _around(self) -> tuple[Float[Tensor, "channels rows cols"], Float[Tensor, "channels"]]:
        """The positional encoding of the image's places, and the embedding of "no mask given"."""

    @abstractmethod
    def _decoder(self, levels: Sequence[Tensor]) -> Any:
        """The mask decoder, as `decode` takes it, for images with these embeddings behind the
        first."""

    @torch.no_grad()
    def decode(self, embeddings: Embeddings, prompts: Prompts) -> Candidates:
        if not len(prompts.coords):
            return self.no_candidates()
        images, *levels = embeddings
        owner = image_index(tuple(n for n in prompts.counts if n), self.device)
        scale = self.frame_scale(prompts.sizes)[prompts.image_index]
        coords = pixel_indices(prompts.coords) * scale[:, None]
        boxes = None if prompts.boxes is None else prompts.boxes * scale.repeat(1, 2)
        sparse, attended = self._embed(coords, prompts.point_labels, boxes)
        positions, no_mask = self._around()
        at_once = budget(PROMPTS_PER_BATCH, self.device)
        if prompts.mask_inputs is None:
            decoder = self._decoder(levels)
            made = decode(decoder, images, positions, no_mask, sparse, attended, owner, at_once)
            return Candidates(*made)
        # Each prompt has its own mask, so its own image embedding: a few prompts at a time.
        chunks = []
        for rows in torch.arange(len(owner), device=self.device).split(at_once):
            dense = self._embed_masks(prompts.mask_inputs[rows])
            chunks.append(
                decode(
                    self._decoder([level[owner[rows]] for level in levels]),
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
