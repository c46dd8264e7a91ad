"""MobileSAM's encoder against the published code, in turn.

    git clone https://github.com/ChaoningZhang/MobileSAM ../MobileSAM
    python benchmarks/mobile.py ../MobileSAM [--pairs 7] [--output FILE.json]

Weights are seeded: speed doesn't depend on them.
"""

import argparse
import copy
import json
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from about import about
from speed import compare, error

from clip2sam.sam.tiny_vit import TinyViT, fold, published_names


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


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="MobileSAM's")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    report = about()
    print(json.dumps(report), flush=True)
    report["rows"] = encoder(given.checkout, given.pairs)
    if given.output:
        given.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
