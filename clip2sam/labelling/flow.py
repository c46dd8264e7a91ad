"""From names to lines in the journal: reader threads, the model, and a writer thread, with bounded queues between.

At most `batch_size` pictures are ever between the model and the journal: that is what a kill can cost. The model takes
half of them at a time, so that it works on one half while masks are made of the other.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from clip2sam.data.images import printable
from clip2sam.data.records import Labelled, State
from clip2sam.errors import Clip2SamError, RunError, TooManyFailuresError
from clip2sam.labelling.decide import reaches
from clip2sam.labelling.engine import Engine, is_out_of_memory, predict_within_memory, retried
from clip2sam.labelling.journal import SECONDS_A_SYNC, Journal
from clip2sam.labelling.readers import Decoder, Read, Readers

MODEL_FAILURES = 3
"""So many pictures in a row that the model fails on mean that it is not the pictures."""


@dataclass
class Clock:
    """Where the time of a run went, in seconds, from the first picture on."""

    total: float = 0.0
    waited_for_pictures: float = 0.0
    waited_for_writer: float = 0.0
    began: float | None = None


def run_flow(
    wanted: Sequence[tuple[int, str]],
    engine: Engine,
    journal: Journal,
    thresholds: Sequence[float | None],
    make_decoder: Callable[[], Decoder],
    *,
    threads: int,
    batch_size: int,
    max_failures: int | None = None,
    clock: Clock | None = None,
) -> Iterator[Labelled]:
    """Label pictures; yield each record when it is in the journal.

    When the iterator is closed, or Ctrl-C comes, what the model has finished still goes into the journal.

    Args:
        wanted: pairs of place and key.
        thresholds: the presence score that each class must reach for a picture to count as done; None: any.
        make_decoder: called once in each of the reader threads.
        batch_size: pictures between the model and the journal.
        max_failures: stop after more than so many failed pictures.
        clock: filled in on the way.

    Raises:
        OutputError: the journal can't be written.
        TooManyFailuresError: more than `max_failures`.
        RunError: the model failed on several pictures in a row, or no decoder can be started.
    """
    clock = clock or Clock()
    writer = Writer(engine, journal, thresholds, dict(wanted), batch_size, max_failures)
    with Readers(iter(wanted), make_decoder, threads, engine.prepare) as readers, writer:
        for batch in _batches(readers, writer, max(batch_size // 2, 1), clock):
            writer.wait_for_room(len(batch))
            writer.hand_over(_predict(engine, batch))
            clock.waited_for_pictures, clock.waited_for_writer = readers.waited, writer.waited
            yield from writer.written()
    if clock.began is not None:
        clock.total = time.perf_counter() - clock.began
    yield from writer.written()


@dataclass(frozen=True)
class _Predicted:
    """A picture behind the model: with a prediction, or with a failure."""

    read: Read
    prediction: Any = None
    failure: str = ""
    by_model: bool = False
    seconds: float = 0.0


def _batches(readers: Readers, writer: "Writer", size: int, clock: Clock) -> Iterator[list[Read]]:
    """Pictures in batches, as they come; those that can't be read go straight to the writer."""
    batch: list[Read] = []
    for read in readers:
        if clock.began is None:  # starting the decoders is no wait of the model's
            clock.began, readers.waited = time.perf_counter(), 0.0
        if read.image is None:
            writer.hand_over([_Predicted(read, failure=read.failure)])
        else:
            batch.append(read)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _predict(engine: Engine, batch: Sequence[Read]) -> list[_Predicted]:
    """Run the model. An error that isn't lack of memory is looked for one picture at a time."""
    began = time.perf_counter()
    try:
        predictions = predict_within_memory(
            engine, [read.image for read in batch if read.image is not None]
        )
    except Clip2SamError:
        raise
    except Exception as error:
        failure = _reason(error)
    else:
        seconds = (time.perf_counter() - began) / len(batch)
        return [_Predicted(r, p, seconds=seconds) for r, p in zip(batch, predictions, strict=True)]
    if len(batch) == 1:
        return [_Predicted(batch[0], failure=failure, by_model=True)]
    return [predicted for read in batch for predicted in _predict(engine, [read])]


def _reason(error: BaseException) -> str:
    if is_out_of_memory(error):
        return "memory ran out on this picture alone; make it smaller, or free memory and use --retry-failed"
    return f"the model failed on this picture ({type(error).__name__}: {printable(str(error))[:300]}); leave it out"


class Writer:
    """The thread behind the model: makes masks, decides whether there is one, and writes the journal.

    Once something is wrong with the journal it only lets go of what comes; `hand_over` and leaving the context raise.
    """

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        thresholds: Sequence[float | None],
        keys: dict[int, str],
        batch_size: int,
        max_failures: int | None,
    ) -> None:
        self._engine, self._journal, self._thresholds, self._keys = (
            engine,
            journal,
            thresholds,
            keys,
        )
        self._max_failures, self._failures, self._in_a_row = max_failures, 0, 0
        self._queue: queue.Queue[_Predicted | None] = queue.Queue(maxsize=max(2 * batch_size, 16))
        self._room, self._batch_size = threading.Semaphore(batch_size), batch_size
        self._written: deque[Labelled] = deque()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="writer", daemon=True)
        self.waited = 0.0
        """Seconds for which the model has waited for the writer."""

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self._raise_error()

    def wait_for_room(self, pictures: int) -> None:
        """Wait until so many pictures (at most the batch size) may go to the model."""
        began = time.perf_counter()
        for _ in range(min(pictures, self._batch_size)):
            self._room.acquire()
        self.waited += time.perf_counter() - began
        self._raise_error()

    def hand_over(self, predicted: Sequence[_Predicted]) -> None:
        """Give pictures to the writer. Those that the model had count against the room."""
        began = time.perf_counter()
        for item in predicted:
            self._queue.put(item)
        self.waited += time.perf_counter() - began
        self._raise_error()

    def written(self) -> Iterator[Labelled]:
        """The records that are in the journal since the last call."""
        while self._written:
            yield self._written.popleft()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        """The thread's life."""
        while True:
            try:
                item = self._queue.get(timeout=SECONDS_A_SYNC)
            except queue.Empty:
                self._guarded(self._journal.sync_if_due)
                continue
            if item is None:
                return
            if self._error is None:
                self._guarded(partial(self._write_one, item))
            if item.read.image is not None:
                self._room.release()

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            self._error = error

    def _write_one(self, item: _Predicted) -> None:
        record, by_model = self._record(item)
        self._journal.append(record)
        self._written.append(record)
        if record.state != "failed":
            self._in_a_row = 0
            return
        self._failures += 1
        self._in_a_row += by_model
        if self._max_failures is not None and self._failures > self._max_failures:
            raise TooManyFailuresError(
                f"{self._failures} pictures failed, more than the {self._max_failures} allowed; the last one: "
                f"{record.reason}"
            )
        if self._in_a_row >= MODEL_FAILURES:
            raise RunError(
                f"the model failed on {self._in_a_row} pictures in a row, so it is not the pictures; the last one: "
                f"{record.reason}. Put it right, then start with --retry-failed"
            )

    def _record(self, item: _Predicted) -> tuple[Labelled, bool]:
        """The picture's record, and whether the model failed on it."""
        read, key = item.read, self._keys[item.read.picture]
        seconds = {"decode": round(read.seconds, 6), "model": round(item.seconds, 6)}
        image = read.image
        if image is None or item.failure:
            failed = Labelled(read.picture, key, "failed", item.failure, seconds=seconds)
            return failed, item.by_model
        began = time.perf_counter()
        try:
            presence, masks = retried(lambda: self._engine.finish(image, item.prediction))
        except Exception as error:
            return Labelled(read.picture, key, "failed", _reason(error), seconds=seconds), True
        seconds["masks"] = round(time.perf_counter() - began, 6)
        state: State = (
            "done"
            if any(reaches(presence[m.label], self._thresholds[m.label]) for m in masks)
            else "empty"
        )
        return Labelled(
            read.picture,
            key,
            state,
            size=image.size,
            presence=presence,
            masks=masks,
            seconds=seconds,
        ), False
