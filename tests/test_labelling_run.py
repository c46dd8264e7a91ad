"""Whole runs on small models: begun, stopped, killed, continued, refused, published."""

import errno
import json
import os
import random
import re
import stat
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from functools import partial
from inspect import unwrap

import pytest
import torch
from filelock import FileLock

from clip2sam.clip.methods import CLIP_SURGERY, Method
from clip2sam.coco.document import coco_document
from clip2sam.coco.validate import validate
from clip2sam.coco.write import write_coco
from clip2sam.config import Config
from clip2sam.data.images import load_image
from clip2sam.data.labels import LabelClass, LabelSet, as_label_set, named
from clip2sam.data.sources import find_source
from clip2sam.errors import ConfigError, ImageError, OutputError, RunError, RunLockedError
from clip2sam.export.coco import CocoExporter
from clip2sam.kernels.device import IMAGES_PER_BATCH
from clip2sam.kernels.tensors import state_sha256
from clip2sam.labelling.changes import StartCounts
from clip2sam.labelling.decide import Decision
from clip2sam.labelling.decode_worker import DecodeWorker
from clip2sam.labelling.engine import SegmenterEngine
from clip2sam.labelling.export import export_run
from clip2sam.labelling.fingerprint import check_same, plain
from clip2sam.labelling.info import run_info
from clip2sam.labelling.lock import lock_run
from clip2sam.labelling.manifest import begin_run, open_run
from clip2sam.labelling.run import label_dataset, label_dataset_iter
from clip2sam.models.presets import PRESETS
from clip2sam.pipeline import Segmenter
from clip2sam.regions import Regions
from tests import labelling_worker
from tests.labelling_fakes import Threshold, small_segmenter, threads_named, write_images

LABELS = ["cat", "dog"]
BAD = {
    "cut.png": "cut or damaged",
    "text.jpg": "found text",
    "empty.gif": "is empty",
    "pipe.png": "found a pipe",
}


@pytest.fixture(scope="module")
def segmenter():
    return small_segmenter()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twelve good images, two of them of one name, and four bad ones."""
    folder = write_images(tmp_path_factory.mktemp("run") / "in", 11)
    write_images(folder / "sub", 1)
    (folder / "cut.png").write_bytes((folder / "000.png").read_bytes()[:900])
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.gif").write_bytes(b"")
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.fixture(scope="module")
def finished(segmenter, images, tmp_path_factory):
    """A run without any trouble, in decode workers: its folder and its summary."""
    output = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clip2sam.labelling.run.DecodeWorker", DecodeWorker)
        return output, label_dataset(images, LABELS, output, segmenter=segmenter)


def same_files(one, other):
    return all(
        (one / name).read_bytes() == (other / name).read_bytes()
        for name in ("annotations.json", "results.json")
    )


def test_a_run_is_published_whole(finished):
    output, summary = finished
    assert (summary.listed, summary.done + summary.empty, summary.failed) == (16, 12, 4)
    assert summary.done >= 3
    assert {f["file_name"]: f["reason"] for f in summary.failures}.keys() == BAD.keys()
    for failure in summary.failures:
        assert failure["reason"].startswith(failure["file_name"] + ": ")
        assert BAD[failure["file_name"]] in failure["reason"]
    document = json.loads((output / "annotations.json").read_text())
    assert validate(output / "annotations.json") == []
    assert validate(output / "results.json", output / "annotations.json") == []
    names = [i["file_name"] for i in document["images"]]
    assert names == sorted(names)
    assert len(names) == 12
    assert [i["id"] for i in document["images"]] == [*range(1, 12), 15], "places in the source"
    assert (output / "presence.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((output / "summary.json").read_text())
    assert (written["listed"], written["labelled_now"]) == (16, 16)
    assert written["masks_are"] == document["info"]["masks"] == "one for each object"
    assert {"images_per_second", "waited_for_images", "waited_for_writer"} <= written.keys()
    assert sum(n for n in written["classes"][0]["histogram"].values()) == 12
    assert sum(c["masks"] for c in written["classes"]) == len(document["annotations"])
    hidden = [p.name for p in output.iterdir() if p.name.startswith(".")]
    assert not hidden, "temporary files are gone"
    assert not threads_named("reader", "writer")


def test_the_file_is_what_the_segmenter_makes_one_by_one(segmenter, tmp_path):
    good = write_images(tmp_path / "in", 6)
    label_dataset(good, LABELS, tmp_path / "run", segmenter=segmenter, batch_size=3)
    results = [segmenter(path, LABELS) for path in sorted(good.iterdir())]
    records = [replace(r.record, image_id=i) for i, r in enumerate(results, 1)]
    info = run_info(open_run(tmp_path / "run"))
    wanted = results[0].label_set.wanted
    write_coco(tmp_path / "expected.json", coco_document(records, wanted, info=info))
    expected = (tmp_path / "expected.json").read_bytes()
    assert (tmp_path / "run" / "annotations.json").read_bytes() == expected


def test_the_engine_gives_the_same_whatever_comes_along(images):
    """In groups, as on a GPU: the same record to the last bit in any company."""
    engine = SegmenterEngine(small_segmenter(), as_label_set(LABELS))
    assert engine.group == 1, "on a CPU each image is encoded alone"
    engine.group = IMAGES_PER_BATCH
    loaded = [load_image(images / f"{i:03d}.png") for i in range(6)]

    def outcomes(which):
        predictions = engine.predict([engine.prepare(loaded[i]) for i in which])
        return [engine.finish(loaded[i], p) for i, p in zip(which, predictions, strict=True)]

    together = outcomes(range(6))
    assert outcomes([5, 2]) == [together[5], together[2]]
    assert any(annotations for _, _, annotations in together)


@pytest.mark.parametrize(
    ("batch_size", "readers", "stops"), [(1, 1, [1, 0, 5]), (5, 3, [4]), (16, 2, [])]
)
def test_the_files_do_not_depend_on_batches_threads_or_stops(
    request, segmenter, images, finished, tmp_path, batch_size, readers, stops
):
    if readers == 3:
        request.getfixturevalue("decode_workers")
    settings = {"segmenter": segmenter, "batch_size": batch_size, "readers": readers}
    for stop in stops:
        records = label_dataset_iter(images, LABELS, tmp_path / "run", **settings)
        for _ in range(stop):
            next(records)
        records.close()
        assert not (tmp_path / "run" / "annotations.json").exists()
    summary = label_dataset(images, LABELS, tmp_path / "run", **settings)
    assert summary.labelled_now <= 16 - sum(stops)
    assert same_files(tmp_path / "run", finished[0])
    again = label_dataset(images, LABELS, tmp_path / "run", **settings)
    assert (again.labelled_now, again.seconds_now) == (0, 0.0)


def test_those_who_watch_are_told_of_the_start_and_of_each_image(segmenter, images, tmp_path):
    told = []
    label_dataset(
        images,
        LABELS,
        tmp_path / "run",
        segmenter=segmenter,
        on_start=lambda run, counts: told.append((len(run.keys), run.class_names, counts)),
        on_image=lambda record: told.append(record.file_name),
    )
    assert told[0] == (16, ("cat", "dog"), StartCounts(begins=True, listed=16, todo=16))
    assert sorted(told[1:]) == list(find_source(images).keys)


def test_a_run_keeps_the_number_of_threads_that_it_began_with(images, finished, tmp_path):
    """Sums over another number of threads can differ in their last digits."""
    segmenter, seen, usual = small_segmenter(), set(), torch.get_num_threads()
    real = segmenter.encode
    segmenter.encode = lambda *a, **k: seen.add(torch.get_num_threads()) or real(*a, **k)
    run = tmp_path / "run"
    records = label_dataset_iter(images, LABELS, run, segmenter=segmenter, batch_size=1)
    next(records)
    records.close()
    torch.set_num_threads(usual + 1)
    try:
        label_dataset(images, LABELS, run, segmenter=segmenter)
        assert torch.get_num_threads() == usual + 1, "what the caller has set is there again"
    finally:
        torch.set_num_threads(usual)
    assert seen == {usual}
    assert same_files(run, finished[0])


def test_kill_9_costs_a_batch_at_most(images, finished, tmp_path):
    """Eight kills at random moments: the file is that of an unbroken run, each kill cost a batch at
    most."""
    rng = random.Random(0)
    moments = [f"{rng.choice([0, 1, 3])}:{rng.uniform(0.0, 0.03)}" for _ in range(8)]
    trace, run = tmp_path / "trace", tmp_path / "run"
    worker = [sys.executable, labelling_worker.__file__, images, run, trace, *moments]
    done = subprocess.run(worker, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same_files(run, finished[0])
    starts = [len(line) for line in trace.read_text().splitlines()]
    assert len(starts) == 9
    assert sum(starts[:-1]) > 0, "some kills came when the model was at work"
    assert 0 <= sum(starts) - 12 <= labelling_worker.BATCH * sum(n > 0 for n in starts[:-1])


@pytest.mark.parametrize("which", ["clip", "sam"])
def test_a_model_that_gives_nan_ends_the_run_and_leaves_no_empty_images(images, tmp_path, which):
    segmenter = small_segmenter(presence_threshold=-1e9)
    model = {"clip": segmenter.clip.model, "sam": segmenter.sam.sam}[which]
    for weights in model.parameters():
        weights.data.fill_(torch.nan)
    good = [images / f"{i:03d}.png" for i in range(11)]
    with pytest.raises(RunError, match=r"the model failed on 3 images in a row.*not finite"):
        label_dataset(find_source(good), LABELS, tmp_path / "run", segmenter=segmenter)
    assert not (tmp_path / "run" / "annotations.json").exists()
    lines = (tmp_path / "run" / "journal-0001.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) >= 3
    assert {row["state"] for row in rows} == {"failed"}
    assert all("values that are not finite" in row["reason"] for row in rows)


def test_failed_images_are_labelled_again_when_asked(segmenter, tmp_path):
    good, run = write_images(tmp_path / "in", 3), tmp_path / "run"
    (good / "001.png").rename(tmp_path / "later.png")
    (good / "001.png").symlink_to("nowhere")  # listed, and no file
    assert label_dataset(good, LABELS, run, segmenter=segmenter).failed == 1
    (tmp_path / "later.png").rename(good / "001.png")
    assert label_dataset(good, LABELS, run, segmenter=segmenter).failed == 1
    summary = label_dataset(good, LABELS, run, segmenter=segmenter, retry_failed=True)
    assert (summary.failed, summary.labelled_now) == (0, 1)
    label_dataset(good, LABELS, tmp_path / "plain", segmenter=segmenter)
    assert same_files(run, tmp_path / "plain")


@pytest.mark.filterwarnings("ignore:.*[0-9] images (are|were) ")
def test_a_start_is_told_what_became_of_the_images(segmenter, tmp_path):
    good, run, told = write_images(tmp_path / "in", 5), tmp_path / "run", []
    label = partial(
        label_dataset,
        good,
        LABELS,
        run,
        segmenter=segmenter,
        on_start=lambda _, counts: told.append(counts),
    )
    label()
    label()
    write_images(good, 2, first=5)
    (good / "000.png").unlink()
    (good / "001.png").write_bytes(b"no image")
    label()
    label()
    assert told == [
        StartCounts(begins=True, listed=5, todo=5),
        StartCounts(begins=False, listed=5, todo=0),
        StartCounts(False, listed=7, todo=3, new=2, changed=1, gone=1),
        StartCounts(False, listed=7, todo=0, new=0, changed=0, gone=1),
    ]


def test_figures_are_about_all_starts_that_worked(segmenter, tmp_path):
    good, run = write_images(tmp_path / "in", 6), tmp_path / "run"
    figures = ("seconds", "images_per_second", "waited_for_images", "waited_for_writer")

    def label(**settings):
        summary = label_dataset(good, LABELS, run, segmenter=segmenter, **settings)
        written = json.loads((run / "summary.json").read_text())
        return summary, {name: written[name] for name in figures}

    stopped = len(set_apart(segmenter, good, run))
    begun = open_run(run).work
    assert stopped <= begun.images < 6
    assert begun.seconds > 0
    first, written = label()
    assert (first.labelled_now, first.labelled) == (6 - begun.images, 6)
    assert first.seconds == pytest.approx(begun.seconds + first.seconds_now, abs=0.002)
    assert first.images_per_second == pytest.approx(6 / first.seconds, rel=0.05)
    again, later = label()
    assert (again.labelled_now, again.seconds_now, again.labelled) == (0, 0.0, 6)
    assert later == written
    (good / "000.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="were changed"):
        assert label()[0].labelled == 7


def test_a_run_of_before_has_no_figures_and_goes_on(segmenter, tmp_path):
    good, run = write_images(tmp_path / "in", 2), tmp_path / "run"
    label_dataset(good, LABELS, run, segmenter=segmenter)
    rows = json.loads((run / "manifest.json").read_text())
    del rows["work"]
    (run / "manifest.json").write_text(json.dumps(rows))
    write_images(good, 1, first=2)
    with pytest.warns(UserWarning, match="were added"):
        assert label_dataset(good, LABELS, run, segmenter=segmenter).labelled == 1


def set_apart(segmenter, source, run, **settings):
    """A run of which half is labelled: what was told of it."""
    records = label_dataset_iter(source, LABELS, run, segmenter=segmenter, batch_size=1, readers=1)
    names = [next(records).file_name for _ in range(2)]
    records.close()
    return names


def test_images_with_more_pixels_than_allowed_cost_themselves(segmenter, tmp_path):
    images = write_images(tmp_path / "in", 2)  # 24 x 24 and 25 x 25
    summary = label_dataset(
        images, LABELS, tmp_path / "run", segmenter=segmenter, max_pixels=24 * 24
    )
    (failure,) = summary.failures
    assert failure["file_name"] == "001.png"
    assert "576 pixels" in failure["reason"]


def test_changed_images_are_named_and_labelled_again(segmenter, tmp_path):
    good, run = write_images(tmp_path / "in", 6), tmp_path / "run"
    set_apart(segmenter, good, run)
    label_dataset(good, LABELS, run, segmenter=segmenter)
    (good / "000.png").write_bytes((good / "005.png").read_bytes())
    os.utime(good / "001.png", ns=(0, 1))
    (good / "002.png").write_bytes(b"no image")
    with pytest.raises(
        RunError, match=r"3 images were changed .*: 000\.png, 001\.png, 002\.png; put"
    ):
        label_dataset(good, LABELS, run, segmenter=segmenter, changed="refuse")
    with pytest.warns(
        UserWarning, match="3 images were changed since they .* they are labelled now"
    ):
        summary = label_dataset(good, LABELS, run, segmenter=segmenter)
    assert (summary.labelled_now, summary.failed) == (3, 1)
    label_dataset(good, LABELS, tmp_path / "plain", segmenter=segmenter)
    assert same_files(run, tmp_path / "plain")
    write_images(good, 6)
    with pytest.warns(UserWarning, match="6 images were .*: .*004.png and 1 more; they"):
        assert label_dataset(good, LABELS, run, segmenter=segmenter).failed == 0
    assert label_dataset(good, LABELS, run, segmenter=segmenter, changed="refuse").labelled_now == 0


def test_a_changed_image_stays_to_be_labelled_until_it_is(segmenter, tmp_path):
    good, run = write_images(tmp_path / "in", 6), tmp_path / "run"
    label_dataset(good, LABELS, run, segmenter=segmenter)
    write_images(good, 6)
    with pytest.warns(UserWarning, match="6 images were changed"):
        set_apart(segmenter, good, run)
    with pytest.warns(UserWarning, match="[2-4] images were changed"):
        label_dataset(good, LABELS, run, segmenter=segmenter)


def test_new_images_are_taken_in_behind_the_others(segmenter, tmp_path):
    good, run = write_images(tmp_path / "in", 5, first=1), tmp_path / "run"
    set_apart(segmenter, good, run)
    write_images(good, 1)
    write_images(good / "sub", 1)
    with pytest.raises(RunError, match=r"2 images were added since the run began: 000\.png, sub/"):
        label_dataset(good, LABELS, run, segmenter=segmenter, changed="refuse")
    with pytest.warns(
        UserWarning, match="2 images were added since the run began: 000.png, sub/000"
    ):
        set_apart(segmenter, good, run)
    summary = label_dataset(good, LABELS, run, segmenter=segmenter)
    assert (summary.listed, summary.failed) == (7, 0)
    document = json.loads((run / "annotations.json").read_text())
    assert validate(document) == []
    assert {i["id"]: i["file_name"] for i in document["images"]} == {
        **{n: f"{n:03d}.png" for n in range(1, 6)},
        6: "000.png",
        7: "sub/000.png",
    }


def test_new_images_of_a_coco_file_keep_its_ids(segmenter, tmp_path):
    write_images(tmp_path / "in", 4)
    listed, run = tmp_path / "data.json", tmp_path / "run"

    def label(*ids, **settings):
        rows = [{"id": i, "file_name": f"{n:03d}.png"} for n, i in enumerate(ids)]
        listed.write_text(json.dumps({"images": rows}))
        return label_dataset(
            listed, LABELS, run, segmenter=segmenter, root=tmp_path / "in", **settings
        )

    label(30, 10, 20)
    with pytest.warns(UserWarning, match=r"1 images were added since the run began: 003\.png;"):
        assert label(30, 10, 20, 5).labelled_now == 1
    document = json.loads((run / "annotations.json").read_text())
    assert {i["id"] for i in document["images"]} == {30, 10, 20, 5}
    for ids, message in (
        ((30, 10, 21, 5), "then 002.png 20, now 002.png 21;"),
        ((30, 10, 1, 5, 20), "then 002.png 20, now 002.png 1;"),
        ((10, 30, 20, 5), "then 000.png 30, now 000.png 10;"),
    ):
        with pytest.raises(RunError, match=f"ids other than when the run began: {message}"):
            label(*ids)
    rows = [{"id": 30, "file_name": "other.png"}]
    listed.write_text(json.dumps({"images": rows}))
    with pytest.raises(RunError, match=r"then 000\.png 30, now other\.png 30"):
        label_dataset(listed, LABELS, run, segmenter=segmenter, root=tmp_path / "in")


def test_another_process_on_the_same_run_is_refused_at_once(images, finished):
    def never():
        raise AssertionError("the models were loaded before the lock was looked at")

    with (
        FileLock(finished[0] / "lock"),
        pytest.raises(RunLockedError, match="another process works on this run"),
    ):
        label_dataset(images, LABELS, finished[0], segmenter=never)


def best(candidates, agreement):
    return candidates.predicted_iou


def labels_with(**changes):
    """The labels, with changes to the second one."""
    first, second = as_label_set(LABELS).classes
    return LabelSet((first, replace(second, **changes)))


def settings(**changes):
    return {"segmenter": partial(small_segmenter, **changes)}


def method(**changes):
    return settings(method=replace(CLIP_SURGERY, **changes))


def spoiled(which):
    """The models, one of them with another weight."""
    segmenter = small_segmenter()
    model = {"clip": segmenter.clip.model, "sam": segmenter.sam.sam}[which]
    next(model.parameters()).data.view(-1)[0] += 1e-3
    return segmenter


BEST = "'tests.test_labelling_run.best'"
CHANGED = {
    "label": ({"labels": ["cat", "bird"]}, "labels.classes[1].name was 'dog', is now 'bird'"),
    "synonym": (
        {"labels": {"cat": ["cat", "kitten"], "dog": "dog"}},
        "labels.classes[0].prompts[1] was not there, is now 'kitten'",
    ),
    "one label more": (
        {"labels": ["cat", "dog", "cow"]},
        "labels.classes[2].name was not there, is now 'cow'",
    ),
    "distractor": ({"distractors": ["sky"]}, "labels.classes[2].distractor was not there"),
    "threshold of a class": (
        {"labels": labels_with(presence_threshold=0.01)},
        "labels.classes[1].presence_threshold was None, is now 0.01",
    ),
    "supercategory": (
        {"labels": labels_with(supercategory="pet")},
        "labels.classes[1].supercategory was '', is now 'pet'",
    ),
    "joined": (
        {"labels": labels_with(prompts=(), joined=named("dog+cow").joined)},
        "labels.classes[1].joined[0].name was not there, is now 'dog'",
    ),
    "spans": (
        {"labels": labels_with(spans=((2, 5),))},
        "labels.classes[1].spans[0][0] was not there, is now 2",
    ),
    "caption": (
        {"labels": replace(labels_with(), caption="a dog")},
        "labels.caption was not there, is now 'a dog'",
    ),
    "templates": (
        {"labels": replace(labels_with(), templates=("a {}.",))},
        "labels.templates[0] was not there, is now 'a {}.'",
    ),
    "preset": ({"preset": "mine"}, "preset was 'own models', is now 'mine'"),
    "max_pixels": ({"max_pixels": 10**6}, "max_pixels was 100000000, is now 1000000"),
    "keep_above": ({"keep_above": 0.0}, "engine.keep_above was 'auto', is now 0.0"),
    "weights of CLIP": (
        {"segmenter": partial(spoiled, "clip")},
        "other settings: engine.weights.clip was '",
    ),
    "weights of SAM": (
        {"segmenter": partial(spoiled, "sam")},
        "other settings: engine.weights.sam was '",
    ),
    "resolution of the model": (
        settings(clip_resolution=112),
        "other settings: engine.resolution was 128, is now 112. Start",
    ),
    "resolution": (
        settings(resolution=112),
        "engine.config.resolution was None, is now 112; engine.resolution was 128, is now 112",
    ),
    "method": (method(name="mine"), "engine.config.method.name was 'surgery', is now 'mine'"),
    "attention": (method(attention="qq"), "engine.config.method.attention was 'vv', is now 'qq'"),
    "attention of one's own": (
        method(attention=best),
        f"engine.config.method.attention was 'vv', is now {BEST}",
    ),
    "blocks": (method(blocks=5), "engine.config.method.blocks was 6, is now 5"),
    "residual": (method(residual=False), "engine.config.method.residual was True, is now False"),
    "iterations": (
        method(attention="self-self", iterations=2),
        "engine.config.method.iterations was 1, is now 2",
    ),
    "feed_forward": (
        method(feed_forward=True),
        "engine.config.method.feed_forward was False, is now True",
    ),
    "prior": (method(prior=best), f"engine.config.method.prior was None, is now {BEST}"),
    "factor on the residual": (
        method(residual=0.5),
        "engine.config.method.residual was True, is now 0.5",
    ),
    "feature_surgery": (
        settings(feature_surgery=False),
        "engine.config.feature_surgery was True, is now False",
    ),
    "background_prompts": (
        settings(background_prompts=("sky",)),
        "engine.config.background_prompts[0] was not there, is now 'sky'",
    ),
    "presence_threshold": (
        settings(presence_threshold=0.01),
        "engine.config.presence_threshold was 0.02, is now 0.01",
    ),
    "grid": (settings(grid="half"), "engine.config.grid was 7, is now 'half'"),
    "point_threshold": (
        settings(point_threshold=0.7),
        "engine.config.point_threshold was None, is now 0.7",
    ),
    "prompts": (
        settings(prompts="label"),
        "engine.config.prompts was 'object', is now 'label'",
    ),
    "max_objects": (settings(max_objects=3), "engine.config.max_objects was 8, is now 3"),
    "min_share": (settings(min_share=0.25), "engine.config.min_share was 0.5, is now 0.25"),
    "tile": (settings(tile="auto"), "engine.config.tile was 'off', is now 'auto'"),
    "tile_overlap": (
        settings(tile_overlap=0.25),
        "engine.config.tile_overlap was 0.5, is now 0.25",
    ),
    "max_positive": (settings(max_positive=3), "engine.config.max_positive was None, is now 3"),
    "max_negative": (settings(max_negative=3), "engine.config.max_negative was None, is now 3"),
    "candidate": (
        settings(candidate="agreement"),
        "engine.config.candidate was 'both', is now 'agreement'",
    ),
    "candidate of one's own": (
        settings(candidate=best),
        f"engine.config.candidate was 'both', is now {BEST}",
    ),
}
"""For every field of the fingerprint: arguments that change it, and what is said then."""


@pytest.mark.parametrize(("changes", "message"), CHANGED.values(), ids=CHANGED)
def test_a_run_with_other_settings_is_refused(segmenter, images, finished, changes, message):
    before = (finished[0] / "journal-0001.jsonl").read_bytes()
    arguments = {"labels": LABELS, "segmenter": segmenter, **changes}
    with pytest.raises(RunError, match="this run began with other settings: ") as caught:
        label_dataset(images, output=finished[0], **arguments)
    assert message in str(caught.value)
    assert "Start in a new output folder" in str(caught.value)
    assert (finished[0] / "journal-0001.jsonl").read_bytes() == before


def test_a_run_of_another_release_is_refused(segmenter, images, finished, monkeypatch):
    monkeypatch.setattr("clip2sam.labelling.fingerprint.__version__", "9.9")
    with pytest.raises(RunError, match=r"other settings: version was '.*', is now '9\.9'\. Start"):
        label_dataset(images, LABELS, finished[0], segmenter=segmenter)


def test_every_field_is_in_the_fingerprint_and_in_the_table(finished):
    """Whoever adds a setting finds it in the fingerprint, and is asked for a row of the table."""
    marks = json.loads((finished[0] / "manifest.json").read_text())["fingerprint"]
    assert marks.keys() == {"version", "preset", "labels", "max_pixels", "engine"}
    engine = marks["engine"]
    own = {"config", "locator", "precision", "resolution", "keep_above", "weights"}
    assert engine.keys() == own
    assert engine["config"].keys() == {field.name for field in fields(Config)} <= CHANGED.keys()
    method = engine["config"]["method"].keys()
    assert method == {field.name for field in fields(Method)}
    assert method - {"name"} <= CHANGED.keys()
    assert marks["labels"].keys() == {"classes", "templates"}
    of_some = {"joined", "spans"}  # of joined labels and captions alone
    plain = {field.name for field in fields(LabelClass)} - of_some
    assert marks["labels"]["classes"][0].keys() == plain
    assert of_some <= CHANGED.keys()
    assert [c["name"] for c in marks["labels"]["classes"]] == LABELS


def test_the_weights_are_in_the_fingerprint_by_what_is_loaded(segmenter):
    marks = SegmenterEngine(segmenter, as_label_set(LABELS)).fingerprint()["weights"]
    assert marks == {
        "clip": state_sha256(segmenter.clip.model.state_dict()),
        "sam": state_sha256(segmenter.sam.sam.state_dict()),
    }
    other = small_segmenter()
    assert marks["sam"] == state_sha256(other.sam.sam.state_dict())
    assert marks["sam"] != state_sha256(other.sam.sam.half().state_dict()), "also by their dtype"


def test_functions_in_settings_are_known_by_their_names():
    assert plain(best) == "tests.test_labelling_run.best"
    assert plain((partial(best, 1, k=best),)) == [
        ["tests.test_labelling_run.best", [1], {"k": "tests.test_labelling_run.best"}]
    ]
    assert plain(Threshold()) != plain(Threshold)


def test_many_changes_are_counted():
    with pytest.raises(RunError, match=r"a was 1, is now 2; .*; and 2 more\. Start"):
        check_same(dict.fromkeys("abcdefg", 1), dict.fromkeys("abcdefg", 2))


def test_other_images_are_refused(segmenter, images, finished):
    with pytest.raises(RunError, match=r"this run began with the source .*now it is"):
        label_dataset(images / "sub", LABELS, finished[0], segmenter=segmenter)
    with pytest.raises(RunError, match="this run began with the root"):
        label_dataset(images, LABELS, finished[0], segmenter=segmenter, root=images / "sub")


def test_damaged_and_foreign_folders_are_refused(segmenter, images, tmp_path):
    label = partial(label_dataset, images, LABELS, segmenter=segmenter)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "journal-0001.jsonl").write_bytes(b"")
    with pytest.raises(RunError, match=r"there is a journal but no manifest\.json"):
        label(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for manifest, message in (
        ("{", "this manifest is damaged"),
        ("[]", "this manifest is damaged"),
        ('{"format": 3}', "this manifest is damaged"),
        ('{"format": 4}', r"begun by another version of clip2sam \(format 4, expected 3\)"),
    ):
        (tmp_path / "b" / "manifest.json").write_text(manifest)
        with pytest.raises(RunError, match=message):
            label(tmp_path / "b")


def test_what_a_killed_process_left_of_its_files_is_removed(segmenter, images, tmp_path):
    run, others = tmp_path / "run", (".notes.json.0123abcd.tmp", ".results.json.tmp", "a.json.tmp")
    run.mkdir()
    names = ("manifest.json", "results.json", "summary.json", "journal-0001.jsonl.damaged-1")
    for name in (*(f".{name}.0123abcd.tmp" for name in names), *others):
        (run / name).write_bytes(b"half")
    (run / ".annotations.json.0123abcd.tmp").mkdir()
    label_dataset(images / "sub", LABELS, run, segmenter=segmenter)
    left = sorted(p.name for p in run.iterdir() if p.name.endswith(".tmp"))
    assert left == sorted((*others, ".annotations.json.0123abcd.tmp"))


def test_files_of_a_killed_start_are_left_alone_by_one_that_is_refused(segmenter, images, tmp_path):
    run, half = tmp_path / "run", tmp_path / "run" / ".results.json.0123abcd.tmp"
    run.mkdir()
    half.write_bytes(b"another process is writing it")
    with FileLock(run / "lock"), pytest.raises(RunLockedError):
        label_dataset(images / "sub", LABELS, run, segmenter=segmenter)
    assert half.exists()


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("error", [ConfigError("no such device"), KeyboardInterrupt()])
def test_a_refused_start_leaves_nothing_behind(images, tmp_path, error):
    held = []

    def load():
        held.extend(tree(tmp_path))
        raise error

    (tmp_path / "empty").mkdir()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").touch()
    before = tree(tmp_path)
    for output in ("run", "new/deep/run", "empty", "own"):
        with pytest.raises(type(error)):
            label_dataset(images, LABELS, tmp_path / output, segmenter=load)
        assert f"{output}/lock" in held, "the models are loaded when the run is locked"
        assert tree(tmp_path) == before


def test_a_refused_start_leaves_a_run_as_it_is(segmenter, images, tmp_path):
    def load():
        raise ConfigError("no such device")

    label_dataset(images / "sub", LABELS, tmp_path / "run", segmenter=segmenter)
    before = tree(tmp_path)
    assert "run/lock" not in before
    with pytest.raises(ConfigError, match="no such device"):
        label_dataset(images / "sub", LABELS, tmp_path / "run", segmenter=load)
    assert tree(tmp_path) == before


def test_a_lock_of_a_killed_process_is_removed_by_the_next(segmenter, images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").touch()
    label_dataset(images / "sub", LABELS, tmp_path / "run", segmenter=segmenter)
    assert "run/lock" not in tree(tmp_path)


def test_a_start_beside_another_leaves_its_lock(images, finished):
    with FileLock(finished[0] / "lock"):
        with pytest.raises(RunLockedError):
            label_dataset(images, LABELS, finished[0], segmenter="tiny")
        assert (finished[0] / "lock").exists()


def test_a_folder_that_cannot_be_locked_is_not_left(tmp_path, monkeypatch):
    class Full(FileLock):
        def acquire(self, *_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("clip2sam.labelling.lock.FileLock", Full)
    with pytest.raises(OutputError, match="No space left"), lock_run(tmp_path / "new" / "run"):
        pytest.fail("there is no lock")
    assert tree(tmp_path) == []


def test_a_lock_that_is_removed_keeps_others_out(tmp_path):
    """Starts that are refused one after another, while others try: never two at once."""
    inside, both, entered, errors = [], [], [], []

    def starts(count):
        for _ in range(count):
            try:
                with lock_run(tmp_path / "run"):
                    inside.append(1)
                    both.extend(inside[1:])
                    time.sleep(0.0005)
                    inside.pop()
                    entered.append(1)
            except RunLockedError:
                time.sleep(0.0001)
            except OutputError as error:  # the folder has just gone
                errors.append(str(error))

    threads = [threading.Thread(target=starts, args=(150,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) > 10
    assert not both
    gone = ("No such file", "File exists")  # between two steps of making it
    assert all(any(text in error for text in gone) for error in errors), errors
    # an empty folder may stay: who made it was not the last to hold the lock
    assert tree(tmp_path) in ([], ["run"])


WRONG = (None, [], {}, [None], [[]], {"a": 1}, "text", -1, True, 1.5, float("nan"), [1, 1], ["a"])


@pytest.fixture(scope="module")
def manifest(segmenter, images, tmp_path_factory):
    """A small run's folder, and its manifest's rows."""
    run = tmp_path_factory.mktemp("small") / "run"
    label_dataset(images / "sub", [*LABELS, "cow"], run, segmenter=segmenter)
    return run, json.loads((run / "manifest.json").read_text())


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_any_wrong_value_in_a_manifest_is_a_damaged_manifest(manifest, value):
    run, rows = manifest
    path, said = run / "manifest.json", ""
    whole = path.read_bytes()
    class_rows = rows["classes"]
    needed = rows.keys() - {"started", "work", "devices", "kind"}  # runs of before don't have them
    damaged = [value, *({**rows, name: value} for name in rows)]
    damaged += [{k: v for k, v in rows.items() if k != name} for name in needed]
    damaged += [
        {**rows, "classes": [{**class_rows[0], name: value}, *class_rows[1:]]}
        for name in class_rows[0]
    ]
    accepted = []
    for one in damaged:
        path.write_text(json.dumps(one))
        try:
            open_run(run)
        except RunError as refused:
            said = str(refused)
        else:
            accepted.append(one)
        assert "\n" not in said
    path.write_bytes(whole)
    fits = {
        "source": ["text"],
        "root": ["text"],
        "started": ["text", None],
        "fingerprint": [{}, {"a": 1}],
    }
    fits |= {"name": ["text"], "supercategory": ["text"], "presence_threshold": [None, 1.5]}
    fits |= {
        "work": [{}],
        "devices": [[], ["a"]],
        "prompts": [[], ["a"]],
        "distractor": [True],
        "keys": [["a"]],
    }
    for one in accepted:
        places = [n for n in rows if one[n] != rows[n]]
        if places == ["classes"]:
            places = [n for n in class_rows[0] if one["classes"][0][n] != class_rows[0][n]]
        assert not places or value in fits.get(places[0], ()), places


def test_a_manifest_nested_too_deep_is_a_damaged_manifest(tmp_path):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match="this manifest is damaged"):
        open_run(tmp_path)


def test_a_run_of_an_older_version_is_refused_in_one_line(segmenter, images, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    manifest = {"format": 1, "fingerprint": {}, "threads": 1, "source": str(images), "root": "/"}
    (run / "manifest.json").write_text(json.dumps({**manifest, "ids": None, "pictures": ["a.png"]}))
    (run / "journal-0001.jsonl").write_text('{"crc":"00000000","picture":0,"state":"done"}\n')
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(RunError) as caught:
        label_dataset(images, LABELS, run, segmenter=segmenter)
    assert str(caught.value) == (
        f"{run}: this run was begun by an older version of clip2sam (format 1, expected 3); label "
        "into a new output folder"
    )
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("source", ["in", "in/*.png", "list.txt"])
def test_inputs_are_never_written_to(segmenter, tmp_path, source):
    good = write_images(tmp_path / "in", 3)
    (tmp_path / "list.txt").write_text("in/000.png\nin/001.png\nin/002.png\n")
    inside = good if source == "list.txt" else good / "run"
    with pytest.raises(ConfigError, match="which is never written to"):
        label_dataset(tmp_path / source, LABELS, inside, segmenter=segmenter)
    assert sorted(p.name for p in good.iterdir()) == ["000.png", "001.png", "002.png"]
    for path in (*good.iterdir(), good):
        path.chmod(stat.S_IREAD | (stat.S_IEXEC if path.is_dir() else 0))
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in good.iterdir()}
    folder_before = good.stat().st_mtime_ns
    run = tmp_path / "run"
    assert label_dataset(tmp_path / source, LABELS, run, segmenter=segmenter).failed == 0
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in good.iterdir()} == before
    assert good.stat().st_mtime_ns == folder_before
    good.chmod(0o755)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number from 1 to 4096 images, but got 0"),
        ({"readers": 0}, "readers must be a whole number from 1 to 256 processes, but got 0"),
        ({"timeout": 0.0}, r"timeout must be from 0\.001 to 86400 seconds, but got 0\.0"),
        (
            {"max_pixels": 0},
            "max_pixels must be a whole number from 1 to 1000000000000 pixels, but",
        ),
        ({"max_pixels": float("nan")}, "max_pixels must be a whole number .* got nan"),
        ({"batch_size": float("inf")}, "batch_size must be a whole number .* got inf"),
        ({"readers": 2.5}, "readers must be a whole number .* got 2.5"),
        ({"max_failures": -1}, "max_failures must be a whole number from 0 .* got -1"),
        ({"max_failures": float("nan")}, "max_failures must be a whole number .* got nan"),
        ({"timeout": float("nan")}, "timeout must be a finite number, but got nan"),
        ({"timeout": 10**400}, "timeout must be a finite number, but got 1000"),
        ({"timeout": 1e300}, r"timeout must be from 0\.001 to 86400 seconds, but got 1e\+300"),
        ({"keep_above": float("inf")}, "keep_above must be a finite number, but got inf"),
        ({"exporters": {"../x.json": CocoExporter()}}, r"expected the name of a file .* '\.\./x"),
        ({"exporters": {"manifest.json": CocoExporter()}}, r"other than manifest\.json, lock"),
        ({"engine": Threshold(), "keep_above": 0.1}, "keep_above is for a segmenter"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(
    segmenter, images, tmp_path, settings, message
):
    with pytest.raises(ConfigError, match=message):
        # as outside the tests, which check types
        unwrap(label_dataset_iter)(
            images, LABELS, tmp_path / "run", segmenter=segmenter, **settings
        )
    assert not (tmp_path / "run").exists()


def test_a_coco_files_ids_and_odd_names_come_out_as_they_are(segmenter, tmp_path):
    folder = write_images(tmp_path / "in", 2)
    (folder / "000.png").rename(folder / "ä <b> $(x).png")
    rows = [{"id": 41, "file_name": "ä <b> $(x).png"}, {"id": 7, "file_name": "001.png"}]
    (tmp_path / "data.json").write_text(json.dumps({"images": rows}))
    label_dataset(
        tmp_path / "data.json",
        ["Katze 🐈", "日本"],
        tmp_path / "run",
        segmenter=segmenter,
        root=folder,
    )
    document = json.loads((tmp_path / "run" / "annotations.json").read_text())
    assert [(i["id"], i["file_name"]) for i in document["images"]] == [
        (7, "001.png"),
        (41, "ä <b> $(x).png"),
    ]
    assert [c["name"] for c in document["categories"]] == ["Katze 🐈", "日本"]
    assert validate(document) == []


class Bucket:
    """A source of one's own: encoded bytes by name."""

    origin = "bucket://images"

    def __init__(self, folder):
        self.files = {p.name: p.read_bytes() for p in sorted(folder.glob("0*.png"))}
        self.keys = (*self.files, "gone.png")
        self.ids = tuple(range(50, 50 + len(self.keys)))

    def read(self, key):
        if key not in self.files:
            raise ImageError(f"{key}: not in the bucket")
        return self.files[key]


def test_a_source_of_ones_own_gives_bytes(segmenter, images, tmp_path):
    bucket, run = Bucket(images), tmp_path / "run"
    records = label_dataset_iter(bucket, LABELS, run, segmenter=segmenter, batch_size=1)
    next(records)
    records.close()
    summary = label_dataset(bucket, LABELS, run, segmenter=segmenter)
    assert summary.labelled_now < summary.listed == 12
    assert summary.failures == ({"file_name": "gone.png", "reason": "gone.png: not in the bucket"},)
    label_dataset(f"{images}/0*.png", LABELS, tmp_path / "plain", segmenter=segmenter)
    one, other = (
        json.loads((p / "annotations.json").read_text()) for p in (run, tmp_path / "plain")
    )
    assert [i["id"] for i in one["images"]] == list(range(50, 61))
    for row in (*one["images"], *one["annotations"]):
        row["id" if "file_name" in row else "image_id"] -= 49
    assert one == other


def test_a_source_of_ones_own_is_asked_for_again(segmenter, images, tmp_path):
    bucket, run = Bucket(images), tmp_path / "run"
    label_dataset(bucket, LABELS, run, segmenter=segmenter)
    bucket.origin = "bucket://others"
    with pytest.raises(RunError, match="began with the source bucket://images, now it is bucket:/"):
        label_dataset(bucket, LABELS, run, segmenter=segmenter)
    with pytest.raises(ConfigError, match="root is for lists and COCO files"):
        label_dataset(bucket, LABELS, run, segmenter=segmenter, root=images)
    bucket.origin = str(tmp_path / "named like a path")
    label_dataset(bucket, LABELS, tmp_path / "other", segmenter=segmenter)
    with pytest.raises(RunError, match="began with the root of an object, now it is"):
        label_dataset(bucket.origin, LABELS, tmp_path / "other", segmenter=segmenter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": (1, 2)}, "expected 12 different ids, one for each image, got 2 in 2"),
        ({"ids": (1,) * 12}, "expected 12 different ids, one for each image, got 1 in 12"),
        ({"ids": range(12)}, "expected image ids from 1, got 0"),
        ({"keys": ("a.png",) * 12}, "expected 12 different keys, one for each image, got 1 in 12"),
    ],
)
def test_a_source_that_would_spoil_the_run_is_refused(
    segmenter, images, tmp_path, changes, message
):
    bucket = Bucket(images)
    for name, value in changes.items():
        setattr(bucket, name, value)
    with pytest.raises(ImageError, match=f"bucket://images: {message}"):
        label_dataset(bucket, LABELS, tmp_path / "run", segmenter=segmenter)
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_several_folders_are_one_source_object(segmenter, images, tmp_path):
    source = find_source([images / "000.png", images / "sub"])
    for labelled in (2, 0):
        summary = label_dataset(source, LABELS, tmp_path / "run", segmenter=segmenter)
        assert (summary.listed, summary.labelled_now, summary.failed) == (2, labelled, 0)


def test_an_engine_of_ones_own_needs_no_models(images, tmp_path, monkeypatch):
    monkeypatch.setattr("clip2sam.labelling.run.load", None)
    run, engine = tmp_path / "run", Threshold()
    summary = label_dataset(images, engine.classes, run, engine=engine)
    assert (summary.done + summary.empty, summary.failed) == (12, 4)
    assert [c.threshold for c in summary.classes] == [0.5] * 3
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["format"], manifest["thresholds"]) == (3, [0.5] * 3)
    assert manifest["floors"] == [None] * 3
    assert [c["name"] for c in manifest["classes"]] == list(engine.classes)
    with pytest.raises(RunError, match=r"engine\.thresholds\[0\] was 0\.5, is now 0\.4"):
        label_dataset(images, engine.classes, run, engine=Threshold(threshold=0.4))


def test_engines_that_do_not_fit_are_refused(images, tmp_path):
    with pytest.raises(ConfigError, match="a floor for each of 2 classes, but the engine has 3"):
        label_dataset(images, LABELS, tmp_path / "run", engine=Threshold())
    engine = Threshold()
    engine.fingerprint = lambda: {"weights": object()}
    with pytest.raises(ConfigError, match="the engine's fingerprint can't be written as JSON"):
        label_dataset(images, engine.classes, tmp_path / "run", engine=engine)


@pytest.mark.parametrize("kind", ["name", "preset", "function"])
def test_models_may_be_a_name_a_preset_or_a_function(
    segmenter, images, tmp_path, monkeypatch, kind
):
    loaded = []
    preset = replace(PRESETS["tiny"], name="mine")
    monkeypatch.setattr(
        "clip2sam.labelling.run.load", lambda chosen: loaded.append(chosen) or segmenter
    )
    given = {"name": "tiny", "preset": preset, "function": lambda: segmenter}[kind]
    label_dataset(images / "sub", LABELS, tmp_path / "run", segmenter=given)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    named = {"name": "tiny", "preset": "mine", "function": "own models"}[kind]
    assert manifest["fingerprint"]["preset"] == named
    assert loaded == ([] if kind == "function" else [given])


class Names:
    """An exporter of one's own, which may stop early."""

    def __init__(self, most=1000):
        self.most = most

    def write(self, records, classes, output):
        lines = [classes[0].name]
        for record in records:
            lines.append(f"{record.file_name} {record.state} {len(record.annotations)}")
            if len(lines) > self.most:
                break
        output.write_text("\n".join(lines))


@pytest.mark.parametrize("most", [1, 1000])
def test_exporters_of_ones_own_write_what_is_published(segmenter, images, finished, tmp_path, most):
    exporters = {"first.txt": Names(most), "names.txt": Names(), "coco.json": CocoExporter()}
    run = tmp_path / "run"
    summary = label_dataset(images, LABELS, run, segmenter=segmenter, exporters=exporters)
    assert summary.classes == finished[1].classes, "counted, also what the first one left out"
    assert not (run / "annotations.json").exists()
    document = json.loads((finished[0] / "annotations.json").read_bytes())
    own = json.loads((run / "coco.json").read_bytes())
    assert own.pop("info") != document.pop("info"), "the run's own file says more of itself"
    assert own == document
    masks = [
        sum(a["image_id"] == i["id"] for a in document["annotations"]) for i in document["images"]
    ]
    assert (run / "names.txt").read_text().splitlines() == [
        "cat",
        *(
            f"{i['file_name']} {'done' if n else 'empty'} {n}"
            for i, n in zip(document["images"], masks, strict=True)
        ),
    ]


def test_a_run_without_exporters_is_counted_all_the_same(segmenter, images, finished, tmp_path):
    run = tmp_path / "run"
    summary = label_dataset(images, LABELS, run, segmenter=segmenter, exporters={})
    assert (summary.done, summary.classes) == (finished[1].done, finished[1].classes)
    assert {p.name for p in run.iterdir()} == {
        "manifest.json",
        "journal-0001.jsonl",
        "summary.json",
        "presence.png",
    }


def test_masks_below_their_threshold_are_kept_when_asked(images, finished, tmp_path):
    """Nothing else changes: what is published is what is present."""
    run = tmp_path / "run"
    label_dataset(images, LABELS, run, segmenter=small_segmenter(), keep_above=0.0)
    assert same_files(run, finished[0])
    counts = [
        (folder / "journal-0001.jsonl").read_text().count('"counts"')
        for folder in (run, finished[0])
    ]
    assert counts[0] > counts[1]
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["thresholds"], manifest["floors"]) == ([0.02] * 2, [0.0] * 2)
    other = small_segmenter(presence_threshold=-0.03)
    with pytest.raises(RunError, match=r"presence_threshold was 0\.02, is now -0\.03\. Start"):
        label_dataset(images, LABELS, run, segmenter=other, keep_above=0.0)


def test_some_masks_below_are_kept_by_default_and_change_nothing(images, finished, tmp_path):
    run = tmp_path / "run"
    label = partial(label_dataset, images, LABELS, run, segmenter=small_segmenter())
    label(keep_above=None)
    for name in ("annotations.json", "results.json"):
        assert (run / name).read_bytes() == (finished[0] / name).read_bytes()
    kept, published = (
        (folder / "journal-0001.jsonl").read_text().count('"counts"')
        for folder in (finished[0], run)
    )
    assert kept > published
    assert open_run(finished[0]).floors == pytest.approx([0.018] * 2)
    assert open_run(run).floors == (0.02, 0.02)
    export_run(finished[0], tmp_path / "lower.json", decision=Decision(presence_threshold=0.018))
    masks = [
        len(json.loads(path.read_text())["annotations"])
        for path in (tmp_path / "lower.json", run / "annotations.json")
    ]
    assert masks[0] > masks[1]
    assert label().labelled_now == 0, "a run goes on as it began"
    with pytest.raises(RunError, match=r"engine\.keep_above was None, is now 0\.01"):
        label(keep_above=0.01)


def test_the_default_floors_are_relative_and_where_they_change_nothing(segmenter):
    classes = (
        LabelClass("cat", ("cat",)),
        LabelClass("dog", ("dog",), presence_threshold=0.5),
        LabelClass("cow", ("cow",), presence_threshold=-0.1),
    )
    labels = replace(as_label_set(["x"]), classes=classes)
    engine = SegmenterEngine(segmenter, labels, "auto")
    assert engine.floors == pytest.approx((0.018, 0.45, -0.11))
    tiled = SegmenterEngine(segmenter.with_config(tile="auto"), labels, "auto")
    regions = Regions(segmenter.clip, segmenter.sam)
    by_regions = Segmenter(segmenter.clip, segmenter.sam, segmenter.config, regions)
    for own in (tiled, SegmenterEngine(by_regions, labels, "auto")):
        assert own.floors == own.thresholds
        assert own.fingerprint()["keep_above"] is None
    joined = SegmenterEngine(segmenter, as_label_set(["cat+dog"]), "auto")
    assert joined.floors == joined.thresholds
    free = segmenter.with_config(presence_threshold=None)
    assert SegmenterEngine(free, labels, "auto").floors == pytest.approx((None, 0.45, -0.11))


def test_a_higher_threshold_is_one_of_an_export(images, finished):
    run = finished[0]
    began = r"began with other thresholds: .*threshold was .*\. It has the masks for the new ones"
    for labels, general, options in (
        (LABELS, 0.03, "--presence-threshold 0.03"),
        (LABELS, 0.019, "--presence-threshold 0.019"),
        (labels_with(presence_threshold=0.1234567), 0.02, "--class-threshold dog=0.1234567"),
        (
            labels_with(presence_threshold=0.05),
            0.03,
            "--class-threshold cat=0.03 --class-threshold dog=0.05",
        ),
    ):
        with pytest.raises(RunError, match=began) as caught:
            label_dataset(
                images, labels, run, segmenter=small_segmenter(presence_threshold=general)
            )
        command = f": clip2sam export {run} --output {run / 'decided.json'} {options} -- to "
        assert command in str(caught.value)


def test_thresholds_that_an_export_cannot_have_are_other_settings(images, finished):
    for labels, general in (
        (LABELS, None),
        (LABELS, 0.0179),
        (labels_with(presence_threshold=0.0), 0.02),
        (labels_with(presence_threshold=0.02), 0.02),
    ):
        with pytest.raises(RunError, match=r"with other settings: .*presence_threshold was"):
            label_dataset(
                images, labels, finished[0], segmenter=small_segmenter(presence_threshold=general)
            )


def test_causes_are_named_before_what_follows_from_them():
    places = ("version", "preset", "max_pixels", "labels", "engine")
    then = {**dict.fromkeys(places, 1), "engine": {"weights": 1, "config": 1, "precision": 1}}
    now = {**dict.fromkeys(places, 2), "engine": {"weights": 2, "config": 2, "precision": 2}}
    with pytest.raises(RunError) as caught:
        check_same(then, now)
    named = re.findall(r"([a-z._]+) was 1, is now 2", str(caught.value))
    assert named == ["engine.precision", "version", "preset", "max_pixels", "engine.config"]
    del now["preset"], now["max_pixels"], then["preset"], then["max_pixels"]
    with pytest.raises(RunError, match=r"engine\.config .*; labels .*; engine\.weights was"):
        check_same(then, now)


def test_another_kind_of_device_is_said_once_and_noted(segmenter, tmp_path):
    good, run = write_images(tmp_path / "in", 2), tmp_path / "run"
    label = partial(label_dataset, good, LABELS, run, segmenter=segmenter)
    label()
    assert open_run(run).devices == ("cpu",)
    rows = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**rows, "devices": ["cuda"]}))
    assert label().labelled_now == 0
    assert open_run(run).devices == ("cuda",), "nothing was computed"
    os.utime(good / "000.png", ns=(0, 1))
    with pytest.warns(UserWarning, match="were changed|begun on") as said:
        label()
    assert [str(w.message) for w in said][1] == (
        f"{run}: begun on cuda, goes on on cpu: single pixels of masks may differ from those that "
        "it would have had there"
    )
    assert open_run(run).devices == ("cuda", "cpu")
    os.utime(good / "000.png", ns=(0, 2))
    with pytest.warns(UserWarning, match="were changed") as said:
        label()
    assert len(said) == 1
    engine = Threshold()
    label_dataset(good, engine.classes, tmp_path / "other", engine=engine)
    assert open_run(tmp_path / "other").devices == ()


def test_floors_are_never_above_thresholds(segmenter):
    classes = (
        LabelClass("cat", ("cat",)),
        LabelClass("dog", ("dog",), presence_threshold=0.5),
        LabelClass("cow", ("cow",), presence_threshold=-0.1),
        LabelClass("sky", ("sky",), distractor=True),
    )
    labels = replace(as_label_set(["x"]), classes=classes)
    engine = SegmenterEngine(segmenter, labels, 0.01)
    assert engine.thresholds == (0.02, 0.5, -0.1)
    assert engine.floors == (0.01, 0.01, -0.1)
    assert SegmenterEngine(segmenter, labels).floors == engine.thresholds
    free = segmenter.with_config(presence_threshold=None)
    assert SegmenterEngine(free, labels, 0.01).thresholds == (None, 0.5, -0.1)
    assert SegmenterEngine(free, labels, 0.01).floors == (None, 0.01, -0.1)


def test_the_manifest_is_whole_or_not_there(tmp_path, monkeypatch):
    source = find_source(write_images(tmp_path / "in", 1))
    (tmp_path / "run").mkdir()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clip2sam.data.files.os.fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        begin_run(
            tmp_path / "run", source, (), {}, thresholds=(), floors=(), min_share=0.0, threads=1
        )
    assert list((tmp_path / "run").iterdir()) == []
