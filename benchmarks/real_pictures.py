"""Run `clip2sam segment` over real photographs and measure time and memory; the outcome must be valid COCO.

    python benchmarks/real_pictures.py PICTURES INSTANCES_JSON [--preset vit-b] [--precision bf16] [--limit N]

PICTURES is a folder, INSTANCES_JSON the COCO data set whose category names become the labels. Presets other than tiny
get seeded checkpoints in the official formats and run the published recipe, so that every label is prompted: this
measures the machinery, not the knowledge.
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
    clip_file, sam_file = (
        work / f"{chosen.clip.model}-seeded.safetensors",
        work / f"{chosen.sam.model_type}-seeded.pth",
    )
    torch.manual_seed(0)
    if not clip_file.exists():
        save_file(open_clip.create_model(chosen.clip.model).state_dict(), clip_file)
    if not sam_file.exists():
        torch.save(sam_model_registry[chosen.sam.model_type]().state_dict(), sam_file)
    return ["--published", "--clip-checkpoint", str(clip_file), "--sam-checkpoint", str(sam_file)]


def main() -> None:
    """Run, measure, check, print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path)
    parser.add_argument("instances", type=Path)
    parser.add_argument("--preset", default="vit-b")
    parser.add_argument("--precision", default="exact")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--work", type=Path, default=Path("out/real"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    names = [c["name"] for c in json.loads(given.instances.read_text())["categories"]]
    (given.work / "labels.json").write_text(json.dumps(names))
    pictures = sorted(given.pictures.glob("*.jpg"))[: given.limit]
    output = given.work / given.preset
    command = [
        sys.executable,
        "-m",
        "clip2sam.cli",
        "segment",
        *map(str, pictures),
        "--preset",
        given.preset,
    ]
    command += [
        "--labels",
        str(given.work / "labels.json"),
        "--output",
        str(output),
        "--overlays",
        "none",
    ]
    command += ["--precision", given.precision]
    command += seeded_checkpoints(given.preset, given.work)
    start = time.perf_counter()
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    annotations = output / "annotations.json"
    valid = subprocess.run(
        [sys.executable, "-m", "clip2sam.cli", "validate", str(annotations)], check=False
    )
    coco = COCO(str(annotations))
    print(
        json.dumps(
            {
                "preset": given.preset,
                "precision": given.precision,
                "exit code": done.returncode,
                "valid": valid.returncode == 0,
                "pictures": len(pictures),
                "in the file": len(coco.imgs),
                "labels": len(names),
                "masks": len(coco.anns),
                "seconds": round(seconds, 1),
                "seconds a picture, loading and text included": round(seconds / len(pictures), 2),
                "peak memory, GB": round(
                    resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2
                ),
                "threads": torch.get_num_threads(),
                "device": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "commit": subprocess.run(
                    ["git", "rev-parse", "--short", "HEAD"],
                    capture_output=True,
                    text=True,
                    check=False,
                ).stdout.strip(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
