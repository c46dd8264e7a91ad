"""Presence thresholds from pictures: score every label on every picture, look where to cut, write the labels file.

CLIP alone is run, for the presence score of a label is the highest raw score on its map. Where the truth is known
(a COCO data set), the threshold with the best F1 is suggested; where it is not, the cut that separates the scores
into two groups best, which is a guess to be looked at.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Bool, Float

from clip2sam.analysis.evaluate import area_under_curve
from clip2sam.data.files import write_atomically
from clip2sam.data.images import load_image, printable
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.data.sources import find_source, locate
from clip2sam.errors import CocoError, ImageError, LabelError
from clip2sam.pipeline import LabelsLike, Segmenter


@dataclass(frozen=True)
class ClassScores:
    """One label over all pictures, and the threshold that its scores suggest."""

    name: str
    scores: Float[np.ndarray, "pictures"]
    """Presence: the label's highest raw score on each picture."""
    truth: Bool[np.ndarray, "pictures"] | None
    """Whether each picture really shows it; None where nobody knows."""
    threshold: float | None
    """Suggested: present at or above it. None where nothing can be told: no picture shows the label, or its score is
    the same everywhere."""

    def curve(
        self,
    ) -> tuple[
        Float[np.ndarray, "thresholds"],
        Float[np.ndarray, "thresholds"],
        Float[np.ndarray, "thresholds"],
    ]:
        """Every threshold that makes a difference, ascending, with the precision and the recall that it gives.

        Both are 0 to 1. Empty where the truth is not known or no picture shows the label.
        """
        if self.truth is None or not self.truth.any():
            return np.zeros(0), np.zeros(0), np.zeros(0)
        thresholds = np.unique(self.scores.astype(float))
        kept = self.scores[None] >= thresholds[:, None]
        right = (kept & self.truth).sum(axis=1)
        return thresholds, right / kept.sum(axis=1), right / self.truth.sum()

    def at(self, threshold: float | None) -> tuple[float, float]:
        """(precision, recall) of a threshold; NaN where they don't exist."""
        if self.truth is None or threshold is None:
            return float("nan"), float("nan")
        kept = self.scores >= threshold
        right = int((kept & self.truth).sum())
        return (
            right / int(kept.sum()) if kept.any() else float("nan"),
            right / int(self.truth.sum()) if self.truth.any() else float("nan"),
        )

    @property
    def auc(self) -> float:
        """Probability that a picture with the label scores above one without it; NaN where that is not known."""
        if self.truth is None:
            return float("nan")
        return area_under_curve(self.scores[self.truth], self.scores[~self.truth])


@dataclass(frozen=True)
class Tuning:
    """The scores of all labels on all pictures that could be read."""

    labels: LabelSet
    """As asked, with the thresholds that they had."""
    classes: tuple[ClassScores, ...]
    """In the order of the labels, without distractors."""
    pictures: tuple[str, ...]
    """POSIX paths relative to the source's root: the order of the scores."""
    failures: tuple[tuple[str, str], ...]
    """Pictures that could not be read, with the reason."""

    def __repr__(self) -> str:
        suggested = ", ".join(f"{c.name!r} {c.threshold}" for c in self.classes)
        return f"Tuning({len(self.pictures)} pictures, {len(self.failures)} failed, thresholds: {suggested})"

    def label_set(self) -> LabelSet:
        """The labels with the suggested thresholds; a class without one keeps its own."""
        own = {c.name: c.threshold for c in self.classes}
        tuned = tuple(
            c if own.get(c.name) is None else replace(c, threshold=_rounded(own[c.name]))
            for c in self.labels.classes
        )
        return replace(self.labels, classes=tuned)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the labels with their thresholds as a YAML file for `--labels`, wholly or not at all.

        Raises:
            CocoError: the file can't be written.
        """
        write_atomically(path, labels_yaml(self.label_set()).encode())

    def show(self) -> Any:
        """Histograms of the scores with thresholds, and precision and recall, as a matplotlib Figure."""
        from clip2sam.visualize.thresholds import tuning_figure

        return tuning_figure(self)

    def _repr_png_(self) -> bytes:
        """How a notebook shows it: `show()` as PNG."""
        return self.show()._repr_png_()


def tune(
    segmenter: Segmenter,
    source: str | os.PathLike[str],
    labels: LabelsLike | None = None,
    *,
    distractors: Sequence[str] = (),
    root: str | os.PathLike[str] | None = None,
    on_picture: Callable[[int, int], Any] = lambda done, of: None,
) -> Tuning:
    """Score every label on every picture and suggest a presence threshold for each.

    A picture that can't be read costs that picture; it is in `failures`.

    Args:
        segmenter: the models and settings that the labels file will be used with. Labels interact: ask those, and
            those distractors, that will be asked later.
        source: a folder, list, glob or COCO data set, as `clip2sam label` takes them. A COCO data set brings the truth:
            an image shows the categories of its annotations, and no other.
        labels: as for the segmenter; a COCO data set's categories when left out. The truth about a label that is no
            category is not known.
        root: the folder that a list's or data set's file names are relative to; by default the one it lies in.
        on_picture: called after each picture with how many are done, and of how many.

    Raises:
        LabelError: no labels, and no data set to take them from.
        ImageError: there is no picture, or none that can be read.
        CocoError: the data set's categories or annotations can't be read.
    """
    found = find_source(source, root)
    shown = _truth(Path(source)) if os.fspath(source).lower().endswith(".json") else None
    if labels is None and shown is None:
        raise LabelError(
            "expected labels, got none; give names or a labels file, or a COCO data set with categories"
        )
    label_set = as_label_set(
        list(shown[0]) if labels is None and shown else labels or [], distractors=distractors
    )
    scores, kept, failures = [], [], []
    for i, key in enumerate(found.keys):
        try:
            picture = load_image(locate(found.root, key))
        except ImageError as error:
            failures.append((printable(key), str(error)))
        else:
            with torch.no_grad():
                scores.append(segmenter.similarity(picture, label_set).presence.cpu().numpy())
            kept.append(i)
        on_picture(i + 1, len(found.keys))
    if not kept:
        raise ImageError(
            f"none of {len(failures)} pictures could be read; the first: {failures[0][1]}"
        )
    table = np.stack(scores)
    classes = []
    for column, c in enumerate(label_set.wanted):
        truth = None
        if shown is not None and c.name in shown[0]:
            truth = np.array([c.name in shown[1].get(found.image_id(i), ()) for i in kept])
        classes.append(
            ClassScores(c.name, table[:, column], truth, suggested(table[:, column], truth))
        )
    return Tuning(
        label_set, tuple(classes), tuple(printable(found.keys[i]) for i in kept), tuple(failures)
    )


def suggested(
    scores: Float[np.ndarray, "pictures"], truth: Bool[np.ndarray, "pictures"] | None
) -> float | None:
    """A presence threshold, half way between two scores, or None where nothing can be told.

    With the truth: the highest F1 (of equals, the widest gap between the two scores). Without: the largest variance
    between the two groups (Otsu, 1979, https://doi.org/10.1109/TSMC.1979.4310076), on the scores themselves.
    """
    ordered = np.unique(scores[np.isfinite(scores)].astype(float))
    if len(ordered) < 2 or (truth is not None and not truth.any()):
        return None
    cuts, gaps = (ordered[1:] + ordered[:-1]) / 2, np.diff(ordered)
    if truth is not None:
        # A cut below all scores, as far from the lowest as the mean gap, keeps everything.
        cuts, gaps = np.append(cuts, ordered[0] - gaps.mean()), np.append(gaps, 0.0)
    above = scores[None] >= cuts[:, None]
    if truth is not None:
        merit = 2 * (above & truth).sum(axis=1) / (above.sum(axis=1) + truth.sum())
    else:
        share = above.mean(axis=1)
        high = (above * scores).sum(axis=1) / above.sum(axis=1)
        low = (~above * scores).sum(axis=1) / (~above).sum(axis=1)
        merit = share * (1 - share) * (high - low) ** 2
    return float(cuts[np.lexsort((gaps, merit))[-1]])


def labels_yaml(labels: LabelSet) -> str:
    """A label set as the YAML of a labels file, in its full form; reading it gives the same label set."""
    classes = []
    for c in labels.wanted:
        row: dict[str, Any] = {"name": c.name}
        if c.prompts != (c.name,):
            row["prompts"] = list(c.prompts)
        if c.threshold is not None:
            row["threshold"] = c.threshold
        if c.supercategory:
            row["supercategory"] = c.supercategory
        classes.append(row)
    document: dict[str, Any] = {"classes": classes}
    if distractors := [c.name for c in labels.classes if c.distractor]:
        document["distractors"] = distractors
    if labels.templates is not None:
        document["templates"] = list(labels.templates)
    return yaml.dump(document, Dumper=_LabelsDumper, allow_unicode=True, sort_keys=False, width=120)


class _LabelsDumper(yaml.SafeDumper):
    """YAML's own, but rare line breaks are escaped: PyYAML writes them as they are, and reads them as blanks."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        broken = any(c in data for c in "\n\r\x85\u2028\u2029\ufeff")
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if broken else None)


_LabelsDumper.add_representer(str, _LabelsDumper.represent_str)


def _rounded(threshold: float | None) -> float | None:
    """To four significant digits: what a person reads."""
    return None if threshold is None else float(f"{threshold:.4g}")


def _truth(dataset: Path) -> tuple[tuple[str, ...], dict[int, set[str]]]:
    """A COCO data set's category names, and those that each image shows by its id."""
    try:
        document = json.loads(dataset.read_text(encoding="utf-8"))
        names = {c["id"]: c["name"] for c in document["categories"]}
        shown: dict[int, set[str]] = {}
        for annotation in document["annotations"]:
            shown.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CocoError(
            f"{printable(dataset)}: expected a COCO data set with categories and annotations, but "
            f"{type(error).__name__}: {error}; see `clip2sam validate`"
        ) from error
    return tuple(names.values()), shown
