"""Records as Pascal VOC: boxes as XML, and masks of classes and of objects as PNG.

Source of the format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from clip2sam.coco.document import CheckedMask, checked_records
from clip2sam.data.files import write_atomically
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import ImageRecord
from clip2sam.errors import CocoError, ConfigError
from clip2sam.export.names import FileNames
from clip2sam.export.painting import painted, png_of
from clip2sam.export.placing import Placing
from clip2sam.export.splits import check_share, split_of
from clip2sam.export.xml_text import xml_text

MOST = 254
"""Classes, and objects of an image: a PNG's 8 bits without 0, background, and 255, which VOC's
readers ignore."""


@dataclass(frozen=True)
class VocExporter:
    """Pascal VOC's folders: `Annotations` (an XML file an image, with its boxes),
    `SegmentationClass` (PNG: 0 is background, 1 the first class, and so on), `SegmentationObject`
    (PNG: 1 is the first object of the XML file), `JPEGImages` if images are put there, and
    `ImageSets/Main` and `ImageSets/Segmentation` with the lists train, val and trainval.

    `labelmap.txt` has the classes as CVAT reads them: `name:r,g,b::` on a line, background first.
    Boxes are VOC's: the first pixel is 1, and the last one belongs to the box. A pixel belongs to
    one mask: where masks overlap, the one with the best score is on top, unless the decision has
    separated them. Names are those of `FileNames`, with a `UserWarning` where they had to be
    changed; characters that would break a list become `_`.
    """

    images: str = "none"
    """How images are put into `JPEGImages`, see `Placing`. They keep their suffixes."""
    root: str | os.PathLike[str] | None = None
    """The folder that the records' names are relative to. Nothing is written there."""
    val_share: float = 0.1
    """The share of the images in the list val, see `split_of`."""
    read: Callable[[str], bytes] | None = None
    """In place of a root, for images that are no files, see `Placing`."""

    def __post_init__(self) -> None:
        _ = self._placing
        check_share(self.val_share)

    @property
    def _placing(self) -> Placing:
        return Placing(self.images, self.root, self.read)

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> None:
        """Write the folder `output`.

        Raises:
            ConfigError: there are more than `MOST` classes, or images can't be linked.
            CocoError: an image has more than `MOST` masks, or see `checked_masks`.
            ImageError: an image is not there any more.
            OutputError: a file can't be written.
        """
        if len(classes) > MOST:
            raise ConfigError(
                f"Pascal VOC's masks hold {MOST} classes, but there are {len(classes)}; choose the "
                "format png, which has 16 bits, or keep fewer with --class"
            )
        placing, names, others = self._placing, FileNames(for_lists=True), 0
        palette = voc_colours()
        lists: dict[str, list[str]] = {"train": [], "val": [], "trainval": []}
        for record, masks in checked_records(records, classes):
            _check_count(record, masks)
            data = placing.data(record.file_name)
            suffix = placing.suffix(record.file_name, data) or ".jpg"
            stem = names.stem(record.file_name, max(".png", suffix, key=len))
            xml = _annotation(record, masks, output.name, stem + suffix)
            write_atomically(output / "Annotations" / f"{stem}.xml", xml.encode())
            of_object = painted(record.size, masks)
            of_class = np.array([0, *(mask.number for mask in masks)])[of_object]
            for kind, index in (("Class", of_class), ("Object", of_object)):
                path = output / f"Segmentation{kind}" / f"{stem}.png"
                write_atomically(path, png_of(index.astype(np.uint8), palette))
            placing.put(record.file_name, data, output / "JPEGImages" / (stem + suffix))
            for name in (split_of(record.file_name, self.val_share), "trainval"):
                lists[name].append(stem)
            others += self.images != "none" and suffix != ".jpg"
        for name, stems in lists.items():
            text = "".join(f"{stem}\n" for stem in stems).encode()
            for use in ("Main", "Segmentation"):
                write_atomically(output / "ImageSets" / use / f"{name}.txt", text)
        write_atomically(output / "labelmap.txt", _label_map(classes).encode())
        names.write_list(output)
        if others:
            warnings.warn(
                f"{others} images have another suffix than .jpg, the only one that most readers of "
                "Pascal VOC look for; convert them",
                stacklevel=2,
            )


def voc_colours() -> UInt8[np.ndarray, "256 3"]:
    """VOC's palette, RGB: the bits of a number go to red, green and blue in turn, three at a time,
    to their highest bits first."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = numbers >> (3 * place + channel) & 1
            colours[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return colours


def _check_count(record: ImageRecord, masks: Sequence[CheckedMask]) -> None:
    if len(masks) > MOST:
        raise CocoError(
            f"{record.file_name} has {len(masks)} masks, but Pascal VOC's object masks hold {MOST};"
            " keep fewer with --max-objects or --min-score"
        )


def _annotation(
    record: ImageRecord, masks: Sequence[CheckedMask], folder: str, file_name: str
) -> str:
    """The XML of an image. VOC wants its channels, which a record doesn't know: 3."""
    height, width = record.size
    return (
        f"<annotation>\n  <folder>{xml_text(folder)}</folder>\n"
        f"  <filename>{xml_text(file_name)}</filename>\n"
        "  <source><database>clip2sam</database></source>\n"
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        f"  <segmented>{int(bool(masks))}</segmented>\n"
        + "".join(map(_object, masks))
        + "</annotation>\n"
    )


def _object(mask: CheckedMask) -> str:
    x, y, width, height = mask.box
    return (
        f"  <object>\n    <name>{xml_text(mask.annotation.label)}</name>\n"
        "    <pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>\n"
        f"    <bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox>\n  </object>\n"
    )


def _label_map(classes: Sequence[LabelClass]) -> str:
    names = ("background", *(c.name for c in classes))
    lines = zip(names, voc_colours().tolist(), strict=False)
    return "# label:color_rgb:parts:actions\n" + "".join(
        f"{name}:{red},{green},{blue}::\n" for name, (red, green, blue) in lines
    )
