"""What only a GPU can show: attention's ways, the encoder's speed and memory, and a data set from JPEG to RLE.

    python benchmarks/gpu.py [--sam vit_h] [--pictures 400] --output FOLDER

`benchmarks/gpu.sh` runs this and the growth curves in one command. Weights are seeded. Without a GPU it runs as well,
slowly, which is how it is tested: --sam vit_b --pictures 8 --batches 1.
"""

import argparse
import copy
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from about import about
from growth import jpeg
from segment_anything import sam_model_registry

import clip2sam
from clip2sam.data.labels import as_label_set
from clip2sam.kernels.relative import WAYS, measure
from clip2sam.models.loading import as_device
from clip2sam.pipeline import Segmenter
from clip2sam.sam.encoder import encode_image

CLIP_SIDE, LABELS, FOUND = 512, 20, 5


def attention_rows(sam: Any, batches: list[int], device: torch.device) -> list[dict[str, Any]]:
    """First of all: each way by itself, at the encoder's own shapes."""
    blocks = sam.image_encoder.blocks
    heads, dim = (
        blocks[0].attn.num_heads,
        blocks[0].attn.qkv.in_features // blocks[0].attn.num_heads,
    )
    rows = []
    for batch in batches:
        for name, shape in {
            "windows": (batch * 25, heads, 14, dim),
            "whole": (batch, heads, 64, dim),
        }.items():
            for way in WAYS if device.type == "cuda" else ("masked", "joined"):
                row: dict[str, Any] = {"attention": name, "batch": batch, "way": way}
                try:
                    row["ms"] = measure(way, *shape, torch.bfloat16, device) * 1e3
                except (
                    Exception
                ) as error:  # no kernel for the shape, or no memory: that is a result too
                    row["failed"] = f"{type(error).__name__}: {error}"[:200]
                rows.append(shown(row))
    return rows


@torch.no_grad()
def encoder_rows(
    segmenter: Segmenter, batches: list[int], device: torch.device
) -> list[dict[str, Any]]:
    """Pictures a second and peak memory: ours in bf16, the same compiled, and the official one in bf16 and float32."""
    ours = segmenter.sam
    exact = copy.deepcopy(ours.sam.image_encoder).float()
    compiled = torch.compile(encode_image, dynamic=False)
    rows = []
    for batch in batches:
        pixels = torch.randn(batch, 3, ours.input_side, ours.input_side, device=device)
        half = pixels.bfloat16()
        runs: dict[str, Callable[[], Any]] = {
            "bf16": partial(ours.encode_image, pixels),
            "bf16, compiled": partial(compiled, ours.sam.image_encoder, half, ours.attention),
            "official, bf16": partial(ours.sam.image_encoder, half),
            "official, float32": partial(exact, pixels),
        }
        for name, run in runs.items() if device.type == "cuda" else list(runs.items())[:1]:
            row = {"encoder": name, "batch": batch, "ways": list(ours.attention)}
            rows.append(shown(row | timed(run, batch, device)))
    return rows


def timed(
    run: Callable[[], Any], pictures: int, device: torch.device, times: int = 8
) -> dict[str, Any]:
    """Pictures a second (median, least, most) and the peak of memory in GiB, after two calls to warm up."""
    try:
        for _ in range(2):
            run()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        speeds = []
        for _ in range(times if device.type == "cuda" else 2):
            wait(device)
            began = time.perf_counter()
            run()
            wait(device)
            speeds.append(pictures / (time.perf_counter() - began))
    except RuntimeError as error:
        return {"failed": f"{type(error).__name__}: {error}"[:200]}
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {
        "pictures a second": statistics.median(speeds),
        "least": min(speeds),
        "most": max(speeds),
        "GiB": peak,
    }


def wait(device: torch.device) -> None:
    """Until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def data_set_row(segmenter: Segmenter, pictures: int, device: torch.device) -> dict[str, Any]:
    """A run over JPEGs of 480 x 640 in a folder, journal and files included: pictures a second after the first 16."""
    labels = as_label_set([f"label {i}" for i in range(LABELS)])
    with tempfile.TemporaryDirectory() as folder:
        images, data = Path(folder) / "images", jpeg(0.3072)
        images.mkdir()
        for i in range(pictures):
            (images / f"{i:06d}.jpg").write_bytes(data)
        scores = (
            segmenter.similarity(clip2sam.data.images.load_image(data), labels)
            .presence.sort(descending=True)
            .values
        )
        segmenter = segmenter.with_config(presence=float(scores[FOUND - 1]) - 1e-4)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        run = clip2sam.label_iter(images, labels, f"{folder}/run", segmenter=segmenter)
        times = [time.perf_counter(), *(time.perf_counter() for _ in run)]
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    warm = 16 if pictures > 32 else 0  # whole batches, since a batch's pictures come out together
    row: dict[str, Any] = {"data set": pictures}
    row["pictures a second"] = (pictures - warm) / (times[-1] - times[warm])
    row["GiB"] = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return shown(row | {"summary": summary})


@torch.no_grad()
def agreement_row(device: torch.device) -> dict[str, Any]:
    """`tiny` on this device against the CPU, both exact: relative error of maps and logits."""
    here, there = clip2sam.load("tiny", device=str(device)), clip2sam.load("tiny", device="cpu")
    picture, labels = (
        clip2sam.data.images.load_image(jpeg(0.1)),
        as_label_set(["circle", "red thing", "striped star"]),
    )
    one, two = (s.with_config(presence=None).predict_torch(picture, labels) for s in (here, there))
    maps = (one.maps.raw.cpu() - two.maps.raw).norm() / two.maps.raw.norm()
    logits = (one.masks.logits.cpu() - two.masks.logits).norm() / two.masks.logits.norm()
    return shown({"against the CPU": "tiny, exact", "maps": float(maps), "logits": float(logits)})


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row at once: what was measured stays if the rest is cut off."""
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Run it all, and write one JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sam", default="vit_h", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, required=True, help="folder for gpu.json")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(0)
    device, report = as_device(given.device), about()
    rows = [agreement_row(device)]
    sam = sam_model_registry[given.sam]()
    rows += attention_rows(sam, given.batches, device)
    clip = open_clip.create_model("ViT-B-16-quickgelu")
    segmenter = clip2sam.load(
        clip=clip, sam=sam, precision="bf16", device=str(device), resolution=CLIP_SIDE
    )
    rows += encoder_rows(segmenter, given.batches, device)
    rows.append(data_set_row(segmenter, given.pictures, device))
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "gpu.json").write_text(
        json.dumps(report | {"sam": given.sam, "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
