"""Images that change, come, go or move between two starts of a run."""

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from clip2sam.data.sources import find_source
from clip2sam.errors import ConfigError, OutputError, RunError
from clip2sam.labelling.manifest import open_run
from clip2sam.labelling.run import label_dataset, label_dataset_iter
from tests.labelling_fakes import Threshold, write_images

CLASSES = Threshold.classes


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "in", 6)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def label(source, run, **settings):
    return label_dataset(source, CLASSES, run, engine=Threshold(), **settings)


def begin(source, run):
    """A run that has labelled a few images."""
    engine = Threshold(group=1)
    records = label_dataset_iter(source, CLASSES, run, engine=engine, batch_size=1, readers=1)
    next(records)
    next(records)
    records.close()


def begin_only(source, run):
    """A run that has its manifest, and has labelled nothing."""

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    with pytest.raises(Stop):
        label(source, run, on_start=stop)


def published(run):
    return (run / "annotations.json").read_bytes()


def recorded(run):
    """The stamps of the journal's lines, by image id; the last line counts."""
    lines = (run / "journal-0001.jsonl").read_text().splitlines()
    return {row["image_id"]: row.get("file") for row in map(json.loads, lines)}


def copied(images, place):
    """A copy with other times of its files."""
    shutil.copytree(images, place)
    for n, path in enumerate(sorted(place.iterdir())):
        os.utime(path, ns=(n, n))
    return place


def same_but_for_content(path, data):
    """Write other bytes of the same number; size and time stay as they were."""
    before = path.stat()
    path.write_bytes(data + path.read_bytes()[len(data) :])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("what", ["folder", "glob", "list", "image"])
def test_a_link_to_the_same_place_is_the_same_source(images, run, tmp_path, what):
    (images / "list.txt").write_text("000.png\n001.png\n")
    link = tmp_path / "link"
    link.symlink_to(images)
    name = {"folder": "", "glob": "*.png", "list": "list.txt", "image": "000.png"}[what]
    label(images / name, run)
    assert label(link / name, run).labelled_now == 0
    write_images(images, 1, first=8)
    if what in ("folder", "glob"):
        with pytest.warns(UserWarning, match=r"1 images were added since the run began: 008\.png"):
            assert label(link / name, run).labelled_now == 1
    label(link / name, tmp_path / "other", root=link)
    assert label(images / name, tmp_path / "other", root=images).labelled_now == 0
    source = find_source([link / "000.png", link / "001.png"])
    label(source, tmp_path / "objects")
    again = find_source([images / "000.png", images / "001.png"])
    assert label(again, tmp_path / "objects").labelled_now == 0


def test_a_link_to_another_place_is_another_source(images, run, tmp_path):
    label(images, run)
    (tmp_path / "link").symlink_to(write_images(tmp_path / "others", 6))
    with pytest.raises(RunError, match=r"began with the source .*/in, now it is .*/link; start in"):
        label(tmp_path / "link", run)


def test_names_of_objects_are_no_paths(images, run, tmp_path):
    """Two buckets are two, even where their names look like links to one folder."""

    class Bucket:
        keys, ids = ("000.png",), (1,)

        def __init__(self, origin):
            self.origin = str(origin)

        def read(self, key):
            return (images / key).read_bytes()

    (tmp_path / "link").symlink_to(images)
    label(Bucket(images), run)
    with pytest.raises(RunError, match=r"this run began with the source .*in, now it is .*link"):
        label(Bucket(tmp_path / "link"), run)
    with pytest.raises(ConfigError, match="hash_images is for files; leave it out"):
        label(Bucket(images), run, hash_images=True)


@pytest.mark.parametrize("how", ["folder", "list", "object"])
def test_a_moved_dataset_goes_on_where_it_is_now(images, run, tmp_path, how):
    """Also when a copy has other times, at later starts too, and with an image left to do."""
    (images / "list.txt").write_text("".join(f"{n:03d}.png\n" for n in range(6)))
    part = "list.txt" if how == "list" else "."
    given = (lambda path: find_source([path])) if how == "object" else (lambda path: path)
    begin(given(images / part), run)
    there = copied(images, tmp_path / "there")
    shutil.rmtree(images)
    with pytest.raises(RunError, match=r"now it is .*if the same images were moved .* --moved \("):
        label(given(there / part), run)
    assert label(given(there / part), run, moved=True, changed="refuse").labelled_now <= 4
    assert label(given(there / part), run, changed="refuse").labelled_now == 0
    now = open_run(run)
    assert (Path(now.origin), Path(now.root)) == ((there / part), there)
    label(given(there / part), tmp_path / "plain")
    assert published(run) == published(tmp_path / "plain")
    (there / "001.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"1 images were changed .*: 001\.png"):
        assert label(given(there / part), run).failed == 1


def test_what_came_went_and_changed_on_a_move_is_noticed(images, run, tmp_path):
    label(images, run)
    there = copied(images, tmp_path / "there")
    (there / "000.png").unlink()
    (there / "001.png").write_bytes((there / "005.png").read_bytes() + b" ")
    write_images(there, 1, first=7)
    with pytest.warns(UserWarning, match="since|source") as said:
        assert label(there, run, moved=True).labelled_now == 2
    assert [str(w.message).split(": ", 1)[1] for w in said] == [
        "1 images were added since the run began: 007.png; they are labelled now",
        "1 images are no longer in the source: 000.png; what was labelled of them is kept",
        "1 images were changed since they were labelled: 001.png; they are labelled now",
    ]


def test_a_place_without_the_runs_images_is_refused_and_nothing_is_changed(images, run, tmp_path):
    label(images, run)
    before = {path: path.read_bytes() for path in run.iterdir()}
    few, half = (write_images(tmp_path / name, n) for name, n in (("few", 2), ("half", 3)))
    expected = f"{run}: expected this run's images in {few}, but only 2 of 6 are there; check the"
    with pytest.raises(RunError) as caught:
        label(few, run, moved=True)
    assert str(caught.value).startswith(expected)
    (few / "list.txt").write_text("".join(f"{n:03d}.png\n" for n in range(6)))
    with pytest.raises(RunError, match="only 2 of 6 are there"):
        label(few / "list.txt", run, moved=True)
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    with pytest.warns(UserWarning, match="3 images are no longer in the source: 003.png, 004.png"):
        label(half, run, moved=True)
    none = tmp_path / "none"
    with pytest.raises(RunError, match="none: expected a run whose images were moved, but none"):
        label(images, none, moved=True)
    assert not none.exists()


def test_moved_says_nothing_of_a_dataset_that_stayed(images, run):
    label(images, run)
    os.utime(images / "003.png", ns=(1, 1))
    with pytest.warns(UserWarning, match=r"1 images were changed .*: 003\.png"):
        label(images, run, moved=True)


def test_a_move_that_was_stopped_is_made_again(images, run, tmp_path, monkeypatch):
    """The manifest is the last that is written: until then the run is at its old place."""
    label(images, run)
    there, before = copied(images, tmp_path / "there"), open_run(run)

    def full(*arguments, **settings):
        raise OutputError("no room")

    with monkeypatch.context() as patch:
        patch.setattr("clip2sam.labelling.run.move_run", full)
        with pytest.raises(OutputError, match="no room"):
            label(there, run, moved=True)
    assert open_run(run) == before
    assert label(there, run, moved=True, changed="refuse").labelled_now == 0
    assert open_run(run).root == str(there)
    lines = (run / "journal-0001.jsonl").read_bytes().count(b"\n")
    assert lines == 12, "each line is written anew once, for the new time of its file"


@pytest.mark.parametrize("kind", ["folder", "list", "missing"])
def test_images_that_are_gone_are_named_at_each_start_and_kept(images, run, tmp_path, kind):
    """Gone are those that a folder or list has no longer, and those of a list without a file."""
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"in/{n:03d}.png\n" for n in range(6)))
    source = images if kind == "folder" else listed
    label(source, run)
    before = published(run)
    if kind == "list":
        listed.write_text("in/000.png\n")
    else:
        for n in range(1, 6):
            (images / f"{n:03d}.png").unlink()
    names = [f"{n:03d}.png" if kind == "folder" else f"in/{n:03d}.png" for n in range(1, 6)]
    expected = f"{run}: 5 images are no longer in the source: {', '.join(names)}; "
    for _ in range(2):
        with pytest.warns(UserWarning, match="no longer in the source") as said:
            summary = label(source, run)
        (warning,) = said
        assert str(warning.message) == f"{expected}what was labelled of them is kept"
        assert (summary.failed, summary.labelled_now) == (0, 0)
    assert published(run) == before
    with pytest.raises(RunError) as caught:
        label(source, run, changed="refuse")
    assert str(caught.value).startswith(expected)


def test_an_image_that_went_before_it_was_labelled_is_a_failed_one(images, run):
    begin_only(images, run)
    for name in ("002.png", "004.png"):
        (images / name).rename(images.parent / name)
    for again in (False, True):
        with pytest.warns(UserWarning, match=r"2 images are no .*: 002\.png, 004\.png; what was"):
            summary = label(images, run, retry_failed=again)
        assert [f["reason"] for f in summary.failures] == [
            f"{name}: no longer in the source, where it was when the run began; put it back, then "
            "use --retry-failed"
            for name in ("002.png", "004.png")
        ]
    for name in ("002.png", "004.png"):
        (images.parent / name).rename(images / name)
    assert label(images, run, retry_failed=True).failed == 0


def test_a_source_of_ones_own_is_not_asked_for_what_it_has_no_longer(images, run):
    class Bucket:
        origin = "bucket://images"
        keys, ids = ("000.png", "001.png"), (1, 2)

        def read(self, key):
            return {k: (images / k).read_bytes() for k in self.keys}[key]  # else a KeyError

    bucket = Bucket()
    begin_only(bucket, run)
    bucket.keys, bucket.ids = ("001.png",), (2,)
    with pytest.warns(UserWarning, match=r"1 images are no longer in the source: 000\.png"):
        (failure,) = label(bucket, run).failures
    assert failure["reason"].startswith("000.png: no longer in the source")


def test_hashes_are_those_of_the_files_and_change_nothing_else(images, run, tmp_path):
    (images / "006.png").write_bytes(b"no image")
    label(images, run, hash_images=True)
    expected = {
        n: hashlib.sha256(path.read_bytes()).hexdigest()
        for n, path in enumerate(sorted(images.iterdir()), 1)
    }
    assert {n: stamp[2] for n, stamp in recorded(run).items()} == expected
    label(images, tmp_path / "plain")
    assert {len(stamp) for stamp in recorded(tmp_path / "plain").values()} == {2}
    assert published(run) == published(tmp_path / "plain")


def test_a_change_that_size_and_time_do_not_show_is_found_by_content(images, run, tmp_path):
    label(images, run, hash_images=True)
    same_but_for_content(images / "003.png", b"no image")
    assert label(images, run, changed="refuse").labelled_now == 0, "unless it is asked for"
    with pytest.raises(RunError, match=r"1 images were changed .*: 003\.png"):
        label(images, run, hash_images=True, changed="refuse")
    with pytest.warns(UserWarning, match=r"1 images were changed .*: 003\.png"):
        summary = label(images, run, hash_images=True)
    assert (summary.labelled_now, summary.failed) == (1, 1)
    write_images(images, 6)
    with pytest.warns(UserWarning, match=r"1 images were changed .*: 003\.png"):
        assert label(images, run, hash_images=True).failed == 0
    label(images, tmp_path / "plain")
    assert published(run) == published(tmp_path / "plain")


@pytest.mark.parametrize("hash_images", [False, True])
def test_a_file_of_another_time_and_the_same_content_is_the_same(images, run, hash_images):
    label(images, run, hash_images=True)
    before = recorded(run)
    os.utime(images / "003.png", ns=(7, 7))
    again = partial(label, images, run, changed="refuse", hash_images=hash_images)
    assert again().labelled_now == 0
    assert recorded(run) == {**before, 4: [before[4][0], 7, before[4][2]]}
    size = (run / "journal-0001.jsonl").stat().st_size
    assert again().labelled_now == 0
    assert (run / "journal-0001.jsonl").stat().st_size == size, "its new time is known now"


def test_a_run_without_hashes_gets_them_at_the_next_start_with_them(images, run):
    label(images, run)
    assert label(images, run, hash_images=True, changed="refuse").labelled_now == 0
    assert {len(stamp) for stamp in recorded(run).values()} == {3}
    same_but_for_content(images / "000.png", b"no image")
    with pytest.raises(RunError, match=r"1 images were changed .*: 000\.png"):
        label(images, run, hash_images=True, changed="refuse")


def test_a_moved_copy_with_another_content_is_found_where_there_is_a_hash(images, run, tmp_path):
    label(images, run, hash_images=True)
    label(images, tmp_path / "plain")
    there = copied(images, tmp_path / "there")
    same_but_for_content(there / "003.png", b"no image")
    with pytest.raises(RunError, match=r"1 images were changed .*: 003\.png"):
        label(there, run, moved=True, changed="refuse")
    assert open_run(run).root == str(images), "a start that is refused moves nothing"
    assert label(there, tmp_path / "plain", moved=True).labelled_now == 0


def test_a_file_that_cannot_be_read_for_its_hash_keeps_the_one_it_has(images, run, monkeypatch):
    label(images, run, hash_images=True)
    before = recorded(run)
    monkeypatch.setattr("clip2sam.labelling.journal._sha256", lambda path: None)
    assert label(images, run, hash_images=True, changed="refuse").labelled_now == 0
    assert recorded(run) == before
