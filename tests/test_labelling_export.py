"""A run's journal decided anew: which masks are kept, what is counted, and what is written."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime

import numpy as np
import pytest
from pycocotools.coco import COCO

from clip2sam import __version__
from clip2sam.coco.document import coco_document
from clip2sam.coco.outlines import Fit
from clip2sam.coco.rle import decode_rle, encode_mask
from clip2sam.coco.validate import validate
from clip2sam.config import Config
from clip2sam.data.labels import LabelClass, LabelSet
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.data.sources import FileSource
from clip2sam.errors import ConfigError, ImageError, RunError
from clip2sam.export import Exporter
from clip2sam.export.coco import CocoExporter
from clip2sam.labelling.content import content_of, open_content
from clip2sam.labelling.decide import Decision, decide, decided_for, decided_thresholds
from clip2sam.labelling.export import export_run
from clip2sam.labelling.fingerprint import fingerprint, plain
from clip2sam.labelling.info import run_info
from clip2sam.labelling.journal import Journal, read_index, read_records
from clip2sam.labelling.manifest import begin_run, open_run, time_now
from clip2sam.labelling.summary import as_row, write_files

CLASSES = (
    LabelClass("cat", ("cat",), supercategory="animal"),
    LabelClass('<dog> & "co"', ("dog",), presence_threshold=0.3),
)
CAT, DOG = (c.name for c in CLASSES)


def box(x, y, width, height, size=(40, 60)):
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def found(label, mask, score=0.9):
    return Annotation(label, encode_mask(mask), score, ((1.5, 2.5, 1), (30.0, 3.0, 0)))


RING = box(30, 5, 20, 20) & ~box(35, 10, 5, 5)

RECORDS = (
    ImageRecord(
        10,
        "a.png",
        (40, 60),
        annotations=(found(CAT, box(0, 0, 20, 10)), found(DOG, RING, 0.7)),
        presence=(0.5, 0.4),
        beaten=(False, False),
    ),
    ImageRecord(
        4,
        "sub/b ü.png",
        (40, 60),
        annotations=(
            found(CAT, box(0, 0, 20, 20), 0.8),
            found(CAT, box(1, 0, 20, 20), 0.9),
            found(DOG, box(10, 10, 20, 20), 0.6),
        ),
        presence=(0.15, 0.1),
        beaten=(False, False),
    ),
    ImageRecord(5, "sub/c.png", (10, 10), "empty", presence=(None, -0.1), beaten=(False, True)),
    ImageRecord(6, "sub/d.png", state="failed", reason="sub/d.png: it is cut"),
)


@pytest.fixture
def make_run(tmp_path):
    def make(records=RECORDS, *, keep_above=None, presence_threshold=0.1):
        thresholds = [presence_threshold, 0.3]
        floors = [t if t is None or keep_above is None else min(t, keep_above) for t in thresholds]
        keys, ids = tuple(r.file_name for r in records), tuple(r.image_id for r in records)
        folder = tmp_path / "run"
        folder.mkdir()
        (tmp_path / "images").mkdir()
        source = FileSource(*[str(tmp_path / "images")] * 2, keys, ids)
        run = begin_run(
            folder,
            source,
            CLASSES,
            {},
            thresholds=thresholds,
            floors=floors,
            min_share=0.5,
            threads=1,
        )
        journal = Journal(run.journal, ids, run.class_names)
        for r in reversed(records):
            journal.append(r)
        journal.close()
        return run

    return make


def kept(run, record, **wishes):
    decision = decided_for(run, Decision(**wishes))
    thresholds = decided_thresholds(run, decision)
    return decide(record, decision, run.class_names, thresholds)


def labels_kept(run, record, **wishes):
    return [a.label for a in kept(run, record, **wishes).annotations]


def scores_kept(run, record, **wishes):
    return [a.score for a in kept(run, record, **wishes).annotations]


def test_the_runs_own_thresholds_hold_unless_others_are_given(make_run):
    run = make_run(keep_above=0.05)
    first, second = RECORDS[:2]
    assert labels_kept(run, first) == [CAT, DOG]
    assert labels_kept(run, second) == [CAT, CAT], "the second class has its own threshold, 0.3"
    assert labels_kept(run, second, presence_threshold=0.1) == [CAT, CAT, DOG]
    assert labels_kept(run, second, presence_threshold=0.12) == [CAT, CAT]
    assert labels_kept(run, first, presence_threshold=0.45) == [CAT]
    assert labels_kept(run, first, class_thresholds={CAT: 0.6}) == [DOG]
    assert labels_kept(run, first, presence_threshold=0.6, class_thresholds={CAT: 0.2}) == [CAT]
    assert labels_kept(run, first, classes=(DOG,)) == [DOG]
    assert labels_kept(run, first, min_score=0.8) == [CAT]
    assert labels_kept(run, first, min_score=0.7) == [CAT, DOG], "at the limit counts"
    assert labels_kept(run, first, min_area=201) == [DOG]
    assert labels_kept(run, first, min_area=200) == [CAT, DOG]
    assert kept(run, first) == first
    assert kept(run, first, min_area=10_000) == replace(first, state="empty", annotations=())


def test_a_score_at_its_threshold_counts_as_the_model_counts_it(make_run):
    """float32(0.1) is above 0.1 and is written as 0.1."""
    run = make_run()
    at = replace(RECORDS[0], presence=(0.1, 0.3))
    assert labels_kept(run, at) == [CAT, DOG]
    just_below = replace(RECORDS[0], presence=(0.099999994, 0.3))
    assert labels_kept(run, just_below) == [DOG]


def test_a_label_that_a_distractor_beats_is_absent_where_a_decision_is_taken(make_run):
    """As in the pipeline: without a threshold its mask stays."""
    run = make_run(presence_threshold=None)
    beaten = replace(RECORDS[0], beaten=(True, True))
    assert labels_kept(run, beaten) == [CAT]
    assert labels_kept(run, beaten, class_thresholds={CAT: 0.2}) == []
    assert labels_kept(run, replace(beaten, beaten=(True, False))) == [CAT, DOG]


def test_thresholds_below_what_the_journal_has_are_refused(make_run):
    run = make_run()
    with pytest.raises(
        ConfigError, match=r"masks of 'cat' from a presence score of 0\.1 on.*--keep-above 0\.05"
    ):
        kept(run, RECORDS[0], presence_threshold=0.05)
    with pytest.raises(ConfigError, match=r"'<dog> .*of 0\.3 on, so 0\.2"):
        kept(run, RECORDS[0], presence_threshold=0.2)
    assert labels_kept(run, RECORDS[0], presence_threshold=0.05, classes=()) == []


def test_a_run_without_a_decision_has_all_masks(make_run):
    run = make_run(presence_threshold=None)
    assert labels_kept(run, RECORDS[1]) == [CAT, CAT]
    assert labels_kept(run, RECORDS[1], class_thresholds={CAT: 0.16}) == []
    assert labels_kept(run, RECORDS[1], class_thresholds={CAT: -5.0}) == [CAT, CAT]


def test_duplicates_are_of_one_class_and_the_best_stays(make_run):
    run = make_run(keep_above=0.0)
    scores = [
        scores_kept(run, RECORDS[1], presence_threshold=0.0, duplicates=limit)
        for limit in (0.5, 0.95)
    ]
    assert scores == [[0.9, 0.6], [0.8, 0.9, 0.6]]
    same = replace(RECORDS[1], annotations=(found(CAT, RING, 0.5), found(DOG, RING, 0.4)))
    assert scores_kept(run, same, presence_threshold=0.0, duplicates=0.5) == [0.5, 0.4]
    # an IoU of exactly the limit is no duplicate yet
    whole, half = box(30, 5, 20, 20), box(30, 5, 20, 10)
    limit = replace(RECORDS[1], annotations=(found(CAT, whole, 0.5), found(CAT, half, 0.4)))
    assert scores_kept(run, limit, presence_threshold=0.0, duplicates=0.5) == [0.5, 0.4]


@pytest.mark.parametrize("overlap", ["score", "small"])
def test_overlapping_classes_can_be_set_apart(make_run, overlap):
    run = make_run()
    large, small = found(CAT, box(0, 0, 30, 30), 0.9), found(DOG, box(10, 10, 10, 10), 0.5)
    record = replace(RECORDS[0], annotations=(large, small))
    masks = [decode_rle(a.rle) for a in kept(run, record, overlap=overlap).annotations]
    if overlap == "score":
        assert len(masks) == 1, "nothing is left of the small one"
        np.testing.assert_array_equal(masks[0], box(0, 0, 30, 30))
    else:
        np.testing.assert_array_equal(masks[0], box(0, 0, 30, 30) & ~box(10, 10, 10, 10))
        np.testing.assert_array_equal(masks[1], box(10, 10, 10, 10))
    assert labels_kept(run, record, overlap="keep") == [CAT, DOG]


def test_weak_objects_and_those_beyond_the_most_are_left_out(make_run):
    """By the run's own limit of their share (0.5) unless another is given; all are in the
    journal."""
    shares = ((0.6, 1.0), (0.9, 0.45), (0.3, 0.7), (0.2, 0.1))  # score, share
    cats = [
        Annotation(CAT, encode_mask(box(4 * i, 0, 4, 10)), score, (), share)
        for i, (score, share) in enumerate(shares)
    ]
    dog = found(DOG, box(30, 20, 5, 5), 0.4)
    record = replace(RECORDS[0], annotations=(*cats, dog))
    run = make_run((record,))
    (read,) = read_records(run.journal, read_index(run.journal, run.ids), run.ids, run.class_names)
    assert read == record

    def scores(**wishes):
        return [a.score for a in kept(run, record, **wishes).annotations]

    assert scores() == [0.6, 0.3, 0.4]
    assert scores(min_share=0.0) == [0.6, 0.9, 0.3, 0.2, 0.4]
    assert scores(min_share=1.0) == [0.6, 0.4]
    assert scores(max_objects=1) == [0.6, 0.4]
    assert scores(min_share=0.0, max_objects=2) == [0.6, 0.9, 0.4], "the best, in their order"
    assert scores(min_share=0.0, min_score=0.35) == [0.6, 0.9, 0.4]


def test_masks_of_one_class_may_overlap_and_keep_their_order(make_run):
    run = make_run(keep_above=0.0)
    given = {"presence_threshold": 0.0, "overlap": "score"}
    assert scores_kept(run, RECORDS[1], **given) == [0.8, 0.9, 0.6]
    one, two, dog = (decode_rle(a.rle) for a in kept(run, RECORDS[1], **given).annotations)
    np.testing.assert_array_equal(one, box(0, 0, 20, 20))
    np.testing.assert_array_equal(two, box(1, 0, 20, 20))
    np.testing.assert_array_equal(dog, box(10, 10, 20, 20) & ~box(0, 0, 21, 20))
    left = int(dog.sum())
    assert scores_kept(run, RECORDS[1], **given, min_area=left) == [0.8, 0.9, 0.6]
    assert scores_kept(run, RECORDS[1], **given, min_area=left + 1) == [0.8, 0.9]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"min_score": 1.5}, "min_score must be from 0 to 1"),
        ({"duplicates": -0.1}, "duplicates must be"),
        ({"min_area": -1}, "min_area must be"),
        ({"min_share": 1.1}, "min_share must be from 0 to 1"),
        ({"max_objects": 0}, "max_objects must be 1 or more"),
        (
            {"presence_threshold": float("nan")},
            "presence_threshold must be a finite number, but got",
        ),
        (
            {"class_thresholds": {"cat": float("inf")}},
            "the threshold of 'cat' must be a finite numb",
        ),
        ({"overlap": "both"}, "overlap must be one of keep, score, small, but got 'both'"),
        ({"classes": ("cow",)}, "no class 'cow'; its classes are cat"),
        ({"class_thresholds": {"sky": 0.5}}, "no class 'sky'"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(make_run, wishes, message):
    run = make_run()
    with pytest.raises(ConfigError, match=message):
        kept(run, RECORDS[0], **wishes)


class Seen:
    """An exporter that notes what it gets."""

    def write(self, records, classes, output):
        self.records, self.classes, self.output = list(records), classes, output


def test_counts_add_up(make_run, tmp_path):
    run, seen = make_run(), Seen()
    assert isinstance(seen, Exporter)
    content = open_content(run.path)
    summary = write_files(content, Decision(), {tmp_path / "x": seen})
    assert (summary.listed, summary.done, summary.empty, summary.failed) == (4, 2, 1, 1)
    assert [r.file_name for r in seen.records] == ["a.png", "sub/b ü.png", "sub/c.png"]
    assert [r.state for r in seen.records] == ["done", "done", "empty"]
    assert (seen.classes, seen.output) == (CLASSES, tmp_path / "x")
    assert [(c.images, c.masks) for c in summary.classes] == [(2, 3), (1, 1)]
    assert [c.threshold for c in summary.classes] == [0.1, 0.3]
    assert [c.mean_score for c in summary.classes] == [
        pytest.approx((0.9 + 0.8 + 0.9) / 3, abs=1e-6),
        0.7,
    ]
    assert summary.classes[0].histogram == {0.14: 1, 0.5: 1}, "a score that isn't finite counts not"
    assert summary.classes[1].histogram == {-0.1: 1, 0.1: 1, 0.4: 1}
    assert summary.failures == ({"file_name": "sub/d.png", "reason": "sub/d.png: it is cut"},)
    row = as_row(summary)
    assert row["classes"][0]["histogram"] == {"0.14": 1, "0.5": 1}
    assert json.loads(json.dumps(row))["failures"] == list(summary.failures)


def test_an_export_reports_every_image_once(make_run, tmp_path):
    run, told = make_run(), []
    export_run(run.path, tmp_path / "x.json", on_image=lambda *counts: told.append(counts))
    assert told[-1] == (4, 4), "failed images count as well"
    assert [of for _, of in told] == [4] * len(told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) == 4  # three are written


def test_every_exporter_gets_the_decided_records(make_run, tmp_path):
    run, first, second = make_run(keep_above=0.0), Seen(), Seen()
    content, decision = open_content(run.path), Decision(presence_threshold=0.12)
    summary = write_files(content, decision, {tmp_path / "1": first, tmp_path / "2": second})
    assert first.records == second.records
    assert [len(r.annotations) for r in first.records] == [2, 2, 0]
    assert [c.masks for c in summary.classes] == [3, 1]
    assert summary == write_files(content, decision, {})


def test_a_journal_of_another_run_is_refused(make_run):
    run = make_run()
    other = replace(run, keys=("x.png", *run.keys[1:]))
    with pytest.raises(RunError, match=r"image 10 has another name .* belong to different runs"):
        write_files(content_of(other, read_index(run.journal, run.ids)), Decision(), {})


def test_a_run_is_what_was_frozen(make_run):
    run = make_run(keep_above=0.05)
    assert open_run(run.path) == run
    assert (run.keys, run.ids) == (tuple(r.file_name for r in RECORDS), (10, 4, 5, 6))
    assert (run.classes, run.class_names) == (CLASSES, (CAT, DOG))
    assert (run.thresholds, run.floors, run.threads) == ((0.1, 0.3), (0.05, 0.05), 1)


def test_export_writes_the_source_s_order_and_ids(make_run, tmp_path):
    run = make_run()
    summary = export_run(run.path, tmp_path / "coco.json")
    decided = [kept(run, r) for r in RECORDS[:3]]
    document = json.loads((tmp_path / "coco.json").read_text())
    assert document == coco_document(decided, CLASSES, info=run_info(run))
    assert [i["id"] for i in document["images"]] == [10, 4, 5]
    assert len(document["annotations"]) == sum(c.masks for c in summary.classes) == 4


def test_a_run_says_of_itself_how_its_masks_were_made(make_run):
    """Of an engine of one's own less is known."""
    run = make_run()
    assert run_info(run) == {
        "description": "Made with clip2sam",
        "version": "1.0",
        "date_created": "2023-11-14T22:13:20Z",
        "prompts": {},
        "min_share": 0.5,
        "presence_thresholds": {CAT: 0.1, DOG: 0.3},
    }
    part = LabelClass("pup", ("a pup",))
    labels = LabelSet(
        (
            LabelClass("cat", ("cat", "a kitten")),
            LabelClass("dog", ("dog",), joined=(LabelClass("dog", ("dog",)), part)),
            LabelClass("sky", ("the sky",), distractor=True),
        ),
        ("a photo of {}",),
    )
    config = plain(asdict(Config(presence_threshold=0.2)))
    marks = fingerprint(
        {"config": config, "locator": "CLIP"}, labels, preset="tiny", max_pixels=100
    )
    info = run_info(replace(run, fingerprint=marks))
    assert info["description"] == f"Made with clip2sam {__version__}"
    assert (info["clip2sam"], info["preset"]) == (__version__, "tiny")
    assert (info["method"], info["masks"]) == ("surgery", "one for each object")
    assert info["point_threshold"] == 0.5, "what None stands for"
    assert info["prompts"]["cat"] == ["cat", "a kitten"]
    assert info["prompts"]["dog"][-1] == "a pup"
    assert info["distractors"] == {"sky": ["the sky"]}
    assert info["templates"] == ["a photo of {}"]
    other = {**marks, "engine": {"config": {**config, "point_threshold": 0.7}, "locator": "SAM 3"}}
    info = run_info(replace(run, fingerprint=other))
    assert (info["method"], info["point_threshold"]) == ("SAM 3", 0.7)


def test_an_export_says_of_itself_what_it_has_decided(make_run, tmp_path):
    run = make_run(keep_above=0.0)
    decision = Decision(0.2, {DOG: 0.25}, min_score=0.1, min_share=0.4, overlap="score")
    export_run(run.path, tmp_path / "a.json", decision=decision)
    info = json.loads((tmp_path / "a.json").read_text())["info"]
    assert (info["presence_thresholds"], info["min_share"]) == ({CAT: 0.2, DOG: 0.25}, 0.4)
    assert info["decision"] == {"min_score": 0.1, "overlap": "score"}
    export_run(run.path, tmp_path / "b.json", decision=Decision(classes=(CAT,)))
    info = json.loads((tmp_path / "b.json").read_text())["info"]
    assert info["presence_thresholds"] == {CAT: 0.1}
    assert "decision" not in info


def test_the_date_is_that_of_the_runs_beginning(make_run, tmp_path, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    before = datetime.now(UTC).replace(microsecond=0)
    run = make_run()
    after = datetime.now(UTC)
    assert before <= datetime.fromisoformat(run.started) <= after
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # another day
    export_run(run.path, tmp_path / "a.json")
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["info"]["date_created"] == run.started
    assert validate(document) == []
    assert time_now() == "1970-01-01T00:00:00Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    with pytest.raises(
        ConfigError, match="must be a number of seconds since 1970, but got 'today'"
    ):
        time_now()


def test_a_run_of_before_has_no_date(make_run, tmp_path):
    run = make_run()
    manifest = json.loads((run.path / "manifest.json").read_bytes())
    del manifest["started"]
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    assert "date_created" not in run_info(open_run(run.path))
    (run.path / "manifest.json").write_text(json.dumps({**manifest, "started": 5}))
    with pytest.raises(RunError, match="started: not what a run writes"):
        open_run(run.path)


def test_a_run_merges_whatever_its_info_says(make_run, tmp_path):
    run = make_run()
    export_run(run.path, tmp_path / "a.json", decision=Decision(min_score=0.85))
    with pytest.warns(UserWarning, match="had 2 of 4 annotations already"):
        export_run(run.path, tmp_path / "b.json", merge=tmp_path / "a.json")
    first, merged = (COCO(str(tmp_path / name)) for name in ("a.json", "b.json"))
    assert merged.dataset["info"] == first.dataset["info"]
    assert (len(first.anns), len(merged.anns)) == (2, 4)
    assert [a["presence"] for a in merged.anns.values()] == [0.5, 0.15, 0.4, 0.15]


def test_export_takes_options_and_objects(make_run, tmp_path):
    run, seen = make_run(keep_above=0.0), Seen()
    export_run(run.path, tmp_path / "a.json", polygons=True)
    segments = json.loads((tmp_path / "a.json").read_text())["annotations"]
    assert all(isinstance(a["segmentation"], list) for a in segments)
    export_run(run.path, tmp_path / "b.json", CocoExporter(True, info=run_info(run)))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    with pytest.warns(UserWarning, match="had 4 of 4 annotations already"):
        export_run(run.path, tmp_path / "c.json", merge=tmp_path / "a.json")
    assert json.loads((tmp_path / "c.json").read_text())["annotations"] == segments
    export_run(run.path, tmp_path / "d.json", "labelstudio", image_prefix="s3://b/")
    assert json.loads((tmp_path / "d.json").read_text())[0]["data"]["image"] == "s3://b/a.png"
    export_run(run.path, tmp_path / "x", seen, Decision(presence_threshold=0.0))
    assert [len(r.annotations) for r in seen.records] == [2, 3, 0]


def test_an_export_says_how_well_its_polygons_fit(make_run, tmp_path):
    disk = np.hypot(*(np.mgrid[:200, :200] - 100.0)) < 70
    record = replace(RECORDS[0], size=(200, 200), annotations=(found(CAT, disk),))
    run = make_run((record,))
    fits = [
        export_run(run.path, tmp_path / "out.json", polygons=True, tolerance=tolerance).polygons
        for tolerance in (None, 0.0, 5.0)
    ]
    assert fits[1] == Fit(1, 1.0, 1.0, 0)
    assert 0.95 < fits[2].worst < fits[0].worst < 1
    assert export_run(run.path, tmp_path / "out.json").polygons is None


def test_yolo_takes_the_images_of_the_run(make_run, tmp_path):
    """Those that failed are left out, and counted."""
    run = make_run()
    for record in RECORDS:
        path = tmp_path / "images" / record.file_name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(record.file_name.encode())
    summary = export_run(run.path, tmp_path / "yolo", "yolo", val_share=0.5)
    images = {
        p.relative_to(tmp_path / "yolo" / "images"): p
        for p in tmp_path.glob("yolo/images/*/**/*.png")
    }
    assert sorted(str(p.relative_to(p.parts[0])) for p in images) == [
        "a.png",
        "sub/b ü.png",
        "sub/c.png",
    ]
    assert {p.parts[0] for p in images} == {"train", "val"}
    assert (summary.listed, summary.done, summary.empty, summary.failed) == (4, 2, 1, 1)
    assert summary.polygons.masks == 4
    (link,) = tmp_path.glob("yolo/images/*/a.png")
    assert not link.samefile(tmp_path / "images" / "a.png")
    export_run(run.path, tmp_path / "links", "yolo", val_share=0.5, images="link")
    (link,) = tmp_path.glob("links/images/*/a.png")
    assert link.samefile(tmp_path / "images" / "a.png")
    (tmp_path / "images").rename(tmp_path / "other")
    with pytest.raises(
        ImageError, match=r"a.png: the image is not in .*images any more; if the im"
    ):
        export_run(run.path, tmp_path / "new", "yolo")
    export_run(run.path, tmp_path / "new", "yolo", val_share=0.5, images="none")
    assert not (tmp_path / "new" / "images").exists()


def test_yolo_of_a_source_of_ones_own_needs_images_none(make_run, tmp_path):
    run = make_run()
    manifest = json.loads((run.path / "manifest.json").read_bytes())
    (run.path / "manifest.json").write_text(json.dumps({**manifest, "root": None, "kind": None}))
    with pytest.raises(ConfigError, match=r"images 'copy' needs the folder .* give --images none"):
        export_run(run.path, tmp_path / "yolo", "yolo")
    export_run(run.path, tmp_path / "yolo", "yolo", images="none", val_share=0.5)


def test_labelme_and_voc_know_the_images_of_the_run(make_run, tmp_path):
    run = make_run()
    path = tmp_path / "images" / "a.png"
    path.write_bytes(b"pixels")
    export_run(run.path, tmp_path / "out", "labelme")
    document = json.loads((tmp_path / "out" / "a.json").read_bytes())
    assert document["imagePath"] == "../images/a.png", "none is copied unless told"
    with pytest.raises(ImageError, match=r"ü\.png: the image is not in"):
        export_run(run.path, tmp_path / "voc", "voc", images="link")
    assert os.path.samefile(path, tmp_path / "voc" / "JPEGImages" / "a.png")
    manifest = json.loads((run.path / "manifest.json").read_bytes())
    (run.path / "manifest.json").write_text(json.dumps({**manifest, "root": None, "kind": None}))
    export_run(run.path, tmp_path / "out", "labelme")
    document = json.loads((tmp_path / "out" / "a.json").read_bytes())
    assert document["imagePath"] == "a.png"


def test_a_run_can_be_exported_while_it_is_at_work(make_run, tmp_path):
    run = make_run()
    data = run.journal.read_bytes()
    run.journal.write_bytes(data[: -len(data.splitlines()[-1]) // 2])
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    summary = export_run(run.path, tmp_path / "coco.json")
    assert (summary.listed, summary.done + summary.empty + summary.failed) == (4, 3)
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before, "it is only read"


def test_lines_that_are_passed_over_are_counted_and_if_that_is_all_it_fails(make_run, tmp_path):
    run = make_run()
    lines = run.journal.read_bytes().splitlines(keepends=True)
    run.journal.write_bytes(b"".join((b"?" + lines[0], lines[1], b"\n", lines[2], b"torn")))
    with pytest.warns(UserWarning, match=r"jsonl: 2 of its lines can't be read, .*passed over"):
        summary = export_run(run.path, tmp_path / "out.json")
    assert (summary.listed, summary.done + summary.empty + summary.failed) == (4, 2)
    for damaged in (
        b"".join(lines).decode().encode("utf-16"),
        b"".join(lines).replace(b"\n", b"\r"),
        b"?" + b"?".join(lines),
    ):
        run.journal.write_bytes(damaged)
        with pytest.raises(RunError, match="no line of this journal can be read, so there is"):
            export_run(run.path, tmp_path / "none.json")
        assert not (tmp_path / "none.json").exists()
    assert run.journal.read_bytes() == damaged, "an export only reads"


def test_what_export_can_not_do_is_refused(make_run, tmp_path):
    run = make_run()
    for exporter, options, message in (
        ("pascal", {}, "no format is called 'pascal'; choose one of coco, results"),
        ("yolo", {"polygons": True}, "polygons is for the format coco or cvat, not yolo"),
        ("png", {"merge": tmp_path / "x"}, "the option merge is for the format coco"),
        (
            "png",
            {"tolerance": 2.0},
            "tolerance is for the format coco or yolo or labelstudio or cvat or labelme",
        ),
        ("cvat", {"tolerance": 2.0}, "the tolerance 2 is for polygons; give --polygons"),
        ("coco", {"tolerance": 2.0}, "the tolerance 2 is for polygons; give --polygons"),
        ("coco", {"polygons": True, "tolerance": -2.0}, "must be 0 pixels or more, but got -2.0"),
        ("coco", {"image_prefix": "x"}, "image_prefix is for the format labelstudio"),
        ("png", {"images": "copy"}, "images is for the format yolo or labelme or voc, not png"),
        ("coco", {"val_share": 0.2}, "val_share is for the format yolo or voc, not coco"),
        (CocoExporter(), {"polygons": True}, "polygons: an exporter object has its options"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_run(run.path, tmp_path / "x", exporter, **options)
    for name in ("manifest.json", "journal-0001.jsonl", "lock"):
        with pytest.raises(ConfigError, match="is the run's own file; give another output"):
            export_run(run.path, run.path / name)
    with pytest.raises(ConfigError, match="lies where images are read"):
        export_run(run.path, tmp_path / "images" / "coco.json")
    with pytest.raises(RunError, match="expected the output folder of 'clip2sam label', but its"):
        export_run(tmp_path / "nowhere", tmp_path / "x")
    (run.path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(RunError, match="begun by an older version of clip2sam"):
        export_run(run.path, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_an_export_needs_neither_torch_nor_matplotlib(make_run, tmp_path):
    run = make_run()
    code = (
        "import sys; from clip2sam.labelling.export import export_run; "
        "export_run(sys.argv[1], sys.argv[2]); "
        "print([m for m in ('torch', 'matplotlib', 'open_clip') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, run.path, tmp_path / "coco.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr
    assert (tmp_path / "coco.json").exists()
