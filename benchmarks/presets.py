"""Seconds an image takes with each preset for photographs, and where they go.

    python benchmarks/presets.py [PRESET ...] [--precision bf16 fp32] [--pairs 5] [--output FILE]

Weights are seeded: speed doesn't depend on them. Models are loaded and text features are known
before. The image has 480 x 640 pixels and is asked for 20 labels, of which all 20 or 5 are present:
a label that is absent costs CLIP's part alone, so fewer labels stand for fewer present ones. Each
present label is one prompt. The preset's turns come one after another.
"""

import argparse
import gc
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from about import about
from speed import WORDS

import clip2sam
from clip2sam.models.presets import PRESETS, ClipWeights, HubSamWeights, SamWeights
from clip2sam.models.sam_layout import untrained_sam
from clip2sam.models.transformers_sam import build
from clip2sam.sam.tiny_vit import fold

PRESENT = (20, 5)
PHOTOGRAPHS = [p.name for p in PRESETS.values() if isinstance(p.clip, ClipWeights)]


def seeded_sam(weights: Any) -> Any:
    """The preset's SAM without its weights."""
    if isinstance(weights, HubSamWeights):
        import transformers

        return build(transformers, weights.architecture).eval()
    assert isinstance(weights, SamWeights)
    sam = untrained_sam(weights.model_type).eval()
    if weights.model_type == "vit_t":
        fold(sam.image_encoder)
    return sam


@contextmanager
def timed(taken: dict[str, float], owner: Any, **names: str) -> Iterator[None]:
    """Add the seconds in some of an object's methods to `taken`.

    Args:
        names: for each method the name under which its time is kept.
    """

    def wrap(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                taken[name] += time.perf_counter() - began

        return run

    for method, name in names.items():
        setattr(owner, method, wrap(name, getattr(owner, method)))
    try:
        yield
    finally:
        for method in names:
            delattr(owner, method)


def turns(segmenter: clip2sam.Segmenter, present: int, pairs: int) -> list[dict[str, float]]:
    """Seconds of each turn: all of it, and in the encoders and the decoder."""
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    words, rows = WORDS[:present], []
    segmenter(pixels, words)
    for _ in range(pairs):
        taken: dict[str, float] = defaultdict(float)
        began = time.perf_counter()
        with (
            timed(taken, segmenter.clip, encode_image="clip"),
            timed(taken, segmenter.sam, encode_image="encoder", decode="decoder"),
        ):
            segmenter(pixels, words)
        rows.append({"all": time.perf_counter() - began, **taken})
    return rows


def preset_rows(name: str, precisions: list[str], pairs: int) -> list[dict[str, Any]]:
    """Median, least and most of a preset's turns."""
    preset, rows = PRESETS[name], []
    assert isinstance(preset.clip, ClipWeights), "the embedded models are in other benchmarks"
    for precision in precisions:
        clip = open_clip.create_model(preset.clip.model).eval()
        segmenter = clip2sam.load(
            clip=clip, sam=seeded_sam(preset.sam), precision=precision, device="cpu"
        ).with_config(presence_threshold=None, prompts="label")
        for present in PRESENT:
            taken = turns(segmenter, present, pairs)
            whole = sorted(turn["all"] for turn in taken)
            row = {"preset": name, "precision": precision, "present": present, "turns": pairs}
            row |= {"s": statistics.median(whole), "least": whole[0], "most": whole[-1]}
            row |= {
                f"{part}, s": statistics.median(turn[part] for turn in taken)
                for part in ("clip", "encoder", "decoder")
            }
            row = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
            print(json.dumps(row), flush=True)
            rows.append(row)
        del segmenter
        gc.collect()
    return rows


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("presets", nargs="*", default=PHOTOGRAPHS, metavar="PRESET")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    report = about()
    print(json.dumps(report), flush=True)
    report["rows"] = []
    for name in given.presets:
        report["rows"] += preset_rows(name, given.precision, given.pairs)
        if given.output:
            given.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
