"""The tables, JSON lines and Parquet, as DuckDB, Polars, pandas and pyarrow read them; and a run
that publishes them."""

import json
import sys
from dataclasses import replace

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
from pyarrow import parquet as pq
from pycocotools import mask as mask_utils

from clip2sam.coco.document import coco_document
from clip2sam.coco.rle import encode_mask
from clip2sam.data.records import Annotation
from clip2sam.errors import ConfigError, OutputError
from clip2sam.export import exporter_for, parquet
from clip2sam.labelling import summary
from clip2sam.labelling.export import export_run
from clip2sam.labelling.run import label_dataset
from tests.documents import blocks
from tests.labelling_fakes import Threshold, write_images
from tests.test_export import CAT, CLASSES, DOG, RECORDS, RING

# pycocotools' arrays, under numpy 2
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

FORMATS = ("parquet", "jsonl")
GIVEN = (
    replace(RECORDS[0], presence=(0.5, 0.25)),
    RECORDS[1],
    RECORDS[2],
    replace(
        RECORDS[0], image_id=7, file_name="a\udcff.png", annotations=RECORDS[0].annotations[:1]
    ),
)
"""With and without presence scores, without a mask, and under a name that is not UTF-8."""


def written(folder, form, name="annotations", records=GIVEN, **options):
    path = folder / f"{name}.{form}"
    assert exporter_for(form, **options).write(iter(records), CLASSES, path) is None
    return path


def rows_of(path):
    """As DuckDB reads it."""
    relation = duckdb.sql(f"select * from '{path}'")
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


@pytest.mark.parametrize("form", FORMATS)
def test_a_row_says_what_the_coco_file_says(tmp_path, form):
    document = coco_document(GIVEN, CLASSES)
    images = {row["id"]: row for row in document["images"]}
    wanted = []
    for row in document["annotations"]:
        del row["id"], row["iscrowd"]
        image = images[row["image_id"]]
        row |= {"file_name": image["file_name"].replace("\udcff", r"\udcff")}
        row |= {"height": image["height"], "width": image["width"]}
        row |= {"category": CLASSES[row["category_id"] - 1].name}
        wanted.append({"presence": None, **row})
    assert len(wanted) == 6
    path = written(tmp_path, form)
    assert rows_of(path) == wanted
    read = {"parquet": pl.read_parquet, "jsonl": pl.read_ndjson}[form](path)
    assert read.rows(named=True) == wanted
    if form == "jsonl":
        assert [json.loads(line) for line in path.read_text().splitlines()] == wanted
    else:
        assert pq.read_table(path).to_pylist() == wanted
        frame = pd.read_parquet(path)
        assert frame.score.tolist() == [row["score"] for row in wanted]
        assert frame.segmentation[1]["counts"] == wanted[1]["segmentation"]["counts"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_mask_is_the_same_to_the_pixel(tmp_path, form):
    path = written(tmp_path, form)
    of_ring = f"from '{path}' where category = ? and image_id = 10"
    ((rle,),) = duckdb.execute(f"select segmentation {of_ring}", [DOG]).fetchall()
    np.testing.assert_array_equal(mask_utils.decode(rle), RING)
    query = f"select segmentation.counts, segmentation.size[1], bbox[3], area {of_ring}"
    ((counts, *numbers),) = duckdb.execute(query, [DOG]).fetchall()
    assert (counts, numbers) == (rle["counts"], [40, 48, int(RING.sum())])
    scan = {"parquet": pl.scan_parquet, "jsonl": pl.scan_ndjson}[form](path)
    found = scan.filter(pl.col("area") == int(RING.sum())).select("segmentation").collect()
    np.testing.assert_array_equal(mask_utils.decode(found.item()), RING)


@pytest.mark.parametrize("form", FORMATS)
def test_several_files_are_one_table(tmp_path, form):
    for i in range(3):
        written(
            tmp_path,
            form,
            f"annotations-{i}",
            [replace(r, image_id=r.image_id + 20 * i) for r in GIVEN],
        )
    of_class = duckdb.sql(
        f"select category, count(*), avg(score) from '{tmp_path}/annotations-*.{form}' "
        "group by category order by category desc"
    )
    (cat, cats, mean), (dog, dogs, _) = of_class.fetchall()
    assert (cat, cats, dog, dogs) == (CAT, 12, DOG, 6)
    assert mean == pytest.approx((2 * 0.95964926 + 0.8 + 0.9) / 4)
    without = duckdb.sql(
        f"select image_id from '{tmp_path}/images.*.{form}' where annotations = 0 order by all"
    )
    assert without.fetchall() == [(5,), (25,), (45,)]


@pytest.mark.parametrize("form", FORMATS)
def test_every_image_is_beside_with_the_number_of_its_rows(tmp_path, form):
    empty = Annotation(CAT, encode_mask(np.zeros((40, 60), bool)), 0.5)
    first = replace(GIVEN[0], annotations=(*GIVEN[0].annotations, empty, GIVEN[0].annotations[0]))
    path = written(tmp_path, form, records=(first, *GIVEN[1:]))
    beside = tmp_path / f"images.annotations.{form}"
    names = ("image_id", "file_name", "height", "width", "annotations")
    images = [
        (10, "a.png", 40, 60, 2),
        (4, "sub/b ü.png", 40, 60, 3),
        (5, "sub/c.png", 10, 10, 0),
        (7, r"a\udcff.png", 40, 60, 1),
    ]
    assert rows_of(beside) == [dict(zip(names, row, strict=True)) for row in images]
    counted = duckdb.sql(f"select image_id, count(*) from '{path}' group by all order by 1")
    assert counted.fetchall() == [(4, 3), (7, 1), (10, 2)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, beside.name]


def test_without_a_mask_the_columns_are_still_there(tmp_path):
    path = written(tmp_path, "parquet", records=RECORDS[2:])
    assert duckdb.sql(f"select category, count(*) from '{path}' group by all").fetchall() == []
    full = written(tmp_path, "parquet", "full")
    assert pq.read_schema(path) == pq.read_schema(full)
    assert written(tmp_path, "jsonl", records=RECORDS[2:]).read_bytes() == b""
    assert len(rows_of(tmp_path / "images.annotations.jsonl")) == 1


def test_parquet_has_the_types_that_every_reader_knows(tmp_path):
    """Those of Parquet alone: no Arrow schema is beside them, which only some would read."""
    path = written(tmp_path, "parquet")
    types = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert types == {
        "image_id": "int64",
        "file_name": "string",
        "height": "int32",
        "width": "int32",
        "category_id": "int32",
        "category": "string",
        "segmentation": "struct<size: list<element: int32>, counts: string>",
        "bbox": "list<element: int32>",
        "area": "int64",
        "score": "double",
        "share": "double",
        "presence": "double",
        "prompt": "list<element: list<element: double>>",
    }
    assert [f.name for f in pq.read_schema(path) if f.nullable] == ["presence", "prompt"]
    assert set(pq.read_metadata(path).metadata) == {b"clip2sam"}


def test_parquet_says_what_made_it_and_is_the_same_each_time(tmp_path):
    info = {"description": "Made with clip2sam 1", "date_created": "2026-11-28T18:00:00Z"}
    paths = [written(tmp_path, "parquet", name, info=info) for name in ("a", "b")]
    for one, other in (paths, [p.with_name(f"images.{p.name}") for p in paths]):
        assert one.read_bytes() == other.read_bytes()
        made = json.loads(pq.read_metadata(one).metadata[b"clip2sam"])
        assert made["info"] == info
        assert [(c["id"], c["name"]) for c in made["categories"]] == [(1, CAT), (2, DOG)]


def test_row_groups_are_bounded_in_rows_and_in_bytes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    noise = encode_mask(rng.random((100, 100)) < 0.5)  # 5 KB and more
    records = [
        replace(GIVEN[0], image_id=i, file_name=f"{i}.png", size=(100, 100)) for i in range(1, 61)
    ]
    records = [
        replace(r, annotations=tuple(Annotation(name, noise, 0.5) for name in (CAT, DOG)))
        for r in records
    ]
    usual = written(tmp_path, "parquet", "usual", records)
    assert pq.read_metadata(usual).num_row_groups == 1
    monkeypatch.setattr(parquet, "GROUP_BYTES", 10 * len(noise["counts"]))
    monkeypatch.setattr(parquet, "_PACK_BYTES", 2 * len(noise["counts"]))
    by_bytes = written(tmp_path, "parquet", "bytes", records)
    monkeypatch.undo()
    monkeypatch.setattr(parquet, "GROUP_ROWS", 25)
    monkeypatch.setattr(parquet, "_PACK_ROWS", 5)
    by_rows = written(tmp_path, "parquet", "rows", records)
    for path, rows in ((by_bytes, 10), (by_rows, 25)):
        of_file = pq.read_metadata(path)
        sizes = [of_file.row_group(i).num_rows for i in range(of_file.num_row_groups)]
        assert set(sizes[:-1]) == {rows}
        assert sum(sizes) == 120
        assert rows_of(path) == rows_of(usual)


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_leaves_the_old_files_and_is_told_of_the_output(tmp_path, monkeypatch, form):
    path = written(tmp_path, form)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=rf"/annotations\.{form}: can't be written \(No space"):
        written(tmp_path, form, records=GIVEN[:1])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert path.name in before


def test_without_pyarrow_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = r"parquet needs the package pyarrow: pip install 'clip2sam\[parquet\]'"
    with pytest.raises(ConfigError, match=message):
        written(tmp_path, "parquet")
    with pytest.raises(ConfigError, match=message):  # at once, in front of a long job
        label_dataset("nowhere", ["cat"], tmp_path / "run", formats=["jsonl", "parquet"])
    assert list(tmp_path.iterdir()) == []
    assert written(tmp_path, "jsonl").exists()


# --- a run


@pytest.fixture
def label(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "_draw_presence", lambda path, _: path.touch())
    images = write_images(tmp_path / "images", 3)

    def call(output, **options):
        engine = Threshold(threshold=0.4999)
        return label_dataset(images, engine.classes, tmp_path / output, engine=engine, **options)

    return call


def test_a_run_publishes_the_formats_that_it_is_told(label, tmp_path, monkeypatch):
    own = {"manifest.json", "journal-0001.jsonl", "summary.json", "presence.png"}
    run = tmp_path / "run"
    label("run", formats=["jsonl", "parquet", "jsonl"])
    tables = {f"{start}annotations.{form}" for start in ("", "images.") for form in FORMATS}
    assert {p.name for p in run.iterdir()} == own | tables
    for form in FORMATS:
        export_run(run, tmp_path / f"annotations.{form}", form)
    for name in tables:
        assert (run / name).read_bytes() == (tmp_path / name).read_bytes(), name
    assert len(rows_of(run / "annotations.parquet")) == 3, "of two images"
    made = json.loads(pq.read_metadata(run / "annotations.parquet").metadata[b"clip2sam"])
    assert made["info"]["presence_thresholds"] == dict.fromkeys(Threshold.classes, 0.4999)
    monkeypatch.chdir(tmp_path)
    check_documented_queries()
    left = run / ".images.annotations.parquet.0123abcd.tmp"
    left.write_bytes(b"half")
    label("run", formats="parquet")
    assert not left.exists(), "what a killed process has left"
    assert {p.name for p in run.iterdir()} == own | tables, "of the other format, too"


def check_documented_queries():
    """Those of docs/tables.md, in a folder with a run."""
    (_, sql), (_, python) = blocks("docs/tables.md")
    of_categories, nothing, made = (duckdb.sql(line).fetchall() for line in sql.splitlines())
    frame = pd.read_parquet("run/annotations.parquet")
    assert {(name, count) for name, count, _ in of_categories} == set(
        frame.category.value_counts().items()
    )
    assert nothing == [("000.png",)]
    assert set(json.loads(made[0][0])) == {"info", "categories"}
    names: dict = {}
    exec(python, names)
    assert names["pixels"].sum() == frame.area[frame.score.idxmax()]
    assert names["several"].sum() == frame.area[frame.image_id == 2].sum()
    means = {name: mean for name, _, mean in of_categories}
    assert names["mean"].to_dict() == pytest.approx(means)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["coco", "yolo"]}, "a run writes coco, parquet, jsonl, but got yolo; choose"),
        ({"formats": []}, "a run writes coco, parquet, jsonl, but got none"),
        ({"formats": ["jsonl"], "exporters": {}}, "formats is for runs without exporters"),
    ],
)
def test_formats_that_a_run_does_not_write_are_refused(label, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        label("run", **options)
    assert not (tmp_path / "run").exists()
