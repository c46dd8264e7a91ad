"""CLIPSeg: a map for each text prompt, by a small decoder on CLIP's features.

Source: Lüddecke and Ecker, 2022, https://arxiv.org/abs/2112.10003; `modeling_clipseg.py` of
transformers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip2sam.config import Config
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.features import Features
from clip2sam.kernels.device import MASK_PIXELS_PER_BATCH, budget
from clip2sam.locate import Located
from clip2sam.points import grid_cells
from clip2sam.trained.hub import HubModel
from clip2sam.trained.pair import Pair, best_of_each, check_own_side, texts_of

HUB = HubModel(
    "CIDAS/clipseg-rd64-refined",
    "999e0328d9e10b484360c477313983f9afdd7050",
    "Apache-2.0",
    "CLIPSegForImageSegmentation",
    "CLIPSegProcessor",
)


class CLIPSegLocator:
    """CLIPSeg as a locator. The image is encoded once for all labels, and labels don't interact.

    Args:
        model: `CLIPSegForImageSegmentation`, on the segmenter's device.
        processor: `CLIPSegProcessor`, which resizes images to a square.
        commit: of the hub, if they are from there.
    """

    name = "clipseg"

    def __init__(self, model: Any, processor: Any, commit: str = "") -> None:
        self.pair = Pair(model, processor, commit)

    @property
    def resolution(self) -> int:
        """Side of the square that images are resized to."""
        return self.pair.side

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
        """The map of every class: the mean of the sigmoid over each patch."""
        texts, counts = texts_of(labels)
        context = self.pair.model.config.text_config.max_position_embeddings
        queries = self.pair.encoded(texts, context, self._text)
        maps = [best_of_each(self._maps(image, queries), counts) for image in features.images]
        return Located(torch.stack(maps))

    def _text(self, **tokens: Tensor) -> Tensor:
        made: Tensor = self.pair.model.clip.get_text_features(**tokens).pooler_output
        return made

    def _maps(
        self, image: Image, queries: Float[Tensor, "texts channels"]
    ) -> Float[Tensor, "texts rows cols"]:
        """The maps of all texts, as many at once as memory allows."""
        model = self.pair.model
        seen = model.clip.get_image_features(
            **self.pair.pixels(image), output_hidden_states=True
        ).hidden_states
        layers = [seen[i + 1] for i in model.config.extract_layers]  # the first is the embedding
        at_once = max(budget(MASK_PIXELS_PER_BATCH, queries.device) // self.resolution**2, 1)
        maps = [
            # the one image is broadcast over the texts
            F.adaptive_avg_pool2d(model.decoder(layers, some).logits.sigmoid(), self.cells)
            for some in queries.split(at_once)
        ]
        return torch.cat(maps)
