"""Runs by Ray: the files of a run in one process, whatever dies; and what is refused."""

import logging
import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
from ray import cloudpickle

from clip2sam.cli.ray import RayOptions
from clip2sam.cluster import connection, driver, queue
from clip2sam.cluster.connection import Room, check_address, check_installed, checked_workers
from clip2sam.cluster.driver import Progress, label_with_ray, shards_for
from clip2sam.cluster.queue import Queue
from clip2sam.cluster.worker import Ready, Refusal, Report, ShardWorker, Task
from clip2sam.data.labels import as_label_set
from clip2sam.data.sources import find_source
from clip2sam.errors import (
    ConfigError,
    OutputError,
    RunError,
    RunLockedError,
    TooManyFailuresError,
)
from clip2sam.labelling.lock import lock_run
from clip2sam.labelling.merge import merge_run
from clip2sam.labelling.plan import make_plan
from clip2sam.labelling.run import label_dataset
from tests.labelling_fakes import Noting, Threshold, small_segmenter, write_images

LABELS = ["red", "green", "blue"]
FILES = ("annotations.json", "results.json")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Forty images, two of them no images at all."""
    folder = write_images(tmp_path_factory.mktemp("ray") / "in", 38)
    (folder / "004b.png").write_text("no image")
    (folder / "zzz.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """The run in one process."""
    output = tmp_path_factory.mktemp("whole") / "run"
    label_dataset(images, LABELS, output, engine=Threshold(), readers=1)
    return output


@pytest.fixture(scope="module")
def ray():
    """Ray on this machine, for all tests of this file: the process is connected already."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield ray
        ray.shutdown()


def label(images, output, engine=Threshold, **options):
    return label_with_ray(images, LABELS, output, segmenter=engine, **{"workers": 2, **options})


def same_files(one, other):
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def test_a_killed_worker_costs_a_batch_and_nothing_else(ray, images, whole, tmp_path):
    seen, told = tmp_path / "seen", []
    seen.mkdir()
    summary = label(
        images,
        tmp_path / "run",
        partial(Noting, seen),
        workers=1,
        shards=2,
        on_progress=told.append,
    )
    assert same_files(tmp_path / "run", whole)
    assert (summary.listed, summary.failed) == (40, 2)
    starts = [path.stat().st_size for path in seen.iterdir()]
    assert len(starts) == 2, "one took the dead one's place"
    assert 38 <= sum(starts) <= 38 + 8
    last = told[-1]
    assert (last.listed, last.todo) == (40, 0)
    assert 40 - 8 <= last.images <= 40, "counts of a dead worker's last moments are lost"
    reasons = [reason for progress in told for reason in progress.reasons]
    assert len(reasons) == last.failed
    assert any("zzz.jpg: expected an image" in reason for reason in reasons)
    store = ray.cluster_resources()["object_store_memory"]
    assert ray.available_resources()["object_store_memory"] == store, "it holds nothing"
    assert ray.is_initialized(), "whoever has connected it may go on"


def test_a_second_driver_is_refused_at_once(images, tmp_path):
    with lock_run(tmp_path), pytest.raises(RunLockedError, match="another process works on this"):
        label(images, tmp_path)


def test_what_cannot_be_is_refused_before_ray_is_started(images, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "connected", None)
    with pytest.raises(ConfigError, match=r"takes the source by its name .* every worker opens"):
        label(find_source(images), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"and models by a preset or a function"):
        label(images, tmp_path / "run", small_segmenter())
    with pytest.raises(ConfigError, match=r"can't be pickled \(.*\); give a preset, or a function"):
        label(images, tmp_path / "run", threading.Lock().acquire)
    with pytest.raises(ConfigError, match="batch_size must be a whole number"):
        label(images, tmp_path / "run", batch_size=0)
    with pytest.raises(ConfigError, match="shards must be a whole number"):
        label(images, tmp_path / "run", shards=0)
    assert not (tmp_path / "run").exists()


def test_ray_is_an_extra(monkeypatch):
    monkeypatch.setattr("clip2sam.cluster.connection.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'clip2sam\[ray\]', on every machine"):
        check_installed()


def test_workers_and_addresses():
    assert (checked_workers("auto"), checked_workers(3)) == ("auto", 3)
    with pytest.raises(ConfigError, match="workers must be a whole number from 1 to 100000"):
        checked_workers(0)
    with pytest.raises(ConfigError, match="workers must be a whole number or auto, but got 'many'"):
        checked_workers("many")
    check_address("auto")
    with pytest.raises(ConfigError, match=r"'ray://head:10001' is Ray's client, .* address auto"):
        check_address("ray://head:10001")


def test_how_many_workers_a_cluster_has_room_for():
    room = connection._room
    assert room({"GPU": 4.0, "CPU": 64.0}, "auto") == Room(4, True, 8)
    assert room({"GPU": 4.0, "CPU": 8.0}, 3) == Room(3, True, 2)
    assert room({"CPU": 5.0}, "auto") == Room(5, False, 1)
    assert room({}, 8) == Room(8, False, 1), "its machines may come later"
    assert Room(1, True, 1).needs == {"num_cpus": 0, "num_gpus": 1}
    assert Room(1, False, 1).needs == {"num_cpus": 1, "num_gpus": 0}
    with pytest.raises(RunError, match="has neither a GPU nor a processor to give; start its"):
        room({"memory": 1e9}, "auto")


@pytest.mark.parametrize(
    ("images", "workers", "units", "shards"),
    [
        (10, 2, (), 2),
        (1, 2, (), 1),
        (2400, 2, (), 12),
        (2400, 64, (), 64),
        (600, 2, (), 4),  # three of 200 would leave one worker with twice the work
        (100_000_000, 64, (), 2048),
        (2400, 2, (1200, 1200), 2),
        (2400, 2, (100,) * 24, 12),
    ],
)
def test_shards_are_a_few_for_each_worker(images, workers, units, shards):
    assert shards_for(images, workers, units) == shards


# -- the worker, without Ray


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr("warnings.showwarning", None)  # a worker's process is its own


def task_for(images, path, token, engine=Threshold, **options):
    plan = make_plan(path, lambda: find_source(images), 2, threads=1)
    labels = as_label_set(LABELS)
    options = {"readers": 1, **options}
    return Task(plan, token, labels, engine, "own models", "auto", options)


def test_a_worker_labels_shards_and_reports_counts(here, images, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("clip2sam.cluster.worker.SECONDS_PER_REPORT", 0.0)  # each image
    with lock_run(tmp_path / "run") as lock:
        worker = ShardWorker(task_for(images, tmp_path / "run", lock.owner.token))
        assert isinstance(worker.start(), Ready)
        for number in (2, 1):
            told = list(worker.label(number))
            assert len(told) > 2
            assert told[0].todo == 20
            assert sum(report.images for report in told) == 20
            assert sum(report.failed for report in told) == 1
        assert [report.todo for report in worker.label(1)] == [0]
    merge_run(tmp_path / "run")
    assert same_files(tmp_path / "run", whole)


def test_a_worker_stops_when_it_is_told(here, images, tmp_path):
    with lock_run(tmp_path / "run") as lock:
        worker = ShardWorker(task_for(images, tmp_path / "run", lock.owner.token, batch_size=2))
        worker.start()
        worker.stop()
        assert sum(report.images for report in worker.label(1)) == 1
    journal = tmp_path / "run/shards/0001-of-0002/journal-0001.jsonl"
    assert 1 <= journal.read_bytes().count(b"\n") < 20


def test_a_worker_says_what_is_wrong(here, images, tmp_path):
    worker = ShardWorker(task_for(images, tmp_path / "run", "another token"))
    refusal = worker.start()
    assert (refusal.kind, "doesn't see the folder that the driver works in" in refusal.message) == (
        "RunError",
        True,
    )
    with lock_run(tmp_path / "run") as lock:
        task = task_for(images, tmp_path / "run", lock.owner.token)
        worker = ShardWorker(task)
        worker.start()
        (task.plan.folder(1) / "images.json").write_text("{")
        *_, report, refusal = worker.label(1)
        assert isinstance(report, Report)
        assert refusal.kind == "RunError"
        assert "this list of a shard's images can't be used" in refusal.message
        lost = ShardWorker(replace(task, models="no such preset")).start()
        assert isinstance(lost, Refusal)
        assert lost.kind == "ConfigError"


def test_weights_are_hashed_once_for_all_shards(here, images, tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr("clip2sam.labelling.engine.state_sha256", lambda state: hashed.append(1))
    with lock_run(tmp_path / "run") as lock:
        task = task_for(images, tmp_path / "run", lock.owner.token, small_segmenter)
        worker = ShardWorker(replace(task, keep_above=None))
        worker.start()
        engine = worker._engine
        assert engine.fingerprint() is engine.fingerprint()
    assert len(hashed) == 1


# -- the queue


@pytest.fixture
def plan(images, tmp_path):
    return make_plan(tmp_path / "run", lambda: find_source(images), 4, threads=1)


def test_the_largest_shard_is_next(plan):
    (plan.folder(1) / "journal-0001.jsonl").write_text("line\n" * 4)
    (plan.folder(3) / "journal-0001.jsonl").write_text("line\n" * 20)
    waiting = Queue(plan)
    assert waiting.todo == 6 + 10 + 0 + 10
    taken = [waiting.take() for _ in range(4)]
    assert [job.number for job in taken] == [2, 4, 1, 3]
    assert waiting.take() is None
    waiting.give_back(taken[3])
    assert waiting.take() is taken[3]


def test_a_long_journal_is_not_read_to_its_end(plan, monkeypatch):
    monkeypatch.setattr(queue, "SAMPLE", 50)
    (plan.folder(1) / "journal-0001.jsonl").write_bytes(b"12345678\n" * 5)
    (plan.folder(2) / "journal-0001.jsonl").write_bytes(b"123456789\n" * 8)
    todo = {job.number: job.todo for job in Queue(plan).jobs.values()}
    assert (todo[1], todo[2]) == (5, 2)


def test_a_shard_on_which_workers_die_without_progress_is_given_up(plan):
    waiting = Queue(plan)
    job = waiting.take()
    for n in range(5):  # its journal grows each time
        job.journal.write_text("line\n" * n)
        waiting.died(job, "killed")
        assert waiting.take() is job
    for _ in range(2):
        waiting.died(job, "out of memory")
    assert job.number not in waiting.jobs
    message = r"3 workers in a row died on the shard 1/4 \(.*0001-of-0004\) .* out of memory\. See"
    with pytest.raises(RunError, match=message):
        waiting.check()


def test_a_shard_that_another_process_works_on_is_tried_again(plan, monkeypatch):
    waiting, now = Queue(plan), [1000.0]
    monkeypatch.setattr("clip2sam.cluster.queue.time.monotonic", lambda: now[0])
    job = waiting.take()
    waiting.locked(job, RunLockedError("somebody"))
    others = [waiting.take() for _ in range(3)]
    assert job not in others
    assert waiting.take() is None
    now[0] += queue.PAUSE
    assert waiting.take() is job
    now[0] += queue.LOCKED
    waiting.locked(job, RunLockedError("somebody"))
    with pytest.raises(RunLockedError, match="somebody"):
        waiting.check()


# -- the driver, without Ray


@pytest.fixture
def one(images, tmp_path, monkeypatch):
    """A driver, with a worker that is a shard's."""
    monkeypatch.setattr(driver._Driver, "_kill", lambda *_: None)
    with lock_run(tmp_path / "run") as lock:
        task = task_for(images, tmp_path / "run", lock.owner.token)
        one = driver._Driver(task, Room(1, False, 1), lock, 3, None)
        one._workers.append(driver._Worker(None, "asked", one._queue.take()))
        yield one


def test_a_worker_of_another_version_is_refused(one):
    with pytest.raises(RunError, match=r"a worker on n1 has clip2sam 0, .* install the same vers"):
        one._take_in(one._workers[0], Ready("n1", "clip2sam 0, torch 0"))


def test_errors_of_a_worker_end_the_run_as_they_are(one):
    with pytest.raises(OutputError, match="the disk is full"):
        one._take_in(one._workers[0], Refusal("OutputError", "the disk is full"))


def test_a_shard_that_is_locked_leaves_its_worker_free(one):
    (worker,) = one._workers
    one._take_in(worker, Refusal("RunLockedError", "somebody"))
    assert (worker.job, worker.waits_for) == (None, None)
    assert len(one._queue.jobs) == 2


def test_a_shard_that_was_locked_once_may_be_so_again_later(one, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("clip2sam.cluster.queue.time.monotonic", lambda: now[0])
    (worker,) = one._workers
    job = worker.job
    one._take_in(worker, Refusal("RunLockedError", "somebody"))
    now[0] += queue.PAUSE
    worker.job = one._queue.take()
    assert worker.job is job
    one._take_in(worker, Report(20, images=1))
    now[0] += queue.LOCKED
    one._take_in(worker, Refusal("RunLockedError", "the dead worker's lock"))
    one._queue.check()
    assert job.number in one._queue.jobs


def test_failures_of_all_workers_are_counted_together(one):
    other = driver._Worker(None, "asked", one._queue.take())
    one._take_in(one._workers[0], Report(20, images=3, failed=2, reasons=("a", "b")))
    with pytest.raises(TooManyFailuresError, match=r"4 images failed, more than the 3 .* one: d"):
        one._take_in(other, Report(20, images=2, failed=2, reasons=("c", "d")))
    assert (one.images, other.job.todo) == (5, 18)


def test_a_warning_of_all_workers_is_given_once(one):
    report = Report(notes=("3 lines can't be read",))
    with pytest.warns(UserWarning, match="3 lines can't be read"):
        one._take_in(one._workers[0], report)
    one._take_in(one._workers[0], report)  # a second warning would be an error here


def test_workers_that_die_while_they_start_end_the_run(one):
    for _ in range(driver.STARTS - 1):
        one._workers.append(driver._Worker(None, "asked"))
        one._lose(one._workers[-1], RuntimeError("no module"))
    one._workers.append(driver._Worker(None, "asked"))
    message = r"5 workers in a row died while they started; the last one: no module\. clip2sam\[ray"
    with pytest.raises(RunError, match=message):
        one._lose(one._workers[-1], RuntimeError("no module"))


def test_a_dead_workers_shard_waits_again(one):
    (worker,) = one._workers
    job = worker.job
    one._lose(worker, RuntimeError("killed"))
    assert not one._workers
    assert job in [one._queue.take(), one._queue.take()]


# -- the command line


@pytest.mark.parametrize(
    ("options", "readers", "shard", "found"),
    [
        ({}, None, None, None),
        ({}, 3, "1/2", 3),
        ({"workers": "3"}, None, None, 3),
        ({"engine": "ray", "workers": "auto", "address": "auto"}, 2, None, 2),
    ],
)
def test_workers_are_readers_without_ray(options, readers, shard, found):
    assert RayOptions(**options).readers(readers, shard) == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "--engine must be local or ray, but got 'spark'"),
        ({"address": "auto"}, "--address is for --engine ray; leave it out"),
        ({"workers": "auto"}, "without --engine ray, --workers is the number of --readers, but"),
        ({"workers": "2", "readers": 2}, "without --engine ray, --workers is --readers; give one"),
        ({"engine": "ray", "shard": "1/2"}, "--engine ray labels all shards; leave out --shard"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    given = {name: options.pop(name, None) for name in ("readers", "shard")}
    with pytest.raises(ConfigError, match=message):
        RayOptions(**options).readers(**given)


def test_the_command_hands_all_on_and_counts(images, tmp_path, monkeypatch, command_line):
    seen = {}

    def label_with_ray(source, labels, output, *, segmenter, on_progress, **settings):
        seen.update(settings, source=source, pickled=cloudpickle.dumps(segmenter))
        on_progress(Progress(40, 40, 0, 0, 1))
        reasons = tuple(f"image {n} is bad" for n in range(210))
        on_progress(Progress(40, 10, 30, 210, 1, reasons))
        print("what Ray says")
        label(output)
        return merge_run(output)

    def label(output):
        for shard in ("1/2", "2/2"):
            engine = Threshold()
            label_dataset(images, LABELS, output, engine=engine, shard=shard, readers=1)

    monkeypatch.setattr("clip2sam.cluster.driver.label_with_ray", label_with_ray)
    options = ["--label", "red circle", "--output", str(tmp_path / "run"), "--preset", "tiny"]
    options += ["--engine", "ray", "--workers", "2", "--address", "auto", "--max-failures", "9"]
    code, out, errors = command_line("label", images, *options)
    assert code == 1, "two images failed"
    assert (seen["workers"], seen["address"], seen["max_failures"]) == (2, "auto", 9)
    assert cloudpickle.loads(seen["pickled"]).func.__name__ == "load"
    assert errors.count("failed: image") == 200
    assert "more failures are only counted; summary.json has them all" in errors
    assert "what Ray says" not in out, "a program reads it"
    assert "40 listed = " in out
    assert " + 2 failed; " in out


def test_storage_that_machines_cannot_share_is_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "connected", lambda *given: nullcontext(Room(1, False, 1)))
    monkeypatch.setattr("clip2sam.labelling.storage._bucket", lambda path: "s3fs")
    with pytest.raises(RunError, match="it is an object store, mounted by s3fs"):
        label(images, tmp_path / "run")
