"""A run's journal decided anew and written in a format, without the models."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from clip2sam.data.images import printable
from clip2sam.errors import ConfigError
from clip2sam.export.coco import Add, coco_file, read_coco, results_file
from clip2sam.export.other_files import LOCAL_FILES, label_studio_file, png_folder, yolo_folder
from clip2sam.labelling.decide import Decision
from clip2sam.labelling.journal import read_index
from clip2sam.labelling.manifest import RunFolder, open_run
from clip2sam.labelling.summary import Summary, pour

FORMATS = ("coco", "results", "yolo", "labelstudio", "png")


def export(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str],
    format: str = "coco",
    decision: Decision | None = None,
    *,
    polygons: bool = False,
    merge: str | os.PathLike[str] | None = None,
    image_prefix: str = LOCAL_FILES,
) -> Summary:
    """Write what a run has in its journal, finished or not, in a format.

    Args:
        run: the output folder of `label`. It is only read, so it may be at work.
        output: a file (coco, results, labelstudio) or a folder (yolo, png).
        format: coco, results, yolo, labelstudio or png.
        decision: which masks are kept; by default those that the run itself decided upon.
        polygons: for coco: polygons instead of RLE.
        merge: for coco: a data set to which is added; its own rows stay as they are.
        image_prefix: for labelstudio: what stands in front of a picture's name.

    Returns:
        The counts of what was written.

    Raises:
        ConfigError: an unknown format, an option of another one, or thresholds that the journal has no masks for.
        RunError: the folder is no run.
        CocoError: the file to merge with can't be used.
        OutputError: the output can't be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"no format is called {format!r}; choose one of {', '.join(FORMATS)}")
    if format != "coco" and (polygons or merge is not None):
        raise ConfigError(
            f"polygons and merging are for the format coco, not {format}; leave them out"
        )
    folder, target = open_run(Path(run)), Path(output)
    own = {folder.path / name for name in (folder.journal.name, "manifest.json", "lock")}
    if target.resolve() in {path.resolve() for path in own}:
        raise ConfigError(f"{printable(target)} is the run's own file; give another output")
    writers: dict[str, Callable[[RunFolder, Path], AbstractContextManager[Add]]] = {
        "coco": partial(
            coco_file, polygons=polygons, merge=None if merge is None else read_coco(Path(merge))
        ),
        "results": results_file,
        "yolo": yolo_folder,
        "labelstudio": partial(label_studio_file, prefix=image_prefix),
        "png": png_folder,
    }
    index = read_index(folder.journal, len(folder.source.keys))
    with writers[format](folder, target) as add:
        return pour(folder, index, decision or Decision(), [add])
