"""Reader threads: they take names from one list, have the images decoded, and stay ahead of the
model by a bounded amount."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, runtime_checkable

from clip2sam.coco.document import file_name_fault
from clip2sam.data.images import Image, printable
from clip2sam.errors import ImageError
from clip2sam.labelling.journal import Stamp, file_stamp

BYTES_AHEAD = 256 * 2**20
"""Images that wait for the model: so many bytes of pixels, or one image that is larger."""

IMAGES_AHEAD = 64
"""And so many images: without the pixels, each takes some memory as well."""


@runtime_checkable
class Prepared(Protocol):
    """What an engine has made of an image ahead. An `Image` itself is one too."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory, the image included."""


@runtime_checkable
class Worker(Protocol):
    """What a reader thread needs; `DecodeWorker` is the one in use."""

    def decode(self, data: str | bytes, key: str) -> Image:
        """The image of a path or of encoded bytes, or an `ImageError`."""

    def stop(self) -> None:
        """Release what it holds; may be called while `decode` runs in another thread, which then
        fails."""


@dataclass(frozen=True)
class Read:
    """An image on its way to the model, or why there is none."""

    image_id: int
    image: Image | None
    prepared: Prepared | None
    """What the engine has made of it ahead; None if that failed: the model tries again."""
    failure: str
    seconds: float
    """What decoding it and preparing it took."""
    stamp: Stamp | None = None
    """The file as it was before it was read; None if the source gave bytes, or nothing."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        held = self.image if self.prepared is None else self.prepared
        return 0 if held is None else held.nbytes


class Readers:
    """Threads that have the images of a list decoded ahead of whoever iterates here.

    Images come out in the order in which they are ready: one that is slow delays its own thread
    only. Use it as a context manager: on leaving, threads and workers end, whether all was read or
    not.

    Args:
        wanted: pairs of image id and key; taken one by one.
        read: from a key to the image's path or encoded bytes: `Source.read`.
        make_worker: called once in each thread.
        threads: how many.
        prepare: called with each image in its thread: what needs no model.
        hashed: whether the stamps of files have the SHA-256 of their bytes.
    """

    def __init__(
        self,
        wanted: Iterator[tuple[int, str]],
        read: Callable[[str], str | bytes],
        make_worker: Callable[[], Worker],
        threads: int,
        prepare: Callable[[Image], Prepared] = lambda image: image,
        *,
        hashed: bool = False,
    ) -> None:
        self._wanted, self._source, self._make_worker = wanted, read, make_worker
        self._prepare, self._hashed = prepare, hashed
        self._ready: deque[Read] = deque()
        self._bytes, self._running, self._stopping = 0, threads, False
        self._error: BaseException | None = None
        self._workers: list[Worker] = []
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._read, name=f"reader-{i}", daemon=True)
            for i in range(threads)
        ]
        self.waited = 0.0
        """Seconds for which whoever iterates here has waited for an image."""

    def __enter__(self) -> "Readers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            workers = list(self._workers)
        for worker in workers:
            worker.stop()
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[Read]:
        return self

    def __next__(self) -> Read:
        began = time.perf_counter()
        with self._changed:
            while not self._ready and self._running and self._error is None:
                self._changed.wait()
            self.waited += time.perf_counter() - began
            if self._error is not None:
                raise self._error
            if not self._ready:
                raise StopIteration
            read = self._ready.popleft()
            self._bytes -= read.nbytes
            self._changed.notify_all()
            return read

    def _read(self) -> None:
        """A thread's life."""
        try:
            worker = self._make_worker()
            with self._changed:
                self._workers.append(worker)
            try:
                while (item := self._next_wanted()) is not None:
                    self._offer(self._decoded(worker, *item))
            finally:
                worker.stop()
        except BaseException as error:
            with self._changed:
                self._error = self._error or (None if self._stopping else error)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _decoded(self, worker: Worker, image_id: int, key: str) -> Read:
        if fault := file_name_fault(key):  # a name that can't stand in a COCO file
            return Read(image_id, None, None, f"{printable(key)}: {fault}; rename it", 0.0)
        began, stamp = time.perf_counter(), None
        try:
            data = self._source(key)
            # before it is read: a change while it is read is noticed at the next start
            stamp = file_stamp(data, hashed=self._hashed) if isinstance(data, str) else None
            image = worker.decode(data, key)
        except ImageError as error:
            return Read(image_id, None, None, str(error), time.perf_counter() - began, stamp)
        prepared = self._prepared(image)
        return Read(image_id, image, prepared, "", time.perf_counter() - began, stamp)

    def _prepared(self, image: Image) -> Prepared | None:
        try:
            return self._prepare(image)
        except Exception:  # memory may be short here only; the model's thread tries it again
            return None

    def _next_wanted(self) -> tuple[int, str] | None:
        with self._changed:
            return None if self._stopping else next(self._wanted, None)

    def _offer(self, read: Read) -> None:
        """Put an image among those that wait, as soon as there is room."""
        with self._changed:
            while not self._stopping and self._ready and not self._fits(read):
                self._changed.wait()
            if not self._stopping:
                self._ready.append(read)
                self._bytes += read.nbytes
                self._changed.notify_all()

    def _fits(self, read: Read) -> bool:
        return len(self._ready) < IMAGES_AHEAD and self._bytes + read.nbytes <= BYTES_AHEAD
