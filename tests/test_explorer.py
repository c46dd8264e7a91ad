"""The explorer's controls change what is shown, clicks become points of the label, accepted masks become COCO."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(
    "ipywidgets", reason='the explorer needs its extra: pip install "clip2sam[explorer]"'
)
pytest.importorskip(
    "anywidget", reason='the explorer needs its extra: pip install "clip2sam[explorer]"'
)

import clip2sam
from clip2sam.analysis.explorer import Bench, Explorer
from clip2sam.clip import SurgeryCLIP
from clip2sam.coco.validate import validate
from clip2sam.data.images import Image
from clip2sam.data.labels import as_label_set
from clip2sam.pipeline import Segmenter
from clip2sam.sam import PointSAM
from tests.models import small_clip, small_sam

LABELS = ["person", "traffic light"]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(
        SurgeryCLIP(small_clip()), PointSAM(small_sam()), clip2sam.Config(presence=-0.2)
    )


@pytest.fixture
def picture() -> Image:
    return Image(
        np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8), "street.png"
    )


@pytest.fixture
def explorer(segmenter, picture) -> Explorer:
    return Explorer(segmenter, picture, LABELS)


def click(explorer: Explorer, x: float, y: float, kind: int = 1, panel: int = 1) -> None:
    """As a browser does it: shares of the drawing's width and height for a place in the picture."""
    ax = explorer._figure.axes[panel]
    across, up = explorer._figure.transFigure.inverted().transform(ax.transData.transform((x, y)))
    explorer.picture.click = [float(across), float(1 - up), kind, explorer.picture.click[3] + 1]


def points(explorer: Explorer) -> np.ndarray:
    """The points of the label shown."""
    mine = [p for p, label in zip(explorer.result.points, explorer.result.labels, strict=True)
            if label == explorer.label.value]  # fmt: skip
    return np.concatenate([np.zeros((0, 3)), *mine])


def test_a_bench_gives_what_the_segmenter_gives(segmenter, picture):
    bench, labels = Bench(segmenter, picture), as_label_set(LABELS, distractors=["sky"])
    for changes in ({}, {"grid": 4}, {"method": clip2sam.clip.RAW_CLIP}, {"presence": 3.0}):
        expected = segmenter.with_config(**changes)(picture, labels)
        got = bench.run(labels, segmenter.with_config(**changes).config)
        np.testing.assert_array_equal(got.maps, expected.maps)
        np.testing.assert_array_equal(got.masks, expected.masks)
        assert got.absent == expected.absent


def test_the_picture_is_encoded_once(segmenter, picture, monkeypatch):
    calls = []
    encode = type(segmenter.sam).encode_image
    monkeypatch.setattr(
        type(segmenter.sam), "encode_image", lambda *a: calls.append("sam") or encode(*a)
    )
    explorer = Explorer(segmenter, picture, LABELS)
    explorer.threshold.value = 0.5
    explorer.text.value = "cat, dog, bird"
    click(explorer, 60, 40)
    assert calls == ["sam"]


def test_typed_labels_are_asked(explorer):
    explorer.text.value = " cat ,person, Zebrastreifen ✓"
    assert explorer.result.class_names == ("cat", "person", "Zebrastreifen ✓")
    assert explorer.label.options == explorer.result.class_names
    assert explorer.label.value in explorer.result.class_names
    explorer.text.value = "cat, cat"
    assert "given twice" in explorer.status.value
    assert explorer.result.class_names == ("cat", "person", "Zebrastreifen ✓")


def test_every_control_changes_the_result_and_the_drawing(explorer):
    for control, value, seen in (
        (explorer.grid, 3, lambda: explorer.result.grids.shape[1:] == (3, 3)),
        (explorer.threshold, 1.0, lambda: len(points(explorer)) == 2),
        (explorer.method, "raw", lambda: explorer.config.method.name == "raw"),
        (explorer.presence, 1.0, lambda: len(explorer.result.labels) == 0),
    ):
        before = explorer.picture.png
        control.value = value
        assert seen(), control.description
        assert explorer.picture.png != before
    assert "below the threshold 1" in explorer.status.value
    before = explorer.picture.png
    explorer.label.value = LABELS[1]
    assert explorer.picture.png != before
    assert explorer.status.value.startswith(LABELS[1])


def test_clicks_add_and_remove_points_of_the_label_shown(explorer):
    explorer.presence.value = 1.0
    assert len(points(explorer)) == 0
    click(explorer, 100, 20)
    np.testing.assert_allclose(points(explorer), [[100, 20, 1]], atol=0.5)
    assert explorer.result.labels == [LABELS[0]], (
        "a point makes its label present, the other stays absent"
    )
    click(explorer, 20, 70, kind=0, panel=2)
    np.testing.assert_allclose(points(explorer), [[100, 20, 1], [20, 70, 0]], atol=0.5)
    click(explorer, 101, 21)
    assert len(points(explorer)) == 0, "without a positive point there is no prompt"
    click(explorer, 60, 45)
    explorer.reset.click()
    assert len(points(explorer)) == 0
    explorer.presence.value = -0.2
    assert len(points(explorer)) > 1


def test_a_click_beside_the_panels_does_nothing(explorer):
    before = explorer.result
    explorer.picture.click = [0.001, 0.001, 1, 1]
    assert explorer.result is before


def test_accepted_masks_become_coco(explorer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    explorer.accept.click()
    explorer.label.value = LABELS[1]
    explorer.accept.click()
    explorer.path.value = "out.json"
    explorer.export.click()
    document = json.loads(Path("out.json").read_text())
    assert validate(document) == []
    assert [c["name"] for c in document["categories"]] == LABELS
    assert len(document["annotations"]) == 2
    assert explorer.status.value == "wrote 2 masks to out.json"
    explorer.path.value = "none/there/out.json"
    explorer.export.click()
    assert "out.json" in explorer.status.value
