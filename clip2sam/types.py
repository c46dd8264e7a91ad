"""The nouns that the stages hand on: frozen records of tensors with shapes, no logic.

Everything is for a batch of images and stays on the device. Coordinates are continuous pixels, x to
the right and y down, the origin at the image's top left corner (so the centre of the first pixel is
0.5, 0.5). Sizes are (height, width) in pixels. The dimension `labels` follows the user's order of
classes, distractors last. The dimension `prompts` runs over all images of the batch, those of the
first image first.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clip2sam.data.labels import LabelSet

Sizes = tuple[tuple[int, int], ...]
"""(height, width) in pixels of each original image."""

Embeddings = tuple[Tensor, ...]
"""What a cutter computes of a batch of images once for all prompts: one or several tensors of its
own shapes, (images, ...) each, in fp32."""


@dataclass(frozen=True)
class TokenGrid:
    """CLIP's dense features of a batch."""

    tokens: Float[Tensor, "images tokens channels"]
    """Unit features in fp32: the CLS token first, then the patches row by row."""
    rows: int
    cols: int


@dataclass(frozen=True)
class Candidates:
    """SAM's answer: several candidate masks a prompt, at SAM's low resolution."""

    logits: Float[Tensor, "prompts candidates low low"]
    """Mask logits in SAM's padded square frame (1/4 of its input size)."""
    predicted_iou: Float[Tensor, "prompts candidates"]
    """SAM's own estimate of each candidate's IoU with the truth, not clamped."""


@dataclass(frozen=True)
class Proposals:
    """Objects that a locator found one by one, a row each, those of the first image first."""

    boxes: Float[Tensor, "proposals 4"]
    """x0, y0, x1, y1 in continuous pixels of the original image."""
    score: Float[Tensor, "proposals"]
    """On the scale of the presence threshold, above 0."""
    label_index: Int[Tensor, "proposals"]
    """The class in the label set that each is of."""
    counts: tuple[int, ...]
    """How many each image has."""
    sizes: Sizes
    candidates: Candidates | None = None
    """Their masks, if they come with masks; None: SAM cuts them."""

    @property
    def image_index(self) -> Int[Tensor, "proposals"]:
        """The image that each is in."""
        return image_index(self.counts, self.label_index.device)


@dataclass(frozen=True)
class SimilarityMaps:
    """How well each label fits each place of each image, and which labels are present. The
    dimension `labels` has the parts of joined ones: it is that of `labels.apart()`."""

    raw: Float[Tensor, "images labels rows cols"]
    """Feature-surgery scores, not normalised: comparable between labels and images."""
    presence: Float[Tensor, "images labels"]
    """One score a label, its highest raw score: what the presence decision is taken on."""
    beaten: Bool[Tensor, "images labels"]
    """Whether a distractor scores higher at the label's own peak."""
    present: Bool[Tensor, "images labels"]
    """The presence decision; False for distractors."""
    labels: LabelSet
    sizes: Sizes
    proposals: Proposals | None = None
    """Objects that were found one by one; None: they are maxima of the maps."""


@dataclass(frozen=True)
class Instances:
    """Where single objects of the labels may be: maxima of the maps, one row each. The rows of one
    label of one image are together, the highest first."""

    coords: Float[Tensor, "instances 2"]
    """(x, y) in continuous pixels of the original image."""
    height: Float[Tensor, "instances"]
    """Raw score at the place."""
    label_index: Int[Tensor, "instances"]
    """The class in the label set that each is of."""
    counts: tuple[int, ...]
    """How many each image has."""
    sizes: Sizes

    @property
    def image_index(self) -> Int[Tensor, "instances"]:
        """The image that each is in."""
        return image_index(self.counts, self.label_index.device)


@dataclass(frozen=True)
class Prompts:
    """Prompts for SAM, one row each. A label may have none, one or several.

    Rows are padded to a common number of points: `point_labels` is 1 for a positive point, 0 for a
    negative one and -1 for padding, which takes no part in anything (it is not SAM's own "not a
    point").
    """

    coords: Float[Tensor, "prompts points 2"]
    """(x, y) in continuous pixels of the original image."""
    point_labels: Int[Tensor, "prompts points"]
    label_index: Int[Tensor, "prompts"]
    """The class in the label set that each prompt is for."""
    counts: tuple[int, ...]
    """How many prompts each image has."""
    sizes: Sizes
    boxes: Float[Tensor, "prompts 4"] | None = None
    """x0, y0, x1, y1 in continuous pixels of the original image; None: no prompt has a box."""
    mask_inputs: Float[Tensor, "prompts low low"] | None = None
    """Logits in SAM's padded square frame at 1/4 of its input size; None: no prompt has any."""
    scores: Float[Tensor, "prompts"] | None = None
    """The score of the proposal that each prompt is for, see `Proposals`; None: they are for places
    of the maps."""
    candidates: Candidates | None = None
    """Masks that are there already: SAM need not cut them."""

    @property
    def image_index(self) -> Int[Tensor, "prompts"]:
        """The image that each prompt is for."""
        return image_index(self.counts, self.label_index.device)


@dataclass(frozen=True)
class Masks:
    """One chosen mask a prompt, at SAM's low resolution."""

    logits: Float[Tensor, "prompts low low"]
    """Mask logits in SAM's padded square frame; a pixel is in the mask above SAM's threshold, 0."""
    predicted_iou: Float[Tensor, "prompts"]
    agreement: Float[Tensor, "prompts"]
    """How well the chosen mask agrees with its label's map, 0 to 1, see `Segmenter.agreement`."""
    candidate: Int[Tensor, "prompts"]
    """Which of SAM's candidates was chosen."""
    score: Float[Tensor, "prompts"]
    """Of the mask by itself, 0 to 1: with one prompt a label the predicted IoU, with one an object
    see `clip2sam.scoring`."""
    inside: Float[Tensor, "prompts"]
    """Mean raw score of the label's map inside the mask; 1 with one prompt a label."""
    contrast: Float[Tensor, "prompts"]
    """`inside` minus the mean in a ring around the mask, at least 0; 1 with one prompt a label."""
    kept: Bool[Tensor, "prompts"]
    """False for a mask that is another one's duplicate, or beyond the most objects of a label."""
    label_index: Int[Tensor, "prompts"]
    counts: tuple[int, ...]
    """How many masks each image has."""
    sizes: Sizes


@dataclass(frozen=True)
class Prediction:
    """Everything between the images and their masks."""

    maps: SimilarityMaps
    prompts: Prompts
    masks: Masks


def image_index(counts: tuple[int, ...], device: torch.device) -> Int[Tensor, "rows"]:
    """For rows of which each image has so many: the image of each row."""
    images = torch.arange(len(counts), device=device)
    repeats = torch.tensor(counts, dtype=torch.long, device=device)
    return images.repeat_interleave(repeats, output_size=sum(counts))
