"""Masks of a folder's images as Parquet, by a pipeline of ray.data.

    python benchmarks/ray_data.py [IMAGES] [ACTORS] [OUTPUT]

An example for people who have such a pipeline: IMAGES drawn images (24) and one that is none are
read as bytes, labelled by ACTORS actors (1) with the preset tiny, and written into the folder
OUTPUT (a temporary one). Then the rows are read again.
"""

import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.data
from about import about
from PIL import Image as PILImage
from pyarrow import dataset

from clip2sam.cluster.columns import Labeller
from clip2sam.tiny.scenes import scene, split_seed

LABELS = ["red circle", "heart", "star", "blue thing", "striped square"]


def label(images: Path, output: Path, actors: int) -> None:
    """The pipeline."""
    (
        ray.data.read_binary_files(str(images), include_paths=True)
        .map_batches(
            Labeller,
            fn_constructor_kwargs={"labels": LABELS, "segmenter": "tiny", "threads": 1},
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            batch_size=8,
        )
        .write_parquet(str(output))
    )


def main() -> None:
    """Draw, label, read."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    actors = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "in"
        images.mkdir()
        output = Path(sys.argv[3] if len(sys.argv) > 3 else Path(folder) / "masks")
        for i in range(count):
            PILImage.fromarray(scene(split_seed("test", i)).pixels).save(images / f"{i:05d}.png")
        (images / "bad.png").write_text("no image")
        ray.init("local", include_dashboard=False, logging_level=logging.ERROR)
        began = time.perf_counter()
        label(images, output, actors)
        seconds = time.perf_counter() - began
        ray.shutdown()
        table = dataset.dataset(output).to_table()
    rows = table.to_pylist()
    failed = [row["error"] for row in rows if row["error"]]
    masks = sum(len(row["category"]) for row in rows)
    print(table.schema.to_string(show_schema_metadata=False))
    counts = {"rows": len(rows), "masks": masks, "failed": failed, "seconds": round(seconds, 1)}
    print(json.dumps({**about(), "actors": actors, **counts}, indent=1))


if __name__ == "__main__":
    main()
