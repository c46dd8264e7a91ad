"""GroupViT: patches are put into groups, and groups are compared with text prompts.

Source: Xu et al., 2022, https://arxiv.org/abs/2202.11094; `modeling_groupvit.py` of transformers,
whose `segmentation_logits` are these maps times the square of its logit scale, resized.
"""

from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clip2sam.config import Config
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.features import Features
from clip2sam.locate import Located
from clip2sam.points import grid_cells
from clip2sam.trained.hub import HubModel
from clip2sam.trained.pair import Pair, best_of_each, check_own_side, texts_of

HUB = HubModel(
    "nvidia/groupvit-gcc-yfcc",
    "refs/pr/2",  # main, 751f6d9, has pickles only; this is its conversion by the hub, c4b30ed
    "none stated with the weights; the code's is the NVIDIA Source Code License",
    "GroupViTModel",
    "CLIPProcessor",
)


class GroupViTLocator:
    """GroupViT as a locator. The image is encoded once for all labels.

    A map's score is the cosine of the groups with the text, weighted by how much the patch belongs
    to each. Not the softmax over the labels that is published with it: that one depends on the
    other labels (a single one always gets 1), so no threshold could tell that a label is absent.

    Args:
        model: `GroupViTModel`, on the segmenter's device.
        processor: `CLIPProcessor`.
        commit: of the hub, if they are from there.
    """

    name = "groupvit"

    def __init__(self, model: Any, processor: Any, commit: str = "") -> None:
        self.pair = Pair(model, processor, commit)

    @property
    def resolution(self) -> int:
        """Side of the square that images are resized to."""
        return int(self.pair.model.config.vision_config.image_size)

    @property
    def cells(self) -> int:
        """Patches a side of that square, which are the cells of the maps."""
        return self.resolution // self.pair.model.config.vision_config.patch_size

    def weights(self) -> dict[str, str]:
        """See `Pair.weights`."""
        return self.pair.weights()

    def check(self, config: Config) -> None:
        """Refuse a resolution, and a grid that doesn't fit the maps."""
        check_own_side(self.name, config, self.resolution)
        grid_cells(self.cells, self.cells, config.grid)

    @torch.no_grad()
    def locate(self, features: Features, labels: LabelSet, config: Config) -> Located:
        """The map of every class, cosines."""
        texts, counts = texts_of(labels)
        context = self.pair.model.config.text_config.max_position_embeddings
        queries = self.pair.encoded(texts, context, self._text)
        maps = [best_of_each(self._maps(image, queries), counts) for image in features.images]
        return Located(torch.stack(maps))

    def _text(self, **tokens: Tensor) -> Tensor:
        """Unit features of tokenised texts."""
        return _unit(self.pair.model.get_text_features(**tokens).pooler_output)

    def _maps(
        self, image: Image, queries: Float[Tensor, "texts channels"]
    ) -> Float[Tensor, "texts rows cols"]:
        model, side = self.pair.model, {"height": self.resolution, "width": self.resolution}
        # The processor would cut the middle out of the image; the whole one is wanted.
        pixels = self.pair.pixels(image, size=side, do_center_crop=False)
        seen = model.vision_model(**pixels, output_attentions=True, return_dict=True)
        groups = _unit(model.visual_projection(seen.last_hidden_state[0]))
        # Each stage puts what the one before left into fewer groups: (groups, tokens) each.
        parts = [stage[0].T for stage in seen.attentions]
        belongs = reduce(torch.matmul, parts)
        return (queries @ groups.T @ belongs.T).unflatten(1, (self.cells, self.cells))


def _unit(features: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows channels"]:
    return features / features.norm(dim=-1, keepdim=True)
