"""Each stage against the published recipe, in turn in one process; ratios are medians of pairs.

    python benchmarks/speed.py [--sam vit_b] [--pairs 5] [--stages text ...] [--output FILE.json]

Weights are seeded: speed doesn't depend on them. fp32 agrees with the published result to rounding;
the relative error is printed beside every ratio.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import published
import torch
import torch.nn.functional as F
from about import about
from segment_anything import SamPredictor, sam_model_registry
from torch import Tensor

from clip2sam.analysis.examples import scene_examples
from clip2sam.analysis.figures import iou
from clip2sam.clip import SurgeryCLIP
from clip2sam.coco.rle import encode_mask
from clip2sam.data.labels import as_label_set
from clip2sam.models.loading import load
from clip2sam.points import point_prompts, pool_grid, select_points
from clip2sam.sam import PromptSAM
from clip2sam.sam.encoder import encode_image
from clip2sam.similarity import feature_surgery

WORDS = [
    *("person", "bicycle", "car", "bus", "train", "truck", "boat", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "bear", "zebra", "giraffe", "tie", "cup", "fork"),
]


def compare(
    theirs: Callable[[], Any], ours: Mapping[str, Callable[[], Any]], pairs: int
) -> list[dict[str, Any]]:
    """Time theirs and each of ours in turn, after a warm-up; a ratio is of one turn."""
    for run in (theirs, *ours.values()):
        run()
    turns = [[seconds(run) for run in (theirs, *ours.values())] for _ in range(pairs)]
    rows = []
    for i, name in enumerate(ours, 1):
        ratios = sorted(turn[0] / turn[i] for turn in turns)
        row = {
            "name": name,
            "published, s": statistics.median(turn[0] for turn in turns),
            "ours, s": statistics.median(turn[i] for turn in turns),
            "ratio": statistics.median(ratios),
            "ratio, least": ratios[0],
            "ratio, most": ratios[-1],
            "pairs": pairs,
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def seconds(run: Callable[[], Any]) -> float:
    """How long a call took."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def error(ours: Tensor, theirs: Tensor) -> float:
    """Relative error in the 2-norm."""
    return float((ours.float() - theirs).norm() / theirs.norm())


def text(given: argparse.Namespace) -> list[dict[str, Any]]:
    """20 labels' text features: fp32, bf16, and from the cache on disk."""
    model = open_clip.create_model("ViT-B-16-quickgelu").eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-16-quickgelu")
    half, labels = copy.deepcopy(model).bfloat16(), as_label_set(WORDS)
    with tempfile.TemporaryDirectory() as folder:

        def encode(own: Any, kept: Path | None = None) -> Tensor:
            return SurgeryCLIP(own, tokenizer, text_folder=kept).encode_labels(labels)

        encode(model, Path(folder))
        ours: dict[str, Callable[[], Tensor]] = {
            "text, 20 labels, fp32": lambda: encode(model),
            "text, 20 labels, bf16": lambda: encode(half),
            "text, 20 labels, from disk": lambda: encode(model, Path(folder)),
        }
        expected = published.text_features(model, tokenizer, WORDS)
        errors = [error(run(), expected) for run in ours.values()]
        rows = compare(lambda: published.text_features(model, tokenizer, WORDS), ours, given.pairs)
    return [{**row, "error": e} for row, e in zip(rows, errors, strict=True)]


def surgery(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Feature surgery of 1,025 tokens at 20, 80 and 1,203 labels; the published tensor of the last
    has 2.5 GB."""
    rows = []
    tokens = F.normalize(torch.randn(1, 1025, 512), dim=-1)
    for labels in (20, 80, 1203):
        words = F.normalize(torch.randn(labels, 512), dim=-1)
        wrong = error(
            feature_surgery(tokens, words)[0], published.feature_surgery(tokens[0], words)
        )
        ours = {f"feature surgery, {labels} labels": partial(feature_surgery, tokens, words)}
        timed = compare(partial(published.feature_surgery, tokens[0], words), ours, given.pairs)
        rows += [{**row, "error": wrong} for row in timed]
    return rows


@torch.no_grad()
def encoder(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The image encoder at 1024 pixels: fp32 and bf16."""
    theirs = sam_model_registry[given.sam]().image_encoder.eval()
    pixels, half = torch.randn(1, 3, 1024, 1024), copy.deepcopy(theirs).bfloat16()
    ours: dict[str, Callable[[], Tensor]] = {
        f"{given.sam} encoder, fp32": lambda: encode_image(theirs, pixels),
        f"{given.sam} encoder, bf16": lambda: encode_image(half, pixels.bfloat16()),
    }
    expected = theirs(pixels)
    errors = [error(run(), expected) for run in ours.values()]
    rows = compare(lambda: theirs(pixels), ours, given.pairs)
    return [{**row, "error": e} for row, e in zip(rows, errors, strict=True)]


@torch.no_grad()
def decoder(given: argparse.Namespace) -> list[dict[str, Any]]:
    """80 labels on one image of 480 x 640: the mask decoder alone, masks to RLE alone, and both on
    noise."""
    labels, size = 80, (480, 640)
    sam = sam_model_registry[given.sam]().eval()
    ours, predictor = PromptSAM(sam), SamPredictor(sam)
    predictor.features = torch.randn(1, 256, 64, 64)
    predictor.original_size, predictor.input_size, predictor.is_image_set = size, (768, 1024), True
    coords, point_labels = select_points(pool_grid(torch.randn(1, labels, 14, 14)), (size,))
    everyone = torch.ones(1, labels, dtype=torch.bool)
    prompts = point_prompts(coords, point_labels, everyone, (size,))
    plain = [
        (xy[kind >= 0].floor().numpy(), kind[kind >= 0].numpy())
        for xy, kind in zip(coords[0], point_labels[0], strict=True)
    ]
    tensors = [
        (
            predictor.transform.apply_coords_torch(torch.as_tensor(xy)[None], size),
            torch.as_tensor(kind)[None],
        )
        for xy, kind in plain
    ]

    def best_logits() -> Tensor:
        found = ours.decode(predictor.features, prompts)
        return found.logits[torch.arange(labels), found.predicted_iou.argmax(dim=-1)]

    def our_rles(logits: Tensor) -> list[dict[str, Any]]:
        return [encode_mask(m.numpy()) for chunk in ours.upscale(logits, size) for m in chunk]

    def their_logits() -> list[Tensor]:
        made = []
        for points in tensors:
            sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
            made.append(
                sam.mask_decoder(
                    predictor.features, sam.prompt_encoder.get_dense_pe(), sparse, dense, True
                )[0]
            )
        return made

    def their_rles(logits: list[Tensor]) -> list[dict[str, Any]]:
        masks = [
            sam.postprocess_masks(x, predictor.input_size, size)[0, 0] > sam.mask_threshold
            for x in logits
        ]
        return [encode_mask(m.numpy()) for m in masks]

    mine = best_logits()
    blobs = blob_logits(labels)
    same = [
        a == b
        for a, b in zip(
            our_rles(mine), map(encode_mask, published.masks(predictor, plain)), strict=True
        )
    ]
    one = {"80 labels, decoder": best_logits}
    two = {"80 labels, masks and RLE": lambda: our_rles(blobs[:, 0])}
    same += [
        a == b for a, b in zip(our_rles(blobs[:, 0]), their_rles(list(blobs[:, None])), strict=True)
    ]
    both = {"80 labels, points to RLE": lambda: our_rles(best_logits())}
    rows = compare(their_logits, one, given.pairs) + compare(
        lambda: their_rles(list(blobs[:, None])), two, given.pairs
    )
    rows += compare(
        lambda: [encode_mask(m) for m in published.masks(predictor, plain)], both, given.pairs
    )
    return [*rows[:2], {**rows[2], "identical": float(np.mean(same))}]


def blob_logits(labels: int) -> Tensor:
    """Candidates without holes, as trained models give them: ellipses of 1 to 30 % of the frame,
    (labels, 3, 256, 256)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256]
    made = []
    for _ in range(labels):
        (cy, cx), (ry, rx) = rng.uniform(40, 216, 2), rng.uniform(15, 80, 2)
        field = (
            1
            - ((y - cy) / ry) ** 2
            - ((x - cx) / rx) ** 2
            + 0.1 * np.sin(x / rng.uniform(3, 9)) * np.sin(y / 5)
        )
        made.append(np.stack([field * 10, field * 10 - 2, field * 10 + 2]))
    return torch.from_numpy(np.stack(made)).float()


def agreement(given: argparse.Namespace) -> list[dict[str, Any]]:
    """What bf16 changes in masks, with trained weights: `tiny` on 100 validation scenes."""
    full, half = (load("tiny", precision=p, device="cpu") for p in ("fp32", "bf16"))
    ious, same = [], []
    for example in scene_examples("validation", 100):
        one, two = (
            {label: r.mask_of(label) for label in r.labels}
            for r in (s(example.image, list(example.requested)) for s in (full, half))
        )
        same += [(label in one) == (label in two) for label in example.requested]
        ious += [iou(one[label], two[label]) for label in one if label in two]
    row = {"name": "tiny, bf16 against fp32", "mask IoU": float(np.mean(ious)), "masks": len(ious)}
    row |= {"IoU, least": min(ious), "IoU, lowest hundredth": float(np.quantile(ious, 0.01))}
    row |= {"same decision on presence": float(np.mean(same))}
    print(json.dumps(row), flush=True)
    return [row]


STAGES = {
    "text": text,
    "surgery": surgery,
    "encoder": encoder,
    "decoder": decoder,
    "agreement": agreement,
}


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sam", default="vit_b", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    report = about()
    print(json.dumps(report), flush=True)
    report["rows"] = [row for stage in given.stages for row in STAGES[stage](given)]
    if given.output:
        given.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
