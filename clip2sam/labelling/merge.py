"""A finished run in shards, published as a whole."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip2sam.export import Exporter
from clip2sam.labelling.content import open_complete
from clip2sam.labelling.lock import RunLock, lock_run
from clip2sam.labelling.manifest import Work, remove_leftovers
from clip2sam.labelling.outputs import FORMATS, checked_formats, own_exporters, own_files
from clip2sam.labelling.plan import open_plan, remove_unused_plans
from clip2sam.labelling.summary import PRESENCE, SUMMARY, Summary, check_exporters, publish


def merge_run(
    run: str | os.PathLike[str],
    *,
    formats: Sequence[str] = FORMATS,
    exporters: Mapping[str, Exporter] | None = None,
    on_image: Callable[[int, int], Any] | None = None,
) -> Summary:
    """Write the files of a run whose shards are all labelled: those that the same run without
    shards would have written, to the byte. One shard's list of images is in memory at a time.

    Args:
        run: the output folder that all shards were labelled into.
        formats: what is written: "coco", "parquet", "jsonl", see
            `clip2sam.labelling.outputs.FILES`.
        exporters: in their place a file name in `run` for each exporter.
        on_image: called for each image with the number done, and of how many.

    Returns:
        The run in figures. Seconds are those of all shards together.

    Raises:
        RunError: the folder is no run in shards; or shards are missing, not finished, of other
            images than the plan's, or labelled with other settings than the others.
        RunLockedError: another process merges it.
        OutputError: a file can't be written; an older one stays as it was.
    """
    path, formats = Path(run), checked_formats(formats)
    open_plan(path)  # in front of the lock, which would make the folder
    with lock_run(path) as lock:
        return publish_shards(path, lock, formats=formats, exporters=exporters, on_image=on_image)


def publish_shards(
    path: Path,
    lock: RunLock,
    *,
    formats: Sequence[str] = FORMATS,
    exporters: Mapping[str, Exporter] | None = None,
    now: Work | None = None,
    on_image: Callable[[int, int], Any] | None = None,
) -> Summary:
    """As `merge_run`, for whoever holds the run's lock already.

    Args:
        now: what this start did.
    """

    def told(done: int, of: int) -> None:
        lock.check()
        if on_image is not None:
            on_image(done, of)

    content = open_complete(path)
    if exporters is None:
        exporters = own_exporters(content.run, formats)
    files = (*own_files(formats), *check_exporters(exporters))
    lock.check()
    remove_leftovers(path, (SUMMARY, PRESENCE, *files))
    remove_unused_plans(path)
    return publish(content, exporters, now or Work(), on_image=told)
