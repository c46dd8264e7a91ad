"""Pascal VOC, LabelMe, CVAT and Cityscapes: masks are read back by torchvision's readers, or by
readers of our own that follow what the tools' own documents say."""

import csv
import json
import os
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageDraw
from pycocotools import mask as mask_utils
from torchvision.datasets import Cityscapes, VOCDetection, VOCSegmentation

from clip2sam.cli.dataset import FOLDER_FORMATS
from clip2sam.coco.rle import decode_rle, encode_mask
from clip2sam.data.labels import LabelClass
from clip2sam.data.palette import colour
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.errors import CocoError, ConfigError, ImageError
from clip2sam.export import EXPORTERS, exporter_for
from clip2sam.export.splits import split_of
from clip2sam.export.voc import voc_colours
from clip2sam.export.xml_text import xml_text

# pycocotools' arrays, under numpy 2
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

SIZE = (120, 160)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]
CAT, DOG = 'кот & "co" <b>', "犬: ~"
CLASSES = (LabelClass(CAT, (CAT,), supercategory="animal"), LabelClass(DOG, (DOG,)))


def disk(x, y, radius):
    return np.hypot(COLUMNS - x, ROWS - y) < radius


WITH_HOLES = disk(45, 50, 40) & ~disk(35, 50, 10) & ~disk(62, 55, 6)
PARTS = disk(110, 30, 20) | disk(140, 80, 15) & ~disk(140, 80, 5)
CORNER = (ROWS < 8) & (COLUMNS < 12)
NOISE = np.random.default_rng(0).random(SIZE) > 0.5


def found(label, mask, score):
    return Annotation(label, encode_mask(mask), score)


MASKS = (found(CAT, WITH_HOLES, 0.9), found(DOG, PARTS, 0.8), found(CAT, CORNER, 0.7))
"""None touches another."""
NAMES = ("city/a.jpg", "city/a.png", "city/ü b_leftImg8bit.png", "x\ny .png")
ODD = os.fsdecode(b"caf\xe9.png")
RECORDS = (
    *(ImageRecord(i, name, SIZE, annotations=MASKS) for i, name in enumerate((*NAMES, ODD), 1)),
    ImageRecord(9, "empty.png", SIZE, "empty"),
)
FIRST = RECORDS[0]


def masks_of(record):
    return [(a.label, decode_rle(a.rle)) for a in record.annotations]


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def put_images(root, records):
    for record in records:
        path = root / record.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", record.size[::-1]).save(path)


def renamed(folder):
    text = (folder / "renamed.csv").read_bytes().decode("utf-8", "surrogateescape")
    return dict(list(csv.reader(text.splitlines(keepends=True)))[1:])


@pytest.mark.filterwarnings("ignore:[0-9]+ names were changed")
@pytest.mark.parametrize("name", ["voc", "labelme", "cvat", "cityscapes"])
def test_the_same_records_give_the_same_bytes(tmp_path, name):
    written = []
    for place in (tmp_path / "one" / "out", tmp_path / "two" / "out"):
        exporter_for(name).write(iter(RECORDS), CLASSES, place)
        files = sorted(p for p in place.parent.rglob("*") if p.is_file())
        written.append([(p.relative_to(place.parent), p.read_bytes()) for p in files])
    assert written[0] == written[1] != []


@pytest.mark.filterwarnings("ignore:none of 1 images is in val")
@pytest.mark.parametrize("name", EXPORTERS)
def test_the_command_knows_which_formats_are_folders(tmp_path, name):
    exporter_for(name).write([RECORDS[-1]], CLASSES, tmp_path / "out")
    assert (tmp_path / "out").is_dir() == (name in FOLDER_FORMATS)


def test_xml_holds_every_text():
    text = " <&\"'>\n\t\r ü 犬 \x07 \ufffe " + os.fsdecode(b"\xe9")
    root = ET.fromstring(f'<a b="{xml_text(text)}">{xml_text(text)}</a>')
    assert root.text == root.attrib["b"] == " <&\"'>\n\t\r ü 犬 \\x07 \\ufffe \\udce9"


# --- Pascal VOC


def voc(tmp_path, records=RECORDS[:2], **options):
    """Torchvision's two readers of what is written, and the folder."""
    put_images(tmp_path / "images", records)
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    exporter = exporter_for("voc", images="copy", root=tmp_path / "images", **options)
    exporter.write(iter(records), CLASSES, folder)
    readers = [kind(tmp_path, image_set="trainval") for kind in (VOCSegmentation, VOCDetection)]
    return *readers, folder


def test_torchvision_reads_pascal_voc(tmp_path):
    records = [FIRST, replace(RECORDS[-1], file_name="empty.jpg")]
    masks, boxes, folder = voc(tmp_path, records)
    (image, of_class), (_, empty) = masks
    assert image.size == of_class.size == (160, 120)
    numbers = np.array(of_class)
    np.testing.assert_array_equal(
        numbers, np.select([PARTS, WITH_HOLES | CORNER], [2, 1]), "all holes and parts"
    )
    assert not np.array(empty).any()
    with PILImage.open(folder / "SegmentationObject" / "city" / "a.png") as file:
        of_object = np.array(file)
    objects = boxes[0][1]["annotation"]["object"]
    for i, (row, (label, mask)) in enumerate(zip(objects, masks_of(FIRST), strict=True), 1):
        assert row["name"] == label
        np.testing.assert_array_equal(of_object == i, mask)
        (left, right), (top, bottom) = (np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (0, 1))
        box = [row["bndbox"][key] for key in ("xmin", "ymin", "xmax", "ymax")]
        assert list(map(int, box)) == [left + 1, top + 1, right + 1, bottom + 1], "from 1"
    head = boxes[0][1]["annotation"]
    assert head["size"] == {"width": "160", "height": "120", "depth": "3"}
    assert (head["filename"], head["folder"], head["segmented"]) == ("city/a.jpg", "VOC2012", "1")
    assert boxes[1][1]["annotation"]["segmented"] == "0"
    lines = (folder / "labelmap.txt").read_text().splitlines()
    assert [line.rsplit(":", 3)[:2] for line in lines[1:]] == [
        ["background", "0,0,0"],
        [CAT, "128,0,0"],
        [DOG, "0,128,0"],
    ]


def test_vocs_palette():
    known = {1: (128, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {i: tuple(voc_colours()[i].tolist()) for i in known} == known


def test_pascal_voc_has_the_best_mask_on_top(tmp_path):
    under = found(DOG, disk(45, 50, 50), 0.5)
    masks, _, _ = voc(tmp_path, [replace(FIRST, annotations=(*MASKS[:1], under))])
    numbers = np.array(masks[0][1])
    np.testing.assert_array_equal(numbers == 1, WITH_HOLES)
    np.testing.assert_array_equal(numbers == 2, disk(45, 50, 50) & ~WITH_HOLES)


def test_names_in_vocs_lists_are_lines(tmp_path):
    with pytest.warns(UserWarning, match=r"3 names were changed, .*characters that break a list"):
        exporter_for("voc", val_share=0.5).write(iter(RECORDS), CLASSES, tmp_path)
    others = renamed(tmp_path)
    assert others["x\ny .png"] == "x_y_"
    assert others[ODD] == "caf_"
    stems = [others.get(r.file_name, os.path.splitext(r.file_name)[0]) for r in RECORDS]
    assert len(set(stems)) == len(RECORDS)
    for use in ("Main", "Segmentation"):
        lists = {
            p.stem: p.read_text().split("\n") for p in (tmp_path / "ImageSets" / use).iterdir()
        }
        assert lists["trainval"] == [*stems, ""]
        for split in ("train", "val"):
            names = zip(RECORDS, stems, strict=True)
            of_split = [s for r, s in names if split_of(r.file_name, 0.5) == split]
            assert lists[split] == [*of_split, ""] != [""]
    for stem in stems:
        assert ET.parse(tmp_path / "Annotations" / f"{stem}.xml").getroot().tag == "annotation"
        assert (tmp_path / "SegmentationClass" / f"{stem}.png").exists()
    assert not (tmp_path / "JPEGImages").exists()


@pytest.mark.filterwarnings("ignore:1 names were changed")
def test_images_that_vocs_readers_pass_over_are_told(tmp_path):
    with pytest.warns(UserWarning, match=r"1 images have another suffix than \.jpg"):
        _, _, folder = voc(tmp_path)
    mark = renamed(folder)["city/a.png"]
    assert (folder / "JPEGImages" / "city" / "a.jpg").exists()
    assert (folder / "JPEGImages" / f"{mark}.png").exists()
    name = ET.parse(folder / "Annotations" / f"{mark}.xml").getroot().findtext("filename")
    assert name == f"{mark}.png"


def test_what_vocs_8_bits_do_not_hold_is_refused(tmp_path):
    many = tuple(LabelClass(f"c{i}", (f"c{i}",)) for i in range(255))
    with pytest.raises(ConfigError, match="masks hold 254 classes, but there are 255; choose"):
        exporter_for("voc").write([], many, tmp_path / "out")
    dots = (found(CAT, (ROWS == 0) & (i == COLUMNS), 0.5) for i in range(160))
    more = (found(CAT, (ROWS == 1) & (i == COLUMNS), 0.5) for i in range(95))
    record = replace(FIRST, annotations=(*dots, *more))
    with pytest.raises(CocoError, match=r"city/a\.jpg has 255 masks, .* hold 254; keep fewer"):
        exporter_for("voc").write([record], CLASSES, tmp_path / "out")
    exporter_for("voc").write(
        [replace(record, annotations=record.annotations[1:])], CLASSES, tmp_path
    )
    with PILImage.open(tmp_path / "SegmentationObject" / "city" / "a.png") as file:
        assert np.array(file).max() == 254


# --- LabelMe


def labelme_shapes(document):
    """Checks a file as LabelMe's loader does: its objects, (label, group), and their polygons."""
    keys = ["version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"]
    assert list(document) == keys
    assert (document["flags"], document["imageData"]) == ({}, None)
    objects: dict[tuple[str, object], list[list[list[float]]]] = {}
    for i, shape in enumerate(document["shapes"]):
        assert (shape["shape_type"], shape["flags"], shape["description"]) == ("polygon", {}, "")
        assert isinstance(shape["group_id"], int | None)
        assert len(shape["points"]) > 2
        group = f"alone {i}" if shape["group_id"] is None else shape["group_id"]
        objects.setdefault((shape["label"], group), []).append(shape["points"])
    return objects


def filled(polygons):
    """The pixels whose centres are in polygons."""
    rings = [np.ravel(points).tolist() for points in polygons]
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(rings, *SIZE))) > 0


def by_labelme(polygons):
    """The pixels that LabelMe's converters take: Pillow's, with the outline."""
    image = PILImage.new("1", SIZE[::-1])
    for points in polygons:
        ImageDraw.Draw(image).polygon([tuple(point) for point in points], outline=1, fill=1)
    return np.array(image)


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_labelme_gets_masks_as_polygons(tmp_path, tolerance):
    noisy = replace(FIRST, file_name="noise.png", annotations=(found(CAT, NOISE, 0.5),))
    exporter = exporter_for("labelme", tolerance=tolerance)
    fit = exporter.write(iter([FIRST, noisy, RECORDS[-1]]), CLASSES, tmp_path)
    assert (fit.masks, fit.worst > 0.9) == (4, True)
    document = json.loads((tmp_path / "city" / "a.json").read_text())
    assert [document[key] for key in ("imageHeight", "imageWidth")] == list(SIZE)
    assert [shape["score"] for shape in document["shapes"]] == [0.9, 0.8, 0.8, 0.7]
    assert [shape["group_id"] for shape in document["shapes"]] == [None, 2, 2, None]
    objects = labelme_shapes(document)
    assert len(objects) == 3
    for (label, mask), ((name, _), polygons) in zip(masks_of(FIRST), objects.items(), strict=True):
        assert name == label
        assert iou(filled(polygons), mask) >= (0.98 if tolerance else 1)
        assert iou(by_labelme(polygons), mask) >= (0.97 if tolerance else 0.99)
    ((_, polygons),) = labelme_shapes(json.loads((tmp_path / "noise.json").read_text())).items()
    assert iou(filled(polygons), NOISE) >= (0.9 if tolerance else 1), "a thousand parts"
    assert json.loads((tmp_path / "empty.json").read_text())["shapes"] == []


@pytest.mark.filterwarnings("ignore:[0-9]+ names were changed")
def test_labelmes_files_lead_to_their_images(tmp_path):
    root, out = tmp_path / "images", tmp_path / "deep" / "out"
    put_images(root, RECORDS)
    exporter_for("labelme", root=root).write(iter(RECORDS), CLASSES, out)
    exporter_for("labelme", images="copy", root=root).write(iter(RECORDS), CLASSES, out / "copied")
    exporter_for("labelme").write(iter(RECORDS), CLASSES, out / "alone")
    for place in (out, out / "copied", out / "alone"):
        others = renamed(place)
        assert others.keys() == {"city/a.png"}
        for record in RECORDS:
            stem = others.get(record.file_name, os.path.splitext(record.file_name)[0])
            path = place / f"{stem}.json"
            image = json.loads(path.read_text())["imagePath"]
            if place.name == "alone":
                assert image == os.path.basename(record.file_name)
                continue
            assert os.path.exists(path.parent / image), "by the bytes of its name"
            beside = os.path.dirname(image) == ""
            assert beside == (place.name == "copied")
    (root / ODD).unlink()
    with pytest.raises(ImageError, match=r"caf%E9\.png: the image is not in"):
        exporter_for("labelme", images="copy", root=root).write(RECORDS, CLASSES, out / "copied")


# --- CVAT


def from_runs(element):
    """The pixels of CVAT's RLE: runs along the rows of a box, outside the mask first."""
    runs = [int(run) for run in element.attrib["rle"].split(",")]
    place = [int(element.attrib[key]) for key in ("left", "top", "width", "height")]
    left, top, width, height = place
    inside = np.arange(len(runs)) % 2 == 1
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = np.repeat(inside, runs).reshape(height, width)
    return mask


def test_cvats_own_runs_are_the_masks(tmp_path):
    noisy = replace(FIRST, file_name="noise.png", annotations=(found(CAT, NOISE, 0.5),))
    records = [*RECORDS, noisy]
    assert exporter_for("cvat").write(iter(records), CLASSES, tmp_path / "a.xml") is None
    root = ET.parse(tmp_path / "a.xml").getroot()
    assert root.findtext("version") == "1.1"
    images = root.findall("image")
    names = [(image.attrib["id"], image.attrib["name"]) for image in images]
    written = [*NAMES, "caf\\udce9.png", "empty.png", "noise.png"]
    assert names == [(str(i), name) for i, name in enumerate(written)]
    for image, record in zip(images, records, strict=True):
        assert (image.attrib["width"], image.attrib["height"]) == ("160", "120")
        for element, (label, mask) in zip(image, masks_of(record), strict=True):
            assert (element.tag, element.attrib["label"]) == ("mask", label)
            np.testing.assert_array_equal(from_runs(element), mask)
            box = [int(element.attrib[key]) for key in ("left", "top", "width", "height")]
            assert mask.any(0)[box[0]] and mask.any(1)[box[1]], "the box is tight"  # noqa: PT018


def test_cvats_masks_agree_with_its_sdk(tmp_path):
    masks = pytest.importorskip("cvat_sdk.masks", reason="of the package cvat-sdk")
    exporter_for("cvat").write([FIRST], CLASSES, tmp_path / "a.xml")
    elements = ET.parse(tmp_path / "a.xml").getroot().iter("mask")
    for element, (_, mask) in zip(elements, masks_of(FIRST), strict=True):
        *runs, _, _, _, _ = masks.encode_mask(mask)
        assert element.attrib["rle"] == ", ".join(str(int(run)) for run in runs)


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_cvat_gets_polygons_too(tmp_path, tolerance):
    exporter = exporter_for("cvat", polygons=True, tolerance=tolerance)
    fit = exporter.write([FIRST], CLASSES, tmp_path / "a.xml")
    assert fit.masks == 3
    elements = list(ET.parse(tmp_path / "a.xml").getroot().find("image"))
    assert [e.attrib.get("group_id") for e in elements] == [None, "2", "2", None]
    polygons = [
        [[float(v) for v in corner.split(",")] for corner in e.attrib["points"].split(";")]
        for e in elements
    ]
    for (label, mask), parts in zip(masks_of(FIRST), ([0], [1, 2], [3]), strict=True):
        assert {(elements[i].tag, elements[i].attrib["label"]) for i in parts} == {
            ("polygon", label)
        }
        assert iou(filled([polygons[i] for i in parts]), mask) >= (0.98 if tolerance else 1)


@pytest.mark.parametrize(("polygons", "kind"), [(False, "mask"), (True, "polygon")])
def test_cvats_labels_have_colours(tmp_path, polygons, kind):
    exporter_for("cvat", polygons=polygons).write([], CLASSES, tmp_path / "a.xml")
    colours = ["#" + bytes(round(255 * part) for part in colour(i)).hex() for i in (0, 1)]
    labels = ET.parse(tmp_path / "a.xml").getroot().findall("meta/task/labels/label")
    assert [(e.findtext("name"), e.findtext("color"), e.findtext("type")) for e in labels] == [
        (CAT, colours[0], kind),
        (DOG, colours[1], kind),
    ]
    assert json.loads((tmp_path / "a.labels.json").read_text()) == [
        {"name": name, "color": shade, "attributes": []}
        for name, shade in zip((CAT, DOG), colours, strict=True)
    ]


# --- Cityscapes


def test_torchvision_reads_cityscapes(tmp_path):
    twice = replace(FIRST, file_name="city/a_leftImg8bit.png")
    put_images(tmp_path / "leftImg8bit" / "train", [twice])
    folder = tmp_path / "gtFine" / "train"
    exporter_for("cityscapes").write(iter([twice, RECORDS[-1]]), CLASSES, folder)
    kinds = ["semantic", "instance", "color"]
    _, images = Cityscapes(str(tmp_path), split="train", mode="fine", target_type=kinds)[0]
    semantic, instance, colours = map(np.array, images)
    np.testing.assert_array_equal(semantic, np.select([PARTS, WITH_HOLES | CORNER], [2, 1]))
    wanted = np.select([PARTS, WITH_HOLES, CORNER], [2000, 1000, 1001])
    np.testing.assert_array_equal(instance, wanted)
    assert [image.mode for image in images][::2] == ["L", "RGBA"]
    labels = json.loads((folder / "classes.json").read_text())["labels"]
    assert [(row["id"], row["trainId"], row["name"]) for row in labels] == [
        (0, 255, "unlabeled"),
        (1, 0, CAT),
        (2, 1, DOG),
    ]
    assert [row["category"] for row in labels] == ["void", "animal", ""]
    shades = np.array([row["color"] for row in labels])
    np.testing.assert_array_equal(colours[..., :3], shades[semantic])
    assert (colours[..., 3] == 255).all()
    assert not np.array(PILImage.open(folder / "empty_gtFine_instanceIds.png")).any()


def test_what_cityscapes_ids_do_not_hold_is_refused(tmp_path):
    many = tuple(LabelClass(f"c{i}", (f"c{i}",)) for i in range(65))
    with pytest.raises(ConfigError, match="ids of objects hold 64 classes, but there are 65"):
        exporter_for("cityscapes").write([], many, tmp_path)
    last = replace(FIRST, annotations=(found("c63", CORNER, 0.9),))
    exporter_for("cityscapes").write([last], many[:64], tmp_path)
    with PILImage.open(tmp_path / "city" / "a_gtFine_instanceIds.png") as image:
        assert np.array(image).max() == 64000
    dots = ((i // 160 == ROWS) & (i % 160 == COLUMNS) for i in range(1001))
    record = replace(FIRST, annotations=tuple(found(CAT, dot, 0.5) for dot in dots))
    with pytest.raises(CocoError, match=r"city/a\.jpg has more than 1000 masks of 'кот"):
        exporter_for("cityscapes").write([record], CLASSES, tmp_path)
