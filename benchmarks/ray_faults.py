"""What a run by Ray survives, in figures.

    python benchmarks/ray_faults.py [KILLS]

Several nodes on this machine, of one processor each. Runs over 300 small images are struck KILLS
times (30) in all, ten times each: a worker's process is killed (SIGKILL), a node is removed and
another one added, or the driver is killed and started again, by chance. Are the files those of an
unbroken run in one process, and how many images were given to the model twice? At last a second
driver is started beside the first one.

Everything is made in a temporary folder, which is removed at the end.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("SOURCE_DATE_EPOCH", "1700000000")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import psutil  # noqa: E402
import torch  # noqa: E402
from about import about  # noqa: E402

from clip2sam.labelling.run import label_dataset  # noqa: E402
from tests.labelling_fakes import small_segmenter, traced_segmenter, write_images  # noqa: E402

IMAGES, LABELS, FILES = 300, ["cat", "dog"], ("annotations.json", "results.json")
KILLS_PER_RUN, WORKERS, BATCH, SHARDS = 10, 2, 8, 10


def drive(images: str, output: str, trace: str, address: str) -> None:
    """The driver's process."""
    from clip2sam.cluster.driver import label_with_ray

    label_with_ray(
        images,
        LABELS,
        output,
        segmenter=partial(traced_segmenter, trace),
        workers=WORKERS,
        address=address,
        shards=SHARDS,
        batch_size=BATCH,
    )


class Struck:
    """A run that is struck.

    Args:
        cluster: a `ray.cluster_utils.Cluster`, and its nodes beside the head.
    """

    def __init__(self, folder: Path, cluster: Any, nodes: list[Any], rng: random.Random) -> None:
        self.folder, self.cluster, self.nodes, self.rng = folder, cluster, nodes, rng
        self.output, self.trace = folder / "run", folder / "trace"
        self.trace.touch()
        self.kills = {"worker": 0, "node": 0, "driver": 0}
        self.may_be_lost = 0
        self.driver = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        """A driver."""
        given = (self.folder.parent / "in", self.output, self.trace, self.cluster.address)
        command = [sys.executable, __file__, "drive", *map(str, given)]
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    def lines(self) -> int:
        """Of all journals."""
        journals = self.output.glob("shards/*/journal-0001.jsonl")
        return sum(path.read_bytes().count(b"\n") for path in journals)

    def wait_for(self, more: int) -> bool:
        """Wait for so many new lines. False: the run has ended before."""
        least = self.lines() + more
        while self.driver.poll() is None:
            if self.lines() >= least:
                return True
            time.sleep(0.05)
        if self.driver.returncode:
            raise SystemExit(f"the driver has ended with {self.driver.returncode}")
        return False

    def strike(self) -> None:
        """Kill something."""
        what = self.rng.choice([*self.kills])
        workers = [p for p in psutil.process_iter() if _is_worker(p)]
        if what == "worker" and workers:
            os.kill(self.rng.choice(workers).pid, signal.SIGKILL)
        elif what == "node":
            node = self.nodes.pop(self.rng.randrange(len(self.nodes)))
            self.cluster.remove_node(node, allow_graceful=False)
            self.nodes.append(self.cluster.add_node(num_cpus=1))
        else:
            what = "driver"
            self.driver.kill()
            self.driver.wait()
            self.driver = self.start()
        print(f"{time.strftime('%H:%M:%S')} {what}, after {self.lines()} lines", flush=True)
        self.kills[what] += 1
        self.may_be_lost += BATCH * (WORKERS if what == "driver" else 1)

    def redone(self) -> int:
        """Images that the model was given more than once."""
        return self.trace.stat().st_size - IMAGES


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("ray::ShardWork") or any(
            part.startswith("ray::ShardWorker") for part in process.cmdline()[:1]
        )
    except psutil.Error:
        return False


def faults(folder: Path, count: int) -> dict[str, Any]:
    """All runs."""
    from ray.cluster_utils import Cluster

    torch.set_num_threads(1)
    images, rng = write_images(folder / "in", IMAGES), random.Random(18)
    whole = folder / "whole"
    label_dataset(images, LABELS, whole, segmenter=small_segmenter(), readers=1)
    cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(WORKERS)]
    total = {"worker": 0, "node": 0, "driver": 0}
    redone = allowed = runs = 0
    began = time.perf_counter()
    while sum(total.values()) < count:
        runs += 1
        (folder / f"run-{runs}").mkdir()
        run = Struck(folder / f"run-{runs}", cluster, nodes, rng)
        for _ in range(min(KILLS_PER_RUN, count - sum(total.values()))):
            if not run.wait_for(rng.randrange(2, 26)):
                break
            run.strike()
        if run.driver.wait() != 0:
            raise SystemExit(f"the driver has ended with {run.driver.returncode}")
        for name in FILES:
            assert (run.output / name).read_bytes() == (whole / name).read_bytes(), name
        assert run.lines() == IMAGES, "no image has two lines"
        assert 0 <= run.redone() <= run.may_be_lost, (run.redone(), run.may_be_lost)
        total = {what: total[what] + run.kills[what] for what in total}
        redone, allowed = redone + run.redone(), allowed + run.may_be_lost
        print(f"{total}: {redone} images twice, {allowed} allowed; files identical", flush=True)
    seconds = time.perf_counter() - began
    refused = second_driver(folder, cluster, nodes, rng)
    cluster.shutdown()
    return {
        **about(),
        "runs": runs,
        "images a run": IMAGES,
        "kills": total,
        "images given to the model twice": redone,
        "allowed": allowed,
        "seconds": round(seconds, 1),
        "second driver": refused,
    }


def second_driver(folder: Path, cluster: Any, nodes: list[Any], rng: random.Random) -> str:
    """What a second driver says."""
    (folder / "two").mkdir()
    run = Struck(folder / "two", cluster, nodes, rng)
    run.wait_for(1)
    command = [sys.executable, "-m", "clip2sam.cli", "label", str(folder / "in"), "--label", "cat"]
    command += ["--allow-unknown", "--output", str(run.output), "--engine", "ray"]
    other = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert other.returncode == 4, other.stderr
    run.driver.wait()
    return other.stderr.strip().splitlines()[-1].replace(str(folder), "")


def main() -> None:
    """Run."""
    if sys.argv[1:2] == ["drive"]:
        drive(*sys.argv[2:])
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(faults(Path(folder), count), indent=1))


if __name__ == "__main__":
    main()
