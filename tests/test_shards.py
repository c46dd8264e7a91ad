"""Runs in shards: planned once, labelled in any order, merged to the same bytes."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch

from clip2sam.cli.groups import ModelOptions
from clip2sam.data.sources import find_source
from clip2sam.errors import ConfigError, RunError, RunLockedError
from clip2sam.labelling.content import open_content
from clip2sam.labelling.export import export_run
from clip2sam.labelling.lock import RunLock
from clip2sam.labelling.manifest import open_run
from clip2sam.labelling.merge import merge_run
from clip2sam.labelling.plan import Shard, as_shard, cut, make_plan, open_plan
from clip2sam.labelling.run import label_dataset, label_dataset_iter
from tests.labelling_fakes import Threshold, write_images

LABELS = ["red", "green", "blue"]
FILES = ("annotations.json", "results.json")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eleven images, two of them no images at all."""
    folder = write_images(tmp_path_factory.mktemp("shards") / "in", 9)
    (folder / "004b.png").write_text("no image")
    (folder / "zzz.jpg").write_bytes(b"")
    return folder


def label(source, output, shard=None, engine=None, **options):
    return label_dataset(
        source, LABELS, output, engine=engine or Threshold(), shard=shard, readers=1, **options
    )


def label_all(source, output, of, **options):
    return [label(source, output, f"{n}/{of}", **options) for n in range(of, 0, -1)]


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The same run without shards."""
    output = tmp_path_factory.mktemp("whole") / "run"
    return output, label(images, output)


@pytest.fixture(scope="module")
def labelled(images, tmp_path_factory):
    """A run of which all three shards are labelled; to be copied."""
    output = tmp_path_factory.mktemp("labelled") / "run"
    label_all(images, output, 3)
    return output


@pytest.fixture
def run(labelled, tmp_path):
    """A copy of it."""
    return shutil.copytree(labelled, tmp_path / "run")


def counts(summary):
    """A summary without what took time."""
    timed = ("seconds", "waited", "labelled_now", "images_per_second")
    return {name: value for name, value in vars(summary).items() if not name.startswith(timed)}


def same_files(one, other):
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


@pytest.mark.parametrize(("images", "shards"), [(0, 1), (1, 1), (10, 3), (3, 10), (64, 64)])
def test_parts_are_equal_but_for_one_image(images, shards):
    borders = cut(images, shards)
    sizes = [after - before for before, after in pairwise(borders)]
    assert (borders[0], borders[-1], len(sizes)) == (0, images, shards)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("units", "shards", "expected"),
    [
        ((4, 4, 4), 3, [0, 4, 8, 12]),
        ((5, 1, 1, 5), 2, [0, 6, 12]),
        ((5, 4, 3), 2, [0, 5, 12]),
        ((10, 1, 1), 3, [0, 0, 10, 12]),
        ((6, 6), 3, [0, 4, 8, 12]),  # fewer files than parts: they are cut through
    ],
)
def test_a_part_holds_whole_files_where_there_are_enough(units, shards, expected):
    assert cut(sum(units), shards, units) == expected


def test_a_shard_is_what_is_typed_or_what_the_surroundings_say():
    assert as_shard("3/64", {}) == Shard(3, 64)
    assert as_shard(Shard(1, 2)) == Shard(1, 2)
    slurm = {"SLURM_ARRAY_TASK_" + k: v for k, v in {"ID": "7", "MIN": "3", "MAX": "9"}.items()}
    array = {**slurm, "SLURM_ARRAY_TASK_COUNT": "7"}
    assert as_shard("auto", array) == Shard(5, 7)
    stepped = {**slurm, "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_STEP": "2"}
    assert as_shard("auto", stepped) == Shard(3, 4)
    ranks = {"RANK": "0", "WORLD_SIZE": "8"}
    assert as_shard("auto", ranks) == Shard(1, 8)
    assert as_shard("auto", {**array, **ranks, "RANK": "7"}) == Shard(4 * 8 + 8, 56)
    assert [Shard(3, 64).folder, Shard(3, 12345).folder] == ["0003-of-0064", "00003-of-12345"]


@pytest.mark.parametrize(
    ("given", "environ", "message"),
    [
        ("0/4", {}, r"1 <= NUMBER <= OF <= 100000, as in 3/64, but got 0/4"),
        ("5/4", {}, r"but got 5/4"),
        ("1/100001", {}, r"but got 1/100001"),
        ("a", {}, r"a shard is NUMBER/OF, as in 3/64, or auto, but got 'a'"),
        ("auto", {}, r"auto needs SLURM_ARRAY_TASK_ID .* or RANK and WORLD_SIZE .* none of them"),
        ("auto", {"RANK": "1"}, r"whole number in the environment variable WORLD_SIZE, but got ''"),
        ("auto", {"RANK": "2", "WORLD_SIZE": "2"}, r"RANK says .* process 2 \(from 0\) of 2"),
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "5",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_MAX": "9",
                "SLURM_ARRAY_TASK_COUNT": "3",
            },
            r"the Slurm array has 3 tasks from 1 to 9, some of which are left out",
        ),
    ],
)
def test_what_is_no_shard_is_refused(given, environ, message):
    with pytest.raises(ConfigError, match=message):
        as_shard(given, environ)


@pytest.mark.parametrize("shards", [1, 3, 15])
def test_merged_files_are_those_of_the_run_without_shards(whole, images, tmp_path, shards):
    summaries = label_all(images, tmp_path / "run", shards)
    assert sum(s.listed for s in summaries) == 11
    told = []
    (tmp_path / "run" / ".shards.0a1b2c3d.tmp").mkdir()  # of a process that was killed
    merged = merge_run(tmp_path / "run", on_image=lambda *counts: told.append(counts))
    assert same_files(tmp_path / "run", whole[0])
    assert told[-1] == (11, 11)
    assert counts(merged) == counts(whole[1])
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        *FILES,
        "summary.json",
        "presence.png",
        "shards",
    }
    merge_run(tmp_path / "run")
    assert same_files(tmp_path / "run", whole[0]), "merging again changes nothing"


def test_a_merge_ends_when_its_lock_is_lost(run, monkeypatch):
    told = []

    def check(lock):
        if told:
            raise RunLockedError("another process has it now")

    monkeypatch.setattr(RunLock, "check", check)
    with pytest.raises(RunLockedError, match="has it now"):
        merge_run(run, on_image=lambda *counts: told.append(counts))
    assert told == [(1, 11)]
    assert not (run / "annotations.json").exists()


def test_images_with_ids_of_their_own_keep_them(images, tmp_path):
    names = sorted(path.name for path in images.iterdir())
    rows = [{"id": 100 - i, "file_name": name} for i, name in enumerate(names)]
    (tmp_path / "list.json").write_text(json.dumps({"images": rows}))
    options = {"root": images}
    label(tmp_path / "list.json", tmp_path / "whole", **options)
    label_all(tmp_path / "list.json", tmp_path / "run", 4, **options)
    merge_run(tmp_path / "run")
    assert same_files(tmp_path / "run", tmp_path / "whole")


def test_a_source_of_ones_own_is_cut_too(images, tmp_path):
    class Own:
        origin, keys, ids = "own", ("b", "a", "c"), (7, 5, 6)

        def read(self, key):
            return (images / f"00{'abc'.index(key)}.png").read_bytes()

    label(Own(), tmp_path / "whole")
    label_all(Own(), tmp_path / "run", 2)
    merge_run(tmp_path / "run")
    assert same_files(tmp_path / "run", tmp_path / "whole")
    with pytest.raises(ConfigError, match="come from an object; give it again"):
        open_plan(tmp_path / "run").part(1)


def test_a_shard_goes_on_where_it_stopped(whole, images, tmp_path):
    records = label_dataset_iter(
        images, LABELS, tmp_path / "run", engine=Threshold(), shard="2/2", readers=1, batch_size=1
    )
    next(records)
    records.close()
    with pytest.raises(RunError, match=r"shard 1 of 2 has not begun; label it, as .* --shard 1/2"):
        merge_run(tmp_path / "run")
    label(images, tmp_path / "run", "1/2")
    left = (
        len(open_content(tmp_path / "run").run.keys)
        + 11
        - len(list(open_content(tmp_path / "run").records()))
    )
    assert left
    with pytest.raises(
        RunError, match=rf"shard 2 of 2 has {left} images without a line .* again, .* --shard 2/2"
    ):
        merge_run(tmp_path / "run")
    assert not (tmp_path / "run" / "annotations.json").exists()
    engine = Threshold()
    label(images, tmp_path / "run", "2/2", engine)
    assert len(engine.seen) == left - 1, "one that is left is no image"
    merge_run(tmp_path / "run")
    assert same_files(tmp_path / "run", whole[0])


def test_the_first_listing_counts(images, tmp_path):
    source = shutil.copytree(images, tmp_path / "in")
    label(source, tmp_path / "run", "1/2")
    shutil.copy(source / "000.png", source / "000b.png")
    label(source, tmp_path / "run", "2/2")
    merge_run(tmp_path / "run")
    names = [i["file_name"] for i in read(tmp_path / "run")["images"]]
    assert "000b.png" not in names
    assert len(names) == 9


def test_a_merged_run_began_with_its_first_shard(images, tmp_path, monkeypatch):
    for number, second in ((2, 1700000000), (3, 1700000001), (1, 1700000002)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(second))
        label(images, tmp_path / "run", f"{number}/3")
    merge_run(tmp_path / "run")
    assert read(tmp_path / "run")["info"]["date_created"] == "2023-11-14T22:13:20Z"


def read(run):
    return json.loads((run / "annotations.json").read_text())


def test_any_number_of_processes_agree_on_one_plan(images, tmp_path):
    sources = [find_source([images / f"00{n}.png", images / "008.png"]) for n in range(8)]

    def plan(source):
        return make_plan(tmp_path / "run", lambda: source, 2, threads=1)

    with ThreadPoolExecutor(8) as pool:
        plans = list(pool.map(plan, sources))
    assert len(set(plans)) == 1
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["shards"], "no other one is left"


def test_shards_and_no_shards_do_not_mix(images, run, tmp_path):
    with pytest.raises(RunError, match="is in 3 shards; label them, as with --shard 1/3, or merge"):
        label(images, run)
    with pytest.raises(RunError, match=r"has 3 shards, not 4; give one of those, 1/3 to 3/3"):
        label(images, run, "1/4")
    with pytest.raises(RunError, match=r"began with the source .*in, now it is .*elsewhere"):
        label(shutil.copytree(images, tmp_path / "elsewhere"), run, "1/3")
    label(images / "000.png", tmp_path / "plain")
    with pytest.raises(RunError, match="has begun without shards; go on without them"):
        label(images / "000.png", tmp_path / "plain", "1/1")
    with pytest.raises(RunError, match=r"expected a run in shards, but shards/plan.json can't be"):
        merge_run(tmp_path / "plain")
    with pytest.raises(RunError, match=r"expected a run in shards"):
        merge_run(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_all_shards_are_labelled_with_the_same_settings(images, tmp_path):
    label(images, tmp_path / "run", "1/2")
    message = r"the shard 0001-of-0002 of this run began with other settings: engine\.thresholds"
    with pytest.raises(RunError, match=message):
        label(images, tmp_path / "run", "2/2", Threshold(threshold=0.6))
    label(images, tmp_path / "run", "2/2")
    manifest = tmp_path / "run/shards/0002-of-0002/manifest.json"
    rows = json.loads(manifest.read_text())
    rows["fingerprint"]["max_pixels"] = 5
    manifest.write_text(json.dumps(rows))
    with pytest.raises(RunError, match=r"began with other settings: max_pixels was 100000000, is"):
        merge_run(tmp_path / "run")


def test_all_shards_compute_with_as_many_threads_as_the_first(images, tmp_path):
    seen, threads = [], torch.get_num_threads()

    class Noting(Threshold):
        def predict(self, prepared):
            seen.append(torch.get_num_threads())
            return super().predict(prepared)

    label(images, tmp_path / "run", "1/2", Noting())
    try:
        torch.set_num_threads(threads + 1)
        label(images, tmp_path / "run", "2/2", Noting())
        assert set(seen) == {threads}
        assert torch.get_num_threads() == threads + 1, "as it was before"
    finally:
        torch.set_num_threads(threads)
    merge_run(tmp_path / "run")


def test_a_shard_in_the_place_of_another_one_is_seen(run):
    own = (run / "shards/0002-of-0003/images.json").read_bytes()
    shutil.rmtree(run / "shards/0002-of-0003")
    shutil.copytree(run / "shards/0003-of-0003", run / "shards/0002-of-0003")
    plan = run / "shards/plan.json"
    with pytest.raises(RunError, match="together are not those of the plan"):
        merge_run(run)
    (run / "shards/0002-of-0003/images.json").write_bytes(own)
    with pytest.raises(RunError, match="are not those that the plan gives to 2/3; its folder is"):
        merge_run(run)
    plan.write_text(plan.read_text().replace('"format":1', '"format":9'))
    with pytest.raises(RunError, match=r"another version of clip2sam \(format 9, expected 1\)"):
        merge_run(run)
    plan.write_text("{")
    with pytest.raises(RunError, match=r"plan.json: this plan is damaged"):
        merge_run(run)
    plan.write_text(json.dumps({"format": 1}))
    with pytest.raises(RunError, match=r"plan.json: this plan is damaged"):
        merge_run(run)


def test_a_damaged_journal_is_not_merged(run, images):
    journal = run / "shards/0002-of-0003/journal-0001.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"shard 2 of 3 has 1 images without a line in the journal"):
        merge_run(run)
    label(images, run, "2/3")
    assert merge_run(run).failed == 2


def test_what_there_is_of_an_unfinished_run_can_be_exported(images, whole, tmp_path):
    label(images, tmp_path / "run", "3/3")
    label(images, tmp_path / "run", "1/3")
    summary = export_run(tmp_path / "run", tmp_path / "some.json")
    assert (summary.listed, summary.done + summary.empty + summary.failed) == (11, 7)
    ids = [i["id"] for i in json.loads((tmp_path / "some.json").read_text())["images"]]
    assert ids == sorted(ids)
    assert set(ids) < {i["id"] for i in read(whole[0])["images"]}
    with pytest.raises(ConfigError, match="lies among the run's own shards"):
        export_run(tmp_path / "run", tmp_path / "run/shards/x.json")
    with pytest.raises(ConfigError, match="lies where images are read"):
        export_run(tmp_path / "run", images / "x.json")
    make_plan(tmp_path / "new", lambda: find_source(images), 2, threads=1)
    with pytest.raises(RunError, match="no shard of this run has begun"):
        export_run(tmp_path / "new", tmp_path / "none.json")


def test_the_images_of_a_run_in_shards_may_move(images, whole, tmp_path):
    source, run = shutil.copytree(images, tmp_path / "in"), tmp_path / "run"
    label(source, run, "1/2")
    source = source.rename(tmp_path / "moved")
    (tmp_path / "other").mkdir()
    shutil.copy(source / "000.png", tmp_path / "other")
    with pytest.raises(RunError, match=r"only 1 of 5 are there"):
        label(tmp_path / "other", run, "1/2", moved=True)
    with pytest.raises(RunError, match=r"expected a run whose images were moved, but none has"):
        label(source, tmp_path / "nothing", "1/2", moved=True)
    engine = Threshold()
    label(source, run, "2/2", moved=True)
    label(source, run, "1/2", engine)
    assert not engine.seen, "they are the same images"
    assert open_run(run / "shards/0001-of-0002").root == str(source)
    merge_run(run)
    assert same_files(run, whole[0])


def test_storage_that_machines_cannot_share_is_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr("clip2sam.labelling.storage._bucket", lambda path: "s3fs")
    with pytest.raises(RunError, match="it is an object store, mounted by s3fs"):
        label(images, tmp_path / "run", "1/2")
    label(images, tmp_path / "alone")


def test_a_plan_is_not_made_where_images_are_read(images):
    with pytest.raises(ConfigError, match="lies where images are read"):
        label(images, images / "run", "1/2")
    assert not (images / "run").exists()


def test_the_command_line_labels_shards_and_merges_them(
    command_line, images, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    engine = Threshold()
    monkeypatch.setattr("clip2sam.labelling.run._Start._load", lambda self, begun: engine)
    labels = [part for name in LABELS for part in ("--label", name)]
    options = (*labels, "--allow-unknown", "--preset", "tiny")
    code, printed, _ = command_line(
        "label", images, *options, "--shard", "1/2", "--format", "jsonl"
    )
    assert code == 0
    assert "wrote run/shards/0001-of-0002/annotations.jsonl" in printed
    assert "shard 1/2 is labelled; when all are: clip2sam merge run" in printed
    code, _, errors = command_line("merge", "run")
    assert (code, "shard 2 of 2 has not begun" in errors) == (2, True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    code, _, errors = command_line("label", images, *labels, "--allow-unknown", "--shard", "auto")
    assert code == 1, "the preset is that of the run"
    code, printed, _ = command_line("merge", "run", "--format", "coco", "--format", "jsonl")
    assert (code, "11 listed = 8 done + 1 empty + 2 failed; 11 labelled, in" in printed) == (
        1,
        True,
    )
    assert "wrote run/annotations.json, run/annotations.jsonl" in printed
    lines = (tmp_path / "run/annotations.jsonl").read_text()
    parts = sorted((tmp_path / "run/shards").glob("*/annotations.jsonl"))
    assert len(parts) == 1, "the second shard was not asked for it"
    assert lines.startswith(parts[0].read_text())
    assert len(lines.splitlines()) == len(read(tmp_path / "run")["annotations"])
    code, printed, _ = command_line("merge", "run", "--json")
    assert json.loads(printed)["listed"] == 11
    code, _, errors = command_line("label", images, *options, "--shard", "3/2")
    assert (code, "as in 3/64, but got 3/2" in errors) == (2, True)


def test_torchrun_gives_each_process_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert ModelOptions().on_own_gpu().device == "auto"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert ModelOptions().on_own_gpu().device == "cuda:3"
    assert ModelOptions(device="cuda:1").on_own_gpu().device == "cuda:1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert ModelOptions().on_own_gpu().device == "auto"
