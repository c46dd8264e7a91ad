"""OWLv2: a box for each query, one query a text prompt.

Source: Minderer et al., 2023, https://arxiv.org/abs/2306.09683; `modeling_owlv2.py` and
`image_processing_owlv2.py` of transformers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clip2sam.config import MAX_OBJECTS, Config
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.features import Features
from clip2sam.locate import Located, check_finds_objects
from clip2sam.trained.boxes import Objects, best_objects, check_scores, corners, located
from clip2sam.trained.hub import HubModel
from clip2sam.trained.pair import Pair, best_of_each, check_own_side, texts_of

HUB = HubModel(
    "google/owlv2-base-patch16-ensemble",
    "cfd3195ba4ea9592eec887ded089f4c08eff231d",
    "Apache-2.0",
    "Owlv2ForObjectDetection",
    "Owlv2Processor",
)

SAME_BOX = 0.5
"""IoU above which two boxes of a label are one object: every patch has a box of its own, so an
object has many."""


class Owlv2Locator:
    """OWLv2 as a locator. The image is encoded once for all labels, and labels don't interact.

    Args:
        model: `Owlv2ForObjectDetection`, on the segmenter's device.
        processor: `Owlv2Processor`.
        commit: of the hub, if they are from there.
    """

    name = "owlv2"

    def __init__(self, model: Any, processor: Any, commit: str = "") -> None:
        self.pair = Pair(model, processor, commit)

    @property
    def resolution(self) -> int:
        """Side of the square that images are padded and resized to."""
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
        """The boxes of every class, with sigmoid scores."""
        texts, counts = texts_of(labels)
        context = self.pair.model.config.text_config.max_position_embeddings
        queries = self.pair.encoded(texts, context, self._text)
        found = [self._objects(image, queries, counts) for image in features.images]
        return located(found, features.sizes, len(counts))

    def _text(self, **tokens: Tensor) -> Tensor:
        """Unit features of tokenised texts."""
        made = self.pair.model.owlv2.get_text_features(**tokens).pooler_output
        return made / made.norm(dim=-1, keepdim=True)

    def _objects(self, image: Image, queries: Tensor, counts: Sequence[int]) -> Objects:
        model = self.pair.model
        grid, _ = model.image_embedder(self.pair.pixels(image)["pixel_values"])
        patches = grid.flatten(1, 2)
        logits, _ = model.class_predictor(patches, queries[None])
        # The image was padded to a square at the right and the bottom: 1 is its longer side.
        longer = max(image.size)
        boxes = corners(model.box_predictor(patches, grid)[0], longer, longer, image.size)
        scores = best_of_each(logits[0].T.sigmoid(), counts)
        check_scores(self.name, image, boxes, scores)
        rows = [best_objects(boxes, score, MAX_OBJECTS, SAME_BOX) for score in scores]
        return (
            torch.cat([boxes[own] for own in rows]),
            torch.cat([score[own] for score, own in zip(scores, rows, strict=True)]),
            torch.cat([torch.full_like(own, label) for label, own in enumerate(rows)]),
        )
