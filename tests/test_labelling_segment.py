"""A few images into one COCO file: the same records, ids and scores as a run's."""

import json

import pytest
import torch

from clip2sam.data.labels import as_label_set
from clip2sam.data.sources import find_source
from clip2sam.errors import ConfigError, ImageError, RunError
from clip2sam.labelling.run import label_dataset
from clip2sam.labelling.segment import segment_images
from tests.labelling_fakes import small_segmenter, write_images

LABELS = as_label_set(["cat", "dog"])


@pytest.fixture(scope="module")
def segmenter():
    return small_segmenter()


@pytest.fixture
def images(tmp_path):
    """Four good images and a bad one."""
    folder = write_images(tmp_path / "in", 3)
    write_images(folder / "sub", 1)
    (folder / "001-bad.png").write_bytes(b"not an image")
    return folder


def test_the_file_is_that_of_a_run(segmenter, images, tmp_path):
    records = segment_images(segmenter, images, LABELS, tmp_path / "out", overlays="none")
    label_dataset(images, LABELS, tmp_path / "run", segmenter=segmenter)
    files = (tmp_path / "out" / "annotations.json", tmp_path / "run" / "annotations.json")
    written, of_run = (json.loads(file.read_bytes()) for file in files)
    info = written.pop("info")
    assert (info["masks"], info["masks"]) == ("one for each object", of_run.pop("info")["masks"])
    assert written == of_run
    assert [(r.image_id, r.file_name, r.state == "failed") for r in records] == [
        (1, "000.png", False),
        (2, "001-bad.png", True),
        (3, "001.png", False),
        (4, "002.png", False),
        (5, "sub/000.png", False),
    ]
    assert records[1].reason.startswith("001-bad.png: expected an image")
    assert written["annotations"]
    assert not (tmp_path / "out" / "overlays").exists()


def test_those_who_watch_get_record_result_and_drawings(segmenter, images, tmp_path):
    seen, out = [], tmp_path / "out"
    (images / "001.png").unlink()
    (images / "002.png").unlink()
    records = segment_images(
        segmenter,
        find_source(images),
        LABELS,
        out,
        overlays="all",
        polygons=True,
        preset="small",
        on_image=lambda *one: seen.append(one),
    )
    assert [record for record, _, _ in seen] == records
    for record, result, drawn in seen:
        if record.state == "failed":
            assert (result, drawn) == (None, ())
            continue
        assert result.record == record
        assert len({*result.labels, *(a.label for a in result.absent)}) == 2
        stem = out / "overlays" / record.file_name
        names = ["00-all"] * bool(result.labels) + ["01-cat", "02-dog"]
        assert drawn == tuple(stem.with_name(f"{stem.name}.{n}.png") for n in names)
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    document = json.loads((out / "annotations.json").read_text())
    assert all(isinstance(a["segmentation"], list) for a in document["annotations"])
    info = document["info"]
    assert (info["preset"], info["method"]) == ("small", "surgery")
    assert info["date_created"] == "2023-11-14T22:13:20Z"
    assert info["prompts"] == {"cat": ["cat"], "dog": ["dog"]}
    limit = segmenter.config.presence_threshold
    assert info["presence_thresholds"] == {"cat": limit, "dog": limit}


def test_an_interruption_leaves_what_was_done(segmenter, images, tmp_path):
    def interrupt(record, result, drawn):
        if record.file_name == "001.png":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_images(
            segmenter, images, LABELS, tmp_path / "out", overlays="none", on_image=interrupt
        )
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [i["file_name"] for i in document["images"]] == ["000.png", "001.png"]


def test_what_is_read_is_never_written_to(segmenter, images):
    before = sorted(images.rglob("*"))
    for place in (images, images / "sub"):
        with pytest.raises(ConfigError, match="which is never written to; give one elsewhere"):
            segment_images(segmenter, images, LABELS, place)
    with pytest.raises(ConfigError, match="which is never written to; give one elsewhere"):
        segment_images(segmenter, [images / "000.png"], LABELS, images)
    with pytest.raises(ImageError, match="no such file or folder"):
        segment_images(segmenter, images / "gone", LABELS, images.parent / "out")
    assert sorted(images.rglob("*")) == before
    assert not (images.parent / "out").exists()


def test_a_name_that_coco_cannot_hold_costs_its_image(segmenter, images, tmp_path):
    (images / "a\\b.png").write_bytes((images / "000.png").read_bytes())
    records = segment_images(
        segmenter, f"{images}/*b.png", LABELS, tmp_path / "out", overlays="none"
    )
    assert [r.state for r in records] == ["failed"]
    assert records[0].reason.startswith("a%5Cb.png: expected a POSIX path")


def failing(segmenter, monkeypatch, fail, *names):
    """The models fail on the images of these names; of all, if there are none."""
    real = segmenter.predict

    def predict(features, labels):
        prediction = real(features, labels)
        if not names or features.images[0].origin in names:
            fail(prediction)
        return prediction

    monkeypatch.setattr(segmenter, "predict", predict)


def overflow(prediction):
    prediction.maps.raw[:] = torch.nan


def no_memory(prediction):
    raise MemoryError


def device_lost(prediction):
    raise RuntimeError("device lost")


@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (overflow, "001.png: CLIP's similarity maps have values that are not finite"),
        (
            no_memory,
            "memory ran out on this image alone; make it smaller, or free memory and start",
        ),
        (device_lost, "the model failed on this image (RuntimeError: device lost); leave it out"),
    ],
)
def test_a_failure_of_the_model_costs_its_image(images, tmp_path, monkeypatch, fail, reason):
    segmenter = small_segmenter()
    failing(segmenter, monkeypatch, fail, "001.png")
    records = segment_images(segmenter, images, LABELS, tmp_path / "out", overlays="none")
    assert [r.file_name for r in records if r.state == "failed"] == ["001-bad.png", "001.png"]
    assert records[2].reason.startswith(reason)
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [i["file_name"] for i in document["images"]] == ["000.png", "002.png", "sub/000.png"]


def test_memory_that_runs_out_once_is_tried_again(images, tmp_path, monkeypatch):
    segmenter, calls = small_segmenter(), []

    def once(prediction):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError

    failing(segmenter, monkeypatch, once, "001.png")
    records = segment_images(segmenter, images, LABELS, tmp_path / "out", overlays="none")
    assert [r.file_name for r in records if r.state == "failed"] == ["001-bad.png"]


def test_a_model_that_fails_on_several_in_a_row_ends_it(images, tmp_path, monkeypatch):
    """An image that can't be read says nothing of the model. What was done is written."""
    write_images(images, 1, first=3)
    segmenter, seen = small_segmenter(), []
    failing(segmenter, monkeypatch, overflow, "001.png", "002.png", "003.png")
    (images / "002-bad.png").write_bytes(b"not an image")
    with pytest.raises(RunError, match=r"failed on 3 images in a row.*003\.png.*then start again$"):
        segment_images(
            segmenter,
            images,
            LABELS,
            tmp_path / "out",
            overlays="none",
            on_image=lambda record, *_: seen.append(record.file_name),
        )
    assert seen[-1] == "003.png"
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [i["file_name"] for i in document["images"]] == ["000.png"]


def test_a_good_image_in_between_is_no_row(images, tmp_path, monkeypatch):
    write_images(images, 3, first=3)
    segmenter = small_segmenter()
    failing(segmenter, monkeypatch, overflow, "000.png", "001.png", "003.png", "004.png")
    records = segment_images(segmenter, images, LABELS, tmp_path / "out", overlays="none")
    assert len(records) == 8


def test_settings_that_do_not_fit_are_no_fault_of_an_image(images, tmp_path, monkeypatch):
    def refuse(prediction):
        raise ConfigError("a setting")

    segmenter = small_segmenter()
    failing(segmenter, monkeypatch, refuse)
    with pytest.raises(ConfigError, match="a setting"):
        segment_images(segmenter, images, LABELS, tmp_path / "out", overlays="none")
