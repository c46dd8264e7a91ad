"""One image whose features are kept, with the points that a person changed.

Each model encodes the image once (CLIP once for each method), so a change costs the text features
of new labels, the points and SAM's mask decoder.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from clip2sam.data.images import load_image
from clip2sam.data.labels import LabelSet
from clip2sam.pipeline import ImageLike, Segmenter
from clip2sam.points import PADDING
from clip2sam.result import Result
from clip2sam.types import Prediction, Prompts

Points = Float[np.ndarray, "_ 3"]
"""x, y in continuous pixels, and 1 (positive) or 0 (negative)."""

NEAR = 0.03
"""A click closer to a point than this share of the image's longest side is on that point."""


class Bench:
    """An image whose features are kept, and the points that a person changed, label by label.

    Args:
        segmenter: the models, and the settings that a run starts from, but for tiles: it is the
            whole image that is looked at.
        image: as for the segmenter.

    Raises:
        ImageError: the image can't be read.
    """

    def __init__(self, segmenter: Segmenter, image: ImageLike) -> None:
        self.segmenter = segmenter.with_config(tile="off")
        self.features = self.segmenter.encode([load_image(image)])
        self.changed: dict[str, Points] = {}
        """Label -> all of its points, for the labels whose points were changed by hand."""

    def run(self, labels: LabelSet, **settings: Any) -> Result:
        """The stages, with the changed points in place of the computed ones. A label whose points
        were changed is present, but gets no mask without a positive point. With one prompt an
        object each of its positive points is an object.

        Args:
            settings: fields of `Config` that differ from the segmenter's.
        """
        stages = self.segmenter.with_config(**settings)
        maps = stages.locate(self.features, labels)
        parts = {c.name: rows for c, rows in zip(labels.classes, labels.groups, strict=True)}
        wanted = {c.name: parts[c.name][0] for c in labels.wanted}
        changed = {wanted[name]: p for name, p in self.changed.items() if name in wanted}
        present = maps.present.clone()
        for name in (
            self.changed.keys() & wanted.keys()
        ):  # a joined one's points are its first part's
            present[:, list(parts[name])] = False
        present[:, list(changed)] = True
        maps = replace(maps, present=present)
        each = stages.config.prompts == "object"
        prompts = replace_points(stages.prompt(maps), changed, each_object=each)
        masks = stages.choose(maps, prompts, stages.decode(self.features, prompts))
        return stages.results(self.features, Prediction(maps, prompts, masks))[0]

    def click(self, result: Result, label: str, x: float | int, y: float | int, kind: int) -> None:
        """Add a point to a label, or remove the point that is there.

        Args:
            result: what is shown; the label's points in it are changed.
            x, y: in continuous pixels of the image.
            kind: 1 positive, 0 negative.
        """
        points = self.points(result, label)
        far = np.hypot(points[:, 0] - x, points[:, 1] - y) > NEAR * max(result.image.size)
        added = np.concatenate([points, [[x, y, kind]]])
        self.changed[label] = added if far.all() else points[far]

    def points(self, result: Result, label: str) -> Points:
        """All points of a label, each once: those that were changed, or those of its masks."""
        pairs = zip(result.points, result.labels, strict=True)
        shown = [points for points, of in pairs if of == label]
        rows = dict.fromkeys(tuple(row) for one in shown for row in one.tolist())
        return self.changed.get(label, np.array(list(rows), float).reshape(-1, 3))


def replace_points(
    prompts: Prompts, changed: Mapping[int, Points], *, each_object: bool
) -> Prompts:
    """The prompts of one image, with other points for some labels.

    Args:
        prompts: of one image. Boxes and mask inputs are dropped.
        changed: label index -> its points. A label without a positive one has no prompt.
        each_object: a prompt for each positive point, with the label's negative ones; else one
            prompt with all of them.
    """
    device = prompts.coords.device
    table = torch.cat([prompts.coords, prompts.point_labels[..., None].float()], dim=-1)
    index = prompts.label_index.tolist()
    rows = [(i, points) for i, points in zip(index, table, strict=True) if i not in changed]
    rows += [
        (i, torch.tensor(points, dtype=torch.float32, device=device))
        for i, all_points in changed.items()
        for points in (_each_object(all_points) if each_object else [all_points])
        if (points[:, 2] == 1).any()
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


def _each_object(points: Points) -> list[Points]:
    """The points of each object: a positive one and all negative ones."""
    negative = points[points[:, 2] == 0]
    return [np.concatenate([one[None], negative]) for one in points[points[:, 2] == 1]]
