"""An image and 20 labels to RLE, models loaded: the published recipe and ours, in turn; and the
memory of each.

    python benchmarks/whole.py [--sam vit_h] [--pairs 5] [--output FILE.json]

CLIP ViT-B/16 at 512 pixels and SAM, with seeded weights. All labels are prompted on both sides, as
in the published recipe. The published side runs label by label in fp32; its CLIP pass is ours, in
fp32, which is the same arithmetic. Ours is in bf16; memory is measured in fp32 too. "first" begins
without text features, "later" has them.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import published
import torch
import torch.nn.functional as F
from about import about
from segment_anything import SamPredictor, sam_model_registry
from speed import WORDS

import clip2sam
from clip2sam.clip import CLIP_SURGERY, SurgeryCLIP
from clip2sam.clip.surgery import dense_grid
from clip2sam.coco.rle import encode_mask
from clip2sam.data.images import Image
from clip2sam.points import pixel_indices, pool_grid, select_points
from clip2sam.similarity import score_maps

SIDES = ("published", "fp32", "bf16")


class Published:
    """The published recipe, written plainly."""

    def __init__(self, clip: Any, tokenizer: Any, sam: Any) -> None:
        self.clip, self.tokenizer = SurgeryCLIP(clip, tokenizer, resolution=512), tokenizer
        self.predictor = SamPredictor(sam)

    @torch.no_grad()
    def run(self, pixels: np.ndarray, words: list[str]) -> dict[str, float]:
        """Seconds of the first image and of a later one, which has the text features."""
        began = time.perf_counter()
        text = published.text_features(self.clip.model, self.tokenizer, words)
        ready = time.perf_counter()
        image = self.clip.preprocess([self.clip.resize(Image(pixels, "array"))])
        dense, (rows, cols) = dense_grid(self.clip.model.visual, image, CLIP_SURGERY)
        tokens = F.normalize(dense[0], dim=-1)
        maps = score_maps(published.feature_surgery(tokens, text)[None], rows, cols)
        coords, labels = select_points(pool_grid(maps, "half"), (pixels.shape[:2],))
        prompts = [
            (pixel_indices(xy[kind >= 0]).numpy(), kind[kind >= 0].numpy())
            for xy, kind in zip(coords[0], labels[0], strict=True)
        ]
        self.predictor.set_image(pixels)
        for mask in published.masks(self.predictor, prompts):
            encode_mask(mask)
        later = time.perf_counter() - ready
        return {"first": ready - began + later, "later": later}


class Ours:
    """`clip2sam.load` with the published settings."""

    def __init__(self, clip: Any, tokenizer: Any, sam: Any, precision: str) -> None:
        # The published settings, with these labels alone: the other side has no others either.
        config = replace(clip2sam.published(), background_prompts=())
        self.segmenter = clip2sam.load(
            clip=clip,
            tokenizer=tokenizer,
            sam=sam,
            precision=precision,
            device="cpu",
            config=config,
        )
        # Text features in memory only: "first" means first.
        loaded = self.segmenter
        memory_only = SurgeryCLIP(loaded.clip.model, tokenizer)
        self.segmenter = clip2sam.Segmenter(memory_only, loaded.sam, config)

    def run(self, pixels: np.ndarray, words: list[str]) -> dict[str, float]:
        """Seconds of the first image and of a later one."""
        self.segmenter.clip.text_features.clear()
        taken = {}
        for name in ("first", "later"):
            began = time.perf_counter()
            result = self.segmenter(pixels, words)
            taken[name] = time.perf_counter() - began
            assert len(result.class_names) == len(words)
        return taken


def make(side: str, sam: str) -> Published | Ours:
    """One side, with its own seeded models."""
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16-quickgelu").eval()
    tokenizer, model = (
        open_clip.get_tokenizer("ViT-B-16-quickgelu"),
        sam_model_registry[sam]().eval(),
    )
    return (
        Published(clip, tokenizer, model)
        if side == "published"
        else Ours(clip, tokenizer, model, side)
    )


def image() -> np.ndarray:
    """480 x 640 pixels."""
    return np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)


def memory(side: str, sam: str, answer: Any) -> None:
    """In a process of its own: the peak of resident memory of one image, in 1e9 bytes."""
    make(side, sam).run(image(), WORDS)
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


def peak(side: str, sam: str) -> float:
    """Run `memory` and wait."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=memory, args=(side, sam, answer))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{side} ended with status {process.exitcode}")
    return float(answer.get())


def main() -> None:
    """Memory first, then time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sam", default="vit_h", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    report: dict[str, Any] = about() | {"sam": given.sam, "pairs": given.pairs}
    report["peak GB"] = {side: peak(side, given.sam) for side in SIDES}
    print(json.dumps(report), flush=True)
    sides = {side: make(side, given.sam) for side in ("published", "bf16")}
    turns = []
    for _ in range(given.pairs):
        turns.append({side: one.run(image(), WORDS) for side, one in sides.items()})
        print(json.dumps(turns[-1]), flush=True)
    report["turns"], report["rows"] = turns, []
    for which in ("first", "later"):
        ratios = sorted(turn["published"][which] / turn["bf16"][which] for turn in turns)
        row = {"name": f"{given.sam}, {which} image, bf16", "ratio": statistics.median(ratios)}
        row |= {"ratio, least": ratios[0], "ratio, most": ratios[-1], "pairs": given.pairs}
        row |= {"published, s": statistics.median(turn["published"][which] for turn in turns)}
        row |= {"ours, s": statistics.median(turn["bf16"][which] for turn in turns)}
        print(json.dumps(row), flush=True)
        report["rows"].append(row)
    if given.output:
        given.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
