"""Reader threads: they take names from one list, have them decoded, and stay ahead of the model by a bounded amount."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, runtime_checkable

from clip2sam.coco.document import file_name_fault
from clip2sam.data.images import Image, printable
from clip2sam.errors import ImageError

BYTES_AHEAD = 256 * 2**20
"""Decoded pictures that wait for the model: so many bytes, or one picture that is larger."""

PICTURES_AHEAD = 64
"""And so many pictures: without the pixels, each takes some memory as well."""


@runtime_checkable
class Decoder(Protocol):
    """What a reader thread needs; `DecoderProcess` is the one in use."""

    def decode(self, key: str) -> Image:
        """The picture of that name, or an `ImageError`."""

    def stop(self) -> None:
        """Let go of whatever it holds; may be called while `decode` runs in another thread, which then fails."""


@dataclass(frozen=True)
class Read:
    """A picture on its way to the model, or why there is none."""

    picture: int
    image: Image | None
    failure: str
    seconds: float
    """What decoding took."""


class Readers:
    """Threads that decode the pictures of a list ahead of whoever iterates here.

    Pictures come out in the order in which they are ready: one that is slow holds up its own thread only. Use it as
    a context manager: on leaving, threads and decoders end, whether all was read or not.

    Args:
        wanted: pairs of place and key; asked for one by one.
        make_decoder: called once in each thread.
        threads: how many.
        prepare: called with each picture in its thread, to do what needs no model.
    """

    def __init__(
        self,
        wanted: Iterator[tuple[int, str]],
        make_decoder: Callable[[], Decoder],
        threads: int,
        prepare: Callable[[Image], None] = lambda image: None,
    ) -> None:
        self._wanted, self._make_decoder, self._prepare = wanted, make_decoder, prepare
        self._ready: deque[Read] = deque()
        self._bytes, self._running, self._stopping = 0, threads, False
        self._error: BaseException | None = None
        self._decoders: list[Decoder] = []
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._read, name=f"reader-{i}", daemon=True)
            for i in range(threads)
        ]
        self.waited = 0.0
        """Seconds for which whoever iterates here has waited for a picture."""

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
            decoders = list(self._decoders)
        for decoder in decoders:
            decoder.stop()
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[Read]:
        return self

    def __next__(self) -> Read:
        """The next picture that is ready. Raises what ended a reader thread, if anything did."""
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
            self._bytes -= _size(read)
            self._changed.notify_all()
            return read

    def _read(self) -> None:
        """A thread's life."""
        try:
            decoder = self._make_decoder()
            with self._changed:
                self._decoders.append(decoder)
            try:
                while (item := self._next_wanted()) is not None:
                    self._offer(self._decoded(decoder, *item))
            finally:
                decoder.stop()
        except BaseException as error:
            with self._changed:
                self._error = self._error or (None if self._stopping else error)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _decoded(self, decoder: Decoder, picture: int, key: str) -> Read:
        if fault := file_name_fault(key):  # a name that can't stand in a COCO file
            return Read(picture, None, f"{printable(key)}: {fault}; rename it", 0.0)
        began = time.perf_counter()
        image, failure = None, ""
        try:
            image = decoder.decode(key)
        except ImageError as error:
            failure = str(error)
        else:
            with suppress(Exception):  # the model meets it again, and knows what to do then
                self._prepare(image)
        return Read(picture, image, failure, time.perf_counter() - began)

    def _next_wanted(self) -> tuple[int, str] | None:
        with self._changed:
            return None if self._stopping else next(self._wanted, None)

    def _offer(self, read: Read) -> None:
        """Put a picture among those that wait, as soon as there is room."""
        with self._changed:
            while not self._stopping and self._ready and not self._fits(read):
                self._changed.wait()
            if not self._stopping:
                self._ready.append(read)
                self._bytes += _size(read)
                self._changed.notify_all()

    def _fits(self, read: Read) -> bool:
        return len(self._ready) < PICTURES_AHEAD and self._bytes + _size(read) <= BYTES_AHEAD


def _size(read: Read) -> int:
    return 0 if read.image is None else read.image.nbytes
