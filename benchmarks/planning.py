"""Listing and cutting a large run: seconds and peak memory, each kind of source in its own process.

    python benchmarks/planning.py [--images 1000000] [--shards 64] [--folder PLACE]

`list` is a .txt file with so many names, which need not exist. `tar` is 1 % of them, in tars of
1,000 images of 1 kB. For each it prints a line of JSON: seconds to list and to write the plan, peak
memory (resident, 10**6 bytes) with Python and the libraries (`imported`), after the listing and
after the plan, and for one shard, as a worker opens it.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from clip2sam.data.opening import open_source
from clip2sam.labelling.plan import make_plan, open_plan

KINDS = ("list", "tar")
PER_TAR = 1000


def make(kind: str, folder: Path, images: int) -> str:
    """A source with so many images; gives its name."""
    if kind == "list":
        names = (f"{i // 1000:06d}/{i:09d}.jpg\n" for i in range(images))
        (folder / "list.txt").write_text("".join(names))
        return str(folder / "list.txt")
    for number in range(images // PER_TAR):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for i in range(PER_TAR):
                member = tarfile.TarInfo(f"{number * PER_TAR + i:09d}.jpg")
                member.size = 1000
                tar.addfile(member, io.BytesIO(bytes(1000)))
    return str(folder / "*.tar")


def measure(source: str, output: Path, shards: int) -> dict[str, Any]:
    """List and cut in this process."""
    peaks, seconds = {"imported": _peak()}, {}
    began = time.perf_counter()
    listed = open_source(source)
    seconds["listed"], peaks["listed"] = round(time.perf_counter() - began, 2), _peak()
    began = time.perf_counter()
    make_plan(output, lambda: listed, shards, threads=1)
    seconds["planned"], peaks["planned"] = round(time.perf_counter() - began, 2), _peak()
    count = len(listed.keys)
    grown = round((peaks["planned"] - peaks["imported"]) * 1e6 / count)
    return {"images": count, "seconds": seconds, "peak MB": peaks, "bytes an image": grown}


def measure_shard(output: Path) -> dict[str, Any]:
    """Open the first shard in this process, as a worker does."""
    before, began = _peak(), time.perf_counter()
    part = open_plan(output).part(1)
    seconds = round(time.perf_counter() - began, 3)
    return {"images": len(part.keys), "seconds": seconds, "peak MB": [before, _peak()]}


def _peak() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in status if line.startswith("VmHWM:"))
    return round(int(kibibytes) * 1024 / 1e6)


def _in_own_process(*arguments: object) -> Any:
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--folder", help="by default a temporary one")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure-shard", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        source, output = options.measure
        print(json.dumps(measure(source, Path(output), options.shards)))
        return
    if options.measure_shard is not None:
        print(json.dumps(measure_shard(options.measure_shard)))
        return
    from about import about  # which imports torch: the processes that are measured do not

    print(json.dumps(about()))
    for kind in KINDS:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            place, run = Path(folder) / "in", Path(folder) / "run"
            place.mkdir()
            images = options.images if kind == "list" else options.images // 100
            source = make(kind, place, images)
            found = _in_own_process("--measure", source, run, "--shards", options.shards)
            shard = _in_own_process("--measure-shard", run)
            print(json.dumps({"source": kind, **found, "a shard": shard}), flush=True)


if __name__ == "__main__":
    main()
