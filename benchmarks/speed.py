"""Each stage against the published recipe, side by side in one process, in turn; ratios of medians are of pairs.

    python benchmarks/speed.py [--sam vit_b] [--pairs 5] [--stages text surgery encoder decoder] [--output FILE.json]

Weights are seeded: speed doesn't depend on them. "exact" is float32 and agrees with the published result to rounding;
the relative error is printed beside every ratio.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from segment_anything import SamPredictor, sam_model_registry
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import published

from clip2sam.clip import encode_prompts
from clip2sam.coco import encode_mask
from clip2sam.points import point_prompts, pool_grid, select_points
from clip2sam.sam import PointSAM
from clip2sam.sam.encoder import encode_image
from clip2sam.similarity import feature_surgery
from clip2sam.types import Image

WORDS = [
    *("person", "bicycle", "car", "bus", "train", "truck", "boat", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "bear", "zebra", "giraffe", "tie", "cup", "fork"),
]


def compare(name: str, theirs: Callable[[], Any], ours: Callable[[], Any], pairs: int, **more: Any) -> dict[str, Any]:
    """Time both in turn after one warm-up each; the ratio is theirs / ours, pair by pair."""
    theirs()
    ours()
    times: list[tuple[float, float]] = []
    for _ in range(pairs):
        start = time.perf_counter()
        theirs()
        middle = time.perf_counter()
        ours()
        times.append((middle - start, time.perf_counter() - middle))
    ratios = sorted(a / b for a, b in times)
    row = {
        "name": name,
        "published, s": statistics.median(a for a, _ in times),
        "ours, s": statistics.median(b for _, b in times),
        "ratio": statistics.median(ratios),
        "ratio, least": ratios[0],
        "ratio, most": ratios[-1],
        "pairs": pairs,
        **more,
    }
    print(json.dumps(row), flush=True)
    return row


def error(ours: Tensor, theirs: Tensor) -> float:
    """Relative error in the 2-norm."""
    return float((ours.float() - theirs).norm() / theirs.norm())


def text(pairs: int) -> list[dict[str, Any]]:
    """20 labels' text features: exact, bf16, and from the cache."""
    model = open_clip.create_model("ViT-B-16-quickgelu").eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-16-quickgelu")
    half, expected = copy.deepcopy(model).bfloat16(), published.text_features(model, tokenizer, WORDS)
    rows = []
    for name, own in (("text, 20 labels, exact", model), ("text, 20 labels, bf16", half)):
        rows.append(
            compare(
                name,
                lambda: published.text_features(model, tokenizer, WORDS),
                lambda own=own: encode_prompts(own, tokenizer, WORDS),  # type: ignore[misc]
                pairs,
                error=error(encode_prompts(own, tokenizer, WORDS), expected),
            )
        )
    return rows


def surgery(pairs: int) -> list[dict[str, Any]]:
    """Feature surgery of 1,025 tokens at 20, 80 and 1,203 labels (the published tensor of the last is 2.5 GB)."""
    rows = []
    tokens = F.normalize(torch.randn(1, 1025, 512), dim=-1)
    for labels in (20, 80, 1203):
        words = F.normalize(torch.randn(labels, 512), dim=-1)
        expected = published.feature_surgery(tokens[0], words)
        rows.append(
            compare(
                f"feature surgery, {labels} labels",
                lambda words=words: published.feature_surgery(tokens[0], words),  # type: ignore[misc]
                lambda words=words: feature_surgery(tokens, words),  # type: ignore[misc]
                pairs,
                error=error(feature_surgery(tokens, words)[0], expected),
            )
        )
    return rows


@torch.no_grad()
def encoder(sam: Any, pairs: int) -> list[dict[str, Any]]:
    """The image encoder at 1024 pixels: exact and bf16."""
    pixels = torch.randn(1, 3, 1024, 1024)
    half, expected = copy.deepcopy(sam.image_encoder).bfloat16(), sam.image_encoder(pixels)
    rows = []
    for name, own in (("encoder, exact", sam.image_encoder), ("encoder, bf16", half)):
        typed = pixels.to(own.neck[0].weight.dtype)
        rows.append(
            compare(
                name,
                lambda: sam.image_encoder(pixels),
                lambda own=own, typed=typed: encode_image(own, typed),  # type: ignore[misc]
                pairs,
                error=error(encode_image(own, typed), expected),
            )
        )
    return rows


@torch.no_grad()
def decoder(sam: Any, pairs: int, labels: int = 80, size: tuple[int, int] = (480, 640)) -> list[dict[str, Any]]:
    """80 labels on one picture: points to RLE, and the two halves of it."""
    rng = np.random.default_rng(0)
    small = PILImage.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    image = Image(np.asarray(small.resize(size[::-1], PILImage.Resampling.BICUBIC)), "drawn")
    ours, predictor = PointSAM(sam), SamPredictor(sam)
    predictor.set_image(image.pixels)
    embedding = predictor.features[0]
    coords, point_labels = select_points(pool_grid(torch.randn(labels, 14, 14)), size)
    prompts = point_prompts(coords, point_labels, torch.ones(labels, dtype=torch.bool))
    plain = [
        (xy[kind >= 0].floor().numpy(), kind[kind >= 0].numpy()) for xy, kind in zip(coords, point_labels, strict=True)
    ]

    def best_logits() -> Tensor:
        logits, iou = ours.decode(embedding, prompts, size)
        return logits[torch.arange(labels), iou.argmax(dim=-1)]

    def our_rles() -> list[dict[str, Any]]:
        return [encode_mask(m.numpy()) for chunk in ours.upscale(best_logits(), size) for m in chunk]

    def their_rles() -> list[dict[str, Any]]:
        return [encode_mask(m) for m in published.masks(predictor, plain)]

    same = np.mean([a == b for a, b in zip(our_rles(), their_rles(), strict=True)])
    name = f"{labels} labels on one picture, points to RLE"
    return [compare(name, their_rles, our_rles, pairs, identical=float(same))]


def about() -> dict[str, Any]:
    """Where this ran."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip(),
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load before": os.getloadavg()[0],
        "torch": torch.__version__,
    }


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = ["text", "surgery", "encoder", "decoder"]
    parser.add_argument("--sam", default="vit_b", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    report: dict[str, Any] = {**about(), "sam": given.sam, "rows": []}
    print(json.dumps({k: v for k, v in report.items() if k != "rows"}), flush=True)
    sam = sam_model_registry[given.sam]().eval() if {"encoder", "decoder"} & set(given.stages) else None
    for stage in given.stages:
        rows = text(given.pairs) if stage == "text" else surgery(given.pairs) if stage == "surgery" else None
        report["rows"] += (
            rows if rows is not None else {"encoder": encoder, "decoder": decoder}[stage](sam, given.pairs)
        )
    if given.output:
        given.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
