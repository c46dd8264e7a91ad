"""Trying settings, and how sure a difference is."""

import numpy as np
import pytest

import clip2sam
from clip2sam.analysis.bootstrap import paired_difference
from clip2sam.analysis.evaluate import evaluate
from clip2sam.analysis.examples import scene_examples
from clip2sam.analysis.figures import MeanIou, Pair
from clip2sam.analysis.sweep import LEVERS, sweep
from clip2sam.config import Config
from clip2sam.errors import ConfigError


def mean_of(values):
    return lambda weights: float((weights * values).sum() / weights.sum())


def test_the_interval_of_a_mean_is_the_textbooks():
    """For many images the percentiles are the mean's, 1.96 standard errors to either side."""
    rng = np.random.default_rng(1)
    base = rng.normal(0.5, 0.2, 400)
    gain = rng.normal(0.02, 0.1, 400)
    found = paired_difference(mean_of(base), mean_of(base + gain), 400, resamples=3000)
    error = gain.std() / 20
    assert found.value == pytest.approx(gain.mean())
    assert found.low == pytest.approx(gain.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(gain.mean() + 1.96 * error, abs=0.15 * error)
    assert found == paired_difference(mean_of(base), mean_of(base + gain), 400, resamples=3000)


def test_a_difference_is_sure_if_it_leaves_out_zero():
    values = np.linspace(0, 1, 50)
    assert not paired_difference(mean_of(values), mean_of(values), 50).sure
    assert paired_difference(mean_of(values), mean_of(values + 0.1), 50).sure
    assert paired_difference(mean_of(values), mean_of(values - 0.1), 50).sure
    noise = np.random.default_rng(0).normal(0, 1, 50)
    assert not paired_difference(mean_of(values), mean_of(values + noise - noise.mean()), 50).sure


def test_a_figure_without_objects_has_no_interval():
    found = paired_difference(lambda w: float("nan"), lambda w: 1.0, 5)
    assert np.isnan([found.value, found.low, found.high]).all()
    assert not found.sure


def test_mean_iou_counts_images_by_their_weight():
    images = [
        [Pair("k", True, True, 1.0, iou=0.8), Pair("k", True, False, 0.0, iou=0.6)],
        [Pair("k", True, True, 1.0, iou=0.2), Pair("k", False, True, 1.0)],
    ]
    assert MeanIou(images)(np.ones(2)) == pytest.approx(1.0 / 3)
    assert MeanIou(images)(np.array([0.0, 2.0])) == pytest.approx(0.2)
    assert np.isnan(MeanIou(images[:0])(np.ones(0)))


def test_a_sweep_gives_each_settings_own_figures():
    """The figures of `evaluate` with the same settings; the base has no gain, a change has."""
    segmenter = clip2sam.load("tiny")
    levers = [("no change", {}), ("high", {"presence_threshold": 0.9, "max_negative": 0})]
    seen = []

    def scenes():
        return scene_examples("validation", 2, labels=8, kind="several")

    trials, failures = sweep(
        segmenter,
        scenes(),
        levers=levers,
        on_example=lambda: seen.append(1),
    )
    assert ([t.name for t in trials], failures, len(seen)) == (["base", *dict(levers)], [], 2)
    for trial, changes in zip(trials, [{}, *dict(levers).values()], strict=True):
        figures = evaluate(segmenter.with_config(**changes), scenes())
        assert trial.miou == pytest.approx(figures["all"]["miou"])
        assert trial.false_masks == figures["all"]["false_masks"]
        assert trial.ap == pytest.approx(figures["objects"]["AP"])
        assert trial.ap50 == pytest.approx(figures["objects"]["AP50"])
        assert trial.false_instances == figures["objects"]["false_instances"]
    base, same, high = trials
    assert (base.miou_gain, base.ap_gain) == (None, None)
    assert (same.miou_gain.value, same.ap_gain.value) == (0.0, 0.0)
    assert high.miou_gain.value == pytest.approx(high.miou - base.miou) != 0
    assert high.ap_gain.value == pytest.approx(high.ap - base.ap) != 0


def test_every_lever_can_be_tried():
    for _, changes in LEVERS:
        assert Config(**changes) != Config() or "presence_threshold" in changes
    with pytest.raises(ConfigError, match="no settings are called gird"):
        sweep(clip2sam.load("tiny"), [], levers=[("typo", {"gird": 5})])
