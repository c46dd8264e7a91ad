"""The figure: words and a picture go through the rooms one after another and come out as masks.

picture ----> CLIP with surgery --> feature surgery --> presence --> grid --> points --+
labels --> text features -------------^                                                |
picture ----> SAM's image encoder -----------------------------------> decoder <-------+--> masks
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image as PILImage
from torch import Tensor

from clip2sam.clip import SurgeryCLIP
from clip2sam.config import Config
from clip2sam.images import load_image
from clip2sam.labels import as_label_set
from clip2sam.points import point_prompts, pool_grid, select_points
from clip2sam.result import Result, as_result
from clip2sam.sam import PointSAM
from clip2sam.sam.choice import agreement
from clip2sam.similarity import feature_surgery, is_present, similarity_maps
from clip2sam.types import Image, LabelSet, Masks, PointPrompts, Prediction, SimilarityMaps

ImageLike = Image | str | PathLike[str] | bytes | PILImage.Image | Any
"""A path, encoded bytes, an RGB uint8 array (height, width, 3), a PIL image or an `Image`."""

LabelsLike = LabelSet | Sequence[str] | Mapping[str, Any] | PathLike[str]


class Segmenter:
    """Cuts labels out of pictures: a CLIP says where, a SAM cuts.

    Args:
        clip: an open_clip model in its adapter.
        sam: a segment-anything model in its adapter, on the same device.
        config: the settings; `clip2sam.published()` gives the published recipe.
    """

    def __init__(self, clip: SurgeryCLIP, sam: PointSAM, config: Config | None = None) -> None:
        self.clip = clip
        self.sam = sam
        self.config = config or Config()

    def __call__(self, image: ImageLike, labels: LabelsLike, *, distractors: Sequence[str] = ()) -> Result:
        """Segment one picture.

        Args:
            image: a path, bytes, RGB array, PIL image or `Image`.
            labels: names, a mapping from names to their synonyms, a labels file, or a `LabelSet`.
            distractors: names that compete with the labels and are never exported.

        Returns:
            The masks of the labels that are there, and the scores of those that are not.

        Raises:
            ImageError: the picture can't be read.
            LabelError: a label is empty, given twice, or there is none.
        """
        picture = load_image(image)
        label_set = as_label_set(labels, distractors=distractors)
        return as_result(picture, label_set, self.config, self.sam, self.predict_torch(picture, label_set))

    @torch.no_grad()
    def predict_torch(self, image: Image, labels: LabelSet) -> Prediction:
        """The pipeline on the device: no value crosses to the host between the picture and the masks.

        A picture on which no label is present never reaches SAM's encoder.
        """
        maps = self.similarity(image, labels)
        present = is_present(maps, self._thresholds(labels), self._is_distractor(labels))
        grids = pool_grid(maps.raw, self.config.grid)
        coords, point_labels = select_points(
            grids, image.size, self.config.threshold, self.config.max_positive, self.config.max_negative
        )
        prompts = point_prompts(coords, point_labels, present)
        return Prediction(maps, grids, present, prompts, self._masks(image, maps, prompts))

    def similarity(self, image: Image, labels: LabelSet) -> SimilarityMaps:
        """CLIP's part: a raw map and a presence score for every class, distractors included."""
        text = self.clip.encode_labels(labels)
        empty = self.clip.encode_empty(labels.templates) if len(text) == 1 else None
        tokens = self.clip.encode_image(self.clip.preprocess([image]), self.config.method)
        return similarity_maps(feature_surgery(tokens, text, empty)[0])

    def _masks(self, image: Image, maps: SimilarityMaps, prompts: PointPrompts) -> Masks:
        """SAM's part: decode the prompts and keep one candidate of each."""
        logits, iou = self._decode(image, prompts)
        heat = maps.raw[prompts.label_index]
        agrees = agreement(self.sam.pool_candidates(logits, image.size, (heat.shape[-2], heat.shape[-1])), heat)
        best = (agrees if self.config.candidate == "agreement" else iou).argmax(dim=-1)
        row = torch.arange(len(best), device=best.device)
        return Masks(logits[row, best], iou[row, best], agrees[row, best], best, prompts.label_index, image.size)

    def _decode(self, image: Image, prompts: PointPrompts) -> tuple[Tensor, Tensor]:
        if not len(prompts.coords):
            return self.sam.no_candidates()
        embedding = self.sam.encode_image(self.sam.preprocess([image]))[0]
        return self.sam.decode(embedding, prompts, image.size)

    def _thresholds(self, labels: LabelSet) -> Tensor | None:
        """Each class's own threshold, else the configuration's; None when nobody asks for a decision."""
        own = [self.config.presence if c.threshold is None else c.threshold for c in labels.classes]
        if all(t is None for t in own):
            return None
        return torch.tensor([-torch.inf if t is None else t for t in own], device=self.clip.device)

    def _is_distractor(self, labels: LabelSet) -> Tensor:
        return torch.tensor([c.distractor for c in labels.classes], device=self.clip.device)

    def presence_of(self, result: Result) -> Bool[np.ndarray, "classes"]:
        """The presence decision of these settings for a result that was made with others."""
        limits = self._thresholds(result.label_set)
        if limits is None:
            return np.ones(len(result.presence), bool)
        return result.presence >= limits[: len(result.presence)].cpu().numpy()

    def with_config(self, **changes: Any) -> "Segmenter":
        """The same models with other settings."""
        return Segmenter(self.clip, self.sam, replace(self.config, **changes))
