"""Every way to find labels by its name: the training-free methods of CLIP, and the locators.

No PyTorch here, and no image library: the options of the command line list the names.
"""

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from clip2sam.clip.methods import METHODS, Method, as_method
from clip2sam.config import Config
from clip2sam.errors import ConfigError, shown

if TYPE_CHECKING:
    from clip2sam.clip.model import SurgeryCLIP
    from clip2sam.locate import Locator
    from clip2sam.sam import Cutter


@dataclass(frozen=True)
class LocatorKind:
    """A locator that has a name."""

    description: str
    """What it is, in one line."""
    presence_threshold: float
    """A start on the scale of its own scores, in the place of the preset's."""
    with_clip: bool
    """Whether it works with the preset's CLIP; else that is not loaded."""


TRAINED: dict[str, LocatorKind] = {
    # 0.35 for boxes is usual with its published code; transformers' post-processing has 0.25.
    "grounding-dino": LocatorKind("Grounding DINO (tiny): boxes, which SAM cuts", 0.35, False),
    # 0.1: `post_process_grounded_object_detection` of transformers.
    "owlv2": LocatorKind("OWLv2 (base, ensemble): boxes, which SAM cuts", 0.1, False),
    # 0.3: at which timojl/clipseg measures IoU on PhraseCut, `experiments/phrasecut.yaml`.
    "clipseg": LocatorKind("CLIPSeg (rd64, refined): maps", 0.3, False),
    # Published is a threshold for another score (a softmax over a dataset's classes, 0.95 for
    # PASCAL VOC): this one is a start for `clip2sam tune` and not measured.
    "groupvit": LocatorKind("GroupViT (gcc, yfcc): maps", 0.2, False),
    # 0.5: the default of the published code's `Sam3Processor`; transformers has 0.3.
    "sam3": LocatorKind("SAM 3 (its weights must be asked for): masks", 0.5, False),
}
"""The trained ones, by name; see `clip2sam.trained`."""

LOCATORS: dict[str, LocatorKind] = {
    "regions": LocatorKind("SAM's masks of the whole image, scored by CLIP", 0.057, with_clip=True),
    **TRAINED,
}
"""The ways that are no training-free method, by name."""


def checked_method(method: Any) -> Any:
    """The way to find labels itself, if it is the name of one, a `Method` or a `Locator`.

    Raises:
        ConfigError: an unknown name, an object of another type, or a package is missing.
    """
    named = isinstance(method, str)
    if (named and method not in (*METHODS, *LOCATORS)) or (not named and not _is_way(method)):
        raise ConfigError(
            f"no method is called {shown(method)}; choose one of "
            f"{', '.join((*METHODS, *LOCATORS))} or give a Method or Locator object"
        )
    if named and method in TRAINED and find_spec("transformers") is None:
        raise ConfigError(
            f"{method} needs the package transformers: pip install 'clip2sam[transformers]'"
        )
    return method


def _is_way(method: Any) -> bool:
    return isinstance(method, Method) or hasattr(method, "locate")


def is_training_free(method: Any) -> bool:
    """Whether it is a method of `Config.method`: CLIP's maps, without another locator."""
    return isinstance(method, Method) or (isinstance(method, str) and method in METHODS)


def needs_clip(method: Any) -> bool:
    """Whether it works with the preset's CLIP. A locator of one's own brings what it needs."""
    if isinstance(method, str) and method in LOCATORS:
        return LOCATORS[method].with_clip
    return is_training_free(method)


def settings_for(method: Any, config: Config) -> Config:
    """A preset's settings for a way to find labels: scores of other models have another scale, and
    background prompts belong to feature surgery."""
    if is_training_free(method):
        return replace(config, method=as_method(method))
    if isinstance(method, str):
        kind = LOCATORS[method]
        background = config.background_prompts if kind.with_clip else ()
        return replace(
            config, presence_threshold=kind.presence_threshold, background_prompts=background
        )
    return config


def make_locator(
    method: Any,
    clip: "SurgeryCLIP | None",
    sam: "Cutter",
    *,
    offline: bool,
    weights_dir: str | os.PathLike[str] | None = None,
) -> "Locator | None":
    """The locator of that name, or the object itself; None for a training-free method."""
    if method is None or is_training_free(method):
        return None
    if method == "regions" and clip is not None:
        from clip2sam.regions import Regions

        return Regions(clip, sam)
    if isinstance(method, str) and method in TRAINED:
        from clip2sam.models.files import weights_dir as weights_folder
        from clip2sam.trained import load_trained

        return load_trained(method, sam, weights_folder(weights_dir) / "hub", offline=offline)
    return method
