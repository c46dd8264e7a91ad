"""What shards and Ray cost, and what a second worker gives.

    python benchmarks/scaling.py [--images 2000] [--rounds 3] [--output FILE.json]

Drawn images and the preset tiny, one thread of PyTorch in each process. In turn, ROUNDS times:
plain `label`; `label --shard` in one process, and in two at once, with `merge`; `label --engine
ray` with one worker, and with two. Of each way the images a second over the whole time, and from
the first line in a journal to the last one: without starting and without publishing. How many
different files there are is printed. Needs two processors that do nothing else.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from about import about
from PIL import Image as PILImage

from clip2sam.labelling.journal import FILE
from clip2sam.tiny.scenes import scene, split_seed

LABELS = ["red circle", "heart", "star", "blue thing", "striped square"]
RAY = ("--engine", "ray", "--workers")
WAYS: dict[str, list[tuple[str, ...]]] = {
    "label": [("--readers", "1")],
    "1 shard": [("--readers", "1", "--shard", "1/1")],
    "2 shards": [("--readers", "1", "--shard", f"{n}/2") for n in (1, 2)],
    "ray, 1 worker": [("--readers", "1", *RAY, "1")],
    "ray, 2 workers": [("--readers", "1", *RAY, "2")],
}
"""For each way the options of the commands that run at once."""
RATIOS = {
    "shards against label": ("1 shard", "label"),
    "ray against label": ("ray, 1 worker", "label"),
    "ray against shards": ("ray, 2 workers", "2 shards"),
    "2 shards against 1": ("2 shards", "1 shard"),
    "2 workers against 1": ("ray, 2 workers", "ray, 1 worker"),
}
WHOLE, LABELLING = "images a second, whole", "images a second, labelling"


def measure(name: str, images: Path, count: int, output: Path) -> dict[str, float]:
    """Label all images in one of the ways."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SOURCE_DATE_EPOCH": "1700000000"}
    command = [sys.executable, "-m", "clip2sam.cli", "label", str(images), "--quiet"]
    command += [part for label in LABELS for part in ("--label", label)]
    command += ["--preset", "tiny", "--output", str(output)]
    began = time.time()
    running = [subprocess.Popen([*command, *own], env=environment) for own in WAYS[name]]
    while (first := _first_line(output)) is None and any(p.poll() is None for p in running):
        time.sleep(0.02)
    codes = [process.wait() for process in running]
    if any(codes) or first is None:
        raise SystemExit(f"{name} has ended with {codes}")
    last = max(path.stat().st_mtime for path in _journals(output))
    if "shard" in name:
        merge = [sys.executable, "-m", "clip2sam.cli", "merge", str(output), "--quiet"]
        subprocess.run(merge, env=environment, check=True)
    whole = time.time() - began
    return {WHOLE: count / whole, LABELLING: count / (last - first), "seconds, whole": whole}


def _journals(output: Path) -> list[Path]:
    return [*output.glob(FILE), *output.glob(f"shards/*/{FILE}")]


def _first_line(output: Path) -> float | None:
    """The time, if there is one by now."""
    return time.time() if any(path.stat().st_size for path in _journals(output)) else None


def rounds(folder: Path, count: int, times: int) -> dict[str, list[dict[str, float]]]:
    """All ways in turn."""
    images = folder / "in"
    images.mkdir()
    for i in range(count):
        PILImage.fromarray(scene(split_seed("test", i)).pixels).save(images / f"{i:05d}.png")
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    files = set()
    for turn in range(times):
        for name, found in measured.items():
            output = folder / "run"
            found.append(measure(name, images, count, output))
            files.add((output / "annotations.json").read_bytes())
            shutil.rmtree(output)
            print(f"{turn + 1} {name}: {found[-1]}", file=sys.stderr, flush=True)
    print(f"{len(files)} different annotations.json", file=sys.stderr)
    return measured


def report(measured: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians with least and most; ratios of one round each."""

    def spread(values: list[float]) -> dict[str, float]:
        found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
        return {name: round(value, 3) for name, value in found.items()}

    ways = {
        name: {key: spread([one[key] for one in found]) for key in found[0]}
        for name, found in measured.items()
    }
    ratios = {
        f"{name}, {key.rpartition(', ')[2]}": spread(
            [a[key] / b[key] for a, b in zip(measured[one], measured[other], strict=True)]
        )
        for name, (one, other) in RATIOS.items()
        for key in (WHOLE, LABELLING)
    }
    return {"ways": ways, "ratios": ratios}


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    head = {**about(), "images": given.images, "rounds": given.rounds}
    with tempfile.TemporaryDirectory() as folder:
        found = {**head, **report(rounds(Path(folder), given.images, given.rounds))}
    text = json.dumps(found, indent=1)
    print(text)
    if given.output is not None:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
