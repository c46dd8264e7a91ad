"""A person's decisions: lines of the journal that nothing but another decision replaces."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from clip2sam.coco.rle import encode_mask
from clip2sam.data.records import Annotation, ImageRecord, Review, record_from_row, record_to_row
from clip2sam.errors import CocoError, ConfigError, ImageError, RunError, RunLockedError
from clip2sam.labelling.decide import Decision, decide
from clip2sam.labelling.export import export_run
from clip2sam.labelling.journal import Journal, Stamp, read_index, read_records
from clip2sam.labelling.merge import merge_run
from clip2sam.labelling.reviewing import open_review
from clip2sam.labelling.run import label_dataset
from tests.labelling_fakes import Threshold, write_images

CLASSES = Threshold.classes


@pytest.fixture
def images(tmp_path):
    folder = write_images(tmp_path / "in", 4)
    (folder / "zzz.png").write_bytes(b"no image")
    return folder


def label(images, run, **settings):
    return label_dataset(images, CLASSES, run, engine=Threshold(threshold=0.49), **settings)


@pytest.fixture
def run(images, tmp_path):
    """Four images and one that failed, labelled."""
    label(images, tmp_path / "run")
    return tmp_path / "run"


def exported(run, **decision):
    """By image id the annotations that `export` writes, and its summary."""
    output = run.parent / "exported.json"
    summary = export_run(run, output, decision=Decision(**decision))
    document = json.loads(output.read_text())
    names = {c["id"]: c["name"] for c in document["categories"]}
    found = {image["id"]: [] for image in document["images"]}
    for a in document["annotations"]:
        found[a["image_id"]].append((names[a["category_id"]], a["segmentation"]["counts"]))
    verdicts = {i["id"]: i["review"] for i in document["images"] if "review" in i}
    return found, summary, verdicts


def corner(size, label="blue", score=0.25):
    mask = np.zeros(size, bool)
    mask[:3, :5] = True
    return Annotation(label, encode_mask(mask), score)


def rows(annotations):
    return [(a.label, a.rle["counts"]) for a in annotations]


def test_export_has_what_was_decided_whatever_the_thresholds(run):
    before, summary, _ = exported(run)
    assert (summary.rejected, summary.reviewed) == (0, 0)
    with open_review(run, by="Ana") as review:
        seen = review.write(1, "accepted")
        drawn = [corner(review.record(2).size), corner(review.record(2).size, "red", 0.1)]
        corrected = review.write(2, "corrected", drawn)
        review.write(3, "rejected")
        emptied = review.write(4, "corrected", [])
        assert corrected == review.record(2)
        assert seen.review == Review("accepted", "Ana", seen.review.at)
    assert seen.review.at.endswith("Z")
    assert emptied.state == "empty"

    found, summary, verdicts = exported(run, presence_threshold=0.99, min_score=0.9, min_area=99)
    assert found == {1: before[1], 2: rows(reversed(drawn)), 4: []}  # in the order of the classes
    assert verdicts == {1: "accepted", 2: "corrected", 4: "corrected"}
    assert (summary.done, summary.empty, summary.failed, summary.rejected) == (2, 1, 1, 1)
    assert (summary.listed, summary.reviewed) == (5, 4)
    assert exported(run, classes=("red",))[0][2] == rows(drawn[1:])


def test_no_start_of_the_run_replaces_a_decision(images, run):
    with open_review(run) as review:
        proposed = review.record(2)
        drawn = [corner(proposed.size)]
        review.write(2, "corrected", drawn)
        review.write(5, "corrected", [corner((9, 9))], size=(9, 9))  # the one that failed
    os.utime(images / "001.png")  # its time only: another line of the same decision
    engine = Threshold(threshold=0.49)
    label_dataset(images, CLASSES, run, engine=engine, retry_failed=True)
    assert engine.seen == []
    assert (run / "journal-0001.jsonl").read_text().count('"review":"corrected"') == 3
    assert exported(run)[0][2] == rows(drawn)
    assert exported(run)[0][5] == rows([corner((9, 9))])
    published = json.loads((run / "annotations.json").read_text())
    assert [i["id"] for i in published["images"] if "review" in i] == [2, 5]
    with open_review(run) as review:
        assert rows(review.proposed(2).annotations) == rows(proposed.annotations)
        assert review.proposed(5).state == "failed"


def test_a_decision_about_a_changed_image_counts_no_longer_and_is_said(images, run):
    with open_review(run) as review:
        review.write(1, "rejected")
    lines = (run / "journal-0001.jsonl").read_bytes()
    write_images(images, 1, side=40)
    with open_review(run) as review, pytest.raises(ImageError, match=r"000\.png: changed since"):
        review.image(1)
    reviewed = pytest.warns(UserWarning, match="1 images that were reviewed have changed: 000.png")
    with reviewed, pytest.warns(UserWarning, match="1 images were changed since they"):
        label(images, run)
    assert 1 in exported(run)[0]
    assert (run / "journal-0001.jsonl").read_bytes().startswith(lines)


@pytest.mark.parametrize(
    ("then", "now", "stays"),
    [
        (Stamp(5, 7), Stamp(5, 7), True),
        (Stamp(5, 7), Stamp(5, 8), False),
        (Stamp(5, 7, "a" * 64), Stamp(5, 8, "a" * 64), True),
        (Stamp(5, 7, "a" * 64), Stamp(5, 7, "b" * 64), False),
        (None, None, True),
        (Stamp(5, 7), None, True),
    ],
)
def test_a_model_replaces_a_decision_if_the_file_is_another_one(tmp_path, then, now, stays):
    path, size = tmp_path / "journal", (8, 8)
    found = ImageRecord(
        1, "a.png", size, annotations=(corner(size),), presence=(0.5,), beaten=(False,)
    )
    decided = replace(found, annotations=(), state="empty", review=Review("corrected"))
    for journal_of in (lambda: Journal(path, [1], ["blue"]), lambda: None):
        journal = journal_of()
        if journal is not None:
            for record, stamp in ((found, then), (decided, then), (found, now)):
                journal.append(record, stamp)
            indexes = [journal.index]
            journal.close()
        indexes.append(read_index(path, [1]))
    for index in indexes:
        (record,) = read_records(path, index, [1], ["blue"])
        assert record == (decided if stays else found)
        assert index.stamps.get(1) == (then if stays else now)
        assert list(index.proposed) == ([1] if stays else [])


def test_a_decision_is_on_the_disk_before_the_next_one(run, monkeypatch):
    synced = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (synced.append(file), real(file)))
    with open_review(run) as review:
        for image_id, verdict in ((1, "rejected"), (2, "accepted"), (1, "accepted")):
            before = len(synced)
            review.write(image_id, verdict)
            assert len(synced) > before
            # what another process would find if this one were killed now
            index = read_index(run / "journal-0001.jsonl", range(1, 6))
            (record,) = read_records(
                run / "journal-0001.jsonl", index, [image_id], review.run.class_names
            )
            assert record.review.verdict == verdict


def test_one_at_a_time(images, run):
    with open_review(run) as review:
        with pytest.raises(RunLockedError):
            open_review(run)
        with pytest.raises(RunLockedError):
            label(images, run)
        review.write(1, "accepted")
    label(images, run)


def test_the_shards_of_a_run_are_reviewed_together(images, run, tmp_path):
    shards = tmp_path / "shards"
    for number in (1, 2, 3):
        label(images, shards, shard=f"{number}/3")
    for folder in (run, shards):
        with open_review(folder) as review:
            assert review.ids == (1, 2, 3, 4, 5)
            assert [r.image_id for r in review.records()] == [1, 2, 3, 4, 5]
            assert review.image(4).size == review.record(4).size
            review.write(1, "rejected")
            review.write(4, "corrected", [corner(review.record(4).size)])
            with pytest.raises(RunLockedError):
                label(images, shards, shard="1/3") if folder == shards else label(images, folder)
    label(images, run)
    merge_run(shards)
    merged, whole = ((f / "annotations.json").read_bytes() for f in (shards, run))
    assert merged == whole
    assert b'"review":"corrected"' in merged


def test_what_does_not_fit_is_refused_and_nothing_is_written(run):
    journal = run / "journal-0001.jsonl"
    before = journal.read_bytes()
    with open_review(run) as review:
        size = review.record(1).size
        with pytest.raises(ConfigError, match=r"one of accepted, corrected, rejected, but got 'ok"):
            review.write(1, "ok")
        with pytest.raises(ConfigError, match=r"000\.png: a correction needs the annotations"):
            review.write(1, "corrected")
        with pytest.raises(ConfigError, match=r"zzz\.png: this image failed.* to be accepted"):
            review.write(5, "accepted")
        with pytest.raises(CocoError, match="expected one of the labels"):
            review.write(1, "corrected", [corner(size, "purple")])
        with pytest.raises(CocoError, match=r"expected a mask of the image's \[height, width\]"):
            review.write(1, "corrected", [corner((9, 9))])
        with pytest.raises(RunError, match="expected the id of an image that was labelled, got 77"):
            review.write(77, "accepted")
    assert journal.read_bytes() == before
    with pytest.raises(RunError), open_review(run.parent / "in"):
        pass
    assert not (run.parent / "in" / "lock").exists()


def test_a_rejected_image_keeps_its_masks_to_look_at_and_overlaps_are_cut(run):
    with open_review(run) as review:
        kept = review.kept(review.record(1))
        rejected = review.write(1, "rejected")
        assert rejected.annotations == kept != ()
        assert review.record(1).is_rejected
    size = (8, 8)
    two = (corner(size, "red", 0.2), corner(size, "blue", 0.9))
    record = ImageRecord(
        1, "a", size, annotations=two, presence=(0.0,) * 3, review=Review("accepted")
    )
    cut = decide(record, Decision(overlap="score", min_area=99), CLASSES, (0.5,) * 3)
    assert rows(cut.annotations) == rows(two[1:])


def test_a_record_goes_through_json_with_its_review():
    record = ImageRecord(3, "a", (8, 8), review=Review("rejected", "Zoë", "2026-01-01T00:00:00Z"))
    row = json.loads(json.dumps(record_to_row(record, CLASSES)))
    assert record_from_row(row, CLASSES) == record
