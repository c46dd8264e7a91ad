"""Locators that were trained to find what is typed: boxes, maps or masks, by transformers.

Each is made of a model and its processor, given by you or loaded by name. `transformers` is an
optional package and is imported only when a model is loaded by name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clip2sam.locate import Locator
from clip2sam.sam import Cutter
from clip2sam.trained import clipseg, grounding_dino, groupvit, owlv2, sam3
from clip2sam.trained.clipseg import CLIPSegLocator
from clip2sam.trained.grounding_dino import GroundingDinoLocator
from clip2sam.trained.groupvit import GroupViTLocator
from clip2sam.trained.hub import load_from_hub
from clip2sam.trained.owlv2 import Owlv2Locator
from clip2sam.trained.sam3 import Sam3Locator

__all__ = [
    "CLIPSegLocator",
    "GroundingDinoLocator",
    "GroupViTLocator",
    "Owlv2Locator",
    "Sam3Locator",
    "load_trained",
]

HUB_MODELS = {
    GroundingDinoLocator.name: grounding_dino.HUB,
    Owlv2Locator.name: owlv2.HUB,
    CLIPSegLocator.name: clipseg.HUB,
    GroupViTLocator.name: groupvit.HUB,
    Sam3Locator.name: sam3.HUB,
}
"""What is loaded for each name."""

_MAKERS: dict[str, Callable[[Any, Any, str], Locator]] = {
    GroundingDinoLocator.name: GroundingDinoLocator,
    Owlv2Locator.name: Owlv2Locator,
    CLIPSegLocator.name: CLIPSegLocator,
    GroupViTLocator.name: GroupViTLocator,
}


def load_trained(name: str, sam: Cutter, cache: Path, *, offline: bool) -> Locator:
    """The locator of that name, on SAM's device and in fp32.

    Args:
        name: one of `HUB_MODELS`.
        sam: the segmenter's.
        cache: the folder for what is downloaded, in the form of the Hugging Face hub's cache.
        offline: never use the network.

    Raises:
        ConfigError: transformers is missing or too old.
        WeightsError: the model is missing, damaged, or can't be downloaded.
    """
    model, processor, commit = load_from_hub(name, HUB_MODELS[name], cache, offline=offline)
    model = model.to(sam.device)
    if name == Sam3Locator.name:
        return Sam3Locator(model, processor, sam, commit)
    return _MAKERS[name](model, processor, commit)
