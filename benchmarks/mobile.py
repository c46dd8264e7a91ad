"""MobileSAM: its encoder against the published code, in turn; and the preset `mobile` on an image
with 20 labels, with the time of each part.

    git clone https://github.com/ChaoningZhang/MobileSAM ../MobileSAM
    python benchmarks/mobile.py ../MobileSAM [--pairs 7] [--output FILE.json]

Weights are seeded: speed doesn't depend on them. Models are loaded and text features are known
before. An image is prompted once for each label that is present: for all 20, and for 5.
"""

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from about import about
from speed import WORDS, compare, error

import clip2sam
from clip2sam.models.sam_layout import untrained_sam
from clip2sam.sam.tiny_vit import TinyViT, fold, published_names

PRESENT = (20, 5)


def published_encoder(checkout: Path) -> Any:
    """The published TinyViT with seeded weights."""
    sys.path.insert(0, str(checkout))
    with warnings.catch_warnings():  # it imports timm's modules by names of long ago
        warnings.simplefilter("ignore")
        registry = import_module("mobile_sam").sam_model_registry
    return registry["vit_t"]().image_encoder.eval()


@torch.no_grad()
def encoder(checkout: Path, pairs: int) -> list[dict[str, Any]]:
    """The image encoder at 1024 pixels, each precision against the published code in fp32 and in
    the same precision."""
    theirs, pixels = published_encoder(checkout), torch.randn(1, 3, 1024, 1024)
    ours = TinyViT()
    ours.load_state_dict(published_names(theirs.state_dict()))
    fold(ours)
    half, theirs_half = (copy.deepcopy(model).bfloat16() for model in (ours, theirs))
    runs: dict[str, Callable[[], Any]] = {
        "MobileSAM encoder, fp32": lambda: ours(pixels),
        "MobileSAM encoder, bf16": lambda: half(pixels.bfloat16()),
    }
    expected = theirs(pixels)
    errors = [error(run(), expected) for run in runs.values()]
    rows = compare(lambda: theirs(pixels), runs, pairs)
    both = {"MobileSAM encoder, bf16 on both sides": runs["MobileSAM encoder, bf16"]}
    rows += compare(lambda: theirs_half(pixels.bfloat16()), both, pairs)
    return [{**row, "error": e} for row, e in zip(rows, [*errors, errors[-1]], strict=True)]


@contextmanager
def timed(taken: dict[str, float], owner: Any, *names: str) -> Iterator[None]:
    """Add the seconds in some of an object's methods to `taken`."""

    def wrap(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                taken[f"{type(owner).__name__}.{name}"] += time.perf_counter() - began

        return run

    for name in names:
        setattr(owner, name, wrap(name, getattr(owner, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(owner, name)


def whole(precision: str, pairs: int) -> list[dict[str, Any]]:
    """An image of 480 x 640 with 20 labels, to results on the host."""
    clip, sam = open_clip.create_model("ViT-B-16-quickgelu").eval(), untrained_sam("vit_t").eval()
    fold(sam.image_encoder)
    segmenter = clip2sam.load(clip=clip, sam=sam, precision=precision, device="cpu")
    segmenter = segmenter.with_config(presence_threshold=None, prompts="label")
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    rows = []
    for present in PRESENT:
        # Labels that aren't there cost nothing after CLIP, so fewer labels stand for fewer present.
        words, turns = WORDS[:present], []
        segmenter(pixels, words)
        for _ in range(pairs):
            taken: dict[str, float] = defaultdict(float)
            began = time.perf_counter()
            with (
                timed(taken, segmenter.clip, "encode_image", "resize"),
                timed(taken, segmenter.sam, "resize", "encode_image", "decode"),
            ):
                segmenter(pixels, words)
            turns.append({"all": time.perf_counter() - began, **taken})
        whole_times = sorted(turn["all"] for turn in turns)
        row: dict[str, Any] = {"name": f"mobile, {present} labels present, {precision}"}
        row |= {"s": statistics.median(whole_times), "least": whole_times[0]}
        row |= {"most": whole_times[-1], "turns": pairs}
        row |= {
            f"{part}, s": statistics.median(turn[part] for turn in turns)
            for part in turns[0]
            if part != "all"
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """The encoder, then the whole."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, nargs="?", help="MobileSAM's; else the whole alone")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    report = about()
    print(json.dumps(report), flush=True)
    report["rows"] = encoder(given.checkout, given.pairs) if given.checkout else []
    for precision in ("bf16", "fp32"):
        report["rows"] += whole(precision, given.pairs)
    if given.output:
        given.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
