"""Time and memory of checking a large COCO file: python benchmarks/validate.py [COUNT] [--polygons]

A file of COUNT annotations (30,000), three on each image of 480 x 640, is made in a temporary
folder and checked by a process of its own. Prints a line of JSON: seconds of CPU time, and the peak
of resident memory in MiB, of which `before` is there before the check starts (Python, numpy,
OpenCV). With PYTHONPATH set, the package in that folder is checked with, such as an earlier commit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from clip2sam.coco.polygons import rle_to_polygons
from clip2sam.coco.rle import area_and_box, encode_mask
from clip2sam.data.files import JsonList

ROOT = Path(__file__).parents[1]

CHECK = """
import json, sys, time
from pathlib import Path
from typing import Any
from clip2sam.coco.validate import validate

def mib(key):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return round(int(line.split()[1]) / 1024)

before, start = mib("VmRSS"), time.process_time()
faults = validate(sys.argv[1])
seconds = round(time.process_time() - start, 2)
row = {"seconds": seconds, "peak": mib("VmHWM"), "before": before, "faults": len(faults)}
print(json.dumps(row))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=30_000)
    parser.add_argument("--polygons", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        write_file(path, given.count, polygons=given.polygons)
        checked = subprocess.run(
            [sys.executable, "-c", CHECK, path],
            capture_output=True,
            check=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))},
        )
        row = {
            "annotations": given.count,
            "masks": "polygons" if given.polygons else "rle",
            "file": round(path.stat().st_size / 2**20),
            **json.loads(checked.stdout),
            "load": round(os.getloadavg()[0], 1),
        }
    print(json.dumps(row))


def write_file(path: Path, count: int, *, polygons: bool) -> None:
    """A valid dataset, in the order of our own files: images, annotations, categories."""
    rng = np.random.default_rng(0)
    drawn = [blob(rng) for _ in range(400)]
    made = [(rle_to_polygons(r) if polygons else r, *area_and_box(r)) for r in drawn]
    with open(path, "wb") as file:
        file.write(b'{"info":{},"licenses":[],"images":[')
        rows = JsonList(file)
        for i in range(1, -(-count // 3) + 1):
            rows.add({"id": i, "file_name": f"images/{i:012d}.jpg", "height": 480, "width": 640})
        file.write(b'],"annotations":[')
        rows = JsonList(file)
        for i in range(count):
            segmentation, area, box = made[i % len(made)]
            row: dict[str, Any] = {"id": i + 1, "image_id": i // 3 + 1}
            row |= {"category_id": i % 80 + 1}
            row |= {"segmentation": segmentation, "area": area, "bbox": box, "iscrowd": 0}
            rows.add({**row, "score": 0.95964926})
        file.write(b'],"categories":[')
        rows = JsonList(file)
        for i in range(1, 81):
            rows.add({"id": i, "name": f"class {i}", "supercategory": ""})
        file.write(b"]}\n")


def blob(rng: np.random.Generator) -> dict:
    """A ragged blob, as models draw them: about 100 runs."""
    y, x = np.mgrid[:480, :640]
    height, width = rng.uniform(15, 60, 2)
    top, left = rng.uniform(60, 420), rng.uniform(60, 580)
    ragged = rng.normal(0, 0.08, 640)
    return encode_mask(((y - top) / height) ** 2 + ((x - left) / width) ** 2 < 1 + ragged[None, :])


if __name__ == "__main__":
    main()
