"""Decoding in a process of its own: a crash or a hang in a picture's native decoder costs that picture, not the run.

`DecoderProcess` is the near end, `serve` the far one. A request is a line of JSON; the answer is a line of JSON and, if
the picture was good, its pixels. The process ends by itself when the near end goes away, for whatever reason, and is
ended by the system's timer when a picture takes too long, even deep inside a decoder. It imports no PyTorch.
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
from clip2sam.data.sources import locate
from clip2sam.errors import ImageError, RunError

CODE = "from clip2sam.labelling.decode_worker import serve; serve()"
"""What a decoder process runs."""


class DecoderProcess:
    """One decoder, started when it is first needed and again after a crash. For one thread at a time.

    Args:
        root: the folder that keys are relative to.
        max_pixels: pictures with more (height times width, from the header) are refused.
        timeout: seconds that a picture may take.
    """

    def __init__(self, root: str, max_pixels: int, timeout: float) -> None:
        self.root, self.max_pixels, self.timeout = root, max_pixels, timeout
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "DecoderProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def decode(self, key: str) -> Image:
        """Decode the picture of that name.

        Raises:
            ImageError: it can't be read, leads out of the root, crashes its decoder, or takes too long.
            RunError: no decoder process can be started.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        request = json.dumps([self.root, key, self.max_pixels, self.timeout]).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):  # why it is gone is looked at below
            process.stdin.write(request)
            process.stdin.flush()
            answer = process.stdout.readline()
            if answer.endswith(b"\n"):
                found: dict[str, Any] = json.loads(answer)
                if "failure" in found:
                    raise ImageError(found["failure"])
                pixels = np.empty((found["height"], found["width"], 3), np.uint8)
                if process.stdout.readinto(pixels.data.cast("B")) == pixels.nbytes:  # type: ignore[attr-defined]
                    return Image(pixels, found["origin"])
        raise ImageError(
            f"{printable(key)}: {self._why_it_ended(process)}; leave the picture out, or make a new copy of it"
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
            stderr=subprocess.DEVNULL,  # native libraries write their complaints there, a line a picture
            env=environment,
            start_new_session=True,  # Ctrl-C is for the run, which then ends its decoders
        )
        self._process = process
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            self.stop()
            raise RunError(
                f"no decoder process could be started ({sys.executable} ended at once); make memory free, or use fewer "
                "readers"
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
        return f"the decoder crashed on this picture ({name})"


def serve() -> None:
    """The far end: decode what standard input asks for, until it closes."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints must not come between the answers
    answers.write(b"ready\n")
    answers.flush()
    for request in requests:
        root, key, max_pixels, timeout = json.loads(request)
        signal.setitimer(signal.ITIMER_REAL, timeout)  # its signal, SIGALRM, ends the process
        answer, pixels = _decode(root, key, max_pixels)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(pixels)
        answers.flush()


def _decode(root: str, key: str, max_pixels: int) -> tuple[dict[str, Any], bytes | memoryview]:
    path = os.path.join(root, key)
    try:
        path = locate(root, key)
        image = load_image(path, max_pixels=max_pixels)
    except ImageError as error:  # in the run's own files, pictures have the names of its list
        return {
            "failure": str(error).replace(f"{printable(path)}: ", f"{printable(key)}: ", 1)
        }, b""
    except (MemoryError, OSError) as error:
        return {
            "failure": f"{printable(key)}: can't be read ({error or 'out of memory'}); check the file"
        }, b""
    height, width = image.size
    return {"height": height, "width": width, "origin": printable(key)}, image.pixels.data.cast("B")
