"""Publishing a long journal: peak memory and lines a second of each format.

    python benchmarks/merge.py [--lines 2000000] [--shards 64] [--formats coco parquet jsonl merge]
                               [--folder PLACE]

Makes a run with so many lines, each an image of 480 x 640 with 5 masks and their prompts, then
exports it, each format in a process of its own. With --shards it is a run in shards, and `merge` is
`clip2sam merge`: all checks, annotations.json, results.json and the summary. The lines are as long
as real ones: they come from a few hundred records, with the image's own id, name and checksum.
Prints a line of JSON a format: peak memory (resident, 10**6 bytes) with Python and the libraries
(`imported`), then with the manifest (`opened`), with the journal's index (`indexed`), and at the
end; and the file's size.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from clip2sam.coco.rle import encode_mask
from clip2sam.data.labels import as_label_set
from clip2sam.data.records import Annotation, ImageRecord, as_float32
from clip2sam.data.sources import FileSource, Source
from clip2sam.export import exporter_for
from clip2sam.labelling.export import export_run
from clip2sam.labelling.journal import Stamp, as_line, read_index
from clip2sam.labelling.manifest import begin_run, open_run
from clip2sam.labelling.merge import merge_run
from clip2sam.labelling.plan import is_sharded, make_plan

LABELS = as_label_set([f"label {i}" for i in range(20)])
NAMES = LABELS.names
SIZE, MASKS, POINTS = (480, 640), 5, 8
TEMPLATES = 200
FORMATS = ("coco", "parquet", "jsonl", "merge")

_ID, _NAME = 987654321012345, "the name of the image"
"""In the templates, where each line has its own."""


def image_name(number: int) -> str:
    return f"{number // 1000:05d}/{number:09d}.jpg"


def record(rng: np.random.Generator, image_id: int, file_name: str) -> ImageRecord:
    """A record as a run has it: five blobs with holes and rough edges."""
    presence = tuple(as_float32(score) for score in rng.random(len(NAMES)) * 0.3)
    return ImageRecord(
        image_id,
        file_name,
        SIZE,
        annotations=tuple(_annotation(rng, NAMES[i]) for i in range(MASKS)),
        presence=presence,
        beaten=(False,) * len(NAMES),
        seconds={"decode": 0.0123, "model": 0.4567, "masks": 0.0345},
    )


def _annotation(rng: np.random.Generator, label: str) -> Annotation:
    height, width = SIZE
    noise = rng.random((height // 40, width // 40), dtype=np.float32)
    rough = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    y, x = np.ogrid[:height, :width]
    row, column = rng.uniform(0.2, 0.8, 2) * SIZE
    tall, wide = rng.uniform(0.05, 0.3, 2) * SIZE
    distance = ((y - row) / tall) ** 2 + ((x - column) / wide) ** 2
    points = rng.uniform(0, (width, height), (POINTS, 2)).round(1)
    return Annotation(
        label,
        encode_mask(distance + rough < 1.5),
        as_float32(rng.random()),
        tuple((float(x), float(y), i % 2) for i, (x, y) in enumerate(points)),
        as_float32(rng.random()),
    )


class Lines:
    """Makes journal lines quickly: templates of `as_line`, with another id, name and checksum."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        stamp = Stamp(123456, 1790000000123456789)
        whole = [as_line(record(rng, _ID, _NAME), NAMES, stamp) for _ in range(TEMPLATES)]
        # without the checksum, which is in front, and the line's end, which it doesn't cover
        bodies = [b"{" + line[len(b'{"crc":"00000000",') : -1] for line in whole]
        self._parts = [_parted(body) for body in bodies]
        again = self.line(TEMPLATES, _ID, _NAME)
        assert again == whole[0], "not the journal's format any more"

    def line(self, number: int, image_id: int, file_name: str) -> bytes:
        """A line by the template of this number."""
        before, between, after = self._parts[number % TEMPLATES]
        body = b"".join((before, b"%d" % image_id, between, file_name.encode(), after))
        return b'{"crc":"%08x",' % zlib.crc32(body) + body[1:] + b"\n"


def _parted(body: bytes) -> tuple[bytes, bytes, bytes]:
    before, rest = body.split(b"%d" % _ID)
    between, after = rest.split(_NAME.encode())
    return before, between, after


def write_journal(path: Path, images: Iterable[tuple[int, str]], lines: Lines) -> None:
    """A journal with a line for each image, (id, name), in their order."""
    with open(path, "wb", buffering=1 << 20) as file:
        file.writelines(_lines(images, lines))


def _lines(images: Iterable[tuple[int, str]], lines: Lines) -> Iterator[bytes]:
    for number, (image_id, file_name) in enumerate(images):
        yield lines.line(number, image_id, file_name)


def make_run(folder: Path, count: int, lines: Lines, shards: int | None) -> None:
    """A run with so many images, all labelled."""
    names, ids = tuple(map(image_name, range(1, count + 1))), tuple(range(1, count + 1))
    folder.mkdir(parents=True)
    images = str(folder.parent / "images")
    source = FileSource(images, images, names, ids)
    if shards is None:
        _begin(folder, source, lines)
        return
    plan = make_plan(folder, lambda: source, shards, threads=1)
    for number in range(1, shards + 1):
        _begin(plan.folder(number), plan.part(number), lines)


def _begin(folder: Path, source: Source, lines: Lines) -> None:
    run = begin_run(
        folder,
        source,
        LABELS.wanted,
        {},
        thresholds=[0.0] * len(NAMES),
        floors=[0.0] * len(NAMES),
        min_share=0.0,
        threads=1,
    )
    write_journal(run.journal, zip(source.ids, source.keys, strict=True), lines)


def measure(run: Path, form: str) -> dict[str, Any]:
    """Export a run, or merge its shards, in this process."""
    output = run / "annotations.json" if form == "merge" else run.parent / f"exported.{form}"
    exporter_for("coco" if form == "merge" else form)  # imports what it needs, pyarrow excepted
    peaks = {"imported": _peak()}
    if not is_sharded(run):
        opened = open_run(run)
        peaks["opened"] = _peak()
        index = read_index(opened.journal, opened.ids)
        peaks["indexed"] = _peak()
        del opened, index
    began = time.perf_counter()
    summary = merge_run(run) if form == "merge" else export_run(run, output, form)
    seconds = time.perf_counter() - began
    masks = sum(c.masks for c in summary.classes)
    assert summary.done == summary.listed, summary
    written = {"bytes a mask": round(output.stat().st_size / masks, 1)}
    output.unlink()
    rate = {"lines a second": round(summary.done / seconds), "seconds": round(seconds, 1)}
    return {"masks": masks, **rate, "peak memory, MB": {**peaks, "exported": _peak()}, **written}


def _peak() -> int:
    """Of this process by Linux's VmHWM: `getrusage` begins with what its parent had."""
    status = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = (line.split()[1] for line in status if line.startswith("VmHWM:"))
    return round(int(kibibytes) * 1024 / 1e6)


def in_own_process(run: Path, form: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", str(run), "--formats", form]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=2_000_000)
    parser.add_argument("--shards", type=int, help="by default none")
    parser.add_argument("--formats", nargs="+", choices=FORMATS)
    parser.add_argument("--folder", help="for the run and what it exports; else a temporary one")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure is not None:
        print(json.dumps(measure(options.measure, *options.formats)))
        return
    from about import about  # which imports torch: the processes that are measured do not

    print(json.dumps(about()))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run = Path(folder) / "run"
        began = time.perf_counter()
        make_run(run, options.lines, Lines(), options.shards)
        size = sum(path.stat().st_size for path in run.rglob("journal-*"))
        made = {"lines": options.lines, "shards": options.shards}
        made["bytes a line"] = round(size / options.lines)
        print(json.dumps({**made, "seconds to make": round(time.perf_counter() - began, 1)}))
        for form in options.formats or FORMATS[: 3 if options.shards is None else 4]:
            print(json.dumps({"format": form, **in_own_process(run, form)}), flush=True)


if __name__ == "__main__":
    main()
