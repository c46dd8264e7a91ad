"""Run `clip2sam segment` over photographs and measure time and memory; the output must be valid
COCO.

    python benchmarks/real_images.py IMAGES INSTANCES_JSON [--preset vit-b] [--precision bf16]

IMAGES is a folder, INSTANCES_JSON the COCO dataset whose category names become the labels. Presets
other than tiny get seeded checkpoints in the official formats and run the published demo, so that
every label is prompted: this measures the machinery, not the knowledge.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import open_clip
import torch
from pycocotools.coco import COCO
from safetensors.torch import save_file
from segment_anything import sam_model_registry

from clip2sam.models.presets import ClipWeights, SamWeights, get_preset


def seeded_checkpoints(preset: str, work: Path) -> list[str]:
    """Write a preset's two checkpoints with seeded weights; return the options that name them."""
    chosen = get_preset(preset)
    if not isinstance(chosen.clip, ClipWeights) or not isinstance(chosen.sam, SamWeights):
        return []
    clip_file = work / f"{chosen.clip.model}-seeded.safetensors"
    sam_file = work / f"{chosen.sam.model_type}-seeded.pth"
    torch.manual_seed(0)
    if not clip_file.exists():
        save_file(open_clip.create_model(chosen.clip.model).state_dict(), clip_file)
    if not sam_file.exists():
        torch.save(sam_model_registry[chosen.sam.model_type]().state_dict(), sam_file)
    return ["--published", "--clip-checkpoint", str(clip_file), "--sam-checkpoint", str(sam_file)]


def arguments() -> argparse.Namespace:
    """Those of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("instances", type=Path)
    parser.add_argument("--preset", default="vit-b")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--work", type=Path, default=Path("out/real"))
    return parser.parse_args()


def main() -> None:
    """Run, measure, check, print one JSON object."""
    given = arguments()
    given.work.mkdir(parents=True, exist_ok=True)
    names = [c["name"] for c in json.loads(given.instances.read_text())["categories"]]
    labels, output = given.work / "labels.json", given.work / given.preset
    labels.write_text(json.dumps(names))
    images = sorted(given.images.glob("*.jpg"))[: given.limit]
    command = [sys.executable, "-m", "clip2sam.cli"]
    options = ["--preset", given.preset, "--precision", given.precision, "--overlays", "none"]
    options += ["--labels", str(labels), "--output", str(output)]
    options += seeded_checkpoints(given.preset, given.work)
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "segment", *map(str, images), *options], check=False, stdout=subprocess.DEVNULL
    )
    seconds = time.perf_counter() - start
    annotations = output / "annotations.json"
    valid = subprocess.run([*command, "validate", str(annotations)], check=False)
    coco = COCO(str(annotations))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    figures = {
        "preset": given.preset,
        "precision": given.precision,
        "exit code": done.returncode,
        "valid": valid.returncode == 0,
        "images": len(images),
        "in the file": len(coco.imgs),
        "labels": len(names),
        "masks": len(coco.anns),
        "seconds": round(seconds, 1),
        "seconds an image, loading and text included": round(seconds / len(images), 2),
        "peak memory, GB": round(peak, 2),
        "threads": torch.get_num_threads(),
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
