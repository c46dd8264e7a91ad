"""How good it is, stage by stage: predictions against images whose truth is known.

Every label is decoded, kept or not, so that each stage is judged by itself. The figures and their
meaning are in `figures.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clip2sam.analysis.examples import Example, Mask
from clip2sam.analysis.figures import (
    Kept,
    Pair,
    class_figures,
    compare,
    decided,
    object_figures,
    summarise,
)
from clip2sam.coco.rle import area_and_box, encode_mask
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.errors import ModelError
from clip2sam.labelling.failures import MODEL_FAILURES
from clip2sam.pipeline import LabelsLike, Segmenter
from clip2sam.result import Result


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
        "AR"}, "objects": see `object_figures`, "classes": {label: see `class_figures`},
        "failures": [[image, reason], ...]}. The AP of
        "coco" is the mean over categories, as COCO has it: rare labels count as much as frequent
        ones. That of "objects" is over all pairs of an image and a label. Both take each mask
        against its label's instances, and masks of absent labels are wrong in both; "coco" leaves
        out a category without any instance in the dataset. Images on which the model fails are in
        "failures" only.

    Raises:
        LabelError: the truth about a label is not known.
        ModelError: the model fails on MODEL_FAILURES images in a row, or on all.
    """
    everything = segmenter.with_config(presence_threshold=None)
    given = None if labels is None else as_label_set(labels, distractors=distractors)
    images: list[list[Pair]] = []
    of_class: dict[str, list[Pair]] = {}
    thresholds: dict[str, float | None] = {}
    table = CocoTable()
    failures = Failures()
    for example in examples:
        label_set = example.labels(given, distractors)
        example = example.joined(label_set)
        with failures.of(example):
            default = segmenter.config.presence_threshold
            result = everything(example.image, without_thresholds(label_set, default))
            own = label_set.thresholds(default)
            kept = decided(result, own)
            images.append(compare(example, result, kept))
            for name, pair in zip(result.class_names, images[-1], strict=True):
                of_class.setdefault(name, []).append(pair)
            thresholds |= zip((c.name for c in label_set.classes), own, strict=True)
            table.add(example, result, kept)
        on_example()
    failures.check(len(images))
    pairs = [pair for image in images for pair in image]
    kinds = list(dict.fromkeys(p.kind for p in pairs))
    return {
        "kinds": {kind: asdict(summarise([p for p in pairs if p.kind == kind])) for kind in kinds},
        "all": asdict(summarise(pairs)),
        "coco": table.figures(),
        "objects": object_figures(images),
        "classes": {n: class_figures(own, thresholds[n]) for n, own in of_class.items()},
        "failures": failures.found,
    }


class Failures:
    """The images on which a model failed."""

    def __init__(self) -> None:
        self.found: list[list[str]] = []
        """Each image's origin and the reason."""
        self._in_a_row = 0

    @contextmanager
    def of(self, example: Example) -> Iterator[None]:
        """Count a failure on this example, and go on.

        Raises:
            ModelError: it is the last of MODEL_FAILURES in a row.
        """
        try:
            yield
            self._in_a_row = 0
        except ModelError as error:
            self.found.append([example.image.origin, str(error)])
            self._in_a_row += 1
            if self._in_a_row == MODEL_FAILURES:
                raise ModelError(f"{error} ({MODEL_FAILURES} images in a row failed)") from error

    def check(self, judged: int) -> None:
        """Raise the last failure if no image was judged."""
        if self.found and not judged:
            raise ModelError(self.found[-1][1])


def without_thresholds(labels: LabelSet, default: float | None) -> LabelSet:
    """The labels, none with a threshold of its own: what decodes all of them. But for joined ones:
    without a threshold all their parts would be in their mask, so that an absent one has none.

    Args:
        default: the settings' presence threshold.
    """
    own = zip(labels.classes, labels.thresholds(default), strict=True)
    classes = tuple(replace(c, presence_threshold=t if c.joined else None) for c, t in own)
    return replace(labels, classes=classes)


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
