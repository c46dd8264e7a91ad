"""An explanation is what the pipeline's own stages compute: its terms add up, its choice is the
mask, its figure says the same."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image as PILImage
from typer.testing import CliRunner

import clip2sam
from clip2sam.analysis.explain import explain, explain_caption, labels_at
from clip2sam.cli import analysis as commands
from clip2sam.clip import SurgeryCLIP
from clip2sam.data.images import Image
from clip2sam.errors import ConfigError, ImageError, LabelError, ModelError
from clip2sam.pipeline import Segmenter
from clip2sam.sam import PromptSAM
from clip2sam.visualize.explanation import Explained
from tests.figures import written
from tests.models import small_clip, small_sam

LABELS = ["person", "traffic light", "$a_b$ <b>"]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    """Every label present: the models' weights are random, so scores mean nothing."""
    return Segmenter(
        SurgeryCLIP(small_clip()), PromptSAM(small_sam()), clip2sam.Config(presence_threshold=-1e9)
    )


@pytest.fixture(scope="module")
def models_of(segmenter):
    """Another segmenter of the same models, to be changed."""
    return segmenter.with_config


@pytest.fixture(scope="module")
def image() -> Image:
    return Image(
        np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8), "street.png"
    )


@pytest.mark.parametrize("background", [(), ("wall", "person")])
def test_the_terms_add_up_to_the_pipelines_map(segmenter, image, background):
    segmenter = segmenter.with_config(background_prompts=background)
    result = segmenter(image, LABELS, distractors=["sky"])
    for i, label in enumerate(LABELS):
        explained = explain(segmenter, image, LABELS, label, distractors=["sky"])
        np.testing.assert_allclose(
            explained.before - explained.redundant, result.maps[i], atol=1e-5
        )
        np.testing.assert_array_equal(explained.raw, result.maps[i])
        np.testing.assert_array_equal(explained.grid, result.grids[i])
        assert explained.presence[:3] == pytest.approx(result.presence)
        assert len(explained.presence) == 4
        assert explained.index == i


def test_weights_are_one_on_average(segmenter, image):
    weights = [explain(segmenter, image, LABELS, label).weight for label in LABELS]
    assert np.mean(weights) == pytest.approx(1, abs=1e-5)
    assert np.ptp(weights) > 0


def test_a_label_alone_stands_against_the_empty_string(segmenter, image):
    explained = explain(segmenter, image, ["cat"], "cat")
    np.testing.assert_allclose(
        explained.before - explained.redundant, segmenter(image, ["cat"]).maps[0], atol=1e-5
    )
    assert np.ptp(explained.redundant) > 0
    assert "minus the empty string" in written(explained.show())


@pytest.mark.parametrize("candidate", ["agreement", "predicted_iou"])
def test_the_kept_candidate_is_the_mask(segmenter, image, candidate):
    chooser = segmenter.with_config(candidate=candidate, prompts="label")
    result, explained = chooser(image, LABELS), explain(chooser, image, LABELS, LABELS[1])
    assert explained.reason == ""
    assert explained.kept is not None
    np.testing.assert_array_equal(explained.candidates[explained.kept].mask, result.masks[1])
    np.testing.assert_array_equal(explained.points, result.points[1])
    figures = [getattr(c, candidate) for c in explained.candidates]
    assert len(figures) == 3
    best = max(c.agreement / c.of_best for c in explained.candidates)
    for one in explained.candidates:
        assert 0 < one.of_best <= 1
        assert one.of_best == pytest.approx(one.agreement / best), "one scale for all of them"
    assert figures[explained.kept] == max(figures)
    assert [c.kept for c in explained.candidates].count(True) == 1
    assert len(explained.objects) == 1
    texts = written(explained.show())
    assert "all objects with their scores" not in texts
    note = f"100% is {best:.2f}, the best that a mask reaches with this map"
    assert any(note in t for t in texts)
    share = f"agreement {explained.candidates[0].of_best:.0%}"
    assert any(t.startswith("candidate 1") and t.endswith(share) for t in texts)


@pytest.mark.parametrize("candidate", ["agreement", "both"])
def test_every_object_is_a_mask_of_the_result(segmenter, image, candidate):
    chooser = segmenter.with_config(candidate=candidate)
    result = chooser(image, LABELS)
    several = [name for name in LABELS if result.labels.count(name) > 1]
    assert several
    for name in several:
        mine = result.label_indices == LABELS.index(name)
        for k in range(mine.sum()):
            explained = explain(chooser, image, LABELS, name, object=k)
            assert explained.shown == mine.sum()
            shown = explained.objects[: explained.shown]
            np.testing.assert_array_equal([o.mask for o in shown], result.masks[mine])
            np.testing.assert_array_equal([o.score for o in shown], result.scores[mine])
            shares = [a.share for a in result.annotations if a.label == name]
            assert [o.share for o in shown] == pytest.approx(shares)
            points = [p for p, yes in zip(result.points, mine, strict=True) if yes]
            for one, theirs in zip(shown, points, strict=True):
                np.testing.assert_array_equal(one.points, theirs)
            assert explained.kept is not None
            kept = explained.candidates[explained.kept]
            np.testing.assert_array_equal(kept.mask, shown[k].mask)
            assert kept.predicted_iou == shown[k].predicted_iou
    assert max(o.height for o in explained.objects) <= explained.raw.max()
    assert f"object {k + 1}, candidate 1" in "".join(written(explained.show()))


def test_an_object_that_is_not_there_is_refused(segmenter, image):
    with pytest.raises(ConfigError, match=r"expected an object from 0 to \d, got 9: 'person' has"):
        explain(segmenter, image, LABELS, "person", object=9)


class DrawnSAM(PromptSAM):
    """Masks of the first four prompts: two on the left that overlap, an empty one, one on the
    right. All others are empty."""

    def decode(self, embeddings, prompts):
        offered = super().decode(embeddings, prompts)
        assert len(offered.logits) >= 4
        logits = torch.full_like(offered.logits, -9.0)
        logits[0, :, :20, :12] = 9.0
        logits[1, :, :20, :11] = 9.0
        logits[3, :, :20, 16:30] = 9.0
        return replace(offered, logits=logits, predicted_iou=offered.predicted_iou * 0 + 0.9)


def test_objects_that_are_left_out_say_why(segmenter, image):
    drawn = Segmenter(segmenter.clip, DrawnSAM(small_sam()), segmenter.config)
    labels = clip2sam.as_label_set(["cat"], distractors=LABELS)
    explained = explain(drawn, image, labels, "cat")
    first, second, same, empty, *_ = explained.objects
    assert (first.left_out, second.left_out) == ("", "")
    assert explained.shown == len(drawn(image, labels).masks) == 2
    number = 1 if (first.mask & same.mask).any() else 2
    assert same.left_out == f"shows the same as object {number}"
    assert empty.left_out == "its mask is empty"
    assert not empty.mask.any()
    assert first.stability == 1

    weak = min(first.share, second.share)
    strict = drawn.with_config(min_share=(1 + weak) / 2)
    explained = explain(strict, image, labels, "cat")
    assert explained.shown == len(strict(image, labels).masks) == 1
    assert explained.objects[1].share == weak < 1
    assert explained.objects[1].left_out == f"its share is below {(1 + weak) / 2:g}"
    texts = written(explained.show())
    rest = len(explained.objects) - 1
    assert any(t.endswith(f"present: 1 object, {rest} left out") for t in texts)
    for one in explained.objects[1:]:
        assert f"left out: {one.left_out}" in texts
    assert "shown" in texts
    left_out = explain(strict, image, labels, "cat", object=3)
    assert left_out.kept is None
    assert any("would be kept" in t for t in written(left_out.show()))


def test_a_table_without_room_counts_the_rest(segmenter, image):
    explained = explain(segmenter, image, ["person"], "person")
    many = replace(explained, objects=explained.objects * 40)
    texts = written(many.show())
    assert f"and {len(many.objects) - 15} more" in texts


def test_a_candidate_rule_of_ones_own_is_explained(segmenter, image):
    last = segmenter.with_config(candidate=lambda c, _: torch.arange(3.0).expand(len(c.logits), 3))
    explained = explain(last, image, LABELS, LABELS[0])
    assert explained.kept == 2
    np.testing.assert_array_equal(explained.candidates[2].mask, last(image, LABELS).masks[0])


def test_an_absent_label_is_followed_to_the_end(segmenter, image):
    strict = segmenter.with_config(presence_threshold=5.0)
    explained = explain(strict, image, LABELS, "person")
    kept = explain(segmenter, image, LABELS, "person")
    assert explained.reason == strict(image, LABELS).absent[0].reason
    assert explained.reason.endswith("is below the threshold 5")
    assert explained.kept is None
    np.testing.assert_array_equal(explained.points, kept.points)
    for a, b in zip(explained.candidates, kept.candidates, strict=True):
        np.testing.assert_array_equal(a.mask, b.mask)
    texts = written(explained.show())
    assert any(t.endswith(f"absent: {explained.reason}") for t in texts)
    assert any("would be kept" in t for t in texts)


def test_a_classs_own_threshold_goes_first(segmenter, image):
    cat = clip2sam.LabelClass("cat", ("cat",), presence_threshold=7.0)
    labels = clip2sam.LabelSet((cat, clip2sam.LabelClass("b", ("b",))))
    explained = explain(segmenter, image, labels, "cat")
    assert explained.presence_threshold == 7.0
    assert "below the threshold 7" in explained.reason
    assert explain(segmenter, image, labels, "b").presence_threshold == -1e9
    undecided = segmenter.with_config(presence_threshold=None)
    assert explain(undecided, image, labels, "b").presence_threshold is None


def test_a_label_that_a_distractor_beats_says_so(segmenter, image):
    names = ["person", "wall", "sky", "grass"]
    free = {name: explain(segmenter, image, names, name) for name in names}
    # A label that another one beats at its peak becomes the wanted one, all others distractors.
    loser = next(
        n
        for n in names
        if free[n].raw.max() < max(f.raw.flat[free[n].raw.argmax()] for f in free.values())
    )
    explained = explain(
        segmenter, image, [loser], loser, distractors=[n for n in names if n != loser]
    )
    assert explained.reason == "a distractor scores higher at its peak"
    assert any("(distractor)" in t.get_text() for ax in explained.show().axes for t in ax.texts)


def test_a_label_that_was_not_requested_is_refused(segmenter, image):
    with pytest.raises(
        LabelError, match=r"expected one of the labels requested, 'person', .* got 'dog'"
    ):
        explain(segmenter, image, LABELS, "dog")
    with pytest.raises(LabelError, match="got 'sky'"):
        explain(segmenter, image, LABELS, "sky", distractors=["sky"])


def test_a_map_without_a_range_has_no_points_and_is_drawn(image):
    class Dull(SurgeryCLIP):
        """Every place looks like the whole image."""

        def encode_image(self, pixels, method):
            tokens, grid = super().encode_image(pixels, method)
            return tokens[:, :1].expand_as(tokens), grid

    config = clip2sam.Config(presence_threshold=-1.0)
    dull = Segmenter(Dull(small_clip()), PromptSAM(small_sam()), config)
    explained = explain(dull, image, LABELS, "person")
    assert explained.reason == "its map is the same everywhere"
    assert explained.candidates == ()
    assert explained.points.shape == (0, 3)
    assert "no points, so no candidates" in written(explained.show())


@pytest.mark.parametrize("size", [(1, 1), (40, 300), (300, 40)])
def test_images_of_any_size_are_explained(segmenter, size):
    pixels = np.full((*size, 3), 90, np.uint8)
    explained = explain(segmenter, pixels, [f"label {i}" for i in range(12)], "label 11")
    texts = written(explained.show())
    assert texts[0] == "label 11"
    assert any(t.endswith("8 of 12 labels") for t in texts)


def test_names_are_written_as_typed_and_the_figure_shows_itself(segmenter, image):
    explained = explain(segmenter, image, LABELS, LABELS[2])
    assert written(explained.show())[0] == LABELS[2]
    assert explained._repr_jpeg_().startswith(b"\xff\xd8")
    assert isinstance(explained, Explained)


def test_a_caption_has_a_map_for_each_word(segmenter, image):
    maps = explain_caption(segmenter, image, "A dog, and a (small) dog!")
    assert maps.words == ("A", "dog", "and", "a", "small")
    labels = clip2sam.LabelSet(tuple(clip2sam.LabelClass(word, (word,)) for word in maps.words))
    np.testing.assert_array_equal(maps.maps, segmenter(image, labels).maps)
    titles = [ax.get_title() for ax in maps.show().axes]
    assert [t.split()[0] for t in titles] == list(maps.words)
    assert set(titles) <= set(written(maps.show()))
    for empty in ("", " ... !"):
        with pytest.raises(LabelError, match="a caption with at least one word"):
            explain_caption(segmenter, image, empty)


def test_the_nearest_labels_of_a_place(segmenter, image):
    result = segmenter(image, LABELS)
    rows, cols = result.maps.shape[1:]
    for row, col in ((0, 0), (rows - 1, 1), (1, cols - 1)):
        nearest = labels_at(result, (col + 0.5) * 130 / cols, (row + 0.5) * 90 / rows)
        assert dict(nearest) == {
            n: float(m[row, col]) for n, m in zip(LABELS, result.maps, strict=True)
        }
        scores = [score for _, score in nearest]
        assert scores == sorted(scores, reverse=True)
    assert labels_at(result, 130, 90) == labels_at(result, 129.9, 89.9)
    with pytest.raises(
        ConfigError, match=r"expected x from 0 to 130 and y from 0 to 90, got \(131, 2\)"
    ):
        labels_at(result, 131, 2)


def test_the_command_draws_and_says_what_was_decided(segmenter, image, tmp_path: Path, monkeypatch):
    app = typer.Typer()
    app.command()(commands.explain)

    def load(preset, *, config, **_):
        return Segmenter(segmenter.clip, segmenter.sam, config)

    monkeypatch.setattr("clip2sam.models.loading.load", load)
    PILImage.fromarray(image.pixels).save(tmp_path / "street.png")
    street, figure = str(tmp_path / "street.png"), str(tmp_path / "why.png")

    def run(*arguments):
        return CliRunner().invoke(
            app, [*arguments, "--label", "car", "--output", figure, "--allow-unknown"]
        )

    done = run(street, "person", "--method", "clearclip", "--presence-threshold", "-1000")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("person: presence ")
    lines = done.stdout.splitlines()
    shown, every = map(int, re.search(r", (\d+) of (\d+) objects shown$", lines[0]).groups())
    rows = [line for line in lines if line.startswith("  object ")]
    assert len(rows) == every >= shown >= 1
    assert all(re.match(rf"  object {n}: score \d", row) for n, row in enumerate(rows, 1))
    assert sum("left out" not in row for row in rows) == shown
    one = run(street, "person", "--one-mask", "--presence-threshold", "-1000")
    assert ", mask\n" in one.output
    refused = run(street, "person", "--object", "60", "--presence-threshold", "-1000")
    assert isinstance(refused.exception, ConfigError)
    with PILImage.open(figure) as drawn:
        assert drawn.width > 1000
    done = run(street, "person", "--presence-threshold", "9")
    assert "absent, its highest score" in done.output
    done = run(street)
    assert done.stdout.startswith("car: presence "), "without a label to explain it is the first"
    done = CliRunner().invoke(app, [street])
    assert isinstance(done.exception, LabelError)
    assert isinstance(run(street, "person", "--labels", "x.yaml").exception, LabelError)
    assert isinstance(run(str(tmp_path / "none.png"), "person").exception, ImageError)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "place", ["similarity maps", "distractor", "predicted IoUs", "mask logits"]
)
def test_values_that_are_not_finite_are_not_shown(models_of, image, monkeypatch, place, value):
    """Of any candidate: one that is not kept is shown too."""
    segmenter = models_of()
    locate, decode = segmenter.locate, segmenter.decode

    def broken_maps(*arguments):
        maps = locate(*arguments)
        if place in ("similarity maps", "distractor"):
            maps.raw[0, 0 if place == "similarity maps" else -1, 1, 2] = value
        return maps

    def broken_masks(*arguments):
        candidates = decode(*arguments)
        if place == "predicted IoUs":
            candidates.predicted_iou[0, -1] = value
        elif place == "mask logits":
            candidates.logits[0, -1, 3, 4] = value
        return candidates

    monkeypatch.setattr(segmenter, "locate", broken_maps)
    monkeypatch.setattr(segmenter, "decode", broken_masks)
    what = {"distractor": "similarity maps"}.get(place, place)
    with pytest.raises(ModelError, match=f"^street.png: .* {what} have values that are not finite"):
        explain(segmenter, image, LABELS, "person", distractors=["sky"])


def test_a_captions_maps_are_finite(models_of, image, monkeypatch):
    segmenter = models_of()
    locate = segmenter.locate

    def broken(*arguments):
        maps = locate(*arguments)
        maps.raw[0, 1, 0, 0] = torch.nan
        return maps

    monkeypatch.setattr(segmenter, "locate", broken)
    with pytest.raises(ModelError, match="CLIP's similarity maps have values that are not finite"):
        explain_caption(segmenter, image, "a red car")
