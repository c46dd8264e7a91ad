"""The main job over a handful of pictures: masks into one COCO file, and a drawing of each label found."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clip2sam.coco.document import coco_document, file_name_fault, write_coco
from clip2sam.data.images import load_image
from clip2sam.data.labels import LabelSet
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.errors import ImageError
from clip2sam.pipeline import Segmenter
from clip2sam.result import Absent

Overlays = Literal["found", "all", "none"]


@dataclass(frozen=True)
class Segmented:
    """What became of one picture. A picture that failed has a reason, and nothing else."""

    file_name: str
    """POSIX path relative to the folder that all pictures are in."""
    record: ImageRecord | None = None
    annotations: tuple[Annotation, ...] = ()
    absent: tuple[Absent, ...] = ()
    overlays: tuple[Path, ...] = ()
    failure: str = ""


def segment_files(
    segmenter: Segmenter,
    paths: Sequence[str | os.PathLike[str]],
    labels: LabelSet,
    output: Path,
    *,
    overlays: Overlays = "found",
    polygons: bool = False,
    on_picture: Callable[[Segmented], Any] = lambda _: None,
) -> list[Segmented]:
    """Segment pictures and write `annotations.json` and `overlays/` into the output folder.

    A picture that can't be read costs that picture: it is reported with its reason and left out of the file.
    If the run is interrupted from the keyboard, the file holds what was done, and KeyboardInterrupt goes on.

    Args:
        paths: the pictures; their names in the file are relative to the folder that all of them are in.
        overlays: which labels are drawn: those found, all that were asked for, or none.
        polygons: write polygons instead of RLE.
        on_picture: called after each picture.
    """
    output.mkdir(parents=True, exist_ok=True)
    done: list[Segmented] = []
    try:
        for path, name in zip(paths, relative_names(paths), strict=True):
            done.append(_segment_one(segmenter, path, name, labels, output / "overlays", overlays))
            on_picture(done[-1])
    finally:
        good = [s for s in done if s.record is not None]
        document = coco_document(
            [s.record for s in good if s.record],
            [s.annotations for s in good],
            labels,
            polygons=polygons,
        )
        write_coco(output / "annotations.json", document)
    return done


def _segment_one(
    segmenter: Segmenter,
    path: str | os.PathLike[str],
    name: str,
    labels: LabelSet,
    folder: Path,
    overlays: Overlays,
) -> Segmented:
    if fault := file_name_fault(name):
        return Segmented(name, failure=f"{fault}; rename it")
    try:
        image = load_image(path)
    except ImageError as error:
        return Segmented(name, failure=str(error))
    result = segmenter(image, labels)
    from clip2sam.visualize.overlays import draw_overlays  # matplotlib is slow to import

    drawn = draw_overlays(result, folder / name, overlays)
    return Segmented(name, result.record(name), result.annotations, result.absent, drawn)


def relative_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Names for the pictures in a COCO file: relative to the deepest folder that holds them all, with slashes.

    Bytes that are not UTF-8 stay as Python decodes them, lone surrogates, which JSON writes as escapes.
    """
    absolute = [Path(os.path.abspath(p)) for p in paths]
    if not absolute:
        return []
    root = os.path.commonpath([p.parent for p in absolute])
    return [p.relative_to(root).as_posix() for p in absolute]
