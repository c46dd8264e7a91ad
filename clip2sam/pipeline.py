"""The figure: words and a picture go through the rooms one after another and come out as masks.

picture ----> CLIP with surgery --> feature surgery --> presence --> grid --> points --+
labels --> text features -------------^                                                |
picture ----> SAM's image encoder -----------------------------------> decoder <-------+--> masks
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image as PILImage
from torch import Tensor

from clip2sam.candidates import agreement
from clip2sam.clip import SurgeryCLIP
from clip2sam.config import Config
from clip2sam.data.images import Image, load_image
from clip2sam.data.labels import LabelClass, LabelSet, as_label_set
from clip2sam.points import point_prompts, pool_grid, select_points
from clip2sam.result import Result, as_result
from clip2sam.sam import PointSAM
from clip2sam.sam.model import Candidates
from clip2sam.similarity import feature_surgery, is_present, similarity_maps
from clip2sam.types import Masks, PointPrompts, Prediction, SimilarityMaps

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

    def __call__(
        self, image: ImageLike, labels: LabelsLike, *, distractors: Sequence[str] = ()
    ) -> Result:
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
        return as_result(
            picture, label_set, self.config, self.sam, self.predict_torch(picture, label_set)
        )

    @torch.no_grad()
    def predict_torch(self, image: Image, labels: LabelSet) -> Prediction:
        """The pipeline on the device: no value crosses to the host between the picture and the masks.

        A picture on which no label is present never reaches SAM's encoder.
        """
        maps = self.similarity(image, labels)
        present, grids, prompts = self._prompts(image, labels, maps)
        candidates = self._decode(image, prompts)
        return Prediction(
            maps, grids, present, prompts, self._masks(image, maps, prompts, candidates)
        )

    @torch.no_grad()
    def predict_batch(
        self, images: Sequence[Image], labels: LabelSet, *, group: int = 1
    ) -> list[Prediction]:
        """Several pictures, each as `predict_torch` does it, with the two encoders taking `group` of them at once.

        The groups always have that size, the last filled up with repeats, so that the same kernels run for a picture
        whatever comes with it. With a group of 1 the numbers are `predict_torch`'s own.
        """
        if not images:
            return []
        tokens = _in_groups(
            lambda p: self.clip.encode_image(p, self.config.method),
            self.clip.preprocess(images),
            group,
        )
        maps = [self._maps(picture_tokens[None], labels) for picture_tokens in tokens]
        prompts = [self._prompts(image, labels, m) for image, m in zip(images, maps, strict=True)]
        decoded = self._decode_batch(images, [p for _, _, p in prompts], group)
        return [
            Prediction(m, grids, present, p, self._masks(image, m, p, candidates))
            for image, m, (present, grids, p), candidates in zip(
                images, maps, prompts, decoded, strict=True
            )
        ]

    def _decode_batch(
        self, images: Sequence[Image], prompts: Sequence[PointPrompts], group: int
    ) -> list[Candidates]:
        """SAM's candidates for each picture; one without a prompt never reaches the encoder."""
        asked = [i for i, p in enumerate(prompts) if len(p.coords)]
        decoded = [self.sam.no_candidates() for _ in images]
        if asked:
            pixels = self.sam.preprocess([images[i] for i in asked])
            embeddings = _in_groups(self.sam.encode_image, pixels, group)
            sizes = [images[i].size for i in asked]
            made = self.sam.decode_batch(embeddings, [prompts[i] for i in asked], sizes)
            for i, candidates in zip(asked, made, strict=True):
                decoded[i] = candidates
        return decoded

    def prepare(self, image: Image) -> None:
        """What the host has to do to a picture before the device can work on it; may run in another thread."""
        self.clip.prepare(image)
        self.sam.prepare(image)

    def similarity(self, image: Image, labels: LabelSet) -> SimilarityMaps:
        """CLIP's part: a raw map and a presence score for every class, distractors included."""
        return self._maps(
            self.clip.encode_image(self.clip.preprocess([image]), self.config.method), labels
        )

    def _maps(self, tokens: Float[Tensor, "1 tokens channels"], labels: LabelSet) -> SimilarityMaps:
        text = self._texts(labels)
        empty = self.clip.encode_empty(labels.templates) if len(text) == 1 else None
        return similarity_maps(feature_surgery(tokens, text, empty)[0, :, : len(labels.classes)])

    def _texts(self, labels: LabelSet) -> Float[Tensor, "labels_and_references channels"]:
        """Text features of the labels, then of those references that nobody asked for."""
        own = self.clip.encode_labels(labels)
        asked = {prompt for c in labels.classes for prompt in c.prompts}
        beside = tuple(LabelClass(r, (r,)) for r in self.config.references if r not in asked)
        return (
            torch.cat([own, self.clip.encode_labels(LabelSet(beside, labels.templates))])
            if beside
            else own
        )

    def _prompts(
        self, image: Image, labels: LabelSet, maps: SimilarityMaps
    ) -> tuple[Bool[Tensor, "labels"], Float[Tensor, "labels grid_rows grid_cols"], PointPrompts]:
        """Who is present, the grids, and the points of those who are."""
        present = is_present(maps, self._thresholds(labels), self._is_distractor(labels))
        grids = pool_grid(maps.raw, self.config.grid)
        coords, point_labels = select_points(
            grids,
            image.size,
            self.config.threshold,
            self.config.max_positive,
            self.config.max_negative,
        )
        return present, grids, point_prompts(coords, point_labels, present)

    def _masks(
        self, image: Image, maps: SimilarityMaps, prompts: PointPrompts, candidates: Candidates
    ) -> Masks:
        """Keep one candidate of each prompt."""
        (logits, iou), (agrees, best) = candidates, self._choose(image, maps, prompts, candidates)
        row = torch.arange(len(best), device=best.device)
        return Masks(
            logits[row, best],
            iou[row, best],
            agrees[row, best],
            best,
            prompts.label_index,
            image.size,
        )

    def _choose(
        self, image: Image, maps: SimilarityMaps, prompts: PointPrompts, candidates: Candidates
    ) -> tuple[Tensor, Tensor]:
        """The agreement of each prompt's candidates with its label's map, and which one is kept."""
        logits, iou = candidates
        heat = maps.raw[prompts.label_index]
        agrees = agreement(
            self.sam.pool_candidates(logits, image.size, (heat.shape[-2], heat.shape[-1])), heat
        )
        quality = {"agreement": agrees, "predicted_iou": iou, "both": agrees + iou}[
            self.config.candidate
        ]
        return agrees, quality.argmax(dim=-1)

    def _decode(
        self, image: Image, prompts: PointPrompts, embedding: Tensor | None = None
    ) -> Candidates:
        """SAM's candidates for the prompts of one picture, which is encoded if its embedding isn't given."""
        if embedding is None:
            return self._decode_batch([image], [prompts], 1)[0]
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


def _in_groups(
    encode: Callable[[Float[Tensor, "_ 3 _ _"]], Tensor],
    pixels: Float[Tensor, "batch 3 side side"],
    group: int,
) -> Tensor:
    """Encode `group` pictures at a time: (batch, ...). The last group is filled up with its last picture."""
    missing = -len(pixels) % group
    full = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
    return torch.cat([encode(part) for part in full.split(group)])[: len(pixels)]
