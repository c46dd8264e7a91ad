"""The one presence decision: which labels are there.

Taken on raw scores, before anything is normalised: min-max gives every label's map a peak of 1,
absent ones as well. The same lines run on tensors (the pipeline) and on arrays (records, `tune`,
`evaluate`, `export_run`), so that no two of them can disagree.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float


def is_present(scores: Any, beaten: Any, thresholds: Any) -> Any:
    """Which labels are present.

    A label is present if its score reaches its threshold and no distractor beats it. A label
    without a threshold (NaN) is present whatever its score; only a score that is not a number
    makes it absent.

    Args:
        scores: presence scores: each label's highest raw score. Float array or tensor.
        beaten: bool, of the same kind and shape: a distractor scores higher at the label's peak.
        thresholds: of the same kind; its shape broadcasts to that of `scores`.

    Returns:
        bool, of the same kind and shape as `scores`.
    """
    decided = (scores >= thresholds) & ~beaten
    return (scores == scores) & ((thresholds != thresholds) | decided)


def best_presence(
    presence: Float[np.ndarray, "several labels"], beaten: Bool[np.ndarray, "several labels"]
) -> tuple[Float[np.ndarray, "labels"], Bool[np.ndarray, "labels"]]:
    """Each label's highest score over those (views of an image, parts of a joined label) in which
    no distractor beats it; and whether it is beaten, which is to be so in all of them. So it is
    present where it is in one of them."""
    everywhere = beaten.all(axis=0)
    best = np.where(beaten & ~everywhere, -np.inf, presence).max(axis=0)
    return best, np.asarray(everywhere)


def presence_of_classes(
    presence: Float[np.ndarray, "parts"],
    beaten: Bool[np.ndarray, "parts"],
    groups: Sequence[Sequence[int]],
) -> tuple[Float[np.ndarray, "classes"], Bool[np.ndarray, "classes"]]:
    """The scores of classes from those of their parts, as `best_presence` has them.

    Args:
        groups: the places of each class's parts, see `LabelSet.groups`.
    """
    if len(groups) == len(presence):
        return presence, beaten
    pairs = [best_presence(presence[list(g), None], beaten[list(g), None]) for g in groups]
    scores, lost = (np.concatenate(column) for column in zip(*pairs, strict=True))
    return scores, lost


def recorded_presence(
    presence: Sequence[float | None], beaten: Sequence[bool], thresholds: Sequence[float | None]
) -> Bool[np.ndarray, "labels"]:
    """`is_present` for the scores of a record, in float32 as the model takes it."""
    scores, limits = (_as_array(values) for values in (presence, thresholds))
    return np.asarray(is_present(scores, np.array(beaten, bool), limits))


def _as_array(values: Sequence[float | None]) -> Float[np.ndarray, "labels"]:
    return np.array([np.nan if v is None else v for v in values], np.float32)
