"""One image whose features are kept, with the points and boxes that a person set.

Each model encodes the image once (CLIP once for each method), so a change costs the text features
of new labels, the points and SAM's mask decoder.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from clip2sam.analysis.explain import Explanation, explain_features
from clip2sam.data.images import load_image
from clip2sam.data.labels import LabelSet
from clip2sam.pipeline import Features, ImageLike, Segmenter
from clip2sam.points import PADDING
from clip2sam.proposals import CORNERS
from clip2sam.result import Result
from clip2sam.types import Candidates, Prediction, Prompts

Points = Float[np.ndarray, "_ 3"]
"""x, y in continuous pixels, and 1 (positive), 0 (negative), or 2 and 3 for the upper left and the
lower right corner of a box, one row after the other."""

NEAR = 0.03
"""A click closer to a point than this share of the image's longest side is on that point."""


class Bench:
    """An image whose features are kept, and the points and boxes that a person set, label by label.

    Args:
        segmenter: the models, and the settings that a run starts from, but for tiles: it is the
            whole image that is looked at.
        image: as for the segmenter.

    Raises:
        ImageError: the image can't be read.
    """

    def __init__(self, segmenter: Segmenter, image: ImageLike) -> None:
        self.segmenter = segmenter.with_config(tile="off")
        self.image = load_image(image)
        self.changed: dict[str, Points] = {}
        """Label -> all of its points, for the labels whose points were changed by hand."""
        self._features: Features | None = None

    @property
    def features(self) -> Features:
        """What the models computed of the image; from the first use until `release`."""
        if self._features is None:
            self._features = self.segmenter.encode([self.image])
        return self._features

    def release(self) -> None:
        """Free the features' memory. The next run encodes the image again."""
        self._features = None

    def run(self, labels: LabelSet, *, only_changed: bool = False, **settings: Any) -> Result:
        """The stages, with the changed points in place of the computed ones. A label whose points
        were changed is present, but gets no mask without a positive point or a box. With one prompt
        an object each of its positive points is an object. A box is always a mask of its own.

        Args:
            only_changed: give the masks of these labels only.
            settings: fields of `Config` that differ from the segmenter's.
        """
        stages = self.segmenter.with_config(**settings)
        maps = stages.locate(self.features, labels)
        parts = {c.name: rows for c, rows in zip(labels.classes, labels.groups, strict=True)}
        wanted = {c.name: parts[c.name][0] for c in labels.wanted}
        changed = {wanted[name]: p for name, p in self.changed.items() if name in wanted}
        present = torch.zeros_like(maps.present) if only_changed else maps.present.clone()
        for name in (
            self.changed.keys() & wanted.keys()
        ):  # a joined one's points are its first part's
            present[:, list(parts[name])] = False
        present[:, list(changed)] = True
        maps = replace(maps, present=present)
        prompts = stages.prompt(maps)
        if changed:
            each = stages.config.prompts == "object"
            prompts = replace_points(prompts, changed, each_object=each)
        candidates = decode_by_hand(stages, self.features, prompts)
        masks = stages.choose(maps, prompts, candidates)
        return stages.results(self.features, Prediction(maps, prompts, masks))[0]

    def explain(self, labels: LabelSet, label: str, **settings: Any) -> Explanation:
        """Why a label is there or not, by the settings alone: as without the changed points.

        Raises:
            LabelError, ModelError: as `clip2sam.analysis.explain.explain`.
            ConfigError: the labels are not found on CLIP's maps.
        """
        stages = self.segmenter.with_config(**settings)
        return explain_features(stages, self.features, labels, label)

    def click(self, result: Result, label: str, x: float | int, y: float | int, kind: int) -> None:
        """Add a point to a label, or remove the point that is there; a box with its two corners.

        Args:
            result: what is shown; the label's points in it are changed.
            x, y: in continuous pixels of the image.
            kind: 1 positive, 0 negative.
        """
        points = self.points(result, label)
        on = rows_at(points, x, y, NEAR * max(result.image.size))
        added = np.concatenate([points, [[x, y, kind]]])
        self.changed[label] = points[~on] if on.any() else added

    def box(self, result: Result, label: str, one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
        """Add a box to a label.

        Args:
            result: as for `click`.
            one, other: two opposite corners, each (x, y) in continuous pixels of the image.
        """
        low, high = np.minimum(one, other), np.maximum(one, other)
        corners = [[*corner, kind] for corner, kind in zip((low, high), CORNERS, strict=True)]
        self.changed[label] = np.concatenate([self.points(result, label), corners])

    def points(self, result: Result, label: str) -> Points:
        """All points of a label, each once: those that were changed, or those of its masks."""
        pairs = zip(result.points, result.labels, strict=True)
        shown = [points for points, of in pairs if of == label]
        rows = dict.fromkeys(tuple(row) for one in shown for row in one.tolist())
        return self.changed.get(label, np.array(list(rows), float).reshape(-1, 3))


def asks_for_a_mask(points: Points) -> bool:
    """Whether one of the points is positive, or a box's."""
    return bool(np.isin(points[:, 2], (1, CORNERS[0])).any())


def rows_at(
    points: Points, x: float | int, y: float | int, reach: float | int
) -> Bool[np.ndarray, "_"]:
    """Which of the points are that near to a place. A box is near with both of its corners."""
    on: Bool[np.ndarray, _] = np.hypot(points[:, 0] - x, points[:, 1] - y) <= reach
    first = points[:, 2] == CORNERS[0]
    on[first] |= on[points[:, 2] == CORNERS[1]]
    on[points[:, 2] == CORNERS[1]] = on[first]
    return on


def replace_points(
    prompts: Prompts, changed: Mapping[int, Points], *, each_object: bool
) -> Prompts:
    """The prompts of one image, with other points for some labels.

    Args:
        prompts: of one image. Boxes become corners among the points, for `decode_by_hand`; mask
            inputs and masks that are there already are dropped.
        changed: label index -> its points. A label without a positive one or a box has no prompt.
        each_object: a prompt for each positive point, with the label's negative ones; else one
            prompt with all of them. A box is a prompt by itself, with the negative ones.
    """
    device = prompts.coords.device
    table = torch.cat([prompts.coords, prompts.point_labels[..., None].float()], dim=-1)
    if prompts.boxes is not None:
        kinds = torch.tensor(CORNERS).to(table).expand(len(table), 2)[..., None]
        corners = torch.cat([prompts.boxes.unflatten(1, (2, 2)), kinds], dim=-1)
        table = torch.cat([table, corners], dim=1)
    index = prompts.label_index.tolist()
    rows = [(i, points) for i, points in zip(index, table, strict=True) if i not in changed]
    rows += [
        (i, torch.tensor(points, dtype=torch.float32, device=device))
        for i, all_points in changed.items()
        for points in _prompts_of(all_points, each_object)
    ]
    rows.sort(key=lambda row: row[0])
    longest = max((len(points) for _, points in rows), default=0)
    padded = torch.full((len(rows), longest, 3), float(PADDING), device=device)
    for row, (_, points) in zip(padded, rows, strict=True):
        row[: len(points)] = points
    return Prompts(
        coords=padded[..., :2],
        point_labels=padded[..., 2].to(prompts.point_labels.dtype),
        label_index=prompts.label_index.new_tensor([i for i, _ in rows]),
        counts=(len(rows),),
        sizes=prompts.sizes,
    )


def _prompts_of(points: Points, each_object: bool) -> list[Points]:
    """A label's points as prompts: for each positive point (or all of them together), and for each
    box; all negative ones go with each."""
    positive, negative = (points[points[:, 2] == kind] for kind in (1, 0))
    alone = [one[None] for one in positive] if each_object else [positive] * bool(len(positive))
    corners = points[np.isin(points[:, 2], CORNERS)]
    return [np.concatenate([one, negative]) for one in [*alone, *corners.reshape(-1, 2, 3)]]


@torch.no_grad()
def decode_by_hand(segmenter: Segmenter, features: Features, prompts: Prompts) -> Candidates:
    """SAM's candidates for prompts of one image, some of which have a box as corners among their
    points; the others are decoded as they are."""
    boxed = (prompts.point_labels == CORNERS[0]).any(dim=1)
    if not boxed.any():
        return segmenter.decode(features, prompts)
    parts = [torch.nonzero(which)[:, 0] for which in (~boxed, boxed)]
    made = [
        segmenter.decode(features, _rows(prompts, rows, boxes=boxes))
        for rows, boxes in zip(parts, (False, True), strict=True)
        if len(rows)
    ]
    order = torch.cat(parts).argsort()
    return Candidates(
        torch.cat([one.logits for one in made])[order],
        torch.cat([one.predicted_iou for one in made])[order],
    )


def _rows(prompts: Prompts, rows: Int[torch.Tensor, "some"], *, boxes: bool) -> Prompts:
    """Some of the prompts of one image, with or without a box each, which is none of the points."""
    coords, kinds = prompts.coords[rows], prompts.point_labels[rows]
    low, high = (coords[kinds == corner] for corner in CORNERS)
    return Prompts(
        coords=coords,
        point_labels=torch.where(kinds > 1, PADDING, kinds),
        label_index=prompts.label_index[rows],
        counts=(len(rows),),
        sizes=prompts.sizes,
        boxes=torch.cat([low, high], dim=1) if boxes else None,
    )
