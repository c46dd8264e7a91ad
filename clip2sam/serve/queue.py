"""The queue in front of the model: bounded places, one thread that computes, and time limits.

A router gets it as `request.app.state.queue` (see `clip2sam.serve.server.create_app`), and asks it
for results:

    result = await queue.segment(image, labels, {"min_share": 0.3})

or, to have a client's bytes decoded as well, in a process of their own:

    async with queue.place() as place:
        image = await place.decode(data)
        result = await place.segment(image, labels, settings)

What these raise (`UnavailableError`, `OutOfTimeError`, errors of `clip2sam.errors`) the application
turns into answers.
"""

import asyncio
import contextlib
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.errors import OutOfTimeError, UnavailableError, one_line
from clip2sam.labelling.decode_worker import DecodeWorker
from clip2sam.serve.metrics import Metrics

if TYPE_CHECKING:  # PyTorch is slow to import: the thread of the model does it
    from clip2sam.pipeline import Segmenter
    from clip2sam.result import Result
    from clip2sam.serve.together import Asked, Together

State = Literal["loading", "ready", "failed", "closed"]

LOG = logging.getLogger("clip2sam.serve")

DECODE_SECONDS = 15.0
"""Decoding an image may take: a file that makes a decoder hang holds up few others."""

WEIGHT = 0.2
"""Of the newest batch in the measured rate."""


@dataclass(frozen=True)
class Limits:
    """What a server takes."""

    max_waiting: int = 64
    """Requests at the same time, from their first byte to their answer; more are refused."""
    seconds: float = 60.0
    """A request may take, with reading, waiting and work."""
    max_bytes: int = 20_000_000
    """Of a body."""
    max_pixels: int = 25_000_000
    """Of an image, height times width."""
    max_labels: int = 100
    """Labels and distractors of a request."""
    max_text: int = 200
    """Characters of a label or text prompt."""
    batch_size: int = 8
    """Requests that go through the model together."""
    decoders: int = 2
    """Processes that decode images."""


@dataclass(eq=False)
class _Job:
    asked: "Asked"
    future: "Future[Result]" = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class WorkQueue:
    """Places for requests, and the thread that loads the model and computes.

    Args:
        load: gives the models; called in the thread.
        limits: what it takes.
    """

    def __init__(self, load: "Callable[[], Segmenter]", limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.metrics = Metrics(lambda: len(self._waiting))
        self.state: State = "loading"
        self.reason = ""
        """Why loading failed, or the model stopped."""
        self._load = load
        self._segmenter: Segmenter | None = None
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._taken = 0
        self._pace = 0.0
        self._thread = threading.Thread(target=self._live, name="model", daemon=True)
        self._decoders = Decoders(self.limits)
        # decoded images are large: few wait for the model, the others as bytes
        self._room = asyncio.Semaphore(2 * self.limits.batch_size)

    # -- for the application

    def start(self) -> None:
        """Load the model, in the thread; the state says when it is there."""
        self._thread.start()

    def close(self) -> None:
        """Take nothing more, and refuse what waits; what is in work is finished."""
        with self._changed:
            self.state = "closed"
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self._changed.notify_all()
        for job in waiting:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(self._why_not() or UnavailableError("closed"))

    def stop(self, seconds: float) -> bool:
        """Close, wait so long for what is in work, and end the decode workers. Nobody waits for a
        model that is being loaded.

        Returns:
            Whether nothing is left in work.
        """
        self.close()
        working = self._segmenter is not None
        if working:
            self._thread.join(seconds)
        self._decoders.stop()
        return not (working and self._thread.is_alive())

    # -- for requests

    @property
    def segmenter(self) -> "Segmenter":
        """The models, with the server's settings.

        Raises:
            UnavailableError: they are not there.
        """
        if self._segmenter is None or self.state != "ready":
            raise self._why_not() or UnavailableError("the model is not there")
        return self._segmenter

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator["Place"]:
        """A place for one request, from its arrival to its answer. The time limit counts from here.

        Raises:
            UnavailableError: the model isn't there, or all places are taken.
            OutOfTimeError: the time limit passes inside.
        """
        if reason := self._why_not():
            raise reason
        if self._taken >= self.limits.max_waiting:
            raise UnavailableError(
                f"{self._taken} requests are waiting already; try again later",
                self.retry_after(),
            )
        self._taken += 1
        place = Place(self)
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield place
        except TimeoutError as error:
            raise OutOfTimeError(
                f"there was no result within {self.limits.seconds:g} seconds; try again later, or "
                "with fewer labels or a smaller image"
            ) from error
        finally:
            self._taken -= 1
            place.leave()

    async def segment(
        self, image: Image, labels: LabelSet, settings: Mapping[str, Any] | None = None
    ) -> "Result":
        """Put an image into the queue, in a place of its own, and wait for its result.

        Args:
            image: decoded.
            labels: checked.
            settings: fields of `Config` in the place of the server's, without method and
                resolution.

        Raises:
            UnavailableError, OutOfTimeError: as `place`.
            ConfigError: settings that can't be.
            ModelError: the model failed on this image.
        """
        async with self.place() as place:
            return await place.segment(image, labels, settings)

    def retry_after(self) -> int:
        """Seconds until what is here now should be done, at the measured rate; at least 1."""
        return max(1, math.ceil(self._taken * self._pace))

    def _why_not(self) -> UnavailableError | None:
        """Why there can't be a result; None if there can."""
        if self.state == "loading":
            return UnavailableError("the model is being loaded; try again in a few seconds", 2)
        if self.state == "failed":
            return UnavailableError(f"the model could not be loaded: {self.reason}")
        if self.state == "closed":
            return UnavailableError("the server is shutting down; try again when it is back", 5)
        return None

    # -- the thread of the model

    def _live(self) -> None:
        try:
            from clip2sam.serve.together import Together

            segmenter = self._load()
            segmenter.forget_labels()
        except Exception as error:
            self.reason, self.state = one_line(error), "failed"
            LOG.error("the model could not be loaded: %s", self.reason)
            return
        together = Together(segmenter)
        with self._changed:
            self._segmenter = segmenter
            if self.state == "loading":
                self.state = "ready"
        while batch := self._next():
            self._work(together, batch)
            del batch  # its images

    def _next(self) -> list[_Job]:
        """Those that wait, up to a batch, without those that nobody waits for any more; none when
        the queue is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self.state == "closed")
                size = min(len(self._waiting), self.limits.batch_size)
                batch = [self._waiting.popleft() for _ in range(size)]
                if self.state == "closed":
                    return batch
            if running := [job for job in batch if job.future.set_running_or_notify_cancel()]:
                return running

    def _work(self, together: "Together", batch: Sequence[_Job]) -> None:
        began = time.monotonic()
        for job in batch:
            self.metrics.took("queue", began - job.since)
        outcomes = together([job.asked for job in batch])
        seconds = time.monotonic() - began
        each = seconds / len(batch)
        self._pace = each if not self._pace else (1 - WEIGHT) * self._pace + WEIGHT * each
        self.metrics.took("model", seconds)
        self.metrics.batch(len(batch), sum(not isinstance(one, Exception) for one in outcomes))
        for job, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)

    # -- for places

    async def decoded(self, data: bytes, name: str) -> Image:
        """Have an image decoded, see `Place.decode`."""
        began = time.monotonic()
        image = await asyncio.wrap_future(self._decoders.submit(data, name))
        self.metrics.took("decode", time.monotonic() - began)
        return image

    async def finished(self, asked: "Asked") -> "Result":
        """Wait for a request's turn and result. One whose waiting is cancelled before its turn
        leaves the queue."""
        job = _Job(asked)
        with self._changed:
            if reason := self._why_not():
                raise reason
            self._waiting.append(job)
            self._changed.notify()
        try:
            return await asyncio.wrap_future(job.future)
        finally:
            with self._changed, contextlib.suppress(ValueError):
                self._waiting.remove(job)

    @property
    def room(self) -> asyncio.Semaphore:
        """For decoded images that wait for the model."""
        return self._room


class Place:
    """What a request does while it has its place."""

    def __init__(self, queue: WorkQueue) -> None:
        self._queue, self._in_room = queue, False

    async def decode(self, data: bytes, name: str = "image") -> Image:
        """Decode an image, in a process of its own: a file that makes a decoder crash, hang or eat
        memory costs that process.

        Args:
            data: its encoded bytes.
            name: what messages call it; the image's origin.

        Raises:
            ImageError: it can't be read, or has too many pixels.
        """
        if not self._in_room:
            await self._queue.room.acquire()
            self._in_room = True
        return await self._queue.decoded(data, name)

    async def segment(
        self,
        image: Image,
        labels: LabelSet,
        settings: Mapping[str, Any] | None = None,
        *,
        file_name: str = "image",
    ) -> "Result":
        """Wait for the model's turn and result.

        Args:
            image, labels, settings: as for `WorkQueue.segment`.
            file_name: for the result's record, see `clip2sam.coco.document.file_name_fault`.

        Raises:
            UnavailableError: the server is shutting down.
            ConfigError: settings that can't be.
            ModelError: the model failed on this image.
        """
        from clip2sam.serve.together import Asked

        segmenter = self._queue.segmenter.with_config(**dict(settings or {}))
        prepared = await asyncio.to_thread(segmenter.prepare, image)
        return await self._queue.finished(Asked(prepared, labels, segmenter, file_name))

    def leave(self) -> None:
        """Give back what it has."""
        if self._in_room:
            self._queue.room.release()
            self._in_room = False


class Decoders:
    """Decode workers, each for one thread at a time.

    Args:
        limits: how many, and the pixels of an image.
    """

    def __init__(self, limits: Limits) -> None:
        self._threads = ThreadPoolExecutor(limits.decoders, "decode")
        self._idle: queue.SimpleQueue[DecodeWorker] = queue.SimpleQueue()
        self._workers = [
            DecodeWorker(limits.max_pixels, min(limits.seconds, DECODE_SECONDS))
            for _ in range(limits.decoders)
        ]
        for worker in self._workers:
            self._idle.put(worker)

    def submit(self, data: bytes, name: str) -> "Future[Image]":
        """Decode in one of the threads."""
        return self._threads.submit(self._decode, data, name)

    def _decode(self, data: bytes, name: str) -> Image:
        worker = self._idle.get()  # as many as threads: there is one
        try:
            return worker.decode(data, name)
        finally:
            self._idle.put(worker)

    def stop(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.stop()
