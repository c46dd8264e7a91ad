"""Records as Parquet: a row an annotation, and beside them a row an image.

Needs the extra `parquet`: pip install "clip2sam[parquet]". Nothing here imports pyarrow before it
is used. Source of the format: https://parquet.apache.org/docs/file-format/
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clip2sam.coco.document import category_rows, checked_records, document_head
from clip2sam.data.files import as_json, atomic_file
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import ImageRecord
from clip2sam.errors import ConfigError
from clip2sam.export.tables import annotation_rows, image_columns, images_beside

if TYPE_CHECKING:
    import pyarrow as pa

METADATA = "clip2sam"
"""The key of the file's metadata: JSON with COCO's `info` and `categories`."""

GROUP_ROWS = 100_000
GROUP_BYTES = 32 << 20
"""A row group has at most so many rows, and is written when it has so many bytes in Arrow's form:
that bounds the memory of who writes and of who reads."""

_PACK_ROWS = 1000
_PACK_BYTES = 1 << 20
"""So many rows wait as Python objects, which take several times the memory of Arrow's."""
_POINT_BYTES = 150
"""Of a point as Python objects."""

_REPEATED = ["file_name", "height", "width", "category_id", "category"]
"""Columns that are written as numbers of a dictionary."""
_COMPARED = ["image_id", *_REPEATED, "area", "score", "share", "presence"]
"""Columns of whose row groups the least and the highest value are written: who looks for some of
them leaves out the others."""


def check_installed() -> None:
    """Refuse to begin without the package that writes Parquet.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise ConfigError("parquet needs the package pyarrow: pip install 'clip2sam[parquet]'")


@dataclass(frozen=True)
class ParquetExporter:
    """The annotations in one file, and the images in `images.NAME` beside it.

    The rows are those of `annotation_rows`, under this schema; * may be null:

        image_id int64, file_name string, height int32, width int32,
        category_id int32, category string,
        segmentation struct<size: list<int32>, counts: string>  pycocotools' RLE
        bbox list<int32>                [x, y, width, height] in pixels
        area int64                      pixels
        score double, share double, presence* double
        prompt* list<list<double>>      [x, y, 1 (positive) or 0 (negative)] each

    Those of images: image_id, file_name, height, width, and `annotations` int32, the number of rows
    that the image has in the other file. Metadata of both files: see `METADATA`.

    The same records and info give the same bytes, as long as pyarrow is the same.
    """

    info: Mapping[str, Any] | None = None
    """What the metadata says of how it was made; None: that clip2sam made it."""

    def write(
        self, records: Iterable[ImageRecord], classes: Sequence[LabelClass], output: Path
    ) -> None:
        """Write the annotations into the file `output`, and the images beside it.

        Raises:
            ConfigError: pyarrow is not installed.
            CocoError: a record doesn't fit, see `annotation_rows`.
            OutputError: a file can't be written.
        """
        check_installed()
        made = {**document_head(self.info), "categories": category_rows(classes)}
        made.pop("licenses")
        metadata = {METADATA: as_json(made)}
        with (
            atomic_file(images_beside(output)) as file_of_images,
            atomic_file(output) as file,  # last: its name is in the message if either fails
            _Table(file_of_images, _image_fields(), metadata) as images,
            _Table(file, _annotation_fields(), metadata) as annotations,
        ):
            for record, masks in checked_records(records, classes):
                for row in annotation_rows(record, masks, classes):
                    annotations.add(row)
                images.add({**image_columns(record), "annotations": len(masks)})


def _annotation_fields() -> "list[pa.Field]":
    import pyarrow as pa

    return [
        *_fields_of_both(),
        pa.field("category_id", pa.int32(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field(
            "segmentation",
            pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())]),
            nullable=False,
        ),
        pa.field("bbox", pa.list_(pa.int32()), nullable=False),
        pa.field("area", pa.int64(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("share", pa.float64(), nullable=False),
        pa.field("presence", pa.float64()),
        pa.field("prompt", pa.list_(pa.list_(pa.float64()))),
    ]


def _image_fields() -> "list[pa.Field]":
    import pyarrow as pa

    return [*_fields_of_both(), pa.field("annotations", pa.int32(), nullable=False)]


def _fields_of_both() -> "list[pa.Field]":
    import pyarrow as pa

    return [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
    ]


class _Table:
    """A Parquet file that gets rows one by one. They wait as Python objects, then packed by Arrow,
    and are written a row group at a time."""

    def __init__(
        self, file: IO[bytes], fields: "Sequence[pa.Field]", metadata: Mapping[str, str]
    ) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._schema = pa.schema(fields)
        self._writer = parquet.ParquetWriter(
            file,
            self._schema,
            compression="zstd",
            store_schema=False,  # Arrow's: all types are Parquet's own
            use_dictionary=[name for name in _REPEATED if name in self._schema.names],
            write_statistics=[name for name in _COMPARED if name in self._schema.names],
        )
        self._writer.add_key_value_metadata(dict(metadata))
        self._rows: list[dict[str, Any]] = []
        self._bytes_of_rows = 0
        self._packed: list[pa.RecordBatch] = []

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._pack()
                self._write()
        finally:
            self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if "segmentation" in row:
            points = len(row["prompt"] or ())
            self._bytes_of_rows += len(row["segmentation"]["counts"]) + points * _POINT_BYTES
        if len(self._rows) == _PACK_ROWS or self._bytes_of_rows >= _PACK_BYTES:
            self._pack()

    def _pack(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._packed.append(pa.RecordBatch.from_pylist(self._rows, self._schema))
            self._rows, self._bytes_of_rows = [], 0
        rows = sum(batch.num_rows for batch in self._packed)
        size = sum(batch.nbytes for batch in self._packed)
        if rows > GROUP_ROWS - _PACK_ROWS or size >= GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        if self._packed:
            table = pa.Table.from_batches(self._packed, self._schema)
            self._writer.write_table(table)
            self._packed = []
