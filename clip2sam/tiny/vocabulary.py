"""Which labels the tiny models know. Imports no torch.

Every token that their training texts don't have is one and the same row to the tiny CLIP: "person"
and "car" are one text to it, and what it says about them means nothing.
"""

from collections.abc import Iterable

from clip2sam.data.labels import LabelClass
from clip2sam.tiny.scenes import COLOURS, SHAPES, TEXTURES

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
