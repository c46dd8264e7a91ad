"""Exporters over records: each format read back by its own ecosystem's reader or rules."""

import copy
import csv
import errno
import glob
import json
import os
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from clip2sam.coco import document
from clip2sam.coco.document import coco_document
from clip2sam.coco.rle import decode_rle, encode_mask, run_lengths
from clip2sam.coco.validate import validate
from clip2sam.coco.write import write_coco
from clip2sam.data.files import fitting_name
from clip2sam.data.labels import LabelClass, as_label_set
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.errors import CocoError, ConfigError, ImageError, LabelError, OutputError
from clip2sam.export import EXPORTERS, Exporter, exporter_for
from clip2sam.export.coco import CocoExporter
from clip2sam.export.label_studio import LabelStudioExporter
from clip2sam.export.png import PngExporter
from clip2sam.export.results import ResultsExporter
from clip2sam.export.splits import split_of
from clip2sam.export.yolo import YoloExporter

# pycocotools' arrays, under numpy 2
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

CLASSES = (
    LabelClass("cat", ("cat",), supercategory="animal"),
    LabelClass('<dog> & "co"', ("dog",), presence_threshold=0.3),
)
CAT, DOG = (c.name for c in CLASSES)


def box(x, y, width, height, size=(40, 60)):
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def found(label, mask, score=0.9):
    return Annotation(label, encode_mask(mask), score, ((1.5, 2.5, 1), (30.0, 3.0, 0)))


RING = box(30, 5, 20, 20) & ~box(35, 10, 5, 5) | box(2, 30, 6, 6)
"""A square with a hole, and another square."""

RECORDS = (
    ImageRecord(
        10,
        "a.png",
        (40, 60),
        annotations=(found(CAT, box(0, 0, 20, 10), 0.95964926), found(DOG, RING, 0.7)),
    ),
    ImageRecord(
        4,
        "sub/b ü.png",
        (40, 60),
        annotations=(
            found(CAT, box(0, 0, 20, 20), 0.8),
            found(CAT, box(1, 0, 20, 20), 0.9),
            found(DOG, box(10, 10, 20, 20), 0.6),
        ),
    ),
    ImageRecord(5, "sub/c.png", (10, 10), "empty"),
)
"""In an order of ids that is not the numbers'; ids with gaps."""


def test_every_named_exporter_is_one_and_an_object_of_ones_own_too():
    class Names:
        def write(self, records, classes, output):
            output.write_text(" ".join(r.file_name for r in records))

    for made in (*(exporter_for(name) for name in EXPORTERS), Names()):
        assert isinstance(made, Exporter)
    labels = ["coco", "results", "yolo", "labelstudio", "cvat", "labelme", "voc", "cityscapes"]
    assert list(EXPORTERS) == [*labels, "png", "parquet", "jsonl"]
    assert exporter_for("coco", polygons=True, merge=None) == CocoExporter(polygons=True)
    assert exporter_for("yolo", merge=None) == YoloExporter(), "None: not given"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pascal", {}, "no format is called 'pascal'; choose one of coco, results, yolo, "),
        ("yolo", {"polygons": True}, "polygons is for the format coco or cvat, not yolo; leave"),
        ("png", {"merge": "x"}, "the option merge is for the format coco, not png"),
        ("coco", {"image_prefix": "x"}, "image_prefix is for the format labelstudio, not coco"),
        ("coco", {"scale": 2}, r"scale is for the format \(none\), not coco"),
    ],
)
def test_unknown_formats_and_options_of_other_formats_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        exporter_for(name, **options)


def test_neither_torch_nor_matplotlib_is_loaded_for_data_coco_and_export():
    rooms = (
        "data.images data.labels data.sources data.files data.records data.presence data.palette "
        "coco.rle coco.polygons coco.document coco.write coco.validate "
        "export export.coco export.results export.yolo export.label_studio export.png export.voc "
        "export.cvat export.labelme export.cityscapes"
    )
    program = (
        "import sys, importlib\n"
        f"for room in {rooms.split()!r}: importlib.import_module('clip2sam.' + room)\n"
        "heavy = {'torch', 'matplotlib', 'open_clip', 'segment_anything', 'torchvision'}\n"
        "print(*heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.split() == []


# --- polygons

DISK = np.hypot(*(np.mgrid[:200, :300] - 100.0)) < 70
ROUND = (
    ImageRecord(1, "disk.png", (200, 300), annotations=(found(CAT, DISK),)),
    replace(RECORDS[0], image_id=2),
)
"""A mask that gets fewer corners, and those that keep theirs."""


def drawn(polygons, size):
    """What pycocotools makes of polygons."""
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, *size))) > 0


def polygons_of(name, output):
    """The polygons that a format has written of the disk."""
    if name == "coco":
        return json.loads(output.read_text())["annotations"][0]["segmentation"]
    if name == "yolo":
        (line,) = next(output.glob("labels/*/disk.txt")).read_text().splitlines()
        points = np.reshape(np.array(line.split()[1:], float), (-1, 2)) * (300, 200)
    else:
        (region,) = json.loads(output.read_text())[0]["predictions"][0]["result"]
        points = np.array(region["value"]["points"]) / 100 * (300, 200)
    return [points.ravel().tolist()]


@pytest.mark.parametrize("name", ["coco", "yolo", "labelstudio"])
def test_polygons_have_few_corners_and_say_how_well_they_fit(tmp_path, name):
    options = {"coco": {"polygons": True}, "yolo": {"val_share": 0.0}}.get(name, {})
    fits, written = [], []
    for tolerance in (None, 0.0, 4.0):
        exporter = exporter_for(name, tolerance=tolerance, **options)
        fits.append(exporter.write(iter(ROUND), CLASSES, tmp_path / f"out-{tolerance}"))
        written.append(polygons_of(name, tmp_path / f"out-{tolerance}"))
    assert [fit.masks for fit in fits] == [3, 3, 3]
    assert fits[1].worst == 1.0
    usual, exact, coarse = [sum(map(len, polygons)) // 2 for polygons in written]
    assert exact > 4 * usual
    assert usual > coarse
    np.testing.assert_array_equal(drawn(written[1], DISK.shape), DISK)
    for fit, polygons in zip(fits, written, strict=True):
        back = drawn(polygons, DISK.shape)
        assert fit.worst == pytest.approx((back & DISK).sum() / (back | DISK).sum(), abs=1e-3)
        assert (fit.median, fit.poor) == (1.0, 0), "the squares"


@pytest.mark.parametrize("name", ["coco", "results", "cvat", "voc", "png"])
def test_without_polygons_there_is_no_fit(tmp_path, name):
    assert exporter_for(name).write(iter(ROUND), CLASSES, tmp_path / "out") is None


@pytest.mark.parametrize("name", ["yolo", "labelstudio", "labelme"])
def test_a_tolerance_below_0_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"the tolerance must be 0 pixels or more, but got -1.0"):
        exporter_for(name, tolerance=-1.0).write(ROUND, CLASSES, tmp_path / "out")


# --- COCO


@pytest.mark.parametrize("polygons", [False, True])
def test_coco_loads_in_pycocotools(tmp_path, polygons):
    path = tmp_path / "new" / "coco.json"
    CocoExporter(polygons=polygons).write(iter(RECORDS), CLASSES, path)
    assert validate(path) == []
    coco = COCO(str(path))
    assert [i["id"] for i in coco.dataset["images"]] == [10, 4, 5]
    assert coco.dataset["images"][0] == {
        "id": 10,
        "file_name": "a.png",
        "height": 40,
        "width": 60,
    }
    assert list(coco.cats.values()) == [
        {"id": 1, "name": CAT, "supercategory": "animal"},
        {"id": 2, "name": DOG, "supercategory": ""},
    ]
    assert list(coco.anns) == [1, 2, 3, 4, 5]
    assert [a["image_id"] for a in coco.anns.values()] == [10, 10, 4, 4, 4]
    assert {a["iscrowd"] for a in coco.anns.values()} == {0}
    ring = coco.anns[2]
    np.testing.assert_array_equal(coco.annToMask(ring).astype(bool), RING)
    assert (ring["area"], ring["bbox"], ring["score"]) == (int(RING.sum()), [2, 5, 48, 31], 0.7)
    assert '"score":0.95964926,' in path.read_text(), "as the record has it"
    assert len(list(path.parent.iterdir())) == 1


def test_the_file_written_row_by_row_is_the_document_written_at_once(tmp_path):
    for polygons in (False, True):
        CocoExporter(polygons=polygons).write(RECORDS, CLASSES, tmp_path / "rows.json")
        write_coco(tmp_path / "once.json", coco_document(RECORDS, CLASSES, polygons=polygons))
        assert (tmp_path / "rows.json").read_bytes() == (tmp_path / "once.json").read_bytes()


def test_few_records_are_in_memory_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(document, "CHUNK", 4)
    alive: list[int] = []

    class Counted(ImageRecord):
        def __del__(self):
            alive.remove(self.image_id)

    def records():
        for i in range(1, 30):
            record = Counted(i, f"{i}.png", (40, 60), annotations=RECORDS[0].annotations)
            alive.append(i)
            yield record
            del record
            assert len(alive) <= 8, "the exporter holds the last two chunks at most"

    for name in EXPORTERS:
        exporter_for(name).write(records(), CLASSES, tmp_path / f"out-{name}")
        assert len(alive) == 0


@pytest.mark.parametrize("name", ["coco", "results", "labelstudio", "cvat"])
def test_what_ends_the_records_leaves_the_old_file(tmp_path, name):
    path = tmp_path / "out.json"
    path.write_text("the old one")

    def stopped():
        yield RECORDS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exporter_for(name).write(stopped(), CLASSES, path)
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", EXPORTERS)
def test_what_does_not_fit_is_refused_by_every_format(tmp_path, name):
    for record, message in (
        (replace(RECORDS[0], annotations=(found("bird", RING),)), "expected one of the labels"),
        (replace(RECORDS[0], size=(60, 40)), r"\[height, width\] \[60, 40\], got \[40, 60\]"),
    ):
        with pytest.raises(CocoError, match=message):
            exporter_for(name).write([record], CLASSES, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"):
        exporter_for(name).write(RECORDS, CLASSES, tmp_path / "file" / "out")


@pytest.mark.parametrize("name", EXPORTERS)
def test_masks_without_a_pixel_are_in_no_format(tmp_path, name):
    empty = found(CAT, np.zeros((40, 60), bool), 0.1)
    with_empty = replace(RECORDS[0], annotations=(empty, *RECORDS[0].annotations, empty))
    outputs = []
    for folder, record in (("one", RECORDS[0]), ("two", with_empty)):
        options = {"val_share": 0.0} if name == "yolo" else {}
        exporter_for(name, **options).write([record], CLASSES, tmp_path / folder / "out.json")
        files = sorted(p for p in (tmp_path / folder).rglob("*") if p.is_file())
        data = [p.read_bytes().replace(b"/two/", b"/one/") for p in files]  # a YAML file's path
        outputs.append(
            [(p.relative_to(tmp_path / folder), d) for p, d in zip(files, data, strict=True)]
        )
    assert outputs[0] == outputs[1]


def test_results_load_in_pycocotools(tmp_path):
    CocoExporter().write(RECORDS, CLASSES, tmp_path / "coco.json")
    ResultsExporter().write(RECORDS, CLASSES, tmp_path / "results.json")
    rows = json.loads((tmp_path / "results.json").read_text())
    keys = {"image_id", "category_id", "segmentation", "score"}
    assert all(set(row) == keys for row in rows), "of a row with a box, the box's area is taken"
    assert [(r["image_id"], r["category_id"]) for r in rows] == [
        (10, 1),
        (10, 2),
        (4, 1),
        (4, 1),
        (4, 2),
    ]
    assert rows[0]["score"] == 0.95964926
    assert validate(tmp_path / "results.json", tmp_path / "coco.json") == []
    results = COCO(str(tmp_path / "coco.json")).loadRes(str(tmp_path / "results.json"))
    assert len(results.anns) == 5


# --- merging

THERE = {
    "info": {"year": 2019, "note": "ünser"},
    "licenses": [],
    "images": [
        {"id": 90, "file_name": "sub/b ü.png", "height": 40, "width": 60, "flickr": "x"},
        {"id": 7, "file_name": "elsewhere.png", "height": 5, "width": 5},
    ],
    "annotations": [
        {"id": 33, "image_id": 90, "category_id": 5, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0,
         "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}
    ],
    "categories": [
        {"id": 5, "name": "person", "supercategory": ""},
        {"id": 8, "name": "cat", "supercategory": "pet", "keypoints": ["a"]},
    ],
    "custom": [1, 2],
}  # fmt: skip


def test_merging_leaves_what_is_there_untouched(tmp_path):
    there = tmp_path / "there.json"
    there.write_text(json.dumps(THERE))
    CocoExporter(merge=there).write(RECORDS, CLASSES, tmp_path / "merged.json")
    merged = json.loads((tmp_path / "merged.json").read_text())
    assert (merged["info"], merged["custom"]) == (THERE["info"], THERE["custom"])
    for section in ("images", "annotations", "categories"):
        assert merged[section][: len(THERE[section])] == THERE[section]
    assert [(i["id"], i["file_name"]) for i in merged["images"][2:]] == [
        (91, "a.png"),
        (92, "sub/c.png"),
    ]
    assert merged["categories"][2:] == [{"id": 9, "name": DOG, "supercategory": ""}]
    added = merged["annotations"][1:]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in added] == [
        (34, 91, 8),
        (35, 91, 9),
        (36, 90, 8),
        (37, 90, 8),
        (38, 90, 9),
    ]
    assert len(COCO(str(tmp_path / "merged.json")).anns) == 6
    assert json.loads(there.read_text()) == THERE


def test_the_file_to_merge_with_is_never_written_to(tmp_path):
    there = tmp_path / "there.json"
    there.write_text(json.dumps(THERE))
    (tmp_path / "link.json").symlink_to(there)
    for output in (there, tmp_path / "link.json", tmp_path / "x" / ".." / "there.json"):
        with pytest.raises(ConfigError, match=r"is the file to merge with, which is never written"):
            CocoExporter(merge=there).write(RECORDS, CLASSES, output)
    assert json.loads(there.read_text()) == THERE


def merged(tmp_path, there, records=RECORDS, **options):
    """What comes out of merging, and the warning."""
    if isinstance(there, dict):
        (tmp_path / "there.json").write_text(json.dumps(there))
        there = tmp_path / "there.json"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CocoExporter(merge=there, **options).write(records, CLASSES, tmp_path / "merged.json")
    assert validate(tmp_path / "merged.json") == []
    return json.loads((tmp_path / "merged.json").read_text()), [str(w.message) for w in caught]


@pytest.mark.parametrize("polygons", [False, True])
def test_a_run_that_is_merged_again_adds_nothing(tmp_path, polygons):
    CocoExporter(polygons=polygons).write(RECORDS, CLASSES, tmp_path / "run.json")
    once = json.loads((tmp_path / "run.json").read_text())
    for again in (polygons, not polygons):
        twice, warned = merged(tmp_path, tmp_path / "run.json", polygons=again)
        assert twice == once
        assert warned == [
            f"{tmp_path}/run.json had 5 of 5 annotations already (same image, category and mask); "
            "they are not added again"
        ]


def test_what_was_simplified_is_known_again(tmp_path):
    """Its pixels are not the mask's any more."""
    CocoExporter(polygons=True).write(ROUND, CLASSES, tmp_path / "run.json")
    once = json.loads((tmp_path / "run.json").read_text())
    for options in ({"polygons": True}, {"polygons": False}):
        twice, warned = merged(tmp_path, tmp_path / "run.json", ROUND, **options)
        assert twice == once
        assert "had 3 of 3 annotations already" in warned[0]
    other, warned = merged(tmp_path, tmp_path / "run.json", ROUND, polygons=True, tolerance=4.0)
    assert len(other["annotations"]) == 4, "another outline of the disk"


def test_only_what_is_there_already_is_left_out(tmp_path):
    CocoExporter().write(RECORDS[:1], CLASSES, tmp_path / "run.json")
    there = json.loads((tmp_path / "run.json").read_text())
    first, second = there["annotations"]
    runs = run_lengths(first["segmentation"]).tolist()
    first["segmentation"]["counts"] = [*runs[:-1], runs[-1] - 1, 0, 1]
    second["category_id"] = 1  # the same pixels of another class
    found, warned = merged(tmp_path, there)
    assert found["annotations"][:2] == there["annotations"], "as they were"
    added = found["annotations"][2:]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in added] == [
        (3, 10, 2),
        (4, 11, 1),
        (5, 11, 1),
        (6, 11, 2),
    ]
    assert "there.json had 1 of 5 annotations already" in warned[0]
    moved = replace(RECORDS[0], annotations=(found_one_pixel_off(RECORDS[0]),))
    found, warned = merged(tmp_path, there, [moved])
    assert (len(found["annotations"]), warned) == (3, [])


def found_one_pixel_off(record):
    (first, *_) = record.annotations
    mask = decode_rle(first.rle)
    mask[0, 0] = False
    return replace(first, rle=encode_mask(mask))


def test_one_file_under_two_spellings_is_one_image(tmp_path):
    there = copy.deepcopy(THERE)
    there["images"][0]["file_name"] = "./sub//b ü.png"
    found, warned = merged(tmp_path, there)
    assert [(i["id"], i["file_name"]) for i in found["images"]] == [
        (90, "./sub//b ü.png"),
        (7, "elsewhere.png"),
        (91, "a.png"),
        (92, "sub/c.png"),
    ]
    assert warned == []
    other = replace(RECORDS[1], file_name="sub/./b ü.png")
    assert len(merged(tmp_path, THERE, [other])[0]["images"]) == 2


def put(section, index, **change):
    document = copy.deepcopy(THERE)
    document[section][index].update(change)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"there\.json: expected JSON, got: Expecting property name"),
        ("[]", r"expected a COCO dataset \(an object\), got list"),
        ("{}", r"not valid COCO.* info: .*; licenses: .*; images: .* \(and 2 more\); `clip2sam v"),
        (put("images", 0, id="x"), r"images\[0\]\.id: expected a whole number"),
        (put("categories", 0, id=8), r"categories\[1\]\.id: expected a value of its own, got 8"),
        (put("categories", 0, name="cat"), r"categories\[1\]\.name: expected a value of its own"),
        (put("annotations", 0, category_id=77), r"annotations\[0\]\.category_id: expected the id"),
        (put("annotations", 0, image_id=77), r"annotations\[0\]\.image_id: expected the id"),
        (put("annotations", 0, area=float("nan")), r"annotations\[0\]\.area: expected a finite"),
        (put("annotations", 0, score=1e999), r"annotations\[0\]\.score: expected a finite"),
        (put("images", 1, file_name="../x"), r"images\[1\]\.file_name: expected a POSIX path"),
        (put("images", 1, file_name="./sub/b ü.png"), r"images\[1\]\.file_name: .* of its own"),
        (json.dumps(THERE)[:-1] + ', "images": []}', r"images: expected the key once"),
        (put("images", 0, height=41), r"'sub/b ü\.png' is 40 x 60 .*but 41 x 60"),
        (put("images", 1, id=2**53 - 1), r"image 'a\.png': expected an id from 1 to 2\*\*53 - 1"),
        (put("categories", 0, id=2**53 - 1), r"(category '<dog>|annotations\[0\]\.category_id)"),
        (put("annotations", 0, id=2**53 - 1), r"annotation of 'a\.png': expected an id from 1 to"),
    ],
)
def test_merging_needs_a_valid_dataset_of_the_same_images(tmp_path, content, message):
    (tmp_path / "there.json").write_text(content)
    merging = CocoExporter(merge=tmp_path / "there.json")
    with pytest.raises(CocoError, match=message) as caught:
        merging.write(RECORDS, CLASSES, tmp_path / "merged.json")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged.json").exists()
    with pytest.raises(CocoError, match=r"expected a JSON file at .*nowhere, found none"):
        replace(merging, merge=tmp_path / "nowhere").write(RECORDS, CLASSES, tmp_path / "m.json")


# --- YOLO


def as_ultralytics_reads(yaml_file):
    """For each split the images that it finds, with the lines of the label file of each; None: it
    finds no label file, and takes the image for one without objects.

    Written after its documentation: `path` or else the YAML file's folder, all files in `train` and
    `val` whose suffix it knows, hidden ones left out, and in each path `labels` for the last
    `images`, `.txt` for the suffix.
    """
    data = yaml.safe_load(yaml_file.read_bytes())
    top = data.get("path") or str(yaml_file.parent)
    splits = {}
    for split in ("train", "val"):
        found = glob.glob(os.path.join(top, data[split], "**", "*.*"), recursive=True)
        found = [f for f in found if f.rsplit(".", 1)[1].lower() in ("bmp", "jpg", "png", "tiff")]
        texts = {}
        for file in found:
            before, _, after = file.rpartition(f"{os.sep}images{os.sep}")
            label = os.path.join(before, "labels", after.rsplit(".", 1)[0] + ".txt")
            text = Path(label).read_text().splitlines() if os.path.exists(label) else None
            texts[os.path.relpath(file, os.path.join(top, data[split]))] = text
        splits[split] = texts
    return splits


@pytest.fixture
def photos(tmp_path):
    """The records' images, and others: (records, their folder)."""
    names = ["a.png", "sub/b ü.png", "sub/c.png", "images/a.png", "x/images/y/a.JPG", "sub/a.jpg"]
    names += [f"more/{i}.bmp" for i in range(40)]
    size = {"sub/c.png": (10, 10)}
    for i, name in enumerate(names):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", size.get(name, (60, 40)), (i, 0, 0)).save(path)
    known = {r.file_name: r for r in RECORDS}
    first = RECORDS[0]
    return (
        [known.get(n, replace(first, image_id=100 + i, file_name=n)) for i, n in enumerate(names)],
        tmp_path / "photos",
    )


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("how", ["copy", "link"])
def test_yolo_is_a_whole_dataset(tmp_path, photos, how):
    records, root = photos
    before = content(root)
    exporter = YoloExporter(how, root, val_share=0.3)
    exporter.write(iter(records), CLASSES, tmp_path / "out" / "yolo")
    assert content(root) == before
    splits = as_ultralytics_reads(tmp_path / "out" / "yolo" / "data.yaml")
    written = {**splits["train"], **splits["val"]}
    assert len(written) == len(splits["train"]) + len(splits["val"]) == len(records)
    assert 5 <= len(splits["val"]) <= 20, "30 % of 46"
    for record in records:
        name = record.file_name.replace("images/", "images_/")
        lines = written[name]
        assert [int(line.split()[0]) for line in lines] == [
            (CAT, DOG).index(a.label) for a in record.annotations
        ]
        for line, one in zip(lines, record.annotations, strict=True):
            shares = np.array(line.split()[1:], float)
            assert ((shares >= 0) & (shares <= 1)).all()
            height, width = record.size
            corners = np.reshape(shares, (-1, 2)) * (width, height)
            assert (drawn([corners.ravel().tolist()], record.size) == decode_rle(one.rle)).all()
        split = "val" if name in splits["val"] else "train"
        assert split == split_of(record.file_name, 0.3)
        image = tmp_path / "out" / "yolo" / "images" / split / name
        assert image.read_bytes() == before[record.file_name]
        assert image.samefile(root / record.file_name) == (how == "link")
        assert not image.is_symlink()
    assert written["sub/c.png"] == [], "a file without a line, as an image without a mask"
    names = yaml.safe_load((tmp_path / "out" / "yolo" / "data.yaml").read_text())["names"]
    assert names == {0: CAT, 1: DOG}

    # moved, with the line of its path deleted; the photographs are moved too
    root.rename(tmp_path / "elsewhere")
    (tmp_path / "out" / "yolo").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "data.yaml"
    lines = moved.read_text().splitlines(keepends=True)
    moved.write_text("".join(line for line in lines if not line.startswith("path:")))
    assert as_ultralytics_reads(moved) == splits


def test_a_yolo_dataset_written_again_has_nothing_twice(tmp_path, photos):
    records, root = photos
    before = content(root)
    for how, share in (("link", 0.1), ("link", 0.6), ("link", 0.6), ("copy", 0.3), ("link", 0.3)):
        YoloExporter(how, root, share).write(records, CLASSES, tmp_path / "yolo")
        splits = as_ultralytics_reads(tmp_path / "yolo" / "data.yaml")
        assert not set(splits["train"]) & set(splits["val"])
        assert len(splits["train"]) + len(splits["val"]) == len(records)
        assert len(list(tmp_path.glob("yolo/labels/**/*.txt"))) == len(records)
        assert list(tmp_path.glob("yolo/**/.*")) == [], "nothing is left of writing"
    assert content(root) == before


def test_where_an_image_belongs_depends_on_its_name_alone():
    names = [f"photos/{i}.jpg" for i in range(2000)]
    val = {share: {n for n in names if split_of(n, share) == "val"} for share in (0.0, 0.1, 0.3)}
    assert not val[0.0]
    assert val[0.1] < val[0.3]
    assert 160 < len(val[0.1]) < 240
    assert 540 < len(val[0.3]) < 660
    assert [split_of(f"{i}.jpg", 0.1) for i in range(30)].index("val") == 26, "for ever"


def test_yolo_without_validation_images_validates_on_those_of_training(tmp_path):
    for share in (0.0, 0.001):
        output = tmp_path / str(share)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            YoloExporter(val_share=share).write(RECORDS, CLASSES, output)
        data = yaml.safe_load((output / "data.yaml").read_text())
        assert data["train"] == data["val"] == "images/train"
        said = [str(w.message) for w in caught]
        wanted = "none of 3 images is in val, so data.yaml has train in its place; give a larger"
        assert [text[: len(wanted)] for text in said] == ([wanted] if share else [])


def test_yolo_says_which_images_are_passed_over(tmp_path):
    records = [RECORDS[0], replace(RECORDS[1], file_name="b.gif"), replace(RECORDS[2])]
    with pytest.warns(UserWarning, match="1 images have a suffix that ultralytics passes over"):
        YoloExporter(val_share=0.0).write(records, CLASSES, tmp_path / "yolo")


def test_images_that_are_not_there_are_named(tmp_path, photos):
    records, root = photos
    (root / "sub" / "c.png").unlink()
    with pytest.raises(
        ImageError, match=r"sub/c\.png: the image is not in .*photos any more; .*none"
    ):
        YoloExporter("copy", root).write(records, CLASSES, tmp_path / "yolo")
    YoloExporter("none", root).write(records, CLASSES, tmp_path / "labels alone")
    assert not (tmp_path / "labels alone" / "images").exists()


def test_a_link_to_another_file_system_is_refused(tmp_path, photos, monkeypatch):
    def refused(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(
        ConfigError, match=r"a\.png: can't be a hard link to .*; give --images copy"
    ):
        YoloExporter("link", photos[1]).write(photos[0], CLASSES, tmp_path / "yolo")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "move", "root": "x"}, "images must be one of copy, link, none, but got 'move'"),
        ({"images": "copy"}, "images 'copy' needs the folder that they are in, .* --images none"),
        ({"val_share": 1.0}, r"val_share must be 0 or more and below 1, but got 1\.0"),
        ({"val_share": float("nan")}, "val_share must be 0 or more and below 1, but got nan"),
    ],
)
def test_yolo_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        exporter_for("yolo", **options)


def test_supervision_reads_yolo(tmp_path):
    supervision = pytest.importorskip("supervision")
    YoloExporter(val_share=0.0).write(iter(RECORDS), CLASSES, tmp_path / "yolo")
    (tmp_path / "images").mkdir()
    PILImage.new("RGB", (60, 40)).save(tmp_path / "images" / "a.png")
    dataset = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"),
        str(tmp_path / "yolo" / "labels" / "train"),
        str(tmp_path / "yolo" / "data.yaml"),
        force_masks=True,
    )
    assert dataset.classes == [CAT, DOG]
    (_, _, detections), *_ = list(dataset)
    assert detections.class_id.tolist() == [0, 1]
    line = (tmp_path / "yolo" / "labels" / "train" / "a.txt").read_text().splitlines()[1]
    ring = np.array(line.split()[1:], float).reshape(-1, 2) * (60, 40)
    outline = cv2.polylines(RING.astype(np.uint8), [ring.astype(np.int32)], True, 1)
    grown = cv2.dilate(outline, np.ones((3, 3), np.uint8)).astype(bool)
    assert (detections.mask[1] >= RING).all()
    assert (detections.mask[1] <= grown).all(), (
        "it fills the pixels on the outline and on the joining line, no others"
    )


# --- labels

ACCEPTED = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@pytest.mark.filterwarnings("ignore:labels that (differ only|look like)")
@settings(max_examples=50, deadline=None)
@given(names=st.lists(ACCEPTED, min_size=1, max_size=3, unique=True))
@example(names=["</Label>", "\ufeff&amp;", " a ", "\U0010ffff", "#: -", "1"])
@example(names=["a\nb"])
@example(names=["\ufffe"])
def test_every_accepted_label_survives_in_every_file_of_names(tmp_path_factory, names):
    try:
        classes = as_label_set(names).wanted
    except LabelError:
        assume(False)
    folder = tmp_path_factory.mktemp("names")
    LabelStudioExporter().write([], classes, folder / "tasks.json")
    view = ET.parse(folder / "tasks.xml").getroot()
    assert [e.attrib["value"] for e in view.iter("Label")] == names
    PngExporter().write([], classes, folder)
    text = (folder / "classes.txt").read_bytes().decode()
    numbered = [f"{i} {name}" for i, name in enumerate(names, 1)]
    assert text.splitlines() == text.removesuffix("\n").split("\n") == numbered
    YoloExporter().write([], classes, folder)
    data = yaml.safe_load((folder / "data.yaml").read_bytes())
    assert data["names"] == dict(enumerate(names))


# --- names


@pytest.mark.parametrize(
    ("exporter", "place", "ending"),
    [(YoloExporter(val_share=0.0), "labels/train/", ".txt"), (PngExporter(), "", ".png")],
)
def test_names_too_long_by_their_bytes_cost_nothing(tmp_path, exporter, place, ending):
    stems = ["犬" * 84, "猫" * 84 + "b", os.fsdecode(b"\xe9" * 252), "x" * 250]
    names = [f"sub/{stem}.png" for stem in stems]
    records = [RECORDS[0], *(replace(RECORDS[0], file_name=name) for name in names)]
    with pytest.warns(UserWarning, match=r"^3 names were changed, .*renamed\.csv lists them"):
        exporter.write(records, CLASSES, tmp_path / "out")
    folder = tmp_path / "out" / place
    content = (folder / f"a{ending}").read_bytes()
    written = {path.name: path.read_bytes() for path in (folder / "sub").iterdir()}
    expected = [fitting_name(stem, ending) for stem in stems]
    assert written == dict.fromkeys(expected, content)
    assert expected[3] == "x" * 250 + ending
    text = (tmp_path / "out" / "renamed.csv").read_bytes()
    rows = list(csv.reader(text.decode("utf-8", "surrogateescape").splitlines()))
    assert rows[0] == ["name", "written_as"]
    assert rows[1:] == [
        [name, f"sub/{fitted.removesuffix(ending)}"]
        for name, fitted in zip(names[:3], expected, strict=False)
    ]


@pytest.mark.parametrize("name", ["../a.png", "sub/../../a.png", "/tmp/a.png"])
@pytest.mark.parametrize(
    "exporter", [exporter_for(n) for n in ("yolo", "png", "voc", "labelme", "cityscapes")]
)
def test_no_name_leads_out_of_the_output(tmp_path, exporter, name):
    record = replace(RECORDS[0], file_name=name)
    with pytest.raises(CocoError, match=r"a\.png: expected a path below the dataset's root, so"):
        exporter.write([record], CLASSES, tmp_path / "new" / "out")
    assert not list(tmp_path.rglob("a.*"))


@pytest.mark.parametrize(
    ("exporter", "place", "ending"),
    [(YoloExporter(val_share=0.0), "labels/train/", ".txt"), (PngExporter(), "", ".png")],
)
def test_images_that_differ_in_their_suffix_alone_stay_apart(tmp_path, exporter, place, ending):
    names = ["a/x.jpg", "a/x.png", "b/x.png", "x.png", "a/x.png.png", "a/" + "y" * 251 + ".jpg"]
    names += ["a/" + "y" * 251 + ".png"]
    records = [
        replace(RECORDS[0], file_name=name, annotations=(found(CAT, box(i, 0, 5, 5)),))
        for i, name in enumerate(names)
    ]
    with pytest.warns(UserWarning, match=r"^2 names were changed, as another image has the same"):
        exporter.write(records, CLASSES, tmp_path / "out")
    with open(tmp_path / "out" / "renamed.csv", newline="") as file:
        renamed = dict(list(csv.reader(file))[1:])
    assert list(renamed) == [names[1], names[6]]
    assert re.fullmatch(r"a/x~[0-9a-f]{8}", renamed["a/x.png"])
    assert re.fullmatch(r"a/y{240,242}~[0-9a-f]{8}", renamed[names[6]])
    stems = [renamed.get(name, os.path.splitext(name)[0]) for name in names]
    written = [(tmp_path / "out" / place / (stem + ending)).read_bytes() for stem in stems]
    assert len(set(written)) == len(names)
    assert len(list((tmp_path / "out" / place).rglob(f"*{ending}"))) == len(names)
    alone = type(exporter)() if ending == ".png" else exporter
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone.write(records[1:2], CLASSES, tmp_path / "alone")
    assert (tmp_path / "alone" / place / f"a/x{ending}").exists(), "where it is the only one"


# --- Label Studio


def test_label_studio_gets_the_documented_form(tmp_path):
    exporter = LabelStudioExporter(image_prefix="s3://bucket/")
    exporter.write(iter(RECORDS), CLASSES, tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [t["data"]["image"] for t in tasks] == [
        "s3://bucket/a.png",
        "s3://bucket/sub/b%20%C3%BC.png",
        "s3://bucket/sub/c.png",
    ]
    assert [t["predictions"][0]["score"] for t in tasks] == [0.7, 0.6, 0.0], "the lowest"
    regions = tasks[0]["predictions"][0]["result"]
    assert len({r["id"] for r in regions}) == len(regions) == 3, "a region for each part"
    drawn = {name: np.zeros((40, 60), bool) for name in (CAT, DOG)}
    for r in regions:
        assert (r["type"], r["from_name"], r["to_name"]) == ("polygonlabels", "label", "image")
        assert (r["original_width"], r["original_height"], r["image_rotation"]) == (60, 40, 0)
        corners = np.array(r["value"]["points"]) / 100 * (60, 40)
        rle = mask_utils.merge(mask_utils.frPyObjects([corners.ravel().tolist()], 40, 60))
        (name,) = r["value"]["polygonlabels"]
        drawn[name] |= mask_utils.decode(rle).astype(bool)
    np.testing.assert_array_equal(drawn[DOG], RING)
    np.testing.assert_array_equal(drawn[CAT], box(0, 0, 20, 10))
    assert tasks[2]["predictions"][0]["result"] == []
    view = ET.parse(tmp_path / "tasks.xml").getroot()
    assert [e.attrib["value"] for e in view.iter("Label")] == [c.name for c in CLASSES]
    assert view.find("PolygonLabels").attrib == {"name": "label", "toName": "image"}


def test_label_studios_interface_never_overwrites_its_tasks(tmp_path):
    for name in ("tasks.xml", "tasks.XML"):
        with pytest.raises(ConfigError, match=r"the labelling interface gets the suffix \.xml"):
            LabelStudioExporter().write(RECORDS, CLASSES, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_label_studios_own_checker_takes_it(tmp_path):
    interface = pytest.importorskip(
        "label_studio_sdk.label_interface", reason="scripts/setup installs it"
    )
    LabelStudioExporter().write(RECORDS, CLASSES, tmp_path / "tasks.json")
    checker = interface.LabelInterface((tmp_path / "tasks.xml").read_text())
    for task in json.loads((tmp_path / "tasks.json").read_text()):
        assert task["data"]["image"].startswith("/data/local-files/?d=")
        assert checker.validate_task({"data": task["data"]})
        assert all(checker.validate_prediction(p) for p in task["predictions"])


# --- PNG


def test_pngs_hold_class_numbers(tmp_path):
    PngExporter().write(iter(RECORDS), CLASSES, tmp_path / "png")
    with PILImage.open(tmp_path / "png" / "a.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:6] == [0, 0, 0, 0x00, 0x9E, 0x73]
        index = np.array(image)
    np.testing.assert_array_equal(index, np.where(box(0, 0, 20, 10), 1, np.where(RING, 2, 0)))
    with PILImage.open(tmp_path / "png" / "sub" / "b ü.png") as image:
        assert np.array(image)[15, 15] == 1, "the better score is on top"
    assert (tmp_path / "png" / "classes.txt").read_text() == f"1 cat\n2 {DOG}\n"


@pytest.mark.parametrize("count", [256, 300])
def test_pngs_of_more_than_255_classes_have_16_bits(tmp_path, count):
    classes = tuple(LabelClass(f"c{i}", (f"c{i}",)) for i in range(count))
    record = replace(RECORDS[0], annotations=(found(f"c{count - 1}", RING),))
    PngExporter().write([record], classes, tmp_path)
    with PILImage.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.array(image), RING * count)
