"""The journal in the formats of other tools: YOLO segmentation, Label Studio predictions, one index PNG a picture."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import yaml
from PIL import Image as PILImage

from clip2sam import __version__
from clip2sam.coco.document import decode_rle, rle_to_polygons
from clip2sam.data.files import atomic_file
from clip2sam.data.records import FoundMask, Labelled
from clip2sam.errors import ConfigError
from clip2sam.export.coco import Add, JsonList
from clip2sam.labelling.manifest import RunFolder
from clip2sam.visualize import colour

LOCAL_FILES = "/data/local-files/?d="
"""What Label Studio puts in front of pictures in its own storage folder."""


@contextmanager
def yolo_folder(run: RunFolder, folder: Path) -> Iterator[Add]:
    """YOLO segmentation: `labels/NAME.txt` for each picture, and `data.yaml`, which expects the pictures in `images/`
    beside it.

    A line is a class (from 0) and a polygon, x and y by turns, as shares of the width and height. A mask of several
    parts is one line: they are joined by lines there and back, which enclose nothing (a reader that also fills the
    pixels on an outline shows them one pixel wide). A picture without a mask has an empty file.

    Raises `ConfigError` if two pictures differ in their ending only, which this format can't tell apart.
    """
    first: dict[str, str] = {}
    for key in run.source.keys:
        stem = os.path.splitext(key)[0]
        if first.setdefault(stem, key) != key:
            raise ConfigError(
                f"YOLO's label files have no ending of their picture: {first[stem]!r} and "
                f"{key!r} would share one; rename one of them"
            )

    def add(record: Labelled, masks: Sequence[FoundMask]) -> None:
        height, width = record.size
        lines = []
        for mask in masks:
            corners = joined_polygons(rle_to_polygons(record.rle(mask))) / (width, height)
            lines.append(
                f"{mask.label} " + " ".join(f"{share:.6g}" for share in corners.ravel()) + "\n"
            )
        stem = os.path.splitext(record.key)[0]
        with atomic_file(folder / "labels" / f"{stem}.txt") as file:
            file.write("".join(lines).encode())

    yield add
    names = {i: c.name for i, c in enumerate(run.classes)}
    data = {"train": "images", "val": "images", "names": names}
    with atomic_file(folder / "data.yaml") as file:
        file.write(yaml.safe_dump(data, allow_unicode=True, sort_keys=False).encode())


def joined_polygons(polygons: list[list[float]]) -> np.ndarray:
    """One ring (corners, 2) through all parts: from the first corner of the first one to each other one and back."""
    rings = [np.reshape(p, (-1, 2)) for p in polygons]
    if len(rings) == 1:
        return rings[0]
    start = rings[0][:1]
    more = [part for ring in rings[1:] for part in (ring, ring[:1], start)]
    return np.concatenate([rings[0], start, *more[:-1]])


@contextmanager
def label_studio_file(run: RunFolder, path: Path, prefix: str = LOCAL_FILES) -> Iterator[Add]:
    """Label Studio tasks with predictions, and beside them `NAME.xml`: the labelling interface that they fit.

    Polygons in percent of the picture, one region for each part of a mask.

    Args:
        prefix: what stands in front of a picture's name (which is escaped as in an URL).
    """
    with atomic_file(path) as file:
        file.write(b"[")
        tasks = JsonList(file)

        def add(record: Labelled, masks: Sequence[FoundMask]) -> None:
            prediction = {
                "model_version": f"clip2sam {__version__}",
                "score": min((m.score for m in masks), default=0.0),
                "result": [
                    region(run, record, mask, f"{i}-{part}", polygon)
                    for i, mask in enumerate(masks)
                    for part, polygon in enumerate(rle_to_polygons(record.rle(mask)))
                ],
            }
            image = prefix + quote(os.fsencode(record.key))
            tasks.add({"data": {"image": image}, "predictions": [prediction]})

        yield add
        file.write(b"]\n")
    with atomic_file(path.with_suffix(".xml")) as file:
        labels = "".join(f"    <Label value={quoteattr(c.name)}/>\n" for c in run.classes)
        file.write(
            '<View>\n  <Image name="image" value="$image"/>\n'
            f'  <PolygonLabels name="label" toName="image">\n{labels}  </PolygonLabels>\n</View>\n'.encode()
        )


def region(
    run: RunFolder, record: Labelled, mask: FoundMask, name: str, polygon: list[float]
) -> dict[str, Any]:
    """One polygon as a Label Studio region."""
    height, width = record.size
    percent = np.reshape(polygon, (-1, 2)) * (100 / width, 100 / height)
    return {
        "id": name,
        "type": "polygonlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": mask.score,
        "value": {
            "points": [[round(x, 6), round(y, 6)] for x, y in percent.tolist()],
            "closed": True,
            "polygonlabels": [run.classes[mask.label].name],
        },
    }


@contextmanager
def png_folder(run: RunFolder, folder: Path) -> Iterator[Add]:
    """One PNG a picture, `NAME.png`: 0 is background, 1 the first class, and so on; `classes.txt` has the names.

    With up to 255 classes 8 bits with a palette, else 16 bits. Where masks of several classes overlap, the one with the
    best score is on top, unless the decision has set them apart.
    """
    colours = np.array([(0, 0, 0), *(colour(i) for i in range(255))])
    palette = np.rint(255 * colours).astype(np.uint8)

    def add(record: Labelled, masks: Sequence[FoundMask]) -> None:
        index = np.zeros(record.size, np.uint8 if len(run.classes) <= 255 else np.uint16)
        for mask in sorted(masks, key=lambda m: m.score):
            index[decode_rle(record.rle(mask))] = mask.label + 1
        picture = PILImage.fromarray(index)
        if index.dtype == np.uint8:
            picture.putpalette(palette.tobytes())
        data = io.BytesIO()
        picture.save(data, "PNG")
        with atomic_file(folder / PurePosixPath(f"{record.key}.png")) as file:
            file.write(data.getvalue())

    yield add
    with atomic_file(folder / "classes.txt") as file:
        file.write("".join(f"{i} {c.name}\n" for i, c in enumerate(run.classes, 1)).encode())
