"""Every way to find labels by its name: the training-free methods of CLIP, and the locators.

No PyTorch here: a wrong name is told before anything is loaded.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clip2sam.clip.methods import METHODS, Method, as_method
from clip2sam.config import Config
from clip2sam.errors import ConfigError, shown

if TYPE_CHECKING:
    from clip2sam.clip.model import SurgeryCLIP
    from clip2sam.locate import Locator
    from clip2sam.sam import PromptSAM


@dataclass(frozen=True)
class LocatorKind:
    """A locator that has a name."""

    description: str
    """What it is, in one line."""
    presence_threshold: float
    """A start on the scale of its own scores, in the place of the preset's."""
    with_clip: bool
    """Whether it works with the preset's CLIP; else that is not loaded."""


LOCATORS: dict[str, LocatorKind] = {
    "regions": LocatorKind("SAM's masks of the whole image, scored by CLIP", 0.057, with_clip=True),
}
"""The ways that are no training-free method, by name."""


def checked_method(method: Any) -> Any:
    """The way to find labels itself, if it is the name of one, a `Method` or a `Locator`.

    Raises:
        ConfigError: an unknown name, or an object of another type.
    """
    named = isinstance(method, str)
    if (named and method not in (*METHODS, *LOCATORS)) or (not named and not _is_way(method)):
        raise ConfigError(
            f"no method is called {shown(method)}; choose one of "
            f"{', '.join((*METHODS, *LOCATORS))} or give a Method or Locator object"
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
    method: Any, clip: "SurgeryCLIP | None", sam: "PromptSAM", *, offline: bool
) -> "Locator | None":
    """The locator of that name, or the object itself; None for a training-free method."""
    if method is None or is_training_free(method):
        return None
    if method == "regions" and clip is not None:
        from clip2sam.regions import Regions

        return Regions(clip, sam)
    return method
