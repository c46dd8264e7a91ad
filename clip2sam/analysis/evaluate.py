"""How good it is, stage by stage: predictions against pictures whose truth is known.

Every figure is over pairs of a picture and a label asked of it. "Present" and "absent" are the truth's words,
"kept" is the presence decision's. Masks are decoded for every label, kept or not, to judge the stages apart.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clip2sam.coco.rle import decode_rle
from clip2sam.data.images import Image, load_image
from clip2sam.data.labels import as_label_set
from clip2sam.errors import CocoError
from clip2sam.pipeline import Segmenter
from clip2sam.result import Result
from clip2sam.tiny.scenes import KINDS, instance_masks, requested_labels, scene, split_seed

Mask = Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class Example:
    """A picture with the truth about every label asked of it."""

    image: Image
    truth: Mapping[str, Sequence[Mask]]
    """Label -> its instances' masks; none where the label is absent. The labels are asked in this order."""
    kinds: Mapping[str, str]
    """Label -> the group that its figures are reported under."""


@dataclass(frozen=True)
class Pair:
    """One label asked of one picture."""

    kind: str
    present: bool
    kept: bool
    presence: float
    iou: float = 0.0
    """Of the decoded mask with the union of the truth, kept or not. The figures below are for present labels too."""
    control: float = 0.0
    """The same with the mask that an absent label's map gave: what SAM finds by itself."""
    touches: float = 0.0
    """Whether the top cell of the grid has a pixel of the object in it."""
    centred: float = 0.0
    """Whether the top cell's centre, where the point is set, lies on the object."""
    positives: float = 0.0
    """Share of the positive points that lie on the object."""
    negatives: float = 0.0
    """Share of the negative points that lie off it."""
    map_iou: float = 0.0
    """IoU of the object with the places where the scaled map is at 0.5 or more."""


@dataclass(frozen=True)
class Figures:
    """What `summarise` makes of pairs; shares and means are 0 to 1, NaN where there is nothing to count."""

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
    """The same if the threshold were put where 90 % of the present ones are kept."""
    threshold_at_90: float
    """That threshold."""
    miou: float
    """Mean IoU over present labels, a label that was not kept counting 0."""
    miou_all_kept: float
    """The same if every present label were kept."""
    control: float
    """Mean of `control`, as `miou_all_kept`."""


def scene_examples(split: str, count: int, labels: int = 20, start: int = 0) -> Iterator[Example]:
    """Seeded scenes of 224 x 224, each asked `labels` labels, most of them absent, grouped by kind."""
    for i in range(start, start + count):
        picture = scene(split_seed(split, i))
        asked = requested_labels(picture, labels)
        kinds = {label: kind for kind in KINDS for label in asked[kind]}
        truth = {label: instance_masks(picture, label) for label in kinds}
        yield Example(Image(picture.pixels, f"{split}-{i:06d}.png"), truth, kinds)


def coco_examples(dataset: Path, images: Path) -> Iterator[Example]:
    """The pictures of a COCO data set, each asked all of its categories; crowds count as instances.

    Raises:
        CocoError: the file is no COCO data set.
        ImageError: a picture can't be read.
    """
    with redirect_stdout(StringIO()):  # pycocotools prints
        try:
            coco = COCO(str(dataset))
            categories = {c["id"]: c["name"] for c in coco.dataset["categories"]}
        except (OSError, ValueError, KeyError, AssertionError) as error:
            raise CocoError(
                f"{dataset} is no COCO data set: {error}; see `clip2sam validate`"
            ) from error
    kinds = dict.fromkeys(categories.values(), "all")
    for record in coco.imgs.values():
        truth: dict[str, list[Mask]] = {name: [] for name in categories.values()}
        for annotation in coco.imgToAnns[record["id"]]:
            rle = coco.annToRLE(annotation)  # counts are bytes, or text where the file had them
            counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode()
            mask = decode_rle({"size": [int(n) for n in rle["size"]], "counts": counts})
            truth[categories[annotation["category_id"]]].append(mask)
        yield Example(load_image(images / record["file_name"]), truth, kinds)


def evaluate(
    segmenter: Segmenter, examples: Iterable[Example], on_example: Callable[[], Any] = lambda: None
) -> dict[str, Any]:
    """Run the pipeline over examples and judge it.

    Returns:
        {"kinds": {kind: Figures as a dict}, "all": Figures as a dict, "coco": {"AP", "AP50", "AR"}}: AP over masks,
        each label's one mask against its instances.
    """
    everything = segmenter.with_config(presence=-np.inf)
    pairs: list[Pair] = []
    table = CocoTable()
    for example in examples:
        labels = as_label_set(list(example.truth))
        result = everything(example.image, labels)
        kept = segmenter.presence_of(result)
        pairs += compare(example, result, kept)
        table.add(example, result, kept)
        on_example()
    kinds = list(dict.fromkeys(p.kind for p in pairs))
    return {
        "kinds": {kind: asdict(summarise([p for p in pairs if p.kind == kind])) for kind in kinds},
        "all": asdict(summarise(pairs)),
        "coco": table.figures(),
    }


def compare(example: Example, result: Result, kept: Bool[np.ndarray, "labels"]) -> list[Pair]:
    """Hold one picture's result against its truth."""
    masks = dict(zip(result.labels, result.masks, strict=True))
    points = dict(zip(result.labels, result.points, strict=True))
    absent = [name for name in result.class_names if not example.truth[name]]
    pairs = []
    for i, name in enumerate(result.class_names):
        kind, presence = example.kinds[name], float(result.presence[i])
        if not example.truth[name]:
            pairs.append(Pair(kind, False, bool(kept[i]), presence))
            continue
        truth = np.any(example.truth[name], axis=0)
        empty = np.zeros_like(truth)
        other = absent[i % len(absent)] if absent else ""
        touches, centred = pointing(result.grids[i], truth)
        on, off = point_shares(points.get(name), truth)
        pairs.append(
            Pair(
                kind,
                True,
                bool(kept[i]),
                presence,
                iou(masks.get(name, empty), truth),
                iou(masks.get(other, empty), truth),
                touches,
                centred,
                on,
                off,
                map_iou(result.maps[i], truth),
            )
        )
    return pairs


def iou(mask: Mask, truth: Mask) -> float:
    """Intersection over union; 0 for two empty masks."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else 0.0


def pointing(grid: Float[np.ndarray, "rows cols"], truth: Mask) -> tuple[float, float]:
    """Whether the grid's top cell has a pixel of the object in it, and whether its centre is on it."""
    row, col = np.unravel_index(int(np.nan_to_num(grid, nan=-1.0).argmax()), grid.shape)
    tall, wide = truth.shape[0] / grid.shape[0], truth.shape[1] / grid.shape[1]
    cell = truth[
        int(row * tall) : int(np.ceil((row + 1) * tall)),
        int(col * wide) : int(np.ceil((col + 1) * wide)),
    ]
    return float(cell.any()), float(truth[int((row + 0.5) * tall), int((col + 0.5) * wide)])


def point_shares(points: Float[np.ndarray, "points 3"] | None, truth: Mask) -> tuple[float, float]:
    """Share of the positive points on the object, and of the negative ones off it; 0 where there are none."""
    if points is None:
        return 0.0, 0.0
    on = truth[points[:, 1].astype(int), points[:, 0].astype(int)]
    positive = points[:, 2] == 1
    hits, misses = on[positive], ~on[~positive]
    return float(hits.mean()) if len(hits) else 0.0, float(misses.mean()) if len(misses) else 0.0


def map_iou(raw: Float[np.ndarray, "rows cols"], truth: Mask) -> float:
    """IoU of the object with the scaled map's upper half, at the picture's size."""
    spread = float(np.ptp(raw))
    if not np.isfinite(spread) or spread == 0:
        return 0.0
    heat = cv2.resize((raw - raw.min()) / spread, truth.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return iou(heat >= 0.5, truth)


def area_under_curve(
    positive: Float[np.ndarray, "some"], negative: Float[np.ndarray, "others"]
) -> float:
    """Probability that a positive scores above a negative, ties counting half; NaN where one side is empty."""
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = np.sort(negative)
    below, not_above = (
        np.searchsorted(ordered, positive, "left"),
        np.searchsorted(ordered, positive, "right"),
    )
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
    """Truth and predictions gathered for pycocotools."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.images: list[dict[str, Any]] = []
        self.truth: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []

    def add(self, example: Example, result: Result, kept: Bool[np.ndarray, "labels"]) -> None:
        """Add one picture: every instance of its truth, and the masks of the labels that were kept."""
        height, width = example.image.size
        image = {
            "id": len(self.images) + 1,
            "height": height,
            "width": width,
            "file_name": example.image.origin,
        }
        self.images.append(image)
        for name, instances in example.truth.items():
            category = self.names.setdefault(name, len(self.names) + 1)
            for mask in instances:
                rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
                self.truth.append(
                    {
                        "id": len(self.truth) + 1,
                        "image_id": image["id"],
                        "category_id": category,
                        "segmentation": rle,
                        "area": float(mask_utils.area(rle)),
                        "bbox": mask_utils.toBbox(rle).tolist(),
                        "iscrowd": 0,
                    }
                )
        for annotation, i in zip(result.annotations, result.label_indices, strict=True):
            if kept[i]:
                row = {"image_id": image["id"], "category_id": self.names[annotation.label]}
                self.found.append(
                    {**row, "segmentation": annotation.rle, "score": annotation.score}
                )

    def figures(self) -> dict[str, float]:
        """AP (IoU .50 to .95), AP50 and AR (100 a picture) of the masks; 0 where nothing was found."""
        if not self.found or not self.truth:
            return {"AP": 0.0, "AP50": 0.0, "AR": 0.0}
        with redirect_stdout(StringIO()):
            coco = COCO()
            coco.dataset = {
                "images": self.images,
                "annotations": self.truth,
                "categories": [{"id": i, "name": n} for n, i in self.names.items()],
            }
            coco.createIndex()
            judge = COCOeval(coco, coco.loadRes(self.found), "segm")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        return {
            "AP": float(judge.stats[0]),
            "AP50": float(judge.stats[1]),
            "AR": float(judge.stats[8]),
        }
