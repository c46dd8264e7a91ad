"""How well labels are recognised in whole images, by CLIP's CLS token, without and with feature
surgery.

The figure is the field's for multi-label recognition: for each label the images are ranked by its
score, and the mean over labels of their average precision is mAP. Labels that occur in no image, or
in all, say nothing and are left out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from clip2sam.analysis.evaluate import Failures
from clip2sam.analysis.examples import Example
from clip2sam.data.labels import as_label_set
from clip2sam.pipeline import LabelsLike, Segmenter
from clip2sam.recognition import recognise

RANKINGS = {"raw": "cosines", "softmax": "probabilities", "surgery": "scores"}
"""What the images are ranked by: fields of `Recognition`."""


def evaluate_recognition(
    segmenter: Segmenter,
    examples: Iterable[Example],
    labels: LabelsLike | None = None,
    distractors: Sequence[str] = (),
    on_example: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """Recognise labels in examples and compare with the truth.

    Args:
        segmenter: the models; of its settings the resolution and the background prompts count.
        examples: all with truth about the same labels.
        labels: as for `evaluate`. None: all labels whose truth is known, the same in every image.
        distractors: names that compete with the labels.
        on_example: called after each example.

    Returns:
        {"kinds": {kind: figures}, "all": figures, "failures": [[image, reason], ...]}, figures
        being {"labels": how many count, "raw", "softmax", "surgery": mAP by CLIP's cosines, by
        its probabilities, by feature surgery on the cosines}; NaN without labels.

    Raises:
        LabelError: the truth about a label is not known.
        ModelError: the model fails on MODEL_FAILURES images in a row, or on all.
    """
    given = None if labels is None else as_label_set(labels, distractors=distractors)
    truth: dict[str, list[bool]] = {}
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in RANKINGS}
    kinds: dict[str, str] = {}
    failures, judged = Failures(), 0
    for example in examples:
        known = given or as_label_set(
            tuple(example.truth), distractors=[d for d in distractors if d not in example.truth]
        )
        label_set = example.labels(known)
        with failures.of(example):
            (found,) = recognise(segmenter, segmenter.encode([example.image]), label_set)
            judged += 1
            for i, label in enumerate(found.class_names):
                truth.setdefault(label, []).append(bool(example.truth[label]))
                kinds[label] = example.kinds[label]
                for name, field in RANKINGS.items():
                    scores[name].setdefault(label, []).append(float(getattr(found, field)[i]))
        on_example()
    failures.check(judged)
    groups = {
        kind: [label for label in truth if kinds[label] == kind]
        for kind in dict.fromkeys(kinds.values())
    }
    return {
        "kinds": {kind: _figures(truth, scores, some) for kind, some in groups.items()},
        "all": _figures(truth, scores, list(truth)),
        "failures": failures.found,
    }


def _figures(
    truth: Mapping[str, Sequence[bool]],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    labels: Sequence[str],
) -> dict[str, Any]:
    """The figures of some labels."""
    told = [label for label in labels if 0 < sum(truth[label]) < len(truth[label])]
    figures: dict[str, Any] = {"labels": len(told)}
    for name, by_label in scores.items():
        values = [ranked_precision(np.array(by_label[n]), np.array(truth[n])) for n in told]
        figures[name] = float(np.mean(values)) if values else float("nan")
    return figures


def ranked_precision(
    scores: Float[np.ndarray, "images"], truth: Bool[np.ndarray, "images"]
) -> float:
    """Average precision of a ranking, not interpolated: the mean, over all positives, of the
    precision among the images that score as high or higher. NaN without positives."""
    reached = scores >= scores[truth][:, None]
    precision = (reached & truth).sum(axis=1) / reached.sum(axis=1)
    return float(precision.mean()) if len(precision) else float("nan")
