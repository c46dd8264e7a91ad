"""How well every pixel gets its label: the field's figures of semantic segmentation.

Intersection and union of each class are summed over all images, background being a class of its
own; mIoU is the mean of their quotients over the classes that occur in the truth or in a label map.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt16

from clip2sam.analysis.evaluate import Failures
from clip2sam.analysis.examples import Example
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.dense import DenseSettings, label_pixels
from clip2sam.pipeline import LabelsLike, Segmenter

BACKGROUND = "background"


def evaluate_dense(
    segmenter: Segmenter,
    examples: Iterable[Example],
    labels: LabelsLike | None = None,
    distractors: Sequence[str] = (),
    on_example: Callable[[], Any] = lambda: None,
    *,
    settings: DenseSettings | None = None,
) -> dict[str, Any]:
    """Label the pixels of examples and compare with the truth.

    Args:
        segmenter: the models and the settings.
        examples: all with truth about the same labels. Where objects overlap, the smaller one is
            the truth.
        labels: as for `evaluate`. None: all labels whose truth is known, of the kind that comes
            last (of scenes "colour + shape"), so that no pixel truly has two labels.
        distractors: names that compete with the labels.
        on_example: called after each example.
        settings: of `label_pixels`.

    Returns:
        {"mIoU", "background": its IoU, "accuracy": share of the pixels that are right, "classes":
        {label: IoU, for those that occur}, "failures": [[image, reason], ...]}.

    Raises:
        LabelError: the truth about a label is not known.
        ModelError: the model fails on MODEL_FAILURES images in a row, or on all.
    """
    given = None if labels is None else as_label_set(labels, distractors=distractors)
    names: tuple[str, ...] = ()
    counts = np.zeros((1, 1), np.int64)
    failures, judged = Failures(), 0
    for example in examples:
        label_set = example.labels(given or _of_one_kind(example, distractors))
        if not names:
            names = tuple(c.name for c in label_set.wanted)
            counts = np.zeros((len(names) + 1,) * 2, np.int64)
        with failures.of(example):
            features = segmenter.encode([example.image])
            (found,) = label_pixels(segmenter, features, label_set, settings)
            counts += confusion(found.numbers, true_numbers(example, names), len(names))
            judged += 1
        on_example()
    failures.check(judged)
    return {**_figures(counts, names), "failures": failures.found}


def _of_one_kind(example: Example, distractors: Sequence[str]) -> LabelSet:
    last = list(example.kinds.values())[-1]
    names = tuple(label for label, kind in example.kinds.items() if kind == last)
    return as_label_set(names, distractors=[d for d in distractors if d not in names])


def true_numbers(example: Example, names: Sequence[str]) -> UInt16[np.ndarray, "height width"]:
    """The number of each pixel's true label, from 1 in the order of the names; 0 is background. The
    smallest object is on top."""
    numbers = np.zeros(example.image.size, np.uint16)
    objects = [(mask, i) for i, name in enumerate(names, 1) for mask in example.truth[name]]
    for mask, i in sorted(objects, key=lambda one: -int(one[0].sum())):
        numbers[mask] = i
    return numbers


def confusion(
    found: UInt16[np.ndarray, "height width"],
    truth: UInt16[np.ndarray, "height width"],
    classes: int,
) -> Int[np.ndarray, "truth found"]:
    """How many pixels truly of one number were found to be of another."""
    side = classes + 1
    pairs = truth.astype(np.int64).ravel() * side + found.ravel()
    return np.bincount(pairs, minlength=side * side).reshape(side, side)


def _figures(counts: Int[np.ndarray, "truth found"], names: Sequence[str]) -> dict[str, Any]:
    right = counts.diagonal()
    union = counts.sum(axis=0) + counts.sum(axis=1) - right
    ious = {
        name: float(right[i] / union[i]) for i, name in enumerate((BACKGROUND, *names)) if union[i]
    }
    nan = float("nan")
    return {
        "mIoU": float(np.mean(list(ious.values()))) if ious else nan,
        "background": ious.get(BACKGROUND, nan),
        "accuracy": float(right.sum() / counts.sum()) if union.any() else nan,
        "classes": {name: iou for name, iou in ious.items() if name in names},
    }
