"""How labels are written into figures: as typed, in any script."""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from matplotlib import font_manager
from matplotlib.figure import Figure

from clip2sam.data.labels import numbers

FONT = 10.0
"""Points."""

# Looked for in this order when DejaVu Sans, which comes with matplotlib, lacks a character.
FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Tamil",
    "Noto Sans Thai",
    "Nirmala UI",
    "Leelawadee UI",
    "Noto Emoji",
    "Segoe UI Emoji",
    "Segoe UI Symbol",
)


@lru_cache
def glyphs(family: str) -> frozenset[int]:
    """The code points that an installed font can draw; none if it is not installed."""
    if family not in font_manager.get_font_names():
        return frozenset()
    return frozenset(font_manager.get_font(font_manager.findfont(family)).get_charmap())


def style(text: str) -> dict[str, Any]:
    """How to write a label, as properties of a matplotlib Text: as typed, "$" and "\\" included.

    A character that no installed font has is drawn as an empty box (install a font such as Noto
    Sans CJK for it), control characters as spaces.
    """
    families, written = ["DejaVu Sans"], ""
    for letter in text:
        kind = unicodedata.category(letter)
        if kind == "Cf" and letter not in "\u200c\u200d":
            continue  # invisible, and may change the direction of writing
        if kind in ("Cc", "Zs", "Zl", "Zp"):
            letter = " "
        family = next(
            (f for f in ("DejaVu Sans", *FALLBACK_FONTS) if ord(letter) in glyphs(f)), None
        )
        if family is None:
            letter = "□"
        elif family not in families:
            families.append(family)
        written += letter
    return {"text": written, "family": families, "parse_math": False, "usetex": False}


def short(text: str, columns: int) -> str:
    """A text of at most so many columns: what doesn't fit is cut out of its middle, because names
    often differ in their last word. East Asian letters take two columns."""
    if _columns(text) <= columns:
        return text
    head = _fitting(text, columns // 2)
    tail = _fitting(text[::-1], columns - 1 - columns // 2)[::-1]
    while tail and (unicodedata.combining(tail[0]) or tail[0] == "\u200d"):
        tail = tail[1:]  # would join the ellipsis
    return f"{head.rstrip()}…{tail.lstrip()}"


def short_names(names: Sequence[str], columns: int) -> list[str]:
    """Each name by `short`; those that look the same when cut are numbered, in their order."""
    cut = [short(name, columns) for name in names]
    numbered = [short(name, columns - 5) for name in names]
    return [
        one if one == name or cut.count(one) == 1 else f"{less} {number}"
        for name, one, less, number in zip(names, cut, numbered, numbers(cut), strict=True)
    ]


def _columns(text: str) -> int:
    return sum(map(_width, text))


def _width(letter: str) -> int:
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _fitting(text: str, columns: int) -> str:
    """The beginning of a text that fits into so many columns."""
    return text[: bisect_right(list(accumulate(map(_width, text))), columns)]


def wrapped(pieces: Sequence[str], inches: float, size: float) -> list[str]:
    """Pieces of a text, with spaces between them, in lines of at most so many inches, at a font
    size in points. A piece is never broken; one that is too long has a line of its own."""
    probe = Figure(figsize=(1, 1), dpi=100).text(0, 0, "", fontsize=size)

    def fits(text: str) -> bool:
        probe.set(**style(text))
        return bool(probe.get_window_extent().width <= inches * 100)

    lines = [""]
    for piece in pieces:
        longer = f"{lines[-1]} {piece}".strip()
        if not lines[-1] or fits(longer):
            lines[-1] = longer
        else:
            lines.append(piece)
    return lines


def write(figure: Figure, left: float, top: float, text: str, size: float = FONT + 1) -> None:
    """A line of text; its upper left corner is (left, top) inches from the figure's lower left
    one."""
    wide, high = figure.get_size_inches()
    figure.text(left / wide, top / high, "", fontsize=size, va="top").set(**style(text))
