"""COCO: masks there and back, documents that pycocotools reads, every fault found."""

import copy
import io
import json
import os
import tracemalloc
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clip2sam.coco import json_text
from clip2sam.coco.document import coco_document
from clip2sam.coco.many import areas_and_boxes
from clip2sam.coco.polygons import joined_polygons, rle_to_polygons
from clip2sam.coco.reading import JsonRows, read_json, read_rows
from clip2sam.coco.report import Violation
from clip2sam.coco.rle import area_and_box, decode_rle, encode_mask, run_lengths
from clip2sam.coco.rle_shapes import rle_shapes
from clip2sam.coco.shapes import Shape
from clip2sam.coco.validate import validate
from clip2sam.coco.write import write_coco
from clip2sam.data.labels import LabelClass, as_label_set
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.errors import CocoError, OutputError

# pycocotools' own decoding
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

REAL_FILE = Path(__file__).parents[2] / "shared" / "data" / "coco64" / "instances.json"

masks = arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def disk(height: int, width: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] + 0.5
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def ring() -> np.ndarray:
    return disk(60, 80, 30, 40, 25) & ~disk(60, 80, 28, 44, 9) & ~disk(60, 80, 40, 30, 5)


def drawn(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    """What pycocotools makes of polygons."""
    merged = mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))
    return mask_utils.decode(merged).astype(bool)


def area_by_corners(polygon: list[float]) -> float:
    x, y = np.array(polygon).reshape(-1, 2).T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def windings(polygon: list[float], size: tuple[int, int]) -> np.ndarray:
    """How often a polygon runs around the centre of each pixel, by its edges to the right."""
    x, y = np.array(polygon).reshape(-1, 2).T
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    counted = np.zeros(size, int)
    for x1, y1, x2, y2 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        assert x1 == x2 or y1 == y2
        crossed = (min(y1, y2) < rows) & (rows < max(y1, y2)) & (columns < x1)
        counted += crossed * int(np.sign(y2 - y1))
    return counted


CLASSES = (
    LabelClass("person", ("person",)),
    LabelClass("traffic light", ("traffic light",), supercategory="street"),
    LabelClass("犬", ("dog",)),
)


def annotation(label: str, mask: np.ndarray, score: float) -> Annotation:
    return Annotation(label, encode_mask(mask), score)


RECORDS = (
    ImageRecord(
        1,
        "b/one.jpg",
        (60, 80),
        annotations=(
            annotation("traffic light", ring(), 0.75),
            annotation("person", disk(60, 80, 10, 10, 8), 0.5),
            annotation("person", np.zeros((60, 80), bool), 0.9),
        ),
    ),
    ImageRecord(2, "empty.png", (5, 7), "empty"),
    ImageRecord(
        3,
        "a.jpg",
        (40, 40),
        annotations=(
            annotation("犬", disk(40, 40, 40, 40, 20), 1.0),
            annotation("犬", disk(40, 40, 5, 5, 2), 0.0),
        ),
    ),
)


@pytest.fixture
def document() -> dict:
    return coco_document(RECORDS, CLASSES)


# --- masks ---


@given(masks)
@example(np.ones((1, 1), bool))
@example(np.zeros((3, 4), bool))
@example(np.ones((3, 4), bool))
def test_rle_there_and_back_agrees_with_pycocotools(mask):
    rle = encode_mask(mask)
    assert isinstance(rle["counts"], str)
    assert rle["size"] == list(mask.shape)
    assert np.array_equal(decode_rle(rle), mask)
    assert np.array_equal(mask_utils.decode(rle), mask)
    area, box = area_and_box(rle)
    assert area == mask.sum() == mask_utils.area(rle)
    assert box == mask_utils.toBbox(rle).tolist()
    assert all(type(v) is int for v in [area, *box])
    uncompressed = {"size": rle["size"], "counts": run_lengths(rle).tolist()}
    assert np.array_equal(decode_rle(uncompressed), mask)
    assert area_and_box(uncompressed) == (area, box)


def test_rle_of_large_masks_has_long_numbers_and_differences_of_both_signs():
    mask = np.zeros((3000, 2000), bool)
    for x in range(40, 1900, 7):
        mask[x : 3000 - (x * x) % 700, x] = True
    rle = encode_mask(mask)
    assert np.array_equal(decode_rle(rle), mask)
    assert area_and_box(rle) == (mask.sum(), mask_utils.toBbox(rle).tolist())


def test_runs_of_no_length_are_skipped():
    rle = {"size": [2, 3], "counts": [0, 1, 0, 1, 2, 0, 2]}
    assert decode_rle(rle).tolist() == [[True, False, False], [True, False, False]]
    assert area_and_box(rle) == (2, [0, 0, 1, 2])


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 2, 2), bool), np.zeros((0, 3), bool), np.zeros((2, 2), np.uint8)]
)
def test_what_is_no_mask_is_refused(mask):
    with pytest.raises(CocoError, match=r"expected a boolean mask \(height, width\), got"):
        getattr(encode_mask, "__wrapped__", encode_mask)(mask)


@given(masks)
@example(np.eye(5, dtype=bool))
@example(np.pad(np.zeros((1, 1), bool), 1, constant_values=True))
@settings(max_examples=200)
def test_polygons_are_exactly_their_mask(mask):
    polygons = rle_to_polygons(encode_mask(mask))
    assert all(len(p) >= 8 and len(p) % 2 == 0 for p in polygons)
    assert all(type(v) is float for p in polygons for v in p)
    assert all(v == round(v) for p in polygons for v in p)
    assert len(polygons) == len(rle_to_polygons(encode_mask(mask.T)))
    # two independent areas: from the corners alone, where a hole must count, and by filling
    assert sum(map(area_by_corners, polygons)) == mask.sum()
    parts, numbers = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    assert len(polygons) == parts - 1
    for polygon in polygons:  # every filling rule: the outline runs around each pixel once
        around = np.abs(windings(polygon, mask.shape))
        part = numbers[around == 1].max()
        assert np.array_equal(around, numbers == part)
    if mask.any():
        assert np.array_equal(drawn(polygons, *mask.shape), mask)
    else:
        assert polygons == []


def test_polygons_run_along_the_edges_of_pixels():
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    (polygon,) = rle_to_polygons(encode_mask(mask))
    corners = {(polygon[i], polygon[i + 1]) for i in range(0, len(polygon), 2)}
    assert corners == {(3, 2), (9, 2), (9, 5), (3, 5)}


def test_each_part_has_a_polygon_and_holes_are_cut_out_of_theirs():
    mask = ring()
    mask[0:3, 0:3] = True
    mask[26:30, 42:46] = True  # an island in a hole
    polygons = rle_to_polygons(encode_mask(mask))
    assert len(polygons) == 3
    assert np.array_equal(drawn(polygons, 60, 80), mask)
    assert sum(map(area_by_corners, polygons)) == mask.sum()


def test_parts_and_holes_of_a_mask_survive_as_one_ring():
    mask = ring()
    mask[0:3, 0:3] = True
    mask[50:55, 70:80] = True
    joined = joined_polygons(rle_to_polygons(encode_mask(mask)))
    assert np.array_equal(drawn([joined.ravel().tolist()], 60, 80), mask)
    assert area_by_corners(joined.ravel().tolist()) == mask.sum()


@given(masks)
@example(np.indices((14, 14)).sum(axis=0) % 2 == 0)  # a chessboard: one part, with holes
@example(np.pad(np.zeros((3, 3), bool), 2, constant_values=True) | np.eye(7, dtype=bool))
def test_polygons_of_any_mask_are_valid(mask):
    found = (annotation("person", mask, 0.5),)
    records = [ImageRecord(1, "a.png", mask.shape, annotations=found)]
    document = coco_document(records, CLASSES, polygons=True)
    assert len(document["annotations"]) == mask.any()
    assert validate(document) == []


# --- documents ---


def test_an_annotation_says_where_it_comes_from():
    """Its score, its share, its label's presence in the image, and the points of its prompt."""
    mask = encode_mask(disk(40, 40, 20, 20, 5))
    points = ((20.5, 19.5, 1), (3.0, 4.0, 0))
    record = ImageRecord(
        1,
        "a.png",
        (40, 40),
        annotations=(Annotation("犬", mask, 0.5, points, 0.75),),
        presence=(0.1, None, 0.625),
    )
    document = coco_document([record], CLASSES)
    assert validate(document) == []
    (row,) = document["annotations"]
    assert (row["score"], row["share"], row["presence"]) == (0.5, 0.75, 0.625)
    assert row["prompt"] == [[20.5, 19.5, 1], [3.0, 4.0, 0]]


def test_the_document(document):
    assert document["categories"] == [
        {"id": 1, "name": "person", "supercategory": ""},
        {"id": 2, "name": "traffic light", "supercategory": "street"},
        {"id": 3, "name": "犬", "supercategory": ""},
    ]
    assert document["images"][1] == {"id": 2, "file_name": "empty.png", "height": 5, "width": 7}
    rows = document["annotations"]
    assert [(r["id"], r["image_id"], r["category_id"], r["score"]) for r in rows] == [
        (1, 1, 2, 0.75),
        (2, 1, 1, 0.5),
        (3, 3, 3, 1.0),
        (4, 3, 3, 0.0),
    ]
    assert rows[2]["bbox"] == [20, 20, 20, 20]
    assert rows[2]["area"] == disk(40, 40, 40, 40, 20).sum()
    assert {r["iscrowd"] for r in rows} == {0}
    assert [r["share"] for r in rows] == [1.0] * 4
    assert not any({"presence", "prompt"} & set(r) for r in rows), "they are not known"
    assert (document["licenses"], type(document["info"])) == ([], dict)
    assert validate(document) == []
    assert coco_document(iter(RECORDS), CLASSES) == document
    assert coco_document(RECORDS, CLASSES, info={"year": 2001})["info"] == {"year": 2001}


def test_boxes_are_x_y_width_height_of_a_mask_off_the_origin_and_off_the_diagonal():
    mask = np.zeros((30, 50), bool)
    mask[4:9, 20:32] = True  # rows 4 to 8: y and height; columns 20 to 31: x and width
    found = (annotation("person", mask, 0.123456789),)
    for polygons in (False, True):
        document = coco_document(
            [ImageRecord(7, "a.png", (30, 50), annotations=found)], CLASSES, polygons=polygons
        )
        (row,) = document["annotations"]
        assert (row["bbox"], row["area"]) == ([20, 4, 12, 5], 60)
        assert (row["id"], row["image_id"], row["category_id"]) == (1, 7, 1)
        assert (row["iscrowd"], row["score"]) == (0, 0.123456789)
        assert document["images"] == [{"id": 7, "file_name": "a.png", "height": 30, "width": 50}]
        assert validate(document) == []


def test_an_image_whose_masks_are_all_empty_stays_without_annotations():
    empty = annotation("person", np.zeros((5, 7), bool), 0.9)
    document = coco_document([ImageRecord(1, "a.png", (5, 7), annotations=(empty,))], CLASSES)
    assert (len(document["images"]), document["annotations"]) == (1, [])


def test_a_mask_that_is_there_twice_under_one_label_is_written_once():
    mask = disk(60, 80, 30, 40, 9)
    twice = [annotation(name, mask, score) for name, score in (("犬", 0.9), ("person", 0.5)) * 2]
    document = coco_document([ImageRecord(1, "a.png", (60, 80), annotations=tuple(twice))], CLASSES)
    assert [(a["category_id"], a["score"]) for a in document["annotations"]] == [(3, 0.9), (1, 0.5)]
    assert validate(document) == []


def test_the_document_shares_nothing_with_what_it_is_made_of(document):
    before = copy.deepcopy(RECORDS[0].annotations[0].rle)
    document["annotations"][0]["segmentation"]["size"].reverse()
    assert RECORDS[0].annotations[0].rle == before


def one(*annotations: Annotation, size=(60, 80), name="x") -> list[ImageRecord]:
    return [ImageRecord(1, name, size, annotations=annotations)]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (
            [RECORDS[0], ImageRecord(5, "b/one.jpg", (60, 80))],
            "image 5: 'b/one.jpg' is given twice, first as image 1",
        ),
        ([*one(), ImageRecord(1, "y", (2, 2))], "image 1: expected an id of its own, 'x' has it"),
        ([ImageRecord(2**53, "x", (2, 2))], r"image 'x': expected an id .* got 9007199254740992"),
        ([ImageRecord(0, "x", (2, 2))], r"image 'x': expected an id from 1 to 2\*\*53 - 1, got 0"),
        (one(name="/a.jpg"), "image 1: expected a POSIX path .* got the absolute '/a.jpg'"),
        (one(annotation("cat", ring(), 0.5)), r"x, 'cat': expected one of the labels \['per"),
        (one(annotation("person", ring(), 1.5)), "expected a score from 0 to 1, got 1.5"),
        (one(annotation("person", ring(), np.nan)), "expected a score from 0 to 1, got nan"),
        (
            one(annotation("person", ring(), 0.5), size=(80, 60)),
            r"width\] \[80, 60\], got \[60, 80\]",
        ),
        (
            one(Annotation("person", {"size": [2, 2], "counts": "9"}, 0.5), size=(2, 2)),
            "x, 'person': .* that sum to 4",
        ),
        (
            [ImageRecord(4, "cut.jpg", state="failed", reason="it is cut")],
            r"image 4: 'cut\.jpg' failed \(it is cut\); leave it out",
        ),
    ],
)
def test_what_would_not_be_coco_is_refused(records, words):
    with pytest.raises(CocoError, match=words):
        coco_document(records, CLASSES)


def coco_of(path: Path) -> COCO:
    with redirect_stdout(io.StringIO()):
        return COCO(path)


@pytest.mark.parametrize("polygons", [False, True])
def test_pycocotools_loads_it_and_it_agrees_with_itself(tmp_path, polygons):
    document = coco_document(RECORDS, CLASSES, polygons=polygons)
    write_coco(tmp_path / "data.json", document)
    write_coco(tmp_path / "results.json", results_of(RECORDS))
    assert validate(tmp_path / "data.json") == []
    assert validate(tmp_path / "results.json", tmp_path / "data.json") == []
    truth = coco_of(tmp_path / "data.json")
    for row, record in zip(
        document["annotations"], [RECORDS[0]] * 2 + [RECORDS[2]] * 2, strict=True
    ):
        mask = truth.annToMask(row)
        assert mask.shape == record.size
        assert mask.sum() == row["area"]
    for kind in ("segm", "bbox"):
        with redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0), kind


def results_of(records) -> list[dict]:
    """COCO results of records: the rows of the dataset with nothing but masks and scores."""
    keys = ("image_id", "category_id", "segmentation", "score")
    return [{k: row[k] for k in keys} for row in coco_document(records, CLASSES)["annotations"]]


# --- files ---


def test_the_file_is_utf8_and_the_same_each_time(tmp_path, document):
    for name in ("one.json", "two.json"):
        write_coco(tmp_path / name, document)
    text = (tmp_path / "one.json").read_bytes()
    assert text == (tmp_path / "two.json").read_bytes()
    assert "犬".encode() in text
    assert json.loads(text) == document
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.json", "two.json"]


def test_file_names_that_are_not_utf8_survive(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x90\x95.jpg")
    write_coco(tmp_path / "data.json", coco_document([ImageRecord(1, name, (2, 2))], CLASSES))
    (tmp_path / "data.json").read_text(encoding="utf-8")
    assert coco_of(tmp_path / "data.json").imgs[1]["file_name"] == name
    assert validate(tmp_path / "data.json") == []


def test_an_invalid_document_is_not_written(tmp_path, document):
    path = tmp_path / "data.json"
    write_coco(path, document)
    before = path.read_bytes()
    for row in document["annotations"]:
        row["score"] = float("nan")
    with pytest.raises(
        CocoError,
        match=r"data\.json: not written, as it would not be valid COCO: annotations.*and \d+",
    ):
        write_coco(path, document)
    assert path.read_bytes() == before


def test_a_document_that_can_t_be_written_is_an_error_of_the_output(tmp_path, document):
    with pytest.raises(OutputError, match="can't be written"):
        write_coco(tmp_path, document)


# --- validation ---


def put(*keys_and_value):
    """A change of a document: what stands at the keys becomes the value."""
    *keys, last, value = keys_and_value

    def change(document):
        for key in keys:
            document = document[key]
        document[last] = value

    return change


def drop(*keys):
    def change(document):
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return change


A0 = ("annotations", 0)
SEGMENTATION = (*A0, "segmentation")
NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "places"),
    [
        (drop("info"), ["info"]),
        (put("info", []), ["info"]),
        (drop("licenses"), ["licenses"]),
        (put("licenses", {}), ["licenses"]),
        (put("licenses", [7, {"id": 0}]), ["licenses[0]"]),
        (put("licenses", [{"name": "MIT"}]), ["licenses[0].id"]),
        (put("licenses", ["MIT"]), ["licenses[0]"]),
        (put("licenses", [{"id": -1}]), ["licenses[0].id"]),
        (put("licenses", [{"id": 2**53}]), ["licenses[0].id"]),
        (put("licenses", [{"id": 1}, {"id": 1}]), ["licenses[1].id"]),
        (put("images", 1, "license", 4), ["images[1].license"]),
        (put("images", 1, "license", None), ["images[1].license"]),
        (put("info", {"a": [1, {"b": NAN}]}), ["info.a[1].b"]),
        (put("info", "scale", float("inf")), ["info.scale"]),
        (put("info", 3, "x"), ["info[3]"]),
        (put("info", "when", {1, 2}), ["info.when"]),
        (
            put("images", 0, "id", 0),
            ["images[0].id", "annotations[0].image_id", "annotations[1].image_id"],
        ),
        (put("images", 1, "id", True), ["images[1].id"]),
        (put("images", 1, "id", 2.0), ["images[1].id"]),
        (put("images", 1, "id", "2"), ["images[1].id"]),
        (put("images", 1, "id", -1), ["images[1].id"]),
        (put("images", 1, "id", 10**5000), ["images[1].id"]),
        (put("images", 1, "id", 2**53), ["images[1].id"]),
        (put("images", 1, "id", 3), ["images[2].id"]),
        (drop("images", 1, "id"), ["images[1].id"]),
        (put("images", 1, "height", 0), ["images[1].height"]),
        (put("images", 1, "height", 1.5), ["images[1].height"]),
        (drop("images", 1, "width"), ["images[1].width"]),
        (put("images", 1, "width", None), ["images[1].width"]),
        (put("images", 1, []), ["images[1]"]),
        (put("images", 1, "file_name", ""), ["images[1].file_name"]),
        (put("images", 1, "file_name", 7), ["images[1].file_name"]),
        (put("images", 1, "file_name", ["a"]), ["images[1].file_name"]),
        (put("images", 1, "file_name", "/etc/passwd"), ["images[1].file_name"]),
        (put("images", 1, "file_name", "C:/a.jpg"), ["images[1].file_name"]),
        (put("images", 1, "file_name", "a\\b.jpg"), ["images[1].file_name"]),
        (put("images", 1, "file_name", "a/../../b.jpg"), ["images[1].file_name"]),
        (put("images", 1, "file_name", "a\0.jpg"), ["images[1].file_name"]),
        (put("images", 1, "file_name", "a.jpg"), ["images[2].file_name"]),
        (put("images", 1, "file_name", "./a.jpg"), ["images[2].file_name"]),
        (put("images", 0, "file_name", "a.jpg/"), ["images[2].file_name"]),
        (put("categories", 0, "name", "犬"), ["categories[2].name"]),
        (put("categories", 0, "name", " "), ["categories[0].name"]),
        (put("categories", 0, "name", None), ["categories[0].name"]),
        (drop("categories", 0, "supercategory"), ["categories[0].supercategory"]),
        (put("categories", 0, "supercategory", None), ["categories[0].supercategory"]),
        (put("categories", 0, "id", 3), ["categories[2].id", "annotations[1].category_id"]),
        (put("categories", 0, "id", 0), ["categories[0].id", "annotations[1].category_id"]),
        (drop("annotations"), ["annotations"]),
        (put("annotations", {}), ["annotations"]),
        (put("annotations", 0, None), ["annotations[0]"]),
        (put(*A0, "id", 0), ["annotations[0].id"]),
        (put(*A0, "id", 2), ["annotations[1].id"]),
        (put(*A0, "id", False), ["annotations[0].id"]),
        (put(*A0, "id", [1]), ["annotations[0].id"]),
        (put(*A0, "image_id", 99), ["annotations[0].image_id"]),
        (put(*A0, "image_id", True), ["annotations[0].image_id"]),
        (put(*A0, "category_id", 99), ["annotations[0].category_id"]),
        (drop(*A0, "category_id"), ["annotations[0].category_id"]),
        (put(*A0, "iscrowd", 2), ["annotations[0].iscrowd"]),
        (put(*A0, "iscrowd", False), ["annotations[0].iscrowd"]),
        (drop(*A0, "iscrowd"), ["annotations[0].iscrowd"]),
        (put(*A0, "score", 1.01), ["annotations[0].score"]),
        (put(*A0, "score", -0.1), ["annotations[0].score"]),
        (put(*A0, "score", "0.5"), ["annotations[0].score"]),
        (put(*A0, "score", NAN), ["annotations[0].score"] * 2),
        (put(*A0, "area", 0), ["annotations[0].area"]),
        (put(*A0, "area", int(ring().sum()) + 1), ["annotations[0].area"]),
        (put(*A0, "area", True), ["annotations[0].area"]),
        (drop(*A0, "area"), ["annotations[0].area"]),
        (put(*A0, "bbox", [15, 5, 50, 51]), ["annotations[0].bbox"]),
        (put(*A0, "bbox", [15, 5, 50]), ["annotations[0].bbox"]),
        (put(*A0, "bbox", [15, 5, 50, 0]), ["annotations[0].bbox"]),
        (put(*A0, "bbox", [15, 5, 50, NAN]), ["annotations[0].bbox", "annotations[0].bbox[3]"]),
        (put(*A0, "bbox", [-2, 5, 50, 50]), ["annotations[0].bbox"]),
        (put(*A0, "bbox", [40, 5, 50, 50]), ["annotations[0].bbox"]),
        (put(*A0, "bbox", {"x": 1}), ["annotations[0].bbox"]),
        (drop(*A0, "bbox"), ["annotations[0].bbox"]),
        (drop(*SEGMENTATION), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "masks.png"), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, []), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, {}), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "size", [80, 60]), ["annotations[0].segmentation.size"]),
        (put(*SEGMENTATION, "size", [60]), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "size", [60.0, 80]), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "size", [10**9, 10**9]), ["annotations[0].segmentation"]),
        (
            put(*SEGMENTATION, encode_mask(np.zeros((60, 80), bool))),
            ["annotations[0].segmentation"],
        ),
        (put(*SEGMENTATION, "counts", None), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "counts", ""), ["annotations[0].segmentation"]),
        (
            put(*SEGMENTATION, "counts", b"abc"),
            ["annotations[0].segmentation", "annotations[0].segmentation.counts"],
        ),
        (put(*SEGMENTATION, "counts", "o" * 9999), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "counts", "o" * 9999 + "0"), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "counts", "0p"), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "counts", "0 1"), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "counts", "0\0"), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "counts", "犬"), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "counts", "0000OO"), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "counts", "ooooo0" * 20), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "counts", [0, 4801]), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "counts", [10, -10, 4800]), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, "counts", [0, 4800.0]), ["annotations[0].segmentation"]),
        (put(*SEGMENTATION, [[1, 2, 3]]), ["annotations[0].segmentation[0]"]),
        (put(*SEGMENTATION, [[1, 2, 3, 4]]), ["annotations[0].segmentation[0]"]),
        (put(*SEGMENTATION, [[15, 5, 65, 5, 65, 55, 15]]), ["annotations[0].segmentation[0]"]),
        (put(*SEGMENTATION, [[15, 5, 65, 5, 65, None]]), ["annotations[0].segmentation[0]"]),
        (
            put(*SEGMENTATION, [[15, 5, 65, 5, 65, NAN]]),
            ["annotations[0].segmentation[0]", "annotations[0].segmentation[0][5]"],
        ),
        (put(*SEGMENTATION, [[15, 5, 65, 5, 82, 55]]), ["annotations[0].segmentation[0]"]),
        (put(*SEGMENTATION, [[15, 5, 65, 5, 65, 62]]), ["annotations[0].segmentation[0]"]),
        (put(*SEGMENTATION, [[15, -5, 65, 5, 65, 55]]), ["annotations[0].segmentation[0]"]),
        (
            put(*SEGMENTATION, [15, 5, 65, 5, 65, 55]),
            [f"annotations[0].segmentation[{i}]" for i in range(6)],
        ),
        (
            put(*SEGMENTATION, [[20, 5, 65, 5, 65, 55]]),
            ["annotations[0].area", "annotations[0].bbox"],
        ),
        (
            put(*SEGMENTATION, [[15, 5, 65, 5, 65, 55, 15, 55, 15, 53, 63, 53, 63, 7, 15, 7]]),
            ["annotations[0].area"],
        ),
        (put(*SEGMENTATION, [[15, 5]]), ["annotations[0].segmentation[0]"]),
        (put(*SEGMENTATION, [[15, 5] * 3]), ["annotations[0].segmentation[0]"]),
        (put(*SEGMENTATION, [[15, 5, 65, 55] * 2]), ["annotations[0].segmentation[0]"]),
        (put(*SEGMENTATION, [[15, 5, 20.1, 10.1, 65.3, 55.3]]), ["annotations[0].segmentation[0]"]),
        (
            put(*SEGMENTATION, [[15, 5, 65, 5, 65, 55], [15, 5, 40, 5, 65, 5]]),
            ["annotations[0].segmentation[1]"],
        ),
    ],
)
def test_each_fault_is_found_at_its_place(document, change, places):
    change(document)
    found = validate(document)
    assert sorted(v.place for v in found) == sorted(places)
    assert all(v.message.startswith("expected ") and "\n" not in v.message for v in found)
    with pytest.raises(CocoError, match="not written"):
        write_coco("never-written.json", document)


def test_a_crowd_is_an_rle(document):
    row = document["annotations"][0]
    row["iscrowd"] = 1
    assert validate(document) == []
    row["segmentation"] = rle_to_polygons(row["segmentation"])
    assert [v.place for v in validate(document)] == ["annotations[0].iscrowd"]


def test_a_polygon_that_crosses_itself_is_no_line(document):
    hourglass = [15.0, 5.0, 65.0, 5.0, 15.0, 55.0, 65.0, 55.0]  # by its corners, its area is 0
    counted = int(mask_utils.area(mask_utils.merge(mask_utils.frPyObjects([hourglass], 60, 80))))
    document["annotations"][0].update(segmentation=[hourglass], bbox=[15, 5, 50, 50], area=counted)
    assert validate(document) == []


@pytest.mark.parametrize("polygons", [False, True])
def test_one_annotation_under_two_ids_is_a_fault(polygons):
    document = coco_document(RECORDS, CLASSES, polygons=polygons)
    first, rows = document["annotations"][0], document["annotations"]
    rows.append({**first, "id": 99, "score": 0.1})
    (fault,) = validate(document)
    assert str(fault) == (
        "annotations[4]: expected a mask of its own, got the image, category and segmentation of "
        "annotations[0]"
    )
    for other in ({"category_id": 1}, {"segmentation": rows[1]["segmentation"]}):
        rows[4] = {**first, "id": 99, **other}
        assert "annotations[4]" not in {v.place for v in validate(document)}


def test_masks_are_the_same_by_their_pixels_not_by_how_they_are_written(document):
    first, rows = document["annotations"][0], document["annotations"]
    size, runs = first["segmentation"]["size"], run_lengths(first["segmentation"]).tolist()
    torn = [runs[0], 1, 0, runs[1] - 1, *runs[2:], 0, 0]
    other = [runs[0] - 1, runs[1], runs[2] + 1, *runs[3:]]
    for counts, places in ((runs, ["annotations[4]"]), (torn, ["annotations[4]"]), (other, [])):
        rows[4:] = [{**first, "id": 99, "segmentation": {"size": size, "counts": counts}}]
        found = [v.place for v in validate(document)]
        assert [place for place in found if place == "annotations[4]"] == places


def test_polygons_are_the_same_by_their_edges(document):
    first, rows = document["annotations"][0], document["annotations"]
    square, hole = [15, 5, 65, 5, 65, 55, 15, 55], [30.0, 20.0, 40.0, 20.0, 40.0, 30.0, 30.0, 30.0]
    first.update(segmentation=[square, hole], bbox=[15, 5, 50, 50], area=2600)
    backwards = [v for i in range(6, -1, -2) for v in square[i : i + 2]]
    for polygons, places in (
        ([square, hole], ["annotations[4]"]),
        ([hole, square], ["annotations[4]"]),
        ([backwards, [*hole, *hole[:2]]], ["annotations[4]"]),
        ([[*square[4:], *square[:4]], hole], ["annotations[4]"]),
        ([square, hole, hole], []),
        ([square, [*hole[:2], *hole[4:6], *hole[2:4], *hole[6:]]], []),  # crosses itself
        ([square, [hole[i ^ 1] for i in range(8)]], []),  # x and y swapped
    ):
        rows[4:] = [{**first, "id": 99, "segmentation": polygons}]
        found = [v.place for v in validate(document)]
        assert [place for place in found if place == "annotations[4]"] == places, polygons


@given(masks, masks)
@example(np.ones((2, 2), bool), np.ones((2, 2), bool))
def test_masks_have_the_same_content_where_their_pixels_are_the_same(one, two):
    def content(mask: np.ndarray, *, listed: bool) -> object:
        rle = encode_mask(mask)
        if listed:
            rle["counts"] = run_lengths(rle).tolist()
        (found,) = rle_shapes([(rle, None)])
        return found.content if isinstance(found, Shape) else "empty"

    assert content(one, listed=False) == content(one, listed=True)
    assert (content(one, listed=False) == content(two, listed=True)) == (
        not (one.any() or two.any()) or np.array_equal(one, two)
    )


def leaves(value, at=()):
    """The places of all values in JSON that hold no others."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in inner:
        if isinstance(child, dict | list):
            yield from leaves(child, (*at, key))
        else:
            yield (*at, key)


def as_text(place: tuple) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return text.removeprefix(".")


@pytest.mark.parametrize("number", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["rle", "polygons", "results"])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(tmp_path, number, kind):
    valid: dict | list = results_of(RECORDS)
    if kind != "results":
        square = np.pad(np.ones((3, 4), bool), 2)
        records = [ImageRecord(1, "a.png", (7, 8), annotations=(annotation("犬", square, 0.5),))]
        valid = coco_document(records, CLASSES, polygons=kind == "polygons")
        valid["licenses"] = [{"id": 1, "name": "MIT", "more": [2.5]}]
        valid["more"] = {"of": ["ours", [1]]}
        for section in ("images", "categories", "annotations"):
            valid[section][0]["more"] = [{"x": [1, 0.5]}]
        valid["images"][0]["license"] = 1
    assert validate(valid) == []
    for place in leaves(valid):
        document = copy.deepcopy(valid)
        put(*place, number)(document)
        (tmp_path / "data.json").write_text(json.dumps(document))
        wanted = f"{as_text(place)}: expected a finite number, got {number}, which is not JSON"
        for source in (document, tmp_path / "data.json"):
            assert wanted in map(str, validate(source))


def test_every_fault_is_reported_not_just_the_first(document):
    for row in document["annotations"]:
        row.update(score=2, iscrowd=None, image_id=77)
    document["categories"][1]["name"] = ""
    assert len(validate(document)) == 3 * len(document["annotations"]) + 1
    assert str(Violation("a.b", "expected c")) == "a.b: expected c"


def test_general_coco_has_gaps_crowds_polygons_and_no_scores(document):
    document["categories"][2]["id"] = 90
    for row in document["annotations"]:
        del row["score"]
        row["category_id"] = {3: 90}.get(row["category_id"], row["category_id"])
        row["id"] = row["id"] * 100_000
    document["licenses"] = [{"id": 0, "name": ""}, {"id": 4, "name": "CC BY", "url": "x"}]
    document["images"][1].update(
        id=581929, license=4, coco_url="http://images.example/1.jpg", date_captured="2013"
    )
    crowd = document["annotations"][0]
    crowd["segmentation"]["counts"] = run_lengths(crowd["segmentation"]).tolist()
    crowd["iscrowd"] = 1
    person = document["annotations"][1]
    person.update(
        segmentation=[[2.5, 2.25, 17.75, 2.25, 17.75, 18.0]],
        bbox=[2.5, 2.25, 15.25, 15.75],
        area=120.09,
    )
    assert validate(document) == []


def test_polygons_that_overlap_may_have_either_area(document):
    square = [15.0, 5.0, 65.0, 5.0, 65.0, 55.0, 15.0, 55.0]
    for area in (2500, 5000):
        document["annotations"][0].update(
            segmentation=[square, square], bbox=[15, 5, 50, 50], area=area
        )
        assert validate(document) == []
    document["annotations"][0]["area"] = 3750
    assert [v.place for v in validate(document)] == ["annotations[0].area"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "expected JSON, got: Expecting value: line 1 column 1"),
        (b'{"images": [}', "expected JSON, got: Expecting value: line 1 column 13"),
        (b"\xff\xfe{}", "expected UTF-8, got invalid start byte at byte 0"),
        (b"\xef\xbb\xbf{}", "expected JSON, got: Unexpected UTF-8 BOM"),
        (b"[" * 200_000, "nested too deep"),
        (b"1" * 5000, "expected JSON, got: Exceeds the limit"),
        (b'"text"', "expected an object (a dataset) or a list (results), got 'text'"),
        (b"null", "expected an object (a dataset) or a list (results), got None"),
        (b"\x80\x04K\x01.", "expected UTF-8"),
    ],
)
def test_files_that_are_no_coco_at_all(tmp_path, content, words):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    (violation,) = validate(path)
    assert violation.place == "file"
    assert words in violation.message


def test_files_that_are_not_there(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing.json", tmp_path, tmp_path / "pipe", "a\0b"):
        (violation,) = validate(path)
        assert violation.place == "file"
        assert "found none" in violation.message


def test_what_only_a_file_can_have(tmp_path, document):
    path = tmp_path / "data.json"
    text = json.dumps(document)
    changed = text.replace('"id": 2, "file_name"', '"id": 9, "id": 2, "file_name"').replace(
        '"score": 0.75', '"score": NaN'
    )
    changed = changed.replace('"version": "1.0"', '"version": 1e999, "x": -Infinity, "x": 1')
    faults = ["annotations[0].score", "images[1].id", "info.version", "info.x"]
    path.write_text(changed)
    assert sorted({v.place for v in validate(path)}) == faults
    path.write_text(f'{{"annotations": [7], {changed[1:]}')
    assert sorted({v.place for v in validate(path)}) == ["annotations", *faults]


def test_results(tmp_path, document):
    results = results_of(RECORDS)
    assert validate([]) == []
    assert validate(results) == []
    assert validate(results, document) == []

    def places(**change):
        changed = copy.deepcopy(results)
        changed[2].update(change)
        return sorted(v.place for v in validate(changed, document))

    assert places(image_id=9) == ["[2].image_id"]
    assert places(image_id=2**53) == ["[2].image_id"]
    assert places(category_id=9) == ["[2].category_id"]
    assert places(image_id=1) == ["[2].segmentation.size"]
    assert places(score=None) == ["[2].score"]
    assert places(bbox=[1, 2, 3, 4]) == ["[2].bbox"]
    assert places(segmentation=[[1, 2, 3, 4, 5, 6]]) == ["[2].segmentation"]
    assert [v.place for v in validate([*results, 7])] == ["[4]"]
    assert [v.place for v in validate(results, "missing.json")] == ["against"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    (fault,) = validate(results, tmp_path / "results.json")
    assert str(fault) == "against: expected a dataset, an object, got a list"
    no_image = copy.deepcopy(results)
    no_image[0]["image_id"] = 99
    assert validate(no_image) == [], "without the dataset, nobody can know"


def test_memory_does_not_grow_with_the_rows_of_a_file(tmp_path, document, monkeypatch):
    monkeypatch.setattr(json_text, "CHUNK", 4096)
    outline = rle_to_polygons(document["annotations"][0]["segmentation"])
    row = {**document["annotations"][0], "segmentation": outline}
    path = tmp_path / "data.json"
    sizes, peaks = [], []
    for count in (100, 100, 400):  # the first warms up
        document["annotations"] = [{**row, "id": i, "image_id": i} for i in range(1, count)]
        document["images"] = [
            {**document["images"][0], "id": i, "file_name": f"{i}.jpg"} for i in range(1, count)
        ]
        path.write_text(json.dumps(dict(reversed(document.items()))))
        tracemalloc.start()
        try:
            assert validate(path) == []
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        sizes.append(path.stat().st_size)
    assert peaks[2] - peaks[1] < (sizes[2] - sizes[1]) / 4


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(value=json_values, indent=st.sampled_from([None, 0, 3]), chunk=st.integers(1, 40))
@example(value=[-0.25, 1e-300, 1e300, 10**30, True, None, '\\"é'], indent=None, chunk=1)
def test_a_file_is_read_in_parts_as_it_is_as_a_whole(tmp_path_factory, value, indent, chunk):
    path = tmp_path_factory.getbasetemp() / "parts.json"
    document = {"images": [value, 12, {"é": [{}, {}]}], "info": value, "annotations": [{"id": 1}]}
    for content in (document, [value, {"a": 1}, {"a": [{}, {"b": "},{"}]}, 34.5], value):
        text = json.dumps(content, indent=indent, ensure_ascii=False)
        path.write_text(text, encoding="utf-8")
        whole = read_json(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_text, "CHUNK", chunk)
            patch.setattr(json_text, "LAST", 3 * chunk)
            found = read_rows(path, ("images", "annotations"))
            if isinstance(found, dict):
                found = {k: list(v) if isinstance(v, JsonRows) else v for k, v in found.items()}
            found = list(found) if isinstance(found, JsonRows) else found
        assert repr(found) == repr(whole)  # NaN is not equal to itself


@settings(max_examples=100, deadline=None)
@given(data=st.data(), chunk=st.integers(1, 40))
def test_a_damaged_file_has_the_same_fault_read_in_parts(tmp_path_factory, data, chunk):
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    text = bytearray(b'{"images": [{"id": 1}, {"id": 22}], "x": [1, 2], "annotations": [{}, {}]}')
    at = data.draw(st.integers(0, len(text) - 1))
    text[at : at + data.draw(st.integers(0, 9))] = data.draw(
        st.sampled_from(
            [b"", b",", b"]", b"}", b'"', b"\xff", b"\xc3\xa9", b"1", b"{", b"[", b"\\"]
        )
    )
    path.write_bytes(bytes(text))
    outcomes = []
    for read in (read_json, lambda p: read_rows(p, ("images", "annotations"))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_text, "CHUNK", chunk)
            try:
                found = read(path)
                if isinstance(found, dict):
                    found = {k: list(v) if isinstance(v, JsonRows) else v for k, v in found.items()}
                outcomes.append(found)
            except CocoError as error:
                outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_a_file_that_changes_while_it_is_checked(tmp_path, document):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(document))
    rows = read_rows(path, ("images",))
    path.write_text("{")
    with pytest.raises(CocoError, match="expected a file at rest"):
        list(rows["images"])
    (fault,) = validate(rows)
    assert str(fault) == "file: expected a file at rest, got one that changed meanwhile"


@settings(max_examples=60)
@given(data=st.data())
def test_garbage_anywhere_is_a_report_and_no_traceback(data):
    document = coco_document(RECORDS, CLASSES)
    node = document
    while isinstance(node, dict | list) and node:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if data.draw(st.booleans()) or not isinstance(node[key], dict | list):
            node[key] = data.draw(json_values)
            break
        node = node[key]
    for violation in validate(document):
        assert violation.place
    validate(document["annotations"] if isinstance(document["annotations"], list) else [])


@settings(max_examples=300)
@given(
    counts=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=40),
    height=st.integers(1, 9),
)
def test_any_counts_string_is_read_or_refused(counts, height):
    rle = {"size": [height, 7], "counts": counts}
    try:
        mask = decode_rle(rle)
    except CocoError:
        return
    assert mask.shape == (height, 7)
    assert np.array_equal(mask_utils.decode(rle), mask)


@settings(max_examples=300, deadline=None)
@given(
    rles=st.lists(
        st.tuples(
            st.integers(1, 9),
            masks.map(lambda mask: encode_mask(mask)["counts"])
            | st.text(st.characters(min_codepoint=45, max_codepoint=113), max_size=40)
            | st.sampled_from(["", "0", "oooooo0", "ooooooo0", "ooooooo0" * 70 + "0O", "犬"]),
            st.integers(1, 14),
        ),
        min_size=1,
        max_size=6,
    )
)
@example([(1, "1", 1), (2, "04", 2), (2, "0O4", 2), (3, "311011", 3)])
@example([(2, "VPPPPPP0", 3)])  # 6 in 8 characters
def test_many_rles_at_once_are_what_they_are_one_by_one(rles):
    wanted = []
    for height, counts, width in rles:
        try:
            area, box = area_and_box({"size": [height, width], "counts": counts})
            wanted.append((True, area, box))
        except CocoError:
            wanted.append((False, 0, [0, 0, 0, 0]))
    sizes = np.array([(height, width) for height, _, width in rles])
    found = areas_and_boxes([counts for _, counts, _ in rles], sizes)
    assert list(zip(*(values.tolist() for values in found[:3]), strict=True)) == wanted


def packed(numbers: list[int]) -> str:
    """Numbers from 0 in the characters of compressed counts."""
    text = ""
    for number in numbers:
        while number >= 16:  # the last character's highest bit is the sign
            text, number = text + chr(48 + 32 + number % 32), number // 32
        text += chr(48 + number)
    return text


def test_lengths_whose_sum_overflows_are_refused():
    steps = 2**16 - 1  # runs of d, 2 d, 3 d, ... pixels: 2**64 - 2**16 together
    d = 2**33 + 2**17 + 2
    numbers = [0, *[d, 0] * steps]
    numbers[-1] = 2**16 + 6  # 2**64 + 6 with this one: in int64, 6
    rle = {"size": [2, 3], "counts": packed(numbers)}
    assert packed([0, 2, 4]) == encode_mask(np.array([[1, 0, 0], [1, 0, 0]], bool))["counts"]
    with pytest.raises(CocoError, match="expected RLE counts that sum to 6"):
        run_lengths(rle)
    sound, *_ = areas_and_boxes([rle["counts"]], np.array([[2, 3]]))
    assert not sound.any()


def test_the_real_file_is_valid():
    if not REAL_FILE.is_file():
        pytest.skip(f"{REAL_FILE} is not here")
    assert validate(REAL_FILE) == []
    document = json.loads(REAL_FILE.read_text())
    classes = as_label_set([c["name"] for c in document["categories"]]).wanted
    coco = coco_of(REAL_FILE)
    records = [
        ImageRecord(
            image["id"],
            image["file_name"],
            (image["height"], image["width"]),
            annotations=tuple(
                annotation(coco.cats[a["category_id"]]["name"], coco.annToMask(a).astype(bool), 1.0)
                for a in coco.imgToAnns[image["id"]]
            ),
        )
        for image in document["images"][:8]
    ]
    for polygons in (False, True):
        assert validate(coco_document(records, classes, polygons=polygons)) == []
