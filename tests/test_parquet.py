"""Images in Parquet files: columns and names, reading in any order, damage, runs over them."""

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from clip2sam.data import parquet, remote
from clip2sam.data.opening import check_found, kind_of, open_source, source_of
from clip2sam.data.parquet import ParquetSource
from clip2sam.data.sources import Source, check_output
from clip2sam.errors import ConfigError, ImageError
from clip2sam.labelling.export import export_run
from clip2sam.labelling.run import label_dataset, label_dataset_iter
from tests.labelling_fakes import Threshold, write_images

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(
    path, rows=None, *, group=None, column="image", metadata=None, dictionary=True, **columns
):
    """A Parquet file with pages of two rows; `rows`: (path, bytes) or None, as Hugging Face has
    them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if rows is not None:
        images = [row and {"path": row[0], "bytes": row[1]} for row in rows]
        columns = {column: pa.array(images, IMAGE), **columns}
    table = pa.table(columns).replace_schema_metadata(metadata)
    pages = {"write_batch_size": 2, "data_page_size": 1, "use_dictionary": dictionary}
    pq.write_table(table, path, row_group_size=group, compression="none", **pages)
    return path


def images_of(numbers):
    return [(f"{i}.jpg", b"image %d" % i) for i in numbers]


@pytest.fixture
def folder(tmp_path):
    """Two files of five and three images, in row groups of two."""
    write(tmp_path / "in" / "data" / "train-0.parquet", images_of((4, 0, 3, 1, 2)), group=2)
    write(tmp_path / "in" / "data" / "train-1.parquet", images_of((5, 6, 7)), group=2)
    write(tmp_path / "in" / "captions.parquet", text=["a", "b"])
    (tmp_path / "in" / "README.md").touch()
    return tmp_path / "in"


KEYS = tuple(f"data/train-{i // 5}.parquet/{i}.jpg" for i in (4, 0, 3, 1, 2, 5, 6, 7))
DATA = [b"image %d" % i for i in (4, 0, 3, 1, 2, 5, 6, 7)]


# --- listings


def test_a_folder_of_hugging_faces_is_listed_in_their_order(folder):
    source = open_source(folder)
    assert isinstance(source, ParquetSource)
    assert isinstance(source, Source)
    assert (source.keys, source.ids) == (KEYS, (1, 2, 3, 4, 5, 6, 7, 8))
    assert source.units == (2, 2, 1, 2, 1)
    assert source.files == ("data/train-0.parquet", "data/train-1.parquet")
    assert (source.root, source.origin, kind_of(source)) == (*[str(folder)] * 2, "parquet")
    assert [source.read(key) for key in KEYS] == DATA


def test_patterns_and_a_part_are_the_same_images(folder):
    for pattern in ("data/train-{0..1}.parquet", "data/*.parquet"):
        source = open_source(folder / pattern, folder)
        assert source.keys == KEYS
        assert open_source(source.origin, source.root) == source
    part = source_of("parquet", source.origin, source.root, KEYS[1:7], range(2, 8))
    assert part.units == (1, 2, 1, 2)
    assert [part.read(key) for key in (KEYS[6], KEYS[1])] == [b"image 6", b"image 0"]
    assert pickle.loads(pickle.dumps(source)).read(KEYS[3]) == b"image 1"


def test_img2datasets_files_have_keys_and_rows_without_an_image(tmp_path):
    write(
        tmp_path / "00000.parquet",
        jpg=[b"a", None, b"c"],
        key=["000000000", "000000001", "000000002"],
        url=["u", "v", "w"],
        width=[3, None, 4],
    )
    source = open_source(tmp_path)
    assert source.keys == tuple(f"00000.parquet/00000000{i}.jpg" for i in range(3))
    assert (source.read(source.keys[0]), source.read(source.keys[2])) == (b"a", b"c")
    with pytest.raises(
        ImageError, match=r"000000001\.jpg: this row has no image \(null, as img2.* again"
    ):
        source.read(source.keys[1])


def test_rows_with_no_good_name_of_their_own_have_their_number(tmp_path):
    names = [
        "a.jpg",
        None,
        "../b.jpg",
        "twice.jpg",
        "c/d.jpg",
        "twice.jpg",
        "/etc/passwd",
        "",
        "12",
    ]
    names += ["x.parquet/y.jpg", "back\\slash.jpg", "000000003", "ä.jpg"]
    rows = [(name, b"%d" % i) for i, name in enumerate(names)]
    source = open_source(write(tmp_path / "f.parquet", [*rows, None]))
    named = {0: "a.jpg", 4: "c/d.jpg", 12: "ä.jpg"}
    expected = [f"f.parquet/{named.get(i, f'{i:09d}')}" for i in range(14)]
    assert list(source.keys) == expected
    assert [source.read(key) for key in expected[:13]] == [b"%d" % i for i in range(13)]
    with pytest.raises(ImageError, match=r"f\.parquet/000000013: this row has no image"):
        source.read(expected[13])
    path = write(tmp_path / "spark.parquet" / "part-0.snappy.parquet", image=[b"1", b"2"])
    assert open_source(path.parent).keys[1] == "part-0.snappy.parquet/000000001"
    below = open_source(path.parent, tmp_path)
    assert below.keys[1] == "spark.parquet/part-0.snappy.parquet/000000001"
    assert below.read(below.keys[1]) == b"2"


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"depth": [b"d"], "image": [b"i"]}, b"i"),
        ({"png": [b"p"], "jpg": [b"j"], "json": [b"{}"]}, b"j"),
        ({"photo": [b"p"], "caption": ["text"]}, b"p"),
        ({"one": [b"1"], "other": [b"2"]}, None),
        ({"caption": ["text"], "n": [1]}, None),
    ],
)
def test_the_column_of_images_is_the_only_one_or_named_so(tmp_path, columns, chosen):
    path = write(tmp_path / "f.parquet", **columns)
    if chosen is not None:
        assert open_source(path).read("f.parquet/000000000") == chosen
        check_found(path)
        return
    which = (
        r"of 2 such columns none is named so: one, other;" if "one" in columns else r"caption, n;"
    )
    for look in (open_source, check_found):
        for given in (path, tmp_path):
            with pytest.raises(ImageError, match=rf"f\.parquet: expected a column of .*{which}"):
                look(given)


def test_what_hugging_face_calls_an_image_is_one(tmp_path):
    features = {"sound": {"_type": "Audio"}, "picture": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    sound = pa.array([{"bytes": b"s", "path": "s.wav"}], IMAGE)
    rows = [("p.png", b"p")]
    path = write(tmp_path / "f.parquet", rows, column="picture", sound=sound, metadata=metadata)
    assert [open_source(path).read("f.parquet/p.png")] == [b"p"]
    path = write(tmp_path / "g.parquet", rows, column="picture", sound=sound)
    with pytest.raises(ImageError, match="of 2 such columns none is named so: picture, sound"):
        open_source(path)


def test_what_is_no_parquet_file_is_said(tmp_path, monkeypatch):
    (tmp_path / "f.parquet").write_bytes(b"PAR1 and no more")
    for look in (open_source, check_found):
        with pytest.raises(
            ImageError, match=r"f\.parquet: expected a Parquet file, but it can't be"
        ):
            look(tmp_path / "f.parquet")
        with pytest.raises(ImageError, match=r"gone\.parquet: no such file"):
            look(tmp_path / "gone.parquet")
    write(tmp_path / "f.parquet", [])
    for look in (open_source, check_found):
        with pytest.raises(
            ImageError, match=r"no image found in 1 Parquet files, f\.parquet among"
        ):
            look(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r'need pyarrow, .*; pip install "clip2sam\[parquet\]"'):
        open_source(tmp_path)


# --- reading


class Opened:
    """Counts what is opened and how many rows are read, and knows what is open."""

    def __init__(self, monkeypatch):
        self.times, self.rows, self.columns = 0, 0, set()
        opened, batches = parquet._open, pq.ParquetFile.iter_batches

        def open_one(root, name):
            self.times += 1
            return opened(root, name)

        def read_one(file, *args, **options):
            self.columns |= {*options["columns"]}
            for batch in batches(file, *args, **options):
                self.rows += len(batch)
                yield batch

        monkeypatch.setattr(parquet, "_open", open_one)
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", read_one)


def test_a_row_group_is_read_once_whatever_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MOST_ROWS", 4)
    write(tmp_path / "f.parquet", images_of(range(60)), group=30)
    seen = Opened(monkeypatch)
    source = open_source(tmp_path / "f.parquet")
    assert (seen.times, seen.columns) == (1, {"image.path"}), "a listing reads no image"
    seen.times = seen.rows = 0
    order = [0, 1, 4, 3, 2, 9, 8, 17, 16, 29, 30, 28, 31, 59]  # gaps, and readers that are apart
    for i in order:
        assert source.read(f"f.parquet/{i}.jpg") == b"image %d" % i
    assert (seen.times, seen.rows) == (2, 60)
    assert source.read("f.parquet/5.jpg") == b"image 5", "far behind: read again"
    assert seen.times == 3


def test_rows_of_any_size_are_read_in_batches_of_few_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH_BYTES", 100)
    rows = [(f"{i}.jpg", b"%04d" % i * size) for i, size in enumerate((1, 10, 100, 1, 1, 1) * 5)]
    source = open_source(write(tmp_path / "f.parquet", rows))
    seen = Opened(monkeypatch)
    assert source.read(source.keys[0]) == rows[0][1]
    assert seen.rows == 1
    assert [source.read(key) for key in source.keys] == [data for _, data in rows]
    assert (seen.rows, seen.times) == (30, 1)


def test_threads_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MOST_ROWS", 8)
    monkeypatch.setattr(parquet, "FILES_AT_HAND", 1)
    for name in "abc":
        write(tmp_path / f"{name}.parquet", images_of(range(100)), group=40)
    source = open_source(tmp_path)
    keys = sorted(source.keys, key=lambda key: (int(key.split("/")[1][:-4]) // 30, key))
    with ThreadPoolExecutor(8) as pool:
        data = list(pool.map(source.read, keys))
    assert data == [b"image %d" % int(key.split("/")[1][:-4]) for key in keys]
    assert len(source._reader._files) == 1, "few are looked up by a dict"


def test_damage_costs_the_rows_from_there_on(tmp_path, monkeypatch):
    rows = [(f"{i}.jpg", (b"<%02d>" % i) * 200) for i in range(40)]
    path = write(tmp_path / "f.parquet", rows, group=20, dictionary=False)
    monkeypatch.setattr(parquet, "MOST_ROWS", 2)
    source = open_source(path)
    data = path.read_bytes()
    header = data.rindex(b"<09>") + 4  # behind it, the header of the page with 10 and 11
    path.write_bytes(data[:header] + b"\xff" * 12 + data[header + 12 :])
    assert [source.read(key) for key in source.keys[:10]] == [image for _, image in rows[:10]]
    seen = Opened(monkeypatch)
    for key in source.keys[10:20]:
        with pytest.raises(ImageError, match=r"\d+\.jpg: this row can't be read \(.+\); get a "):
            source.read(key)
    assert seen.times == 0, "the damaged group is not read again for each of its images"
    assert source.read(source.keys[20]) == rows[20][1]
    assert source.read(source.keys[3]) == rows[3][1], "what is in front of the damage stays good"


def test_a_file_that_is_another_one_now_costs_its_images(folder):
    source = open_source(folder)
    path = folder / "data" / "train-0.parquet"
    write(path, images_of((4, 9)))
    with pytest.raises(ImageError, match=r"train-0\.parquet: this Parquet file is another one"):
        source.read(KEYS[0])
    part = source_of("parquet", source.origin, source.root, KEYS, source.ids)
    assert part.read(KEYS[0]) == b"image 4"
    with pytest.raises(ImageError, match=r"0\.jpg: no longer in its Parquet file, where it was"):
        part.read(KEYS[1])
    (folder / "data" / "train-1.parquet").unlink()
    with pytest.raises(ImageError, match=r"train-1\.parquet: no such file in .*; put it back"):
        part.read(KEYS[5])
    with pytest.raises(ImageError, match=r"a\.jpg: expected a Parquet file and a row's name"):
        part.read("a.jpg")


def test_large_images_cost_themselves(folder, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_BYTES", 6)
    with pytest.raises(ImageError, match=r"4\.jpg: expected at most 6 bytes, got 7; make the"):
        open_source(folder).read(KEYS[0])


# --- outputs and runs


def test_what_is_read_is_never_written_to(folder, tmp_path):
    for given in (folder, folder / "data" / "train-{0..1}.parquet"):
        source = open_source(given)
        for output in (folder / "data", folder / "data" / "train-1.parquet"):
            with pytest.raises(ConfigError, match="which is never written to; give one elsewhere"):
                check_output(source, output)
        check_output(source, tmp_path / "run")


def test_a_run_over_parquet_is_that_over_files(tmp_path):
    files = write_images(tmp_path / "files", 6)
    (files / "004.png").write_bytes(b"not an image")
    rows = [(path.name, path.read_bytes()) for path in sorted(files.iterdir())]
    write(tmp_path / "in" / "f.parquet", [*rows, None], group=4)
    engine, options = Threshold(), {"readers": 1}
    label_dataset(files, engine.classes, tmp_path / "of files", engine=engine, **options)
    given = (str(tmp_path / "in"), engine.classes, tmp_path / "run")
    records = label_dataset_iter(*given, engine=engine, batch_size=1, **options)
    next(records)
    records.close()
    summary = label_dataset(*given, engine=engine, **options)
    assert 0 < summary.labelled_now < summary.listed == 7
    assert [failure["file_name"] for failure in summary.failures] == [
        "f.parquet/004.png",
        "f.parquet/000000006",
    ]
    written = (tmp_path / run / "annotations.json" for run in ("run", "of files"))
    rows, expected = (json.loads(p.read_text().replace("f.parquet/", "")) for p in written)
    assert rows.pop("info").keys() == expected.pop("info").keys()
    assert rows == expected


def test_yolo_gets_the_images_out_of_their_files(tmp_path):
    files = write_images(tmp_path / "files", 3)
    rows = [(f"{i}.png" if i else None, (files / f"{i:03d}.png").read_bytes()) for i in range(3)]
    write(tmp_path / "in" / "f.parquet", rows)
    engine = Threshold()
    label_dataset(str(tmp_path / "in"), engine.classes, tmp_path / "run", engine=engine, readers=1)
    for share in (0.0, 0.99):  # the second time, all are in the other split
        export_run(tmp_path / "run", tmp_path / "yolo", "yolo", val_share=share)
    written = {
        path.relative_to(tmp_path / "yolo" / "images"): path.read_bytes()
        for path in (tmp_path / "yolo" / "images").rglob("*.png")
    }
    names = ("000000000.png", "1.png", "2.png")
    assert written == {
        Path("val/f.parquet") / name: data for name, (_, data) in zip(names, rows, strict=True)
    }
    labels = tmp_path / "yolo" / "labels"
    assert {p.relative_to(labels).with_suffix(".png") for p in labels.rglob("*.txt")} == {*written}
    with pytest.raises(ConfigError, match=r"images 'link' needs files, .*; give --images copy"):
        export_run(tmp_path / "run", tmp_path / "links", "yolo", images="link")


def test_parquet_at_addresses_is_read_in_place(folder):
    files = fsspec.filesystem("memory")
    for path in folder.glob("data/*.parquet"):
        files.pipe_file(f"/data/{path.name}", path.read_bytes())
    try:
        source = open_source("memory://data/train-{0..1}.parquet")
        check_found(source.origin)
        assert [f"data/{key}" for key in source.keys] == [*KEYS]
        assert [source.read(key) for key in source.keys] == DATA
        del files.store["/data/train-0.parquet"]
        part = source_of("parquet", source.origin, source.root, source.keys, source.ids)
        with pytest.raises(ImageError, match=r"memory://data/train-0\.parquet"):
            part.read(part.keys[0])
    finally:
        files.store.clear()


def test_an_address_that_fails_once_costs_one_image(tmp_path, monkeypatch):
    files, read_range, faults = fsspec.filesystem("memory"), remote.read_range, []

    def read(url, start, end):
        if faults:
            raise ImageError(faults.pop())
        return read_range(url, start, end)

    monkeypatch.setattr(remote, "read_range", read)
    monkeypatch.setattr(remote, "AHEAD", 16)
    monkeypatch.setattr(parquet, "BUFFER", 16)
    monkeypatch.setattr(parquet, "MOST_ROWS", 2)
    rows = [(f"{i}.jpg", b"%03d" % i * 4000) for i in range(8)]
    files.pipe_file(
        "/in/f.parquet", write(tmp_path / "f.parquet", rows, dictionary=False).read_bytes()
    )
    try:
        source = open_source("memory://in/f.parquet")
        assert source.read(source.keys[0]) == rows[0][1]
        faults.append("the server is tired")
        with pytest.raises(ImageError, match="the server is tired"):
            source.read(source.keys[2])
        assert [source.read(key) for key in source.keys[2:]] == [data for _, data in rows[2:]]
    finally:
        files.store.clear()
