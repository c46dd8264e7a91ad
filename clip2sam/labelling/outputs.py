"""What a run writes into its folder when it is finished: the formats, and their files' names."""

from collections.abc import Sequence

from clip2sam.errors import ConfigError
from clip2sam.export import Exporter, parquet
from clip2sam.export.coco import CocoExporter
from clip2sam.export.jsonl import JsonLinesExporter
from clip2sam.export.parquet import ParquetExporter
from clip2sam.export.results import ResultsExporter
from clip2sam.labelling.info import run_info
from clip2sam.labelling.manifest import RunFolder

FORMATS = ("coco",)
"""What a run writes unless it is told otherwise."""

FILES = {
    "coco": ("annotations.json", "results.json"),
    "parquet": ("annotations.parquet", "images.annotations.parquet"),
    "jsonl": ("annotations.jsonl", "images.annotations.jsonl"),
}
"""The files of each format that a run can write by itself, the one with the annotations first."""


def checked_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats, each once.

    Raises:
        ConfigError: none, one that is not in `FILES`, or one whose package is not installed.
    """
    names = (formats,) if isinstance(formats, str) else tuple(dict.fromkeys(formats))
    wrong = [name for name in names if name not in FILES]
    if wrong or not names:
        raise ConfigError(
            f"formats: a run writes {', '.join(FILES)}, but got {', '.join(wrong) or 'none'}; "
            "choose one or more of them, the others are for 'clip2sam export'"
        )
    if "parquet" in names:
        parquet.check_installed()
    return names


def of_shard(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats that a shard writes itself: COCO is one file for all shards."""
    return tuple(name for name in formats if name != "coco")


def own_files(formats: Sequence[str]) -> tuple[str, ...]:
    """The names of all files of these formats."""
    return tuple(name for form in formats for name in FILES[form])


def own_exporters(run: RunFolder, formats: Sequence[str]) -> dict[str, Exporter]:
    """For each file of these formats the exporter that writes it; one that another file's exporter
    writes along is not among them."""
    info = run_info(run)
    dataset, results = FILES["coco"]
    made: dict[str, dict[str, Exporter]] = {
        "coco": {dataset: CocoExporter(info=info), results: ResultsExporter()},
        "parquet": {FILES["parquet"][0]: ParquetExporter(info=info)},
        "jsonl": {FILES["jsonl"][0]: JsonLinesExporter()},
    }
    return {name: exporter for form in formats for name, exporter in made[form].items()}
