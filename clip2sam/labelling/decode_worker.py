"""Decoding in a process of its own: a crash or a hang in native code costs the image, not the run.

`DecodeWorker` is the near end, `serve` the far one. A request is a line of JSON and, if the image
is no file, its encoded bytes; the answer is a line of JSON and, if the image was good, its pixels.
Before it decodes a large image the process asks: all workers of a run share a budget of memory.
The process ends by itself when the near end goes away, for whatever reason. The system's timer ends
it when an image takes too long, even deep inside native code. It imports no torch.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import PIL.Image

from clip2sam.data.images import Image, load_image, printable
from clip2sam.errors import ImageError, RunError

CODE = "from clip2sam.labelling.decode_worker import serve; serve()"
"""What the process runs."""

BYTES_PER_PIXEL = 32
"""What decoding takes at most: 28 were measured for 32-bit TIFF files, 16 for RGB."""

LARGE = 16_000_000
"""Pixels of an image from which on a worker asks for memory: eight that don't take 4 GB."""

BYTES_DECODING = 4 * 2**30
"""What all large images that are decoded at the same time may take: one of 100 megapixels."""

BYTES_BESIDE = 3 * 2**30
"""Addresses that a worker may take beside: Python, libraries, and 70 MB for each thread of a
decoder, which starts one for each processor and hardly uses its share."""


class Budget:
    """Bytes that several threads share. One that needs more than there are waits until it is alone.

    Args:
        most: how many bytes.
    """

    def __init__(self, most: int = BYTES_DECODING) -> None:
        self._most, self._taken = most, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait for so many bytes, and give them back at the end."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._most)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


class DecodeWorker:
    """One process, started when it is first needed and again after a crash. For one thread at a
    time.

    Args:
        max_pixels: images with more (height times width, from the header) are refused.
        timeout: seconds that an image may take.
        budget: memory that it shares with other workers, for large images.
    """

    def __init__(self, max_pixels: int, timeout: float, budget: Budget | None = None) -> None:
        self.max_pixels, self.timeout, self.budget = max_pixels, timeout, budget or Budget()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "DecodeWorker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return None if self._process is None else self._process.pid

    def decode(self, data: str | bytes, key: str) -> Image:
        """Decode an image.

        Args:
            data: the path of its file, or its encoded bytes.
            key: its name, for messages and as the origin of the result.

        Raises:
            ImageError: it can't be read, crashes the process, or takes too long.
            RunError: no process can be started.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        path, sent = (data, b"") if isinstance(data, str) else (None, data)
        request = [path, len(sent), key, self.max_pixels, self.timeout]
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(BrokenPipeError))  # why is found out below
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.write(sent)
            process.stdin.flush()
            answer = process.stdout.readline()
            if answer.startswith(b'{"needs":'):
                stack.enter_context(self.budget.taken(json.loads(answer)["needs"]))
                process.stdin.write(b"go\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            if answer.endswith(b"\n"):
                found: dict[str, Any] = json.loads(answer)
                if "failure" in found:
                    raise ImageError(found["failure"])
                pixels = np.empty((found["height"], found["width"], 3), np.uint8)
                read: Any = process.stdout
                if read.readinto(pixels.data.cast("B")) == pixels.nbytes:
                    return Image(pixels, printable(key))
        raise ImageError(
            f"{printable(key)}: {self._why_it_ended(process)}; leave the image out, or make a new "
            "copy of it"
        )

    def stop(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(BrokenPipeError), process:  # closes the pipes and waits
                pass

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # native libraries complain there, a line an image
            env=environment,
            start_new_session=True,  # Ctrl-C is for the run, which then ends its workers
        )
        self._process = process
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            self.stop()
            raise RunError(
                f"no decode worker could be started ({sys.executable} ended at once); free some "
                "memory, or use fewer readers"
            )
        return process

    def _why_it_ended(self, process: "subprocess.Popen[bytes]") -> str:
        try:
            code = process.wait(10)
        except subprocess.TimeoutExpired:  # it closed its pipe and lives on
            code = 0
        self.stop()
        if code == -signal.SIGALRM:
            return f"decoding took more than {self.timeout:g} seconds"
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the decode worker crashed on this image ({name})"


def load_named(data: str | bytes, key: str, max_pixels: int) -> Image:
    """Load an image that a source has read. Its origin, and messages about it, have its key.

    Raises:
        ImageError: it can't be read.
    """
    try:
        image = load_image(data, max_pixels=max_pixels)
    except ImageError as error:
        origin = printable(data) if isinstance(data, str) else "bytes"
        reason = str(error).removeprefix(f"{origin}: ")
        raise ImageError(f"{printable(key)}: {reason}") from error
    except (MemoryError, OSError) as error:
        raise ImageError(
            f"{printable(key)}: can't be read ({str(error) or 'out of memory'}); check the file"
        ) from error
    return Image(image.pixels, printable(key))


def serve() -> None:
    """The far end: decode what standard input requests, until it closes."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints must not come between the answers
    answers.write(b"ready\n")
    answers.flush()
    for request in requests:
        path, size, key, max_pixels, timeout = json.loads(request)
        data = requests.read(size) if path is None else path
        _limit_memory(max_pixels, size)
        signal.setitimer(signal.ITIMER_REAL, timeout)  # its signal, SIGALRM, ends the process
        PIL.Image.MAX_IMAGE_PIXELS = max_pixels  # else it refuses what may be large
        pixels_promised = _pixels_promised(data)
        if LARGE < pixels_promised <= max_pixels:
            signal.setitimer(signal.ITIMER_REAL, 0)  # waiting for memory doesn't count
            answers.write(b'{"needs":%d}\n' % (pixels_promised * BYTES_PER_PIXEL))
            answers.flush()
            requests.readline()
            signal.setitimer(signal.ITIMER_REAL, timeout)
        image: Image | None = None
        try:
            image = load_named(data, key, max_pixels)
        except ImageError as error:
            answer: dict[str, Any] = {"failure": str(error)}
            pixels = memoryview(b"")
        else:
            answer = dict(zip(("height", "width"), image.size, strict=True))
            pixels = image.pixels.data.cast("B")
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(pixels)
        answers.flush()
        del data, pixels, answer
        image = None  # nothing is kept until the next request


def _pixels_promised(data: str | bytes) -> int:
    """Height times width by the header; 0 if it can't be read: `load_image` then says why."""
    try:
        if isinstance(data, str) and not os.path.isfile(data):  # opening a pipe would wait
            return 0
        with PIL.Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            return image.width * image.height
    except Exception:
        return 0


def _limit_memory(max_pixels: int, size: int) -> None:
    """Let this process take what an image of `max_pixels` takes, and no more: a file whose header
    lies costs itself. Where the system can't (Windows; macOS refuses), the budget is all there is.
    """
    try:
        import resource

        most = max_pixels * BYTES_PER_PIXEL + size + BYTES_BESIDE
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    except (ImportError, OSError, ValueError):
        return
