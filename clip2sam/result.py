"""What a person gets for one picture: arrays on the host, masks as RLE until they are asked for."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pycocotools import mask as mask_utils

from clip2sam.coco.document import coco_document, decode_rle
from clip2sam.config import Config
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.errors import ConfigError
from clip2sam.sam import PointSAM
from clip2sam.sam.rle import encode_masks
from clip2sam.types import Prediction, SimilarityMaps


@dataclass(frozen=True)
class Absent:
    """A label that got no mask."""

    label: str
    score: float
    """Its presence score: the highest raw score on its map."""
    reason: str


@dataclass(frozen=True)
class Result:
    """The masks of one picture, and why the other labels have none. Arrays are numpy's, on the host."""

    image: Image
    label_set: LabelSet
    annotations: tuple[Annotation, ...]
    """One for each mask, in the order of the labels."""
    label_indices: Int[np.ndarray, "masks"]
    """Which class each mask is of: an index into `class_names`."""
    points: tuple[Float[np.ndarray, "_ 3"], ...]
    """For each mask its prompt: x, y in continuous pixels, and 1 (positive) or 0 (negative)."""
    presence: Float[np.ndarray, "classes"]
    """Presence score of every class asked for."""
    maps: Float[np.ndarray, "classes rows cols"]
    """Raw similarity maps of every class asked for."""
    grids: Float[np.ndarray, "classes grid_rows grid_cols"]
    """The same pooled and scaled to 0..1: what the points were chosen on."""
    absent: tuple[Absent, ...]

    def __repr__(self) -> str:
        found = ", ".join(f"{a.label!r} {a.score:.2f}" for a in self.annotations)
        return f"Result({self.image!r}, masks: [{found}], absent: [{', '.join(repr(a.label) for a in self.absent)}])"

    @property
    def class_names(self) -> tuple[str, ...]:
        """All labels asked for, as typed, in the order given, without distractors."""
        return tuple(c.name for c in self.label_set.wanted)

    @property
    def labels(self) -> list[str]:
        """The label of each mask."""
        return [a.label for a in self.annotations]

    @property
    def scores(self) -> Float[np.ndarray, "masks"]:
        """The score of each mask, 0 to 1."""
        return np.array([a.score for a in self.annotations], np.float32)

    @cached_property
    def masks(self) -> Bool[np.ndarray, "masks height width"]:
        """The masks at the picture's size."""
        height, width = self.image.size
        masks = [decode_rle(a.rle) for a in self.annotations]
        return np.stack(masks) if masks else np.zeros((0, height, width), bool)

    def to_coco(self, *, polygons: bool = False) -> dict[str, Any]:
        """This picture as a COCO data set of one image; see `clip2sam.coco.document.write_coco` for the file."""
        return coco_document([self.record()], [self.annotations], self.label_set, polygons=polygons)

    def record(self, file_name: str | None = None) -> ImageRecord:
        """The picture's row in a COCO file; by default the file name of its origin."""
        height, width = self.image.size
        return ImageRecord(
            file_name or PurePath(self.image.origin).name.replace("\\", "_"), height, width
        )

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays, all of them fit for `numpy.savez` without pickling.

        Returns:
            masks: bool (masks, height, width). boxes: float32 (masks, 4), x0, y0, x1, y1 in continuous pixels, around
            each mask's pixels. scores: float32 (masks,). label_indices: int64 (masks,), into class_names.
            points: float32 (points, 4): the mask's index, x, y, and 1 (positive) or 0 (negative).
            class_names: text (classes,). presence: float32 (classes,). maps: float32 (classes, rows, cols).
            grids: float32 (classes, grid_rows, grid_cols), NaN for a map without a range.
        """
        points = [np.insert(p, 0, i, axis=1) for i, p in enumerate(self.points)]
        return {
            "masks": self.masks,
            "boxes": self.boxes,
            "scores": self.scores,
            "label_indices": self.label_indices,
            "points": np.concatenate([np.zeros((0, 4), np.float32), *points]).astype(np.float32),
            "class_names": np.array(self.class_names),
            "presence": self.presence,
            "maps": self.maps,
            "grids": self.grids,
        }

    @property
    def boxes(self) -> Float[np.ndarray, "masks 4"]:
        """The box around each mask's pixels: x0, y0, x1, y1 in continuous pixels."""
        boxes = np.array([mask_utils.toBbox(a.rle) for a in self.annotations], np.float32).reshape(
            -1, 4
        )
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def to_supervision(self) -> Any:
        """The masks as `supervision.Detections`, for its annotators, trackers and metrics.

        `class_id` is the place in `class_names`, `data["class_name"]` the name.

        Raises:
            ConfigError: the package supervision is not installed; clip2sam does not need it otherwise.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise ConfigError(
                "to_supervision needs the package supervision, which is not installed: pip install supervision"
            ) from error
        return Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.label_indices,
            data={"class_name": np.array(self.labels, dtype=str)},
        )

    def show(self) -> Any:
        """Draw all masks on the picture: a matplotlib Figure, which shows itself in a notebook."""
        from clip2sam.visualize import result_figure  # drawing is loaded by those who draw

        return result_figure(self)

    def _repr_png_(self) -> bytes:
        """How a notebook shows a result: `show()` as PNG."""
        return self.show()._repr_png_()


def as_result(
    image: Image, labels: LabelSet, config: Config, sam: PointSAM, prediction: Prediction
) -> Result:
    """Bring a prediction to the host: the one place where tensors become arrays, and masks become RLE.

    Masks are made at the picture's size a few at a time, so memory doesn't grow with the number of labels. A mask
    with no pixel is no mask: its label is listed as absent.
    """
    wanted = len(labels.wanted)
    masks, prompts = prediction.masks, prediction.prompts
    rles = [rle for chunk in sam.upscale(masks.logits, masks.size) for rle in encode_masks(chunk)]
    index, score = prompts.label_index.cpu().numpy(), masks.predicted_iou.clamp(0, 1).cpu().tolist()
    points = (
        torch.cat([prompts.coords, prompts.point_labels[..., None].float()], dim=-1).cpu().numpy()
    )
    kept = [i for i, rle in enumerate(rles) if mask_utils.area(rle) > 0]
    presence = prediction.maps.presence[:wanted].cpu().numpy()
    found = {int(index[i]) for i in kept}
    return Result(
        image=image,
        label_set=labels,
        annotations=tuple(
            Annotation(labels.names[index[i]], rles[i], score[i], prompt=i) for i in kept
        ),
        label_indices=index[kept],
        points=tuple(points[i][points[i][:, 2] >= 0] for i in kept),
        presence=presence,
        maps=prediction.maps.raw[:wanted].cpu().numpy(),
        grids=prediction.grids[:wanted].cpu().numpy(),
        absent=tuple(
            Absent(
                c.name,
                float(presence[i]),
                why_absent(i, labels, config, prediction.maps, prediction.present),
            )
            for i, c in enumerate(labels.wanted)
            if i not in found
        ),
    )


def why_absent(
    i: int,
    labels: LabelSet,
    config: Config,
    maps: SimilarityMaps,
    present: Bool[torch.Tensor, "labels"],
) -> str:
    """Why class `i` has no mask, in a few words."""
    raw, score = maps.raw[i], float(maps.presence[i])
    own = labels.classes[i].threshold
    threshold = config.presence if own is None else own
    if not raw.isfinite().all():
        return "its map has values that are not finite"
    if raw.max() == raw.min():
        return "its map is the same everywhere"
    if threshold is not None and score < threshold:
        return f"its highest score {score:.3f} is below the threshold {threshold:g}"
    if not present[i]:
        return "a distractor scores higher at its peak"
    return "its points gave an empty mask"
