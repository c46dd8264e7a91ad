"""Train the tiny CLIP from images and text prompts alone: no masks, no boxes.

    python scripts/train_tiny_clip.py --output runs/clip

First the convolutional stem alone, with average pooling and a linear head over the labels; then the
whole model with a sigmoid loss between images and text prompts, on small images (windows of the
14 x 14 positions), then on large ones. In between the stem is trained further with its head on
images of one or two objects: these teach shapes best for their cost.
At the end every image is used twice, once rotated or mirrored, and the maps of its labels must
rotate with it: nothing else tells a token to represent what is at its own centre rather than beside
it.
Every image is new. An interrupted run resumes from its checkpoint; all randomness is seeded with
the step's number. The output folder gets `checkpoint.pt`, `log.jsonl`, `curves.png` and
`tiny_clip.safetensors`.
"""

import argparse
import inspect
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transformer import PatchDropout
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clip2sam.clip import CLIP_SURGERY, RAW_CLIP, TEMPLATES, dense_features, encode_prompts
from clip2sam.clip.text import Tokenizer
from clip2sam.similarity import feature_surgery
from clip2sam.tiny.models import (
    VOCABULARY_SIZE,
    build_tiny_clip,
    compact_rows,
    known_tokens,
    load_tiny_clip,
    save_tiny_clip,
    tiny_tokenizer,
)
from clip2sam.tiny.scenes import (
    COLOURS,
    KINDS,
    SHAPES,
    TEXTURES,
    Scene,
    all_labels,
    label_mask,
    matches,
    requested_labels,
    scene,
    split_seed,
)


@dataclass(frozen=True)
class Stage:
    """A part of the training. The learning rate changes linearly from `start` to `end`."""

    name: str
    steps: int
    batch: int
    side: int
    objects: tuple[int, int]
    start: float
    end: float
    drop: float = 0.0
    """The share of patch tokens that are dropped: half the tokens are 2.5 times as fast."""
    whole: float = 1.0
    """The share of the batch that runs through the whole model. Below 1 the stem's own head is
    trained on the whole batch."""
    symmetry: float = 0.0
    """The weight of the loss that makes maps rotate with their image; half of the batch is then the
    other half rotated or mirrored."""
    peak: float = 0.0
    """In a stage with `symmetry`: the weight of the sigmoid loss between images and the peaks of
    the labels' maps."""


# Objects have the same size in pixels in small and large images: radius 20 to 56.
STAGES = (
    Stage("stem", 1800, 48, 96, (1, 2), 2e-3, 5e-4, whole=0.0),
    Stage("small", 1000, 32, 128, (0, 3), 1e-3, 1e-3),
    Stage("large", 400, 32, 224, (0, 6), 1e-3, 1e-3, drop=0.5),
    Stage("shapes", 1200, 96, 96, (1, 2), 1.5e-3, 1e-3, whole=0.25),
    Stage("larger", 600, 32, 224, (0, 6), 1e-3, 8e-4, drop=0.5),
    Stage("cool", 400, 32, 224, (0, 6), 9e-4, 1e-5, drop=0.25),
    Stage("again", 300, 32, 224, (0, 6), 6e-4, 1e-5, drop=0.25),
    Stage("rotated", 1200, 32, 224, (1, 6), 6e-4, 1e-5, symmetry=0.1),
    Stage("peaks", 500, 32, 224, (0, 6), 4e-4, 1e-5, symmetry=0.1, peak=0.5),
    Stage("peaks again", 700, 32, 224, (0, 6), 5e-4, 1e-5, symmetry=0.1, peak=1.0),
)
PEAK = 0.37  # target height of a map's peak if its label is true
WARMUP = 100  # steps at the start of each stage
AVERAGE = 0.995  # the weights that are validated and saved are a moving average
WEIGHT = {
    "shape": 1.0,
    "colour": 1.0,
    "texture + shape": 4.0,
    "colour + shape": 4.0,
    "texture": 0.5,
    "all": 4.0,
    "unknown": 1.0,
}


TOKENIZER = tiny_tokenizer()
KNOWN = known_tokens()
ROWS = compact_rows(KNOWN)
UNKNOWN = next(i for i in range(VOCABULARY_SIZE) if ROWS[i] == 0)


# Data


def draw(index: int, stage: Stage) -> Scene:
    """Training image `index`. In 30 % a large one is not square: it is squashed, as in the
    pipeline."""
    limit = min(56.0, 0.45 * stage.side)
    image_rng = np.random.default_rng((index, 2))
    height = width = stage.side
    if stage.side == 224 and image_rng.random() < 0.3:
        longer = int(image_rng.integers(240, 337))
        height, width = (longer, width) if image_rng.random() < 0.5 else (height, longer)
    return scene(
        split_seed("train", index), (height, width), objects=stage.objects, radius=(20.0, limit)
    )


def to_input(images: list[Scene], side: int) -> Tensor:
    """Images squashed to a square, normalised with CLIP's mean and standard deviation: (batch, 3,
    side, side), channels last in memory."""
    squares = [cv2.resize(p.pixels, (side, side), interpolation=cv2.INTER_AREA) for p in images]
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


FIXED = [(x, kind) for kind in KINDS for x in all_labels(kind)] + [
    (f"{t} thing", "texture") for t in TEXTURES
]


def labels_of_step(rng: np.random.Generator) -> list[tuple[str, str]]:
    """(label, group): all labels, some of three words, and some with unknown words, written "?"."""
    full = [
        f"{rng.choice(COLOURS)} {rng.choice(TEXTURES)} {rng.choice((*SHAPES, 'thing'))}"
        for _ in range(16)
    ]
    odd = []
    for _ in range(16):
        words = ["?"] * int(rng.choice([1, 1, 1, 2, 3]))
        if rng.random() < 0.6:
            known = str(rng.choice((*COLOURS, *TEXTURES) if rng.random() < 0.6 else SHAPES))
            words = [known, *words] if known not in SHAPES else [*words, known]
        odd.append(" ".join(words))
    return [*FIXED, *((x, "all") for x in full), *((x, "unknown") for x in odd)]


def tokens_of(labels: list[str], rng: np.random.Generator) -> Tensor:
    """Compact token ids of the labels, half of them in random templates; a "?" becomes one to three
    unknown tokens."""
    texts = [
        x if rng.random() < 0.5 else str(rng.choice(TEMPLATES)).replace("{}", x) for x in labels
    ]
    tokenizer, mark = TOKENIZER, TOKENIZER.encode("?")[0]
    rows = []
    for text in texts:
        ids = []
        for token in tokenizer.encode(text):
            ids += [UNKNOWN] * int(rng.integers(1, 4)) if token == mark else [token]
        ids = [tokenizer.sot_token_id, *ids[: tokenizer.context_length - 2], tokenizer.eot_token_id]
        rows.append(ids + [0] * (tokenizer.context_length - len(ids)))
    return ROWS[torch.tensor(rows)]


def truth(images: list[Scene], labels: list[str]) -> Tensor:
    """(images, labels): 1 where the label is true of the image."""
    table: dict[tuple[str, ...], list[bool]] = {}
    rows = np.zeros((len(images), len(labels)), np.float32)
    for row, image in zip(rows, images, strict=True):
        for item in image.objects:
            key = (item.shape, item.colour, item.texture)
            table.setdefault(key, [matches(item, x) for x in labels])
            row[:] = np.maximum(row, table[key])
    return torch.from_numpy(rows)


# Training


def encode_windows(model: Any, patches: Tensor, rng: np.random.Generator) -> Tensor:
    """The image tower after its stem, for a grid of any side: a small one takes a window of the
    positions.

    Args:
        patches: (batch, width, side, side).

    Returns:
        (batch, embedding): the CLS features, not normalised.
    """
    visual, side = model.visual, patches.shape[-1]
    top, left = (int(rng.integers(0, visual.grid_size[0] - side + 1)) for _ in range(2))
    grid = visual.positional_embedding[1:].unflatten(0, visual.grid_size)[
        top : top + side, left : left + side
    ]
    x = patches.flatten(2).transpose(1, 2) + grid.flatten(0, 1)
    cls = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.patch_dropout(torch.cat([cls, x.float()], dim=1))
    return visual.ln_post(visual.transformer(visual.ln_pre(x))[:, 0]) @ visual.proj


def weighted_loss(logits: Tensor, images: list[Scene], chosen: list[tuple[str, str]]) -> Tensor:
    """Sigmoid loss of logits (images, labels): the mean within each group of labels, then the
    weighted mean of the groups."""
    groups = [group for _, group in chosen]
    target = truth(images, [label for label, _ in chosen])
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=0)
    total = each.new_zeros(())
    for group, weight in WEIGHT.items():
        members = torch.tensor([i for i, g in enumerate(groups) if g == group], dtype=torch.long)
        if len(members):
            total = total + weight * each[members].mean()
    return total / sum(WEIGHT.values())


def rotated(x: Tensor, symmetry: int) -> Tensor:
    """One of the eight symmetries of the square, on the last two axes: 0 to 3 are quarter turns, 4
    to 7 the same after mirroring."""
    return torch.rot90(x.flip(-1) if symmetry >= 4 else x, symmetry % 4, (-2, -1))


def symmetric_step(model: Any, stage: Stage, step: int, first: int) -> Tensor:
    """As `train_step`, on images and the same images rotated, with the symmetry loss.

    That is one minus the correlation of a label's rotated surgery map with the map of the rotated
    image, over the labels that are true of it. It needs no knowledge of where objects are.
    """
    rng = np.random.default_rng((step, 3))
    images = [draw(first + i, stage) for i in range(stage.batch // 2)]
    symmetries = [int(k) for k in rng.integers(1, 8, len(images))]
    chosen = labels_of_step(rng)
    straight = to_input(images, stage.side)
    pixels = torch.cat(
        [straight, torch.stack([rotated(x, k) for x, k in zip(straight, symmetries, strict=True)])]
    )
    with torch.autocast("cpu", torch.bfloat16):
        with_gradients = inspect.unwrap(dense_features)
        tokens = F.normalize(with_gradients(model.visual, pixels, CLIP_SURGERY).float(), dim=-1)
        text = model.encode_text(tokens_of([x for x, _ in chosen], rng), normalize=True).float()
    logits = model.logit_scale.exp() * (tokens[:, 0] @ text.T) + model.logit_bias
    loss = weighted_loss(logits, [*images, *images], chosen)
    products = tokens[:, 1:] @ text.T
    maps = (
        (products - products.mean(dim=2, keepdim=True))
        .transpose(1, 2)
        .unflatten(2, model.visual.grid_size)
    )
    if stage.peak:  # the symmetry loss alone is satisfied by maps that are low on their label, too
        loss = loss + stage.peak * weighted_loss(
            20 * (maps.flatten(2).amax(dim=2) - PEAK), [*images, *images], chosen
        )
    true = truth(images, [label for label, _ in chosen]).bool()
    pairs = [
        (rotated(a[t], k), b[t])
        for a, b, t, k in zip(*maps.chunk(2), true, symmetries, strict=True)
    ]
    one, other = (torch.cat(side).flatten(1) for side in zip(*pairs, strict=True))
    return loss + stage.symmetry * (1 - F.cosine_similarity(centred(one), centred(other)).mean())


def centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=1, keepdim=True)


def train_step(model: Any, head: nn.Linear, stage: Stage, step: int, first: int) -> Tensor:
    """The loss of step `step`, whose images start at index `first`."""
    rng = np.random.default_rng((step, 3))
    images = [draw(first + i, stage) for i in range(stage.batch)]
    count = round(stage.whole * stage.batch)
    loss = torch.zeros(())
    with torch.autocast("cpu", torch.bfloat16):
        patches = model.visual.conv1(to_input(images, stage.side))
        if count < stage.batch:
            logits = head(patches.relu().mean(dim=(2, 3)))
            loss = loss + weighted_loss(logits.float(), images, FIXED)
        if count:
            chosen = labels_of_step(rng)
            cls = F.normalize(encode_windows(model, patches[:count], rng), dim=-1)
            text = model.encode_text(tokens_of([x for x, _ in chosen], rng), normalize=True)
            logits = model.logit_scale.exp() * (cls @ text.T) + model.logit_bias
            loss = loss + weighted_loss(logits.float(), images[:count], chosen)
    return loss


def rate(stage: Stage, step: int) -> float:
    """The learning rate at a step of the stage."""
    line = stage.start + (stage.end - stage.start) * step / stage.steps
    return line * min(1.0, (step + 1) / WARMUP)


# Validation


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """The probability that a positive score is above a negative one; ties count half."""
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left") + np.searchsorted(order, positive, "right")
    return float(below.mean() / 2 / len(negative))


@torch.no_grad()
def evaluate(
    model: Any, tokenizer: Tokenizer, split: str, count: int
) -> dict[str, dict[str, float]]:
    """Figures by kind of label, on `count` scenes of a split with 20 labels requested of each.

    Returns:
        kind -> figures. auc: of the presence score (CLS cosine); map_auc: of the highest map score;
        pointing and centre: the share of present labels whose top cell of the 7 x 7 grid touches
        the object, and has its centre on it; raw_pointing: as pointing, without surgery.
    """
    names = [x for kind in KINDS for x in all_labels(kind)]
    text = encode_prompts(model, tokenizer, names)
    found: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in KINDS}
    for index in range(count):
        image = scene(split_seed(split, index))
        requested = [(x, kind) for kind, labels in requested_labels(image).items() for x in labels]
        chosen = text[[names.index(x) for x, _ in requested]]
        pixels = to_input([image], 224)
        tokens, raw = (
            F.normalize(dense_features(model.visual, pixels, m), dim=-1)
            for m in (CLIP_SURGERY, RAW_CLIP)
        )
        maps, raw_maps = (feature_surgery(t, chosen)[0] for t in (tokens, raw))
        presence, peaks = (tokens[0, 0] @ chosen.T).tolist(), maps[1:].amax(dim=0).tolist()
        tops, raw_tops = (_grid(m).argmax(dim=-1).tolist() for m in (maps, raw_maps))
        for place, (label, kind) in enumerate(requested):
            mask = label_mask(image, label)
            cell, raw_cell = _cell(mask, tops[place]), _cell(mask, raw_tops[place])
            hits = (float(cell.any()), float(cell[16, 16]), float(raw_cell.any()))
            found[kind].append((float(mask.any()), presence[place], peaks[place], *hits))
    return {kind: _summary(np.array(rows, float)) for kind, rows in found.items()}


def _cell(mask: np.ndarray, index: int) -> np.ndarray:
    """The 32 x 32 pixels of a cell of the 7 x 7 grid, by its index."""
    row, column = index // 7 * 32, index % 7 * 32
    return mask[row : row + 32, column : column + 32]


def _grid(scores: Tensor) -> Tensor:
    """(1 + 196 tokens, labels) -> (labels, 49 cells)."""
    return F.avg_pool2d(scores[1:].T.unflatten(1, (14, 14)), 2).flatten(1)


def _summary(rows: np.ndarray) -> dict[str, float]:
    present, absent = rows[rows[:, 0] == 1], rows[rows[:, 0] == 0]
    return {
        "auc": area_under_curve(present[:, 1], absent[:, 1]),
        "map_auc": area_under_curve(present[:, 2], absent[:, 2]),
        "pointing": float(present[:, 3].mean()),
        "centre": float(present[:, 4].mean()),
        "raw_pointing": float(present[:, 5].mean()),
    }


def validate(model: Any, count: int) -> dict[str, dict[str, float]]:
    """`evaluate` on validation scenes for the model in training, with its compact embedding."""
    model.eval()

    def tokenizer(texts: list[str]) -> Tensor:
        return ROWS[TOKENIZER(texts)]

    result = evaluate(model, tokenizer, "validation", count)
    model.train()
    return result


# The run


def optimizer_of(model: Any, head: nn.Linear) -> torch.optim.AdamW:
    parameters = [*model.parameters(), *head.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def run(output: Path, stages: tuple[Stage, ...], every: int) -> None:
    torch.manual_seed(0)
    model = build_tiny_clip(len(KNOWN) + 1).train()
    model.visual.conv1.to(memory_format=torch.channels_last)
    head = nn.Linear(192, len(FIXED))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimizer = optimizer_of(model, head)
    step, first, begun, file = 0, 0, 0.0, output / "checkpoint.pt"
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        head.load_state_dict(saved["head"])
        optimizer.load_state_dict(saved["optimizer"])
        step, first, begun = saved["step"], saved["first"], saved["seconds"]
    start, losses = time.monotonic() - begun, []
    for stage, place in [(s, i) for s in stages for i in range(s.steps)][step:]:
        torch.manual_seed(step)
        model.visual.patch_dropout = PatchDropout(stage.drop)
        for group in optimizer.param_groups:
            group["lr"] = rate(stage, place)
        with sdpa_kernel(
            SDPBackend.MATH if stage.side < 224 or stage.drop else SDPBackend.FLASH_ATTENTION
        ):
            if stage.symmetry:
                loss = symmetric_step(model, stage, step, first)
            else:
                loss = train_step(model, head, stage, step, first)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        for kept, new in zip(average.module.buffers(), model.buffers(), strict=True):
            kept.copy_(new)
        optimizer.zero_grad(set_to_none=True)
        step, first = step + 1, first + (stage.batch // 2 if stage.symmetry else stage.batch)
        losses.append(loss.item())
        last = place + 1 == stage.steps
        if step % 50 == 0 or last:
            entry = {
                "stage": stage.name,
                "step": step,
                "images": first,
                "seconds": round(time.monotonic() - start, 1),
            }
            entry |= {
                "loss": float(np.mean(losses[-50:])),
                "scale": float(model.logit_scale.exp().detach()),
            }
            if stage.whole and (step % every == 0 or last):
                entry["validation"] = validate(average.module, 100)
            with (output / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            print(json.dumps(entry), flush=True)
        if step % 200 == 0 or last:
            state = {
                "model": model.state_dict(),
                "head": head.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            state |= {
                "average": average.state_dict(),
                "step": step,
                "first": first,
                "seconds": time.monotonic() - start,
            }
            torch.save(state, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
            save_tiny_clip(average.module, KNOWN, output / "tiny_clip.safetensors")


def draw_curves(output: Path) -> None:
    """Draw `curves.png` from the log: the loss, and validation's figures."""
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4))
    axes[0].plot([e["images"] / 1000 for e in entries], [e["loss"] for e in entries])
    axes[0].set(title="loss", yscale="log", xlabel="thousand images")
    for axis, name in zip(axes[1:], ("auc", "pointing"), strict=True):
        for kind in KINDS:
            checked = [e for e in entries if "validation" in e]
            axis.plot(
                [e["images"] / 1000 for e in checked],
                [e["validation"][kind][name] for e in checked],
                label=kind,
            )
        axis.set(title=f"validation: {name}", xlabel="thousand images", ylim=(0.3, 1))
        axis.legend()
    figure.tight_layout()
    figure.savefig(output / "curves.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, help="folder for checkpoint, log, curves and weights"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies every stage's steps, for a short trial"
    )
    parser.add_argument(
        "--validate-every", type=int, default=250, help="steps between two validations"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch; two runs of one each waste least"
    )
    parser.add_argument(
        "--test", action="store_true", help="train nothing: print the shipped weights' test figures"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    matplotlib.use("Agg")
    if options.test:
        model, tokenizer = load_tiny_clip()
        print(json.dumps(evaluate(model, tokenizer, "test", 500), indent=1))
        return
    if options.output is None:
        parser.error("--output is needed, unless --test is given")
    options.output.mkdir(parents=True, exist_ok=True)
    stages = tuple(replace(s, steps=max(1, round(s.steps * options.scale))) for s in STAGES)
    run(options.output, stages, options.validate_every)
    draw_curves(options.output)


if __name__ == "__main__":
    main()
