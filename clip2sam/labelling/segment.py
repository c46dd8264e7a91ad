"""The main job over a few images: masks into one COCO file, and drawings of the labels found.

The small sibling of `label_dataset`, with the same listing, guards, records and exporter, and
without run and journal.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clip2sam import __version__
from clip2sam.coco.document import file_name_fault, made_by
from clip2sam.config import PROMPTS
from clip2sam.data.images import MAX_PIXELS, Image, printable
from clip2sam.data.labels import LabelSet
from clip2sam.data.records import ImageRecord
from clip2sam.data.sources import Source, check_output, find_source
from clip2sam.errors import ImageError, ModelError
from clip2sam.export.coco import CocoExporter
from clip2sam.labelling.decode_worker import load_named
from clip2sam.labelling.failures import ModelFailures, for_one_image
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
    on_image: OnImage | None = None,
) -> list[ImageRecord]:
    """Segment images and write `annotations.json` and `overlays/` into the output folder.

    An image that can't be read, or that the model fails on, costs that image: its record has the
    reason, and the file leaves it out. If the call is interrupted, or stops because the model fails
    on several images in a row, the file holds what was done, and the error goes on.

    Args:
        sources: what `find_source` takes (folders, globs, images, or one list or COCO file), or a
            `Source` object.
        labels: checked labels.
        overlays: which labels are drawn: "found", "all" or "none".
        polygons: write polygons instead of RLE.
        on_image: called after each image.

    Returns:
        A record for each image, in the order of the source.

    Raises:
        ImageError: the source can't be listed.
        ConfigError: the output lies where images are read.
        RunError: the model failed on several images in a row.
        OutputError: a file can't be written.
    """
    source = sources if isinstance(sources, Source) else find_source(sources)
    folder = Path(output)
    check_output(source, folder)
    records: list[ImageRecord] = []
    in_a_row = ModelFailures()
    try:
        for image_id, key in zip(source.ids, source.keys, strict=True):
            record, result, by_model = _segmented(segmenter, source, image_id, key, labels)
            stem = folder / "overlays" / key
            drawn = () if result is None else draw_overlays(result, stem, overlays)
            records.append(record)
            if on_image is not None:
                on_image(record, result, drawn)
            if by_model:
                in_a_row.add(record.reason)
            elif result is not None:
                in_a_row.clear()
    finally:
        good = [record for record in records if record.state != "failed"]
        CocoExporter(polygons=polygons, info=_info(segmenter, labels)).write(
            good, labels.wanted, folder / "annotations.json"
        )
    return records


def _info(segmenter: Segmenter, labels: LabelSet) -> dict[str, Any]:
    """What the COCO file says of itself."""
    config = segmenter.config
    return {
        **made_by(__version__, labels.caption),
        "masks": PROMPTS[config.prompts],
        "min_share": config.min_share,
        "presence_threshold": config.presence_threshold,
    }


def _segmented(
    segmenter: Segmenter, source: Source, image_id: int, key: str, labels: LabelSet
) -> tuple[ImageRecord, Result | None, bool]:
    """An image's record, its result, and whether the model failed on it."""

    def failed(reason: str, by_model: bool = False) -> tuple[ImageRecord, None, bool]:
        return ImageRecord(image_id, key, state="failed", reason=reason), None, by_model

    if fault := file_name_fault(key):
        return failed(f"{printable(key)}: {fault}; rename it")
    try:
        image = load_named(source.read(key), key, MAX_PIXELS)
        result = for_one_image(lambda: _result(segmenter, image, image_id, key, labels))
    except ImageError as error:
        return failed(str(error))
    except ModelError as error:
        return failed(str(error), by_model=True)
    return result.record, result, False


def _result(
    segmenter: Segmenter, image: Image, image_id: int, key: str, labels: LabelSet
) -> Result:
    features = segmenter.encode([image])
    (result,) = segmenter.segment(features, labels, ids=(image_id,), names=(key,))
    return result
