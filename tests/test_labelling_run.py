"""Whole runs on small models: begun, stopped, killed, gone on with, refused, published."""

import json
import os
import random
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner

import clip2sam
from clip2sam.cli.label import export as export_command
from clip2sam.cli.label import label as label_command
from clip2sam.coco.document import coco_document, write_coco
from clip2sam.coco.validate import validate
from clip2sam.data.images import load_image
from clip2sam.data.labels import LabelClass, LabelSet
from clip2sam.errors import ConfigError, ImageError, RunError, RunLockedError
from clip2sam.kernels.tensors import state_sha256
from clip2sam.labelling.fingerprint import check_same
from clip2sam.labelling.run import label, label_iter
from clip2sam.sam.model import PICTURES_A_BATCH as GROUP
from tests import labelling_worker
from tests.labelling_fakes import small_segmenter, threads_named, write_pictures

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
def pictures(tmp_path_factory):
    """Twelve good pictures, two of them of one name, and four bad ones."""
    folder = write_pictures(tmp_path_factory.mktemp("run") / "in", 11)
    write_pictures(folder / "sub", 1)
    (folder / "cut.png").write_bytes((folder / "000.png").read_bytes()[:900])
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.gif").write_bytes(b"")
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.fixture(scope="module")
def finished(segmenter, pictures, tmp_path_factory):
    """A run without any trouble: its folder and its summary."""
    output = tmp_path_factory.mktemp("finished") / "run"
    return output, label(pictures, LABELS, output, segmenter=segmenter)


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
    assert [i["file_name"] for i in document["images"]] == sorted(
        i["file_name"] for i in document["images"]
    )
    assert len(document["images"]) == 12
    assert (output / "presence.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((output / "summary.json").read_text())
    assert written["listed"] == 16
    assert sum(n for n in written["classes"][0]["histogram"].values()) == 12
    assert sum(c["masks"] for c in written["classes"]) == len(document["annotations"])
    assert not [p.name for p in output.iterdir() if p.name.startswith(".")], (
        "temporary files are gone"
    )
    assert not threads_named("reader", "writer")


def test_the_file_is_what_the_segmenter_makes_one_by_one(segmenter, pictures, tmp_path):
    """Byte for byte the file of `write_coco`, scores apart: there they are float32's shortest decimals."""
    good = write_pictures(tmp_path / "in", 6)
    label(good, LABELS, tmp_path / "run", segmenter=segmenter, batch_size=3)
    results = [segmenter(path, LABELS) for path in sorted(good.iterdir())]
    document = coco_document(
        [r.record() for r in results], [r.annotations for r in results], results[0].label_set
    )
    for annotation in document["annotations"]:
        from clip2sam.labelling.engine import shortest

        annotation["score"] = shortest(annotation["score"])
    write_coco(tmp_path / "expected.json", document)
    assert (tmp_path / "run" / "annotations.json").read_bytes() == (
        tmp_path / "expected.json"
    ).read_bytes()


def test_groups_give_the_same_whatever_comes_along(segmenter, pictures):
    """Pictures encoded together: the same numbers in any company, and within rounding those of a picture alone."""
    images = [load_image(pictures / f"{i:03d}.png") for i in range(6)]
    labels = clip2sam.as_label_set(LABELS)
    together = segmenter.predict_batch(images, labels, group=GROUP)
    shuffled = segmenter.predict_batch([images[5], images[2]], labels, group=GROUP)
    for i, other in ((5, shuffled[0]), (2, shuffled[1])):
        assert together[i].maps.raw.equal(other.maps.raw)
        assert together[i].masks.logits.equal(other.masks.logits)
    for image, prediction in zip(images, together, strict=True):
        alone = segmenter.predict_torch(image, labels)
        assert prediction.maps.raw.allclose(alone.maps.raw, atol=1e-5)
        assert prediction.masks.logits.shape == alone.masks.logits.shape
        assert prediction.masks.logits.allclose(alone.masks.logits, atol=1e-3)
    assert segmenter.predict_batch([], labels, group=GROUP) == []


def test_a_picture_prepared_ahead_gives_the_same(monkeypatch, tmp_path):
    segmenter, labels = (
        small_segmenter(),
        LabelSet((LabelClass("red", ("red",)), LabelClass("square", ("square",)))),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    plain = segmenter.predict_torch(clip2sam.Image(pixels, "plain"), labels)
    ahead = clip2sam.Image(pixels, "ahead")
    segmenter.prepare(ahead)
    assert ahead.nbytes == pixels.nbytes + 3 * (64 * 64 + 85 * 128)
    monkeypatch.setattr(clip2sam.Image, "_resize", None)  # nothing is left to resize
    prepared = segmenter.predict_torch(ahead, labels)
    assert torch.equal(prepared.maps.raw, plain.maps.raw)
    assert torch.equal(prepared.masks.logits, plain.masks.logits)
    assert ahead.nbytes == pixels.nbytes


@pytest.mark.parametrize(
    ("batch_size", "readers", "stops"), [(1, 1, [1, 0, 5]), (5, 3, [4]), (16, 2, [])]
)
def test_the_files_do_not_depend_on_batches_threads_or_stops(
    segmenter, pictures, finished, tmp_path, batch_size, readers, stops
):
    settings = {"segmenter": segmenter, "batch_size": batch_size, "readers": readers}
    for stop in stops:
        records = label_iter(pictures, LABELS, tmp_path / "run", **settings)
        for _ in range(stop):
            next(records)
        records.close()
        assert not (tmp_path / "run" / "annotations.json").exists()
    summary = label(pictures, LABELS, tmp_path / "run", **settings)
    assert summary.labelled_now <= 16 - sum(stops)
    assert same_files(tmp_path / "run", finished[0])
    assert label(pictures, LABELS, tmp_path / "run", **settings).labelled_now == 0


def test_a_run_keeps_the_number_of_threads_that_it_began_with(pictures, finished, tmp_path):
    """Sums over another number of threads can differ in their last digits."""
    segmenter, seen, usual = small_segmenter(), set(), torch.get_num_threads()
    real = segmenter.predict_batch
    segmenter.predict_batch = lambda *a, **k: seen.add(torch.get_num_threads()) or real(*a, **k)
    records = label_iter(pictures, LABELS, tmp_path / "run", segmenter=segmenter, batch_size=1)
    next(records)
    records.close()
    torch.set_num_threads(usual + 1)
    try:
        label(pictures, LABELS, tmp_path / "run", segmenter=segmenter)
        assert torch.get_num_threads() == usual + 1, "what the caller has set is there again"
    finally:
        torch.set_num_threads(usual)
    assert seen == {usual}
    assert same_files(tmp_path / "run", finished[0])


def test_kill_9_costs_a_batch_at_most(pictures, finished, tmp_path):
    """Eight kills at random moments: the file is that of an unbroken run, each kill cost a batch at most."""
    rng = random.Random(0)
    moments = [f"{rng.choice([0, 1, 3])}:{rng.uniform(0.0, 0.03)}" for _ in range(8)]
    trace = tmp_path / "trace"
    worker = [
        sys.executable,
        labelling_worker.__file__,
        pictures,
        tmp_path / "run",
        trace,
        *moments,
    ]
    done = subprocess.run(worker, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same_files(tmp_path / "run", finished[0])
    starts = [len(line) for line in trace.read_text().splitlines()]
    assert len(starts) == 9
    assert sum(starts[:-1]) > 0, "some kills came when the model was at work"
    assert 0 <= sum(starts) - 12 <= labelling_worker.BATCH * sum(n > 0 for n in starts[:-1])


def test_failed_pictures_are_done_again_when_asked(segmenter, tmp_path):
    good = write_pictures(tmp_path / "in", 3)
    whole = (good / "001.png").read_bytes()
    (good / "001.png").write_bytes(b"later")
    run = tmp_path / "run"
    assert label(good, LABELS, run, segmenter=segmenter).failed == 1
    (good / "001.png").write_bytes(whole)
    assert label(good, LABELS, run, segmenter=segmenter).failed == 1
    summary = label(good, LABELS, run, segmenter=segmenter, retry_failed=True)
    assert (summary.failed, summary.labelled_now) == (0, 1)
    label(good, LABELS, tmp_path / "plain", segmenter=segmenter)
    assert same_files(run, tmp_path / "plain")


def test_another_process_on_the_same_run_is_refused_at_once(pictures, finished):
    def never():
        raise AssertionError("the models were loaded before the lock was looked at")

    with (
        FileLock(finished[0] / "lock"),
        pytest.raises(RunLockedError, match="another process works on this run"),
    ):
        label(pictures, LABELS, finished[0], segmenter=never)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["cat", "bird"]}, r"labels\.classes\[1\]\.name was 'dog', is now 'bird'"),
        (
            {"labels": {"cat": ["cat", "kitten"], "dog": ["dog"]}},
            r"labels\.classes\[0\]\.prompts\[1\] was not there",
        ),
        (
            {"labels": ["cat", "dog", "cow"]},
            r"labels\.classes\[2\]\.name was not there, is now 'cow'",
        ),
        ({"distractors": ["sky"]}, r"labels\.classes\[2\]"),
        ({"segmenter": small_segmenter(0.03)}, r"config\.presence was 0\.02, is now 0\.03"),
        ({"keep_above": 0.0}, r"keep_above was None, is now 0\.0"),
        ({"max_pixels": 10**6}, r"max_pixels was 100000000, is now 1000000"),
        ({"preset": "mine"}, r"preset was 'own models', is now 'mine'"),
    ],
)
def test_a_run_with_other_settings_is_refused(segmenter, pictures, finished, changes, message):
    settings = {"labels": LABELS, "segmenter": segmenter, **changes}
    before = (finished[0] / "journal-0001.jsonl").read_bytes()
    with pytest.raises(
        RunError, match=rf"this run began with other settings: .*{message}.*Start in a new output"
    ):
        label(pictures, output=finished[0], **settings)
    assert (finished[0] / "journal-0001.jsonl").read_bytes() == before


def test_other_weights_are_noticed():
    one, two = small_segmenter(), small_segmenter()
    assert state_sha256(one.clip.model.state_dict()) == state_sha256(two.clip.model.state_dict())
    two.clip.model.visual.proj.data[0, 0] += 1e-3
    assert state_sha256(one.clip.model.state_dict()) != state_sha256(two.clip.model.state_dict())
    assert state_sha256(one.sam.sam.state_dict()) != state_sha256(two.sam.sam.half().state_dict())
    with pytest.raises(RunError, match=r"weights\.clip was '1a', is now '2b'"):
        check_same({"weights": {"clip": "1a", "sam": "x"}}, {"weights": {"clip": "2b", "sam": "x"}})


def test_other_pictures_are_refused(segmenter, pictures, finished):
    with pytest.raises(RunError, match=r"this run began with the source .*now it is"):
        label(pictures / "sub", LABELS, finished[0], segmenter=segmenter)
    with pytest.raises(RunError, match="this run began with the root"):
        label(pictures, LABELS, finished[0], segmenter=segmenter, root=pictures / "sub")


def test_damaged_and_foreign_folders_are_refused(segmenter, pictures, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "journal-0001.jsonl").write_bytes(b"")
    with pytest.raises(RunError, match=r"there is a journal but no manifest\.json"):
        label(pictures, LABELS, tmp_path / "a", segmenter=segmenter)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        label(pictures, LABELS, tmp_path / "b", segmenter=segmenter)
    (tmp_path / "b" / "manifest.json").write_text('{"format": 2}')
    with pytest.raises(RunError, match="expected a run in format 1, got 2"):
        label(pictures, LABELS, tmp_path / "b", segmenter=segmenter)


def test_inputs_are_never_written_to(segmenter, tmp_path):
    good = write_pictures(tmp_path / "in", 3)
    with pytest.raises(ConfigError, match="which is never written to"):
        label(good, LABELS, good / "run", segmenter=segmenter)
    for path in (*good.iterdir(), good):
        path.chmod(stat.S_IREAD | (stat.S_IEXEC if path.is_dir() else 0))
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in good.iterdir()}
    folder_before = good.stat().st_mtime_ns
    assert label(good, LABELS, tmp_path / "run", segmenter=segmenter).failed == 0
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in good.iterdir()} == before
    assert good.stat().st_mtime_ns == folder_before
    good.chmod(0o755)


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 0}, {"readers": 0}, {"timeout": 0.0}, {"max_pixels": 0}, {"readers": -1}],
)
def test_settings_out_of_range_are_refused(segmenter, pictures, tmp_path, settings):
    with pytest.raises(ConfigError, match="or more, but got"):
        label(pictures, LABELS, tmp_path / "run", segmenter=segmenter, **settings)
    assert not (tmp_path / "run").exists()


def test_a_coco_files_ids_and_odd_names_come_out_as_they_are(segmenter, tmp_path):
    folder = write_pictures(tmp_path / "in", 2)
    (folder / "000.png").rename(folder / "ä <b> $(x).png")
    images = [{"id": 41, "file_name": "ä <b> $(x).png"}, {"id": 7, "file_name": "001.png"}]
    (tmp_path / "data.json").write_text(json.dumps({"images": images}))
    label(
        tmp_path / "data.json",
        ["Katze 🐈", "日本"],
        tmp_path / "run",
        segmenter=segmenter,
        root=folder,
    )
    document = json.loads((tmp_path / "run" / "annotations.json").read_text())
    assert {i["file_name"]: i["id"] for i in document["images"]} == {
        "ä <b> $(x).png": 41,
        "001.png": 7,
    }
    assert [c["name"] for c in document["categories"]] == ["Katze 🐈", "日本"]
    assert validate(document) == []


@pytest.fixture
def command(segmenter, monkeypatch):
    """Run a command as the command line does; the models are the small ones."""
    import typer

    monkeypatch.setattr("clip2sam.models.loading.load", lambda preset, **settings: segmenter)
    app = typer.Typer()
    app.command()(label_command)
    app.command()(export_command)

    def run(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        return result.exit_code, result.stdout, result.stderr, result.exception

    return run


def test_the_command_labels_goes_on_and_exports(command, pictures, finished, tmp_path):
    arguments = (
        "label",
        pictures,
        "--label",
        "cat",
        "--label",
        "dog",
        "--output",
        tmp_path / "run",
    )
    code, out, err, _ = command(*arguments)
    assert code == 1, "some failed"
    assert "16 listed = " in out
    assert err.count("failed: ") == 4
    assert same_files(tmp_path / "run", finished[0])
    code, out, err, _ = command(*arguments, "--json")
    assert "already" not in err
    assert json.loads(out)["labelled_now"] == 0
    assert command(*arguments, "--quiet")[1] == ""
    code, out, _, _ = command("export", tmp_path / "run", "--output", tmp_path / "x.json")
    assert code == 0
    assert (tmp_path / "x.json").read_bytes() == (finished[0] / "annotations.json").read_bytes()
    assert "12 of 16 pictures" in out


def test_the_command_prints_a_line_of_json_a_picture(command, pictures, tmp_path):
    code, out, _, _ = command(
        "label", pictures, "--label", "cat", "--output", tmp_path / "run", "--json"
    )
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert len(lines) == 17
    assert {line["state"] for line in lines[:-1]} >= {"failed"}
    assert lines[-1]["failed"] == 4


def test_exit_codes(command, pictures, finished, tmp_path, monkeypatch):
    common = ("label", pictures, "--label", "cat", "--label", "dog")
    with FileLock(finished[0] / "lock"):
        code, _, err, _ = command(*common, "--output", finished[0])
    assert (code, "another process" in err) == (4, True)
    code, _, err, _ = command(*common[:-2], "--output", finished[0])
    assert (code, "began with other settings" in err) == (2, True)
    code, _, err, _ = command(*common, "--output", tmp_path / "few", "--max-failures", "2")
    assert (code, "more than the 2 allowed" in err) == (6, True)

    def full(self, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clip2sam.labelling.journal.Journal._write", full)
    code, _, err, _ = command(*common, "--output", tmp_path / "full")
    assert (code, "No space left on device" in err) == (5, True)

    def interrupt(self, line):
        raise KeyboardInterrupt

    monkeypatch.setattr("clip2sam.labelling.journal.Journal._write", interrupt)
    code, _, err, _ = command(*common, "--output", tmp_path / "stopped")
    assert (code, "The same command goes on from there" in err) == (130, True)
    assert isinstance(command("label", pictures)[3], clip2sam.LabelError)
    assert isinstance(
        command("label", tmp_path / "nowhere", "--label", "a", "--output", tmp_path / "r")[3],
        ImageError,
    )
    code, _, err, _ = command("export", tmp_path, "--output", "x.json")
    assert (code, "expected the output folder of 'clip2sam label'" in err) == (2, True)
