"""How labels are written into figures: as typed, in any script."""

import unicodedata
from functools import lru_cache
from typing import Any

from matplotlib import font_manager
from matplotlib.figure import Figure

FONT = 9.0
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
    """A text cut to a number of columns, with an ellipsis; East Asian letters take two columns."""
    used = 0
    for i, letter in enumerate(text):
        used += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if used > columns:
            return text[:i] + "…"
    return text


def write(figure: Figure, left: float, top: float, text: str, size: float = FONT + 1) -> None:
    """A line of text; its upper left corner is (left, top) inches from the figure's lower left
    one."""
    wide, high = figure.get_size_inches()
    figure.text(left / wide, top / high, "", fontsize=size, va="top").set(**style(text))
