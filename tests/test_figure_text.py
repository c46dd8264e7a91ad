"""What is written on figures is tested as text, after drawing, and nothing of it is cut."""

import itertools

import numpy as np
import pytest

from clip2sam.analysis.compare import Sight
from clip2sam.analysis.tune import ClassScores, Tuning
from clip2sam.data.labels import as_label_set
from clip2sam.labelling.summary import ClassSummary
from clip2sam.visualize import label_figure
from clip2sam.visualize.canvas import rows_and_columns
from clip2sam.visualize.explanation import maps_figure
from clip2sam.visualize.histogram import presence_figure
from clip2sam.visualize.sheet import sheet_figure
from clip2sam.visualize.text import short, short_names, style
from tests.figures import tick_texts, written

GREY = np.full((60, 90, 3), 128, np.uint8)
SCRIPTS = ["кошка", "γάτα", "חתול", "قطة", "猫と犬", "ไทย", "$a_b$ <b>", "_hidden", "crème brûlée"]
LONG = [f"a traffic light on the corner of the {street} street" for street in ("north", "south")]
ALIKE = [f"a long long long long name {i} of the same long kind" for i in range(3)]


def masks(count: int) -> np.ndarray:
    """So many strips from the top to the bottom of the grey image."""
    drawn = np.zeros((count, 60, 90), bool)
    for i in range(count):
        drawn[i, :, i * 90 // count : (i + 1) * 90 // count] = True
    return drawn


# -- names that are cut


def test_a_name_keeps_its_head_and_its_tail():
    assert short("circle", 6) == "circle"
    assert short("traffic light on the left", 16) == "traffic…he left"
    assert short("x" * 300, 28) == "x" * 14 + "…" + "x" * 13
    assert short("猫" * 20, 11) == "猫猫…猫猫", "each takes two columns"
    assert short("abcdefe\u0301", 6) == "abc…e\u0301"
    assert short("abcdefgh\u0301i", 3) == "a…i"
    assert short("abcdefgh\u0301", 4) == "ab…", "an accent without its letter is left out"


def test_names_that_look_the_same_when_cut_are_numbered():
    cut = short_names([*LONG, *ALIKE, "cat"], 32)
    assert cut[:2] == ["a traffic light…he north street", "a traffic light…he south street"]
    assert cut[2:5] == [f"a long long l…ame long kind #{i}" for i in (1, 2, 3)]
    assert cut[5] == "cat"
    assert short_names(["cat", "cat"], 32) == ["cat", "cat"], "nothing is cut, nothing is said"


# -- the presence scores of a run


@pytest.mark.parametrize("count", [1, 12, 80])
def test_every_class_is_named_beside_its_presence_scores(count: int):
    names = [f"thing {i}" for i in range(count)]
    figure = presence_figure(
        [ClassSummary(name, 0.1, histogram={-0.02: 3, 0.1: 9}) for name in names], 0.02
    )
    texts = written(figure)
    (ax,) = figure.axes
    assert tick_texts(ax.yaxis) == names
    assert set(names) <= set(texts)
    assert "presence score" in texts
    assert ax.get_title() == "images by presence score (up to 9 in a bin); red: the threshold"
    rows = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert all(a.y0 >= b.y1 - 1 for a, b in itertools.pairwise(rows)), "first on top"
    assert all(row.x1 <= ax.get_window_extent().x0 for row in rows), "beside, not over"


def test_classes_of_any_name_are_told_apart():
    names = [*SCRIPTS, *LONG, *ALIKE]
    figure = presence_figure([ClassSummary(name, None, histogram={0.1: 2}) for name in names], 0.02)
    written(figure)
    texts = tick_texts(figure.axes[0].yaxis)
    assert texts[: len(SCRIPTS)] == [style(name)["text"] for name in SCRIPTS]
    assert texts[:4] == SCRIPTS[:4], "those whose letters the plain font has"
    assert texts[len(SCRIPTS) :] == short_names([*LONG, *ALIKE], 32)
    assert len(set(texts[len(SCRIPTS) :])) == 5


def test_the_first_hundred_classes_are_drawn():
    classes = [
        ClassSummary(f"$日本_{i}", 0.1 if i % 2 else None, histogram={-0.02: 3, 0.1: 1000})
        for i in range(119)
    ]
    classes.insert(3, ClassSummary("empty", 0.1))
    figure = presence_figure(classes, 0.02)
    assert any(text.endswith("; the first 100 of 120 classes") for text in written(figure))
    texts = tick_texts(figure.axes[0].yaxis)
    assert len(texts) == 100
    assert texts[3] == "empty"


def test_a_class_without_images_is_named():
    assert "nothing" in written(presence_figure([ClassSummary("nothing", None)], 0.02))


# -- the other figures


def test_a_label_figure_is_written_on():
    grid = np.linspace(0, 1, 49, dtype=np.float32).reshape(7, 7)
    points = [np.array([[9.0, 9.0, 1.0], [50.0, 9.0, 0.0]]), np.array([[60.0, 45.0, 1.0]])]
    figure = label_figure(
        GREY, SCRIPTS[0], grid - 0.5, grid, points, masks(2), np.array([0.91, 0.5]), 0.234
    )
    texts = written(figure)
    assert texts[:2] == [SCRIPTS[0], "presence 0.234  ·  2 masks, scores 0.91, 0.50"]
    for expected in ("similarity map, raw scores", "7 x 7 grid and points", "masks"):
        assert expected in texts
    for expected in ("positive (2)", "negative (1)", "#1 0.91", "#2 0.50", "1", "2", "1.00", "0.4"):
        assert expected in texts


def test_maps_have_titles_and_scales():
    maps = np.stack([np.eye(4), 2 * np.eye(4)]).astype(np.float32)
    texts = written(maps_figure(GREY, maps, ["кошка", LONG[0]]))
    assert {"кошка", short(LONG[0], 36), "0.0", "2.0"} <= set(texts)


def test_a_tuning_is_written_on():
    scores, truth = np.linspace(0, 1, 9, dtype=np.float32), np.arange(9) > 4
    none = np.zeros(9, bool)
    names = ["кошка", LONG[0], LONG[1], "star", "moon"]
    classes = tuple(ClassScores(name, scores, none, truth, 0.5) for name in names)
    figure = Tuning(as_label_set(names), classes, tuple("x" * 9), ()).show()
    texts = written(figure)
    assert "images by presence score: with the label in colour, without it grey; " in texts[0]
    titles = [f"{short(name, 22)}: threshold 0.5" for name in names]
    assert set(titles) <= set(texts)
    assert len(set(titles)) == 5


def test_panels_fill_the_page():
    """Six panels are two rows of three."""
    counts = [rows_and_columns(count, 4) for count in (1, 4, 5, 6, 7, 9)]
    assert counts == [(1, 1), (1, 4), (2, 3), (2, 3), (2, 4), (3, 3)]
    figure = maps_figure(GREY, np.zeros((6, 4, 4), np.float32), list("abcdef"))
    tops = [ax.get_position().y1 for ax in figure.axes]
    assert tops[0] == tops[2] > tops[3] == tops[5]
    scores, none = np.linspace(0, 1, 9, dtype=np.float32), np.zeros(9, bool)
    classes = tuple(ClassScores(name, scores, none, scores > 0.5, 0.5) for name in "abcdef")
    figure = Tuning(as_label_set(list("abcdef")), classes, tuple("x" * 9), ()).show()
    assert all(ax.axison for ax in figure.axes)


def test_a_sheet_names_labels_and_methods():
    mask = masks(3)[1]
    sights = [
        Sight("surgery", np.eye(4, dtype=np.float32), mask, 1.0),
        Sight("raw", np.eye(4, dtype=np.float32), np.zeros_like(mask), 0.0),
    ]
    texts = written(sheet_figure([GREY], [LONG[0]], [mask], [sights]))
    assert texts == [short(LONG[0], 19), "truth", "surgery", "IoU 1.00", "raw", "absent"]
