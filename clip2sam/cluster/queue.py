"""Which shard is next: the one with the most images left. Which are given up."""

import time
from dataclasses import dataclass
from pathlib import Path

from clip2sam.data.images import printable
from clip2sam.errors import Clip2SamError, RunError, RunLockedError
from clip2sam.labelling.journal import FILE
from clip2sam.labelling.plan import IMAGES, Plan, Shard

DEATHS = 3
"""So many workers in a row that die on a shard, and label none of its images, are no accident."""

PAUSE = 2.0
"""Seconds until a shard is tried again that another process works on."""
LOCKED = 90.0
"""Seconds for which it may be: workers of a driver that was killed end by themselves."""

SAMPLE = 2**18
"""Bytes of a journal from which the length of its lines is known."""


@dataclass
class Job:
    """A shard that isn't done yet."""

    number: int
    todo: int
    """Images that are left; an estimate until a worker has looked."""
    journal: Path
    deaths: int = 0
    """Workers in a row that died on it without a new line in its journal."""
    bytes_then: int = -1
    """Of its journal, when the last one died."""
    free_from: float = 0.0
    """On the clock of `time.monotonic`."""
    locked_since: float | None = None


class Queue:
    """The shards of a run that wait for a worker."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        numbers, folders = range(1, plan.shards + 1), plan.folders()
        # names are alike in length
        sizes = [(folder / IMAGES).stat().st_size for folder in folders]
        self.jobs = {
            n: Job(n, _left(folder / FILE, plan.images * size / sum(sizes)), folder / FILE)
            for n, folder, size in zip(numbers, folders, sizes, strict=True)
        }
        """All that are not done, waiting or not."""
        self._waiting = set(self.jobs)
        self._given_up: dict[int, Clip2SamError] = {}

    @property
    def todo(self) -> int:
        """Images that are left, of all shards."""
        return sum(job.todo for job in self.jobs.values())

    def take(self) -> Job | None:
        """The next shard; None: there is none now."""
        now = time.monotonic()
        free = [n for n in self._waiting if self.jobs[n].free_from <= now]
        if not free:
            return None
        number = max(free, key=lambda n: (self.jobs[n].todo, -n))
        self._waiting.remove(number)
        return self.jobs[number]

    def done(self, job: Job) -> None:
        """A shard is labelled."""
        del self.jobs[job.number]

    def give_back(self, job: Job) -> None:
        """A shard waits again."""
        self._waiting.add(job.number)

    def died(self, job: Job, reason: str) -> None:
        """A shard's worker is dead: it waits again, or is given up."""
        size = job.journal.stat().st_size if job.journal.exists() else 0
        job.deaths = 1 if size != job.bytes_then else job.deaths + 1
        job.bytes_then = size
        if job.deaths < DEATHS:
            self.give_back(job)
            return
        error = RunError(
            f"{DEATHS} workers in a row died on the shard {Shard(job.number, self._plan.shards)} "
            f"({printable(job.journal.parent)}) and labelled none of its images; the last one: "
            f"{reason}. See what is in the images that its journal doesn't have, or give the "
            "workers more memory; then start the same command again"
        )
        self._give_up(job, error)

    def locked(self, job: Job, error: RunLockedError) -> None:
        """Another process works on a shard: it waits for a while, or is given up."""
        now = time.monotonic()
        since = job.locked_since = job.locked_since or now
        if now - since < LOCKED:
            job.free_from = now + PAUSE
            self.give_back(job)
        else:
            self._give_up(job, error)

    def check(self) -> None:
        """To be called at the end.

        Raises:
            RunError: a shard was given up.
        """
        if not self._given_up:
            return
        error = self._given_up[min(self._given_up)]
        more = len(self._given_up) - 1
        raise type(error)(f"{error} ({more} more shards were given up)" if more else str(error))

    def _give_up(self, job: Job, error: Clip2SamError) -> None:
        self._given_up[job.number] = error
        del self.jobs[job.number]


def _left(journal: Path, images: float) -> int:
    """About how many images of a shard have no line in its journal, without reading all of it."""
    try:
        with open(journal, "rb") as file:
            sample = file.read(SAMPLE)
        lines = sample.count(b"\n") * journal.stat().st_size / max(len(sample), 1)
    except FileNotFoundError:
        lines = 0.0
    return max(round(images - lines), 0)
