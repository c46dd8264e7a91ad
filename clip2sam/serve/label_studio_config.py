"""Label Studio's labelling interface (XML): which regions it has, for which labels, of which image.

Source: https://labelstud.io/tags/brushlabels, https://labelstud.io/tags/polygonlabels
"""

import re
from dataclasses import dataclass, replace
from typing import Literal
from xml.etree import ElementTree

from clip2sam.data.labels import LabelClass, LabelSet, named, quiet_label_set
from clip2sam.errors import ConfigError, shown
from clip2sam.serve.asked import check_labels
from clip2sam.serve.queue import Limits

MOST_CHARACTERS = 1_000_000
"""Of an interface."""

Kind = Literal["brushlabels", "polygonlabels"]
KINDS: dict[str, Kind] = {"brushlabels": "brushlabels", "polygonlabels": "polygonlabels"}


@dataclass(frozen=True)
class Control:
    """A tag whose labels a person gives to regions of an image."""

    name: str
    """A region's `from_name`."""
    to_name: str
    """The name of its Image tag."""
    image: str
    """Under which name a task's data have the image's address."""
    kind: Kind
    """What its regions are: also a region's `type`."""
    labels: dict[str, LabelClass]
    """By what Label Studio calls a label in its results."""


def controls_of(interface: str) -> tuple[Control, ...]:
    """The tags BrushLabels and PolygonLabels of a labelling interface, in its order.

    What a label is called is its value, or its alias if it has one, as in Label Studio's own
    results. Its text prompts are its `predicted_values` (separated by commas), or else its value.

    Raises:
        ConfigError: no such XML, none of these tags, or one that has no labels or no image.
    """
    root = _parsed(interface)
    images = {tag.get("name", ""): tag for tag in root.iter() if _kind(tag) == "image"}
    found = [tag for tag in root.iter() if _kind(tag) in KINDS]
    if not found:
        raise ConfigError(
            "labelling interface: expected a tag BrushLabels or PolygonLabels, got "
            f"{', '.join(dict.fromkeys(str(tag.tag) for tag in root.iter()))[:200]}; add one with "
            "its labels in the project's settings"
        )
    return tuple(_control(tag, images) for tag in found)


def labels_of(controls: tuple[Control, ...], limits: Limits) -> LabelSet:
    """The labels of all these tags, each once.

    Raises:
        LabelError: too many, too long, or what can't be a label.
    """
    classes: dict[str, LabelClass] = {}
    for control in controls:
        classes = control.labels | classes
    labels = quiet_label_set(LabelSet(tuple(classes.values())))
    check_labels(labels, limits)
    return labels


def _parsed(interface: str) -> ElementTree.Element:
    if len(interface) > MOST_CHARACTERS:
        raise ConfigError(
            f"labelling interface: expected at most {MOST_CHARACTERS:,} characters, got "
            f"{len(interface):,}; shorten it"
        )
    if "<!" in re.sub(r"<!--.*?-->", "", interface, flags=re.DOTALL):  # entities may be endless
        raise ConfigError(
            "labelling interface: expected XML without <!DOCTYPE and the like; take them out"
        )
    try:
        return ElementTree.fromstring(interface)
    except (ElementTree.ParseError, ValueError) as error:  # ValueError: a lone surrogate
        raise ConfigError(f"labelling interface: expected XML ({error}); correct it") from None


def _kind(tag: ElementTree.Element) -> str:
    return str(tag.tag).lower()


def _control(tag: ElementTree.Element, images: dict[str, ElementTree.Element]) -> Control:
    name, to_name = tag.get("name", ""), tag.get("toName", "")
    said = f"labelling interface: {tag.tag} {shown(name, 40)}"
    if not name or to_name not in images:
        raise ConfigError(
            f"{said}: expected a name, and as toName that of an Image tag, got toName "
            f"{shown(to_name, 40)}; correct it"
        )
    value = images[to_name].get("value", "")
    if not re.fullmatch(r"\$[^\s$]+", value):
        raise ConfigError(
            f"{said}: expected an Image with a value such as $image, got {shown(value, 40)}; tasks "
            "of one image each are what is supported"
        )
    labels = dict(_label(one) for one in tag.iter() if _kind(one) == "label")
    if "" in labels or not labels:
        raise ConfigError(
            f"{said}: expected Label tags, each with a value, in it; write them there (labels that "
            "come with each task are not supported)"
        )
    return Control(name, to_name, value[1:], KINDS[_kind(tag)], labels)


def _label(tag: ElementTree.Element) -> tuple[str, LabelClass]:
    """What results call a label, and its class."""
    value = tag.get("value", "")
    name = tag.get("alias") or value
    synonyms = [text.strip() for text in tag.get("predicted_values", "").split(",")]
    if texts := tuple(dict.fromkeys(filter(None, synonyms))):
        return name, LabelClass(name, texts)
    return name, replace(named(value), name=name)
