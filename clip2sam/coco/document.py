"""The last room: masks become COCO annotations, as RLE or polygons, and annotations a file, checked and written whole.

RLE is pycocotools' compressed form as text, {"size": [height, width], "counts": str}, down the columns. A box is
[x, y, width, height] in pixels, where [0, 0, 1, 1] is the first pixel. Polygons [x1, y1, x2, y2, ...] run along the
edges of pixels, in the same coordinates.
Source of the format: https://cocodataset.org/#format-data and common/maskApi.c of https://github.com/cocodataset/cocoapi
"""

import json
import os
import re
import reprlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as mask_utils

from clip2sam.data.images import printable
from clip2sam.data.labels import LabelSet
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.errors import CocoError


def encode_mask(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """A mask as RLE. Raises `CocoError` for an array that is not boolean, not of two dimensions or without pixels."""
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise CocoError(
            f"expected a boolean mask (height, width), got {mask.dtype} of shape {mask.shape}; convert it"
        )
    columns = cv2.transpose(np.ascontiguousarray(mask).view(np.uint8)).reshape(mask.shape[::-1])
    rle = mask_utils.encode(columns.T)
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: dict[str, Any]) -> Bool[np.ndarray, "height width"]:
    """The mask of an RLE, compressed or not. Raises `CocoError` for a damaged one, as `run_lengths` does."""
    runs = run_lengths(rle)
    height, width = rle["size"]
    inside = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, runs).reshape(width, height).T)


def run_lengths(rle: dict[str, Any]) -> Int[np.ndarray, "runs"]:
    """The lengths of a mask's runs down its columns, outside and inside by turns, outside first: int64.

    `rle` is {"size": [height, width], "counts": a compressed string or a list of lengths}. They sum to
    height * width. Raises `CocoError` for whatever is no such thing.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not (
        isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    ):
        raise CocoError(
            f"expected an RLE size of [height, width], whole numbers from 1, got {shortly(size)}"
        )
    pixels = size[0] * size[1]
    if pixels >= 2**32:
        raise CocoError(
            f"expected an RLE of fewer than 2**32 pixels, got a size of {shortly(size)}"
        )
    if isinstance(counts, str):
        runs = _unpack(counts)
    elif isinstance(counts, list) and all(type(n) is int and 0 <= n <= pixels for n in counts):
        runs = np.array(counts, np.int64)
    else:
        raise CocoError(
            f"expected RLE counts as a string or a list of lengths, got {shortly(counts)}"
        )
    if (runs < 0).any():
        raise CocoError(f"expected RLE counts from 0, got {runs.min()} at position {runs.argmin()}")
    if runs.sum() != pixels:
        raise CocoError(
            f"expected RLE counts that sum to {pixels} (height * width), got {runs.sum()}"
        )
    return runs


def area_and_box(rle: dict[str, Any]) -> tuple[int, list[int]]:
    """Number of pixels and [x, y, width, height] of a mask, from its RLE; all 0 for an empty one.

    Raises `CocoError` as `run_lengths` does.
    """
    runs = run_lengths(rle)
    height = rle["size"][0]
    inside = runs[1::2]
    ends = np.cumsum(runs)[1::2][inside > 0]
    if len(ends) == 0:
        return 0, [0, 0, 0, 0]
    first, last = ends - inside[inside > 0], ends - 1
    left, right = int(first[0]) // height, int(last[-1]) // height
    if (
        first // height != last // height
    ).any():  # a run over two columns touches the bottom and the top
        top, bottom = 0, height - 1
    else:
        top, bottom = int((first % height).min()), int((last % height).max())
    return int(inside.sum()), [left, top, right - left + 1, bottom - top + 1]


def file_name_fault(name: str) -> str | None:
    """What is wrong with a picture's name, which must be a POSIX path below the data set's root; None if nothing is."""
    wanted = "expected a POSIX path relative to the data set's root"
    if not name:
        return f"{wanted}, got an empty text"
    if "\\" in name:
        return f"{wanted}, with / between folders, got a backslash in {shortly(name)}"
    if "\0" in name:
        return f"{wanted}, got a NUL in {shortly(name)}"
    if name.startswith("/") or name[1:3] == ":/":
        return f"{wanted}, got the absolute {shortly(name)}"
    if ".." in name.split("/"):
        return f"{wanted}, got one that leads out of a folder: {shortly(name)}"
    return None


def rle_to_polygons(rle: dict[str, Any]) -> list[list[float]]:
    """A mask's outlines along the edges of its pixels: one polygon for each connected part.

    Parts that touch at a corner are one. A hole is cut out: the outline runs to it along a row, around it, and back
    the same way, so that every filling rule leaves it empty. Each polygon has 4 corners or more, at whole numbers, and
    exactly its pixels' area. An empty mask has none. Raises `CocoError` for a damaged RLE.
    """
    area, (x, y, width, height) = area_and_box(rle)
    if area == 0:
        return []
    # On a grid of twice the size plus one, odd places are the centres of pixels and even ones their edges. With each
    # pixel grown to its edges, the contour through the outermost places runs along the edges.
    grid = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)
    grid[1::2, 1::2] = decode_rle(rle)[y : y + height, x : x + width]
    found, tree = cv2.findContours(
        cv2.dilate(grid, np.ones((3, 3), np.uint8)), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    rings = [np.add(_with_corners(ring[:, 0] / 2), (x, y)) for ring in found]
    holes: dict[int, list[np.ndarray]] = {i: [] for i in range(len(rings)) if tree[0, i, 3] < 0}
    for ring, (_, _, _, parent) in zip(rings, tree[0], strict=True):
        if parent >= 0:
            holes[parent].append(ring)
    return [_cut_out(rings[i], inner).ravel().tolist() for i, inner in holes.items()]


def _with_corners(ring: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "corners 2"]:
    """A contour takes inner corners by a step across, from half an edge to half an edge: put the corners back."""
    after = np.roll(ring, -1, axis=0)
    across = (ring != after).all(axis=1)
    first, second = (
        np.column_stack([ring[:, 0], after[:, 1]]),
        np.column_stack([after[:, 0], ring[:, 1]]),
    )
    corners = np.where(_whole(first)[:, None], first, second)
    both = np.stack([ring, corners], axis=1).reshape(-1, 2)
    return both[np.stack([_whole(ring), across], axis=1).ravel()]


def _whole(points: Float[np.ndarray, "points 2"]) -> Bool[np.ndarray, "points"]:
    return np.asarray((points % 1 == 0).all(axis=1))


def _cut_out(
    ring: Float[np.ndarray, "corners 2"], holes: list[np.ndarray]
) -> Float[np.ndarray, "more 2"]:
    """Join holes to the ring around them, from left to right, each by a cut from its leftmost corner to the left."""
    for hole in sorted(holes, key=lambda h: float(h[:, 0].min())):
        hole = np.roll(hole, -int(hole[:, 0].argmin()), axis=0)
        x, y = hole[0]
        (x1, y1), (x2, y2) = ring.T, np.roll(ring, -1, axis=0).T
        crosses = (y1 <= y) != (y2 <= y)
        at = np.full(len(ring), -np.inf)
        at[crosses] = (x1 + (y - y1) * (x2 - x1) / np.where(crosses, y2 - y1, 1))[crosses]
        at[at > x] = -np.inf
        edge = int(
            at.argmax()
        )  # the nearest edge to the left; it exists, as the ring is around the hole
        bridge = np.array([[at[edge], y]])
        ring = np.concatenate([ring[: edge + 1], bridge, hole, hole[:1], bridge, ring[edge + 1 :]])
    return ring


def coco_document(
    records: Sequence[ImageRecord],
    annotations: Sequence[Sequence[Annotation]],
    labels: LabelSet,
    *,
    polygons: bool = False,
    info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A COCO data set, ready for `write_coco`: the same input gives the same document.

    `annotations` has one sequence for each of `records`. Ids count from 1 in the order given; the categories are the
    labels in the user's order, without distractors. Boxes and areas are the masks'. Masks without a pixel are left
    out, images without masks kept. Each annotation has its `score`. `info` goes into the file as it is.

    Raises `CocoError` if the two lists differ in length, and for a label that is no wanted one of `labels`, a mask
    of another size than its image, a score outside 0..1, and a file name that is no relative POSIX path or given twice.
    """
    if len(records) != len(annotations):
        raise CocoError(
            f"expected annotations for each of {len(records)} images, got {len(annotations)}"
        )
    category_ids = {c.name: i for i, c in enumerate(labels.wanted, 1)}
    rows: list[dict[str, Any]] = []
    for image_id, (record, found) in enumerate(zip(records, annotations, strict=True), 1):
        for annotation in found:
            row = _annotation_row(annotation, record, category_ids, polygons)
            if row["area"] > 0:
                rows.append({"id": len(rows) + 1, "image_id": image_id, **row})
    return {
        "info": dict(info)
        if info is not None
        else {"description": "Made with clip2sam", "version": "1.0"},
        "licenses": [],
        "images": _image_rows(records),
        "annotations": rows,
        "categories": [
            {"id": category_ids[c.name], "name": c.name, "supercategory": c.supercategory}
            for c in labels.wanted
        ],
    }


def _image_rows(records: Sequence[ImageRecord]) -> list[dict[str, Any]]:
    first: dict[str, int] = {}
    for i, record in enumerate(records, 1):
        if fault := file_name_fault(record.file_name):
            raise CocoError(f"image {i}: {fault}; rename it or name it from the data set's root")
        if first.setdefault(record.file_name, i) != i:
            raise CocoError(
                f"image {i}: {record.file_name!r} is given twice, first as image {first[record.file_name]}"
            )
    return [
        {"id": i, "file_name": r.file_name, "height": int(r.height), "width": int(r.width)}
        for i, r in enumerate(records, 1)
    ]


def _annotation_row(
    annotation: Annotation, record: ImageRecord, category_ids: dict[str, int], polygons: bool
) -> dict[str, Any]:
    where = f"{record.file_name}, {annotation.label!r}"
    if annotation.label not in category_ids:
        raise CocoError(
            f"{where}: expected one of the labels {shortly(list(category_ids))}; add it to them"
        )
    if not 0 <= annotation.score <= 1:
        raise CocoError(f"{where}: expected a score from 0 to 1, got {annotation.score}")
    try:
        area, box = area_and_box(annotation.rle)
    except CocoError as error:
        raise CocoError(f"{where}: {error}") from error
    if annotation.rle["size"] != [record.height, record.width]:
        raise CocoError(
            f"{where}: expected a mask of the image's [height, width] {[record.height, record.width]}, "
            f"got {annotation.rle['size']}; scale it first"
        )
    rle = {"size": list(annotation.rle["size"]), "counts": annotation.rle["counts"]}
    return {
        "category_id": category_ids[annotation.label],
        "segmentation": rle_to_polygons(rle) if polygons else rle,
        "area": area,
        "bbox": box,
        "iscrowd": 0,
        "score": float(annotation.score),
    }


def coco_results(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations of a data set as COCO results, which hold image_id, category_id, segmentation and score alone.

    Polygons become RLE, the only masks that results may have. Raises `CocoError` for an annotation without a score.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    results = []
    for annotation in document["annotations"]:
        if "score" not in annotation:
            raise CocoError(
                f"annotation {annotation['id']}: expected a score, got none; results are for predictions"
            )
        mask = annotation["segmentation"]
        if isinstance(mask, list):
            mask = mask_utils.merge(mask_utils.frPyObjects(mask, *sizes[annotation["image_id"]]))
            mask = {"size": list(mask["size"]), "counts": mask["counts"].decode("ascii")}
        keys = ("image_id", "category_id", "score")
        results.append({**{key: annotation[key] for key in keys}, "segmentation": mask})
    return results


def write_coco(
    path: str | os.PathLike[str], document: dict[str, Any] | list[dict[str, Any]]
) -> None:
    """Check a data set or results and write it as JSON in UTF-8: wholly, or not at all.

    Raises `CocoError`, with an older file left as it was, if `validate` finds a fault or the file can't be written.
    """
    from clip2sam.coco.validate import validate  # that room reads RLE with this one's functions

    if violations := validate(document):
        more = f" (and {len(violations) - 3} more)" if len(violations) > 3 else ""
        faults = "; ".join(map(str, violations[:3]))
        raise CocoError(
            f"{printable(path)}: not written, as it would not be valid COCO: {faults}{more}"
        )
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # UTF-8 has no lone surrogates, which stand for undecodable bytes in file names: JSON's own escapes carry them.
    text = re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
    write_atomically(path, text.encode() + b"\n")


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that at every moment, even of a crash, the old one or the new one stands there whole.

    The bytes go into a new file beside it, to the disk, and then take its name. Raises `CocoError` if that fails.
    """
    target = Path(path)
    beside = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(beside, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        if os.name == "posix":  # elsewhere a folder can't be opened
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CocoError(
            f"{printable(path)}: can't be written ({reason}); check the folder and the disk"
        ) from error


def shortly(value: Any) -> str:
    """A value in a message: short, on one line."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


def _unpack(counts: str) -> Int[np.ndarray, "runs"]:
    """The numbers in a compressed RLE string: 5 bits a character, the sixth says that more follow, the last one's
    fifth is the sign; from the fourth number on, each is the difference to the one before the last."""
    codes = np.frombuffer(counts.encode("ascii", "replace"), np.uint8).astype(np.int64) - ord("0")
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or not counts.isascii():
        raise CocoError(f"expected RLE counts of the characters '0' to 'o', got {shortly(counts)}")
    ends = np.flatnonzero(codes < 32)
    if len(ends) == 0 or ends[-1] != len(codes) - 1:
        raise CocoError("expected RLE counts, got a string that ends within a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise CocoError("expected RLE counts below 2**32, got a number of more than 7 characters")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
