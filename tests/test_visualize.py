"""Figures are drawn of all that a result can hold, with the right colours at the right places, and
without a warning."""

import itertools
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle
from PIL import Image as PilImage

from clip2sam.data.images import Image
from clip2sam.errors import ConfigError, ImageError, OutputError
from clip2sam.visualize import (
    NEGATIVE,
    POSITIVE,
    colour,
    draw_grid,
    draw_image,
    draw_map,
    draw_masks,
    draw_numbers,
    draw_points,
    label_figure,
    overview_figure,
    result_figure,
    result_label_figure,
    save_figure,
    text,
)
from clip2sam.visualize.draw import FILL
from clip2sam.visualize.overlays import draw_overlays
from tests.figures import written

GREY = np.full((60, 90, 3), 128, np.uint8)


def box(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def render(drawn: Figure | Axes) -> np.ndarray:
    """A figure, or that of the axes, as RGB 0 to 1."""
    canvas = FigureCanvasAgg(drawn if isinstance(drawn, Figure) else cast(Figure, drawn.figure))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(float) / 255


def pixel(ax: Axes, x: float, y: float, drawn: np.ndarray | None = None) -> np.ndarray:
    """The colour drawn at a position of the image."""
    drawn = render(ax) if drawn is None else drawn
    col, row = ax.transData.transform((x, y))
    return drawn[int(len(drawn) - row), int(col)]


def faintly(fill: tuple[float, float, float]) -> np.ndarray:
    """A mask's fill over grey: most of what is seen is the image."""
    assert FILL < 0.25
    return np.array(fill) * FILL + 128 / 255 * (1 - FILL)


def tags(ax: Axes) -> list[Any]:
    return [text for text in ax.texts if text.get_bbox_patch() is not None]


def legend(ax: Axes) -> list[str]:
    return [text.get_text() for text in cast(Legend, ax.get_legend()).get_texts()]


def overlapping(ax: Axes) -> int:
    """How many pairs of tags cover each other as drawn."""
    render(ax)
    boxes = [tag.get_bbox_patch().get_window_extent() for tag in tags(ax)]
    return sum(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


# -- colours


def test_the_first_colours_differ_for_colour_blind_people() -> None:
    # Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
    sights = {
        "normal": np.eye(3),
        "protanopia": [
            [0.1523, 1.0526, -0.2049],
            [0.1145, 0.7863, 0.0992],
            [-0.0039, -0.0481, 1.0520],
        ],
        "deuteranopia": [
            [0.3673, 0.8606, -0.2280],
            [0.2801, 0.6725, 0.0474],
            [-0.0118, 0.0429, 0.9689],
        ],
        "tritanopia": [
            [1.2555, -0.0767, -0.1788],
            [-0.0784, 0.9308, 0.1476],
            [0.0047, 0.6914, 0.3039],
        ],
    }
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )

    def lab(rgb: tuple[float, float, float], sight: Any) -> np.ndarray:
        linear = np.where(
            np.array(rgb) <= 0.04045,
            np.array(rgb) / 12.92,
            ((np.array(rgb) + 0.055) / 1.055) ** 2.4,
        )
        xyz = to_xyz @ np.clip(np.array(sight) @ linear, 0, 1) / (0.9505, 1.0, 1.089)
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    for name, sight in sights.items():
        seen = [lab(rgb, sight) for rgb in [colour(i) for i in range(8)] + [POSITIVE, NEGATIVE]]
        pairs = itertools.combinations(range(10), 2)
        closest = min(
            float(np.linalg.norm(seen[i] - seen[j])) for i, j in pairs if (i, j) != (8, 9)
        )
        assert closest >= 15, name


def test_colours_stay_within_bounds_and_differ_for_24_classes() -> None:
    colours = [colour(i) for i in range(24)]
    assert len(set(colours)) == 24
    assert all(0 <= c <= 1 for rgb in colours for c in rgb)
    assert colour(24) == colour(0)


# -- what is drawn where


def test_a_mask_colours_its_inside_and_nothing_else() -> None:
    mask = box(60, 90, 10, 40, 30, 80)
    ax = draw_masks(GREY, mask[None], ["cat"], np.array([0.9]), [colour(2)])
    drawn, plain = render(ax), render(draw_masks(GREY, mask[None][:0], [], np.zeros(0), []))
    mixed = faintly(colour(2))
    assert pixel(ax, 45, 26, drawn) == pytest.approx(mixed, abs=0.02)
    assert pixel(ax, 75, 14, drawn) == pytest.approx(mixed, abs=0.02)
    for x, y in ((5, 5), (30, 20), (60, 40), (85, 20), (60, 5)):
        assert pixel(ax, x, y, drawn) == pytest.approx(pixel(ax, x, y, plain)), (x, y)
    assert pixel(ax, 60, 30, drawn) == pytest.approx(np.array(colour(2)), abs=0.1), (
        "the outline has the full colour"
    )


def test_small_masks_lie_on_top_of_large_ones() -> None:
    large, small = np.ones((60, 90), bool), box(60, 90, 20, 30, 40, 60)
    ax = draw_masks(
        GREY,
        np.stack([small, large]),
        ["", ""],
        np.array([0.1, 0.2]),
        [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)],
    )
    red, _, blue = pixel(ax, 33, 36)
    assert red > blue


def test_chosen_masks_lie_on_top_of_smaller_ones() -> None:
    large, small = np.ones((60, 90), bool), box(60, 90, 20, 30, 40, 60)
    masks, scores = np.stack([small, large]), np.array([0.1, 0.2])
    colours = [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]
    ax = draw_masks(GREY, masks, ["", ""], scores, colours, top=[1])
    red, _, blue = pixel(ax, 33, 36)
    assert blue > red


def test_points_are_orange_and_blue_at_their_places() -> None:
    ax = draw_points(
        np.array([[70.0, 10.0], [10.0, 50.0], [45.0, 30.0]]),
        np.array([1, 0, -1]),
        ax=draw_image(GREY),
    )
    drawn = render(ax)
    assert pixel(ax, 70, 10, drawn) == pytest.approx(POSITIVE, abs=0.02)
    assert pixel(ax, 10, 50, drawn) == pytest.approx(NEGATIVE, abs=0.02)
    assert pixel(ax, 45, 30, drawn) == pytest.approx([128 / 255] * 3, abs=0.02), (
        "padding is not drawn"
    )
    plus, cross = (np.asarray(kind.get_paths()[0].vertices) for kind in ax.collections)
    assert not np.array_equal(plus, cross), "the two kinds have different shapes too"


def test_a_map_is_brightest_at_its_peak_and_its_bar_has_the_raw_scores() -> None:
    similarity = np.full((4, 6), -0.5, np.float32)
    similarity[3, 1] = 2.5
    ax = draw_map(GREY, similarity)
    drawn = render(ax)
    assert pixel(ax, 22.5, 52.5, drawn).mean() > pixel(ax, 80, 5, drawn).mean() + 0.3
    assert ax.child_axes[0].get_ylim() == pytest.approx((-0.5, 2.5))
    shared = draw_map(GREY, similarity, limits=(-1.0, 4.0))
    assert shared.child_axes[0].get_ylim() == pytest.approx((-1.0, 4.0))


@pytest.mark.parametrize("value", [0.0, 0.3, -1e30, float("nan"), float("inf")])
def test_a_map_without_a_range_is_drawn_evenly(value: float) -> None:
    ax = draw_map(GREY, np.full((7, 7), value, np.float32))
    drawn = render(ax)
    assert pixel(ax, 10, 10, drawn) == pytest.approx(pixel(ax, 80, 50, drawn), abs=0.02)


def test_cells_that_are_not_finite_are_grey() -> None:
    similarity = np.random.default_rng(0).random((6, 9)).astype(np.float32)
    similarity[0, 0] = np.nan
    red, green, blue = pixel(draw_map(GREY, similarity), 4, 4)
    assert red == pytest.approx(green, abs=0.02)
    assert green == pytest.approx(blue, abs=0.02)


def test_the_grid_writes_its_finite_values_in_their_cells() -> None:
    grid = np.arange(49, dtype=np.float32).reshape(7, 7) / 48
    grid[2, 3] = np.nan
    ax = draw_grid(GREY, grid)
    places = [
        (int(y // (60 / 7)), int(x // (90 / 7))) for x, y in (t.get_position() for t in ax.texts)
    ]
    written = dict(zip(places, [t.get_text() for t in ax.texts], strict=True))
    assert len(written) == 48
    assert (2, 3) not in written
    assert written[0, 1] == "0.02"
    assert written[6, 6] == "1.00"


def test_values_stand_beside_points_and_their_numbers() -> None:
    peaks = np.array([[45.0, 30.0], [9.0, 50.0], [70.0, 2.0], [40.0, 41.0]], np.float32)
    ax = draw_grid(GREY, np.eye(7, dtype=np.float32), around=peaks)
    values = list(ax.texts)
    draw_numbers(peaks, ax=draw_points(peaks, np.ones(4, int), ax=ax))
    render(ax)
    numbers = [t.get_window_extent() for t in ax.texts if t not in values]
    points = ax.transData.transform(peaks)
    for value in values:
        written_at = value.get_window_extent()
        assert not any(written_at.overlaps(n) for n in numbers), value.get_position()
        middle = np.array([written_at.x0 + written_at.x1, written_at.y0 + written_at.y1]) / 2
        apart = np.abs(points - middle) - (written_at.width / 2, written_at.height / 2)
        assert (apart.max(axis=1) > 3).all(), "three pixels from a marker's centre at least"


def test_values_are_left_out_where_cells_are_too_small() -> None:
    assert not draw_grid(GREY, np.zeros((60, 60), np.float32)).texts


def test_drawing_keeps_to_the_axes_given() -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert draw_map(GREY, np.eye(7, dtype=np.float32), ax=left) is left
    assert (
        draw_masks(
            GREY, box(60, 90, 9, 9, 50, 50)[None], ["cat"], np.array([0.5]), [colour(0)], ax=right
        )
        is right
    )
    assert right.get_xlim() == (0, 90)
    assert right.get_ylim() == (60, 0)
    render(figure)


def test_a_large_image_is_drawn_small_in_its_own_coordinates() -> None:
    pixels = np.zeros((3000, 4000, 3), np.uint8)
    mask = np.zeros((1, 3000, 4000), bool)
    mask[0, 1000:1001] = True  # a line one pixel thick, which the smaller drawing must not lose
    ax = draw_masks(pixels, mask, [""], np.array([0.5]), [(1.0, 1.0, 0.0)])
    assert np.asarray(ax.images[0].get_array()).shape == (1200, 1600, 3)
    assert pixel(ax, 3900, 1000.5) == pytest.approx([1, 1, 0], abs=0.2)
    assert pixel(ax, 3900, 1500) == pytest.approx([0, 0, 0], abs=0.01)


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(ImageError, match=r"masks are 30 x 45 .* the image is 60 x 90: give masks"):
        draw_masks(GREY, np.zeros((1, 30, 45), bool), ["cat"], np.array([0.5]), [colour(0)])


# -- tags and legends


@pytest.mark.parametrize("size", [2, 12, 25])
def test_tags_do_not_cover_each_other(size: int) -> None:
    corners = np.random.default_rng(0).integers(25, 35, (9, 2))
    masks = [box(60, 90, y, x, y + size, x + size) for y, x in corners] + [np.ones((60, 90), bool)]
    names = [f"label {i}" for i in range(10)]
    ax = draw_masks(GREY, np.stack(masks), names, np.ones(10), [colour(i) for i in range(10)])
    assert len(tags(ax)) == 10
    assert overlapping(ax) == 0
    frame = ax.get_window_extent().padded(2)
    for tag in tags(ax):
        (x0, y0), (x1, y1) = tag.get_bbox_patch().get_window_extent().get_points()
        assert frame.contains(x0, y0), tag.get_text()
        assert frame.contains(x1, y1), tag.get_text()
    if size == 2:
        assert ax.lines, "tags that moved away are tied to their masks"


def tag_boxes(ax: Axes) -> list[tuple[float, float, float, float]]:
    """x0, y0, x1, y1 of the tags as drawn, in pixels of the image."""
    render(ax)
    boxes = [tag.get_bbox_patch().get_window_extent() for tag in tags(ax)]
    corners = [ax.transData.inverted().transform(b.get_points()) for b in boxes]
    return [(c[0, 0], c[1, 1], c[1, 0], c[0, 1]) for c in corners]


def hidden(ax: Axes, mask: np.ndarray) -> float:
    """How much of a mask lies under tags."""
    under = np.zeros_like(mask)
    for x0, y0, x1, y1 in tag_boxes(ax):
        under[max(round(y0), 0) : round(y1), max(round(x0), 0) : round(x1)] = True
    return float((under & mask).sum() / mask.sum())


def test_a_tag_stands_beside_its_mask_and_hides_no_other() -> None:
    masks = np.stack([box(60, 90, 20, 40, 30, 50), box(60, 90, 8, 40, 17, 50)])
    ax = draw_masks(GREY, masks, ["cat", "dog"], np.array([0.876, 0.5]), [colour(0), colour(1)])
    assert {tag.get_text() for tag in tags(ax)} == {"cat 0.88", "dog 0.50"}
    assert [hidden(ax, mask) for mask in masks] == [0, 0]
    assert overlapping(ax) == 0
    assert not ax.lines, "near enough without a line"


def test_a_tag_stands_above_its_mask_in_the_middle() -> None:
    ax = draw_masks(GREY, box(60, 90, 30, 30, 40, 60)[None], ["cat"], np.array([0.5]), [colour(0)])
    ((x0, _, x1, y1),) = tag_boxes(ax)
    assert (x0 + x1) / 2 == pytest.approx(45, abs=1)
    assert 27 < y1 < 30


@pytest.mark.parametrize("top", [0, 30])
def test_a_tag_stays_in_the_image(top: int) -> None:
    """There is no room above, or below, and the name is long."""
    mask = box(60, 90, top, 80, top + 30, 90)
    ax = draw_masks(GREY, mask[None], ["a long name"], np.array([0.5]), [colour(0)])
    ((x0, y0, x1, y1),) = tag_boxes(ax)
    assert min(x0, y0) >= -0.5
    assert x1 <= 90.5
    assert y1 <= 60.5
    assert hidden(ax, mask) == 0


def test_the_tag_of_a_mask_without_room_around_it_stands_in_it() -> None:
    everything, small = np.ones((60, 90), bool), box(60, 90, 25, 40, 35, 50)
    fills = [colour(0), colour(1)]
    ax = draw_masks(GREY, np.stack([everything, small]), ["sky", "kite"], np.ones(2), fills)
    assert len(tags(ax)) == 2
    assert hidden(ax, small) == 0
    assert overlapping(ax) == 0


def test_masks_of_one_name_are_numbered() -> None:
    masks = np.stack([box(60, 90, 5, x, 30, x + 15) for x in (5, 30, 60)])
    fills = [colour(0), colour(1), colour(0)]
    ax = draw_masks(GREY, masks, ["cat", "dog", "cat"], np.array([0.9, 0.8, 0.7]), fills)
    assert {t.get_text() for t in tags(ax)} == {"cat #1 0.90", "dog 0.80", "cat #2 0.70"}


def test_a_box_is_a_frame_between_its_corners() -> None:
    """Corners of two boxes among points, as prompts have them."""
    coords = np.array([[5, 6], [2, 3], [20, 13], [4, 1], [9, 30]], np.float32)
    ax = draw_points(coords, np.array([1, 2, 3, 2, 3]), ax=Figure().add_subplot())
    frames = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert [tuple(f.get_bbox().extents) for f in frames] == [(2, 3, 20, 13), (4, 1, 9, 30)]
    assert not any(f.get_fill() for f in frames)
    assert all(to_rgb(f.get_edgecolor()) == pytest.approx(POSITIVE) for f in frames)
    assert [len(c.get_offsets()) for c in ax.collections] == [1, 0]  # type: ignore[arg-type]


def test_numbers_stand_above_their_points_or_below_where_there_is_no_room() -> None:
    ax = draw_numbers(np.array([[45.0, 1.0], [45.0, 40.0]]), ax=draw_image(GREY))
    render(ax)
    points = ax.transData.transform([(45.0, 1.0), (45.0, 40.0)])
    below, above = (t.get_window_extent() for t in ax.texts)
    assert below.y1 < points[0, 1]
    assert above.y0 > points[1, 1]


def test_prompts_that_share_negative_points_draw_them_once() -> None:
    eye, negative = np.eye(7, dtype=np.float32), [80.0, 50.0, 0.0]
    points = [np.array([[9.0, 9.0, 1.0], negative]), np.array([[60.0, 45.0, 1.0], negative])]
    none = np.zeros((0, 60, 90), bool)
    figure = label_figure(GREY, "cat", eye, eye, points, none, np.zeros(0), 0.2)
    assert legend(figure.axes[1]) == ["positive (2)", "negative (1)"]
    only_negative = [np.array([negative])]
    figure = label_figure(GREY, "cat", eye, eye, only_negative, none, np.zeros(0), 0.2)
    assert legend(figure.axes[1]) == ["positive (0)", "negative (1)"]


def test_an_empty_mask_has_no_tag() -> None:
    assert not tags(
        draw_masks(GREY, np.zeros((1, 60, 90), bool), ["cat"], np.array([0.5]), [colour(0)])
    )


def test_many_masks_are_numbered_and_the_legend_explains_the_numbers() -> None:
    masks = np.stack(
        [
            box(60, 90, 6 * (i // 9), 10 * (i % 9), 6 * (i // 9) + 5, 10 * (i % 9) + 8)
            for i in range(80)
        ]
    )
    names = [f"label {i}" for i in range(80)]
    figure = overview_figure(GREY, masks, names, np.ones(80), [colour(i) for i in range(80)])
    ax = figure.axes[0]
    assert {t.get_text() for t in tags(ax)} == {str(i + 1) for i in range(80)}
    assert overlapping(ax) == 0
    assert legend(ax)[0] == "1  label 0 1.00"
    assert legend(ax)[-1] == "and 20 more"
    box_of_legend = cast(Legend, ax.get_legend()).get_window_extent()
    assert box_of_legend.x1 <= figure.bbox.x1, "the legend lies within the figure"
    assert box_of_legend.y0 >= 0


def test_few_masks_are_named_and_no_legend_repeats_the_names() -> None:
    masks = np.stack(
        [box(60, 90, 5, 5, 20, 20), box(60, 90, 40, 5, 55, 20), box(60, 90, 5, 60, 20, 80)]
    )
    colours = [colour(0), colour(0), colour(1)]
    figure = overview_figure(
        GREY, masks, ["cat", "cat", "_dog"], np.array([0.5, 0.6, 0.7]), colours
    )
    assert figure.axes[0].get_legend() is None
    assert {to_rgb(t.get_bbox_patch().get_facecolor()) for t in tags(figure.axes[0])} == {
        colour(0),
        colour(1),
    }


def test_absent_labels_are_listed_in_lines_and_none_is_cut() -> None:
    names = [f"a label that is absent {i}" for i in range(120)]
    absent = [(name, i / 1000) for i, name in enumerate(names)]
    figure = overview_figure(GREY, np.zeros((0, 60, 90), bool), [], np.zeros(0), [], absent=absent)
    lines = [t for t in written(figure) if not t.startswith("masks: ")]
    assert len(lines) > 20
    listed = [f"{name} {score:.3f}" for name, score in absent[:19:-1]]
    assert " ".join(lines) == f"absent: {', '.join(listed)}, and 20 more"


# -- names

AS_TYPED = {
    "$\\frac{$": "$\\frac{$",
    "<b>bold</b> & co": "<b>bold</b> & co",
    "_hidden": "_hidden",
    "two\nlines\tand\0nul": "two lines and nul",
    "crème brûlée": "crème brûlée",
    "\u202eturned": "turned",
    "x" * 300: "x" * 14 + "…" + "x" * 13,
}
ANY_SCRIPT = ["猫と犬", "😀 smile", "\udc80", "עברית", "ไทย", "e\u0301", "👩\u200d🚀"]


def named(names: list[str]) -> Figure:
    """An overview with a mask for each name, all of them listed as absent too."""
    count = len(names)
    masks = np.stack([box(60, 90, 4 * i, 0, 4 * i + 3, 90) for i in range(count)])
    colours = [colour(i) for i in range(count)]
    return overview_figure(
        GREY, masks, names, np.full(count, 0.5), colours, absent=[(n, 0.1) for n in names]
    )


def test_names_are_written_as_typed() -> None:
    figure = named(list(AS_TYPED))
    assert {t.get_text() for t in tags(figure.axes[0])} == {
        f"{written} 0.50" for written in AS_TYPED.values()
    }
    listed = " ".join(written(figure))
    assert all(f"{kept} 0.100" in listed for kept in AS_TYPED.values() if len(kept) < 28)
    more = named([*AS_TYPED, *"abcdefgh"])  # so many that a legend has the names
    entries = [f"{i}  {kept} 0.50" for i, kept in enumerate([*AS_TYPED.values(), *"abcdefgh"], 1)]
    assert legend(more.axes[0]) == entries
    assert set(entries) <= set(written(more))
    name = "$\\frac{$"
    titled = label_figure(
        GREY,
        name,
        np.eye(2),
        np.eye(2),
        [],
        np.zeros((0, 60, 90), bool),
        np.zeros(0),
        0.1,
        absent=name,
    )
    assert titled.texts[0].get_text() == name
    render(titled)


def test_names_in_any_script_are_drawn_without_a_warning() -> None:
    assert len(tags(named(ANY_SCRIPT).axes[0])) == len(ANY_SCRIPT)
    render(named(ANY_SCRIPT))


def test_characters_that_no_font_has_are_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "FALLBACK_FONTS", ())
    ax = draw_masks(GREY, np.ones((1, 60, 90), bool), ["a猫b"], np.array([0.5]), [colour(0)])
    assert tags(ax)[0].get_text() == "a□b 0.50"


def test_a_font_that_has_the_character_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    letter = chr(
        min(text.glyphs("STIXGeneral") - text.glyphs("DejaVu Sans") - set(range(0xE000, 0xF900)))
    )
    monkeypatch.setattr(text, "FALLBACK_FONTS", ("No Such Font", "STIXGeneral"))
    ax = draw_masks(GREY, np.ones((1, 60, 90), bool), [letter], np.array([0.5]), [colour(0)])
    assert tags(ax)[0].get_text() == f"{letter} 0.50"
    assert tags(ax)[0].get_family() == ["DejaVu Sans", "STIXGeneral"]
    render(ax)


# -- whole figures


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9000), (9000, 1), (60, 90), (40, 200)])
def test_images_of_any_size_are_drawn(height: int, width: int) -> None:
    pixels, mask = np.full((height, width, 3), 200, np.uint8), np.ones((1, height, width), bool)
    points = np.array([[width / 2, height / 2, 1.0], [width / 14, height / 14, 0.0]])
    grid = np.linspace(0, 1, 49, dtype=np.float32).reshape(7, 7)
    figure = label_figure(pixels, "cat", grid - 0.5, grid, [points], mask, np.array([0.9]), 0.3)
    assert len(figure.axes) == 3
    drawn = render(figure)
    assert 300 < drawn.shape[1] < 2000
    red, green, _ = pixel(figure.axes[2], width * 0.2, height * 0.2, drawn)
    assert green > red + 0.05
    render(overview_figure(pixels, mask, ["cat"], np.array([0.9]), [colour(0)]))


def test_a_label_figure_says_what_was_found() -> None:
    masks = np.stack([box(60, 90, 5, 5, 20, 20), box(60, 90, 40, 50, 55, 70)])
    points = [np.array([[9.0, 9.0, 1.0], [50.0, 9.0, 0.0]]), np.array([[60.0, 45.0, 1.0]])]
    eye = np.eye(7, dtype=np.float32)
    figure = label_figure(
        GREY, "cat", eye, eye, points, masks, np.array([0.91, 0.5]), 0.234, fill=colour(3)
    )
    assert [t.get_text() for t in figure.texts] == [
        "cat",
        "presence 0.234  ·  2 masks, scores 0.91, 0.50",
    ]
    assert [t.get_text() for t in tags(figure.axes[2])] == ["#1 0.91", "#2 0.50"]
    numbers = {t.get_text(): t.xy for t in figure.axes[1].texts if hasattr(t, "xy")}
    assert numbers == {"1": (9.0, 9.0), "2": (60.0, 45.0)}, "at the first point of each prompt"
    assert legend(figure.axes[1]) == ["positive (2)", "negative (1)"]
    assert figure.canvas.manager is None, "no window"
    nothing = label_figure(
        GREY, "cat", eye, eye, [], masks[:0], np.zeros(0), 0.01, absent="too low"
    )
    assert nothing.texts[1].get_text() == "presence 0.010  ·  absent: too low"
    assert nothing.axes[2].get_title() == "no mask"


@dataclass
class Missing:
    label: str
    score: float
    reason: str


@dataclass
class FakeResult:
    image: Image = field(default_factory=lambda: Image(GREY, "array"))
    class_names: tuple[str, ...] = ("dog", "cat")
    labels: tuple[str, ...] = ("cat",)
    masks: np.ndarray = field(default_factory=lambda: box(60, 90, 10, 40, 50, 80)[None])
    scores: np.ndarray = field(default_factory=lambda: np.array([0.75]))
    label_indices: np.ndarray = field(default_factory=lambda: np.array([1]))
    maps: np.ndarray = field(
        default_factory=lambda: np.stack([np.zeros((4, 4)), np.eye(4)]).astype(np.float32)
    )
    grids: np.ndarray = field(
        default_factory=lambda: np.stack([np.zeros((7, 7)), np.eye(7)]).astype(np.float32)
    )
    points: tuple[np.ndarray, ...] = (np.array([[60.0, 30.0, 1.0]]),)
    presence: np.ndarray = field(default_factory=lambda: np.array([0.02, 0.4]))
    absent: tuple[Missing, ...] = (Missing("dog", 0.02, "too low"),)


def test_a_result_is_drawn_in_its_classes_colours() -> None:
    figure = result_figure(FakeResult())
    assert [t.get_text() for t in figure.texts] == [
        "masks: 1, labels found: 1",
        "absent: dog 0.020",
    ]
    assert pixel(figure.axes[0], 44, 46) == pytest.approx(faintly(colour(1)), abs=0.02)


def test_each_class_of_a_result_has_its_figure() -> None:
    cat, dog = result_label_figure(FakeResult(), 1), result_label_figure(FakeResult(), 0)
    assert [t.get_text() for t in cat.texts] == ["cat", "presence 0.400  ·  mask score 0.75"]
    assert pixel(cat.axes[2], 44, 46) == pytest.approx(faintly(colour(1)), abs=0.02)
    assert [t.get_text() for t in dog.texts] == ["dog", "presence 0.020  ·  absent: too low"]


def test_overlays_have_names_that_fit_by_their_bytes(tmp_path: Path) -> None:
    result = FakeResult()
    result.class_names = ("猫" * 200, "x")
    for name in ("犬" * 81 + ".png", "a.png"):
        paths = draw_overlays(cast(Any, result), tmp_path / name, "all")
        assert sorted(tmp_path.iterdir()) == sorted(paths)
        for path in paths:
            path.unlink()
    names = ["00-all", f"01-{'猫' * 20}", "02-x"]
    assert [p.name for p in paths] == [f"a.png.{name}.png" for name in names]


def test_overlays_of_any_images_and_labels_are_files_of_their_own(tmp_path: Path) -> None:
    result = FakeResult()
    result.class_names = ("all", "00-all")
    images = ("a.png", "a.png.00-all.png", "a.png.01-all.png", "a.png.02-00-all.png")
    paths = [p for name in images for p in draw_overlays(cast(Any, result), tmp_path / name, "all")]
    assert len(set(paths)) == 3 * len(images)


def test_an_empty_result_is_drawn() -> None:
    none = np.zeros((0, 60, 90), bool)
    empty = FakeResult(
        labels=(), masks=none, scores=np.zeros(0), label_indices=np.zeros(0, int), points=()
    )
    figure = result_figure(empty)
    assert figure.axes[0].get_legend() is None
    assert pixel(figure.axes[0], 44, 46) == pytest.approx([128 / 255] * 3, abs=0.02)


# -- files


def test_a_figure_is_saved_whole(tmp_path: Path) -> None:
    figure = overview_figure(GREY, np.ones((1, 60, 90), bool), ["cat"], np.ones(1), [colour(0)])
    save_figure(figure, tmp_path / "new" / "figure.png")
    with PilImage.open(tmp_path / "new" / "figure.png") as saved:
        saved.load()
        assert saved.format == "PNG"
        assert saved.width > 900
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["figure.png"]


def test_a_notebook_shows_figures_in_true_colour_at_the_size_of_a_screen() -> None:
    gradient = np.stack(np.meshgrid(np.arange(256), np.arange(0, 256, 2), [90]), -1)[..., 0, :]
    figure = overview_figure(
        gradient.astype(np.uint8), np.ones((1, 128, 256), bool), ["cat"], np.ones(1), [colour(0)]
    )
    with PilImage.open(BytesIO(figure._repr_jpeg_())) as shown:
        assert shown.size == pytest.approx(100 * figure.get_size_inches(), abs=1)
        drawn = np.asarray(shown)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 5000


def test_a_figure_that_fails_to_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Figure, file: IO[bytes], **_: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "figure.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OutputError, match=r"figure\.png: can't be written .No space left"):
        save_figure(Figure(), tmp_path / "figure.png")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"figure.png": b"old"}


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'figure\.gif': let the name end in \.png"):
        save_figure(Figure(), tmp_path / "figure.gif")
