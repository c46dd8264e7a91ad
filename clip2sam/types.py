"""The nouns that the rooms hand on: frozen records with shapes, no logic.

Coordinates are continuous pixels, x to the right and y down, the origin at the picture's top left corner
(so the centre of the first pixel is 0.5, 0.5). Sizes are (height, width). Colours are RGB.
Arrays of dimension `labels` follow the user's order of classes, distractors last.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SimilarityMaps:
    """How well each label fits each place of one picture."""

    raw: Float[Tensor, "labels rows cols"]
    """Feature-surgery scores, not normalised: comparable between labels and pictures."""
    presence: Float[Tensor, "labels"]
    """One score a label: what the presence decision is taken on."""


@dataclass(frozen=True)
class PointPrompts:
    """Points for SAM, one row a prompt. A label may have none, one or several prompts.

    Rows are padded to a common length: `point_labels` is 1 for a positive point, 0 for a negative one and -1
    for padding, which takes no part in anything (it is not SAM's own "not a point").
    """

    coords: Float[Tensor, "prompts points 2"]
    """(x, y) in continuous pixels of the original picture."""
    point_labels: Int[Tensor, "prompts points"]
    label_index: Int[Tensor, "prompts"]
    """Which row of the label set each prompt is for."""


@dataclass(frozen=True)
class Masks:
    """SAM's answer: one chosen mask a prompt, at SAM's low resolution, on SAM's device."""

    logits: Float[Tensor, "prompts low low"]
    """Mask logits in SAM's padded square frame (1/4 of its input size); a pixel is in the mask above 0."""
    predicted_iou: Float[Tensor, "prompts"]
    agreement: Float[Tensor, "prompts"]
    """How well the chosen mask agrees with its label's map, 0 to 1."""
    candidate: Int[Tensor, "prompts"]
    """Which of SAM's candidates was chosen."""
    label_index: Int[Tensor, "prompts"]
    size: tuple[int, int]
    """(height, width) of the original picture."""


@dataclass(frozen=True)
class Prediction:
    """Everything between the picture and its masks, on the device."""

    maps: SimilarityMaps
    grids: Float[Tensor, "labels grid_rows grid_cols"]
    present: Bool[Tensor, "labels"]
    prompts: PointPrompts
    masks: Masks
