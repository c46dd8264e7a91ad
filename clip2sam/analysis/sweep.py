"""Which settings pay on your own images: the same images under one change of the settings each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from clip2sam.analysis.bootstrap import Difference, paired_difference
from clip2sam.analysis.evaluate import Failures
from clip2sam.analysis.examples import Example
from clip2sam.analysis.figures import MeanIou, Pair, compare, object_figures, pool
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.pipeline import Features, LabelsLike, Segmenter

Lever = tuple[str, Mapping[str, Any]]
"""A name, and the fields of `Config` that it changes."""

LEVERS: tuple[Lever, ...] = (
    ("one mask a label", {"prompts": "label"}),
    ("min_share 0", {"min_share": 0.0}),
    ("min_share 0.4", {"min_share": 0.4}),
    ("min_share 0.6", {"min_share": 0.6}),
    ("min_share 0.7", {"min_share": 0.7}),
    ("max_objects 1", {"max_objects": 1}),
    ("max_objects 16", {"max_objects": 16}),
    ("point_threshold 0.4", {"point_threshold": 0.4}),
    ("point_threshold 0.6", {"point_threshold": 0.6}),
    ("point_threshold 0.8", {"point_threshold": 0.8}),
    ("grid 5", {"grid": 5}),
    ("grid 10", {"grid": 10}),
    ("grid 14", {"grid": 14}),
    ("candidate agreement", {"candidate": "agreement"}),
    ("candidate predicted_iou", {"candidate": "predicted_iou"}),
    ("max_negative 2", {"max_negative": 2}),
    ("max_negative 8", {"max_negative": 8}),
    ("presence_threshold 0.1", {"presence_threshold": 0.1}),
    ("presence_threshold 0.2", {"presence_threshold": 0.2}),
    ("presence_threshold 0.4", {"presence_threshold": 0.4}),
)
"""What is tried when nothing else is given: one field at a time."""


@dataclass(frozen=True)
class Trial:
    """One setting's figures."""

    name: str
    miou: float
    ap: float
    ap50: float
    """Pooled over pairs of an image and a label, see `object_figures`."""
    false_masks: float
    """Share of the absent labels that were kept."""
    false_instances: float
    """Kept masks an image of present labels that overlap no object of theirs."""
    seconds: float
    """Median of an image, without the encoders, whose work all settings share."""
    miou_gain: Difference | None = None
    ap_gain: Difference | None = None
    """Against the base; None for the base itself."""


def sweep(
    segmenter: Segmenter,
    examples: Iterable[Example],
    labels: LabelsLike | None = None,
    distractors: Sequence[str] = (),
    levers: Sequence[Lever] = LEVERS,
    on_example: Callable[[], Any] = lambda: None,
) -> tuple[list[Trial], list[list[str]]]:
    """Judge the segmenter's own settings, the base, and each lever on the same images.

    Args:
        segmenter: the models and the base.
        labels, distractors: as for `evaluate`.
        levers: the changes to try, each from the base.
        on_example: called after each example.

    Returns:
        The base's trial and those of the levers, in their order; and the images on which the model
        failed, each with the reason.

    Raises:
        ConfigError: a lever with a field that doesn't exist, or a value that it can't have.
        LabelError: the truth about a label is not known.
        ModelError: the model fails on several images in a row, or on all.
    """
    given = None if labels is None else as_label_set(labels, distractors=distractors)
    tried = [segmenter, *(segmenter.with_config(**changes) for _, changes in levers)]
    judged: list[list[list[Pair]]] = [[] for _ in tried]
    seconds: list[list[float]] = [[] for _ in tried]
    failures = Failures()
    for example in examples:
        label_set = example.labels(given, distractors)
        example = example.joined(label_set)
        with failures.of(example):
            features = segmenter.encode([example.image])
            features.embeddings([0])
            timed = [_judge(one, features, example, label_set) for one in tried]
            for k, (pairs, duration) in enumerate(timed):
                judged[k].append(pairs)
                seconds[k].append(duration)
        on_example()
    failures.check(len(judged[0]))
    names = ["base", *(name for name, _ in levers)]
    trials = [
        _trial(name, images, float(np.median(times)) if times else float("nan"), judged[0])
        for name, images, times in zip(names, judged, seconds, strict=True)
    ]
    return trials, failures.found


def _judge(
    segmenter: Segmenter, features: Features, example: Example, labels: LabelSet
) -> tuple[list[Pair], float]:
    """The pairs of one image, and how long its stages took behind the encoders."""
    features.tokens(segmenter.config.method, segmenter.config.resolution)
    start = perf_counter()
    result = segmenter.results(features, segmenter.predict(features, labels))[0]
    duration = perf_counter() - start
    return compare(example, result, result.present), duration


def _trial(name: str, images: list[list[Pair]], seconds: float, base: list[list[Pair]]) -> Trial:
    pairs = [p for image in images for p in image]
    absent = [p.kept for p in pairs if not p.present]
    objects = object_figures(images)
    gains = {}
    if images is not base:
        ap, base_ap = pool(images), pool(base)
        gains = {
            "miou_gain": paired_difference(MeanIou(base), MeanIou(images), len(images)),
            "ap_gain": paired_difference(
                lambda w: float(base_ap.precision(w).mean()),
                lambda w: float(ap.precision(w).mean()),
                len(images),
            ),
        }
    return Trial(
        name,
        MeanIou(images)(np.ones(len(images))),
        objects["AP"],
        objects["AP50"],
        float(np.mean(absent)) if absent else float("nan"),
        objects["false_instances"],
        seconds,
        **gains,
    )
