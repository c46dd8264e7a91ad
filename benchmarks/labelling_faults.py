"""What a run over a dataset survives, in figures.

    python benchmarks/labelling_faults.py WHAT [COUNT]

    kills    COUNT times (200) a run is killed (SIGKILL) at a random moment and continued: is the
             file that of an unbroken run, and how many images were labelled twice?
    bad      COUNT images (1,000), 5 % of them bad in all known ways, decode workers that crash and
             hang among them: are the others as in a clean run?
    memory   COUNT small images (50,000) through a quick stand-in for the models: resident memory
             along the way
    waiting  COUNT drawn images (200) with the tiny preset: how long the model waits
    soak     for COUNT minutes (10): starts under faults of all kinds, mixed at random, see
             labelling_soak.py: are the files in the end those of an unbroken run?
    decoding what it costs to decode in other processes instead of threads

Everything is made in a temporary folder, which is removed at the end.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from labelling_soak import by_name, soak  # noqa: E402

from clip2sam.labelling import decode_worker  # noqa: E402
from clip2sam.labelling.decode_worker import DecodeWorker  # noqa: E402
from clip2sam.labelling.flow import run_flow  # noqa: E402
from clip2sam.labelling.journal import Journal  # noqa: E402
from clip2sam.labelling.readers import Readers, Worker  # noqa: E402
from clip2sam.labelling.run import label_dataset  # noqa: E402
from tests.labelling_fakes import (  # noqa: E402
    Here,
    Threshold,
    reads,
    small_segmenter,
    write_images,
)

WORKER = ROOT / "tests" / "labelling_worker.py"
BATCH = 4  # the worker's


def kills(folder: Path, count: int) -> None:
    """The worker's children are killed at moments spread over a run: some before the model's first
    image."""
    images = write_images(folder / "in", 150)
    whole, rng = folder / "whole", random.Random(0)
    subprocess.run([sys.executable, WORKER, images, whole, folder / "trace"], check=True)
    rounds = redone = runs = working = 0
    while rounds < count:
        runs += 1
        output, trace = folder / f"run-{runs}", folder / f"trace-{runs}"
        moments = [
            f"{rng.randrange(15)}:{rng.uniform(0.0, 0.05)}" for _ in range(min(10, count - rounds))
        ]
        subprocess.run([sys.executable, WORKER, images, output, trace, *moments], check=True)
        for name in ("annotations.json", "results.json"):
            assert (output / name).read_bytes() == (whole / name).read_bytes(), name
        starts = [len(line) for line in trace.read_text().splitlines()]
        twice = sum(starts) - 150
        struck = sum(n > 0 for n in starts[:-1])
        assert 0 <= twice <= BATCH * struck, (twice, struck)
        rounds, redone, working = rounds + len(moments), redone + twice, working + struck
        print(
            f"{rounds} kills ({working} of them while the model worked), {redone} images labelled "
            "twice, files identical"
        )


def bad(folder: Path, count: int) -> None:
    """A clean run over the good images, and one with bad ones among them."""
    decode_worker.CODE = FAULTY
    good = write_images(folder / "in", count - count // 20)
    segmenter, labels = small_segmenter(), ["cat", "dog"]
    clean = label_dataset(good, labels, folder / "clean", segmenter=segmenter)
    for i, kind in zip(range(count // 20), _kinds(), strict=False):
        _write_bad(good, i, kind)
    mixed = label_dataset(good, labels, folder / "mixed", segmenter=segmenter, timeout=2.0)
    one, other = (
        json.loads((folder / n / "annotations.json").read_text()) for n in ("clean", "mixed")
    )
    assert by_name(one) == by_name(other)
    print(
        f"clean: {clean.listed} listed, {clean.failed} failed; mixed: {mixed.listed} listed = "
        f"{mixed.done} done + {mixed.empty} empty + {mixed.failed} failed; the "
        f"{len(by_name(one))} good ones are identical"
    )
    for failure in mixed.failures[: len(KINDS)]:
        print("  " + failure["reason"])


FAULTY = """
import ctypes, os
from clip2sam.labelling import decode_worker
real = decode_worker.load_image
def load_image(path, **settings):
    name = os.path.basename(path)
    if "crash" in name:
        ctypes.string_at(0)
    if "hang" in name:
        ctypes.PyDLL(None).sleep(1000)
    return real(path, **settings)
decode_worker.load_image = load_image
decode_worker.serve()
"""

KINDS = (
    "cut.png",
    "cut.jpg",
    "text.jpg",
    "empty.gif",
    "pipe.png",
    "link.png",
    "huge.png",
    "crash.png",
    "hang.png",
)


def _kinds() -> Iterator[str]:
    while True:
        yield from KINDS


def _write_bad(folder: Path, i: int, kind: str) -> None:
    path, whole = folder / f"bad-{i:03d}-{kind}", (folder / "000.png").read_bytes()
    if kind == "cut.jpg":
        PILImage.open(folder / "000.png").save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:-300])
    elif kind == "pipe.png":
        os.mkfifo(path)
    elif kind == "link.png":
        path.symlink_to("/etc/hostname")
    elif kind == "huge.png":  # a header that promises 65,000 x 65,000 pixels
        header = b"IHDR" + (65000).to_bytes(4) * 2 + whole[24:29]
        path.write_bytes(whole[:12] + header + zlib.crc32(header).to_bytes(4) + whole[33:])
    else:
        contents = {"cut.png": whole[:500], "text.jpg": b"not an image", "empty.gif": b""}
        path.write_bytes(contents.get(kind, whole))


class Forgetful(list[Any]):
    """A list that nothing stays in: the stand-in's notes would grow."""

    def append(self, value: Any) -> None:
        """Forget it."""

    def __iadd__(self, values: Any) -> "Forgetful":  # type: ignore[misc]
        return self


def memory(folder: Path, count: int) -> None:
    """A quick engine, real decode workers: what grows is the flow's, the journal's index and
    nothing else."""
    images = write_images(folder / "in", 100, side=64)
    wanted = [(i, f"{(i - 1) % 100:03d}.png") for i in range(1, count + 1)]
    journal = Journal(folder / "journal-0001.jsonl", range(1, count + 1), Threshold.classes)
    curve: list[tuple[int, float]] = []
    began = time.perf_counter()
    engine = Threshold()
    engine.seen = engine.batches = Forgetful()
    make = lambda: DecodeWorker(10**8, 60.0)  # noqa: E731
    records = run_flow(wanted, reads(images), engine, journal, make, threads=2, batch_size=8)
    for n, _ in enumerate(records, 1):
        if n % max(count // 20, 1) == 0:
            curve.append((n, _resident()))
            rate = n / (time.perf_counter() - began)
            print(f"{n:>8} images {curve[-1][1]:8.1f} MB {rate:8.0f} a second", flush=True)
    journal.close()
    settled, most = curve[1][1], max(m for _, m in curve[1:])
    print(
        f"from {curve[1][0]} images on at most {most - settled:+.1f} MB, {most / settled - 1:+.2%}"
    )


def _resident() -> float:
    """Resident memory of this process in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def waiting(folder: Path, count: int) -> None:
    """Drawn images and the tiny preset on the CPU."""
    from clip2sam.tiny.scenes import scene, split_seed

    (folder / "in").mkdir()
    for i in range(count):
        PILImage.fromarray(scene(split_seed("test", i)).pixels).save(folder / "in" / f"{i:04d}.png")
    labels = ["red circle", "heart", "star", "blue thing", "striped square"]
    summary = label_dataset(folder / "in", labels, folder / "run", segmenter="tiny")
    print(
        f"{count} images, {summary.images_per_second:.2f} a second; the model waited "
        f"{summary.waited_for_images:.2%} for images, {summary.waited_for_writer:.2%} for the "
        "writer"
    )


def decoding(folder: Path, count: int) -> None:
    """JPEGs of 12 and 0.3 megapixels, by two readers, in threads and in processes."""
    rng = np.random.default_rng(0)
    for name, (height, width), times in (
        ("large", (3000, 4000), count // 50),
        ("small", (480, 640), count),
    ):
        coarse = PILImage.fromarray(
            rng.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
        )
        coarse.resize((width, height), PILImage.Resampling.BICUBIC).save(
            folder / f"{name}.jpg", quality=90
        )
        wanted = [(i, f"{name}.jpg") for i in range(times)]
        ways: dict[str, Callable[[], Worker]] = {
            "threads": Here,
            "processes": lambda: DecodeWorker(10**9, 60.0),
        }
        for how, make in ways.items():
            with Readers(iter(wanted), reads(folder), make, 2) as readers:
                next(readers)
                began = time.perf_counter()
                n = sum(1 for _ in readers)
            ms = 1000 * (time.perf_counter() - began) / n
            print(f"{name} ({height} x {width}) in {how}: {ms:.2f} ms an image")


def main() -> None:
    """Run what is given."""
    tasks: dict[str, tuple[Callable[[Path, int], None], int]] = {
        "kills": (kills, 200),
        "bad": (bad, 1000),
        "memory": (memory, 50_000),
        "waiting": (waiting, 200),
    }
    tasks["decoding"] = (decoding, 500)
    tasks["soak"] = (soak, 10)
    if len(sys.argv) < 2 or sys.argv[1] not in tasks:
        sys.exit(__doc__)
    task, usual = tasks[sys.argv[1]]
    with tempfile.TemporaryDirectory() as folder:
        task(Path(folder), int(sys.argv[2]) if len(sys.argv) > 2 else usual)


if __name__ == "__main__":
    main()
