"""Records as COCO results: what COCO's evaluation reads, one row for each mask."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clip2sam.coco.document import checked_records
from clip2sam.data.files import JsonList, atomic_file
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import ImageRecord


@dataclass(frozen=True)
class ResultsExporter:
    """COCO results in one JSON file. Ids are those of `CocoExporter` without a merge.

    A row has image_id, category_id, score and segmentation (RLE) and nothing else: of a row with a
    box, pycocotools takes the box's area instead of the mask's.
    """

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> None:
        """Write the results into the file `output`.

        Raises:
            CocoError: a record doesn't fit, see `checked_masks`.
            OutputError: the file can't be written.
        """
        with atomic_file(output) as file:
            file.write(b"[")
            rows = JsonList(file)
            for record, masks in checked_records(records, classes):
                for mask in masks:
                    rows.add(
                        {
                            "image_id": record.image_id,
                            "category_id": mask.number,
                            "score": mask.annotation.score,
                            "segmentation": mask.annotation.rle,
                        }
                    )
            file.write(b"]\n")
