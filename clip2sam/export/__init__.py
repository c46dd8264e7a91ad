"""Exporters: decided records become files. Nothing here needs a run's folder, torch or the models.

An exporter is an object with one method, `write`; your own works wherever one of these does.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from clip2sam.coco.outlines import Fit
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import ImageRecord
from clip2sam.errors import ConfigError
from clip2sam.export.cityscapes import CityscapesExporter
from clip2sam.export.coco import CocoExporter
from clip2sam.export.cvat import CvatExporter
from clip2sam.export.jsonl import JsonLinesExporter
from clip2sam.export.label_studio import LabelStudioExporter
from clip2sam.export.labelme import LabelMeExporter
from clip2sam.export.parquet import ParquetExporter
from clip2sam.export.png import PngExporter
from clip2sam.export.results import ResultsExporter
from clip2sam.export.voc import VocExporter
from clip2sam.export.yolo import YoloExporter


@runtime_checkable
class Exporter(Protocol):
    """Writes records in a format."""

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> Fit | None:
        """Write all records.

        Args:
            records: decided; done and empty ones only; in the order of the source. They come one
                by one: keep a few at most, so that memory doesn't grow with the dataset.
            classes: those that the annotations' labels are of, without distractors.
            output: a file or a folder, as the format has it.

        Returns:
            How well the polygons that were written fit their masks; None if there are none.

        Raises:
            OutputError: the output can't be written. CocoError: a record doesn't fit the format.
        """


EXPORTERS: dict[str, Callable[..., Exporter]] = {
    "coco": CocoExporter,
    "results": ResultsExporter,
    "yolo": YoloExporter,
    "labelstudio": LabelStudioExporter,
    "cvat": CvatExporter,
    "labelme": LabelMeExporter,
    "voc": VocExporter,
    "cityscapes": CityscapesExporter,
    "png": PngExporter,
    "parquet": ParquetExporter,
    "jsonl": JsonLinesExporter,
}
"""The formats that the command line knows by name."""


def exporter_for(name: str, **options: Any) -> Exporter:
    """The exporter of a format.

    Args:
        name: one of `EXPORTERS`.
        **options: the exporter's own; None counts as not given.

    Raises:
        ConfigError: no format has this name, or an option is another format's.
    """
    if name not in EXPORTERS:
        raise ConfigError(f"no format is called {name!r}; choose one of {', '.join(EXPORTERS)}")
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        takers = [other for other in EXPORTERS if option in _options(other)]
        if name not in takers:
            raise ConfigError(
                f"the option {option} is for the format {' or '.join(takers) or '(none)'}, "
                f"not {name}; leave it out"
            )
    return EXPORTERS[name](**given)


def _options(name: str) -> list[str]:
    made: Any = EXPORTERS[name]
    return [field.name for field in fields(made)]
