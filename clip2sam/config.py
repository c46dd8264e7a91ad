"""The settings of the pipeline: one small frozen record."""

from dataclasses import dataclass
from typing import Literal

from clip2sam.clip.methods import CLIP_SURGERY, Method
from clip2sam.errors import ConfigError
from clip2sam.points import Grid


@dataclass(frozen=True)
class Config:
    """How labels become masks. The defaults are what we recommend; `published()` is the published recipe."""

    method: Method = CLIP_SURGERY
    """How CLIP's dense features are made."""
    references: tuple[str, ...] = ()
    """Words that are always asked along, unseen: what they and the labels share is what feature surgery takes out. With
    them a label's scores depend little on which other labels are asked."""
    presence: float | None = 0.1
    """Raw score that a label's map must reach somewhere to be prompted; a class's own threshold goes first.
    None: no decision, every label gets its points."""
    grid: Grid = 7
    """Cells a side of the grid that points are chosen on; "half": half the map's side, as published."""
    threshold: float = 0.8
    """Cells at or above it (after scaling the grid to 0..1) become positive points, as many lowest ones negative."""
    max_positive: int | None = None
    max_negative: int | None = None
    """Caps on each kind of point; None for no cap."""
    candidate: Literal["both", "agreement", "predicted_iou"] = "both"
    """Which of SAM's candidates is kept: the one that agrees best with the label's map ("agreement"), the one that SAM
    believes in most ("predicted_iou", as published), or the one with the greatest sum of the two ("both")."""

    def __post_init__(self) -> None:
        if self.candidate not in ("both", "agreement", "predicted_iou"):
            raise ConfigError(
                f'candidate must be "both", "agreement" or "predicted_iou", but got {self.candidate!r}'
            )
        if isinstance(self.references, str) or not all(
            isinstance(r, str) and r.strip() for r in self.references
        ):
            raise ConfigError(f"references must be a tuple of words, but got {self.references!r}")
        if isinstance(self.grid, int) and self.grid < 2:
            raise ConfigError(f"grid must be 2 or more cells a side, but got {self.grid}")
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold must be above 0 and at most 1, but got {self.threshold}")
        for name, cap in (("max_positive", self.max_positive), ("max_negative", self.max_negative)):
            if cap is not None and cap < 0:
                raise ConfigError(f"{name} must be 0 or more (or None for no cap), but got {cap}")


def published() -> Config:
    """The published recipe: no presence decision, points on half the map's side, SAM's own favourite mask.

    Source: the demo of https://github.com/xmed-lab/CLIP_Surgery. The baseline for every improvement.
    """
    return Config(presence=None, grid="half", candidate="predicted_iou")
