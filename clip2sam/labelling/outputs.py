"""The files that a run writes at its end, unless it is told otherwise."""

from clip2sam.export import Exporter
from clip2sam.export.coco import CocoExporter
from clip2sam.export.results import ResultsExporter
from clip2sam.labelling.info import run_info
from clip2sam.labelling.manifest import RunFolder

OWN_FILES = ("annotations.json", "results.json")
"""Their names."""


def own_exporters(run: RunFolder) -> dict[str, Exporter]:
    """For each file name the exporter that writes it."""
    dataset, results = OWN_FILES
    return {dataset: CocoExporter(info=run_info(run)), results: ResultsExporter()}
