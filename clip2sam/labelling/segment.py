"""The main job over a few images: masks into one COCO file, and drawings of the labels found.

The small sibling of `label_dataset`, with the same listing, guards, records and exporter, and
without run and journal.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip2sam.coco.document import file_name_fault
from clip2sam.coco.outlines import TOLERANCE
from clip2sam.data.addresses import shown_url
from clip2sam.data.images import Image, printable
from clip2sam.data.labels import LabelSet
from clip2sam.data.records import ImageRecord
from clip2sam.data.sources import Source
from clip2sam.data.urls import WebSource, check_place, find_images, without_own
from clip2sam.errors import ImageError
from clip2sam.export.coco import CocoExporter
from clip2sam.labelling.each import each_image
from clip2sam.labelling.info import settings_info
from clip2sam.labelling.manifest import time_now
from clip2sam.pipeline import Segmenter
from clip2sam.result import Result
from clip2sam.visualize.overlays import Overlays, draw_overlays

StrPath = str | os.PathLike[str]

OnImage = Callable[[ImageRecord, Result | None, tuple[Path, ...]], Any]
"""What it is called with: the record, the result (None if the image failed: `record.reason` says
why), and the paths of the drawings."""


def segment_images(
    segmenter: Segmenter,
    sources: StrPath | Sequence[StrPath] | Source,
    labels: LabelSet,
    output: StrPath,
    *,
    overlays: Overlays = "found",
    polygons: bool = False,
    tolerance: float = TOLERANCE,
    preset: str = "own models",
    on_image: OnImage | None = None,
) -> list[ImageRecord]:
    """Segment images and write `annotations.json` and `overlays/` into the output folder.

    An image that can't be read, or that the model fails on, costs that image: its record has the
    reason, and the file leaves it out. If the call is interrupted, or stops because the model fails
    on several images in a row, the file holds what was done, and the error goes on.

    Args:
        sources: what `find_images` takes (folders, globs, images, addresses of images, or one list
            or COCO file), or a `Source` object. What an earlier call has drawn into a folder is
            left out.
        labels: checked labels.
        overlays: which labels are drawn, beside all masks in one: "found", "all" or "none".
        polygons: write polygons instead of RLE.
        tolerance: of the polygons, in pixels, see `clip2sam.coco.outlines`; 0: exact.
        preset: what the file calls the models.
        on_image: called after each image.

    Returns:
        A record for each image, in the order of the source.

    Raises:
        ImageError: the source can't be listed.
        ConfigError: the output lies where images are read.
        RunError: the model failed on several images in a row.
        OutputError: a file can't be written.
    """
    source = sources if isinstance(sources, Source) else without_own(find_images(sources))[0]
    folder = Path(output)
    check_place(source, folder)
    records: list[ImageRecord] = []
    began = time_now()

    def segmented(image: Image, image_id: int, key: str) -> Result:
        if fault := file_name_fault(key):
            raise ImageError(f"{printable(key)}: {fault}; rename it")
        (result,) = segmenter.segment(
            segmenter.encode([image]), labels, ids=(image_id,), names=(key,)
        )
        return result

    try:
        for outcome in each_image(source, segmented):
            result = outcome.value
            drawn: tuple[Path, ...] = ()
            if result is None:
                record = ImageRecord(
                    outcome.image_id, outcome.key, state="failed", reason=outcome.reason
                )
            else:
                record = replace(result.record, url=url_of(source, outcome.key))
                drawn = draw_overlays(result, folder / "overlays" / outcome.key, overlays)
            records.append(record)
            if on_image is not None:
                on_image(record, result, drawn)
    finally:
        good = [record for record in records if record.state != "failed"]
        locator = segmenter.locator.name
        info = settings_info(segmenter.config, locator, labels, preset=preset, date=began)
        CocoExporter(polygons=polygons, tolerance=tolerance, info=info).write(
            good, labels.wanted, folder / "annotations.json"
        )
    return records


def url_of(source: Source, key: str) -> str:
    """The address of an image; empty for a file."""
    given = source.urls.get(key) if isinstance(source, WebSource) else None
    return "" if given is None else shown_url(given)
