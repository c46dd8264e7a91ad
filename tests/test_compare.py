"""The methods side by side: thresholds of their own, one table, one sheet."""

import json
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest

from clip2sam.analysis.compare import Sight, compare_methods, sights, threshold_for
from clip2sam.analysis.examples import Example, scene_examples
from clip2sam.clip.methods import METHODS
from clip2sam.data.images import Image
from clip2sam.data.labels import as_label_set
from clip2sam.errors import ConfigError
from clip2sam.pipeline import Segmenter
from clip2sam.visualize.sheet import sheet_figure
from tests.documents import ROOT
from tests.labelling_fakes import small_segmenter

sys.path.insert(0, str(ROOT / "scripts"))
import compare_methods as script

MASK = np.zeros((8, 8), bool)
MASK[2:6, 2:6] = True


def example(**truth: list) -> Example:
    """An image on which these labels have these masks."""
    kinds = dict.fromkeys(truth, "all")
    return Example(Image(np.zeros((8, 8, 3), np.uint8), "x.png"), truth, kinds, tuple(truth))


def scored(*images: list[float]) -> Segmenter:
    """A segmenter that has these presence scores for the images one after another."""
    segmenter, rest = small_segmenter(), iter(images)
    scores: Any = lambda features, labels: [(np.array(next(rest), np.float32), None)]  # noqa: E731
    segmenter.presence = scores  # type: ignore[method-assign]
    return segmenter


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.74, 2)])
def test_the_threshold_keeps_that_share_of_the_absent_labels(share, kept):
    examples = [example(cat=[MASK], dog=[], owl=[]), example(cat=[], dog=[], owl=[MASK])]
    scores = [[0.9, 0.3, 0.4], [0.1, 0.7, 0.05]]
    threshold = threshold_for(scored(*scores), examples, false_masks=share)
    absent = np.array([0.3, 0.4, 0.1, 0.7], np.float32)
    assert (absent >= np.float32(threshold)).sum() == kept
    assert threshold == pytest.approx(sorted(absent, reverse=True)[kept])


def test_a_threshold_needs_absent_labels():
    with pytest.raises(ConfigError, match="some of the labels are absent, found none"):
        threshold_for(scored([0.5]), [example(cat=[MASK])])


def test_each_method_is_judged_with_its_own_threshold():
    segmenter = small_segmenter()
    tried = {name: segmenter.with_config(method=METHODS[name]) for name in ("raw", "surgery")}
    chosen_on = list(scene_examples("validation", 2, labels=6))
    judged_on = list(scene_examples("test", 2, labels=6))
    seen: list[int] = []
    rows = compare_methods(tried, chosen_on, judged_on, on_image=lambda: seen.append(1))
    assert [row.name for row in rows] == ["raw", "surgery"]
    assert len(seen) == 4
    for row in rows:
        assert row.threshold == threshold_for(tried[row.name], chosen_on)
        assert 0 < row.spread[0] <= row.seconds <= row.spread[1]
    assert rows[0].threshold != rows[1].threshold
    assert rows[0].map_iou != rows[1].map_iou


def test_what_a_method_sees_of_a_label():
    (one,) = scene_examples("test", 1, labels=6)
    label = next(name for name in one.requested if one.truth[name])
    labels = as_label_set([*(name for name in one.requested if name != label), label])
    segmenter = small_segmenter().with_config(presence_threshold=None)
    (sight,) = sights({"surgery": segmenter}, one, label, labels)
    result = segmenter(one.image, labels)
    truth, mask = np.any(one.truth[label], axis=0), result.mask_of(label)
    assert sight.iou == pytest.approx((mask & truth).sum() / (mask | truth).sum())
    assert (sight.raw == result.maps[result.class_names.index(label)]).all()


def test_the_sheet_names_its_columns_and_says_what_is_absent():
    pixels = np.zeros((40, 60, 3), np.uint8)
    truth = np.zeros((40, 60), bool)
    truth[5:20, 5:20] = True
    seen = [
        Sight("surgery", np.arange(12.0).reshape(3, 4), truth, 1.0),
        Sight("raw", np.zeros((3, 4)), truth & False, 0.0),
    ]
    figure = sheet_figure([pixels, pixels], ["cat", "dog"], [truth, truth], [seen, seen])
    titles = [ax.get_title() for ax in figure.axes]
    columns = ["truth", "surgery", "IoU 1.00", "raw", "absent"]
    assert titles == ["cat", *columns, "dog", *columns]
    upper, lower = (figure.axes[i].get_position() for i in (0, 1))
    assert lower.y1 <= upper.y0
    assert figure.axes[6].get_position().y1 <= lower.y0


def test_the_script_writes_table_figures_and_sheet(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    arguments = ["--scenes", "1", "--method", "surgery", "--plain", "--output", str(out)]
    monkeypatch.setattr(sys, "argv", ["compare_methods", *arguments])
    monkeypatch.setattr(script.clip2sam, "load", lambda preset, device: small_segmenter())
    monkeypatch.setattr(script, "scene_examples", partial(scene_examples, labels=6))
    assert script.main() == 0
    report = json.loads((out / "compared.json").read_text())
    assert [m["name"] for m in report["methods"]] == ["surgery", "surgery, plain"]
    assert {"commit", "device", "threads"} <= report.keys()
    lines = (out / "compared.md").read_text().splitlines()
    assert lines[0].startswith("| method | threshold | pointing game | map IoU |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| surgery", "| surgery, plain"]
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert (out / "sheet.png").stat().st_size > 10_000
    assert lines[2] in capsys.readouterr().out


def test_the_script_names_an_unknown_method(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_methods", "--method", "glip"])
    assert script.main() == 2
    assert "error: no method is called 'glip'; choose one of raw" in capsys.readouterr().err
