"""The explorer's controls change what is shown, clicks become points of the label, accepted masks
become COCO."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure
from PIL import Image as PILImage

pytest.importorskip(
    "ipywidgets", reason='the explorer needs its extra: pip install "clip2sam[explorer]"'
)
pytest.importorskip(
    "anywidget", reason='the explorer needs its extra: pip install "clip2sam[explorer]"'
)

import clip2sam
from clip2sam.analysis import explorer as explorer_file
from clip2sam.analysis.bench import Bench
from clip2sam.analysis.explorer import Explorer
from clip2sam.analysis.session import Session
from clip2sam.clip import CLIP_SURGERY, RAW_CLIP, SurgeryCLIP
from clip2sam.coco.validate import validate
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelClass, LabelSet, as_label_set
from clip2sam.data.palette import colour
from clip2sam.pipeline import Segmenter
from clip2sam.sam import PromptSAM
from tests.models import small_clip, small_sam

LABELS = ["person", "traffic light"]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(
        SurgeryCLIP(small_clip()), PromptSAM(small_sam()), clip2sam.Config(presence_threshold=-0.2)
    )


@pytest.fixture
def image() -> Image:
    return Image(
        np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8), "street.png"
    )


@pytest.fixture(autouse=True)
def _blank(request, monkeypatch) -> None:
    """What is drawn is seen by those who ask for `drawn`: drawing takes longer than all else. The
    figure's panels are where they'd be."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(explorer_file, "session_figure", blank_figure)


def blank_figure(session: Session) -> Figure:
    height, width = session.result.image.pixels.shape[:2]
    figure = Figure()
    for ax in figure.subplots(1, 3):
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        ax.set_axis_off()
    return figure


@pytest.fixture
def drawn() -> None:
    """Figures have their content."""


@pytest.fixture
def explorer(segmenter, image) -> Explorer:
    return Explorer(segmenter, image, LABELS)


def click(explorer: Explorer, x: float, y: float, kind: int = 1, panel: int = 1) -> None:
    """As a browser does it: shares of the figure's width and height for a place in the image."""
    ax = explorer.figure.axes[panel]
    across, up = explorer.figure.transFigure.inverted().transform(ax.transData.transform((x, y)))
    explorer.controls.image.click = [
        float(across),
        float(1 - up),
        kind,
        explorer.controls.image.click[3] + 1,
    ]


def points(explorer: Explorer) -> np.ndarray:
    """The points of the label shown."""
    mine = [p for p, label in zip(explorer.result.points, explorer.result.labels, strict=True)
            if label == explorer.controls.label.value]  # fmt: skip
    return np.concatenate([np.zeros((0, 3)), *mine])


def test_a_bench_gives_what_the_segmenter_gives(segmenter, image):
    bench, labels = Bench(segmenter, image), as_label_set(LABELS, distractors=["sky"])
    one_block = replace(CLIP_SURGERY, blocks=1)
    for settings in (
        {},
        {"grid": 4},
        {"method": RAW_CLIP},
        {"presence_threshold": 3.0},
        {"method": one_block},
        {"resolution": 112},
        {"resolution": 112, "method": one_block},
        {"background_prompts": ("wall",), "candidate": "predicted_iou"},
    ):
        expected = segmenter.with_config(**settings)(image, labels)
        got = bench.run(labels, **settings)
        np.testing.assert_array_equal(got.maps, expected.maps)
        np.testing.assert_array_equal(got.masks, expected.masks)
        assert got.absent == expected.absent
        assert got.record == expected.record


def test_a_method_of_ones_own_is_shown(segmenter, image):
    """Also one that has the name of a published method."""
    own = replace(CLIP_SURGERY, blocks=1)
    explorer = Explorer(segmenter.with_config(method=own), image, LABELS)
    expected = segmenter.with_config(method=own)(image, LABELS).maps
    np.testing.assert_array_equal(explorer.result.maps, expected)
    explorer.controls.grid.value = 5
    np.testing.assert_array_equal(explorer.result.maps, expected)
    explorer.controls.method.value = CLIP_SURGERY
    np.testing.assert_array_equal(explorer.result.maps, segmenter(image, LABELS).maps)
    explorer.controls.method.value = own
    np.testing.assert_array_equal(explorer.result.maps, expected)


def test_settings_that_no_control_can_show_are_kept(segmenter, image):
    published = segmenter.with_config(grid="half", presence_threshold=None)
    explorer = Explorer(published, image, LABELS)
    explorer.controls.point_threshold.value = 0.5
    expected = published.with_config(point_threshold=0.5)(image, LABELS)
    np.testing.assert_array_equal(explorer.result.grids, expected.grids)
    assert explorer.result.absent == expected.absent


def test_the_slider_of_the_grid_ends_at_clips_map(segmenter, image):
    """A finer grid is refused."""
    assert Explorer(segmenter, image, LABELS).controls.grid.max == 8
    larger = segmenter.with_config(resolution=320)
    assert Explorer(larger, image, LABELS).controls.grid.max == 14
    assert Explorer(larger.with_config(grid=18), image, LABELS).controls.grid.max == 18


def test_the_image_is_encoded_once(segmenter, image, monkeypatch):
    calls = []
    for name, model in (("sam", PromptSAM), ("clip", SurgeryCLIP)):
        encode = model.encode_image
        monkeypatch.setattr(
            model, "encode_image", lambda *a, n=name, e=encode: calls.append(n) or e(*a)
        )
    explorer = Explorer(segmenter, image, LABELS)
    explorer.controls.point_threshold.value = 0.5
    explorer.controls.text.value = "cat; dog; bird"
    click(explorer, 60, 40)
    assert sorted(calls) == ["clip", "sam"]


def test_typed_labels_are_requested(explorer):
    explorer.controls.text.value = " cat ;person\n\nZebrastreifen ✓;"
    assert explorer.result.class_names == ("cat", "person", "Zebrastreifen ✓")
    assert explorer.controls.label.options == explorer.result.class_names
    assert explorer.controls.label.value in explorer.result.class_names
    explorer.controls.text.value = "cat; cat"
    assert "given twice" in explorer.controls.status.value
    assert explorer.result.class_names == ("cat", "person", "Zebrastreifen ✓")


@pytest.mark.usefixtures("drawn")
def test_every_control_changes_the_result_and_the_drawing(explorer):
    for control, value, seen in (
        (explorer.controls.grid, 3, lambda: explorer.result.grids.shape[1:] == (3, 3)),
        (explorer.controls.point_threshold, 1.0, lambda: len(points(explorer)) == 1),
        (explorer.controls.prompts, "label", lambda: (points(explorer)[:, 2] == 0).any()),
        (explorer.controls.min_share, 1.0, lambda: explorer.session.settings["min_share"] == 1.0),
        (
            explorer.controls.method,
            RAW_CLIP,
            lambda: explorer.session.settings["method"] is RAW_CLIP,
        ),
        (explorer.controls.presence_threshold, 1.0, lambda: len(explorer.result.labels) == 0),
    ):
        before = explorer.controls.image.png
        control.value = value
        assert seen(), control.description
        assert explorer.controls.image.png != before or control is explorer.controls.min_share
    assert "below the threshold" in explorer.controls.status.value
    before = explorer.controls.image.png
    explorer.controls.label.value = LABELS[1]
    assert explorer.controls.image.png != before
    assert explorer.controls.status.value.startswith(LABELS[1])


def test_the_slider_of_points_follows_the_kind_of_prompts(explorer):
    assert explorer.controls.point_threshold.value == 0.5
    explorer.controls.prompts.value = "label"
    assert explorer.controls.point_threshold.value == 0.8
    assert "point_threshold" not in explorer.session.settings, "it was not moved by a person"
    explorer.controls.point_threshold.value = 0.6
    explorer.controls.prompts.value = "object"
    assert (
        explorer.controls.point_threshold.value
        == explorer.session.settings["point_threshold"]
        == 0.6
    )


def test_every_positive_point_is_an_object(explorer):
    explorer.controls.presence_threshold.value = 1.0
    explorer.controls.min_share.value = 0.0
    assert explorer.result.labels == []
    for count, x in enumerate((20, 65, 110), 1):
        click(explorer, x, 45)
        assert len(explorer.session.bench.changed[LABELS[0]]) == count
        drawn = explorer.session.prompts()
        assert sorted(one[0, 0].round() for one in drawn) == [20, 65, 110][:count]
    click(explorer, 20, 20, kind=0)
    assert all(len(p) == 2 for p in explorer.result.points), "negative points are shared"
    negative = {tuple(p[1].round().tolist()) for p in explorer.result.points}
    assert negative == {(20.0, 20.0, 0.0)}
    shown = [a for a in explorer.result.annotations if a.label == LABELS[0]]
    count = f"{len(shown)} object{'s' * (len(shown) != 1)}"
    scores = ", ".join(f"score {a.score:.2f} share {a.share:.2f}" for a in shown)
    assert f", {count}: {scores}" in explorer.controls.status.value
    click(explorer, 110, 46)
    assert len(explorer.session.bench.changed[LABELS[0]]) == 3, "the object is taken away"
    explorer.controls.prompts.value = "label"
    (prompt,) = explorer.result.points
    assert prompt[:, 2].tolist() == [1, 1, 0], "one prompt with all points"
    assert explorer.controls.status.value.endswith(f"mask, score {explorer.result.scores[0]:.2f}")


def test_objects_that_are_left_out_are_counted_and_their_points_drawn(explorer):
    explorer.controls.min_share.value = 0.0
    every = [a for a in explorer.result.annotations if a.label == LABELS[0]]
    assert len(every) > 1
    click(explorer, 2, 88)
    before = explorer.session.prompts()
    explorer.controls.min_share.value = 1.0
    mine = [a for a in explorer.result.everything if a.label == LABELS[0]]
    weak = ", ".join(f"{a.share:.2f}" for a in mine if a.share < 1)
    assert f"; left out, below the least share: {weak}" in explorer.controls.status.value
    assert len(explorer.session.prompts()) == len(before)


def test_clicked_points_without_a_mask_of_their_own_are_counted(explorer):
    explorer.controls.min_share.value = 0.0
    explorer.controls.presence_threshold.value = 1.0
    click(explorer, 60, 40)
    masks = explorer.result.labels.count(LABELS[0])
    assert masks == 1
    assert "gave no mask" not in explorer.controls.status.value
    click(explorer, 66, 40)
    assert explorer.result.labels.count(LABELS[0]) == 1, "it is the same object"
    said = "; 1 point gave no mask, or one that is there already"
    assert explorer.controls.status.value.endswith(said)


def test_what_is_said_is_text_and_no_html(explorer):
    explorer.controls.text.value = "<b>wide</b>"
    assert explorer.controls.status.value.startswith("&lt;b&gt;wide&lt;/b&gt;: presence")


@pytest.mark.usefixtures("drawn")
def test_the_selected_labels_masks_are_on_top(explorer, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "clip2sam.analysis.explorer.draw_masks", lambda *a, top, **rest: drawn.append(top)
    )
    explorer.controls.label.value = LABELS[1]
    (top,) = drawn
    assert [explorer.result.labels[i] for i in top] == [LABELS[1]] * len(top) != []


@pytest.mark.usefixtures("drawn")
def test_clicks_add_and_remove_points_of_the_label_shown(explorer):
    explorer.controls.presence_threshold.value = 1.0
    assert len(points(explorer)) == 0
    click(explorer, 100, 20)
    np.testing.assert_allclose(points(explorer), [[100, 20, 1]], atol=0.5)
    assert explorer.result.labels == [LABELS[0]]
    assert explorer.result.present.tolist() == [True, False], "a changed label is present"
    click(explorer, 20, 70, kind=0, panel=2)
    np.testing.assert_allclose(points(explorer), [[100, 20, 1], [20, 70, 0]], atol=0.5)
    click(explorer, 101, 21)
    assert len(points(explorer)) == 0, "without a positive point there is no prompt"
    assert explorer.controls.status.value.endswith("no mask: it has no positive point and no box")
    click(explorer, 60, 45)
    explorer.controls.reset.click()
    assert len(points(explorer)) == 0
    explorer.controls.presence_threshold.value = -0.2
    assert len(points(explorer)) > 1


@pytest.mark.usefixtures("drawn")
def test_a_click_beside_the_panels_does_nothing(explorer):
    before = explorer.result
    explorer.controls.image.click = [0.001, 0.001, 1, 1]
    assert explorer.result is before


def test_other_labels_keep_their_prompts_when_one_is_changed(explorer):
    before = explorer.result
    click(explorer, 100, 20)
    now = explorer.result
    mine, theirs = (result.label_indices == 1 for result in (now, before))
    np.testing.assert_array_equal(now.masks[mine], before.masks[theirs])
    for row, old in zip(np.flatnonzero(mine), np.flatnonzero(theirs), strict=True):
        np.testing.assert_array_equal(now.points[row], before.points[old])
    clicked = explorer.session.bench.changed[LABELS[0]]
    assert len(clicked) == (before.label_indices == 0).sum() + 1


def test_accepted_masks_become_coco(explorer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    explorer.controls.accept.click()
    explorer.controls.label.value = LABELS[1]
    explorer.controls.accept.click()
    explorer.controls.path.value = "out.json"
    explorer.controls.export.click()
    document = json.loads(Path("out.json").read_text())
    assert validate(document) == []
    assert [c["name"] for c in document["categories"]] == LABELS
    count = len(explorer.result.annotations)
    assert len(document["annotations"]) == count > 2, "several of one label"
    assert explorer.controls.status.value == f"wrote {count} masks of 1 image to out.json"
    explorer.controls.path.value = "out.json/no-folder/out.json"
    explorer.controls.export.click()
    assert "can't be written" in explorer.controls.status.value


def test_classes_keep_their_supercategory(segmenter, image):
    person = LabelClass("person", ("person", "human"), supercategory="street")
    explorer = Explorer(segmenter, image, LabelSet((person,)))
    explorer.controls.accept.click()
    explorer.controls.text.value = "cat; person"
    assert explorer.coco()["categories"] == [{"id": 1, "name": "person", "supercategory": "street"}]


def test_a_file_is_kept_if_nothing_is_accepted(explorer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("annotations.json").write_text("the work of a week")
    explorer.controls.export.click()
    assert (
        explorer.controls.status.value
        == "no mask is accepted yet, so annotations.json was not written"
    )
    explorer.controls.accept.click()
    explorer.controls.undo.click()
    explorer.controls.export.click()
    assert Path("annotations.json").read_text() == "the work of a week"


def test_without_a_mask_nothing_is_accepted(explorer):
    explorer.controls.accept.click()
    kept = explorer.accepted
    explorer.controls.presence_threshold.value = 1.0
    explorer.controls.accept.click()
    said = f"{LABELS[0]} has no mask, so nothing was accepted"
    assert explorer.controls.status.value == said
    assert explorer.accepted == kept


def test_the_list_of_accepted_masks_follows(explorer):
    controls = explorer.controls
    controls.remove.click()
    assert controls.status.value == "select one of the accepted masks to remove it"
    controls.undo.click()
    assert controls.status.value == "there is nothing to undo"
    controls.accept.click()
    controls.label.value = LABELS[1]
    controls.accept.click()
    rows = [text for text, _ in controls.accepted.options]
    assert rows == list(map(str, explorer.accepted))
    assert [row.split(":")[0] for row in rows] == LABELS
    count = explorer.result.labels.count(LABELS[0])
    best = max(a.score for a in explorer.result.annotations if a.label == LABELS[0])
    assert rows[0] == f"person: {count} masks, score {best:.2f}, street.png"
    controls.accepted.value = 0
    controls.remove.click()
    assert controls.status.value == f"removed: {rows[0]}"
    assert [text for text, _ in controls.accepted.options] == rows[1:]
    controls.undo.click()
    assert [text for text, _ in controls.accepted.options] == rows


def test_the_presence_slider_has_the_range_of_the_scores(segmenter, image):
    """A threshold farther out is kept: the slider reaches it."""
    explorer = Explorer(segmenter.with_config(presence_threshold=0.9), image, LABELS)
    slider, maps = explorer.controls.presence_threshold, explorer.result.maps
    low, high = explorer.session.score_range()
    assert low < maps.min() < maps.max() < high < maps.max() + 0.2
    assert (low, high) == (round(low, 2), round(high, 2)), "its steps are whole thousandths"
    assert (slider.min, slider.max, slider.value) == (low, 0.9, 0.9)
    slider.value = 0.0
    explorer.controls.text.value = "cat"
    assert (slider.min, slider.max) == explorer.session.score_range() != (low, high)
    assert explorer.session.settings == {"presence_threshold": 0.0}


def test_every_label_has_its_colour_and_number_of_masks(explorer):
    explorer.controls.text.value = "person; <b>; traffic light"
    legend = explorer.controls.legend.value
    count = explorer.result.labels.count("person")
    assert f"<b><u>person ({count})</u></b>" in legend
    assert "&lt;b&gt; (" in legend
    for i in range(3):
        red, green, blue = (round(255 * part) for part in colour(i))
        assert f"rgb({red}, {green}, {blue})" in legend


@pytest.mark.usefixtures("drawn")
def test_the_last_panel_shows_the_masks_of_all_labels(explorer):
    titles = [ax.get_title() for ax in explorer.figure.axes[:3]]
    assert titles[2] == "masks of all labels"
    shown = {text.get_text() for text in explorer.figure.axes[2].texts}
    assert any(text.startswith("traffic light") for text in shown)
    explorer.controls.text.value = "person"
    assert explorer.figure.axes[2].get_title() in ("mask", "masks")


def test_clicks_are_explained_under_the_picture(explorer):
    widgets = explorer.controls.box.children
    below = widgets[widgets.index(explorer.controls.image) + 1]
    assert below.value.startswith("Click: a point on the object. Shift-click: a point beside it")


def test_a_list_that_is_typed_as_one_label_is_said(explorer):
    explorer.controls.text.value = "circle, star"
    assert explorer.result.class_names == ("circle, star",)
    assert "look like lists are one label each: 'circle, star'" in explorer.controls.status.value


def test_from_image_to_image(segmenter, image, tmp_path):
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        PILImage.fromarray(np.roll(image.pixels, i, axis=1)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no image")
    explorer = Explorer(segmenter, tmp_path, LABELS)
    controls = explorer.controls
    assert controls.previous in controls.box.children[0].children
    assert controls.place.value == "1 of 3: a.png"
    first = explorer.result
    controls.previous.click()
    assert controls.status.value == "this is the first image"
    controls.following.click()
    assert "b.png" in controls.status.value
    assert explorer.result is first
    explorer.session.source = replace(explorer.session.source, keys=("a.png", "c.png"), ids=(1, 3))
    controls.following.click()
    assert controls.place.value == "2 of 2: c.png"
    np.testing.assert_array_equal(explorer.result.image.pixels, np.roll(image.pixels, 2, axis=1))
    controls.following.click()
    assert controls.status.value == "this is the last image"
    controls.previous.click()
    np.testing.assert_array_equal(explorer.result.masks, first.masks)


def test_one_image_has_no_buttons_for_others(explorer):
    rows = [getattr(row, "children", ()) for row in explorer.controls.box.children]
    assert not any(explorer.controls.previous in row for row in rows)


def test_a_notebook_shows_it(explorer):
    shown = DisplayFormatter().format(explorer)[0]
    view = shown["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == explorer.controls.box.model_id


def test_without_the_extra_it_says_what_to_install(segmenter, image, monkeypatch):
    """The name itself is there without it: `help(clip2sam)` and star imports work."""
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "clip2sam.analysis.controls", raising=False)
    assert clip2sam.Explorer is Explorer
    wanted = r"the explorer needs the package ipywidgets: pip install 'clip2sam\[explorer\]'$"
    with pytest.raises(clip2sam.ConfigError, match=wanted):
        Explorer(segmenter, image, LABELS)
