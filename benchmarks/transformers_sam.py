"""The image encoders of SAM 2.1, EdgeTAM and SAM-HQ against transformers' own, in turn.

    python benchmarks/transformers_sam.py [PRESET ...] [--pairs 5] [--output FILE]

Weights are seeded: speed doesn't depend on them. Each precision against transformers in fp32, and
bf16 against bf16.
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from about import about
from speed import compare, error

from clip2sam.models.presets import PRESETS, HubSamWeights
from clip2sam.models.transformers_sam import build
from clip2sam.sam import CUTTERS

NAMES = [p.name for p in PRESETS.values() if isinstance(p.sam, HubSamWeights)]


def last(embeddings: Any) -> torch.Tensor:
    """The coarsest level of what an encoder gives, which the decoder attends to."""
    return embeddings[-1] if isinstance(embeddings, list) else embeddings[0]


@torch.no_grad()
def encoder(name: str, pairs: int) -> list[dict[str, Any]]:
    """The encoder at 1024 pixels."""
    weights = PRESETS[name].sam
    assert isinstance(weights, HubSamWeights)
    theirs = build(transformers, weights.architecture).eval()
    half = copy.deepcopy(theirs)
    half.vision_encoder.bfloat16()
    theirs_half = copy.deepcopy(theirs).bfloat16()
    kind = theirs.config.model_type
    ours, ours_half = CUTTERS[kind](theirs), CUTTERS[kind](half)
    pixels = torch.randn(1, 3, 1024, 1024)
    runs: dict[str, Callable[[], Any]] = {
        f"{name} encoder, fp32": lambda: ours.encode_image(pixels),
        f"{name} encoder, bf16": lambda: ours_half.encode_image(pixels),
    }
    expected = last(theirs.get_image_embeddings(pixels))
    errors = [error(run()[0], expected) for run in runs.values()]
    rows = compare(lambda: theirs.get_image_embeddings(pixels), runs, pairs)
    both = {f"{name} encoder, bf16 on both sides": runs[f"{name} encoder, bf16"]}
    rows += compare(lambda: theirs_half.get_image_embeddings(pixels.bfloat16()), both, pairs)
    return [{**row, "error": e} for row, e in zip(rows, [*errors, errors[-1]], strict=True)]


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("presets", nargs="*", default=NAMES, metavar="PRESET")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    report = about() | {"transformers": transformers.__version__}
    print(json.dumps(report), flush=True)
    report["rows"] = []
    for name in given.presets:
        report["rows"] += encoder(name, given.pairs)
        if given.output:
            given.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
