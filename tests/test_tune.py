"""Thresholds are where the scores and the truth say, and the labels file holds them."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image as PILImage
from typer.testing import CliRunner

import clip2sam
from clip2sam.analysis.tune import ClassScores, Tuning, suggested, tune
from clip2sam.cli import analysis as commands
from clip2sam.clip import SurgeryCLIP
from clip2sam.data.labels import LabelClass, LabelSet, as_label_set
from clip2sam.errors import CocoError, ConfigError, ImageError, LabelError, RunError
from clip2sam.pipeline import Segmenter
from clip2sam.sam import PromptSAM
from clip2sam.visualize.thresholds import Tuned
from tests.models import small_clip, small_sam

COUNT = 5


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(SurgeryCLIP(small_clip()), PromptSAM(small_sam()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five images and the dataset that says which of them show a cat, and that none shows a dog."""
    top = tmp_path_factory.mktemp("images")
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


def cut(values: np.ndarray, truth: np.ndarray | None, beaten: tuple[int, ...] = ()) -> float | None:
    """The suggested threshold, where a distractor beats the label on the images `beaten`."""
    return suggested(values, truth, np.isin(np.arange(len(values)), beaten))


def scored(
    name: str, values: np.ndarray, truth: np.ndarray | None, beaten: tuple[int, ...] = ()
) -> ClassScores:
    beats = np.isin(np.arange(len(values)), beaten)
    return ClassScores(name, values, beats, truth, suggested(values, truth, beats))


# -- where to cut


def test_separable_scores_are_cut_in_the_middle_of_the_gap():
    truth = np.array([False, True, False, True])
    values = scores(0.1, 0.5, 0.2, 0.9)
    assert cut(values, truth) == pytest.approx(0.35)
    assert cut(values, ~truth) == pytest.approx(-0.1667, abs=1e-3), "keeping all is best"


def test_the_best_f1_is_found():
    rng = np.random.default_rng(1)
    truth = rng.random(60) < 0.3
    values = (rng.normal(0, 1, 60) + 1.2 * truth).astype(np.float32)
    for beaten in ((), tuple(range(0, 60, 3))):
        found = scored("a", values, truth, beaten)

        def f1(threshold: float) -> float:
            precision, recall = found.at(threshold)  # noqa: B023
            return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

        best = max(np.nan_to_num([f1(float(t)) for t in values]))
        assert f1(found.threshold) == pytest.approx(best)
        assert found.threshold not in values


def test_without_the_truth_two_groups_are_told_apart():
    rng = np.random.default_rng(2)
    groups = [rng.normal(0.05, 0.01, 80), rng.normal(0.3, 0.04, 20)]
    values = np.concatenate(groups).astype(np.float32)
    assert 0.1 < cut(values, None) < 0.2
    values[3] = np.nan
    assert 0.1 < cut(values, None) < 0.2


def test_where_nothing_can_be_told_there_is_no_threshold():
    assert cut(scores(0.2, 0.2, 0.2), None) is None
    assert cut(scores(0.1, 0.2), np.array([False, False])) is None
    assert cut(scores(float("nan"), 0.2), None) is None
    assert cut(scores(0.1, 0.2, 0.3), np.array([False, False, True]), beaten=(2,)) is None


def test_the_curve_is_precision_and_recall_by_hand():
    truth = np.array([False, True, True])
    thresholds, precision, recall = scored("a", scores(1, 2, 3), truth).curve()
    assert thresholds.tolist() == [1, 2, 3]
    assert precision == pytest.approx([2 / 3, 1, 1])
    assert recall == pytest.approx([1, 1, 1 / 2])
    assert len(scored("a", scores(1, 2, 3), None).curve()[0]) == 0


def test_an_image_on_which_a_distractor_beats_the_label_is_never_kept():
    values, truth = scores(1, 4, 2, 3), np.array([False, False, True, True])
    found = scored("a", values, truth, beaten=(1, 2))
    assert found.kept(0).tolist() == [True, False, False, True]
    assert found.at(2.5) == (1.0, 0.5)
    assert found.threshold == 2, "half way between 1 and 3: the other two are decided"
    thresholds, precision, recall = found.curve()
    assert thresholds.tolist() == [1, 3]
    assert precision == pytest.approx([1 / 2, 1])
    assert recall == pytest.approx([1 / 2, 1 / 2])
    many = scores(5, 1, 2, 3, 4, 9, 9, 9)
    shown = np.array([True, True, False, False, False, True, True, True])
    assert cut(many[:5], shown[:5]) == 4.5, "one of two found is an F1 of 2/3"
    assert cut(many, shown, beaten=(5, 6, 7)) < 1, "one of five found is less than two of five"
    everywhere = scored("a", values, truth, beaten=(0, 1, 2, 3))
    assert everywhere.threshold is None
    assert [len(column) for column in everywhere.curve()] == [0, 0, 0]


# -- images


def test_scores_are_the_pipelines_and_the_truth_is_the_datasets(segmenter, folder):
    seen = []
    distractors = ["sky", "grass", "wall"]
    tuning = tune(
        segmenter,
        folder / "truth.json",
        distractors=distractors,
        on_image=lambda *n: seen.append(n),
    )
    assert tuning.images == tuple(f"{i}.png" for i in range(COUNT))
    cat, dog = tuning.classes
    assert cat.truth.tolist() == [False, True, False, True, False]
    assert not dog.truth.any()
    assert dog.threshold is None
    for i, name in enumerate(tuning.images):
        result = segmenter(folder / name, ["cat", "dog"], distractors=distractors)
        assert [cat.scores[i], dog.scores[i]] == pytest.approx(result.presence)
        assert [cat.beaten[i], dog.beaten[i]] == result.beaten.tolist()
        for threshold in (-0.5, 0.0):
            decided = segmenter.with_config(presence_threshold=threshold)(
                folder / name, ["cat", "dog"], distractors=distractors
            )
            assert [c.kept(threshold)[i] for c in (cat, dog)] == decided.present.tolist()
    assert cat.beaten.any() or dog.beaten.any()
    assert seen[-1] == (COUNT, COUNT)


def test_the_file_that_is_written_has_the_thresholds(segmenter, folder, tmp_path):
    labels = LabelSet(
        (LabelClass("cat", ("cat", "kitten")), LabelClass("dog", ("dog",), presence_threshold=0.3))
    )
    tuning = tune(segmenter, folder / "truth.json", labels)
    tuning.write(tmp_path / "labels.yaml")
    cat, dog = as_label_set(tmp_path / "labels.yaml").classes
    assert cat.prompts == ("cat", "kitten")
    assert cat.presence_threshold == pytest.approx(tuning.classes[0].threshold, rel=1e-3)
    assert dog.presence_threshold == 0.3, "nothing is known about it, so it keeps its own"


def test_a_folder_has_no_truth_and_a_label_may_be_no_category(segmenter, folder):
    for source in (folder, folder / "truth.json"):
        tuning = tune(segmenter, source, ["bird", "tree"])
        assert [c.truth for c in tuning.classes] == [None, None]
        assert all(c.scores.min() <= c.threshold <= c.scores.max() for c in tuning.classes)
        assert np.isnan(tuning.classes[0].auc)


def test_a_bad_image_costs_that_image(segmenter, folder, tmp_path):
    (tmp_path / "good.png").write_bytes((folder / "0.png").read_bytes())
    (tmp_path / "bad.png").write_bytes(b"no image")
    tuning = tune(segmenter, tmp_path, ["cat", "dog"])
    assert tuning.images == ("good.png",)
    assert [name for name, _ in tuning.failures] == ["bad.png"]
    (tmp_path / "good.png").unlink()
    with pytest.raises(ImageError, match="none of 1 images could be scored"):
        tune(segmenter, tmp_path, ["cat", "dog"])


def breaking(monkeypatch, segmenter: Segmenter, error: Exception | None, *names: str) -> None:
    """On the images of these names CLIP raises an error, or for None gives one NaN."""
    locate = segmenter.locate

    def broken(features, labels):
        maps = locate(features, labels)
        if features.images[0].origin in names:
            if error is not None:
                raise error
            maps.raw[0, -1, 1, 1] = np.nan
        return maps

    monkeypatch.setattr(segmenter, "locate", broken)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "3.png: CLIP's similarity maps have values that are not finite"),
        (MemoryError(), "memory ran out on this image alone"),
        (RuntimeError("lost"), "the model failed on this image (RuntimeError: lost)"),
    ],
)
def test_a_failure_of_the_model_costs_its_image(folder, monkeypatch, error, reason):
    segmenter = Segmenter(SurgeryCLIP(small_clip()), PromptSAM(small_sam()))
    breaking(monkeypatch, segmenter, error, "3.png")
    tuning = tune(segmenter, folder, ["cat", "dog"])
    assert tuning.images == ("0.png", "1.png", "2.png", "4.png")
    assert [name for name, _ in tuning.failures] == ["3.png"]
    assert tuning.failures[0][1].startswith(reason)
    assert all(np.isfinite(c.scores).all() for c in tuning.classes)


def test_a_model_that_fails_on_several_in_a_row_ends_it(folder, monkeypatch):
    segmenter = Segmenter(SurgeryCLIP(small_clip()), PromptSAM(small_sam()))
    breaking(monkeypatch, segmenter, None, "0.png", "1.png", "3.png", "4.png")
    assert len(tune(segmenter, folder, ["cat"]).failures) == 4, "they are not in a row"
    breaking(monkeypatch, segmenter, None, "2.png")
    with pytest.raises(
        RunError, match=r"failed on 3 images in a row.*2\.png: CLIP's.*start again$"
    ):
        tune(segmenter, folder, ["cat"])
    breaking(monkeypatch, segmenter, ConfigError("a setting"), "0.png")
    with pytest.raises(ConfigError, match="a setting"):
        tune(segmenter, folder, ["cat"])


def test_a_source_of_ones_own_is_read(segmenter, folder):
    class Memory:
        origin, keys, ids = "memory", ["b.png", "a.png"], [7, 3]

        def read(self, key):
            if key == "b.png":
                raise ImageError("b.png: gone")
            return (folder / "2.png").read_bytes()

    tuning = tune(segmenter, Memory(), ["cat", "dog"])
    assert tuning.images == ("a.png",)
    assert tuning.failures == (("b.png", "b.png: gone"),)
    expected = segmenter(folder / "2.png", ["cat", "dog"]).presence
    assert [c.scores[0] for c in tuning.classes] == pytest.approx(expected)


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
    truth, none = rng.random(30) < 0.5, np.zeros(30, bool)
    some = [
        ClassScores("$cat_", rng.random(30).astype(np.float32), none, truth, 0.25),
        ClassScores("dog", rng.random(30).astype(np.float32), none, None, None),
        *(
            ClassScores(f"class {i}", np.full(30, 0.2, np.float32), none, truth, 0.1)
            for i in range(3)
        ),
    ]
    labels = as_label_set([c.name for c in some])
    tuning = Tuning(labels, tuple(some), tuple("x" * 30), ())
    assert isinstance(tuning, Tuned)
    figure = tuning.show()
    FigureCanvasAgg(figure).draw()
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles[:2] == ["$cat_: threshold 0.25", "dog: no threshold"]
    assert len(titles) == 5
    assert "truth not known" in [t.get_text() for ax in figure.axes for t in ax.texts]
    heights = sum(p.get_height() for p in figure.axes[0].patches)
    assert heights >= 30, "all images are in the histogram"


def test_the_command_writes_labels_and_figure(segmenter, folder, tmp_path, monkeypatch):
    app = typer.Typer()
    app.command()(commands.tune)
    monkeypatch.setattr("clip2sam.models.loading.load", lambda *_, **__: segmenter)
    wanted = ["--output", str(tmp_path / "tuned.yaml"), "--figure", str(tmp_path / "tuned.png")]
    done = CliRunner().invoke(app, [str(folder / "truth.json"), *wanted, "--allow-unknown"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("cat: threshold ")
    assert "in 2 of 5 images, precision " in done.stdout
    assert "dog: no threshold, in 0 of 5 images\n" in done.stdout
    assert isinstance(as_label_set(tmp_path / "tuned.yaml").classes[0].presence_threshold, float)
    with PILImage.open(tmp_path / "tuned.png") as drawn:
        assert drawn.width > 500
    done = CliRunner().invoke(app, [str(folder), "--label", "cat", "--labels", "x.yaml"])
    assert isinstance(done.exception, clip2sam.LabelError)
