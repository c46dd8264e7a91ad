"""Presence thresholds from images: score every label on every image, suggest a threshold for each,
write the labels file.

Only CLIP runs: the presence score of a label is the highest raw score on its map. Where the truth
is known (a COCO dataset), the threshold with the best F1 is suggested. Elsewhere it is the one that
separates the scores best into two groups, which is a guess: look at the histogram.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from clip2sam.analysis.figures import area_under_curve
from clip2sam.data.files import write_atomically
from clip2sam.data.images import MAX_PIXELS, Image, printable
from clip2sam.data.labels import LabelClass, LabelSet, as_label_set, labels_yaml
from clip2sam.data.opening import open_source
from clip2sam.data.presence import is_present
from clip2sam.data.sources import FileSource, Source
from clip2sam.errors import CocoError, ImageError, LabelError, ModelError
from clip2sam.labelling.decode_worker import load_named
from clip2sam.labelling.failures import ModelFailures, for_one_image
from clip2sam.pipeline import LabelsLike, Segmenter


@dataclass(frozen=True)
class ClassScores:
    """One label over all images, and the threshold that its scores suggest."""

    name: str
    scores: Float[np.ndarray, "images"]
    """Presence: the label's highest raw score on each image."""
    beaten: Bool[np.ndarray, "images"]
    """Whether a distractor scores higher at the label's peak: there no threshold keeps it."""
    truth: Bool[np.ndarray, "images"] | None
    """Whether each image really shows it; None where that is not known."""
    threshold: float | None
    """Suggested: present at or above it. None where nothing can be suggested, see `suggested`."""

    def kept(self, threshold: float | int) -> Bool[np.ndarray, "images"]:
        """The presence decision with a threshold, in fp32 as the model takes it."""
        return np.asarray(is_present(self.scores, self.beaten, np.float32(threshold)))

    def curve(
        self,
    ) -> tuple[
        Float[np.ndarray, "thresholds"],
        Float[np.ndarray, "thresholds"],
        Float[np.ndarray, "thresholds"],
    ]:
        """Every threshold that makes a difference, ascending, with its precision and recall.

        Both are 0 to 1. Empty where the truth is not known or no image shows the label.
        """
        if self.truth is None or not self.truth.any():
            return np.zeros(0), np.zeros(0), np.zeros(0)
        thresholds = np.unique(self.scores[~self.beaten].astype(float))
        pairs = [self.at(float(threshold)) for threshold in thresholds]
        precision, recall = np.array(pairs, float).reshape(-1, 2).T
        return thresholds, precision, recall

    def at(self, threshold: float | int | None) -> tuple[float, float]:
        """(precision, recall) of a threshold; NaN where they don't exist."""
        if self.truth is None or threshold is None:
            return float("nan"), float("nan")
        kept = self.kept(threshold)
        right = int((kept & self.truth).sum())
        return (
            right / int(kept.sum()) if kept.any() else float("nan"),
            right / int(self.truth.sum()) if self.truth.any() else float("nan"),
        )

    @property
    def auc(self) -> float:
        """Probability that an image with the label scores above one without it; NaN where that is
        not known."""
        if self.truth is None:
            return float("nan")
        return area_under_curve(self.scores[self.truth], self.scores[~self.truth])


@dataclass(frozen=True)
class Tuning:
    """The scores of all labels on all images that could be read."""

    labels: LabelSet
    """As given, with the thresholds that they had."""
    classes: tuple[ClassScores, ...]
    """In the order of the labels, without distractors."""
    images: tuple[str, ...]
    """POSIX paths relative to the source's root, in the order of the scores."""
    failures: tuple[tuple[str, str], ...]
    """Images that could not be read, with the reason."""

    def __repr__(self) -> str:
        suggested = ", ".join(f"{c.name!r} {c.threshold}" for c in self.classes)
        counts = f"{len(self.images)} images, {len(self.failures)} failed"
        return f"Tuning({counts}, thresholds: {suggested})"

    def label_set(self) -> LabelSet:
        """The labels with the suggested thresholds, to four significant digits; a class without one
        keeps its own."""
        found = {c.name: c.threshold for c in self.classes if c.threshold is not None}
        tuned = tuple(
            replace(c, presence_threshold=float(f"{found[c.name]:.4g}")) if c.name in found else c
            for c in self.labels.classes
        )
        return replace(self.labels, classes=tuned)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the labels with their thresholds as a YAML labels file, whole or not at all.

        Raises:
            OutputError: the file can't be written.
        """
        write_atomically(path, labels_yaml(self.label_set()).encode())

    def show(self) -> Any:
        """Histograms of the scores with thresholds, and precision and recall, as a matplotlib
        Figure."""
        from clip2sam.visualize.thresholds import tuning_figure  # matplotlib is slow to load

        return tuning_figure(self)

    def _repr_jpeg_(self) -> bytes:
        """How a notebook shows it: `show()` as JPEG."""
        return self.show()._repr_jpeg_()


def tune(
    segmenter: Segmenter,
    source: str | os.PathLike[str] | Source,
    labels: LabelsLike | None = None,
    *,
    distractors: Sequence[str] = (),
    root: str | os.PathLike[str] | None = None,
    on_image: Callable[[int, int], Any] = lambda done, of: None,
) -> Tuning:
    """Score every label on every image and suggest a presence threshold for each.

    An image that can't be read, or that the model fails on, is listed in `failures`; the others are
    scored.

    Args:
        segmenter: the models and settings that the labels file will be used with. Labels influence
            each other: give those, and those distractors, that will be used later.
        source: a folder, list, glob or COCO dataset, tars or Parquet files, see
            `clip2sam.data.opening.open_source`, or a `Source` of your own. A COCO dataset brings
            the truth: an image shows the categories of its annotations, and no other.
        labels: as for the segmenter; None: the categories of the COCO dataset. The truth about a
            label that is no category is not known.
        root: the folder that the names in a list or dataset are relative to; by default the one in
            which the file lies.
        on_image: called after each image with the number done, and of how many.

    Raises:
        LabelError: no labels, and no dataset to take them from.
        ImageError: there is no image, or none that can be read.
        RunError: the model failed on several images in a row.
        CocoError: the dataset's categories or annotations can't be read.
    """
    images = source if isinstance(source, Source) else open_source(source, root)
    truth = _read_truth(images)
    if labels is None and truth is None:
        raise LabelError(
            "expected labels, got none; give names or a labels file, or a COCO dataset with "
            "categories"
        )
    label_set = as_label_set(
        truth.names if labels is None and truth else labels or [], distractors=distractors
    )
    table = _score(segmenter, images, label_set, on_image)
    classes = []
    for i, c in enumerate(label_set.wanted):
        scores, beaten = table.scores[:, i], table.beaten[:, i]
        known = None if truth is None else truth.of(c, table.ids)
        found = suggested(scores, known, beaten)
        classes.append(ClassScores(c.name, scores, beaten, known, found))
    return Tuning(label_set, tuple(classes), table.names, table.failures)


@dataclass(frozen=True)
class _Table:
    """What CLIP says of each image that could be read."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
    scores: Float[np.ndarray, "images labels"]
    beaten: Bool[np.ndarray, "images labels"]
    failures: tuple[tuple[str, str], ...]


def _score(
    segmenter: Segmenter, images: Source, labels: LabelSet, on_image: Callable[[int, int], Any]
) -> _Table:
    """Score all labels, distractors included, on every image."""
    read, scores, beaten, failures = [], [], [], []
    in_a_row = ModelFailures()
    for i, key in enumerate(images.keys):
        try:
            image = load_named(images.read(key), key, MAX_PIXELS)
            score, beats = for_one_image(partial(_scored, segmenter, image, labels))
        except ImageError as error:
            failures.append((printable(key), str(error)))
        except ModelError as error:
            failures.append((printable(key), str(error)))
            in_a_row.add(str(error))
        else:
            scores.append(score)
            beaten.append(beats)
            read.append(i)
            in_a_row.clear()
        on_image(i + 1, len(images.keys))
    if not read:
        raise ImageError(
            f"none of {len(failures)} images could be scored; the first: {failures[0][1]}"
        )
    return _Table(
        tuple(images.ids[i] for i in read),
        tuple(printable(images.keys[i]) for i in read),
        np.stack(scores),
        np.stack(beaten),
        tuple(failures),
    )


def _scored(
    segmenter: Segmenter, image: Image, labels: LabelSet
) -> tuple[Float[np.ndarray, "labels"], Bool[np.ndarray, "labels"]]:
    """An image's presence scores, and which labels a distractor beats."""
    (scored,) = segmenter.presence(segmenter.encode([image]), labels)
    return scored


def suggested(
    scores: Float[np.ndarray, "images"],
    truth: Bool[np.ndarray, "images"] | None,
    beaten: Bool[np.ndarray, "images"],
) -> float | None:
    """A presence threshold, half way between two scores.

    With the truth: the highest F1 (of equals, the widest gap between the two scores). Without: the
    largest variance between the two groups (Otsu, 1979,
    https://doi.org/10.1109/TSMC.1979.4310076), on the scores themselves. Images where a distractor
    beats the label are not kept, whatever the threshold.

    Returns:
        None where nothing can be suggested: no image that can be kept shows the label, or all
        scores are equal.
    """
    eligible = np.isfinite(scores) & ~beaten
    values, shown = scores[eligible], None if truth is None else truth[eligible]
    ordered = np.unique(values.astype(float))
    if len(ordered) < 2 or (shown is not None and not shown.any()):
        return None
    cuts, gaps = (ordered[1:] + ordered[:-1]) / 2, np.diff(ordered)
    if truth is None:
        merit = _between_groups(values, cuts)
    else:
        # A cut below all scores, as far from the lowest as the mean gap, keeps everything.
        cuts, gaps = np.append(cuts, ordered[0] - gaps.mean()), np.append(gaps, 0.0)
        kept = values[None] >= cuts[:, None]
        merit = 2 * (kept & shown).sum(axis=1) / (kept.sum(axis=1) + truth.sum())
    return float(cuts[np.lexsort((gaps, merit))[-1]])


def _between_groups(
    values: Float[np.ndarray, "images"], cuts: Float[np.ndarray, "cuts"]
) -> Float[np.ndarray, "cuts"]:
    """Variance between the values above and below each cut."""
    above = values[None] >= cuts[:, None]
    share = above.mean(axis=1)
    high = (above * values).sum(axis=1) / above.sum(axis=1)
    low = (~above * values).sum(axis=1) / (~above).sum(axis=1)
    return share * (1 - share) * (high - low) ** 2


@dataclass(frozen=True)
class _Truth:
    """What a COCO dataset says of its images."""

    names: tuple[str, ...]
    """Of all categories."""
    shown: dict[int, set[str]]
    """Image id -> the categories of its annotations."""

    def of(self, label: LabelClass, ids: Sequence[int]) -> Bool[np.ndarray, "images"] | None:
        """Which of these images show a label; None if neither it is a category nor all parts of a
        joined one are."""
        names = {label.name} if label.name in self.names else {part.name for part in label.parts}
        if not names <= set(self.names):
            return None
        return np.array([not names.isdisjoint(self.shown.get(i, ())) for i in ids])


def _read_truth(images: Source) -> _Truth | None:
    """The truth in the COCO file that the images are listed in; None if it is none."""
    if not isinstance(images, FileSource):
        return None
    if not images.origin.lower().endswith(".json") or os.path.isdir(images.origin):
        return None
    try:
        document = json.loads(Path(images.origin).read_text(encoding="utf-8"))
        names = {c["id"]: c["name"] for c in document["categories"]}
        shown: dict[int, set[str]] = {}
        for annotation in document["annotations"]:
            shown.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CocoError(
            f"{printable(images.origin)}: expected a COCO dataset with categories and "
            f"annotations, but {type(error).__name__}: {error}; see `clip2sam validate`"
        ) from error
    return _Truth(tuple(names.values()), shown)
