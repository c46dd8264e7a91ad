"""Images whose truth is known: drawn scenes, and COCO datasets."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools.coco import COCO

from clip2sam.coco.reading import read_json
from clip2sam.coco.rle import decode_rle, shortly
from clip2sam.data.images import Image, load_image, printable
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.data.sources import checked_key, locate
from clip2sam.errors import CocoError, LabelError, one_line
from clip2sam.tiny.scenes import KINDS, all_labels, instance_masks, requested_labels, split_scene

Mask = Bool[np.ndarray, "height width"]


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

    def labels(self, given: LabelSet | None, distractors: Sequence[str] = ()) -> LabelSet:
        """The labels to ask for: those given, or else the example's own. A distractor that is one
        of its own is a label.

        Raises:
            LabelError: the truth about a label is not known.
        """
        competing = [name for name in distractors if name not in self.requested]
        labels = given or as_label_set(self.requested, distractors=competing)
        unknown = [
            part.name
            for c in labels.wanted
            for part in (() if c.name in self.truth else c.parts)
            if part.name not in self.truth
        ]
        if unknown:
            known = ", ".join(repr(name) for name in list(self.truth)[:8])
            more = f" and {len(self.truth) - 8} more" if len(self.truth) > 8 else ""
            raise LabelError(
                f"expected labels whose truth is known, {known}{more}, got {unknown[0]!r}; "
                "name it as the dataset does (and give its text prompts), or leave it out"
            )
        return labels

    def joined(self, labels: LabelSet) -> "Example":
        """The example with the truth of joined labels: if it isn't known, one instance, the union
        of all instances of their parts."""
        if not labels.has_joined:
            return self
        truth, kinds = dict(self.truth), dict(self.kinds)
        for c in labels.wanted:
            if c.joined and c.name not in truth:
                masks = [mask for part in c.joined for mask in self.truth[part.name]]
                truth[c.name] = [np.any(masks, axis=0)] if masks else []
                groups = dict.fromkeys(self.kinds[part.name] for part in c.joined)
                kinds[c.name] = "+".join(groups)
        return replace(self, truth=truth, kinds=kinds)


def scene_examples(
    split: str, count: int, labels: int = 20, start: int = 0, kind: str = "plain"
) -> Iterator[Example]:
    """Seeded scenes, grouped by the kind of label. The truth is known of every label of
    `clip2sam.tiny.scenes.all_labels`; `labels` of them are requested, most of them absent.

    Args:
        kind: of scene, one of `clip2sam.tiny.scenes.SCENE_KINDS`.

    Raises:
        ConfigError: an unknown split or kind, or an index beyond its range.
    """
    groups = {label: group for group in KINDS for label in all_labels(group)}
    named = "" if kind == "plain" else f"-{kind}"
    for i in range(start, start + count):
        drawn = split_scene(split, i, kind)
        requested = requested_labels(drawn, labels)
        truth = {label: instance_masks(drawn, label) for label in groups}
        yield Example(
            Image(drawn.pixels, f"{split}{named}-{i:06d}.png"),
            truth,
            groups,
            tuple(label for group in KINDS for label in requested[group]),
        )


class CocoExamples:
    """The images of a COCO dataset, with all of its categories; crowds count as instances. The file
    is read once; its images are read anew each time that it is looped over.

    Args:
        dataset: the .json file.
        images: the folder that its file names are relative to.
        limit: so many images at most, the first ones; None: all.

    Raises:
        CocoError: the file is no COCO dataset, it has no image, or the first one isn't there. When
            it is looped over: what the file says of an image can't be used.
        ImageError: when it is looped over: an image can't be read, or its name leads out of the
            folder.
    """

    def __init__(self, dataset: Path, images: Path, limit: int | None = None) -> None:
        self._coco, self._categories = _read(dataset)
        self._dataset, self._images = dataset, images
        self._records = list(self._coco.imgs.values())[:limit]
        if not self._records:
            raise CocoError(f"{printable(dataset)}: expected a COCO dataset with images, got none")
        self._path(self._records[0])

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the categories, in the file's order."""
        return tuple(self._categories.values())

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Example]:
        groups = dict.fromkeys(self.names, "all")
        for record in self._records:
            image = load_image(self._path(record))
            yield Example(image, self._truth(record, image), groups, self.names)

    def _place(self, record: dict[str, Any]) -> str:
        return f"{printable(self._dataset)}, image {record['id']}"

    def _path(self, record: dict[str, Any]) -> str:
        place = self._place(record)
        path = locate(str(self._images), checked_key(record["file_name"], place))
        if not Path(path).is_file():
            raise CocoError(
                f"{place}: expected its file at {printable(path)}, found none; give the folder of "
                "the images with --images"
            )
        return path

    def _truth(self, record: dict[str, Any], image: Image) -> dict[str, list[Mask]]:
        """The masks of each category in an image."""
        truth: dict[str, list[Mask]] = {name: [] for name in self.names}
        for annotation in self._coco.imgToAnns[record["id"]]:
            place = f"{self._place(record)}, annotation {annotation['id']}"
            mask = _mask(self._coco, annotation, place)
            if mask.shape != image.size:
                raise CocoError(
                    f"{self._place(record)}: expected a file of {mask.shape[0]} x {mask.shape[1]} "
                    f"pixels (height x width), as its annotation {annotation['id']} says, got "
                    f"{image.size[0]} x {image.size[1]}; give the images that were annotated"
                )
            truth[self._categories[annotation["category_id"]]].append(mask)
        return truth


def category_names(dataset: Path) -> tuple[str, ...]:
    """The names of a COCO dataset's categories, in its order.

    Raises:
        CocoError: it is none.
    """
    return tuple(_read(dataset)[1].values())


def _read(dataset: Path) -> tuple[COCO, dict[int, str]]:
    """A dataset whose references are sound, and the name of each category."""
    origin = printable(dataset)
    try:
        document = read_json(dataset)
    except CocoError as error:
        raise CocoError(f"{origin} is no COCO dataset: {error}") from error
    rows = {
        "categories": (("id", int), ("name", str)),
        "images": (("id", int), ("file_name", str)),
        "annotations": (("id", int), ("image_id", int), ("category_id", int)),
    }
    for section, keys in rows.items():
        listed = document.get(section) if isinstance(document, dict) else None
        if not isinstance(listed, list):
            raise CocoError(
                f"{origin} is no COCO dataset: expected a list of {section}, got "
                f"{shortly(listed)}; see `clip2sam validate`"
            )
        for i, row in enumerate(listed):
            for key, kind in keys:
                value = row.get(key) if isinstance(row, dict) else None
                if type(value) is not kind:
                    wanted = "a whole number" if kind is int else "a text"
                    raise CocoError(
                        f"{origin}, {section}[{i}]: expected {wanted} as {key}, got "
                        f"{shortly(value)}; see `clip2sam validate`"
                    )
    _check_references(document, origin)
    coco = COCO()
    coco.dataset = document
    with redirect_stdout(StringIO()):  # pycocotools prints
        coco.createIndex()
    return coco, {c["id"]: c["name"] for c in document["categories"]}


def _check_references(document: dict[str, Any], origin: str) -> None:
    images = {row["id"] for row in document["images"]}
    categories = {row["id"] for row in document["categories"]}
    for i, row in enumerate(document["annotations"]):
        for key, known in (("image_id", images), ("category_id", categories)):
            if row[key] not in known:
                raise CocoError(
                    f"{origin}, annotations[{i}]: expected the id of one of its "
                    f"{'images' if key == 'image_id' else 'categories'} as {key}, got {row[key]}; "
                    "see `clip2sam validate`"
                )


def _mask(coco: COCO, annotation: dict[str, Any], place: str) -> Mask:
    """An annotation's mask, be it polygons or RLE."""
    size = coco.imgs[annotation["image_id"]]
    if isinstance(annotation.get("segmentation"), list):
        for key in ("height", "width"):
            if type(size.get(key)) is not int or size[key] < 1:
                raise CocoError(
                    f"{place}: expected the image's {key} in pixels beside polygons, got "
                    f"{shortly(size.get(key))}; see `clip2sam validate`"
                )
    try:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
            return decode_rle(segmentation)
        rle = coco.annToRLE(annotation)  # counts are bytes, or text where the file has RLE
        counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode()
        return decode_rle({"size": [int(n) for n in rle["size"]], "counts": counts})
    except Exception as error:  # pycocotools' own are of no class in particular
        raise CocoError(
            f"{place}: expected polygons or RLE as segmentation, got "
            f"{shortly(annotation.get('segmentation'))} ({one_line(error)}); "
            "see `clip2sam validate`"
        ) from error
