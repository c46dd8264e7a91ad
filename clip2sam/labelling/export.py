"""A run's journal, decided anew and written by an exporter. No models, no torch."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clip2sam.coco.outlines import tolerance_of
from clip2sam.errors import ConfigError
from clip2sam.export import Exporter, exporter_for
from clip2sam.labelling.content import Content, open_content
from clip2sam.labelling.decide import Decision
from clip2sam.labelling.info import run_info
from clip2sam.labelling.summary import Summary, write_files


def export_run(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str],
    exporter: str | Exporter = "coco",
    decision: Decision | None = None,
    *,
    polygons: bool = False,
    tolerance: float | None = None,
    merge: str | os.PathLike[str] | None = None,
    image_prefix: str | None = None,
    images: str | None = None,
    val_share: float | None = None,
    on_image: Callable[[int, int], Any] | None = None,
) -> Summary:
    """Write what a run has in its journal, finished or not.

    Args:
        run: the output folder of `label_dataset`. It is only read, so the run may be at work.
        output: a file (coco, results, labelstudio, cvat, parquet, jsonl; the last two also write
            images.NAME beside it) or a folder (yolo, labelme, voc, cityscapes, png).
        exporter: one of `clip2sam.export.EXPORTERS`, or an `Exporter` of your own.
        decision: which masks are kept; by default those that the run itself decided to keep.
        polygons: for coco and cvat: polygons instead of RLE.
        tolerance: of polygons (coco, yolo, labelstudio, cvat, labelme), in pixels, see
            `clip2sam.coco.outlines`: by default 1; 0: exact.
        merge: for coco: a file to which is added; its own rows stay as they are.
        image_prefix: for labelstudio: what stands in front of an image's name.
        images: for yolo, voc and labelme: "copy" (the default of yolo), "link" (hard links) or
            "none" (that of the others).
        val_share: for yolo and voc: the share of the images for validation; by default 0.1.
        on_image: called for each image of the journal with the number done, and of how many.

    Returns:
        The counts of what was written, and how well polygons fit their masks.

    Raises:
        ConfigError: an unknown format, an option of another one, an output that would overwrite
            the run or its images, thresholds that the journal has no masks for, or the format
            parquet without pyarrow.
        ImageError: for yolo, voc and labelme: an image is not there any more.
        RunError: the folder is no run, or one of another version, or no line of its journal can be
            read. Where some can't, a `UserWarning` says how many were passed over.
        CocoError: the file to merge with can't be used.
        OutputError: the output can't be written.
    """
    options = {
        "polygons": polygons or None,
        "tolerance": tolerance,
        "merge": merge,
        "image_prefix": image_prefix,
        "images": images,
        "val_share": val_share,
    }
    given = {name: value for name, value in options.items() if value is not None}
    content, target = open_content(Path(run)), Path(output)
    if exporter in ("coco", "cvat"):
        tolerance_of(tolerance, polygons=polygons or merge is not None)
    if isinstance(exporter, str):
        exporter = exporter_for(exporter, **{**_of_run(content, exporter, decision), **given})
    elif given:
        raise ConfigError(
            f"{', '.join(given)}: an exporter object has its options already; leave them out here"
        )
    content.check_output(target)
    content.check_lines()
    return write_files(content, decision or Decision(), {target: exporter}, on_image)


def _of_run(content: Content, exporter: str, decision: Decision | None) -> dict[str, Any]:
    """What an exporter is told of a run."""
    run = content.run
    if exporter in ("coco", "parquet"):
        return {"info": run_info(run, decision)}
    if exporter not in ("yolo", "voc", "labelme"):
        return {}
    usual = {"images": "copy"} if exporter == "yolo" else {}
    if run.kind == "files" or run.source is None:
        return {**usual, "root": run.root}
    return {**usual, "read": content.reader()}
