"""From names to lines in the journal: reader threads, the model, and a writer thread, with bounded
queues between them.

At most `batch_size` images are ever between the model and the journal: that is what a kill can
cost. The model takes half of them at a time, so that it computes one half while masks are made of
the other.
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

from clip2sam.data.presence import recorded_presence
from clip2sam.data.records import ImageRecord
from clip2sam.errors import TooManyFailuresError
from clip2sam.labelling.engine import Engine, Outcome, predict_within_memory, retried
from clip2sam.labelling.failures import RETRY_FAILED, ModelFailures, is_refusal, reason_of
from clip2sam.labelling.journal import SECONDS_PER_SYNC, Journal
from clip2sam.labelling.readers import Read, Readers, Worker
from clip2sam.labelling.summary import Clock


def run_flow(
    wanted: Sequence[tuple[int, str]],
    read: Callable[[str], str | bytes],
    engine: Engine,
    journal: Journal,
    make_worker: Callable[[], Worker],
    *,
    threads: int,
    batch_size: int,
    max_failures: int | None = None,
    clock: Clock | None = None,
    hashed: bool = False,
) -> Iterator[ImageRecord]:
    """Label images; yield each record when it is in the journal.

    When the iterator is closed, or Ctrl-C comes, what the model has finished still goes into the
    journal.

    Args:
        wanted: pairs of image id and key.
        read: from a key to the image's path or encoded bytes: `Source.read`.
        make_worker: called once in each of the reader threads.
        batch_size: images between the model and the journal.
        max_failures: stop after more than so many failed images.
        clock: filled in on the way.
        hashed: whether the journal gets the SHA-256 of the images' files.

    Raises:
        OutputError: the journal can't be written.
        TooManyFailuresError: more than `max_failures`.
        RunError: the model failed on several images in a row, or no decode worker can be started.
    """
    clock = clock or Clock()
    writer = Writer(engine, journal, dict(wanted), batch_size, max_failures)
    readers = Readers(iter(wanted), read, make_worker, threads, engine.prepare, hashed=hashed)
    try:
        with readers, writer:
            for batch in _batches(readers, writer, max(batch_size // 2, 1), clock):
                writer.wait_for_room(len(batch))
                writer.hand_over(_predict(engine, batch))
                clock.waited_for_images, clock.waited_for_writer = readers.waited, writer.waited
                yield from writer.written()
    finally:
        clock.images = writer.images
        if clock.began is not None:
            clock.total = time.perf_counter() - clock.began
    yield from writer.written()


@dataclass(frozen=True)
class Predicted:
    """An image behind the model: with a prediction, or with a failure."""

    read: Read
    prediction: Any = None
    failure: str = ""
    by_model: bool = False
    seconds: float = 0.0
    """The image's share of what the model took for its batch."""


def _batches(readers: Readers, writer: "Writer", size: int, clock: Clock) -> Iterator[list[Read]]:
    """Images in batches, as they come; those that can't be read go straight to the writer."""
    batch: list[Read] = []
    for read in readers:
        if clock.began is None:  # starting the workers doesn't count as waiting
            clock.began, readers.waited = time.perf_counter(), 0.0
        if read.image is None:
            writer.hand_over([Predicted(read, failure=read.failure)])
        else:
            batch.append(read)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _predict(engine: Engine, batch: Sequence[Read]) -> list[Predicted]:
    """Run the model. After an error other than lack of memory, each image is tried alone."""

    def predict(reads: Sequence[Read]) -> Sequence[Any]:
        return engine.predict([_prepared(engine, read) for read in reads])

    began = time.perf_counter()
    try:
        predictions = predict_within_memory(engine, batch, predict)
    except Exception as error:
        if is_refusal(error):
            raise
        failure = reason_of(error, RETRY_FAILED)
    else:
        seconds = (time.perf_counter() - began) / len(batch)
        return [Predicted(r, p, seconds=seconds) for r, p in zip(batch, predictions, strict=True)]
    if len(batch) == 1:
        return [Predicted(batch[0], failure=failure, by_model=True)]
    return [predicted for read in batch for predicted in _predict(engine, [read])]


def _prepared(engine: Engine, read: Read) -> Any:
    assert read.image is not None  # `_batches` keeps the others back
    return engine.prepare(read.image) if read.prepared is None else read.prepared


class Writer:
    """The thread behind the model: makes masks, decides whether there is one, and writes the
    journal.

    Once something is wrong with the journal it only discards what comes; `hand_over` and leaving
    the context raise.
    """

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        keys: dict[int, str],
        batch_size: int,
        max_failures: int | None,
    ) -> None:
        self._engine, self._journal, self._keys = engine, journal, keys
        self._max_failures, self._failures = max_failures, 0
        self._in_a_row = ModelFailures(RETRY_FAILED)
        self._queue: queue.Queue[Predicted | None] = queue.Queue(maxsize=max(2 * batch_size, 16))
        self._room, self._batch_size = threading.Semaphore(batch_size), batch_size
        self._written: deque[ImageRecord] = deque()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="writer", daemon=True)
        self.waited = 0.0
        """Seconds for which the model has waited for the writer."""
        self.images = 0
        """Those that went into the journal."""

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

    def wait_for_room(self, images: int) -> None:
        """Wait until so many images (at most the batch size) may go to the model."""
        began = time.perf_counter()
        for _ in range(min(images, self._batch_size)):
            self._room.acquire()
        self.waited += time.perf_counter() - began
        self._raise_error()

    def hand_over(self, predicted: Sequence[Predicted]) -> None:
        """Give images to the writer. Those that the model had count against the room."""
        began = time.perf_counter()
        for item in predicted:
            self._queue.put(item)
        self.waited += time.perf_counter() - began
        self._raise_error()

    def written(self) -> Iterator[ImageRecord]:
        """The records that went into the journal since the last call."""
        while self._written:
            yield self._written.popleft()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        """The thread's life."""
        while True:
            try:
                item = self._queue.get(timeout=SECONDS_PER_SYNC)
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

    def _write_one(self, item: Predicted) -> None:
        record, by_model = self._record(item)
        self._journal.append(record, item.read.stamp)
        self._written.append(record)
        self.images += 1
        if record.state != "failed":
            self._in_a_row.clear()
            return
        self._failures += 1
        if self._max_failures is not None and self._failures > self._max_failures:
            raise TooManyFailuresError(
                f"{self._failures} images failed, more than the {self._max_failures} allowed; the "
                f"last one: {record.reason}"
            )
        if by_model:
            self._in_a_row.add(record.reason)

    def _record(self, item: Predicted) -> tuple[ImageRecord, bool]:
        """The image's record, and whether the model failed on it."""
        read = item.read
        image_id, key, image = read.image_id, self._keys[read.image_id], read.image
        seconds = {"decode": round(read.seconds, 6), "model": round(item.seconds, 6)}

        def failed(reason: str) -> ImageRecord:
            return ImageRecord(image_id, key, state="failed", reason=reason, seconds=seconds)

        if image is None or item.failure:
            return failed(item.failure), item.by_model
        began = time.perf_counter()
        try:
            outcome = retried(lambda: self._engine.finish(image, item.prediction))
        except Exception as error:
            return failed(reason_of(error, RETRY_FAILED)), True
        seconds["masks"] = round(time.perf_counter() - began, 6)
        return self._finished(image_id, key, image.size, outcome, seconds), False

    def _finished(
        self,
        image_id: int,
        key: str,
        size: tuple[int, int],
        outcome: Outcome,
        seconds: dict[str, float],
    ) -> ImageRecord:
        """The record of an image whose masks are made; done if a mask's label is present."""
        presence, beaten, annotations = outcome
        decided = recorded_presence(presence, beaten, self._engine.thresholds)
        present = {name for name, yes in zip(self._journal.classes, decided, strict=True) if yes}
        return ImageRecord(
            image_id,
            key,
            size,
            "done" if any(a.label in present for a in annotations) else "empty",
            annotations=annotations,
            presence=presence,
            beaten=beaten,
            seconds=seconds,
        )
