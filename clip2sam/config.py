"""The settings of the pipeline: one small frozen record."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from clip2sam.clip.methods import CLIP_SURGERY, Method, as_method
from clip2sam.errors import ConfigError, shown

Grid = int | Literal["half"]
PROMPTS = {"object": "one for each object", "label": "one for each label"}
"""What a prompt is for, and what is said of the masks then."""

DEFAULT_POINT_THRESHOLDS = {"object": 0.5, "label": 0.8}
"""What no `Config.point_threshold` stands for."""

CANDIDATES = ("both", "agreement", "predicted_iou")
"""The candidate rules that have a name."""

MAX_RESOLUTION = 8192
"""Of `Config.resolution`: 256 patches of 32 pixels a side, the largest patch in use. `SurgeryCLIP`
refuses what gives its own patches more than that."""

MAX_GRID = 64
"""Of `Config.grid`: every cell is a slot for a point, and SAM's memory for one prompt grows with
their number: 0.5 GB of attention for 64 x 64."""

MAX_OBJECTS = 64
"""Of `Config.max_objects`: each is a prompt for SAM."""

MIN_TILE, MAX_TILE = 32, 1_000_000
"""Of `Config.tile`, in pixels."""

MAX_POINTS = 1_000_000
"""Of `Config.max_positive` and `max_negative`: more than any grid has cells."""


@dataclass(frozen=True)
class Config:
    """How labels become masks. The defaults are what we recommend; `published()` is the published
    demo."""

    method: Method = CLIP_SURGERY
    """How CLIP's dense features are computed. A published method may also be given by its name."""
    feature_surgery: bool = True
    """Whether what all labels have in common is taken out of their maps. Without it scores are
    cosines, which need another presence threshold, and background prompts have no effect."""
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
    prompts: Literal["object", "label"] = "object"
    """One prompt, and so one mask, for each object of a label, or one for the label as a whole, as
    published."""
    point_threshold: float | None = None
    """Cells at or above it (after min-max scaling of the grid) are positive. With one prompt an
    object, a maximum of the map in or beside a positive cell is an object if it reaches this share
    of the label's highest one; with one a label, the positive cells' centres are positive points,
    and those of as many of the lowest cells negative ones. None: 0.5 and 0.8."""
    max_positive: int | None = None
    """At most so many positive points, with one prompt a label; None for no cap."""
    max_negative: int | None = None
    """At most so many negative points a prompt. None: with one prompt a label no cap, with one an
    object no negative points."""
    max_objects: int = 8
    """At most so many objects of a label in an image."""
    min_share: float = 0.5
    """With one prompt an object: of a label's masks, those are shown whose mean raw score inside is
    at least this share of the best mask's. The others may be false; a run's journal keeps them, so
    that an export can decide again."""
    tile: int | Literal["auto", "off"] = "off"
    """Small objects in large images: windows of an image go through the stages like images of their
    own, and their masks come together again, see `clip2sam.tiles`. A side in pixels of the image,
    at most 64 windows a side; "auto": CLIP's own side, at most 3 a side, and only for images whose
    longer side is more than 1.5 times it. Where there would be more windows they are larger. Each
    window costs about as much as an image. Only with one prompt an object."""
    tile_overlap: float = 0.5
    """The part of a window's side that its neighbour shows as well, 0 to 0.9. Objects that are not
    larger than it are whole in one of the windows."""
    candidate: str | Callable[..., Any] = "both"
    """Which of SAM's candidate masks is kept: the one that agrees best with the label's map
    ("agreement"), the one with the highest predicted IoU ("predicted_iou", as published), the one
    with the highest sum of the two ("both"), or a function of your own, see
    `clip2sam.candidates`."""

    def __post_init__(self) -> None:
        """Check every field. What means the same in another type becomes the field's own type:
        a method's name, a list of prompts, numpy's numbers."""
        self._set("method", as_method(self.method))
        if not isinstance(self.feature_surgery, bool):
            raise ConfigError(
                f"feature_surgery must be True or False, but got {shown(self.feature_surgery)}"
            )
        if self.resolution is not None:
            self._set("resolution", checked_resolution(self.resolution))
        self._set("background_prompts", _texts("background_prompts", self.background_prompts))
        if self.presence_threshold is not None:
            self._set(
                "presence_threshold", finite_number("presence_threshold", self.presence_threshold)
            )
        if not (isinstance(self.grid, str) and self.grid == "half"):
            unit = 'cells a side, or "half"'
            self._set("grid", whole_number("grid", self.grid, 2, MAX_GRID, unit))
        if self.prompts not in tuple(PROMPTS):
            raise ConfigError(
                f"prompts must be one of {', '.join(PROMPTS)}, but got {shown(self.prompts)}"
            )
        if self.point_threshold is not None:
            self._set("point_threshold", finite_number("point_threshold", self.point_threshold))
            if not 0 < self.point_threshold <= 1:
                raise ConfigError(
                    f"point_threshold must be above 0 and at most 1, but got {self.point_threshold}"
                )
        self._set(
            "max_objects", whole_number("max_objects", self.max_objects, 1, MAX_OBJECTS, "objects")
        )
        self._set("min_share", finite_number("min_share", self.min_share))
        if not 0 <= self.min_share <= 1:
            raise ConfigError(f"min_share must be from 0 to 1, but got {self.min_share}")
        self._check_tiles()
        for name in ("max_positive", "max_negative"):
            cap = getattr(self, name)
            if cap is not None:
                self._set(
                    name, whole_number(name, cap, 0, MAX_POINTS, "points, or None for no cap")
                )
        if not callable(self.candidate) and self.candidate not in CANDIDATES:
            raise ConfigError(
                f"candidate must be a function or one of {', '.join(CANDIDATES)}, "
                f"but got {shown(self.candidate)}"
            )

    def _check_tiles(self) -> None:
        if not (isinstance(self.tile, str) and self.tile in ("auto", "off")):
            unit = 'pixels, or "auto" or "off"'
            self._set("tile", whole_number("tile", self.tile, MIN_TILE, MAX_TILE, unit))
        self._set("tile_overlap", finite_number("tile_overlap", self.tile_overlap))
        if not 0 <= self.tile_overlap <= 0.9:
            raise ConfigError(f"tile_overlap must be from 0 to 0.9, but got {self.tile_overlap}")
        if self.tile != "off" and self.prompts == "label":
            raise ConfigError(
                'tile must be "off" with one prompt a label: a window has a part of the mask only; '
                'or use prompts="object"'
            )

    @property
    def positive_from(self) -> float:
        """`point_threshold`, or what None stands for."""
        default = DEFAULT_POINT_THRESHOLDS[self.prompts]
        return default if self.point_threshold is None else self.point_threshold

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # a frozen dataclass has no other way


def as_config(config: Any) -> Config:
    """The settings themselves, or the defaults for None.

    Raises:
        ConfigError: an object of another type.
    """
    if config is not None and not isinstance(config, Config):
        raise ConfigError(
            f"config must be a Config, such as Config(grid=5), but got {shown(config)}"
        )
    return Config() if config is None else config


def checked_resolution(resolution: Any) -> int:
    """A side of CLIP's square input in pixels, as int.

    Raises:
        ConfigError: no whole number, below 1 or above MAX_RESOLUTION.
    """
    return whole_number("resolution", resolution, 1, MAX_RESOLUTION, "pixels")


def whole_number(name: str, value: Any, least: int, most: int, unit: str) -> int:
    """A setting that counts something, as int; a ConfigError that names it if it is no whole number
    from `least` to `most`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise ConfigError(
            f"{name} must be a whole number from {least} to {most} {unit}, but got {shown(value)}"
        )
    return int(value)


def finite_number(name: str, value: Any) -> float:
    """A setting that is a number, as float; a ConfigError that names it if it is not finite."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else value
        finite = math.isfinite(number)
    except OverflowError:  # an integer beyond all floats
        finite = False
    if not finite:
        raise ConfigError(f"{name} must be a finite number, but got {shown(value)}")
    return float(number)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    given = isinstance(value, list | tuple)
    if not given or not all(isinstance(text, str) and text.strip() for text in value):
        raise ConfigError(f"{name} must be a tuple of texts, but got {shown(value)}")
    return tuple(value)


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
    """The published demo: 512 pixels, its 59 texts, no presence decision, one prompt a label with
    points on half the map's side, the candidate with the highest predicted IoU. The baseline for
    every improvement.

    Source: `demo.py` of https://github.com/xmed-lab/CLIP_Surgery.
    """
    return Config(
        resolution=512,
        background_prompts=PUBLISHED_TEXTS,
        presence_threshold=None,
        grid="half",
        prompts="label",
        candidate="predicted_iou",
    )
