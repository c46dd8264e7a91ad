"""What a person gets for one image: arrays on the host, masks as RLE until they are needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pycocotools import mask as mask_utils
from torch import Tensor

from clip2sam.coco.document import coco_document, made_by
from clip2sam.coco.outlines import TOLERANCE
from clip2sam.coco.rle import decode_rle
from clip2sam.config import Config
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelClass, LabelSet
from clip2sam.data.presence import presence_of_classes
from clip2sam.data.records import Annotation, ImageRecord, as_float32
from clip2sam.errors import ConfigError, LabelError, ModelError
from clip2sam.joins import mean_by_area, union
from clip2sam.points import PADDING, pool_grid
from clip2sam.proposals import CORNERS
from clip2sam.sam import Cutter
from clip2sam.sam.rle import encode_masks
from clip2sam.scoring import shares_of_best
from clip2sam.types import Prediction, Prompts


@dataclass(frozen=True)
class Absent:
    """A label that got no mask."""

    label: str
    score: float
    """Its presence score: the highest raw score on its map."""
    reason: str


@dataclass(frozen=True)
class Result:
    """The masks of one image, and why the other labels have none. Arrays are numpy's, on the host.

    The dimension `classes` is all classes requested, in the user's order, without distractors.
    """

    image: Image
    label_set: LabelSet
    record: ImageRecord
    """What files hold of this image."""
    everything: tuple[Annotation, ...]
    """The masks of all objects, also of those that `Config.min_share` leaves out because they are
    weak beside their label's best one. A run's journal holds them."""
    label_indices: Int[np.ndarray, "masks"]
    """The class of each mask: an index into `class_names`."""
    points: tuple[Float[np.ndarray, "_ 3"], ...]
    """The prompt of each mask: x, y in continuous pixels, and 1 (positive), 0 (negative), or 2 and
    3 for the upper left and the lower right corner of a box."""
    presence: Float[np.ndarray, "classes"]
    """Presence score of every class."""
    beaten: Bool[np.ndarray, "classes"]
    """Whether a distractor scores higher at the class's own peak."""
    present: Bool[np.ndarray, "classes"]
    """The presence decision."""
    maps: Float[np.ndarray, "classes rows cols"]
    """Raw similarity map of every class."""
    grids: Float[np.ndarray, "classes grid_rows grid_cols"]
    """The maps pooled and scaled to 0..1: what the points were chosen on."""
    absent: tuple[Absent, ...]

    def __repr__(self) -> str:
        found = ", ".join(f"{a.label!r} {a.score:.2f}" for a in self.annotations)
        absent = ", ".join(repr(a.label) for a in self.absent)
        return f"Result({self.image!r}, masks: [{found}], absent: [{absent}])"

    @property
    def annotations(self) -> tuple[Annotation, ...]:
        """One for each mask, in the order of the labels, the best score of each first."""
        return self.record.annotations

    @property
    def class_names(self) -> tuple[str, ...]:
        """All labels requested, as typed, in the order given, without distractors."""
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
        """The masks at the image's size."""
        height, width = self.image.size
        masks = [decode_rle(a.rle) for a in self.annotations]
        return np.stack(masks) if masks else np.zeros((0, height, width), bool)

    def mask_of(self, label: str) -> Bool[np.ndarray, "height width"]:
        """All pixels of a label: the union of its masks, without a pixel if it is absent.

        Raises:
            LabelError: the label is not one of `class_names`.
        """
        if label not in self.class_names:
            raise LabelError(
                f"expected one of the labels requested, {', '.join(self.class_names)}, "
                f"got {label!r}"
            )
        return np.asarray(self.masks[self.label_indices == self.class_names.index(label)].any(0))

    @property
    def boxes(self) -> Float[np.ndarray, "masks 4"]:
        """The box around each mask's pixels: x0, y0, x1, y1 in continuous pixels."""
        boxes = [mask_utils.toBbox(a.rle) for a in self.annotations]
        table = np.array(boxes, np.float32).reshape(-1, 4)
        table[:, 2:] += table[:, :2]
        return table

    def to_coco(self, *, polygons: bool = False, tolerance: float = TOLERANCE) -> dict[str, Any]:
        """This image as a COCO dataset; `clip2sam.coco.write.write_coco` writes it.

        Args:
            polygons: give polygons instead of RLE.
            tolerance: of the polygons, in pixels, see `clip2sam.coco.outlines`; 0: exact.
        """
        return coco_document(
            [self.record],
            self.label_set.wanted,
            polygons=polygons,
            tolerance=tolerance,
            info=made_by(caption=self.label_set.caption),
        )

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays, all of them fit for `numpy.savez` without pickling.

        Returns:
            masks: bool (masks, height, width). boxes: float32 (masks, 4), x0, y0, x1, y1 in
            continuous pixels, around each mask's pixels. scores, shares: float32 (masks,).
            label_indices: int64 (masks,), into class_names. points: float32 (points, 4): the mask's
            index, x, y, and 1 (positive) or 0 (negative). class_names: text (classes,). presence:
            float32 (classes,). maps: float32 (classes, rows, cols). grids: float32 (classes,
            grid_rows, grid_cols), NaN for a map without a range.
        """
        points = [np.insert(p, 0, i, axis=1) for i, p in enumerate(self.points)]
        return {
            "masks": self.masks,
            "boxes": self.boxes,
            "scores": self.scores,
            "shares": np.array([a.share for a in self.annotations], np.float32),
            "label_indices": self.label_indices,
            "points": np.concatenate([np.zeros((0, 4), np.float32), *points]).astype(np.float32),
            "class_names": np.array(self.class_names),
            "presence": self.presence,
            "maps": self.maps,
            "grids": self.grids,
        }

    def to_supervision(self) -> Any:
        """The masks as `supervision.Detections`, for its annotators, trackers and metrics.

        `class_id` is the index in `class_names`, `data["class_name"]` the name, `data["share"]`
        that of each annotation.

        Raises:
            ConfigError: the package supervision is not installed; clip2sam does not need it
                otherwise.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise ConfigError(
                "to_supervision needs the package supervision, which is not installed: "
                "pip install supervision"
            ) from error
        return Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.label_indices,
            data={
                "class_name": np.array(self.labels, dtype=str),
                "share": np.array([a.share for a in self.annotations]),
            },
        )

    def show(self) -> Any:
        """All masks drawn on the image: a matplotlib Figure, which shows itself in a notebook."""
        from clip2sam.visualize import result_figure  # matplotlib is slow to import

        return result_figure(self)

    def _repr_jpeg_(self) -> bytes:
        """How a notebook shows a result: `show()` as JPEG."""
        return self.show()._repr_jpeg_()


@dataclass(frozen=True)
class Found:
    """What was found in an image, or in a window of one: a prediction on the host, before its masks
    are compared with each other."""

    labels: LabelSet
    """What was asked for. The dimension `classes`, and the indices of labels, are those of its
    parts, `labels.apart()`, without distractors."""
    rles: tuple[dict[str, Any], ...]
    """The masks that are kept."""
    label_index: Int[np.ndarray, "masks"]
    score: Float[np.ndarray, "masks"]
    """Of each mask by itself, as `inside` and `contrast`: see `clip2sam.types.Masks`."""
    inside: Float[np.ndarray, "masks"]
    contrast: Float[np.ndarray, "masks"]
    points: tuple[Float[np.ndarray, "_ 3"], ...]
    presence: Float[np.ndarray, "classes"]
    """This and those below: as in `Result`."""
    beaten: Bool[np.ndarray, "classes"]
    present: Bool[np.ndarray, "classes"]
    maps: Float[np.ndarray, "classes rows cols"]
    grids: Float[np.ndarray, "classes grid_rows grid_cols"]


def as_result(
    image: Image,
    prediction: Prediction,
    index: int,
    config: Config,
    sam: Cutter,
    *,
    image_id: int = 1,
    file_name: str | None = None,
    thresholds: Sequence[float | None] = (),
) -> Result:
    """One image of a batch's prediction on the host: `finished` of what `find_in` brings there.

    Args:
        index: the image's place in the batch.
        image_id, file_name, thresholds: as for `finished`.

    Raises:
        ModelError: maps, predicted IoUs or mask logits of this image are not finite.
    """
    found = find_in(image, prediction, index, config, sam)
    return finished(
        image, found, config, image_id=image_id, file_name=file_name, thresholds=thresholds
    )


def find_in(image: Image, prediction: Prediction, index: int, config: Config, sam: Cutter) -> Found:
    """Bring one image of a batch's prediction to the host: the one place where tensors become
    arrays, and masks become RLE. May run in another thread than the models.

    Masks are upscaled to the image's size a few at a time, so memory doesn't grow with the number
    of labels.

    Args:
        index: the image's place in the batch.

    Raises:
        ModelError: maps, predicted IoUs or mask logits of this image are not finite.
    """
    maps, prompts, masks = prediction.maps, prediction.prompts, prediction.masks
    wanted = len(maps.labels.apart().wanted)
    first = sum(prompts.counts[:index])
    all_rows = torch.arange(first, first + prompts.counts[index], device=masks.kept.device)
    rows = all_rows[masks.kept[all_rows]]
    chunks = sam.upscale(masks.logits[rows], image.size)
    rles = tuple(rle for chunk in chunks for rle in encode_masks(chunk))
    numbers = (prompts.label_index, masks.score, masks.inside, masks.contrast)
    label_index, score, inside, contrast = (t[rows].cpu().numpy() for t in numbers)
    all_presence = maps.presence[index].cpu().numpy()  # distractors too: they decide
    beaten, present = (t[index, :wanted].cpu().numpy() for t in (maps.beaten, maps.present))
    raw = maps.raw[index : index + 1, :wanted]
    host_maps = raw[0].cpu().numpy()
    # Here, where everything is on the host anyway: earlier, each check would wait for the device.
    check_finite(image, "CLIP's similarity maps", host_maps, all_presence)
    check_finite(image, "SAM's predicted IoUs", masks.predicted_iou[all_rows].cpu().numpy())
    check_finite(image, "SAM's mask logits", finite_if_all_are(masks.logits[all_rows]))
    return Found(
        maps.labels,
        rles,
        label_index,
        score,
        inside,
        contrast,
        points=prompt_points(prompts, rows),
        presence=all_presence[:wanted],
        beaten=beaten,
        present=present,
        maps=host_maps,
        grids=pool_grid(raw, config.grid)[0].cpu().numpy(),
    )


def prompt_points(
    prompts: Prompts, rows: Int[Tensor, "some"]
) -> tuple[Float[np.ndarray, "_ 3"], ...]:
    """The points of these prompts on the host, without padding: x, y, and 1 (positive) or 0
    (negative); those of a box are its upper left (2) and lower right corner (3), SAM's own kinds.
    """
    points = torch.cat([prompts.coords[rows], prompts.point_labels[rows, :, None].float()], dim=-1)
    if prompts.boxes is not None:
        kinds = torch.tensor(CORNERS).to(points).expand(len(rows), 2)[..., None]
        corners = torch.cat([prompts.boxes[rows].unflatten(1, (2, 2)), kinds], dim=-1)
        points = torch.cat([points, corners], dim=1)
    return tuple(one[one[:, 2] != PADDING] for one in points.cpu().numpy())


def finished(
    image: Image,
    found: Found,
    config: Config,
    *,
    image_id: int = 1,
    file_name: str | None = None,
    thresholds: Sequence[float | None] = (),
) -> Result:
    """The result of an image: its masks are compared with the best of their label, and put in
    order; those of a joined label become one. A mask without a pixel is no mask: its label is
    listed as absent.

    Args:
        found: what was found in the whole image.
        image_id: its COCO id, for the record.
        file_name: for the record; by default that of the image's origin.
        thresholds: of each class, if masks are made from lower presence scores on: where a joined
            label reaches it, its mask has the parts that do.
    """
    found = _joined(found, config, thresholds)
    labels, label_index = found.labels, found.label_index
    score = found.score * shares_of_best(found.contrast, label_index)
    share = shares_of_best(found.inside, label_index)
    with_pixels = [k for k, rle in enumerate(found.rles) if mask_utils.area(rle) > 0]
    order = sorted(with_pixels, key=lambda k: (label_index[k], -score[k]))
    everything = tuple(
        Annotation(
            labels.names[label_index[k]],
            found.rles[k],
            as_float32(score[k]),
            tuple((as_float32(x), as_float32(y), int(kind)) for x, y, kind in found.points[k]),
            as_float32(share[k]),
        )
        for k in order
    )
    shown = [n for n, a in enumerate(everything) if a.share >= config.min_share]
    annotations, kept = tuple(everything[n] for n in shown), [order[n] for n in shown]
    with_mask = {int(label_index[k]) for k in kept}
    limits = labels.thresholds(config.presence_threshold)
    return Result(
        image=image,
        label_set=labels,
        record=ImageRecord(
            image_id,
            PurePath(image.origin).name.replace("\\", "_") if file_name is None else file_name,
            image.size,
            "done" if annotations else "empty",
            annotations=annotations,
            presence=tuple(map(as_float32, found.presence)),
            beaten=tuple(map(bool, found.beaten)),
        ),
        everything=everything,
        label_indices=label_index[kept],
        points=tuple(found.points[k] for k in kept),
        presence=found.presence,
        beaten=found.beaten,
        present=found.present,
        maps=found.maps,
        grids=found.grids,
        absent=tuple(
            Absent(
                c.name,
                float(found.presence[n]),
                why_absent(
                    found.maps[n], limits[n], bool(found.present[n]), float(found.presence[n])
                ),
            )
            for n, c in enumerate(labels.wanted)
            if n not in with_mask
        ),
    )


def _joined(found: Found, config: Config, thresholds: Sequence[float | None]) -> Found:
    """What was found of the parts of joined labels, as of these labels: its classes are those of
    the label set.

    A joined label is present where one of its parts is, and its map is at each place the highest of
    theirs. It has one mask, the union of those that `Config.min_share` shows, each compared with
    the best of its own part. Its score is the mean of theirs by area, its share 1.
    """
    labels = found.labels
    if not labels.has_joined:
        return found
    groups = labels.groups[: len(labels.wanted)]
    owner = np.repeat(np.arange(len(groups)), [len(rows) for rows in groups])
    presence, beaten = presence_of_classes(found.presence, found.beaten, groups)
    reached = [
        np.float32(t) if t is not None and score >= np.float32(t) else -np.inf
        for t, score in zip_longest(thresholds[: len(groups)], presence)
    ]
    strong = found.presence >= np.array(reached, np.float32)[owner]
    masks = [
        one
        for i, c in enumerate(labels.wanted)
        for one in _masks_of(found, (owner == i) & strong, c, config)
    ]
    rles, which, *numbers, points = zip(*masks, strict=True) if masks else [()] * 6
    score, inside, contrast = (np.array(column, found.score.dtype) for column in numbers)
    maps = np.stack([found.maps[list(rows)].max(axis=0) for rows in groups])
    return Found(
        labels,
        tuple(rles),
        owner[np.array(which, int)],
        score,
        inside,
        contrast,
        points=tuple(points),
        presence=presence,
        beaten=beaten,
        present=np.array([found.present[list(rows)].any() for rows in groups]),
        maps=maps,
        grids=pool_grid(torch.from_numpy(maps)[None], config.grid)[0].numpy(),
    )


def _masks_of(
    found: Found, parts: Bool[np.ndarray, "classes"], label: LabelClass, config: Config
) -> list[tuple[Any, ...]]:
    """The masks of a class: RLE, the part, score, inside, contrast and points of each; one for a
    joined class.

    Args:
        parts: which parts are its own.
    """
    mine = np.flatnonzero(parts[found.label_index])
    if not label.joined:
        columns = (found.label_index, found.score, found.inside, found.contrast)
        return [(found.rles[k], *(column[k] for column in columns), found.points[k]) for k in mine]
    score = found.score * shares_of_best(found.contrast, found.label_index)
    share = shares_of_best(found.inside, found.label_index)
    shown = [k for k in mine if share[k] >= config.min_share and mask_utils.area(found.rles[k])]
    if not shown:
        return []
    rles = [found.rles[k] for k in shown]
    points = np.concatenate([found.points[k] for k in shown])
    part = found.label_index[shown[0]]
    return [(union(rles), part, mean_by_area(score[shown], rles), 1.0, 1.0, points)]


def check_finite(image: Image, what: str, *arrays: Float[np.ndarray, "..."]) -> None:
    """Refuse what a model computed of an image if a value is not finite.

    Args:
        what: the model's values in the message, in the plural.
        arrays: the values, on the host.

    Raises:
        ModelError: a value is NaN or infinite.
    """
    if not all(np.isfinite(array).all() for array in arrays):
        raise ModelError(
            f"{image.origin}: {what} have values that are not finite, so the model failed on this "
            "image; use the precision fp32, and check the weights with 'clip2sam weights verify'"
        )


def finite_if_all_are(logits: Float[Tensor, "masks low low"]) -> Float[np.ndarray, "masks"]:
    """For each mask a number that is finite if and only if all its logits are. Their sum, which
    needs no second tensor; where it overflows, 0 or NaN."""
    sums = logits.sum(dim=(-2, -1)).cpu()
    if not sums.isfinite().all():
        finite = logits.isfinite().all(dim=-1).all(dim=-1).cpu()
        sums = torch.where(finite, 0.0, torch.nan)
    return sums.numpy()


def why_absent(
    raw: Float[np.ndarray, "rows cols"],
    threshold: float | None,
    present: bool,
    score: float | None = None,
) -> str:
    """Why a label has no mask, in a few words.

    Args:
        raw: its raw map, of finite values.
        threshold: what its presence score had to reach; None: nothing.
        present: the presence decision.
        score: its presence score; None: the highest of the map.
    """
    if present:
        same = raw.max() == raw.min()
        return "its map is the same everywhere" if same else "its points gave an empty mask"
    score = float(raw.max()) if score is None else score
    if threshold is not None and score < np.float32(threshold):
        return f"its highest score {score:.3f} is below the threshold {threshold:g}"
    return "a distractor scores higher at its peak"
