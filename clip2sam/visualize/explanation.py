"""The chain from a label to its mask as one figure, and several maps side by side."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import patheffects
from matplotlib.axes import Axes

from clip2sam.analysis.explain import Explanation
from clip2sam.visualize.canvas import Picture, colour, fit, place_axes
from clip2sam.visualize.draw import draw_grid, draw_map, draw_masks, draw_picture, draw_points
from clip2sam.visualize.words import FONT, short, style, write

_GAP, _BAR, _HEADING = (
    0.15,
    0.72,
    0.32,
)  # inches: between panels, for a colour bar, for a panel's title
_TOP = 0.62  # inches for the two lines over all
_RIVALS = 7  # labels shown beside the explained one


def explanation_figure(explained: Explanation) -> Picture:
    """One label of one picture, in two rows.

    Above: the label's similarity before feature surgery, what was taken out (both on one scale), their difference,
    which is the raw map, and the grid with its points. Below: every class's presence with the threshold, and SAM's
    candidates.
    """
    pixels = explained.image.pixels
    wide, high = fit(pixels.shape[0], pixels.shape[1], 2.9, 2.9)
    slot = max(wide, 2.2) + _BAR + _GAP
    lower = max(high, 1.9)
    figure = Picture(
        figsize=(
            4 * slot + 2 * _GAP - _BAR,
            _TOP + _HEADING + high + 0.35 + _HEADING + lower + 0.35,
        )
    )
    top = figure.get_figheight() - _TOP - _HEADING - high

    def panel(column: int, bottom: float) -> Axes:
        return place_axes(figure, _GAP + column * slot, bottom, wide, high)

    _headline(figure, explained)
    _draw_terms(explained, [panel(i, top) for i in range(3)])
    draw_points(
        explained.points[:, :2],
        explained.points[:, 2].astype(int),
        ax=draw_grid(pixels, explained.grid, ax=panel(3, top)),
    )
    figure.axes[-1].set_title(
        "{} x {} grid and points".format(*explained.grid.shape), fontsize=FONT
    )
    figure.axes[-1].legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=2,
        frameon=False,
        fontsize=FONT - 1,
        handletextpad=0.2,
    )
    _draw_presence(explained, place_axes(figure, _GAP, 0.35, slot - 3 * _GAP, lower))
    _draw_candidates(
        explained,
        [panel(i + 1, 0.35 + lower - high) for i in range(max(len(explained.candidates), 1))],
    )
    return figure


def maps_figure(
    pixels: UInt8[np.ndarray, "height width 3"],
    maps: Float[np.ndarray, "maps rows cols"],
    titles: Sequence[str],
    *,
    shared: bool = True,
) -> Picture:
    """Maps over one picture, up to four in a row, each with its title.

    Args:
        maps: raw scores.
        shared: one scale of colours for all of them, which makes them comparable; else each has its own range.
    """
    wide, high = fit(pixels.shape[0], pixels.shape[1], 2.6, 2.6)
    columns, slot = min(len(maps), 4), max(wide, 1.6) + _BAR + _GAP
    rows = -(-len(maps) // columns)
    figure = Picture(figsize=(columns * slot + _GAP, rows * (high + _HEADING) + _GAP))
    finite = maps[np.isfinite(maps)]
    limits = (float(finite.min()), float(finite.max())) if shared and finite.size else None
    for i, (similarity, title) in enumerate(zip(maps, titles, strict=True)):
        bottom = figure.get_figheight() - (i // columns + 1) * (high + _HEADING)
        ax = draw_map(
            pixels,
            similarity,
            ax=place_axes(figure, _GAP + i % columns * slot, bottom, wide, high),
            limits=limits,
        )
        ax.title.set(**style(short(title, 36)), fontsize=FONT)
    return figure


def _headline(figure: Picture, explained: Explanation) -> None:
    """The label, and the decision in one line."""
    wide, high = figure.get_size_inches()
    write(figure, _GAP, high - 0.12, short(explained.label, 60), size=13.0)
    score = explained.presence[explained.index]
    asked = "no threshold" if explained.threshold is None else f"threshold {explained.threshold:g}"
    verdict = (
        f"absent: {explained.reason}"
        if explained.reason
        else f"present: candidate {(explained.kept or 0) + 1}"
    )
    write(
        figure,
        _GAP,
        high - 0.4,
        short(f"presence {score:.3f}  ·  {asked}  ·  {verdict}", int(wide * 13)),
        size=FONT,
    )


def _draw_terms(explained: Explanation, axes: Sequence[Axes]) -> None:
    """Before surgery, what was taken out, and what is left; the first two on one scale."""
    both = np.stack([explained.before, explained.redundant])
    finite = both[np.isfinite(both)]
    limits = (float(finite.min()), float(finite.max())) if finite.size else None
    alone = len(explained.label_set.classes) == 1
    draw_map(explained.image.pixels, explained.before, ax=axes[0], limits=limits)
    axes[0].set_title(f"similarity x weight {explained.weight:.2f}", fontsize=FONT)
    draw_map(explained.image.pixels, explained.redundant, ax=axes[1], limits=limits)
    axes[1].set_title(
        f"minus {'the empty string' if alone else 'what all labels share'}", fontsize=FONT
    )
    draw_map(explained.image.pixels, explained.raw, ax=axes[2])
    axes[2].set_title("is the raw map", fontsize=FONT)


def _draw_presence(explained: Explanation, ax: Axes) -> None:
    """Every class's highest raw score as a bar, the explained one's first, the others' from the highest."""
    others = [
        i
        for i in np.argsort(-np.nan_to_num(explained.presence), kind="stable")
        if i != explained.index
    ]
    shown = [explained.index, *others[:_RIVALS]]
    classes = explained.label_set.classes
    scores = np.nan_to_num(explained.presence[shown], posinf=0.0, neginf=0.0)
    fills = [colour(i) if i == explained.index else (0.8, 0.8, 0.8) for i in shown]
    ax.barh(range(len(shown)), scores, color=fills, height=0.8)
    left, right = min(0.0, *scores), max(0.0, *scores, explained.threshold or 0.0)
    ax.set_xlim(left, right + 0.12 * (right - left or 1.0))
    ax.set_ylim(_RIVALS + 0.5, -0.5)
    ax.set_yticks([])
    ax.tick_params(labelsize=FONT - 1)
    ax.spines[["top", "right", "left"]].set_visible(False)
    halo = [patheffects.withStroke(linewidth=2, foreground="white")]
    for row, (i, score) in enumerate(zip(shown, explained.presence[shown], strict=True)):
        name = short(classes[i].name, 22) + (" (distractor)" if classes[i].distractor else "")
        text = ax.text(left, row, "", fontsize=FONT, va="center", path_effects=halo)
        text.set(**style(f" {name}  {score:.3f}"))
    if explained.threshold is not None and left <= explained.threshold <= ax.get_xlim()[1]:
        ax.axvline(explained.threshold, color="black", linewidth=1, linestyle="--")
    more = f", {len(shown)} of {len(classes)} labels" if len(shown) < len(classes) else ""
    ax.set_title(f"presence and threshold{more}", fontsize=FONT)


def _draw_candidates(explained: Explanation, axes: Sequence[Axes]) -> None:
    """SAM's candidates, the preferred one in bold."""
    pixels, fill = explained.image.pixels, colour(explained.index)
    for ax, (i, candidate) in zip(axes, enumerate(explained.candidates), strict=False):
        draw_masks(pixels, candidate.mask[None], [""], np.zeros(1), [fill], ax=ax, tagged=False)
        kept = ("kept" if not explained.reason else "would be kept") if candidate.kept else ""
        ax.set_title(
            f"candidate {i + 1}{f', {kept}' if kept else ''}\npredicted IoU {candidate.predicted_iou:.2f}, "
            f"agreement {candidate.agreement:.2f}",
            fontsize=FONT,
            fontweight="bold" if candidate.kept else "normal",
        )
    if not explained.candidates:
        draw_picture(pixels, ax=axes[0])
        axes[0].set_title("no points, so no candidates", fontsize=FONT)
