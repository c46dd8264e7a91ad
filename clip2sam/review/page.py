"""The page's folder, written whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from clip2sam.data.files import output_errors
from clip2sam.data.images import MAX_PIXELS, printable
from clip2sam.data.records import ImageRecord
from clip2sam.data.sources import Source
from clip2sam.errors import ConfigError, ImageError
from clip2sam.labelling.content import Content, open_content
from clip2sam.labelling.decide import Decision, decide, decided_for, decided_thresholds
from clip2sam.labelling.summary import write_files
from clip2sam.review.pictures import picture
from clip2sam.review.rows import about_run, detail_row, overview_row

PAGE, FOLDER = "index.html", "report"
"""All that is written into the output folder."""
BESIDE = ".report.tmp."
"""The beginning of the name of a folder in which it grows."""
MARK = "run.js"
"""In FOLDER: by it an earlier report is known."""

DETAILS = 25
"""Images in a file of masks. Sorted by doubt, each image of a page may be in another one."""
OVERVIEW = 2000
"""Images in a file of names and scores; a multiple of DETAILS."""
PICTURES = 1000
"""Images in a folder of pictures."""
THREADS = 4
"""That read images: each holds one in memory."""


def write_report(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    on_image: Callable[[int, int], Any] | None = None,
) -> Path:
    """Write a run, finished or not, as a page: index.html, and a folder `report` beside it.

    Args:
        run: the output folder of `label_dataset`, whole or in shards. It is only read.
        output: the folder to write into; by default `report` in the run's. An earlier report in it
            is replaced, other files stay.
        on_image: called for each image with the number done, and of how many.

    Returns:
        The page's path.

    Raises:
        ConfigError: the output lies where images are read or would overwrite the run, or something
            else has the names that the report needs.
        RunError: the folder is no run, or its parts don't belong together.
        OutputError: the output can't be written; an earlier report stays.
    """
    content = open_content(Path(run))
    target = Path(run) / "report" if output is None else Path(output)
    content.check_output(target)
    content.check_output(target / FOLDER)
    _check_free(target)
    with output_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for left in target.glob(f"{BESIDE}*"):  # by a process that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=target, prefix=BESIDE) as beside:
            made = Path(beside, FOLDER)
            _write(content, made, on_image)
            if (target / FOLDER).exists():
                (target / FOLDER).rename(Path(beside, "earlier"))
            made.rename(target / FOLDER)
            Path(beside, PAGE).write_bytes(_asset("page.html"))
            Path(beside, PAGE).replace(target / PAGE)
    return target / PAGE


def _check_free(target: Path) -> None:
    taken = [name for name in (PAGE, FOLDER) if os.path.lexists(target / name)]
    if taken and not (target / FOLDER / MARK).is_file():
        raise ConfigError(
            f"{printable(target)}: {taken[0]} in it is not that of an earlier report; give another "
            "output"
        )


def _asset(name: str) -> bytes:
    return files("clip2sam.review").joinpath(name).read_bytes()


def _write(content: Content, folder: Path, on_image: Callable[[int, int], Any] | None) -> None:
    folder.mkdir()
    for name in ("page.css", "data.js", "page.js"):
        (folder / name).write_bytes(_asset(name))
    overview: list[Any] = []
    done = 0
    for rows, details in _chunks(content, folder):
        overview += rows
        _write_data(folder, "details", done // DETAILS, details)
        done += len(rows)
        if done % OVERVIEW == 0:
            _write_data(folder, "overview", done // OVERVIEW - 1, overview)
            overview = []
        if on_image is not None:
            on_image(done, content.images)
    if overview:
        _write_data(folder, "overview", done // OVERVIEW, overview)
    about = about_run(content.run, content.images, write_files(content, Decision(), {}))
    sizes = {"recorded": done, "details": DETAILS, "overview": OVERVIEW, "pictures": PICTURES}
    (folder / MARK).write_text(_script("run", 0, {**about, **sizes}), encoding="ascii")


def _write_data(folder: Path, kind: str, number: int, value: Any) -> None:
    path = folder / kind / f"{number}.js"
    path.parent.mkdir(exist_ok=True)
    path.write_text(_script(kind, number, value), encoding="ascii")


def _script(kind: str, number: int, value: Any) -> str:
    """Data as a script in ASCII: nothing in a text can end its string, its line or its script."""
    written = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f"take({json.dumps(kind)},{number},{written});\n"


def _chunks(content: Content, folder: Path) -> Iterator[tuple[list[Any], list[Any]]]:
    """Overview and detail rows of DETAILS images after DETAILS images, whose pictures are written
    meanwhile; no more of them are in memory."""
    run, number = content.run, 0
    decision = decided_for(run, Decision())
    thresholds = decided_thresholds(run, decision)
    max_pixels = run.fingerprint.get("max_pixels", MAX_PIXELS)

    def note(job: tuple[int, Source | None, ImageRecord]) -> str:
        place, source, record = job
        if record.state == "failed":  # not decoded again: it may have crashed its decoder
            return record.reason
        path = folder / "pictures" / str(place // PICTURES) / f"{place}.jpg"
        try:
            data = picture(source, record, max_pixels)
        except ImageError as error:
            return str(error)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return ""

    def kept(record: ImageRecord) -> set[int]:
        if not record.is_written:
            return set()
        decided = decide(record, decision, run.class_names, thresholds)
        return {id(annotation) for annotation in decided.annotations}

    jobs = _sourced(content)
    with ThreadPoolExecutor(THREADS) as pool:
        while chunk := list(islice(jobs, DETAILS)):
            numbered = [(number + i, *job) for i, job in enumerate(chunk)]
            notes = pool.map(note, numbered)
            details = [detail_row(record) for _, record in chunk]
            yield (
                [
                    overview_row(record, kept(record), run.class_names, why)
                    for (_, record), why in zip(chunk, notes, strict=True)
                ],
                details,
            )
            number += len(chunk)


def _sourced(content: Content) -> Iterator[tuple[Source | None, ImageRecord]]:
    """Every record with the source of its image."""
    for run, records in content.records_of_parts():
        source = run.source
        for record in records:
            yield source, record
