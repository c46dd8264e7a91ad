"""The settings of the pipeline: one small frozen record."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from clip2sam.clip.methods import CLIP_SURGERY, Method
from clip2sam.errors import ConfigError

Grid = int | Literal["half"]
CANDIDATES = ("both", "agreement", "predicted_iou")
"""The candidate rules that have a name."""


@dataclass(frozen=True)
class Config:
    """How labels become masks. The defaults are what we recommend; `published()` is the published
    demo."""

    method: Method = CLIP_SURGERY
    """How CLIP's dense features are computed."""
    resolution: int | None = None
    """Side in pixels of CLIP's square input; None: the preset's, or else the model's own."""
    background_prompts: tuple[str, ...] = ()
    """Text prompts that always compete and are never labels: what they and the labels share is what
    feature surgery takes out. With them a label's scores depend little on the other labels."""
    presence_threshold: float | None = 0.1
    """Raw score that a label's map must reach somewhere for the label to be present; a class's own
    threshold takes precedence. None: no decision, every label is prompted."""
    grid: Grid = 7
    """Cells a side of the grid that points are chosen on; "half": half the map's side, as
    published."""
    point_threshold: float = 0.8
    """Cells at or above it (after min-max scaling of the grid) become positive points, and as many
    of the lowest ones negative points."""
    max_positive: int | None = None
    max_negative: int | None = None
    """Caps on each kind of point; None for no cap."""
    candidate: str | Callable[..., Any] = "both"
    """Which of SAM's candidate masks is kept: the one that agrees best with the label's map
    ("agreement"), the one with the highest predicted IoU ("predicted_iou", as published), the one
    with the highest sum of the two ("both"), or a function of your own, see
    `clip2sam.candidates`."""

    def __post_init__(self) -> None:
        if not callable(self.candidate) and self.candidate not in CANDIDATES:
            raise ConfigError(
                f"candidate must be a function or one of {', '.join(CANDIDATES)}, "
                f"but got {self.candidate!r}"
            )
        prompts = self.background_prompts
        if isinstance(prompts, str) or not all(isinstance(p, str) and p.strip() for p in prompts):
            raise ConfigError(f"background_prompts must be a tuple of texts, but got {prompts!r}")
        if self.resolution is not None and self.resolution < 1:
            raise ConfigError(f"resolution must be 1 pixel or more, but got {self.resolution}")
        if isinstance(self.grid, int) and self.grid < 2:
            raise ConfigError(f"grid must be 2 or more cells a side, but got {self.grid}")
        if not 0 < self.point_threshold <= 1:
            raise ConfigError(
                f"point_threshold must be above 0 and at most 1, but got {self.point_threshold}"
            )
        for name, cap in (("max_positive", self.max_positive), ("max_negative", self.max_negative)):
            if cap is not None and cap < 0:
                raise ConfigError(f"{name} must be 0 or more (or None for no cap), but got {cap}")


# fmt: off
PUBLISHED_TEXTS = (
    "airplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle",
    "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow",
    "cup", "curtain", "dog", "door", "fence", "floor", "flower", "food", "grass", "ground",
    "horse", "keyboard", "light", "motorbike", "mountain", "mouse", "person", "plate", "platform",
    "potted plant", "road", "rock", "sheep", "shelves", "sidewalk", "sign", "sky", "snow", "sofa",
    "table", "track", "train", "tree", "truck", "tv monitor", "wall", "water", "window", "wood",
)
# fmt: on
"""The 59 texts of the published demo: the classes of PASCAL-Context."""


def published() -> Config:
    """The published demo: 512 pixels, its 59 texts, no presence decision, points on half the map's
    side, the candidate with the highest predicted IoU. The baseline for every improvement.

    Source: `demo.py` of https://github.com/xmed-lab/CLIP_Surgery.
    """
    return Config(
        resolution=512,
        background_prompts=PUBLISHED_TEXTS,
        presence_threshold=None,
        grid="half",
        candidate="predicted_iou",
    )
