"""Thresholds are put where the scores say, and the labels file that is written reads back the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image as PILImage
from typer.testing import CliRunner

import clip2sam
from clip2sam.analysis.tune import ClassScores, Tuning, labels_yaml, suggested, tune
from clip2sam.cli import analysis as commands
from clip2sam.clip import SurgeryCLIP
from clip2sam.data.labels import LabelClass, LabelSet, as_label_set, load_labels
from clip2sam.errors import CocoError, ImageError, LabelError
from clip2sam.pipeline import Segmenter
from clip2sam.sam import PointSAM
from tests.models import small_clip, small_sam

COUNT = 5


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(SurgeryCLIP(small_clip()), PointSAM(small_sam()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five pictures and the data set that says which of them show a cat, and that none shows a dog."""
    top = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        PILImage.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(top / f"{i}.png")
    images = [
        {"id": 10 - i, "file_name": f"{i}.png", "height": 40, "width": 50} for i in range(COUNT)
    ]
    cats = [{"id": n, "image_id": 10 - i, "category_id": 7} for n, i in enumerate((1, 1, 3), 1)]
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    document = {"images": images, "annotations": cats, "categories": categories}
    (top / "truth.json").write_text(json.dumps(document))
    return top


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


# -- where to cut


def test_separable_scores_are_cut_in_the_middle_of_the_gap():
    truth = np.array([False, True, False, True])
    assert suggested(scores(0.1, 0.5, 0.2, 0.9), truth) == pytest.approx(0.35)
    assert suggested(scores(0.1, 0.5, 0.2, 0.9), ~truth) == pytest.approx(-0.1667, abs=1e-3), (
        "keeping all is best"
    )


def test_the_best_f1_is_found():
    rng = np.random.default_rng(1)
    truth = rng.random(60) < 0.3
    values = (rng.normal(0, 1, 60) + 1.2 * truth).astype(np.float32)
    found = ClassScores("a", values, truth, suggested(values, truth))

    def f1(threshold: float) -> float:
        precision, recall = found.at(threshold)
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    assert f1(found.threshold) == pytest.approx(max(np.nan_to_num([f1(float(t)) for t in values])))
    assert found.threshold not in values


def test_without_the_truth_two_groups_are_told_apart():
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(0.05, 0.01, 80), rng.normal(0.3, 0.04, 20)]).astype(
        np.float32
    )
    assert 0.1 < suggested(values, None) < 0.2


def test_where_nothing_can_be_told_there_is_no_threshold():
    assert suggested(scores(0.2, 0.2, 0.2), None) is None
    assert suggested(scores(0.1, 0.2), np.array([False, False])) is None
    assert suggested(scores(float("nan"), 0.2), None) is None


def test_the_curve_is_precision_and_recall_by_hand():
    thresholds, precision, recall = ClassScores(
        "a", scores(1, 2, 3), np.array([False, True, True]), None
    ).curve()
    assert thresholds.tolist() == [1, 2, 3]
    assert precision == pytest.approx([2 / 3, 1, 1])
    assert recall == pytest.approx([1, 1, 1 / 2])
    assert len(ClassScores("a", scores(1, 2, 3), None, None).curve()[0]) == 0


# -- the labels file

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
classes = st.tuples(
    names,
    st.lists(names, min_size=1, max_size=3),
    st.none() | st.floats(-1e6, 1e6),
    st.just("") | names,
)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(classes, min_size=1, max_size=3, unique_by=lambda c: c[0]),
    st.lists(names, max_size=2, unique=True),
)
def test_a_written_labels_file_reads_back_the_same(tmp_path_factory, rows, distractors):
    wanted = [LabelClass(name, tuple(prompts), *others) for name, prompts, *others in rows]
    competing = [
        LabelClass(n, (n,), distractor=True)
        for n in distractors
        if n not in [c.name for c in wanted]
    ]
    labels = LabelSet((*wanted, *competing), ("a photo of a {}.",) if competing else None)
    path = tmp_path_factory.getbasetemp() / "labels.yaml"
    path.write_text(labels_yaml(labels), encoding="utf-8")
    assert load_labels(path) == labels


def test_names_that_yaml_takes_for_other_things_stay_names(tmp_path):
    labels = as_label_set(
        ["no", "1", "null", "~", "猫: x", "- a", "#b", "a\tb", "a\x85b", "\u2028c", "d\ne"]
    )
    (tmp_path / "labels.yaml").write_text(labels_yaml(labels), encoding="utf-8")
    assert load_labels(tmp_path / "labels.yaml").names == labels.names


# -- pictures


def test_scores_are_the_pipelines_and_the_truth_is_the_data_sets(segmenter, folder):
    seen = []
    tuning = tune(
        segmenter, folder / "truth.json", distractors=["sky"], on_picture=lambda *n: seen.append(n)
    )
    assert tuning.pictures == tuple(f"{i}.png" for i in range(COUNT))
    cat, dog = tuning.classes
    assert cat.truth.tolist() == [False, True, False, True, False]
    assert not dog.truth.any()
    assert dog.threshold is None
    result = segmenter(folder / "3.png", ["cat", "dog"], distractors=["sky"])
    assert [cat.scores[3], dog.scores[3]] == pytest.approx(result.presence)
    assert seen[-1] == (COUNT, COUNT)


def test_the_file_that_is_written_has_the_thresholds(segmenter, folder, tmp_path):
    labels = LabelSet(
        (LabelClass("cat", ("cat", "kitten")), LabelClass("dog", ("dog",), threshold=0.3))
    )
    tuning = tune(segmenter, folder / "truth.json", labels)
    tuning.write(tmp_path / "labels.yaml")
    cat, dog = load_labels(tmp_path / "labels.yaml").classes
    assert cat.prompts == ("cat", "kitten")
    assert cat.threshold == pytest.approx(tuning.classes[0].threshold, rel=1e-3)
    assert dog.threshold == 0.3, "nothing is known about it, so it keeps its own"


def test_a_folder_has_no_truth_and_a_label_may_be_no_category(segmenter, folder):
    for source in (folder, folder / "truth.json"):
        tuning = tune(segmenter, source, ["bird", "tree"])
        assert [c.truth for c in tuning.classes] == [None, None]
        assert all(c.scores.min() <= c.threshold <= c.scores.max() for c in tuning.classes)
        assert np.isnan(tuning.classes[0].auc)


def test_a_bad_picture_costs_that_picture(segmenter, folder, tmp_path):
    (tmp_path / "good.png").write_bytes((folder / "0.png").read_bytes())
    (tmp_path / "bad.png").write_bytes(b"no picture")
    tuning = tune(segmenter, tmp_path, ["cat", "dog"])
    assert tuning.pictures == ("good.png",)
    assert [name for name, _ in tuning.failures] == ["bad.png"]
    (tmp_path / "good.png").unlink()
    with pytest.raises(ImageError, match="none of 1 pictures could be read"):
        tune(segmenter, tmp_path, ["cat", "dog"])


def test_what_can_not_be_used_is_refused(segmenter, folder, tmp_path):
    with pytest.raises(LabelError, match="expected labels, got none"):
        tune(segmenter, folder)
    document = json.loads((folder / "truth.json").read_text())
    document["annotations"][0]["category_id"] = 99
    (tmp_path / "truth.json").write_text(json.dumps(document))
    with pytest.raises(CocoError, match="KeyError: 99; see `clip2sam validate`"):
        tune(segmenter, tmp_path / "truth.json", root=folder)


# -- the figure and the command


def test_the_figure_names_every_class_and_its_threshold():
    rng = np.random.default_rng(0)
    truth = rng.random(30) < 0.5
    some = [
        ClassScores("$cat_", rng.random(30).astype(np.float32), truth, 0.25),
        ClassScores("dog", rng.random(30).astype(np.float32), None, None),
        *(ClassScores(f"class {i}", np.full(30, 0.2, np.float32), truth, 0.1) for i in range(3)),
    ]
    labels = as_label_set([c.name for c in some])
    figure = Tuning(labels, tuple(some), tuple("x" * 30), ()).show()
    FigureCanvasAgg(figure).draw()
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles[:2] == ["$cat_: threshold 0.25", "dog: no threshold"]
    assert len(titles) == 5
    assert "truth not known" in [t.get_text() for ax in figure.axes for t in ax.texts]
    heights = sum(p.get_height() for p in figure.axes[0].patches)
    assert heights >= 30, "all pictures are in the histogram"


def test_the_command_writes_labels_and_figure(segmenter, folder, tmp_path, monkeypatch):
    app = typer.Typer()
    app.command()(commands.tune)
    monkeypatch.setattr("clip2sam.models.loading.load", lambda preset, device: segmenter)
    wanted = ["--output", str(tmp_path / "tuned.yaml"), "--figure", str(tmp_path / "tuned.png")]
    done = CliRunner().invoke(app, [str(folder / "truth.json"), *wanted])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("cat: threshold ")
    assert "in 2 of 5 pictures, precision " in done.output
    assert "dog: no threshold, in 0 of 5 pictures\n" in done.output
    assert isinstance(load_labels(tmp_path / "tuned.yaml").classes[0].threshold, float)
    with PILImage.open(tmp_path / "tuned.png") as drawn:
        assert drawn.width > 500
    done = CliRunner().invoke(app, [str(folder), "--label", "cat", "--labels", "x.yaml"])
    assert isinstance(done.exception, clip2sam.LabelError)
