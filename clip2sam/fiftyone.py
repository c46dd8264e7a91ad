"""clip2sam in FiftyOne: a model for its `apply_model`, and a run as a dataset.

    import clip2sam
    from clip2sam.fiftyone import SegmenterModel, load_dataset

    model = SegmenterModel(clip2sam.load("vit-h"), ["person", "traffic light"])
    dataset.apply_model(model, label_field="clip2sam", batch_size=8)

    dataset = load_dataset("run/")

Boxes and points are parts of the image's width and height there, and a mask is cut to its box.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from clip2sam.coco.rle import area_and_box, decode_rle
from clip2sam.data.images import Image, ImageSource, load_image, printable
from clip2sam.data.labels import LabelsSource, as_label_set
from clip2sam.data.presence import recorded_presence
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.errors import ConfigError, ImageError, ModelError
from clip2sam.labelling.content import Content, open_content
from clip2sam.labelling.decide import Decision, decide, decided_for, decided_thresholds
from clip2sam.labelling.failures import for_one_image, is_refusal
from clip2sam.labelling.info import run_info
from clip2sam.labelling.manifest import RunFolder
from clip2sam.pipeline import Segmenter
from clip2sam.result import Result

try:
    import fiftyone as fo
    from fiftyone.core.models import Model, SupportsGetItem, TorchModelMixin
    from fiftyone.utils.torch import GetItem
except ModuleNotFoundError as error:
    if error.name != "fiftyone":  # something that it needs: its own message says more
        raise
    fo = None
    Model, SupportsGetItem, TorchModelMixin, GetItem = (type("Missing", (), {}) for _ in range(4))

log = logging.getLogger(__name__)

KINDS = {0: "negative", 1: "positive", 2: "box", 3: "box"}
"""Of prompts' points, see `Annotation.points`; a box is its upper left and its lower right corner.
"""

NUDGE = 1e-6
"""Pixels by which boxes are moved. FiftyOne takes the whole part of a pixel's place: 25.999999, of
26, would be a box from 25 on, and the mask would be stretched to it."""


def check_installed() -> None:
    """Refuse to begin without FiftyOne.

    Raises:
        ConfigError: it is not installed.
    """
    if fo is None:
        raise ConfigError(
            "clip2sam.fiftyone needs the package fiftyone: pip install 'clip2sam[fiftyone]'"
        )


# -- what FiftyOne's labels are made of


def cut_to_box(rle: dict[str, Any]) -> tuple[list[float], Bool[np.ndarray, "rows cols"]]:
    """A mask as FiftyOne has it.

    Args:
        rle: of a mask with a pixel.

    Returns:
        The box around its pixels, x, y, width and height as parts of the image's; and the mask
        within the box.

    Raises:
        CocoError: the RLE is damaged.
    """
    height, width = rle["size"]
    _, (x, y, wide, high) = area_and_box(rle)
    left, top = (x + NUDGE) / width, (y + NUDGE) / height
    right = min((x + wide + NUDGE) / width, 1.0)
    bottom = min((y + high + NUDGE) / height, 1.0)
    box = [left, top, right - left, bottom - top]
    return box, np.ascontiguousarray(decode_rle(rle)[y : y + high, x : x + wide])


def detection_row(annotation: Annotation, number: int, presence: float | None) -> dict[str, Any]:
    """The fields of a mask's `fiftyone.Detection`: its own ones, and what COCO files have beside
    theirs, see `clip2sam.coco.document.annotation_row`.

    Args:
        number: the mask's in its image, from 1.
        presence: its label's presence score.
    """
    box, mask = cut_to_box(annotation.rle)
    return {
        "label": annotation.label,
        "bounding_box": box,
        "mask": mask,
        "confidence": annotation.score,
        "index": number,
        "share": annotation.share,
        "presence": presence,
        "prompt": [list(map(float, point)) for point in annotation.points],
    }


def keypoint_rows(annotation: Annotation, number: int) -> list[dict[str, Any]]:
    """The fields of `fiftyone.Keypoint` for a mask's prompt: one for each kind of points in it.

    Args:
        number: the mask's in its image, from 1.
    """
    height, width = annotation.rle["size"]
    kinds = dict.fromkeys(KINDS[kind] for *_, kind in annotation.points)
    return [
        {
            "label": annotation.label,
            "points": [
                (x / width, y / height) for x, y, k in annotation.points if KINDS[k] == kind
            ],
            "kind": kind,
            "index": number,
        }
        for kind in kinds
    ]


def presence_rows(
    record: ImageRecord, classes: Sequence[str], thresholds: Sequence[float | None]
) -> list[dict[str, Any]]:
    """The fields of `fiftyone.Classification` for each class: its presence score as confidence,
    whether that makes it present, whether a distractor beats it, its threshold. Classes that are
    left out, by an infinite threshold, are left out here."""
    present = recorded_presence(record.presence, record.beaten, thresholds)
    columns = zip(classes, record.presence, record.beaten, thresholds, present, strict=True)
    return [
        {
            "label": name,
            "confidence": score,
            "present": bool(decided),
            "beaten": beaten,
            "threshold": threshold,
        }
        for name, score, beaten, threshold, decided in columns
        if threshold != float("inf")
    ]


# -- the model


@dataclass(frozen=True)
class Unreadable:
    """In the place of an image. FiftyOne would drop a whole batch for an error in it."""

    reason: str


class ReadImage(GetItem):
    """Reads a sample's image as everything in clip2sam does: upright, transparent pixels on white.
    Called in the processes that read ahead."""

    @property
    def required_keys(self) -> list[str]:
        """What it needs of a sample."""
        return ["filepath"]

    def __call__(self, fields: dict[str, Any]) -> Image | Unreadable:
        return read(fields["filepath"])


def read(source: ImageSource) -> Image | Unreadable:
    """An image, or why there is none."""
    try:
        return load_image(source)
    except ImageError as error:
        return Unreadable(str(error))


class SegmenterModel(Model, SupportsGetItem, TorchModelMixin):
    """A segmenter and labels as a model of FiftyOne.

    An image that can't be read, or that the model fails on, costs that image: a warning is logged,
    and the field stays empty there, whatever `skip_failures` is. An image without any of the labels
    has `Detections` without a detection.

    Args:
        segmenter: as `clip2sam.load` gives it.
        labels, distractors: as for `as_label_set`.

    Raises:
        ConfigError: FiftyOne is not installed.
        LabelError: a label that can't be used.
    """

    media_type = "image"
    ragged_batches = False  # which is to say: images of different sizes may come together
    transforms = None
    preprocess = False
    has_collate_fn = True
    config = None

    def __init__(
        self, segmenter: Segmenter, labels: LabelsSource, *, distractors: Sequence[str] = ()
    ) -> None:
        check_installed()
        self._segmenter = segmenter
        self._labels = as_label_set(labels, distractors=distractors)
        self._using_gpu = False  # FiftyOne asks where it would pin tensors: there are none
        segmenter.look_at(self._labels)

    @staticmethod
    def collate_fn(batch: list[Any]) -> list[Any]:
        """A batch as it is."""
        return batch

    def build_get_item(self, field_mapping: dict[str, str] | None = None) -> ReadImage:
        """What reads a sample's image."""
        return ReadImage(field_mapping=field_mapping)

    def predict(self, arg: Any) -> Any:
        """`predict_all` of one image."""
        return self.predict_all([arg])[0]

    def predict_all(self, args: Iterable[Any]) -> list[Any]:
        """`fiftyone.Detections` for each image; None for one that failed.

        Args:
            args: RGB arrays (height, width, 3), or whatever else `load_image` takes.
        """
        images = [arg if isinstance(arg, Unreadable) else read(arg) for arg in args]
        results = iter(self._results([i for i in images if isinstance(i, Image)]))
        found: list[Any] = []
        for image in images:
            result = image if isinstance(image, Unreadable) else next(results)
            if isinstance(result, Unreadable):
                log.warning("no labels: %s", result.reason)
                found.append(None)
            else:
                found.append(detections(result.record, result.class_names))
        return found

    def _results(self, images: list[Image]) -> list[Result | Unreadable]:
        """All together; where that fails, one by one."""
        if len(images) > 1:
            try:
                return [*self._segment(images)]
            except Exception as error:
                if is_refusal(error):
                    raise
        return [self._result(image) for image in images]

    def _result(self, image: Image) -> Result | Unreadable:
        try:
            return for_one_image(partial(self._segment, [image]))[0]
        except ModelError as error:
            return Unreadable(f"{image.origin}: {error}")

    def _segment(self, images: list[Image]) -> list[Result]:
        return self._segmenter.segment(self._segmenter.encode(images), self._labels)


def detections(record: ImageRecord, classes: Sequence[str]) -> Any:
    """A record's masks as `fiftyone.Detections`.

    Args:
        classes: the names of all classes asked for.
    """
    scores = dict(zip(classes, record.presence, strict=True))
    rows = [detection_row(a, n, scores[a.label]) for n, a in enumerate(record.annotations, 1)]
    return fo.Detections(detections=[fo.Detection(**row) for row in rows])


# -- a run


def load_dataset(
    run: str | os.PathLike[str], name: str | None = None, *, decision: Decision | None = None
) -> Any:
    """A run, finished or not, as a new dataset of FiftyOne; the images stay where they are.

    Each recorded image is a sample, with the fields `clip2sam` (`Detections`, None for an image
    that failed), `presence` (`Classifications`: every class's presence score, and whether it is
    present), `absent` (the labels without a mask), `prompts` (`Keypoints`; `index` is that of
    their mask), `state` (done, empty or failed), `reason` (why it failed) and `image_id` (COCO's).
    Failed ones have the tag "failed", those that a person has decided on the verdict: "accepted",
    "corrected" or "rejected", see `Review`; rejected ones have their masks here. `dataset.info`
    says what was asked.

    Args:
        run: the output folder of `label_dataset`, whole or in shards. It is only read.
        name: the dataset's; by default FiftyOne makes one up. Datasets are not persistent unless
            you make them so.
        decision: which masks are kept; by default those that the run itself decided to keep.

    Returns:
        A `fiftyone.Dataset`.

    Raises:
        ConfigError: FiftyOne is not installed; the run's images are not files on a disk; or the
            decision doesn't fit the run.
        ImageError: an image's name is not UTF-8.
        RunError: the folder is no run, its parts don't belong together, or no line of a journal can
            be read. Where some can't, a `UserWarning` says how many were passed over.
    """
    check_installed()
    content = open_content(Path(run))
    _check_files(content.run)
    content.check_lines()
    rows = _sample_rows(content, decision or Decision())
    dataset = fo.Dataset(name)
    try:
        samples = (fo.Sample(**fields) for fields in rows)
        dataset.add_samples(samples, dynamic=True, num_samples=content.images)
        dataset.default_classes = list(content.run.class_names)
        dataset.info = _info(content.run, decision)
        # the App would write the names of all classes over each image
        dataset.app_config.active_fields = fo.ActiveFields(paths=["clip2sam", "prompts"])
        dataset.save()
    except BaseException:
        dataset.delete()
        raise
    return dataset


def _check_files(run: RunFolder) -> None:
    if run.kind != "files" or run.root is None:
        kind = "an object of your own" if run.kind is None else f"a source of the kind {run.kind}"
        raise ConfigError(
            f"{printable(run.path)}: its images come from {kind}, but FiftyOne opens images by "
            "their paths on a disk; write them out as files, beside their labels, with `clip2sam "
            "export RUN --format yolo --images copy`, and open that"
        )


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ImageError(
            f"{printable(name)}: this name is not UTF-8, and FiftyOne's database takes no other; "
            "rename the file, and label into a new folder"
        ) from error


def _sample_rows(content: Content, decision: Decision) -> Iterator[dict[str, Any]]:
    """The fields of each image's `fiftyone.Sample`."""
    decision = decided_for(content.run, decision)
    thresholds = decided_thresholds(content.run, decision)
    names = content.run.class_names
    for run, records in content.records_of_parts():
        for record in records:
            _check_name(record.file_name)
            known = {
                "filepath": os.path.join(str(run.root), record.file_name),
                "image_id": record.image_id,
                "state": record.state,
                "reason": record.reason or None,
            }
            if record.state == "failed":
                yield {**known, "tags": ["failed"]}
                continue
            if record.review is not None:
                known["tags"] = [record.review.verdict]
            kept = decide(record, decision, names, thresholds)
            yield {**known, "state": kept.state, **_labels(kept, names, thresholds)}


def _labels(
    record: ImageRecord, classes: Sequence[str], thresholds: Sequence[float | None]
) -> dict[str, Any]:
    """What was found in an image, as FiftyOne's labels."""
    height, width = record.size
    points = [row for n, a in enumerate(record.annotations, 1) for row in keypoint_rows(a, n)]
    presence = presence_rows(record, classes, thresholds)
    with_mask = {a.label for a in record.annotations}
    return {
        "metadata": fo.ImageMetadata(width=width, height=height),
        "clip2sam": detections(record, classes),
        "presence": fo.Classifications(
            classifications=[fo.Classification(**row) for row in presence]
        ),
        "absent": [row["label"] for row in presence if row["label"] not in with_mask],
        "prompts": fo.Keypoints(keypoints=[fo.Keypoint(**row) for row in points]),
    }


def _info(run: RunFolder, decision: Decision | None) -> dict[str, Any]:
    """What COCO's `info` says, less what has labels as keys: MongoDB takes no `$` there, and
    thresholds are with the samples."""
    by_label = ("prompts", "distractors", "presence_thresholds")
    info = run_info(run, decision)
    distractors = list(info.get("distractors", ()))
    return {
        **{key: value for key, value in info.items() if key not in by_label},
        "distractors": distractors,
        "run": str(Path(run.path).absolute()),
    }
