"""Deciding anew from the journal, and exporting a run."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from clip2sam import Config, LabelClass
from clip2sam.coco.rle import decode_rle, encode_mask
from clip2sam.coco.validate import validate
from clip2sam.data.records import FoundMask, Labelled
from clip2sam.data.sources import Source
from clip2sam.errors import ConfigError, RunError
from clip2sam.labelling.decide import Decision, decide, decided_thresholds
from clip2sam.labelling.export import export
from clip2sam.labelling.journal import Journal, read_index
from clip2sam.labelling.manifest import begin_run
from clip2sam.labelling.summary import ClassSummary, pour
from clip2sam.visualize.histogram import presence_figure

# pycocotools' arrays, under numpy 2
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

CLASSES = (
    LabelClass("cat", ("cat",), supercategory="animal"),
    LabelClass('<dog> & "co"', ("dog",), threshold=0.3),
)
SKY = LabelClass("sky", ("sky",), distractor=True)


def box(x, y, width, height, size=(40, 60)):
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def found(label, mask, score=0.9):
    return FoundMask(label, encode_mask(mask)["counts"], score, ((1.5, 2.5, 1), (30.0, 3.0, 0)))


RING = box(30, 5, 20, 20) & ~box(35, 10, 5, 5) | box(2, 30, 6, 6)
"""A square with a hole, and another square."""

RECORDS = (
    Labelled(
        0,
        "a.png",
        "done",
        "",
        (40, 60),
        (0.5, 0.4),
        (found(0, box(0, 0, 20, 10)), found(1, RING, 0.7)),
    ),
    Labelled(
        1,
        "sub/b ü.png",
        "done",
        "",
        (40, 60),
        (0.15, 0.1),
        (
            found(0, box(0, 0, 20, 20), 0.8),
            found(0, box(1, 0, 20, 20), 0.9),
            found(1, box(10, 10, 20, 20), 0.6),
        ),
    ),
    Labelled(2, "sub/c.png", "empty", "", (10, 10), (None, -0.1), ()),
    Labelled(3, "sub/d.png", "failed", "sub/d.png: it is cut"),
)


@pytest.fixture
def make_run(tmp_path):
    def make(records=RECORDS, *, keep_above=None, presence=0.1, ids=None):
        keys = tuple(r.key for r in records)
        labels = {"classes": [asdict(c) for c in (*CLASSES, SKY)], "templates": None}
        marks = {
            "labels": labels,
            "config": asdict(Config(presence=presence)),
            "keep_above": keep_above,
        }
        folder = tmp_path / "run"
        folder.mkdir()
        run = begin_run(folder, Source("/in", "/in", keys, ids), marks)
        journal = Journal(run.journal, len(keys))
        for r in reversed(records):
            journal.append(r)
        journal.close()
        return run

    return make


def kept(run, record, **wishes):
    decision = Decision(**wishes)
    return decide(record, decision, decided_thresholds(run, decision))


def test_the_runs_own_thresholds_hold_unless_others_are_asked_for(make_run):
    run = make_run(keep_above=0.05)
    assert [m.label for m in kept(run, RECORDS[0])] == [0, 1]
    assert [m.label for m in kept(run, RECORDS[1])] == [0, 0], (
        "the second class has its own threshold, 0.3"
    )
    assert [m.label for m in kept(run, RECORDS[1], presence=0.1)] == [0, 0, 1]
    assert [m.label for m in kept(run, RECORDS[1], presence=0.12)] == [0, 0]
    assert [m.label for m in kept(run, RECORDS[0], presence=0.45)] == [0]
    assert [m.label for m in kept(run, RECORDS[0], class_presence={"cat": 0.6})] == [1]
    assert [m.label for m in kept(run, RECORDS[0], classes=(CLASSES[1].name,))] == [1]
    assert [m.label for m in kept(run, RECORDS[0], min_score=0.8)] == [0]
    assert [m.label for m in kept(run, RECORDS[0], min_area=201)] == [1]
    assert kept(run, RECORDS[0], min_area=10_000) == ()


def test_a_score_at_its_threshold_counts_as_the_model_counts_it(make_run):
    """float32(0.1) is above 0.1 and is written as 0.1."""
    run = make_run()
    at = replace(RECORDS[0], presence=(0.1, 0.3))
    assert len(kept(run, at)) == 2
    just_below = replace(RECORDS[0], presence=(0.099999994, 0.3))
    assert [m.label for m in kept(run, just_below)] == [1]


def test_thresholds_below_what_the_journal_has_are_refused(make_run):
    run = make_run()
    with pytest.raises(
        ConfigError, match=r"masks of 'cat' from a presence score of 0\.1 on.*--keep-above 0\.05"
    ):
        kept(run, RECORDS[0], presence=0.05)
    with pytest.raises(ConfigError, match=r"'<dog> .*of 0\.3 on, so 0\.2"):
        kept(run, RECORDS[0], presence=0.2)
    assert len(kept(run, RECORDS[0], presence=0.05, classes=())) == 0


def test_a_run_without_a_decision_has_all_masks(make_run):
    run = make_run(presence=None)
    assert [m.label for m in kept(run, RECORDS[1])] == [0, 0]
    assert [m.label for m in kept(run, RECORDS[1], class_presence={"cat": 0.16})] == []


def test_duplicates_are_of_one_class_and_the_best_stays(make_run):
    run = make_run(keep_above=0.0)
    assert [m.score for m in kept(run, RECORDS[1], presence=0.0, duplicates=0.5)] == [0.9, 0.6]
    assert [m.score for m in kept(run, RECORDS[1], presence=0.0, duplicates=0.95)] == [
        0.8,
        0.9,
        0.6,
    ]


@pytest.mark.parametrize(("overlap", "first_owns"), [("score", True), ("small", False)])
def test_overlapping_classes_can_be_set_apart(make_run, overlap, first_owns):
    run = make_run(keep_above=0.0)
    large, small = found(0, box(0, 0, 30, 30), 0.9), found(1, box(10, 10, 10, 10), 0.5)
    record = replace(RECORDS[0], masks=(large, small))
    masks = [decode_rle(record.rle(m)) for m in kept(run, record, overlap=overlap)]
    if first_owns:
        assert len(masks) == 1, "nothing is left of the small one"
        np.testing.assert_array_equal(masks[0], box(0, 0, 30, 30))
    else:
        np.testing.assert_array_equal(masks[0], box(0, 0, 30, 30) & ~box(10, 10, 10, 10))
        np.testing.assert_array_equal(masks[1], box(10, 10, 10, 10))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"min_score": 1.5}, "min_score must be from 0 to 1"),
        ({"duplicates": -0.1}, "duplicates must be"),
        ({"min_area": -1}, "min_area must be"),
        ({"classes": ("cow",)}, "no class 'cow'; its classes are cat"),
        ({"class_presence": {"sky": 0.5}}, "no class 'sky'"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(make_run, wishes, message):
    run = make_run()
    with pytest.raises(ConfigError, match=message):
        kept(run, RECORDS[0], **wishes)


def test_counts_add_up(make_run):
    run = make_run()
    seen = []
    summary = pour(
        run, read_index(run.journal, 4), Decision(), [lambda record, masks: seen.append(record.key)]
    )
    assert (summary.listed, summary.done, summary.empty, summary.failed) == (4, 2, 1, 1)
    assert seen == ["a.png", "sub/b ü.png", "sub/c.png"]
    assert [(c.pictures, c.masks) for c in summary.classes] == [(2, 3), (1, 1)]
    assert summary.classes[0].score == pytest.approx((0.9 + 0.8 + 0.9) / 3)
    assert [sum(c.histogram.values()) for c in summary.classes] == [2, 3], (
        "a score that isn't finite is in no bin"
    )
    assert summary.failures == [{"file_name": "sub/d.png", "reason": "sub/d.png: it is cut"}]


def test_a_journal_of_another_run_is_refused(make_run):
    run = make_run()
    other = replace(run, source=replace(run.source, keys=("x.png", *run.source.keys[1:])))
    with pytest.raises(RunError, match="belong to different runs"):
        pour(other, read_index(run.journal, 4), Decision(), [])


def test_the_runs_own_files_are_no_outputs(make_run):
    run = make_run()
    with pytest.raises(ConfigError, match="is the run's own file"):
        export(run.path, run.path / "manifest.json")


def test_a_run_can_be_exported_while_it_is_not_finished(make_run, tmp_path):
    run = make_run()
    data = run.journal.read_bytes()
    run.journal.write_bytes(data[: -len(data.splitlines()[-1]) // 2])
    summary = export(run.path, tmp_path / "coco.json")
    assert summary.done + summary.empty + summary.failed == 3
    assert validate(tmp_path / "coco.json") == []


def test_many_classes_in_any_script_can_be_drawn(tmp_path):
    classes = [
        ClassSummary(f"$日本_{i}", 0.1 if i % 2 else None, histogram={-0.02: 3, 0.1: 1000})
        for i in range(120)
    ]
    classes[3].histogram = {}
    presence_figure(classes[:9], 0.02).savefig(tmp_path / "few.png")
    figure = presence_figure(classes, 0.02)
    assert "the first 100 of 120 classes" in figure.axes[0].get_title()
    assert (tmp_path / "few.png").stat().st_size > 1000
    presence_figure([ClassSummary("nothing", None)], 0.02).savefig(tmp_path / "none.png")
