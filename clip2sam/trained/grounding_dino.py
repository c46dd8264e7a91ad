"""Grounding DINO: boxes with a score for every token of a caption that is made of all labels.

Published code turns the tokens above a threshold back into text and takes that for the label, so
phrases come out cut, merged or empty. Here every label keeps the places of its own tokens.

Source: Liu et al., 2023, https://arxiv.org/abs/2303.05499;
https://github.com/IDEA-Research/GroundingDINO, `groundingdino/util/inference.py`;
`modeling_grounding_dino.py` of transformers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from clip2sam.config import MAX_OBJECTS, Config
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.errors import LabelError
from clip2sam.features import Features
from clip2sam.locate import Located, check_finds_objects
from clip2sam.trained.boxes import Objects, best_objects, check_scores, corners, located
from clip2sam.trained.hub import HubModel
from clip2sam.trained.pair import Last, Pair, check_own_side, texts_of, warn_of_long

HUB = HubModel(
    "IDEA-Research/grounding-dino-tiny",
    "a2bb814dd30d776dcf7e30523b00659f4f141c71",
    "Apache-2.0",
    "GroundingDinoForObjectDetection",
    "GroundingDinoProcessor",
)

SAME_BOX = 0.8
"""IoU above which two boxes of a label are one object, as in the demo of Grounded SAM
(https://github.com/IDEA-Research/Grounded-Segment-Anything): queries seldom repeat an object, but
two prompts of a label, or two captions, do."""

ENDS = ".?"
"""At these a phrase of the caption ends."""


class Caption(NamedTuple):
    """Several texts as one."""

    tokens: dict[str, Tensor]
    """What the tokenizer makes of it, (1, tokens)."""
    places: list[list[int]]
    """The tokens of each text."""


class GroundingDinoLocator:
    """Grounding DINO as a locator. A box's score for a class is the highest sigmoid of a token of
    the class's prompts. Texts that don't fit into one caption go into several, each with its own
    pass over the image: the image features are mixed with the caption's.

    Args:
        model: `GroundingDinoForObjectDetection`, on the segmenter's device.
        processor: `GroundingDinoProcessor`.
        commit: of the hub, if they are from there.
    """

    name = "grounding-dino"

    def __init__(self, model: Any, processor: Any, commit: str = "") -> None:
        self.pair = Pair(model, processor, commit)
        self._captions: Last[list[Caption]] = Last()

    @property
    def resolution(self) -> int:
        """The shorter side that images are resized to."""
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
        captions = self.captions(texts)
        found = [self._objects(image, captions, counts) for image in features.images]
        return located(found, features.sizes, len(counts))

    def captions(self, texts: Sequence[str]) -> list[Caption]:
        """As few captions as hold all texts, in order.

        Raises:
            LabelError: a text has no tokens.

        Warns:
            UserWarning: a text is longer than a caption; its end is cut.
        """

        def made() -> list[Caption]:
            parts = self._shared_out([_phrase(text) for text in texts], texts)
            return [self._caption(phrases) for phrases in parts]

        return self._captions.of(tuple(texts), made)

    def _shared_out(self, phrases: list[str], texts: Sequence[str]) -> list[list[str]]:
        """The phrases of each caption: it has room for their tokens, a full stop each, and the
        start and the end."""
        room = self.pair.model.config.max_text_len - 2
        parts: list[list[str]] = [[]]
        used = 0
        for phrase, text in zip(phrases, texts, strict=True):
            length = len(self.pair.tokenizer(phrase, add_special_tokens=False)["input_ids"]) + 1
            if length == 1:
                raise LabelError(
                    f"label {text!r} has no words that Grounding DINO can read; give it another "
                    "text prompt"
                )
            if length > room:
                warn_of_long(text, length + 2, room + 2)
            if parts[-1] and used + length > room:
                parts.append([])
                used = 0
            parts[-1].append(phrase)
            used += length
        return parts

    def _caption(self, phrases: Sequence[str]) -> Caption:
        text, spans = "", []
        for phrase in phrases:
            spans.append((len(text), len(text) + len(phrase)))
            text += f"{phrase}. "
        made = self.pair.tokenizer(
            text.strip(),
            return_offsets_mapping=True,
            return_token_type_ids=True,
            truncation=True,
            max_length=self.pair.model.config.max_text_len,
            return_tensors="pt",
        )
        offsets = made.pop("offset_mapping")[0].tolist()
        places = [
            [i for i, (a, b) in enumerate(offsets) if start <= a < b <= end] for start, end in spans
        ]
        device = self.pair.model.device
        return Caption({key: value.to(device) for key, value in made.items()}, places)

    def _objects(self, image: Image, captions: list[Caption], counts: Sequence[int]) -> Objects:
        pixels = self.pair.pixels(image)
        boxes, scores = [], []  # of each text
        for caption in captions:
            outputs = self.pair.model(**pixels, **caption.tokens)
            height, width = image.size
            own = corners(outputs.pred_boxes[0], width, height, image.size)
            boxes += [own] * len(caption.places)
            scores += token_scores(outputs.logits[0], caption.places)
        check_scores(self.name, image, *boxes, *scores)
        made, first = [], 0
        for label, count in enumerate(counts):
            box, score = (torch.cat(all_[first : first + count]) for all_ in (boxes, scores))
            rows = best_objects(box, score, MAX_OBJECTS, SAME_BOX)
            made.append((box[rows], score[rows], torch.full_like(rows, label)))
            first += count
        box, score, label_index = (torch.cat(column) for column in zip(*made, strict=True))
        return box, score, label_index


def token_scores(
    logits: Float[Tensor, "queries tokens"], places: Sequence[Sequence[int]]
) -> list[Float[Tensor, "queries"]]:
    """The score of every query for each text: the highest sigmoid of one of its tokens."""
    chance = logits.sigmoid()
    return [chance[:, list(own)].amax(dim=1) for own in places]


def _phrase(text: str) -> str:
    """A text as a phrase of the caption: in small letters, as the processor has it; a full stop
    inside would make two phrases of it."""
    kept = "".join(" " if c in ENDS else c for c in text.lower())
    return " ".join(kept.split())
