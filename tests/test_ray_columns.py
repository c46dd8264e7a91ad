"""Masks as columns, for pipelines of ray.data."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as PILImage
from pyarrow import parquet

from clip2sam.cluster.columns import OF_MASK, Labeller
from clip2sam.errors import ConfigError, RunError
from clip2sam.labelling.run import label_dataset_iter
from tests.labelling_fakes import small_segmenter, write_images

LABELS = ["cat", "dog"]


def pixels(n):
    return np.random.default_rng(n).integers(0, 256, (24 + n, 30, 3), dtype=np.uint8)


def png(n):
    file = io.BytesIO()
    PILImage.fromarray(pixels(n)).save(file, "PNG")
    return file.getvalue()


def column(*values):
    made = np.empty(len(values), object)
    made[:] = values
    return made


@pytest.fixture(scope="module")
def labeller():
    return Labeller(LABELS, small_segmenter)


def test_bytes_and_arrays_give_the_masks_of_a_run(labeller, tmp_path):
    write_images(tmp_path / "in", 4)
    files = sorted((tmp_path / "in").iterdir())
    batch = {"bytes": column(*(f.read_bytes() for f in files)), "n": np.arange(4)}
    table = labeller(batch)
    records = label_dataset_iter(
        tmp_path / "in", LABELS, tmp_path / "run", segmenter=small_segmenter, keep_above=None
    )
    by_name = {record.file_name: record for record in records}
    for file, row in zip(files, table.to_pylist(), strict=True):
        record = by_name[file.name]
        assert (row["height"], row["width"]) == record.size
        shown = record.annotations
        assert row["category"] == [a.label for a in shown]
        assert row["segmentation"] == [
            {"size": list(a.rle["size"]), "counts": a.rle["counts"]} for a in shown
        ]
        assert row["score"] == [float(a.score) for a in shown]
    assert sum(len(row) for row in table["category"].to_pylist()) > 0
    assert table["n"].to_pylist() == [0, 1, 2, 3]
    assert "bytes" not in table.column_names
    arrays = Labeller(LABELS, small_segmenter, image_column="image", keep_images=True)
    other = arrays({"image": column(*(np.asarray(PILImage.open(f)) for f in files))})
    assert other.select(OF_MASK) == table.select(OF_MASK)
    assert "image" in other.column_names


def test_a_bad_image_costs_its_row_and_the_schema_stays(labeller, tmp_path):
    bad = labeller({"bytes": column(b"no image", b"", None), "name": column("a", "b", "c")})
    good = labeller({"bytes": column(png(0), png(1)), "name": column("d", "e")})
    assert bad.schema == good.schema
    parquet.write_table(pa.concat_tables([bad, good]), tmp_path / "masks.parquet")
    rows = parquet.read_table(tmp_path / "masks.parquet").to_pylist()
    errors = [row["error"] for row in rows]
    assert "expected an image (JPEG, PNG" in errors[0]
    assert "expected encoded bytes, or RGB of uint8" in errors[2]
    assert errors[3:] == [None, None]
    assert (rows[0]["category"], rows[0]["height"]) == ([], None)
    assert [row["height"] for row in rows[3:]] == [24, 25]


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (pixels(0)[..., 0], r"but got uint8 (24, 30); convert the image"),
        (pixels(0) / 255, r"but got float64 (24, 30, 3)"),
        (pixels(0)[:0], r"expected 1 to 800 pixels, but got 0 x 30; scale the image"),
        (pixels(7), r"expected 1 to 800 pixels, but got 31 x 30"),
    ],
)
def test_arrays_are_checked(image, error):
    labeller = Labeller(LABELS, small_segmenter, image_column="image", max_pixels=800)
    (row,) = labeller({"image": column(image)}).to_pylist()
    assert error in row["error"]


def test_a_model_that_fails_again_and_again_ends_the_pipeline(monkeypatch):
    labeller = Labeller(LABELS, small_segmenter)
    monkeypatch.setattr(labeller._engine, "predict", lambda prepared: 1 / 0)
    with pytest.raises(RunError, match=r"the model failed on 3 images in a row"):
        labeller({"bytes": column(png(0), png(1), png(2))})


def test_columns_are_checked(labeller):
    with pytest.raises(ConfigError, match=r"images in the column 'bytes', .* image; give image_co"):
        labeller({"image": column(png(0))})
    with pytest.raises(ConfigError, match=r"the columns error, score would be written; give"):
        labeller({"bytes": column(png(0)), "score": np.ones(1), "error": np.ones(1)})
    with pytest.raises(ConfigError, match=r"a function that gives a Segmenter, but got"):
        Labeller(LABELS, lambda: 3)
