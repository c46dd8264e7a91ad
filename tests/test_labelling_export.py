"""Deciding anew from the journal, and every format read back by its own ecosystem's reader or rules."""

import json
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image as PILImage
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from clip2sam import Config, LabelClass
from clip2sam.coco.document import decode_rle, encode_mask
from clip2sam.coco.validate import validate
from clip2sam.data.records import FoundMask, Labelled
from clip2sam.data.sources import Source
from clip2sam.errors import CocoError, ConfigError, RunError
from clip2sam.export.other_files import joined_polygons
from clip2sam.labelling.decide import Decision, decide, decided_thresholds
from clip2sam.labelling.export import export
from clip2sam.labelling.journal import Journal, read_index
from clip2sam.labelling.manifest import begin_run
from clip2sam.labelling.summary import ClassSummary, pour
from clip2sam.visualize.histogram import presence_figure

# pycocotools' arrays, under numpy 2
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

CLASSES = (
    LabelClass("cat", ("cat",), supercategory="animal"),
    LabelClass('<dog> & "co"', ("dog",), threshold=0.3),
)
SKY = LabelClass("sky", ("sky",), distractor=True)


def box(x, y, width, height, size=(40, 60)):
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def found(label, mask, score=0.9):
    return FoundMask(label, encode_mask(mask)["counts"], score, ((1.5, 2.5, 1), (30.0, 3.0, 0)))


RING = box(30, 5, 20, 20) & ~box(35, 10, 5, 5) | box(2, 30, 6, 6)
"""A square with a hole, and another square."""

RECORDS = (
    Labelled(
        0,
        "a.png",
        "done",
        "",
        (40, 60),
        (0.5, 0.4),
        (found(0, box(0, 0, 20, 10)), found(1, RING, 0.7)),
    ),
    Labelled(
        1,
        "sub/b ü.png",
        "done",
        "",
        (40, 60),
        (0.15, 0.1),
        (
            found(0, box(0, 0, 20, 20), 0.8),
            found(0, box(1, 0, 20, 20), 0.9),
            found(1, box(10, 10, 20, 20), 0.6),
        ),
    ),
    Labelled(2, "sub/c.png", "empty", "", (10, 10), (None, -0.1), ()),
    Labelled(3, "sub/d.png", "failed", "sub/d.png: it is cut"),
)


@pytest.fixture
def make_run(tmp_path):
    def make(records=RECORDS, *, keep_above=None, presence=0.1, ids=None):
        keys = tuple(r.key for r in records)
        labels = {"classes": [asdict(c) for c in (*CLASSES, SKY)], "templates": None}
        marks = {
            "labels": labels,
            "config": asdict(Config(presence=presence)),
            "keep_above": keep_above,
        }
        folder = tmp_path / "run"
        folder.mkdir()
        run = begin_run(folder, Source("/in", "/in", keys, ids), marks)
        journal = Journal(run.journal, len(keys))
        for r in reversed(records):
            journal.append(r)
        journal.close()
        return run

    return make


def kept(run, record, **wishes):
    decision = Decision(**wishes)
    return decide(record, decision, decided_thresholds(run, decision))


def test_the_runs_own_thresholds_hold_unless_others_are_asked_for(make_run):
    run = make_run(keep_above=0.05)
    assert [m.label for m in kept(run, RECORDS[0])] == [0, 1]
    assert [m.label for m in kept(run, RECORDS[1])] == [0, 0], (
        "the second class has its own threshold, 0.3"
    )
    assert [m.label for m in kept(run, RECORDS[1], presence=0.1)] == [0, 0, 1]
    assert [m.label for m in kept(run, RECORDS[1], presence=0.12)] == [0, 0]
    assert [m.label for m in kept(run, RECORDS[0], presence=0.45)] == [0]
    assert [m.label for m in kept(run, RECORDS[0], class_presence={"cat": 0.6})] == [1]
    assert [m.label for m in kept(run, RECORDS[0], classes=(CLASSES[1].name,))] == [1]
    assert [m.label for m in kept(run, RECORDS[0], min_score=0.8)] == [0]
    assert [m.label for m in kept(run, RECORDS[0], min_area=201)] == [1]
    assert kept(run, RECORDS[0], min_area=10_000) == ()


def test_a_score_at_its_threshold_counts_as_the_model_counts_it(make_run):
    """float32(0.1) is above 0.1 and is written as 0.1."""
    run = make_run()
    at = replace(RECORDS[0], presence=(0.1, 0.3))
    assert len(kept(run, at)) == 2
    just_below = replace(RECORDS[0], presence=(0.099999994, 0.3))
    assert [m.label for m in kept(run, just_below)] == [1]


def test_thresholds_below_what_the_journal_has_are_refused(make_run):
    run = make_run()
    with pytest.raises(
        ConfigError, match=r"masks of 'cat' from a presence score of 0\.1 on.*--keep-above 0\.05"
    ):
        kept(run, RECORDS[0], presence=0.05)
    with pytest.raises(ConfigError, match=r"'<dog> .*of 0\.3 on, so 0\.2"):
        kept(run, RECORDS[0], presence=0.2)
    assert len(kept(run, RECORDS[0], presence=0.05, classes=())) == 0


def test_a_run_without_a_decision_has_all_masks(make_run):
    run = make_run(presence=None)
    assert [m.label for m in kept(run, RECORDS[1])] == [0, 0]
    assert [m.label for m in kept(run, RECORDS[1], class_presence={"cat": 0.16})] == []


def test_duplicates_are_of_one_class_and_the_best_stays(make_run):
    run = make_run(keep_above=0.0)
    assert [m.score for m in kept(run, RECORDS[1], presence=0.0, duplicates=0.5)] == [0.9, 0.6]
    assert [m.score for m in kept(run, RECORDS[1], presence=0.0, duplicates=0.95)] == [
        0.8,
        0.9,
        0.6,
    ]


@pytest.mark.parametrize(("overlap", "first_owns"), [("score", True), ("small", False)])
def test_overlapping_classes_can_be_set_apart(make_run, overlap, first_owns):
    run = make_run(keep_above=0.0)
    large, small = found(0, box(0, 0, 30, 30), 0.9), found(1, box(10, 10, 10, 10), 0.5)
    record = replace(RECORDS[0], masks=(large, small))
    masks = [decode_rle(record.rle(m)) for m in kept(run, record, overlap=overlap)]
    if first_owns:
        assert len(masks) == 1, "nothing is left of the small one"
        np.testing.assert_array_equal(masks[0], box(0, 0, 30, 30))
    else:
        np.testing.assert_array_equal(masks[0], box(0, 0, 30, 30) & ~box(10, 10, 10, 10))
        np.testing.assert_array_equal(masks[1], box(10, 10, 10, 10))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"min_score": 1.5}, "min_score must be from 0 to 1"),
        ({"duplicates": -0.1}, "duplicates must be"),
        ({"min_area": -1}, "min_area must be"),
        ({"classes": ("cow",)}, "no class 'cow'; its classes are cat"),
        ({"class_presence": {"sky": 0.5}}, "no class 'sky'"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(make_run, wishes, message):
    run = make_run()
    with pytest.raises(ConfigError, match=message):
        kept(run, RECORDS[0], **wishes)


def test_counts_add_up(make_run):
    run = make_run()
    seen = []
    summary = pour(
        run, read_index(run.journal, 4), Decision(), [lambda record, masks: seen.append(record.key)]
    )
    assert (summary.listed, summary.done, summary.empty, summary.failed) == (4, 2, 1, 1)
    assert seen == ["a.png", "sub/b ü.png", "sub/c.png"]
    assert [(c.pictures, c.masks) for c in summary.classes] == [(2, 3), (1, 1)]
    assert summary.classes[0].score == pytest.approx((0.9 + 0.8 + 0.9) / 3)
    assert [sum(c.histogram.values()) for c in summary.classes] == [2, 3], (
        "a score that isn't finite is in no bin"
    )
    assert summary.failures == [{"file_name": "sub/d.png", "reason": "sub/d.png: it is cut"}]


def test_a_journal_of_another_run_is_refused(make_run):
    run = make_run()
    other = replace(run, source=replace(run.source, keys=("x.png", *run.source.keys[1:])))
    with pytest.raises(RunError, match="belong to different runs"):
        pour(other, read_index(run.journal, 4), Decision(), [])


@pytest.mark.parametrize("polygons", [False, True])
def test_coco_loads_in_pycocotools(make_run, tmp_path, polygons):
    run = make_run(ids=(10, 4, 5, 6))
    export(run.path, tmp_path / "coco.json", polygons=polygons)
    assert validate(tmp_path / "coco.json") == []
    coco = COCO(str(tmp_path / "coco.json"))
    assert [i["id"] for i in coco.dataset["images"]] == [10, 4, 5], "the failed one is not there"
    assert coco.cats[1] == {"id": 1, "name": "cat", "supercategory": "animal"}
    ring = next(a for a in coco.anns.values() if a["category_id"] == 2)
    np.testing.assert_array_equal(coco.annToMask(ring).astype(bool), RING)
    assert (ring["area"], ring["bbox"], ring["score"]) == (int(RING.sum()), [2, 5, 48, 31], 0.7)


def test_results_load_in_pycocotools(make_run, tmp_path):
    run = make_run()
    export(run.path, tmp_path / "coco.json")
    export(run.path, tmp_path / "results.json", "results")
    assert validate(tmp_path / "results.json", tmp_path / "coco.json") == []
    results = COCO(str(tmp_path / "coco.json")).loadRes(str(tmp_path / "results.json"))
    assert len(results.anns) == 4


def test_merging_leaves_what_is_there_untouched(make_run, tmp_path):
    run = make_run()
    there = {
        "info": {"year": 2019, "note": "ünser"},
        "images": [
            {"id": 90, "file_name": "sub/b ü.png", "height": 40, "width": 60, "flickr": "x"},
            {"id": 7, "file_name": "elsewhere.png", "height": 5, "width": 5},
        ],
        "annotations": [
            {"id": 33, "image_id": 90, "category_id": 5, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0,
             "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}
        ],
        "categories": [{"id": 5, "name": "person", "supercategory": ""}, {"id": 8, "name": "cat", "keypoints": ["a"]}],
        "custom": [1, 2],
    }  # fmt: skip
    (tmp_path / "there.json").write_text(json.dumps(there))
    export(run.path, tmp_path / "merged.json", merge=tmp_path / "there.json")
    merged = json.loads((tmp_path / "merged.json").read_text())
    assert (merged["info"], merged["custom"]) == (there["info"], there["custom"])
    for section in ("images", "annotations", "categories"):
        assert merged[section][: len(there[section])] == there[section]
    assert [(i["id"], i["file_name"]) for i in merged["images"][2:]] == [
        (91, "a.png"),
        (92, "sub/c.png"),
    ]
    assert [(c["id"], c["name"]) for c in merged["categories"][2:]] == [(9, CLASSES[1].name)]
    added = merged["annotations"][1:]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in added] == [
        (34, 91, 8),
        (35, 91, 9),
        (36, 90, 8),
        (37, 90, 8),
    ]
    assert len(COCO(str(tmp_path / "merged.json")).anns) == 5
    assert json.loads((tmp_path / "there.json").read_text()) == there


def test_merging_needs_a_data_set_of_the_same_pictures(make_run, tmp_path):
    run = make_run()
    for content, message in (
        ("{", "no JSON"),
        ("[]", "expected a COCO data set"),
        ('{"images": [{"id": "x"}]}', r"images\[0\]: expected an object with an id and file_name"),
        ('{"images": {}}', "expected a list"),
        (
            '{"images": [{"id": 1, "file_name": "a.png", "height": 1, "width": 1}]}',
            "'a.png' is 40 x 60 .*but 1 x 1",
        ),
    ):
        (tmp_path / "there.json").write_text(content)
        with pytest.raises(CocoError, match=message):
            export(run.path, tmp_path / "merged.json", merge=tmp_path / "there.json")
        assert not (tmp_path / "merged.json").exists()
    with pytest.raises(CocoError, match="can't be read"):
        export(run.path, tmp_path / "merged.json", merge=tmp_path / "nowhere.json")


def test_yolo_follows_its_rules_and_loads_in_supervision(make_run, tmp_path):
    run = make_run()
    export(run.path, tmp_path / "yolo", "yolo")
    data = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert data["names"] == {0: "cat", 1: CLASSES[1].name}
    lines = (tmp_path / "yolo" / "labels" / "a.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1"]
    for line in lines:
        shares = np.array(line.split()[1:], float)
        assert len(shares) % 2 == 0
        assert len(shares) >= 6
        assert ((shares >= 0) & (shares <= 1)).all()
    assert (tmp_path / "yolo" / "labels" / "sub" / "c.txt").read_text() == ""
    assert not (tmp_path / "yolo" / "labels" / "sub" / "d.txt").exists()

    supervision = pytest.importorskip("supervision")
    for name in ("a", "sub"):
        (tmp_path / "images").mkdir(exist_ok=True)
        if name == "a":
            PILImage.new("RGB", (60, 40)).save(tmp_path / "images" / "a.png")
    labels = tmp_path / "yolo" / "labels"
    dataset = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"),
        str(labels),
        str(tmp_path / "yolo" / "data.yaml"),
        force_masks=True,
    )
    assert dataset.classes == ["cat", CLASSES[1].name]
    (_, _, detections), *_ = list(dataset)
    assert detections.class_id.tolist() == [0, 1]
    ring = np.array(lines[1].split()[1:], float).reshape(-1, 2) * (60, 40)
    drawn = cv2.polylines(RING.astype(np.uint8), [ring.astype(np.int32)], True, 1)
    grown = cv2.dilate(drawn, np.ones((3, 3), np.uint8)).astype(bool)
    assert (detections.mask[1] >= RING).all()
    assert (detections.mask[1] <= grown).all(), (
        "it fills the pixels on the outline and on the joining line, no others"
    )


def test_parts_and_holes_of_a_mask_survive_as_one_ring():
    from clip2sam.coco.document import rle_to_polygons

    ring = joined_polygons(rle_to_polygons(encode_mask(RING)))
    rle = mask_utils.merge(mask_utils.frPyObjects([ring.ravel().tolist()], 40, 60))
    np.testing.assert_array_equal(mask_utils.decode(rle).astype(bool), RING)


def test_yolo_cannot_tell_endings_apart(make_run, tmp_path):
    run = make_run((RECORDS[0], replace(RECORDS[1], key="a.jpg")))
    with pytest.raises(ConfigError, match=r"'a\.png' and 'a\.jpg' would share one"):
        export(run.path, tmp_path / "yolo", "yolo")


def test_label_studio_gets_the_documented_form(make_run, tmp_path):
    run = make_run()
    export(run.path, tmp_path / "tasks.json", "labelstudio", image_prefix="s3://bucket/")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [t["data"]["image"] for t in tasks] == ["s3://bucket/a.png", "s3://bucket/sub/b%20%C3%BC.png",
                                                   "s3://bucket/sub/c.png"]  # fmt: skip
    regions = tasks[0]["predictions"][0]["result"]
    assert len({r["id"] for r in regions}) == len(regions) == 3, "a region for each part"
    drawn = {name: np.zeros((40, 60), bool) for name in ("cat", CLASSES[1].name)}
    for r in regions:
        assert (r["type"], r["from_name"], r["to_name"]) == ("polygonlabels", "label", "image")
        assert (r["original_width"], r["original_height"], r["image_rotation"]) == (60, 40, 0)
        corners = np.array(r["value"]["points"]) / 100 * (60, 40)
        rle = mask_utils.merge(mask_utils.frPyObjects([corners.ravel().tolist()], 40, 60))
        (name,) = r["value"]["polygonlabels"]
        drawn[name] |= mask_utils.decode(rle).astype(bool)
    np.testing.assert_array_equal(drawn[CLASSES[1].name], RING)
    np.testing.assert_array_equal(drawn["cat"], box(0, 0, 20, 10))
    assert tasks[2]["predictions"][0]["result"] == []
    view = ET.parse(tmp_path / "tasks.xml").getroot()
    assert [e.attrib["value"] for e in view.iter("Label")] == [c.name for c in CLASSES]
    assert view.find("PolygonLabels").attrib == {"name": "label", "toName": "image"}


def test_label_studios_own_checker_takes_it(make_run, tmp_path):
    interface = pytest.importorskip(
        "label_studio_sdk.label_interface", reason="scripts/setup installs it"
    )
    run = make_run()
    export(run.path, tmp_path / "tasks.json", "labelstudio")
    checker = interface.LabelInterface((tmp_path / "tasks.xml").read_text())
    for task in json.loads((tmp_path / "tasks.json").read_text()):
        assert checker.validate_task({"data": task["data"]})
        assert all(checker.validate_prediction(p) for p in task["predictions"])


def test_pngs_hold_class_numbers(make_run, tmp_path):
    run = make_run(keep_above=0.0)
    export(run.path, tmp_path / "png", "png", Decision(presence=0.0))
    with PILImage.open(tmp_path / "png" / "a.png.png") as picture:
        assert picture.mode == "P"
        assert picture.getpalette()[:3] == [0, 0, 0]
        index = np.array(picture)
    np.testing.assert_array_equal(index, np.where(box(0, 0, 20, 10), 1, np.where(RING, 2, 0)))
    with PILImage.open(tmp_path / "png" / "sub" / "b ü.png.png") as picture:
        assert np.array(picture)[15, 15] == 1, "the better score is on top"
    assert (tmp_path / "png" / "classes.txt").read_text() == f"1 cat\n2 {CLASSES[1].name}\n"


def test_options_of_other_formats_and_own_files_are_refused(make_run, tmp_path):
    run = make_run()
    for format_, settings, message in (
        ("voc", {}, "no format is called 'voc'; choose one of coco, results"),
        ("yolo", {"polygons": True}, "are for the format coco, not yolo"),
        ("png", {"merge": tmp_path / "x"}, "are for the format coco"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(run.path, tmp_path / "x", format_, **settings)
    with pytest.raises(ConfigError, match="is the run's own file"):
        export(run.path, run.path / "manifest.json")


def test_a_run_can_be_exported_while_it_is_not_finished(make_run, tmp_path):
    run = make_run()
    data = run.journal.read_bytes()
    run.journal.write_bytes(data[: -len(data.splitlines()[-1]) // 2])
    summary = export(run.path, tmp_path / "coco.json")
    assert summary.done + summary.empty + summary.failed == 3
    assert validate(tmp_path / "coco.json") == []


def test_many_classes_in_any_script_can_be_drawn(tmp_path):
    classes = [
        ClassSummary(f"$日本_{i}", 0.1 if i % 2 else None, histogram={-0.02: 3, 0.1: 1000})
        for i in range(120)
    ]
    classes[3].histogram = {}
    presence_figure(classes[:9], 0.02).savefig(tmp_path / "few.png")
    figure = presence_figure(classes, 0.02)
    assert "the first 100 of 120 classes" in figure.axes[0].get_title()
    assert (tmp_path / "few.png").stat().st_size > 1000
    presence_figure([ClassSummary("nothing", None)], 0.02).savefig(tmp_path / "none.png")
