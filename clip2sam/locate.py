"""Where each label is: the stage that every method of finding labels goes through.

A locator takes a batch's features and the labels, and hands on a raw map for every class; one that
finds single objects by itself (boxes, or masks) hands these on too. The presence decision, the
prompts, SAM and all that follows are the same for all of them. `ClipLocator` is CLIP with one of
the training-free methods of `clip2sam.clip.methods`. Your own is an object with the members of
`Locator`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clip2sam.clip.model import SurgeryCLIP
from clip2sam.config import Config
from clip2sam.data.labels import LabelSet
from clip2sam.errors import ConfigError, shown
from clip2sam.features import Features, needed_clip
from clip2sam.kernels.tensors import state_sha256
from clip2sam.points import grid_cells
from clip2sam.similarity import (
    SurgeryTerms,
    feature_surgery,
    plain_similarity,
    score_maps,
    surgery_terms,
)
from clip2sam.types import Proposals, Sizes

BOX_CELLS = 64
"""Cells a side of the maps that boxes are drawn into."""

FALL = 0.01
"""How much lower a box's score is one image's side away from its centre, as a part of it."""


@dataclass(frozen=True)
class Located:
    """What a locator knows of a batch, on the device. The dimension `labels` is all classes of the
    label set, distractors too, in its order."""

    raw: Float[Tensor, "images labels rows cols"]
    """Raw scores over the whole image, comparable between labels and images. A cell is a place that
    the locator can tell from its neighbours (a token): objects are at least two of them apart."""
    proposals: Proposals | None = None
    """Objects that were found one by one; None: they are maxima of the maps."""


@runtime_checkable
class Locator(Protocol):
    """A way to find labels in images."""

    @property
    def name(self) -> str:
        """What messages and runs call it."""

    @property
    def resolution(self) -> int:
        """Side in pixels of the square that it sees of an image."""

    def weights(self) -> dict[str, str]:
        """SHA-256 of the weights of each of its models, and of settings of its own: a run is only
        continued with equal ones."""

    def check(self, config: Config) -> None:
        """Refuse settings that it can't follow, before any image is worked on.

        Raises:
            ConfigError: a setting that it can't follow.
        """

    def locate(self, features: Features, labels: LabelSet, config: Config) -> Located:
        """Find every class of the label set in every one of `features.images`.

        What comes out for an image must not depend on the images that come with it.
        """


class ClipLocator:
    """CLIP's dense features by a training-free method, with or without feature surgery."""

    def __init__(self, clip: SurgeryCLIP) -> None:
        self.clip = clip

    name = "CLIP"

    @property
    def resolution(self) -> int:
        """CLIP's own."""
        return self.clip.resolution

    def weights(self) -> dict[str, str]:
        """CLIP's."""
        return {"clip": state_sha256(self.clip.model.state_dict())}

    def check(self, config: Config) -> None:
        """Refuse a resolution that the CLIP can't take, and a grid that doesn't fit its maps."""
        side = self.clip.patches(config.resolution)
        grid_cells(side, side, config.grid)

    @torch.no_grad()
    def locate(self, features: Features, labels: LabelSet, config: Config) -> Located:
        """A raw map of every class."""
        grid = features.tokens(config.method, config.resolution)
        texts = label_texts(self.clip, labels, config)
        # image by image: the last digits must not depend on how many there are
        scores = [texts.scores(tokens[None]) for tokens in grid.tokens]
        return Located(score_maps(torch.cat(scores), grid.rows, grid.cols))

    @torch.no_grad()
    def terms(self, features: Features, labels: LabelSet, config: Config) -> SurgeryTerms:
        """The two terms that `locate` subtracts, for all classes and then the background prompts;
        without feature surgery nothing is subtracted."""
        texts = label_texts(self.clip, labels, config)
        tokens = features.tokens(config.method, config.resolution).tokens
        if config.feature_surgery:
            return surgery_terms(tokens, texts.features, texts.redundant)
        plain = plain_similarity(tokens, texts.features)
        return SurgeryTerms(plain, torch.zeros_like(plain[..., :1]), torch.ones_like(plain[:, 0]))


@dataclass(frozen=True)
class Texts:
    """What CLIP's tokens are compared with."""

    features: Float[Tensor, "texts channels"]
    """Unit text features: of all classes, then of the background prompts that are no label's own
    prompt."""
    redundant: Float[Tensor, "1 channels"] | None
    """What feature surgery takes out for a label that stands alone."""
    classes: int
    surgery: bool
    """Whether there is feature surgery."""

    def scores(
        self, tokens: Float[Tensor, "images tokens channels"]
    ) -> Float[Tensor, "images tokens classes"]:
        """Raw scores of tokens, the CLS token first."""
        if self.surgery:
            return feature_surgery(tokens, self.features, self.redundant)[..., : self.classes]
        return plain_similarity(tokens, self.features[: self.classes])


def label_texts(clip: SurgeryCLIP, labels: LabelSet, config: Config) -> Texts:
    """The text features of the labels and of what competes with them by the settings."""
    text = clip.encode_labels(labels)
    own = {prompt for c in labels.classes for prompt in c.prompts}
    background = [p for p in config.background_prompts if p not in own]
    if background:
        text = torch.cat([text, clip.encode_texts(background, labels.templates)])
    redundant = clip.encode_empty(labels.templates) if len(text) == 1 else None
    return Texts(text, redundant, len(labels.classes), config.feature_surgery)


def as_locator(clip: SurgeryCLIP | None, locator: Any) -> Locator:
    """The locator itself, or the CLIP.

    Raises:
        ConfigError: there is neither, or the locator is an object of another type.
    """
    if locator is None:
        return ClipLocator(needed_clip(clip))
    if not isinstance(locator, Locator):
        raise ConfigError(
            "locator must be an object with name, resolution, weights, check and locate, "
            f"but got {shown(locator)}"
        )
    return locator


def check_finds_objects(name: str, config: Config) -> None:
    """For locators that find objects one by one.

    Raises:
        ConfigError: one prompt a label is asked for.
    """
    if config.prompts == "label":
        raise ConfigError(
            f"{name} finds objects one by one, so one mask a label is not possible; leave "
            '--one-mask (prompts="label") out, and use Result.mask_of for all pixels of a label'
        )


def box_maps(proposals: Proposals, labels: int) -> Float[Tensor, "images labels rows cols"]:
    """Proposals as raw maps: a box has its score at the cell of its centre, and a little less (up
    to `FALL` of it) towards its border, so that its peak is its centre; where boxes overlap the
    highest counts, and where there is none the map is 0."""
    images, cells = len(proposals.counts), BOX_CELLS
    maps = proposals.score.new_zeros(images * labels, cells, cells)
    if not len(proposals.score):
        return maps.unflatten(0, (images, labels))
    size = _sizes_xy(proposals.sizes, proposals.boxes)[proposals.image_index]
    low, high = (corner / size * cells for corner in proposals.boxes.split(2, dim=1))
    centre = ((low + high) / 2).floor().clamp(0, cells - 1)
    cell = torch.arange(cells, device=maps.device)
    x, y = (
        ((cell + 0.5 > low[:, i, None]) & (cell + 0.5 < high[:, i, None]))
        | (cell == centre[:, i, None])
        for i in (0, 1)
    )
    across, down = ((cell - centre[:, i, None]).abs() for i in (0, 1))
    away = torch.maximum(down[:, :, None], across[:, None]) / cells
    height = proposals.score[:, None, None] * (1 - FALL * away)
    inside = torch.where(y[:, :, None] & x[:, None], height, 0.0)
    row = proposals.image_index * labels + proposals.label_index
    index = row[:, None, None].expand(-1, cells, cells)
    return maps.scatter_reduce(0, index, inside, "amax").unflatten(0, (images, labels))


def _sizes_xy(sizes: Sizes, like: Tensor) -> Float[Tensor, "images 2"]:
    return torch.tensor([(width, height) for height, width in sizes]).to(like)


def proposals_of(
    found: Sequence[tuple[Float[Tensor, "_ 4"], Float[Tensor, "_"], Int[Tensor, "_"]]],
    sizes: Sizes,
) -> Proposals:
    """One record for a batch.

    Args:
        found: for each image boxes (x0, y0, x1, y1 in continuous pixels of the original image),
            scores, and the class of each.
        sizes: (height, width) of each image in pixels.
    """
    if len(found) != len(sizes):
        raise ConfigError(f"expected boxes of {len(sizes)} images, got those of {len(found)}")
    boxes, score, label_index = (torch.cat(column) for column in zip(*found, strict=True))
    return Proposals(boxes, score, label_index, tuple(len(one[1]) for one in found), sizes)
