"""Runs over drawn images under faults of all kinds, mixed at random; see `labelling_faults.py`.

A round is a run that is started many times: killed, interrupted, on a full disk, joined by a second
process; and between starts its images are replaced, spoiled, removed and put back, and its journal
is torn, damaged and converted. In every second round files are told by their content (--hash), and
a changed one then keeps size and time if it can. At its end a last start must leave the files that
an unbroken run over the same images writes, to the byte.
"""

import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage

from clip2sam.errors import OutputError, RunLockedError
from clip2sam.labelling.journal import FILE
from clip2sam.labelling.run import label_dataset
from clip2sam.pipeline import Segmenter
from clip2sam.tiny.scenes import scene, split_seed
from clip2sam.visualize import histogram  # noqa: F401  (imported once, before the first child)
from tests.labelling_fakes import small_segmenter

LABELS = ["cat", "dog"]
IMAGES = 100
STARTS = 12
"""Of a round, before its last one."""

ENDS = {RunLockedError: 3, OutputError: 4, KeyboardInterrupt: 5}
"""The exit status of a child by what ended it; anything else that was raised is 1."""


class Child:
    """A start of the run in a process of its own, forked: imports and models are there already."""

    def __init__(
        self,
        segmenter: Segmenter,
        images: Path,
        run: Path,
        *,
        room: int | None = None,
        **settings: Any,
    ) -> None:
        self._seen, tell = os.pipe()
        self.told = b""
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._seen)
            os._exit(_label(segmenter, images, run, tell, room, settings))
        os.close(tell)

    def wait_for(self, signs: int) -> None:
        """Until so many signs came, or it has ended: "!" for a run that has begun, a dot for an
        image that the model got."""
        while len(self.told) < signs and (more := os.read(self._seen, 10_000)):
            self.told += more

    def has_ended(self) -> bool:
        """Whether nothing more can come."""
        while select.select([self._seen], [], [], 0)[0]:
            if not (more := os.read(self._seen, 10_000)):
                return True
            self.told += more
        return False

    def end(self) -> int:
        """Wait for its end: the exit status, or minus the signal."""
        self.wait_for(sys.maxsize)
        os.close(self._seen)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _label(
    segmenter: Segmenter, images: Path, run: Path, tell: int, room: int | None, settings: Any
) -> int:
    """The child's life; gives its exit status. Its file of errors is beside the run."""
    os.dup2(os.open(run.with_name("errors.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    warnings.simplefilter("default")
    real = segmenter.encode

    def encode(batch: Any, **arguments: Any) -> Any:
        os.write(tell, b"." * len(batch))
        return real(batch, **arguments)

    segmenter.encode = encode  # type: ignore[assignment, method-assign]
    if room is not None:  # a write beyond it fails (EFBIG), as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        label_dataset(
            images,
            LABELS,
            run,
            segmenter=segmenter,
            batch_size=4,
            readers=2,
            on_start=lambda *_: os.write(tell, b"!"),
            **settings,
        )
    except BaseException as error:
        traceback.print_exc()
        return ENDS.get(type(error), 1)
    return 0


class Round:
    """A run, its images, and the faults that befall them."""

    def __init__(self, folder: Path, segmenter: Segmenter, rng: random.Random, hashed: bool):
        self.rng, self.segmenter, self.hashed = rng, segmenter, hashed
        self.folder, self.run, self.images = folder, folder / "run", folder / "in"
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.images.mkdir(parents=True)
        for i in range(IMAGES):
            pixels = scene(split_seed("test", i)).pixels[: 100 + i % 40, : 150 - i % 30]
            PILImage.fromarray(pixels).save(self.images / f"{i:03d}.png")
        shutil.copytree(self.images, folder / "originals")

    def play(self, until: float) -> None:
        """Faults and starts, then the last start and the comparison."""
        between: list[Callable[[], None]] = [
            self.replace,
            self.replace,
            self.spoil,
            self.remove,
            self.put_back,
            self.put_back,
            self.tear,
            self.damage,
            self.convert,
        ]
        starts = [self.kill, self.kill, self.interrupt, self.fill, self.join, self.go_on]
        for _ in range(STARTS):
            if time.monotonic() > until:
                break
            for fault in self.rng.sample(between, self.rng.randrange(3)):
                fault()
            self.rng.choice(starts)()
        self.finish()

    # what befalls a start

    def kill(self) -> None:
        """SIGKILL at a random moment."""
        self._strike(signal.SIGKILL, (-signal.SIGKILL, 0))

    def interrupt(self) -> None:
        """Ctrl-C at a random moment."""
        self._strike(signal.SIGINT, (ENDS[KeyboardInterrupt], 0))

    def fill(self) -> None:
        """A disk that becomes full while the journal or the files are written."""
        journal = self.run / FILE
        there = journal.stat().st_size if journal.exists() else 0
        child = self._child(room=there + self.rng.randrange(20_000))
        self._ended("fill", child, (ENDS[OutputError], 0))

    def join(self) -> None:
        """A second process on the run while the first is at work."""
        first = self._child()
        first.wait_for(1 + self.rng.randrange(5))
        second = self._child()
        second.wait_for(sys.maxsize)
        self._ended("join", second, (0,) if first.has_ended() else (ENDS[RunLockedError],))
        self._ended("first of two", first, (0,))

    def go_on(self) -> None:
        """An undisturbed start, during which an image may be changed."""
        child = self._child()
        if self.rng.random() < 0.5:
            child.wait_for(1 + self.rng.randrange(5))
            self.rng.choice((self.replace, self.spoil, self.put_back))()
        self._ended("go_on", child, (0,))

    def _strike(self, number: signal.Signals, allowed: tuple[int, ...]) -> None:
        child = self._child()
        child.wait_for(1 + self.rng.randrange(10))
        time.sleep(self.rng.uniform(0.0, 0.1))
        os.kill(child.pid, number)
        self._ended(number.name, child, allowed)

    def _child(self, **settings: Any) -> Child:
        return Child(self.segmenter, self.images, self.run, hash_images=self.hashed, **settings)

    def _ended(self, what: str, child: Child, allowed: tuple[int, ...]) -> None:
        code = child.end()
        self.counts["images given to the model"] += child.told.count(b".")
        self.counts[what if code else f"{what}, after its end"] += 1
        if code not in allowed:
            errors = (self.folder / "errors.txt").read_text()[-1500:]
            self.wrong.append(f"{what}: ended with {code}, expected {allowed}\n{errors}")

    # what befalls images

    def replace(self) -> None:
        """Another image in the place of one."""
        other = (self.folder / "originals" / self._name()).read_bytes()
        self._write(self.images / self._name(), other)
        self.counts["replace"] += 1

    def spoil(self) -> None:
        """Bad bytes in the middle of an image."""
        path = self.images / self._name()
        if path.exists():
            data = bytearray(path.read_bytes())
            middle = self.rng.randrange(len(data) // 4, len(data) // 2)
            data[middle : middle + 50] = self.rng.randbytes(50)
            self._write(path, bytes(data))
            self.counts["spoil"] += 1

    def remove(self) -> None:
        """An image is gone."""
        path = self.images / self._name()
        if path.exists():
            path.unlink()
            self.counts["remove"] += 1

    def put_back(self) -> None:
        """The original, if something else or nothing is there, with its old time."""
        for path in sorted((self.folder / "originals").iterdir()):
            now = self.images / path.name
            if not now.exists() or now.read_bytes() != path.read_bytes():
                shutil.copy2(path, self.folder / "new")
                os.replace(self.folder / "new", now)
                self.counts["put_back"] += 1
                return

    def _name(self) -> str:
        return f"{self.rng.randrange(IMAGES):03d}.png"

    def _write(self, path: Path, data: bytes) -> None:
        new = self.folder / "new"
        new.write_bytes(data)
        if self.hashed and path.exists():
            before = path.stat()
            os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(new, path)

    # what befalls the journal

    def tear(self) -> None:
        """It ends at any byte."""
        self._edit("tear", lambda data: data[: self.rng.randrange(len(data) // 3, len(data))])

    def damage(self) -> None:
        """Other bytes anywhere, and more behind its end."""

        def edit(data: bytes) -> bytes:
            at = self.rng.randrange(len(data))
            tail = self.rng.choice((b"", b"{}\n", self.rng.randbytes(30), b"\0" * 100 + b"\n"))
            return data[:at] + self.rng.randbytes(3) + data[at + 3 :] + tail

        self._edit("damage", edit)

    def convert(self) -> None:
        """The line ends of Windows."""
        self._edit("convert", lambda data: data.replace(b"\n", b"\r\n"))

    def _edit(self, what: str, edit: Callable[[bytes], bytes]) -> None:
        path = self.run / FILE
        data = path.read_bytes() if path.exists() else b""
        if data:
            path.write_bytes(edit(data))
            self.counts[what] += 1

    # the end

    def finish(self) -> None:
        """All images are there again, if not as they were; a last start; an unbroken run."""
        for path in sorted((self.folder / "originals").iterdir()):
            if not (self.images / path.name).exists():
                shutil.copy2(path, self.images / path.name)
        self._ended("last start", self._child(retry_failed=True), (0,))
        plain = self.folder / "plain"
        if Child(self.segmenter, self.images, plain).end() != 0:
            self.wrong.append("the unbroken run failed")
            return
        self._compare(plain)
        one, other = _failures(self.run), _failures(plain)
        if one != other:
            self.wrong.append(f"failures: {one}, expected {other}")

    def _compare(self, plain: Path) -> None:
        """To the byte, unless an image was gone when the run began, and so has another id."""
        names = ("annotations.json", "results.json")
        if not all((self.run / name).exists() for name in names):
            self.wrong.append("the last start wrote no files")
            return
        if _keys(self.run) == _keys(plain):
            self.counts["compared to the byte"] += 1
            for name in names:
                if (self.run / name).read_bytes() != (plain / name).read_bytes():
                    self.wrong.append(f"{name} is not what an unbroken run writes")
        one, other = (
            by_name(json.loads((place / names[0]).read_text())) for place in (self.run, plain)
        )
        if one != other:
            differ = sorted(str(k) for k in {**one, **other} if one.get(k) != other.get(k))
            self.wrong.append(f"other annotations of {', '.join(differ)}")


def _keys(run: Path) -> object:
    return json.loads((run / "manifest.json").read_text())["keys"]


def by_name(document: dict[str, list[dict[str, object]]]) -> dict[object, list[object]]:
    """Everything about each image but its ids, which count the images."""
    rows: dict[object, list[object]] = {
        i["id"]: [i["file_name"], i["height"], i["width"]] for i in document["images"]
    }
    for annotation in document["annotations"]:
        rows[annotation["image_id"]].append(
            {k: v for k, v in annotation.items() if k not in ("id", "image_id")}
        )
    return {row[0]: row[1:] for row in rows.values()}


def _failures(run: Path) -> list[tuple[str, str]]:
    found = json.loads((run / "summary.json").read_text())["failures"]
    return sorted((failure["file_name"], failure["reason"]) for failure in found)


def soak(folder: Path, minutes: int) -> None:
    """Rounds until the time is over. Exit status 1, and what was wrong, if anything was."""
    torch.set_num_threads(1)  # threads would not survive the fork
    segmenter, seed = small_segmenter(), int(os.environ.get("SOAK_SEED", "0"))
    counts: Counter[str] = Counter()
    until, rounds, wrong = time.monotonic() + 60 * minutes, 0, 0
    while time.monotonic() < until:
        place = folder / str(rounds)
        one = Round(place, segmenter, random.Random(f"{seed}-{rounds}"), hashed=rounds % 2 == 1)
        one.play(until)
        rounds, wrong, counts = rounds + 1, wrong + len(one.wrong), counts + one.counts
        given = counts["images given to the model"]
        print(
            f"{rounds} rounds, {given} images given to the model for {rounds * IMAGES}, "
            f"{wrong} wrong",
            flush=True,
        )
        for text in one.wrong:
            print(f"round {rounds - 1}: {text}", flush=True)
        if not one.wrong:
            shutil.rmtree(place)
    for name, number in sorted(counts.items()):
        print(f"{number:>7} {name}")
    if wrong:
        sys.exit(1)
