"""Which labels the tiny models know. Imports no torch.

Every token that their training texts don't have is one and the same row to the tiny CLIP: "person"
and "car" are one text to it, and what it says about them means nothing.
"""

import warnings
from collections.abc import Iterable, Sequence

from clip2sam.data.labels import LabelClass
from clip2sam.errors import UnknownLabelWarning
from clip2sam.tiny.scenes import COLOURS, SHAPES, TEXTURES

NAMED = 5
"""So many unknown labels are named in a message."""

DRAWN_WORDS = frozenset((*SHAPES, *COLOURS, *TEXTURES, "thing", "object"))
"""What a text must name to mean something to them."""

OTHER_WORDS = frozenset(("a", "an", "the", "one", "of", "small", "large"))
"""Words of the templates that a text may have beside those. Others of the templates, such as "toy"
or "photo", were seen in every training text's frame and never as a thing."""


def is_known(text: str) -> bool:
    """Whether a text prompt has words of drawn scenes, and none that isn't in the training texts.

    The tokenizer ignores case, and takes a plural for another word.
    """
    words = set(text.lower().split())
    return bool(words & DRAWN_WORDS) and words <= DRAWN_WORDS | OTHER_WORDS


def unknown_names(classes: Iterable[LabelClass]) -> tuple[str, ...]:
    """The names, each once, of the classes of which no text prompt is known, distractors too. A
    joined label's parts count for themselves."""
    parts = (part for c in classes for part in c.parts)
    return tuple(dict.fromkeys(p.name for p in parts if not any(map(is_known, p.prompts))))


def said_of_unknown(names: Sequence[str]) -> str:
    """The fact, as messages begin with it."""
    return (
        f"the preset tiny doesn't know {listed(names)}: it knows drawn shapes only, such as "
        "'red circle'"
    )


def listed(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more


class UnknownLabels:
    """To be called with the classes that are asked for. Warns of those that the tiny models don't
    know: an `UnknownLabelWarning`, once for each set of such labels."""

    def __init__(self) -> None:
        self._said: set[frozenset[str]] = set()

    def __call__(self, classes: Iterable[LabelClass]) -> None:
        unknown = unknown_names(classes)
        if not unknown or frozenset(unknown) in self._said:
            return
        self._said.add(frozenset(unknown))
        message = (
            f"{said_of_unknown(unknown)}, so what it says about them means nothing; for "
            "photographs load vit-b, vit-l or vit-h"
        )
        warnings.warn(UnknownLabelWarning(message), stacklevel=2)
