"""FiftyOne's labels of records; with FiftyOne and its database, its `apply_model` and datasets.

The latter are run by hand, where FiftyOne is installed, as `pytest -W default tests/...`: its own
packages warn.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

import clip2sam
from clip2sam import fiftyone as ours
from clip2sam.coco.rle import encode_mask
from clip2sam.data.images import load_image
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.data.sources import FileSource
from clip2sam.errors import ConfigError, ImageError, ModelError
from clip2sam.fiftyone import (
    SegmenterModel,
    cut_to_box,
    detection_row,
    keypoint_rows,
    load_dataset,
    presence_rows,
)
from clip2sam.labelling.decide import Decision
from clip2sam.labelling.reviewing import open_review
from clip2sam.labelling.run import label_dataset
from clip2sam.tiny.scenes import scene
from tests.review_runs import HTML, box, found, make_run, record

LABELS = ("orange star", "pink arrow", "red ring")


class Elsewhere(FileSource):
    """Of no kind that is known by its name."""


@given(st.data())
def test_a_box_has_its_pixels_for_who_takes_whole_parts(data):
    (width, left), (height, top) = (
        data.draw(st.tuples(st.integers(1, 300), st.integers(0, 299)).filter(lambda p: p[1] < p[0]))
        for _ in range(2)
    )
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    whole = np.zeros((height, width), bool)
    whole[top, left] = whole[bottom - 1, right - 1] = True
    (x, y, wide, high), mask = cut_to_box(encode_mask(whole))
    assert [int(width * x), int(width * (x + wide))] == [left, right]
    assert [int(height * y), int(height * (y + high))] == [top, bottom]
    assert x + wide <= 1
    assert y + high <= 1
    assert np.array_equal(mask, whole[top:bottom, left:right])


def test_a_mask_as_a_detection_and_its_prompt_as_keypoints():
    one = found("cat", box(6, 10, 30, 20), 0.75, 0.5)  # of 40 x 60 pixels
    row = detection_row(one, 3, 0.25)
    assert row.pop("mask").all()
    assert row.pop("bounding_box") == pytest.approx([0.1, 0.25, 0.5, 0.5], abs=1e-6)
    assert row == {
        "label": "cat",
        "confidence": 0.75,
        "index": 3,
        "share": 0.5,
        "presence": 0.25,
        "prompt": [[1.5, 3.0, 1.0], [30.0, 3.0, 0.0]],
    }
    common = {"label": "cat", "index": 3}
    assert keypoint_rows(one, 3) == [
        {**common, "points": [(1.5 / 60, 3 / 40)], "kind": "positive"},
        {**common, "points": [(0.5, 3 / 40)], "kind": "negative"},
    ]
    corners = Annotation("cat", one.rle, 0.5, ((0.0, 0.0, 2), (60.0, 40.0, 3)))
    assert keypoint_rows(corners, 1) == [
        {"label": "cat", "index": 1, "points": [(0.0, 0.0), (1.0, 1.0)], "kind": "box"}
    ]


def test_presence_of_every_class_that_is_not_left_out():
    one = record(1, "a.png", (0.5, None, 0.75, 0.9), beaten=(False, False, True, False))
    rows = presence_rows(one, ("a", "b", "c", "d"), (0.5, None, 0.25, float("inf")))
    keys = ("label", "confidence", "present", "beaten", "threshold")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("a", 0.5, True, False, 0.5),
        ("b", None, False, False, None),
        ("c", 0.75, False, True, 0.25),
    ]


def test_without_fiftyone_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(ours, "fo", None)
    text = r"needs the package fiftyone: pip install 'clip2sam\[fiftyone\]'"
    with pytest.raises(ConfigError, match=text):
        load_dataset(tmp_path)
    with pytest.raises(ConfigError, match=text):
        SegmenterModel(clip2sam.load("tiny"), LABELS)


# -- with FiftyOne


@pytest.fixture
def fo(monkeypatch):
    """FiftyOne; the datasets that a test makes are deleted."""
    package = pytest.importorskip("fiftyone")
    before = set(package.list_datasets())
    yield package
    for name in set(package.list_datasets()) - before:
        package.delete_dataset(name)


def whole_mask(detection, size):
    height, width = size
    drawn = detection.to_segmentation(frame_size=(width, height), target=1)
    return drawn.mask.astype(bool)


@pytest.fixture
def images(tmp_path):
    """Four images of different sizes: the second is turned by its EXIF data, the third is cut."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        pixels = scene(7, (200 + 8 * i, 230), objects=(2, 4)).pixels
        exif = PILImage.Exif()
        exif[0x0112] = 6 if i == 1 else 1
        PILImage.fromarray(pixels).save(folder / f"{i}.png", exif=exif)
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:900])
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_apply_model_gives_what_the_segmenter_finds(fo, images, caplog, workers):
    segmenter = clip2sam.load("tiny")
    dataset = fo.Dataset.from_dir(dataset_dir=str(images), dataset_type=fo.types.ImageDirectory)
    model = SegmenterModel(segmenter, LABELS)
    dataset.apply_model(model, label_field="found", batch_size=3, num_workers=workers)
    failed = {s.filepath[-5:] for s in dataset.exists("found", False)}
    assert failed == {"2.png"}
    assert "no labels: " in caplog.text
    assert "2.png: the image is cut or damaged" in caplog.text
    masks = 0
    for sample in dataset.exists("found"):
        image = load_image(sample.filepath)
        result = segmenter(image, LABELS)
        detections = sample.found.detections
        assert [d.label for d in detections] == result.labels
        assert [d.confidence for d in detections] == pytest.approx(result.scores.tolist())
        for detection, mask in zip(detections, result.masks, strict=True):
            assert np.array_equal(whole_mask(detection, image.size), mask)
            masks += 1
    assert masks >= 3
    dataset.apply_model(model, label_field="sure", classes=LABELS[:1], confidence_thresh=0.5)
    assert set(dataset.values("sure.detections.label", unwind=True)) == {LABELS[0]}


def test_a_failure_of_the_model_costs_its_image(fo, caplog, monkeypatch):
    segmenter = clip2sam.load("tiny")
    segment = segmenter.segment

    def failing(features, labels):
        if any(image.size == (64, 64) for image in features.images):
            raise ModelError("its maps are not finite")
        return segment(features, labels)

    monkeypatch.setattr(segmenter, "segment", failing)
    pixels = [scene(7, size, objects=(2, 4)).pixels for size in (224, 64, 224)]
    model = SegmenterModel(segmenter, LABELS)
    first, second, third = model.predict_all(pixels)
    assert second is None
    assert len(first.detections) == len(third.detections) > 0
    assert "no labels: array: its maps are not finite" in caplog.text
    assert model.predict(np.zeros((224, 224, 3), np.uint8)).detections == []


def test_a_run_as_a_dataset(fo, tmp_path):
    records = (
        record(
            7,
            "a.png",
            (0.52, 0.29),
            found("cat", box(0, 0, 31, 20)),
            found("cat", box(30, 20, 30, 20), 0.25, 0.1),  # weak beside the first
            found(HTML, box(6, 6, 12, 12), 0.75),  # its presence is below the threshold
        ),
        record(3, "sub/b.png", (None, 0.9), beaten=(False, True)),
        ImageRecord(4, "c.png", state="failed", reason="c.png: it is cut"),
    )
    run = make_run(tmp_path, records)
    dataset = load_dataset(run)
    assert dataset.values("filepath") == [
        str(tmp_path / "images" / name) for name in ("a.png", "sub/b.png", "c.png")
    ]
    assert dataset.values("state") == ["done", "empty", "failed"]
    assert dataset.values("tags") == [[], [], ["failed"]]
    assert dataset.values("reason") == [None, None, "c.png: it is cut"]
    assert dataset.values("image_id") == [7, 3, 4]
    assert dataset.values("clip2sam.detections.label") == [["cat"], [], None]
    assert dataset.values("absent") == [[HTML], ["cat", HTML], None]
    assert dataset.values("presence.classifications.present") == [[True, False], [False] * 2, None]
    assert dataset.values("metadata.width") == [60, 60, None]
    first = dataset.first()
    assert np.array_equal(whole_mask(first.clip2sam.detections[0], (40, 60)), box(0, 0, 31, 20))
    assert [k.kind for k in first.prompts.keypoints] == ["positive", "negative"]
    assert dataset.default_classes == ["cat", HTML]
    assert dataset.info["preset"] == "by hand"
    assert dataset.filter_labels("clip2sam", fo.ViewField("share") == 1).count() == 1

    with open_review(run) as review:
        review.write(7, "rejected")
        review.write(3, "accepted")
    assert load_dataset(run).values("tags") == [["rejected"], ["accepted"], ["failed"]]

    (tmp_path / "again").mkdir()
    run = make_run(tmp_path / "again", records)
    more = load_dataset(run, decision=Decision(min_share=0.0, classes=("cat",)))
    assert more.values("clip2sam.detections.confidence")[0] == [0.9, 0.25]
    assert more.values("absent") == [[], ["cat"], None]


def test_a_run_in_shards(fo, images, tmp_path):
    run = tmp_path / "run"
    for number in (1, 2):
        label_dataset(images, LABELS, run, preset="tiny", shard=f"{number}/2")
    whole = label_dataset(images, LABELS, tmp_path / "whole", preset="tiny")
    dataset, other = load_dataset(run), load_dataset(tmp_path / "whole")
    assert dataset.count("clip2sam.detections") == sum(c.masks for c in whole.classes) > 0
    for field in ("filepath", "state", "clip2sam.detections.confidence"):
        assert sorted(map(str, dataset.values(field))) == sorted(map(str, other.values(field)))


def test_a_dataset_is_whole_or_not_there(fo, tmp_path):
    before = fo.list_datasets()
    run = make_run(tmp_path, [record(1, "a.png", (0.5, 0.5), found("cat", box(0, 0, 9, 9)))])
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace("a.png", "b.png"))
    with pytest.raises(clip2sam.RunError, match="belong to different runs"):
        load_dataset(run)
    assert fo.list_datasets() == before


def test_a_name_that_is_not_utf8(fo, tmp_path):
    before = fo.list_datasets()
    run = make_run(tmp_path, [record(1, "\udcff.png", (0.5, 0.5))])
    with pytest.raises(ImageError, match=r"^%FF\.png: this name is not UTF-8"):
        load_dataset(run)
    assert fo.list_datasets() == before


def test_images_that_are_no_files(fo, tmp_path):
    source = Elsewhere(str(tmp_path), str(tmp_path), ("a.png",), (1,))
    run = make_run(tmp_path, [record(1, "a.png", (0.5, 0.5))], source=source)
    with pytest.raises(ConfigError, match="come from an object of your own, but FiftyOne opens"):
        load_dataset(run)


def test_lines_that_cannot_be_read_are_counted(fo, tmp_path):
    run = make_run(tmp_path, [record(n, f"{n}.png", (0.5, 0.5)) for n in (1, 2)])
    journal = run / "journal-0001.jsonl"
    journal.write_text(journal.read_text().replace("1.png", "9.png"))
    with pytest.warns(UserWarning, match="1 of its lines can't be read"):
        dataset = load_dataset(run)
    assert dataset.values("image_id") == [2]
