"""SAM 3: masks with scores for each text prompt ("concept"), so SAM need not cut them.

Source: Carion et al., 2025, https://arxiv.org/abs/2511.16719; `modeling_sam3.py` and
`image_processing_sam3.py` of transformers.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip2sam.config import Config
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.features import Features
from clip2sam.locate import Located, check_finds_objects
from clip2sam.sam import Cutter
from clip2sam.trained.boxes import Objects, best_objects, check_scores, clipped, located
from clip2sam.trained.hub import HubModel
from clip2sam.trained.pair import Pair, check_own_side, texts_of
from clip2sam.types import Candidates

HUB = HubModel(
    "facebook/sam3",
    "3c879f39826c281e95690f02c7821c4de09afae7",
    "SAM License",
    "Sam3Model",
    "Sam3Processor",
    gated=True,
)

OUTSIDE = -20.0
"""Mask logit outside of the image."""

SAME_BOX = 0.8
"""IoU above which boxes of several prompts of a label are one object; those of one prompt never
are."""


class Sam3Locator:
    """SAM 3 as a locator. The image is encoded once for all labels, and labels don't interact.

    Args:
        model: `Sam3Model`, on the segmenter's device.
        processor: `Sam3Processor`.
        sam: the segmenter's: the masks are put into its frame.
        commit: of the hub, if they are from there.
    """

    name = "sam3"

    def __init__(self, model: Any, processor: Any, sam: Cutter, commit: str = "") -> None:
        self.pair, self.sam = Pair(model, processor, commit), sam

    @property
    def resolution(self) -> int:
        """Side of the square that images are resized to."""
        return self.pair.side

    def weights(self) -> dict[str, str]:
        """See `Pair.weights`."""
        return self.pair.weights()

    def check(self, config: Config) -> None:
        """Refuse one prompt a label, and a resolution."""
        check_finds_objects(self.name, config)
        check_own_side(self.name, config, self.resolution)

    @torch.no_grad()
    def locate(self, features: Features, labels: LabelSet, config: Config) -> Located:
        """The masks of every class: the best `Config.max_objects` of each."""
        texts, counts = texts_of(labels)
        context = self.pair.model.config.text_config.max_position_embeddings
        tokens = self.pair.tokens(texts, context)
        most = config.max_objects
        seen = [self._objects(image, tokens, counts, most) for image in features.images]
        found = [objects for objects, _ in seen]
        score, masks = torch.cat([own[1] for own in found]), torch.cat([own for _, own in seen])
        cut = Candidates(masks[:, None], score[:, None])
        return located(found, features.sizes, len(counts), cut)

    def _objects(
        self, image: Image, tokens: dict[str, Tensor], counts: Sequence[int], most: int
    ) -> tuple[Objects, Float[Tensor, "objects low low"]]:
        """Objects of one image and their masks in SAM's frame. The text prompts are taken one by
        one, which bounds the memory, and only the masks of a class's best are kept."""
        seen = self.pair.model.get_vision_features(**self._square(image))
        owner = [label for label, count in enumerate(counts) for _ in range(count)]
        low = self.sam.input_side // 4
        boxes = [torch.zeros(0, 4, device=self.sam.device)] * len(counts)
        scores = [torch.zeros(0, device=self.sam.device)] * len(counts)
        masks = [torch.zeros(0, low, low, device=self.sam.device)] * len(counts)
        for row, label in enumerate(owner):
            box, score, mask = self._of_text(
                seen, {key: ids[row : row + 1] for key, ids in tokens.items()}, image, most
            )
            boxes[label] = torch.cat([boxes[label], box])
            scores[label] = torch.cat([scores[label], score])
            masks[label] = torch.cat([masks[label], mask])
            same = SAME_BOX if counts[label] > 1 else None
            best = best_objects(boxes[label], scores[label], most, same)
            boxes[label], scores[label], masks[label] = (
                column[label][best] for column in (boxes, scores, masks)
            )
        index = [torch.full_like(own, i, dtype=torch.long) for i, own in enumerate(scores)]
        return (torch.cat(boxes), torch.cat(scores), torch.cat(index)), torch.cat(masks)

    def _square(self, image: Image) -> dict[str, Tensor]:
        return {"pixel_values": self.pair.pixels(image)["pixel_values"]}

    def _of_text(
        self, seen: Any, tokens: dict[str, Tensor], image: Image, most: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and masks of one text prompt's best."""
        made = self.pair.model(vision_embeds=seen, **tokens)
        score = (made.pred_logits.sigmoid() * made.presence_logits.sigmoid())[0]
        height, width = image.size
        sides = made.pred_boxes.new_tensor([width, height, width, height])
        boxes = clipped(made.pred_boxes[0] * sides, image.size)
        check_scores(self.name, image, boxes, score)
        best = best_objects(boxes, score, most, None)
        return boxes[best], score[best], in_frame(self.sam, made.pred_masks[0, best], image.size)


def in_frame(
    sam: Cutter, logits: Float[Tensor, "masks rows cols"], size: tuple[int, int]
) -> Float[Tensor, "masks low low"]:
    """Mask logits that cover a whole image of (height, width) `size`, resampled into SAM's padded
    frame at its low resolution. One cell beyond the image goes on as its border: bilinear resizing
    reads it."""
    side, (height, width) = sam.input_side, sam.frame_size(size)
    fine = F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)
    fine = F.pad(fine, (0, side - width, 0, side - height), mode="replicate")
    masks = F.avg_pool2d(fine, 4)[0]  # a cell's mean keeps where in it the edge is
    cell = torch.arange(side // 4, device=logits.device)
    rows, cols = (cell <= -(-frame // 4) for frame in (height, width))
    return torch.where(rows[:, None] & cols, masks, OUTSIDE)
