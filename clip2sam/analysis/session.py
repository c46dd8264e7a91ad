"""What a person does in the explorer, without its widgets: images one after the other, labels,
settings, points by hand, and the masks that are accepted."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any

import numpy as np

from clip2sam.analysis.bench import Bench, Points, asks_for_a_mask
from clip2sam.coco.document import coco_document
from clip2sam.config import Config
from clip2sam.data.labels import LabelClass, as_label_set
from clip2sam.data.opening import kind_given, open_source
from clip2sam.data.records import ImageRecord
from clip2sam.data.sources import LIST_SUFFIXES, Source
from clip2sam.errors import ImageError, LabelError
from clip2sam.pipeline import ImageLike, LabelsLike, Segmenter
from clip2sam.proposals import CORNERS


@dataclass(frozen=True)
class Accepted:
    """The accepted masks of one label in one image."""

    label: LabelClass
    record: ImageRecord
    """Of the image, with these masks and no others; its presence is the label's alone."""

    def __str__(self) -> str:
        count, best = len(self.record.annotations), self.record.annotations[0].score
        masks = counted(count, "mask")
        return f"{self.label.name}: {masks}, score {best:.2f}, {self.record.file_name}"


class Session:
    """The state of an explorer. `result` is what is shown of the current image.

    Args:
        segmenter: the models, and the settings to start with.
        images: an image as for the segmenter; or several: a folder, a glob, a list, or a list of
            paths, as for `open_source`.
        labels: as for the segmenter.

    Raises:
        ImageError: there is no image, or the first can't be read.
        LabelError: a label is empty, given twice, or there is none.
    """

    def __init__(
        self, segmenter: Segmenter, images: ImageLike | Sequence[ImageLike], labels: LabelsLike
    ) -> None:
        self.segmenter = segmenter
        self.label_set = as_label_set(labels)
        self.label = self.label_set.wanted[0].name
        """The selected one: clicks, the figure and the accepted masks are its."""
        self.settings: dict[str, Any] = {}
        """The fields of `Config` that were changed."""
        self.accepted: tuple[Accepted, ...] = ()
        self.source = _source_of(images)
        self._single = images
        self._earlier: list[tuple[Accepted, ...]] = []
        self._clicks: dict[int, dict[str, Points]] = {}
        self.open(0)

    # -- images

    @property
    def count(self) -> int:
        """The number of images."""
        return 1 if self.source is None else len(self.source.keys)

    def open(self, index: int) -> None:
        """Go to an image, by its index from 0. The points that were changed there are kept.

        Raises:
            ImageError: it can't be read; then the current one stays.
        """
        image: Any = self._single
        if self.source is not None:
            image = self.source.read(self.source.keys[index])
        bench = Bench(self.segmenter, image)
        bench.changed = self._clicks.setdefault(index, bench.changed)
        self.bench, self.index = bench, index
        self.run()

    @property
    def name(self) -> str:
        """The current image's name in a dataset."""
        if self.source is None:
            return self.result.record.file_name
        return self.source.keys[self.index]

    # -- what is shown

    @property
    def config(self) -> Config:
        """The settings with what was changed."""
        return self.segmenter.with_config(**self.settings).config

    def run(self) -> None:
        """Compute `result` anew."""
        self.result = self.bench.run(self.label_set, **self.settings)

    def set(self, **settings: Any) -> None:
        """Change fields of `Config`."""
        self.settings.update(settings)
        self.run()

    def relabel(self, text: str) -> None:
        """Other labels, typed: separated by semicolons or by lines.

        Raises:
            LabelError: a label is given twice, or there is none; then the labels stay.
        """
        names = typed_labels(text)
        known = {c.name: c for c in self.label_set.wanted}
        # those that stay keep their synonyms and their threshold, and all have the same rivals
        typed = tuple(known.get(c.name, c) for c in as_label_set(names).classes)
        rivals = tuple(c for c in self.label_set.classes if c.distractor and c.name not in names)
        self.label_set = replace(self.label_set, classes=(*typed, *rivals))
        self.label = self.label if self.label in names else names[0]
        self.run()

    def score_range(self) -> tuple[float, float]:
        """The lowest and the highest raw score of the image, with a tenth of room at both ends."""
        low, high = float(self.result.maps.min()), float(self.result.maps.max())
        low, high = min(low, *self.result.presence), max(high, *self.result.presence)
        room = max((high - low) / 10, 0.01)
        # In whole hundredths a slider that starts there has values in whole steps.
        return floor(100 * (low - room)) / 100, ceil(100 * (high + room)) / 100

    def prompts(self) -> list[Points]:
        """The selected label's prompts: first those of the masks, whose numbers they have, then
        points and boxes that were set and gave no mask that is shown."""
        pairs = zip(self.result.points, self.result.labels, strict=True)
        shown = [points for points, of in pairs if of == self.label]
        known = {tuple(row) for points in shown for row in points.tolist()}
        every = self.bench.points(self.result, self.label).astype(np.float32)
        rest = [row for row in every if tuple(row.tolist()) not in known]
        corners = [row for row in rest if row[2] in CORNERS]
        alone = [row[None] for row in rest if row[2] not in CORNERS]
        return [*shown, *alone, *np.array(corners, np.float32).reshape(-1, 2, 3)]

    def found(self) -> str:
        """The selected label's masks with score and share, the shares of those that are left out,
        and the number of clicked points that gave none; or why it has no mask."""
        mine = [a for a in self.result.everything if a.label == self.label]
        if self.label in self.result.labels:
            if self.config.prompts == "label":
                return f"mask, score {mine[0].score:.2f}"
            least = self.config.min_share
            shown = [a for a in mine if a.share >= least]
            scores = ", ".join(f"score {a.score:.2f} share {a.share:.2f}" for a in shown)
            weak = ", ".join(f"{a.share:.2f}" for a in mine if a.share < least)
            return (
                f"{counted(len(shown), 'object')}: {scores}"
                + (f"; left out, below the least share: {weak}" if weak else "")
                + self._without_mask(len(mine))
            )
        points = self.bench.changed.get(self.label)
        if points is not None and not asks_for_a_mask(points):
            return "no mask: it has no positive point and no box"
        return next(a.reason for a in self.result.absent if a.label == self.label)

    def _without_mask(self, masks: int) -> str:
        """What becomes of points that were clicked: the masks of the same object are one."""
        points = self.bench.changed.get(self.label)
        if points is None:
            return ""
        idle = int(np.isin(points[:, 2], (1, CORNERS[0])).sum()) - masks
        if idle <= 0:
            return ""
        kind = (
            counted(idle, "point") if (points[:, 2] <= 1).all() else f"{idle} of points and boxes"
        )
        return f"; {kind} gave no mask, or one that is there already"

    # -- points

    def click(self, x: float, y: float, kind: int) -> None:
        """Add a point to the selected label, or remove the one that is there, see `Bench.click`."""
        self.bench.click(self.result, self.label, x, y, kind)
        self.run()

    def box(self, one: tuple[float, float], other: tuple[float, float]) -> None:
        """Add a box to the selected label, by two opposite corners, see `Bench.box`."""
        self.bench.box(self.result, self.label, one, other)
        self.run()

    def forget(self) -> None:
        """The selected label has its computed points again, in this image."""
        self.bench.changed.pop(self.label, None)
        self.run()

    # -- accepted masks

    def accept(self) -> bool:
        """Accept the selected label's masks as they are now, in place of those accepted earlier in
        this image; False if there is none."""
        result, label = self.result, self.label
        mine = tuple(a for a in result.annotations if a.label == label)
        if not mine:
            return False
        number = result.class_names.index(label)
        record = replace(
            result.record,
            image_id=1 if self.source is None else self.source.ids[self.index],
            file_name=self.name,
            annotations=mine,
            presence=(result.record.presence[number],),
            beaten=(result.record.beaten[number],),
        )
        new = Accepted(self.label_set.wanted[number], record)
        place = (label, record.image_id)
        others = [a for a in self.accepted if (a.label.name, a.record.image_id) != place]
        self._keep((*others, new))
        return True

    def remove(self, number: int) -> None:
        """Take one of `accepted` away, by its index."""
        self._keep(tuple(a for i, a in enumerate(self.accepted) if i != number))

    def undo(self) -> bool:
        """Take back the last change of `accepted`; False if there is none."""
        if not self._earlier:
            return False
        self.accepted = self._earlier.pop()
        return True

    def _keep(self, accepted: tuple[Accepted, ...]) -> None:
        self._earlier.append(self.accepted)
        self.accepted = accepted

    def coco(self) -> dict[str, Any]:
        """The accepted masks as a COCO dataset of their images; the categories are their labels."""
        classes = {a.label.name: a.label for a in self.accepted}
        images: dict[int, dict[str, ImageRecord]] = {}
        for a in self.accepted:
            images.setdefault(a.record.image_id, {})[a.label.name] = a.record
        records = []
        for image_id in sorted(images):
            of = images[image_id]
            mine = [of.get(name) for name in classes]
            records.append(
                replace(
                    next(iter(of.values())),
                    annotations=tuple(a for one in mine if one for a in one.annotations),
                    presence=tuple(one.presence[0] if one else None for one in mine),
                    beaten=tuple(bool(one and one.beaten[0]) for one in mine),
                )
            )
        return coco_document(records, tuple(classes.values()))


def _source_of(images: Any) -> Source | None:
    """Where several images are; None for a single one."""
    if isinstance(images, str | os.PathLike):
        several = os.fspath(images).lower().endswith((".json", *LIST_SUFFIXES))
        several = several or not os.path.isfile(images) or kind_given(images) != "files"
        return open_source(images) if several else None
    if not isinstance(images, list | tuple):
        return None
    if not all(isinstance(image, str | os.PathLike) for image in images):
        raise ImageError("expected one image, or several as a list of paths; give them one by one")
    return open_source(images)


def typed_labels(text: str) -> list[str]:
    """Labels as typed: separated by semicolons or by lines.

    Raises:
        LabelError: there is none.
    """
    names = [name.strip() for name in text.replace("\n", ";").split(";") if name.strip()]
    if not names:
        raise LabelError("no label is typed; type names, separated by ; or on a line each")
    return names


def counted(number: int, thing: str) -> str:
    """A number of things: "1 mask", "2 masks"."""
    return f"{number} {thing}{'s' * (number != 1)}"
