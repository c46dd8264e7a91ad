"""Decoding in a process of its own: a crash or a hang in native code costs the image, not the run.

`DecodeWorker` is the near end, `serve` the far one. A request is a line of JSON and, if the image
is no file, its encoded bytes; the answer is a line of JSON and, if the image was good, its pixels.
The process ends by itself when the near end goes away, for whatever reason. The system's timer ends
it when an image takes too long, even deep inside native code. It imports no torch.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any

import numpy as np

from clip2sam.data.images import Image, load_image, printable
from clip2sam.errors import ImageError, RunError

CODE = "from clip2sam.labelling.decode_worker import serve; serve()"
"""What the process runs."""


class DecodeWorker:
    """One process, started when it is first needed and again after a crash. For one thread at a
    time.

    Args:
        max_pixels: images with more (height times width, from the header) are refused.
        timeout: seconds that an image may take.
    """

    def __init__(self, max_pixels: int, timeout: float) -> None:
        self.max_pixels, self.timeout = max_pixels, timeout
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
        with contextlib.suppress(BrokenPipeError):  # why it is gone is found out below
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.write(sent)
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
            f"{printable(key)}: can't be read ({error or 'out of memory'}); check the file"
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
        signal.setitimer(signal.ITIMER_REAL, timeout)  # its signal, SIGALRM, ends the process
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
