"""An actor class for pipelines of `ray.data`: images of a column in, masks as columns out."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from clip2sam.coco.document import annotation_row, checked_masks
from clip2sam.config import whole_number
from clip2sam.data.images import MAX_PIXELS, Image
from clip2sam.data.labels import as_label_set
from clip2sam.data.records import ImageRecord
from clip2sam.errors import ConfigError, ImageError, ModelError
from clip2sam.labelling.decide import Decision, decide
from clip2sam.labelling.decode_worker import load_named
from clip2sam.labelling.engine import SegmenterEngine
from clip2sam.labelling.failures import ModelFailures, for_one_image
from clip2sam.models.loading import load
from clip2sam.models.presets import Preset
from clip2sam.pipeline import LabelsLike, Segmenter

if TYPE_CHECKING:
    import pyarrow as pa

    from clip2sam.cluster.worker import Recipe

OF_MASK = ("category_id", "category", "segmentation", "bbox", "area", "score", "share", "presence")
"""The columns with an element for each mask."""


class Labeller:
    """Labels the images of a dataset of Ray: each actor holds the models.

        ds = ray.data.read_binary_files("images/", include_paths=True)
        ds = ds.map_batches(
            Labeller,
            fn_constructor_kwargs={"labels": ["cat", "dog"], "segmenter": "vit-h"},
            compute=ray.data.ActorPoolStrategy(size=8),
            num_gpus=1,
            batch_size=8,
        )
        ds.write_parquet("masks/")

    A batch is a mapping from names to NumPy columns, Ray's usual one. It gets these columns beside
    its own, * may be null; the names are those of `ParquetExporter`, but an image is a row here,
    whose masks are lists of the same length:

        height int32*, width int32*         of the image, in pixels
        category_id list<int32>             1, 2, 3, ... in the order of the labels
        category list<string>
        segmentation list<struct<size: list<int32>, counts: string>>  pycocotools' RLE
        bbox list<list<int32>>              [x, y, width, height] in pixels
        area list<int64>                    pixels
        score, share, presence* list<double>
        error string*                       why there is no result: the lists are empty then

    Here is no journal: what is done again when an actor dies is up to Ray. For a dataset in files,
    `label_with_ray` continues where it was.

    Args:
        labels, distractors: as for `label_dataset`.
        segmenter: a preset's name, a `Preset`, or a function that loads a segmenter.
        image_column: encoded images (bytes), or arrays: uint8 RGB, (height, width, 3).
        keep_images: whether the images stay among the columns.
        max_pixels: images with more (height times width) get an error.
        threads: PyTorch's; by default as it is: Ray gives as many as the actor has processors.

    Raises:
        ConfigError, LabelError, WeightsError: labels, settings or weights that can't be used.
    """

    def __init__(
        self,
        labels: LabelsLike,
        segmenter: "Recipe" = "tiny",
        *,
        image_column: str = "bytes",
        distractors: Sequence[str] = (),
        keep_images: bool = False,
        max_pixels: int = MAX_PIXELS,
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            import torch

            torch.set_num_threads(whole_number("threads", threads, 1, 1024, "threads"))
        loaded: Any = load(segmenter) if isinstance(segmenter, str | Preset) else segmenter()
        if not isinstance(loaded, Segmenter):
            raise ConfigError(f"expected a function that gives a Segmenter, but got {type(loaded)}")
        self._labels = as_label_set(labels, distractors=distractors)
        self._engine = SegmenterEngine(loaded, self._labels)
        self._names = tuple(c.name for c in self._labels.wanted)
        self._decision = Decision(min_share=self._engine.min_share)  # as a run decides
        self._column, self._keep = image_column, keep_images
        self._max_pixels, self._in_a_row = max_pixels, ModelFailures()

    def __call__(self, batch: Mapping[str, Any]) -> "pa.Table":
        """The batch with the new columns.

        Raises:
            ConfigError: there is no such column, or there is one of a new one's name.
            RunError: the model failed on several images in a row.
        """
        import pyarrow as pa
        from ray.data.block import BlockAccessor

        if self._column not in batch:
            raise ConfigError(
                f"expected images in the column {self._column!r}, but there are "
                f"{', '.join(batch)}; give image_column"
            )
        rows = [self._row(image) for image in batch[self._column]]
        kept = {
            name: column for name, column in batch.items() if name != self._column or self._keep
        }
        fields = _fields()
        if taken := sorted(kept.keys() & {field.name for field in fields}):
            raise ConfigError(
                f"the columns {', '.join(taken)} would be written; give yours other names"
            )
        made = pa.Table.from_pylist(rows, schema=pa.schema(fields))
        if not kept:
            return made
        table = BlockAccessor.batch_to_arrow_block(kept)
        for field in fields:
            table = table.append_column(field, made[field.name])
        return table

    def _row(self, given: Any) -> dict[str, Any]:
        """The new columns of an image."""
        try:
            image = self._image(given)
            outcome = for_one_image(partial(self._label, image))
        except ImageError as error:
            return _failed(str(error))
        except ModelError as error:
            self._in_a_row.add(str(error))
            return _failed(str(error))
        self._in_a_row.clear()
        return outcome

    def _image(self, given: Any) -> Image:
        if isinstance(given, bytes):
            return load_named(given, self._column, self._max_pixels)
        pixels = np.asarray(given)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ImageError(
                f"expected encoded bytes, or RGB of uint8 (height, width, 3), but got "
                f"{pixels.dtype} {pixels.shape}; convert the image"
            )
        if not 0 < pixels.shape[0] * pixels.shape[1] <= self._max_pixels:
            raise ImageError(
                f"expected 1 to {self._max_pixels} pixels, but got {pixels.shape[0]} x "
                f"{pixels.shape[1]}; scale the image"
            )
        return Image(np.ascontiguousarray(pixels), self._column)

    def _label(self, image: Image) -> dict[str, Any]:
        (prediction,) = self._engine.predict([self._engine.prepare(image)])
        presence, beaten, annotations = self._engine.finish(image, prediction)
        record = ImageRecord(
            1,
            "image",
            image.size,
            "done",
            annotations=annotations,
            presence=presence,
            beaten=beaten,
        )
        record = decide(record, self._decision, self._names, self._engine.thresholds)
        row: dict[str, Any] = {name: [] for name in OF_MASK}
        for mask in checked_masks(record, self._labels.wanted):
            told = annotation_row(mask, mask.number)
            told["category"] = mask.annotation.label
            for name in OF_MASK:
                row[name].append(told.get(name))
        return {**row, "height": image.size[0], "width": image.size[1]}


def _failed(reason: str) -> dict[str, Any]:
    return {**{name: [] for name in OF_MASK}, "error": reason}


def _fields() -> "list[pa.Field]":
    import pyarrow as pa

    rle = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    of_mask = {
        "category_id": pa.int32(),
        "category": pa.string(),
        "segmentation": rle,
        "bbox": pa.list_(pa.int32()),
        "area": pa.int64(),
        "score": pa.float64(),
        "share": pa.float64(),
        "presence": pa.float64(),
    }
    return [
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        *(pa.field(name, pa.list_(kind)) for name, kind in of_mask.items()),
        pa.field("error", pa.string()),
    ]
