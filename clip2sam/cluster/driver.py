"""A run on many machines: a driver cuts it, gives shards to Ray's workers, and publishes."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip2sam import errors
from clip2sam.cluster.connection import (
    Room,
    Workers,
    check_address,
    check_installed,
    check_travels,
    checked_workers,
    connected,
)
from clip2sam.cluster.queue import PAUSE, Job, Queue
from clip2sam.cluster.worker import Ready, Recipe, Refusal, Report, ShardWorker, Task, versions
from clip2sam.config import whole_number
from clip2sam.data.images import MAX_PIXELS, printable
from clip2sam.data.labels import as_label_set
from clip2sam.data.sources import Source
from clip2sam.errors import (
    ConfigError,
    RunError,
    RunLockedError,
    TooManyFailuresError,
    one_line,
)
from clip2sam.export import Exporter
from clip2sam.labelling.changes import Changed
from clip2sam.labelling.engine import KeepAbove
from clip2sam.labelling.lock import RunLock, lock_run
from clip2sam.labelling.manifest import Work
from clip2sam.labelling.merge import publish_shards
from clip2sam.labelling.outputs import FORMATS
from clip2sam.labelling.plan import MOST_SHARDS, Plan, is_sharded, open_plan, planned
from clip2sam.labelling.run import IMAGES_IN_FLIGHT, TIMEOUT, StrPath, label_dataset_iter
from clip2sam.labelling.summary import Summary
from clip2sam.models.presets import Preset
from clip2sam.pipeline import LabelsLike, Segmenter

SHARDS_PER_WORKER = 6
"""So that at the end no worker waits long for the others."""
LEAST = 200
"""Images of a shard, if there are enough: starting one costs about a second."""
MOST = 50_000
"""Images of a shard: whoever merges has the names of one in memory."""

STARTS = 5
"""So many workers in a row that die while they start mean that none can."""
SECONDS_TO_PLACE = 60.0
"""Without a single worker for so long, the person is told what Ray waits for."""
SECONDS_TO_STOP = 15.0
"""For which workers may bring what they work on to an end."""


@dataclass(frozen=True)
class Progress:
    """How far a run is, over all workers."""

    listed: int
    todo: int
    """Images that are left; of shards that no worker has looked at yet an estimate."""
    images: int
    """Labelled in this start."""
    failed: int
    """Of these."""
    workers: int
    """That are labelling."""
    reasons: tuple[str, ...] = ()
    """Why images failed since the last report; at most 20 from each worker."""


def label_with_ray(
    source: StrPath | Source,
    labels: LabelsLike,
    output: StrPath,
    *,
    segmenter: Recipe | Segmenter = "tiny",
    workers: Workers = "auto",
    address: str | None = None,
    shards: int | None = None,
    exporters: Mapping[str, Exporter] | None = None,
    formats: Sequence[str] = FORMATS,
    on_progress: Callable[[Progress], Any] | None = None,
    on_publish: Callable[[int, int], Any] | None = None,
    distractors: Sequence[str] = (),
    root: StrPath | None = None,
    batch_size: int = IMAGES_IN_FLIGHT,
    readers: int | None = None,
    keep_above: KeepAbove = "auto",
    retry_failed: bool = False,
    changed: Changed = "again",
    moved: bool = False,
    hash_images: bool = False,
    max_failures: int | None = None,
    max_pixels: int = MAX_PIXELS,
    timeout: float = TIMEOUT,
    preset: str = "own models",
) -> Summary:
    """Label a dataset with the workers of a Ray cluster: start, or continue; then publish. The
    files are those of `label_dataset`, to the byte, if that computes with as many threads.

    clip2sam and its extra `ray` must be installed on every machine, in the same version; all see
    the output folder, and the images, under the same paths. The run is one in shards: what Ray's
    workers leave can be labelled by `label_dataset(..., shard=...)`, and the other way round.

    Args:
        source, labels, output, distractors, root, exporters, formats, batch_size, keep_above,
            retry_failed, changed, moved, hash_images, max_pixels, timeout, preset: as for
            `label_dataset`. The source is given by its name: an object would have to travel to
            every worker.
        segmenter: the models, which each worker loads: a preset's name, a `Preset`, or a function
            that can be pickled and gives a segmenter or an engine, such as
            `functools.partial(clip2sam.load, "vit-h", precision="bf16")`.
        workers: how many. "auto": one for each GPU of the cluster; if it has none, one for each
            processor, with one thread of PyTorch.
        address: of the cluster; "auto": the one that this machine belongs to; None: what the
            environment variable RAY_ADDRESS says, else a Ray of its own is started here. If this
            process is connected to Ray already, that is used.
        shards: how many parts the run is cut into when it begins; by default up to six for each
            worker, of about 200 to 50,000 images.
        on_progress: called about twice a second, by each worker's report.
        on_publish: called for each image that is published, with the number done, and of how many.
        readers: processes that decode images, for each worker; by default one without a GPU, else
            up to eight by the number of processors.
        max_failures: stop after more than so many failed images in this start, over all workers.

    Returns:
        The run in figures. Seconds are those of all workers together.

    Raises:
        RunLockedError: another process works on this run, or for long on one of its shards.
        RunError: as `label_dataset`; or a worker doesn't see the output folder, has another version
            of clip2sam or PyTorch, or can't be started; or three in a row died on one shard.
        TooManyFailuresError: more images failed than `max_failures`.
        ConfigError: Ray is not installed, or a setting is out of range.
        ImageError, LabelError, WeightsError, OutputError: as `label_dataset`.
    """
    if isinstance(source, Source) or isinstance(segmenter, Segmenter):
        raise ConfigError(
            "a run by Ray takes the source by its name (a path), and models by a preset or a "
            "function that loads them: every worker opens its own"
        )
    check_installed()
    check_address(address)
    check_travels(segmenter)
    wanted, path = checked_workers(workers), Path(output).absolute()
    if shards is not None:
        whole_number("shards", shards, 1, MOST_SHARDS, "shards")
    label_set = as_label_set(labels, distractors=distractors)
    options: dict[str, Any] = {
        "formats": formats,
        "batch_size": batch_size,
        "readers": readers,
        "retry_failed": retry_failed,
        "changed": changed,
        "hash_images": hash_images,
        "max_failures": max_failures,
        "max_pixels": max_pixels,
        "timeout": timeout,
    }
    # refuses what is out of range; nothing is done before a record is asked for
    label_dataset_iter(
        source, label_set, path, keep_above=keep_above, exporters=exporters, **options
    )
    if isinstance(segmenter, str | Preset):
        preset = segmenter if isinstance(segmenter, str) else segmenter.name
    with lock_run(path) as lock, connected(address, wanted) as room:
        plan = _plan(path, source, root, shards, room, moved=moved)
        if readers is None:
            options["readers"] = room.threads
        task = Task(plan, lock.owner.token, label_set, segmenter, preset, keep_above, options)
        driver = _Driver(task, room, lock, max_failures, on_progress)
        driver.run()
        now = Work(driver.images, driver.seconds)
        return publish_shards(
            path, lock, formats=formats, exporters=exporters, now=now, on_image=on_publish
        )


def _plan(
    path: Path,
    source: StrPath,
    root: StrPath | None,
    shards: int | None,
    room: Room,
    *,
    moved: bool,
) -> Plan:
    """The run's plan, made now if it has none."""

    def suitable(listed: Source) -> int:
        return shards_for(len(listed.keys), room.workers, getattr(listed, "units", ()))

    there = open_plan(path).shards if is_sharded(path) else None
    if there is not None and shards not in (None, there):
        raise RunError(
            f"{printable(path)}: this run has {there} shards, not {shards}; leave their "
            "number out, or give another output folder"
        )
    return planned(path, source, root, shards or suitable, threads=room.threads, moved=moved)


def shards_for(images: int, workers: int, units: Sequence[int] = ()) -> int:
    """Into how many shards a run is cut: as many for each worker, so that none is left to wait.

    Args:
        units: as for `clip2sam.labelling.plan.cut`: no more shards than these.
    """
    count = min(SHARDS_PER_WORKER * workers, images // LEAST)
    count = max(count, -(-images // MOST), 1)
    count = min(-(-count // workers) * workers, max(images, 1))
    return min(count, len(units) or count, MOST_SHARDS)


def _actors(room: Room) -> Any:
    """Ray's class of workers. One of a worker's two threads labels; the other one listens."""
    import ray

    return ray.remote(ShardWorker).options(max_concurrency=2, **room.needs)


@dataclass
class _Worker:
    """A worker as the driver sees it."""

    actor: Any
    waits_for: Any = None
    """What it has been asked for: Ray's reference, or stream; None: it is idle."""
    job: Job | None = None
    """None: it starts, or is idle."""


class _Driver:
    """Gives shards to workers until all are done."""

    def __init__(
        self,
        task: Task,
        room: Room,
        lock: RunLock,
        max_failures: int | None,
        on_progress: Callable[[Progress], Any] | None,
    ) -> None:
        self._task, self._room, self._lock = task, room, lock
        self._max_failures, self._on_progress = max_failures, on_progress
        self._queue = Queue(task.plan)
        self._workers: list[_Worker] = []
        self._failed_starts = self._failed = 0
        self._notes = set[str]()
        self._placed_until: float | None = time.monotonic() + SECONDS_TO_PLACE
        self._actors = _actors(room)
        self._began: float | None = None
        self.images = 0
        """Labelled in this start."""

    @property
    def seconds(self) -> float:
        """Since the first worker has reported: without what starting takes."""
        return 0.0 if self._began is None else time.perf_counter() - self._began

    def run(self) -> None:
        """Until all shards are done, or given up.

        Raises:
            Clip2SamError: what ended the run, see `label_with_ray`.
        """
        try:
            while self._queue.jobs:
                self._fill()
                self._assign()
                for worker in self._heard():
                    self._hear(worker)
                self._lock.check()
                self._look_for_a_place()
        finally:
            self._stop()
        self._queue.check()

    def _fill(self) -> None:
        """Have as many workers as there is room for, and work. Ray places those that take a dead
        one's place, as soon as there is a place."""
        while len(self._workers) < min(self._room.workers, len(self._queue.jobs)):
            actor = self._actors.remote(self._task)
            self._workers.append(_Worker(actor, actor.start.remote()))

    def _assign(self) -> None:
        for worker in self._workers:
            if worker.waits_for is None and (job := self._queue.take()) is not None:
                stream = worker.actor.label.options(num_returns="streaming")
                worker.job, worker.waits_for = job, stream.remote(job.number)

    def _heard(self) -> list[_Worker]:
        """The workers that have said something; after a second without it nobody."""
        import ray

        asked = {id(w.waits_for): w for w in self._workers if w.waits_for is not None}
        if not asked:  # another process works on all shards that are left
            time.sleep(PAUSE)
            return []
        waits_for = [worker.waits_for for worker in asked.values()]
        ready, _ = ray.wait(waits_for, timeout=1.0, fetch_local=False)
        if ready:  # it is one; are there more?
            ready, _ = ray.wait(waits_for, num_returns=len(waits_for), timeout=0, fetch_local=False)
        return [asked[id(ref)] for ref in ready]

    def _hear(self, worker: _Worker) -> None:
        """Take in what a worker has said, or that it is dead."""
        from ray import get
        from ray.exceptions import RayError, RayTaskError

        try:
            said = get(worker.waits_for if worker.job is None else next(worker.waits_for))
        except StopIteration:
            assert worker.job is not None  # it was a stream
            self._queue.done(worker.job)
            worker.job = worker.waits_for = None
        except RayTaskError:  # the worker lives: this is a fault of the program
            raise
        except RayError as error:
            self._lose(worker, error)
        else:
            self._take_in(worker, said)

    def _take_in(self, worker: _Worker, said: Ready | Report | Refusal) -> None:
        if isinstance(said, Report):
            self._count(worker, said)
        elif isinstance(said, Ready):
            if said.versions != versions():
                raise RunError(
                    f"a worker on {said.node} has {said.versions}, but the driver has "
                    f"{versions()}; install the same versions on all machines of the cluster"
                )
            worker.waits_for, self._failed_starts = None, 0
        elif said.kind == RunLockedError.__name__ and worker.job is not None:
            self._queue.locked(worker.job, RunLockedError(said.message))
            worker.job = worker.waits_for = None
        else:
            raise getattr(errors, said.kind)(said.message)

    def _count(self, worker: _Worker, report: Report) -> None:
        job = worker.job
        assert job is not None  # who has none reports nothing
        self._began = self._began or time.perf_counter()
        if report.todo is not None:  # it has begun: whoever locked it before is gone
            job.todo, job.locked_since = report.todo, None
        job.todo = max(job.todo - report.images, 0)
        self.images += report.images
        self._failed += report.failed
        for note in report.notes:
            if note not in self._notes:
                self._notes.add(note)
                warnings.warn(note, stacklevel=2)
        if self._on_progress is not None:
            working = sum(w.job is not None for w in self._workers)
            counts = (self._queue.todo, self.images, self._failed, working, report.reasons)
            self._on_progress(Progress(self._task.plan.images, *counts))
        if self._max_failures is not None and self._failed > self._max_failures:
            raise TooManyFailuresError(
                f"{self._failed} images failed, more than the {self._max_failures} allowed; the "
                f"last one: {report.reasons[-1]}"
            )

    def _lose(self, worker: _Worker, error: Exception) -> None:
        """A worker is dead, or out of reach."""
        reason = one_line(error)
        self._workers.remove(worker)
        self._kill(worker)
        if worker.job is not None:
            self._queue.died(worker.job, reason)
            return
        self._failed_starts += 1
        if self._failed_starts >= STARTS:
            raise RunError(
                f"{STARTS} workers in a row died while they started; the last one: {reason}. "
                "clip2sam[ray] must be installed on all machines of the cluster, with memory for "
                "the models in each worker"
            ) from error

    def _look_for_a_place(self) -> None:
        """Say once that Ray has no place for any worker. That may change: machines may come."""
        import ray

        if self._placed_until is None:
            return
        if any(w.job is not None for w in self._workers):
            self._placed_until = None
        elif time.monotonic() > self._placed_until:
            self._placed_until = None
            free = {k: n for k, n in ray.available_resources().items() if k in ("CPU", "GPU")}
            warnings.warn(
                f"Ray has not started any worker for {SECONDS_TO_PLACE:g} seconds: each needs "
                f"{self._room.needs}, and the cluster has {free} free; waiting",
                stacklevel=2,
            )

    def _stop(self) -> None:
        """End all workers; those that label bring the image to an end that they work on."""
        import ray
        from ray.exceptions import RayError

        streams = []
        with suppress(RayError):
            for worker in self._workers:
                if worker.job is not None:
                    worker.actor.stop.remote()
                    streams.append(worker.waits_for.completed())
            if streams:
                ray.wait(streams, num_returns=len(streams), timeout=SECONDS_TO_STOP)
        for worker in self._workers:
            self._kill(worker)

    def _kill(self, worker: _Worker) -> None:
        import ray
        from ray.exceptions import RayError

        with suppress(RayError):  # it is dead already, or Ray is
            ray.kill(worker.actor)
