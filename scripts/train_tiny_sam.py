"""Train the tiny SAM on scenes, from points like the pipeline's, random points, and boxes.

    python scripts/train_tiny_sam.py --output runs/sam --stem runs/clip/tiny_clip.safetensors
    python scripts/train_tiny_sam.py --output runs/sam2 --start runs/sam/tiny_sam.safetensors \
        --rate 3e-4 --steps 2400 --cooling 2400

The second line trains weights further. The convolutions of the patch embedding are initialised
from the tiny CLIP's, which are the same: that saves the time in which they learn colours, textures
and edges. Every image is new and of another size. An interrupted run resumes from its checkpoint;
all randomness is seeded with the step's number. The output folder gets
`checkpoint.pt`, `log.jsonl`, `curves.png` and `tiny_sam.safetensors`.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clip2sam.tiny.models import (
    SAM_SIDE,
    build_tiny_sam,
    load_tiny_clip,
    load_tiny_sam,
    save_tiny_sam,
)
from clip2sam.tiny.scenes import Scene, scene, split_seed

STEPS, COOLING = 4000, 1200  # the learning rate decreases over the last COOLING steps
BATCH, PROMPTS, RATE, WARMUP = 8, 6, 1e-3, 200
AVERAGE = 0.995  # the weights that are validated and saved are a moving average
LOW = SAM_SIDE // 4  # the side of the mask decoder's masks
GRID = 7
FURTHER = 1_000_000  # the first training image for weights that are trained further


@dataclass(frozen=True)
class Prompts:
    """An image's prompts, all of one kind, and their target masks."""

    points: Tensor | None
    """(prompts, points, 2): pixel indices (x, y) in SAM's frame."""
    point_labels: Tensor | None
    """(prompts, points): 1 positive, 0 negative."""
    boxes: Tensor | None
    """(prompts, 4): x0, y0, x1, y1 as pixel indices in SAM's frame."""
    targets: Tensor
    """(prompts, 64, 64): the share of each low-resolution pixel that the mask covers."""


# Data


def draw(index: int) -> Scene:
    """Training image `index`: half of them square, the others with sides of a ratio up to two."""
    rng = np.random.default_rng((index, 4))
    short = int(rng.integers(160, 257))
    longer = short if rng.random() < 0.5 else int(short * rng.uniform(1, 2))
    return scene(
        split_seed("train", index),
        (short, longer) if rng.random() < 0.5 else (longer, short),
        objects=(1, 6) if rng.random() < 0.7 else (5, 12),
    )


def in_frame(array: np.ndarray, interpolation: int) -> np.ndarray:
    """(height, width, ...) resized so that the longest side is SAM's, padded right and below with
    zeros."""
    scale = SAM_SIDE / max(array.shape[:2])
    height, width = (int(side * scale + 0.5) for side in array.shape[:2])
    resized = cv2.resize(array, (width, height), interpolation=interpolation)
    frame = np.zeros((SAM_SIDE, SAM_SIDE, *array.shape[2:]), array.dtype)
    frame[:height, :width] = resized
    return frame


def to_input(model: Sam, image: Scene) -> Tensor:
    """(3, side, side), normalised as SAM does it, then padded with zeros."""
    scale = SAM_SIDE / max(image.size)
    height, width = (int(side * scale + 0.5) for side in image.size)
    resized = cv2.resize(image.pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    return model.preprocess(torch.from_numpy(resized).permute(2, 0, 1).float())


def low_target(mask: np.ndarray) -> np.ndarray:
    return cv2.resize(
        in_frame(mask.astype(np.float32), cv2.INTER_LINEAR),
        (LOW, LOW),
        interpolation=cv2.INTER_AREA,
    )


def choose_objects(rng: np.random.Generator, image: Scene) -> list[np.ndarray]:
    """The masks to prompt: one object's, or those of all objects that share one of its words."""
    item = image.objects[int(rng.integers(len(image.objects)))]
    if rng.random() < 0.7:
        return [item.mask]
    word = rng.choice([item.shape, item.colour, item.texture], p=[0.45, 0.45, 0.1])
    return [o.mask for o in image.objects if word in (o.shape, o.colour, o.texture)]


def cover(mask: np.ndarray) -> np.ndarray:
    """The share of each cell of the 7 x 7 grid that the mask covers."""
    return cv2.resize(mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA).ravel()


def grid_points(
    rng: np.random.Generator, masks: list[np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` cell centres (x, y), their labels, and the target: the union of the masks hit.

    Positive points are the centres of the cells that the objects cover most, up to noise; negative
    points come from the other cells. In some prompts one point has the wrong label.
    """
    height, width = masks[0].shape
    shares = np.stack([cover(m) for m in masks])
    score = shares.sum(axis=0) + rng.normal(0, 0.15, GRID * GRID) * (shares.sum(axis=0) > 0)
    order = np.argsort(-score)
    usable = max(1, int((shares.sum(axis=0) > 0.25).sum()))
    positives = int(rng.integers(1, min(usable, count) + 1))
    chosen = np.concatenate(
        [order[:positives], some(rng, order[max(usable, positives) :], count - positives)]
    )
    labels = (np.arange(count) < positives).astype(np.float32)
    hit = set(shares[:, order[:positives]].argmax(axis=0).tolist())
    target = np.logical_or.reduce([masks[i] for i in hit])
    if rng.random() < 0.15 and positives >= 3:
        chosen[int(rng.integers(positives))] = int(rng.integers(GRID * GRID))
    elif rng.random() < 0.1 and positives < count - 1:
        chosen[-1] = order[int(rng.integers(positives))]
    centres = np.stack(
        [(chosen % GRID + 0.5) * width / GRID, (chosen // GRID + 0.5) * height / GRID], axis=1
    )
    return centres, labels, target


def free_points(
    rng: np.random.Generator, masks: list[np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` pixel centres (x, y), at least one of them on the object, their labels, and the
    target."""
    target = masks[int(rng.integers(len(masks)))]
    positives = int(rng.integers(1, count + 1))
    places = [
        some(rng, np.argwhere(target), positives),
        some(rng, np.argwhere(~target), count - positives),
    ]
    points = np.concatenate(places)[:, ::-1] + 0.5
    return points, (np.arange(count) < positives).astype(np.float32), target


def peak_point(rng: np.random.Generator, image: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One point (1, 2) where a map's peak may be, its label, and the object that is meant.

    Peaks of the tiny CLIP lie half a radius from the object's centroid in the median, and one in
    nine just beside the object (150 validation scenes).
    """
    target = image.objects[int(rng.integers(len(image.objects)))].mask
    near = cv2.dilate(target.astype(np.uint8), np.ones((7, 7), np.uint8))
    centre = np.argwhere(target).mean(axis=0)
    spread = 0.42 * np.sqrt(target.sum() / np.pi)
    for place in rng.normal(centre, spread, (20, 2)):
        row, col = (int(v) for v in place)
        if 0 <= row < near.shape[0] and 0 <= col < near.shape[1] and near[row, col]:
            return place[None, ::-1].copy(), np.ones(1, np.float32), target
    return some(rng, np.argwhere(target), 1)[:, ::-1] + 0.5, np.ones(1, np.float32), target


def some(rng: np.random.Generator, rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of the rows at random: all different if there are so many."""
    return rows[rng.choice(len(rows), count, replace=count > len(rows))]


def make_prompts(rng: np.random.Generator, image: Scene) -> Prompts:
    """Prompts of one kind: boxes for one image in five, else points, as many in each prompt: for
    half of the images one, where a map's peak may be."""
    scale = SAM_SIDE / max(image.size)
    if rng.random() < 0.2:
        masks = [image.objects[int(i)].mask for i in rng.integers(0, len(image.objects), PROMPTS)]
        boxes = np.array([_box(m) for m in masks]) * scale + rng.normal(0, 2, (PROMPTS, 4))
        return Prompts(
            None,
            None,
            torch.from_numpy(boxes).float(),
            torch.from_numpy(np.stack([low_target(m) for m in masks])),
        )
    peaks = rng.random() < 0.5
    count = 1 if peaks else int(rng.choice([1, 2, 3, 4, 6, 8, 12, 16, 24, 32]))
    points, labels, targets = [], [], []
    for _ in range(PROMPTS):
        make = grid_points if rng.random() < 0.75 else free_points
        if peaks:
            xy, label, target = peak_point(rng, image)
        else:
            xy, label, target = make(rng, choose_objects(rng, image), count)
        points.append(xy * scale - 0.5)
        labels.append(label)
        targets.append(low_target(target))
    return Prompts(
        torch.from_numpy(np.stack(points)).float(),
        torch.from_numpy(np.stack(labels)),
        None,
        torch.from_numpy(np.stack(targets)),
    )


def _box(mask: np.ndarray) -> list[float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])]


# Training


def decode(
    model: Sam, embedding: Tensor, prompts: Prompts, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """All four mask logits (prompts, 4, 64, 64) and their predicted IoU (prompts, 4) for the
    prompts of one image."""
    points = None if prompts.points is None else (prompts.points, prompts.point_labels)
    sparse, dense = model.prompt_encoder(points, prompts.boxes, mask)
    return model.mask_decoder.predict_masks(
        embedding, model.prompt_encoder.get_dense_pe(), sparse, dense
    )


def mask_loss(logits: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """20 x focal + dice for the single mask and the best of the three others, and the squared error
    of the predicted IoU.

    The focal loss is the one for soft targets, whose weight is the squared distance from the
    target.

    Args:
        logits: (prompts, 4, 64, 64).
        predicted: IoU (prompts, 4).
        target: (prompts, 64, 64) between 0 and 1.
    """
    soft = target[:, None].expand_as(logits)
    probability = logits.sigmoid()
    focal = (
        F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
        * (probability - soft) ** 2
    ).mean(dim=(2, 3))
    dice = 1 - (2 * (probability * soft).sum(dim=(2, 3)) + 1) / (
        (probability + soft).sum(dim=(2, 3)) + 1
    )
    each = 20 * focal + dice
    with torch.no_grad():
        guess, real = logits > 0, soft > 0.5
        iou = (guess & real).sum(dim=(2, 3)) / (guess | real).sum(dim=(2, 3)).clamp(min=1)
    return (each[:, 0] + each[:, 1:].amin(dim=1) + (predicted - iou).square().mean(dim=1)).mean()


def train_step(model: Sam, step: int, first: int) -> Tensor:
    """The loss of one step. For one image in eight, the best mask is used as a mask prompt."""
    rng = np.random.default_rng((step, 5))
    images = [draw(first + step * BATCH + i) for i in range(BATCH)]
    images = [p for p in images if p.objects]
    pixels = torch.stack([to_input(model, p) for p in images]).contiguous(
        memory_format=torch.channels_last
    )
    losses = []
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = model.image_encoder(pixels)
        for embedding, image in zip(embeddings, images, strict=True):
            prompts = make_prompts(rng, image)
            logits, predicted = decode(model, embedding[None], prompts, None)
            losses.append(mask_loss(logits.float(), predicted.float(), prompts.targets))
            if rng.random() < 0.125:
                best = predicted.argmax(dim=1)
                again = logits.detach().float()[torch.arange(len(best)), best][:, None]
                logits, predicted = decode(model, embedding[None], prompts, again)
                losses.append(mask_loss(logits.float(), predicted.float(), prompts.targets))
    return torch.stack(losses).mean()


# Validation


def true_points(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel indices (x, y) and labels: up to 16 centres of cells on the mask, else its innermost
    pixel, as positive points; about as many off the mask as negative ones."""
    height, width = mask.shape
    cells = np.arange(GRID * GRID)
    centres = np.stack(
        [(cells % GRID + 0.5) * width / GRID, (cells // GRID + 0.5) * height / GRID], axis=1
    )
    on = mask[centres[:, 1].astype(int), centres[:, 0].astype(int)]
    positive, negative = centres[on][:16] - 0.5, centres[cover(mask) == 0]
    if not len(positive):
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        positive = np.array([np.unravel_index(depth.argmax(), depth.shape)[::-1]], float)
    negative = negative[:: max(1, len(negative) // len(positive))][: len(positive)] - 0.5
    labels = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    return np.concatenate([positive, negative]), labels


def overlap(guess: np.ndarray, real: np.ndarray) -> float:
    return float((guess & real).sum() / max(1, (guess | real).sum()))


def evaluate(model: Sam, split: str, count: int) -> dict[str, float]:
    """Mean IoU over the objects of `count` scenes, through segment-anything's predictor.

    Returns:
        points: the mask of highest predicted IoU from true points; single: the single mask; oracle:
        the best of three; one_point: from the first positive point alone; box: from the object's
        box.
    """
    predictor = SamPredictor(model.eval())
    found: dict[str, list[float]] = {
        "points": [],
        "single": [],
        "oracle": [],
        "one_point": [],
        "box": [],
    }
    for index in range(count):
        image = scene(split_seed(split, index))
        predictor.set_image(image.pixels)
        for item in image.objects:
            points, labels = true_points(item.mask)
            masks, predicted, _ = predictor.predict(points, labels, multimask_output=True)
            each = [overlap(m, item.mask) for m in masks]
            found["points"].append(each[int(predicted.argmax())])
            found["oracle"].append(max(each))
            found["single"].append(
                overlap(predictor.predict(points, labels, multimask_output=False)[0][0], item.mask)
            )
            masks, predicted, _ = predictor.predict(points[:1], labels[:1], multimask_output=True)
            found["one_point"].append(overlap(masks[int(predicted.argmax())], item.mask))
            masks, predicted, _ = predictor.predict(
                box=np.array(_box(item.mask)), multimask_output=True
            )
            found["box"].append(overlap(masks[int(predicted.argmax())], item.mask))
    return {name: float(np.mean(values)) for name, values in found.items()}


# The run


def rate(step: int, steps: int, cooling: int, highest: float) -> float:
    """The learning rate: a warm-up, then constant, then linearly down to 0 in `cooling` steps."""
    return highest * min(1.0, (step + 1) / WARMUP, (steps - step) / max(1, cooling))


def start_from(stem: Path | None, weights: Path | None) -> Sam:
    """The SAM of a file of weights; else an untrained one, whose patch embedding's convolutions are
    a tiny CLIP's if such a file is given."""
    if weights is not None:
        return load_tiny_sam(weights).train()
    torch.manual_seed(0)
    model = build_tiny_sam().train()
    if stem is not None:
        convolutions = load_tiny_clip(stem)[0].visual.conv1[:-1]
        model.image_encoder.patch_embed.proj[:-1].load_state_dict(convolutions.state_dict())
    return model


def run(
    output: Path, model: Sam, first: int, steps: int, cooling: int, every: int, highest: float
) -> None:
    file = output / "checkpoint.pt"
    model.image_encoder.patch_embed.to(memory_format=torch.channels_last)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.02},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    done_before, begun = 0, 0.0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        done_before, begun = saved["step"], saved["seconds"]
    start, losses = time.monotonic() - begun, []
    for step in range(done_before, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, cooling, highest)
        loss = train_step(model, step, first)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        for kept, new in zip(average.module.buffers(), model.buffers(), strict=True):
            kept.copy_(new)
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        done = step + 1
        if done % 50 == 0 or done == steps:
            entry: dict[str, Any] = {
                "step": done,
                "images": done * BATCH,
                "seconds": round(time.monotonic() - start, 1),
            }
            entry["loss"] = float(np.mean(losses[-50:]))
            if done % every == 0 or done == steps:
                entry["validation"] = evaluate(average.module, "validation", 50)
            with (output / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            print(json.dumps(entry), flush=True)
        if done % 200 == 0 or done == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            torch.save(
                state | {"average": average.state_dict(), "seconds": time.monotonic() - start},
                file.with_suffix(".part"),
            )
            file.with_suffix(".part").replace(file)
            save_tiny_sam(average.module, output / "tiny_sam.safetensors")


def draw_curves(output: Path) -> None:
    """Draw `curves.png` from the log: the loss, and validation's figures."""
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    axes[0].plot([e["images"] / 1000 for e in entries], [e["loss"] for e in entries])
    axes[0].set(title="loss", yscale="log", xlabel="thousand images")
    checked = [e for e in entries if "validation" in e]
    for name in checked[0]["validation"]:
        axes[1].plot(
            [e["images"] / 1000 for e in checked],
            [e["validation"][name] for e in checked],
            label=name,
        )
    axes[1].set(title="validation: mean IoU", xlabel="thousand images", ylim=(0.3, 1))
    axes[1].legend()
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
        "--stem", type=Path, help="a tiny CLIP's weights: initialise the convolutions from it"
    )
    parser.add_argument("--start", type=Path, help="a tiny SAM's weights: train them further")
    parser.add_argument("--rate", type=float, default=RATE, help="the highest learning rate")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--cooling", type=int, default=COOLING, help="how many of the steps lower the learning rate"
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
        print(json.dumps(evaluate(load_tiny_sam(), "test", 500), indent=1))
        return
    if options.output is None:
        parser.error("--output is needed, unless --test is given")
    options.output.mkdir(parents=True, exist_ok=True)
    run(
        options.output,
        start_from(options.stem, options.start),
        FURTHER if options.start else 0,
        options.steps,
        options.cooling,
        options.validate_every,
        options.rate,
    )
    draw_curves(options.output)


if __name__ == "__main__":
    main()
