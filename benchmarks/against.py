"""This checkout against another one, such as the commit before a big change: both in turn.

    git worktree add ../before COMMIT
    python benchmarks/against.py ../before [--pairs 7] [--sam vit_b] [--output FILE.json]

Each side is a process of its own with its models loaded. They get the same work in turn. A ratio
is the other side's time divided by ours in one turn, so above 1 ours is faster. Only what both
sides understand is called: `clip2sam.load` and the segmenter itself. CLIP ViT-B/16 and SAM with
seeded weights, and `tiny`; every label is prompted once (`objects.py` has one prompt an object).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from about import about

LABELS = [f"thing {i}" for i in range(20)]
CASES = ("tiny, 20 labels", "bf16, 20 labels", "fp32, 20 labels", "bf16, 1 label")


def serve(sam: str) -> None:
    """A side: do what standard input asks for, answer with the seconds that it took."""
    import numpy as np
    import open_clip
    import torch
    from segment_anything import sam_model_registry

    import clip2sam

    def seeded(precision: str) -> Any:
        torch.manual_seed(0)
        clip = open_clip.create_model("ViT-B-16-quickgelu")
        model = sam_model_registry[sam]()
        return clip2sam.load(clip=clip, sam=model, precision=precision, device="cpu")

    settings = vars(clip2sam.Config())
    name = "presence_threshold" if "presence_threshold" in settings else "presence"
    models: dict[str, Callable[[], Any]] = {
        "tiny": lambda: clip2sam.load("tiny", device="cpu"),
        "bf16": lambda: seeded("bf16"),
        "fp32": lambda: seeded("fp32" if name == "presence_threshold" else "exact"),
    }
    loaded: dict[str, Any] = {}
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    for line in sys.stdin:
        kind, labels = line.split(",")[0], LABELS[: int(line.split(",")[1].split()[0])]
        if kind not in loaded:
            one_mask = {"prompts": "label"} if "prompts" in settings else {}
            loaded[kind] = models[kind]().with_config(**{name: None}, **one_mask)
        began = time.perf_counter()
        for _ in range(20 if kind == "tiny" else 1):
            loaded[kind](pixels, labels)
        print(json.dumps(time.perf_counter() - began), flush=True)


def start(checkout: Path, sam: str) -> "subprocess.Popen[str]":
    """A side over the package of a checkout."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), "--serve", "--sam", sam],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(checkout.resolve())},
    )


def ask(side: "subprocess.Popen[str]", case: str) -> float:
    """The seconds of a case."""
    assert side.stdin is not None
    assert side.stdout is not None
    side.stdin.write(case + "\n")
    side.stdin.flush()
    return float(json.loads(side.stdout.readline()))


def main() -> None:
    """Both sides in turn, case by case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, nargs="?", help="the other checkout")
    parser.add_argument("--sam", default="vit_b", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(given.sam)
    if given.other is None:
        parser.error("give the other checkout")
    ours, other = (start(c, given.sam) for c in (Path(__file__).parents[1], given.other))
    report: dict[str, Any] = about() | {"sam": given.sam, "rows": []}
    for case in given.cases:
        ask(ours, case), ask(other, case)  # loads the models, computes the text features
        turns = [(ask(other, case), ask(ours, case)) for _ in range(given.pairs)]
        ratios = sorted(theirs / mine for theirs, mine in turns)
        row = {"case": case, "ratio": statistics.median(ratios), "pairs": given.pairs}
        row |= {"ratio, least": ratios[0], "ratio, most": ratios[-1]}
        row |= {"other, s": statistics.median(t for t, _ in turns)}
        row |= {"ours, s": statistics.median(m for _, m in turns)}
        print(json.dumps(row), flush=True)
        report["rows"].append(row)
    for side in (ours, other):
        side.communicate()
    if given.output:
        given.output.write_text(json.dumps(report, indent=1))
    return None


if __name__ == "__main__":
    main()
