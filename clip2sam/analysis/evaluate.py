"""How good it is, stage by stage: predictions against images whose truth is known.

Every figure is over pairs of an image and a label. "Present" and "absent" are the truth, "kept" is
the presence decision. Every label is decoded, kept or not, so that each stage is judged by itself.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clip2sam.coco.rle import area_and_box, decode_rle, encode_mask
from clip2sam.data.images import Image, load_image
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.data.presence import recorded_presence
from clip2sam.data.sources import checked_key, locate
from clip2sam.errors import CocoError, LabelError
from clip2sam.pipeline import LabelsLike, Segmenter
from clip2sam.result import Result
from clip2sam.tiny.scenes import (
    KINDS,
    all_labels,
    instance_masks,
    requested_labels,
    scene,
    split_seed,
)

Mask = Bool[np.ndarray, "height width"]
Kept = Bool[np.ndarray, "labels"]
"""The presence decision for each label of an image."""


@dataclass(frozen=True)
class Example:
    """An image and what is known of it."""

    image: Image
    truth: Mapping[str, Sequence[Mask]]
    """Label -> its instances' masks, for every label whose truth is known; no mask where the label
    is absent."""
    kinds: Mapping[str, str]
    """Label -> the group that its figures are reported under."""
    requested: tuple[str, ...]
    """The labels to evaluate when no others are given, in this order."""


@dataclass(frozen=True)
class Pair:
    """One label of one image."""

    kind: str
    present: bool
    kept: bool
    presence: float
    iou: float = 0.0
    """Of the label's mask, kept or not, with the union of the truth. This figure and those below
    are for present labels only."""
    control: float = 0.0
    """The same with the mask of an absent label: what SAM finds without the right label."""
    touches: float = 0.0
    """1 if the top cell of the grid has a pixel of the object in it."""
    centred: float = 0.0
    """1 if the top cell's centre, where the point is set, lies on the object."""
    positives: float = 0.0
    """Share of the positive points that lie on the object."""
    negatives: float = 0.0
    """Share of the negative points that lie off it."""
    map_iou: float = 0.0
    """IoU of the object with the part of the image where the scaled map is at 0.5 or more."""


@dataclass(frozen=True)
class Figures:
    """What `summarise` makes of pairs. Shares and means are 0 to 1, NaN where there is no pair."""

    pairs: int
    present: int
    pointing: float
    """Mean of `touches`: the pointing game."""
    centred: float
    positives: float
    negatives: float
    map_iou: float
    presence_auc: float
    presence_precision: float
    presence_recall: float
    false_masks: float
    """Share of the absent labels that were kept."""
    false_at_90: float
    """The same at the threshold that keeps 90 % of the present labels."""
    threshold_at_90: float
    """That threshold."""
    miou: float
    """Mean IoU over present labels; 0 for a label that was not kept."""
    miou_all_kept: float
    """The same if every present label were kept."""
    control: float
    """Mean of `control`, as `miou_all_kept`."""


def scene_examples(split: str, count: int, labels: int = 20, start: int = 0) -> Iterator[Example]:
    """Seeded scenes of 224 x 224, grouped by the kind of label. The truth is known of every label
    of `clip2sam.tiny.scenes.all_labels`; `labels` of them are requested, most of them absent."""
    kinds = {label: kind for kind in KINDS for label in all_labels(kind)}
    for i in range(start, start + count):
        drawn = scene(split_seed(split, i))
        requested = requested_labels(drawn, labels)
        truth = {label: instance_masks(drawn, label) for label in kinds}
        yield Example(
            Image(drawn.pixels, f"{split}-{i:06d}.png"),
            truth,
            kinds,
            tuple(label for kind in KINDS for label in requested[kind]),
        )


def coco_examples(dataset: Path, images: Path) -> Iterator[Example]:
    """The images of a COCO dataset, with all of its categories; crowds count as instances.

    Args:
        dataset: the .json file.
        images: the folder that its file names are relative to.

    Raises:
        CocoError: the file is no COCO dataset.
        ImageError: an image can't be read, or its name leads out of the folder.
    """
    with redirect_stdout(StringIO()):  # pycocotools prints
        try:
            coco = COCO(str(dataset))
            categories = {c["id"]: c["name"] for c in coco.dataset["categories"]}
        except (OSError, ValueError, KeyError, AssertionError) as error:
            raise CocoError(
                f"{dataset} is no COCO dataset: {error}; see `clip2sam validate`"
            ) from error
    names = tuple(categories.values())
    kinds = dict.fromkeys(names, "all")
    for record in coco.imgs.values():
        truth: dict[str, list[Mask]] = {name: [] for name in names}
        for annotation in coco.imgToAnns[record["id"]]:
            truth[categories[annotation["category_id"]]].append(_mask(coco, annotation))
        key = checked_key(record["file_name"], f"{dataset}, image {record['id']}")
        yield Example(load_image(locate(str(images), key)), truth, kinds, names)


def _mask(coco: COCO, annotation: dict[str, Any]) -> Mask:
    """An annotation's mask, be it polygons or RLE."""
    rle = coco.annToRLE(annotation)  # counts are bytes, or text where the file has RLE
    counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode()
    return decode_rle({"size": [int(n) for n in rle["size"]], "counts": counts})


def evaluate(
    segmenter: Segmenter,
    examples: Iterable[Example],
    labels: LabelsLike | None = None,
    distractors: Sequence[str] = (),
    on_example: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """Run the pipeline over examples and compare with the truth.

    Args:
        segmenter: the models, and the settings that the presence decision is taken with.
        labels: as for the segmenter; a label's own threshold and synonyms are used. Their names are
            those of the truth. None: the labels that each example requests.
        distractors: names that compete with the labels. A label that one of them beats is not kept.
        on_example: called after each example.

    Returns:
        {"kinds": {kind: Figures as a dict}, "all": Figures as a dict, "coco": {"AP", "AP50",
        "AR"}}: AP over masks, each label's mask against its instances.

    Raises:
        LabelError: the truth about a label is not known.
    """
    everything = segmenter.with_config(presence_threshold=None)
    given = None if labels is None else as_label_set(labels, distractors=distractors)
    pairs: list[Pair] = []
    table = CocoTable()
    for example in examples:
        label_set = given or _requested(example, distractors)
        _check_truth(label_set, example)
        result = everything(example.image, _without_thresholds(label_set))
        kept = decided(result, label_set.thresholds(segmenter.config.presence_threshold))
        pairs += compare(example, result, kept)
        table.add(example, result, kept)
        on_example()
    kinds = list(dict.fromkeys(p.kind for p in pairs))
    return {
        "kinds": {kind: asdict(summarise([p for p in pairs if p.kind == kind])) for kind in kinds},
        "all": asdict(summarise(pairs)),
        "coco": table.figures(),
    }


def _requested(example: Example, distractors: Sequence[str]) -> LabelSet:
    """The example's own labels. A distractor that is one of them is a label."""
    competing = [name for name in distractors if name not in example.requested]
    return as_label_set(example.requested, distractors=competing)


def _check_truth(labels: LabelSet, example: Example) -> None:
    unknown = [c.name for c in labels.wanted if c.name not in example.truth]
    if unknown:
        known = ", ".join(repr(name) for name in list(example.truth)[:8])
        more = f" and {len(example.truth) - 8} more" if len(example.truth) > 8 else ""
        raise LabelError(
            f"expected labels whose truth is known, {known}{more}, got {unknown[0]!r}; "
            "name it as the dataset does (and give its text prompts), or leave it out"
        )


def _without_thresholds(labels: LabelSet) -> LabelSet:
    classes = tuple(replace(c, presence_threshold=None) for c in labels.classes)
    return replace(labels, classes=classes)


def decided(result: Result, thresholds: Sequence[float | None]) -> Kept:
    """The presence decision that these thresholds give for a result made with others.

    Args:
        thresholds: of each class, in the order of the labels; those of distractors may follow.
    """
    record = result.record
    return recorded_presence(record.presence, record.beaten, thresholds[: len(record.presence)])


def compare(example: Example, result: Result, kept: Kept) -> list[Pair]:
    """Compare one image's result with its truth."""
    absent = [i for i, name in enumerate(result.class_names) if not example.truth[name]]
    pairs = []
    for i, name in enumerate(result.class_names):
        stages: dict[str, float] = {}
        if instances := example.truth[name]:
            control = absent[i % len(absent)] if absent else None
            stages = _judge(result, i, np.any(instances, axis=0), control)
        pairs.append(
            Pair(
                example.kinds[name],
                bool(instances),
                bool(kept[i]),
                float(result.presence[i]),
                **stages,
            )
        )
    return pairs


def _judge(result: Result, index: int, truth: Mask, control: int | None) -> dict[str, float]:
    """The figures of each stage for one present label.

    Args:
        index: the label.
        truth: the union of its instances.
        control: an absent label; None: there is none.
    """
    touches, centred = pointing(result.grids[index], truth)
    mine = np.flatnonzero(result.label_indices == index)
    points = np.concatenate([np.zeros((0, 3), np.float32), *(result.points[i] for i in mine)])
    on, off = point_shares(points, truth)
    return {
        "iou": iou(_union(result, index), truth),
        "control": 0.0 if control is None else iou(_union(result, control), truth),
        "touches": touches,
        "centred": centred,
        "positives": on,
        "negatives": off,
        "map_iou": map_iou(result.maps[index], truth),
    }


def _union(result: Result, index: int) -> Mask:
    """All pixels of a label's masks."""
    return np.asarray(result.masks[result.label_indices == index].any(axis=0))


def iou(mask: Mask, truth: Mask) -> float:
    """Intersection over union; 0 for two empty masks."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else 0.0


def pointing(grid: Float[np.ndarray, "rows cols"], truth: Mask) -> tuple[float, float]:
    """Whether the grid's top cell has a pixel of the object in it, and whether its centre is on the
    object: 1 or 0."""
    row, col = np.unravel_index(int(np.nan_to_num(grid, nan=-1.0).argmax()), grid.shape)
    tall, wide = truth.shape[0] / grid.shape[0], truth.shape[1] / grid.shape[1]
    cell = truth[
        int(row * tall) : int(np.ceil((row + 1) * tall)),
        int(col * wide) : int(np.ceil((col + 1) * wide)),
    ]
    return float(cell.any()), float(truth[int((row + 0.5) * tall), int((col + 0.5) * wide)])


def point_shares(points: Float[np.ndarray, "_ 3"], truth: Mask) -> tuple[float, float]:
    """Share of the positive points on the object, and of the negative ones off it; 0 for no point.

    Args:
        points: x, y in continuous pixels, and 1 (positive) or 0 (negative).
    """
    on = truth[points[:, 1].astype(int), points[:, 0].astype(int)]
    positive = points[:, 2] == 1
    hits, misses = on[positive], ~on[~positive]
    return float(hits.mean()) if len(hits) else 0.0, float(misses.mean()) if len(misses) else 0.0


def map_iou(raw: Float[np.ndarray, "rows cols"], truth: Mask) -> float:
    """IoU of the object with the pixels where the scaled and resized map is at 0.5 or more."""
    spread = float(np.ptp(raw))
    if not np.isfinite(spread) or spread == 0:
        return 0.0
    heat = cv2.resize((raw - raw.min()) / spread, truth.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return iou(heat >= 0.5, truth)


def area_under_curve(
    positive: Float[np.ndarray, "some"], negative: Float[np.ndarray, "others"]
) -> float:
    """Probability that a positive scores above a negative, ties counting half; NaN if one side is
    empty."""
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    not_above = np.searchsorted(ordered, positive, "right")
    return float((below + not_above).mean() / 2 / len(negative))


def summarise(pairs: Sequence[Pair]) -> Figures:
    """The figures of some pairs."""
    present, absent = [p for p in pairs if p.present], [p for p in pairs if not p.present]
    scores, others = (np.array([p.presence for p in side], float) for side in (present, absent))
    kept_present, kept_absent = sum(p.kept for p in present), sum(p.kept for p in absent)
    at_90 = float(np.quantile(scores, 0.1, method="lower")) if present else float("nan")

    def mean(values: Iterable[Any]) -> float:
        gathered = list(values)
        return float(np.mean(gathered)) if gathered else float("nan")

    return Figures(
        pairs=len(pairs),
        present=len(present),
        pointing=mean(p.touches for p in present),
        centred=mean(p.centred for p in present),
        positives=mean(p.positives for p in present),
        negatives=mean(p.negatives for p in present),
        map_iou=mean(p.map_iou for p in present),
        presence_auc=area_under_curve(scores, others),
        presence_precision=kept_present / max(kept_present + kept_absent, 1),
        presence_recall=mean(p.kept for p in present),
        false_masks=mean(p.kept for p in absent),
        false_at_90=mean(others >= at_90),
        threshold_at_90=at_90,
        miou=mean(p.iou * p.kept for p in present),
        miou_all_kept=mean(p.iou for p in present),
        control=mean(p.control for p in present),
    )


class CocoTable:
    """Truth and predictions in the form that pycocotools evaluates."""

    def __init__(self) -> None:
        self._categories: dict[str, int] = {}
        self._images: list[dict[str, Any]] = []
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def add(self, example: Example, result: Result, kept: Kept) -> None:
        """Add one image: all instances of its labels, and the masks of the labels that are kept."""
        height, width = example.image.size
        image_id = len(self._images) + 1
        self._images.append(
            {"id": image_id, "height": height, "width": width, "file_name": example.image.origin}
        )
        for name in result.class_names:
            self._categories.setdefault(name, len(self._categories) + 1)
            self._truth += [self._truth_row(image_id, name, mask) for mask in example.truth[name]]
        for annotation, i in zip(result.annotations, result.label_indices, strict=True):
            if kept[i]:
                self._found.append(
                    {
                        "image_id": image_id,
                        "category_id": self._categories[annotation.label],
                        "segmentation": annotation.rle,
                        "score": annotation.score,
                    }
                )

    def _truth_row(self, image_id: int, name: str, mask: Mask) -> dict[str, Any]:
        rle = encode_mask(mask)
        area, box = area_and_box(rle)
        return {
            "image_id": image_id,
            "category_id": self._categories[name],
            "segmentation": rle,
            "area": float(area),
            "bbox": box,
            "iscrowd": 0,
        }

    def figures(self) -> dict[str, float]:
        """AP (IoU .50 to .95), AP50 and AR (100 an image) of the masks; 0 without predictions."""
        if not self._found or not self._truth:
            return {"AP": 0.0, "AP50": 0.0, "AR": 0.0}
        with redirect_stdout(StringIO()):
            coco = COCO()
            coco.dataset = {
                "images": self._images,
                "annotations": [{"id": i, **row} for i, row in enumerate(self._truth, 1)],
                "categories": [{"id": i, "name": n} for n, i in self._categories.items()],
            }
            coco.createIndex()
            judge = COCOeval(coco, coco.loadRes(self._found), "segm")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        return {
            "AP": float(judge.stats[0]),
            "AP50": float(judge.stats[1]),
            "AR": float(judge.stats[8]),
        }
