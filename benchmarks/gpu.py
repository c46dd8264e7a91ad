"""What only a GPU can show: implementations of attention, the encoder's speed and memory, and a
dataset from JPEG to RLE.

    python benchmarks/gpu.py [--sam vit_h] [--images 400] --output FOLDER

`benchmarks/gpu.sh` runs this and the growth curves in one command. Weights are seeded. It also runs
without a GPU, slowly, which is how it is tested: --sam vit_b --images 8 --batches 1.
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
from torch import Tensor

import clip2sam
from clip2sam.data.images import load_image
from clip2sam.data.labels import as_label_set
from clip2sam.kernels.relative import IMPLEMENTATIONS, attention_shapes, measure
from clip2sam.models.loading import as_device
from clip2sam.pipeline import Segmenter
from clip2sam.sam import PromptSAM
from clip2sam.sam.encoder import encode_image

CLIP_SIDE, LABELS, PRESENT = 512, 20, 5


def attention_rows(sam: Any, batches: list[int], device: torch.device) -> list[dict[str, Any]]:
    """First of all: each implementation by itself, at the encoder's own shapes."""
    names = IMPLEMENTATIONS if device.type == "cuda" else ("masked", "joined")
    rows = []
    for batch in batches:
        windowed, full = attention_shapes(list(sam.image_encoder.blocks), batch)
        for kind, shape in {"windowed": windowed, "full": full}.items():
            for name in names:
                row: dict[str, Any] = {"attention": kind, "batch": batch, "implementation": name}
                try:
                    row["ms"] = measure(name, *shape, torch.bfloat16, device) * 1e3
                except Exception as error:  # no kernel or no memory: that is a result too
                    row["failed"] = f"{type(error).__name__}: {error}"[:200]
                rows.append(shown(row))
    return rows


@torch.no_grad()
def encoder_rows(
    segmenter: Segmenter, batches: list[int], device: torch.device
) -> list[dict[str, Any]]:
    """Images a second and peak memory: ours in bf16, the same compiled, and the official encoder in
    bf16 and fp32."""
    ours = segmenter.sam
    assert isinstance(ours, PromptSAM), "the presets of this benchmark have SAM's ViTs"
    fp32 = copy.deepcopy(ours.sam.image_encoder).float()
    compiled = torch.compile(encode_image, dynamic=False)
    rows = []
    for batch in batches:
        pixels = torch.randn(batch, 3, ours.input_side, ours.input_side, device=device)
        half = pixels.bfloat16()
        runs: dict[str, Callable[[], Any]] = {
            "bf16": partial(ours.encode_image, pixels),
            "bf16, compiled": partial(compiled, ours.sam.image_encoder, half, ours.attention),
            "official, bf16": partial(ours.sam.image_encoder, half),
            "official, fp32": partial(fp32, pixels),
        }
        for name, run in runs.items() if device.type == "cuda" else list(runs.items())[:1]:
            row = {"encoder": name, "batch": batch, "attention": ours.attention._asdict()}
            rows.append(shown(row | timed(run, batch, device)))
    return rows


def timed(
    run: Callable[[], Any], images: int, device: torch.device, times: int = 8
) -> dict[str, Any]:
    """Images a second (median, least, most) and the peak of memory in GiB, after two calls to warm
    up."""
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
            speeds.append(images / (time.perf_counter() - began))
    except RuntimeError as error:
        return {"failed": f"{type(error).__name__}: {error}"[:200]}
    return {
        "images a second": statistics.median(speeds),
        "least": min(speeds),
        "most": max(speeds),
        "GiB": peak_gib(device),
    }


def wait(device: torch.device) -> None:
    """Until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib(device: torch.device) -> float | None:
    """The peak of a GPU's memory since it was reset."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def dataset_row(segmenter: Segmenter, images: int, device: torch.device) -> dict[str, Any]:
    """A run over JPEGs of 480 x 640 in a folder, journal and files included: images a second after
    the first 16. The threshold is set so that 5 of 20 labels are present."""
    labels = as_label_set([f"label {i}" for i in range(LABELS)])
    with tempfile.TemporaryDirectory() as folder:
        source, data = Path(folder) / "images", jpeg(0.3072)
        source.mkdir()
        for i in range(images):
            (source / f"{i:06d}.jpg").write_bytes(data)
        maps = segmenter.locate(segmenter.encode([load_image(data)]), labels)
        scores = maps.presence[0].sort(descending=True).values
        threshold = float(scores[PRESENT - 1]) - 1e-4
        # maps of random weights peak everywhere: one prompt a label, so that there are PRESENT
        segmenter = segmenter.with_config(presence_threshold=threshold, prompts="label")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        run = clip2sam.label_dataset_iter(source, labels, f"{folder}/run", segmenter=segmenter)
        times = [time.perf_counter(), *(time.perf_counter() for _ in run)]
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    warm = 16 if images > 32 else 0  # whole batches: a batch's images come out together
    speed = (images - warm) / (times[-1] - times[warm])
    row = {"dataset": images, "images a second": speed, "GiB": peak_gib(device)}
    return shown(row | {"summary": summary})


@torch.no_grad()
def agreement_row(device: torch.device) -> dict[str, Any]:
    """`tiny` on this device against the CPU, both in fp32: relative error of maps and logits."""
    image, labels = load_image(jpeg(0.1)), as_label_set(["circle", "red thing", "striped star"])

    def predict(where: str) -> tuple[Tensor, Tensor]:
        tiny = clip2sam.load("tiny", device=where)
        segmenter = tiny.with_config(presence_threshold=None, prompts="label")
        prediction = segmenter.predict(segmenter.encode([image]), labels)
        return prediction.maps.raw.cpu(), prediction.masks.logits.cpu()

    maps, logits = (
        float((here - there).norm() / there.norm())
        for here, there in zip(predict(str(device)), predict("cpu"), strict=True)
    )
    return shown({"against the CPU": "tiny, fp32", "maps": maps, "logits": logits})


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
    parser.add_argument("--images", type=int, default=400)
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
    rows.append(dataset_row(segmenter, given.images, device))
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "gpu.json").write_text(
        json.dumps(report | {"sam": given.sam, "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
