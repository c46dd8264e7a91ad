"""The ways to find labels side by side: the same images, labels, SAM and evaluation for each.

Scores of the methods have different scales, so that one presence threshold for all would compare
thresholds. Each gets its own, chosen on other images: the lowest that keeps a share of the absent
labels which is the same for all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from clip2sam.analysis.evaluate import evaluate
from clip2sam.analysis.examples import Example
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.errors import ConfigError
from clip2sam.pipeline import LabelsLike, Segmenter
from clip2sam.result import Result

FALSE_MASKS = 0.015
"""The share of absent labels that each method may keep where its threshold is chosen."""


@dataclass(frozen=True)
class Compared:
    """One method's figures. Shares and means are 0 to 1, NaN where there is nothing to judge."""

    name: str
    threshold: float
    """The presence threshold that was chosen for it."""
    pointing: float
    """The pointing game: the top cell of the grid touches the object."""
    map_iou: float
    presence_auc: float
    miou_all_kept: float
    """Mean IoU of the masks of present labels, if all of them were kept: places alone, as the
    papers measure."""
    miou: float
    """Mean IoU of the masks of present labels; 0 for a label that was not kept."""
    ap: float
    """Pooled over all pairs of an image and a label."""
    false_masks: float
    """Share of the absent labels that were kept, on the images that are judged."""
    seconds: float
    """Median of an image with all of its labels, text features known."""
    spread: tuple[float, float]
    """The quartiles of the seconds."""


@dataclass(frozen=True)
class Sight:
    """What one method sees of one label of an image, for a contact sheet."""

    method: str
    raw: Float[np.ndarray, "rows cols"]
    """The raw map."""
    mask: Bool[np.ndarray, "height width"]
    """The label's masks together; without a pixel if it is absent."""
    iou: float
    """With the truth."""


def threshold_for(
    segmenter: Segmenter,
    examples: Iterable[Example],
    labels: LabelsLike | None = None,
    false_masks: float = FALSE_MASKS,
) -> float:
    """The lowest presence threshold that keeps at most this share of the absent labels.

    Args:
        labels: as for `evaluate`.

    Raises:
        ConfigError: in these examples no label is absent.
    """
    given = None if labels is None else as_label_set(labels)
    absent: list[float] = []
    for example in examples:
        label_set = example.labels(given)
        example = example.joined(label_set)
        features = segmenter.encode([example.image])
        scores, _ = segmenter.presence(features, label_set)[0]
        absent += [
            float(score)
            for c, score in zip(label_set.wanted, scores, strict=True)
            if not example.truth[c.name]
        ]
    if not absent:
        raise ConfigError(
            "expected images in which some of the labels are absent, found none: a presence "
            "threshold can't be chosen; give more labels or more images"
        )
    ordered = np.sort(np.array(absent, np.float32))[::-1]
    kept = int(false_masks * len(ordered))  # so many of them may reach the threshold
    highest = ordered[min(kept, len(ordered) - 1)]
    return float(np.nextafter(highest, np.float32(np.inf)))


def compare_methods(
    segmenters: Mapping[str, Segmenter],
    chosen_on: Sequence[Example],
    judged_on: Sequence[Example],
    labels: LabelsLike | None = None,
    on_image: Callable[[], Any] = lambda: None,
) -> list[Compared]:
    """Compare segmenters that differ in how they find labels.

    Args:
        segmenters: by name. Each gets a presence threshold of its own.
        chosen_on: examples on which the thresholds are chosen.
        judged_on: other examples.
        labels: as for `evaluate`; None: those that each example requests.
        on_image: called after each image that one method has judged.
    """
    own = {
        name: one.with_config(presence_threshold=threshold_for(one, chosen_on, labels))
        for name, one in segmenters.items()
    }
    seconds = _seconds(own, judged_on, labels)
    rows = []
    for name, one in own.items():
        figures = evaluate(one, judged_on, labels, on_example=on_image)
        low, median, high = np.quantile(seconds[name], (0.25, 0.5, 0.75))
        threshold = one.config.presence_threshold
        assert threshold is not None  # chosen above
        rows.append(
            Compared(
                name,
                threshold,
                **{
                    key: figures["all"][key]
                    for key in (
                        "pointing",
                        "map_iou",
                        "presence_auc",
                        "miou_all_kept",
                        "miou",
                        "false_masks",
                    )
                },
                ap=figures["objects"]["AP"],
                seconds=float(median),
                spread=(float(low), float(high)),
            )
        )
    return rows


def _seconds(
    segmenters: Mapping[str, Segmenter], examples: Sequence[Example], labels: LabelsLike | None
) -> dict[str, list[float]]:
    """Seconds of each image by each segmenter, in turn, so that a busy machine slows all of them.
    Before the first image each has seen its labels, and run once."""
    given = None if labels is None else as_label_set(labels)
    taken: dict[str, list[float]] = {name: [] for name in segmenters}
    for i, example in enumerate(examples):
        label_set = example.labels(given)
        for name, one in segmenters.items():
            one.presence(one.encode([example.image]), label_set)  # the text features
            if i == 0:
                one(example.image, label_set)
            start = perf_counter()
            one(example.image, label_set)
            taken[name].append(perf_counter() - start)
    return taken


def sights(
    segmenters: Mapping[str, Segmenter], example: Example, label: str, labels: LabelSet
) -> list[Sight]:
    """What each segmenter sees of one label of an image.

    Args:
        label: one of `labels`, whose truth is known.
    """
    truth = np.any(example.truth[label], axis=0)
    found = []
    for name, one in segmenters.items():
        result: Result = one(example.image, labels)
        mask = result.mask_of(label)
        union = int((mask | truth).sum())
        raw = result.maps[result.class_names.index(label)]
        found.append(Sight(name, raw, mask, int((mask & truth).sum()) / max(union, 1)))
    return found
