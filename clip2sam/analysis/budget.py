"""Where the masks lose: the stages are replaced by the truth one after another.

pipeline         as it is
true presence    every present label is kept, and no absent one
true points      and each object has a prompt of its own, one point far inside of it
true candidates  and of SAM's three candidates the one with the highest IoU is kept

What is missing to 1 in the end is SAM's own loss: no prompt of one point does better.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float

from clip2sam.analysis.average_precision import Matches, Overlaps, Pool, match, overlaps
from clip2sam.analysis.evaluate import Failures, without_thresholds
from clip2sam.analysis.examples import Example, Mask
from clip2sam.analysis.figures import compare, decided, iou
from clip2sam.coco.rle import encode_mask
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.pipeline import Features, LabelsLike, Segmenter
from clip2sam.types import Prediction, Prompts

STEPS = ("pipeline", "true presence", "true points", "true candidates")


@dataclass(frozen=True)
class Budget:
    """Figures of each step, over all images. 0 to 1, NaN without present labels."""

    miou: dict[str, float]
    """Mean IoU of each present label's masks together with all of its objects."""
    ap: dict[str, float]
    """Pooled AP. With true candidates the score of a mask is its true IoU: a bound of what SAM's
    candidates can reach."""
    failures: list[list[str]]
    """The images on which the model failed, and the reasons."""

    def losses(self) -> dict[str, float]:
        """How much mean IoU each stage loses; together with the pipeline's they give 1."""
        own, presence, points, candidates = (self.miou[step] for step in STEPS)
        return {
            "presence": presence - own,
            "points": points - presence,
            "candidates": candidates - points,
            "SAM": 1 - candidates,
        }


def budget(
    segmenter: Segmenter,
    examples: Iterable[Example],
    labels: LabelsLike | None = None,
    distractors: Sequence[str] = (),
    on_example: Callable[[], Any] = lambda: None,
) -> Budget:
    """Measure what each stage loses. Arguments and errors as for `evaluate`. Joined labels are
    taken apart: each part is a label with objects of its own."""
    given = None if labels is None else as_label_set(labels, distractors=distractors)
    ious: dict[str, list[float]] = {step: [] for step in STEPS}
    matches: dict[str, list[Matches]] = {step: [] for step in STEPS}
    owners: dict[str, list[int]] = {step: [] for step in STEPS}
    failures = Failures()
    judged = 0
    for example in examples:
        label_set = example.labels(example.labels(given, distractors).apart())
        with failures.of(example):
            steps = _steps(segmenter, example, label_set)
            for step, (values, masks) in steps.items():
                ious[step] += values
                matches[step] += [match(one) for one in masks]
                owners[step] += [judged] * len(masks)
            judged += 1
        on_example()
    failures.check(judged)
    return Budget(
        {s: float(np.mean(v)) if v else float("nan") for s, v in ious.items()},
        {s: float(Pool(matches[s], owners[s]).precision().mean()) for s in STEPS},
        failures.found,
    )


_Step = tuple[list[float], list[Overlaps]]
"""The IoU of each present label, and the masks of each label against its objects."""


def _steps(segmenter: Segmenter, example: Example, labels: LabelSet) -> dict[str, _Step]:
    features = segmenter.encode([example.image])
    everything = segmenter.with_config(presence_threshold=None)
    open_labels = without_thresholds(labels, None)
    prediction = everything.predict(features, open_labels)
    result = everything.results(features, prediction)[0]
    kept = decided(result, labels.thresholds(segmenter.config.presence_threshold))
    truly = np.array([bool(example.truth[name]) for name in result.class_names])
    pairs, true_pairs = (compare(example, result, chosen) for chosen in (kept, truly))
    return {
        "pipeline": ([p.iou * p.kept for p in pairs if p.present], [p.masks for p in pairs]),
        "true presence": (
            [p.iou for p in true_pairs if p.present],
            [p.masks for p in true_pairs],
        ),
        **_true_points(everything, features, prediction, example, result.class_names),
    }


def _true_points(
    segmenter: Segmenter,
    features: Features,
    prediction: Prediction,
    example: Example,
    names: Sequence[str],
) -> dict[str, _Step]:
    """The last two steps. The present labels' objects are prompted one by one, in order."""
    objects = [(i, mask) for i, name in enumerate(names) for mask in example.truth[name]]
    if not objects:
        return {step: ([], []) for step in STEPS[2:]}
    device = segmenter.device
    prompts = Prompts(
        coords=torch.from_numpy(np.array([[inner_point(m)] for _, m in objects])).to(device),
        point_labels=torch.ones(len(objects), 1, dtype=torch.long, device=device),
        label_index=torch.tensor([i for i, _ in objects], device=device),
        counts=(len(objects),),
        sizes=prediction.maps.sizes,
    )
    candidates = segmenter.decode(features, prompts)
    chosen = segmenter.choose(prediction.maps, prompts, candidates).candidate.tolist()
    predicted = candidates.predicted_iou.clamp(0, 1).tolist()
    shape = candidates.logits.shape[:2]
    size = example.image.size
    flat = torch.cat(list(segmenter.sam.upscale(candidates.logits.flatten(0, 1), size)))
    masks = flat.cpu().numpy().reshape(*shape, *size)
    found: dict[str, _Step] = {step: ([], []) for step in STEPS[2:]}
    for index in dict.fromkeys(i for i, _ in objects):
        rows = [row for row, (i, _) in enumerate(objects) if i == index]
        true = [[iou(mask, objects[row][1]) for mask in masks[row]] for row in rows]
        best = [int(np.argmax(values)) for values in true]
        picks = {
            "true points": [(chosen[r], predicted[r][chosen[r]]) for r in rows],
            "true candidates": [(b, values[b]) for b, values in zip(best, true, strict=True)],
        }
        truth = [objects[row][1] for row in rows]
        for step, picked in picks.items():
            mine = [masks[row][k] for row, (k, _) in zip(rows, picked, strict=True)]
            found[step][0].append(iou(np.any(mine, axis=0), np.any(truth, axis=0)))
            found[step][1].append(_overlaps(mine, [score for _, score in picked], truth))
    return found


def _overlaps(masks: Sequence[Mask], scores: Sequence[float], truth: Sequence[Mask]) -> Overlaps:
    """Of the masks that are not empty."""
    some = [(encode_mask(m), s) for m, s in zip(masks, scores, strict=True) if m.any()]
    return overlaps([m for m, _ in some], [s for _, s in some], [encode_mask(t) for t in truth])


def inner_point(mask: Bool[np.ndarray, "height width"]) -> Float[np.ndarray, "2"]:
    """The centre (x, y), in continuous pixels, of the mask's pixel that lies farthest from its
    outside. The image's border counts as outside."""
    padded = np.pad(mask, 1).astype(np.uint8)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    row, col = np.unravel_index(int(depth.argmax()), depth.shape)
    return np.array([col + 0.5, row + 0.5], np.float32)
