"""What each stage loses, with the truth in its place."""

import numpy as np
import pytest

import clip2sam
from clip2sam.analysis.budget import STEPS, Budget, budget, inner_point
from clip2sam.analysis.evaluate import evaluate
from clip2sam.analysis.examples import scene_examples


def test_inner_point_is_the_centre_of_the_widest_part():
    mask = np.zeros((40, 60), bool)
    mask[10:31, 20:41] = True
    mask[20, :20] = True  # a thin tail
    np.testing.assert_array_equal(inner_point(mask), [30.5, 20.5])
    whole = np.ones((5, 9), bool)  # the border counts as outside
    assert inner_point(whole)[1] == 2.5


def test_losses_add_up():
    spent = Budget(dict(zip(STEPS, (0.6, 0.65, 0.8, 0.9), strict=True)), {}, [])
    assert spent.losses() == pytest.approx(
        {"presence": 0.05, "points": 0.15, "candidates": 0.1, "SAM": 0.1}
    )
    assert sum(spent.losses().values()) + spent.miou["pipeline"] == pytest.approx(1)


def test_the_budget_begins_with_the_pipeline_and_ends_near_the_truth():
    segmenter = clip2sam.load("tiny").with_config(presence_threshold=0.9)
    scenes = [scene_examples("validation", 2, labels=8, kind="several") for _ in range(2)]
    spent = budget(segmenter, scenes[0])
    figures = evaluate(segmenter, scenes[1])
    assert spent.miou["pipeline"] == pytest.approx(figures["all"]["miou"])
    assert spent.miou["true presence"] == pytest.approx(figures["all"]["miou_all_kept"])
    assert spent.ap["pipeline"] == pytest.approx(figures["objects"]["AP"])
    assert spent.miou["pipeline"] < spent.miou["true presence"] < spent.miou["true points"]
    assert spent.miou["true candidates"] > 0.8
    assert spent.ap["true candidates"] > max(0.7, spent.ap["true points"])
    assert spent.ap["true points"] > spent.ap["true presence"]


def test_without_present_labels_there_is_no_budget():
    spent = budget(clip2sam.load("tiny"), scene_examples("validation", 1, labels=4), ["heart"])
    (example,) = scene_examples("validation", 1)
    assert not example.truth["heart"]
    assert np.isnan(list(spent.miou.values())).all()
    assert np.isnan(list(spent.ap.values())).all()
