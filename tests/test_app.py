"""The app without a browser: what clicks do to an image, what is decided about a run, and what the
server refuses."""

import asyncio
import json
import math
import os
import sys
from dataclasses import replace
from importlib import import_module
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image as PILImage
from pycocotools.coco import COCO

import clip2sam
from clip2sam.analysis.bench import Bench, rows_at
from clip2sam.app import desk as desks
from clip2sam.app.canvas import key_of
from clip2sam.app.correction import Correction
from clip2sam.app.desk import Desk, delete_old
from clip2sam.app.drawing import canvas_picture
from clip2sam.app.rounds import Reviewed, Round
from clip2sam.app.serving import serving
from clip2sam.app.trial import Trial, shown_settings
from clip2sam.app.words import mask_names, place_of, said, why_table
from clip2sam.clip import SurgeryCLIP
from clip2sam.coco.rle import decode_rle
from clip2sam.data.images import Image
from clip2sam.data.labels import as_label_set
from clip2sam.errors import ConfigError, ImageError, LabelError, RunLockedError
from clip2sam.labelling.export import export_run
from clip2sam.labelling.reviewing import open_review
from clip2sam.models.presets import PRESETS
from clip2sam.review.doubt import certainty
from clip2sam.sam import PromptSAM
from clip2sam.tiny.demo import demo_scenes
from clip2sam.tiny.scenes import instance_masks
from clip2sam.types import Prompts
from tests.review_runs import CLASSES, HTML, SIZE, box, found, make_run, record

RING, STAR = "purple ring", "orange star"  # the scene has three rings and no star
LABELS = f"{RING}; {STAR}"


@pytest.fixture(scope="module")
def segmenter():
    return clip2sam.load("tiny")


@pytest.fixture(scope="module")
def scene():
    return demo_scenes()[0]


@pytest.fixture(scope="module")
def image(scene):
    return Image(scene.pixels, "street.png")


@pytest.fixture
def trial(segmenter, image):
    return Trial(segmenter, image, LABELS, {})


@pytest.fixture
def encodings(monkeypatch):
    """The models whose image encoder was called."""
    calls = []
    for name, model in (("sam", PromptSAM), ("clip", SurgeryCLIP)):
        encode = model.encode_image
        monkeypatch.setattr(
            model, "encode_image", lambda *a, n=name, e=encode: calls.append(n) or e(*a)
        )
    return calls


def labels_of(canvas):
    return [a.label for a in canvas.annotations()]


def iou(annotation, truth):
    mask = decode_rle(annotation.rle)
    return (mask & truth).sum() / (mask | truth).sum()


def around(mask):
    """The box of a drawn object, as two corners."""
    y, x = np.nonzero(mask)
    return (float(x.min()), float(y.min())), (float(x.max() + 1), float(y.max() + 1))


# -- the bench: boxes


def test_a_box_by_hand_is_what_sam_makes_of_that_box(segmenter, image, scene):
    """Beside a point of another label, which has none."""
    truth = instance_masks(scene, RING)[0]
    bench, labels = Bench(segmenter, image), as_label_set([RING, STAR])
    empty = bench.run(labels, presence_threshold=1e9)
    one, other = around(truth)
    bench.box(empty, RING, other, one)  # in whichever order
    bench.changed[STAR] = np.array([[5.0, 5.0, 1.0]])
    both = bench.run(labels, only_changed=True, min_share=0.0)
    assert both.labels == [RING, STAR]
    made = both.annotations[0]
    assert made.points == ((*one, 2), (*other, 3))
    assert iou(made, truth) > 0.9

    prompts = Prompts(
        coords=(zeros := bench.features.embeddings([0])[0].new_zeros)(1, 1, 2),
        point_labels=zeros(1, 1).long() - 1,
        label_index=zeros(1).long(),
        counts=(1,),
        sizes=(image.size,),
        boxes=zeros(1, 4) + zeros(4).new_tensor([*one, *other]),
    )
    offered = segmenter.decode(bench.features, prompts)
    chunks = segmenter.sam.upscale(offered.logits[0], image.size)
    masks = [m for chunk in chunks for m in chunk.numpy()]
    assert any((decode_rle(made.rle) == m).all() for m in masks)


def test_only_changed_labels_have_masks_if_that_is_asked_for(segmenter, image):
    bench, labels = Bench(segmenter, image), as_label_set([RING, STAR])
    bench.changed[STAR] = np.array([[5.0, 5.0, 1.0]])
    assert bench.run(labels, only_changed=True).labels == [STAR]
    assert set(bench.run(labels).labels) == {RING, STAR}


def test_a_click_on_a_corner_removes_its_box():
    points = np.array([[9, 9, 1], [0, 0, 2], [50, 40, 3], [60, 0, 2], [90, 20, 3]], float)
    assert rows_at(points, 51, 40, 3).tolist() == [False, True, True, False, False]
    assert rows_at(points, 61, 0, 3).tolist() == [False, False, False, True, True]
    assert rows_at(points, 9, 10, 3).tolist() == [True, False, False, False, False]


def test_released_features_are_computed_again(segmenter, image, encodings):
    bench, labels = Bench(segmenter, image), as_label_set([RING])
    first = bench.run(labels)
    bench.run(labels)
    assert encodings == ["clip", "sam"]
    bench.release()
    assert bench.run(labels).record == first.record
    assert encodings == ["clip", "sam"] * 2


# -- a trial


def test_clicks_boxes_settings_and_reasons_encode_nothing_again(segmenter, image, encodings):
    trial = Trial(segmenter, image, LABELS, {})
    trial.click(10, 10)
    trial.take("box")
    assert trial.click(5, 5) == "now click the opposite corner"
    trial.click(60, 50)
    trial.update(f"{LABELS}; blue star", {**shown_settings(segmenter.config), "min_share": 0.2})
    trial.explain()
    trial.undo()
    assert sorted(encodings) == ["clip", "sam"]


def test_a_click_adds_a_point_and_a_click_on_it_takes_it_away(trial, image):
    before = trial.marks()
    trial.click(20.0, 200.0)
    assert trial.marks().tolist() == [*before.tolist(), [20, 200, 1]]
    trial.take("beside")
    trial.click(30.0, 30.0)
    assert trial.marks()[-1].tolist() == [30, 30, 0]
    trial.click(31.0, 30.0)
    assert trial.marks()[-1].tolist() == [20, 200, 1]
    trial.forget()
    assert trial.marks().tolist() == before.tolist()


def test_a_box_for_an_absent_label_makes_a_mask(trial, scene):
    truth = instance_masks(scene, RING)[0]
    trial.select(STAR)
    trial.take("box")
    trial.click(*around(truth)[0])
    trial.click(*around(truth)[1])
    (mine,) = [a for a in trial.annotations() if a.label == STAR]
    assert iou(mine, truth) > 0.9
    with pytest.raises(ConfigError, match=r"two opposite corners, got two clicks in one line"):
        [trial.click(5, 5), trial.click(5.5, 90)]
    assert trial.corner is None


def test_a_mask_is_chosen_moved_and_removed_and_all_can_be_taken_back(trial, scene):
    before = trial.annotations()
    assert labels_of(trial) == [RING] * 3
    y, x = np.argwhere(decode_rle(before[1].rle))[0]
    with pytest.raises(ConfigError, match="no mask is chosen; choose one"):
        trial.move(STAR)
    trial.take("mask")
    assert trial.click(float(x) + 0.5, float(y) + 0.5) == ""
    assert trial.chosen == key_of(before[1])
    assert trial.click(0.5, 200.5) == "there is no mask"
    trial.choose(1)
    trial.move(STAR)
    assert labels_of(trial) == [RING, RING, STAR]
    assert trial.annotations()[2] == replace(before[1], label=STAR)
    trial.take("beside")
    trial.click(1.0, 1.0)  # computed anew
    assert labels_of(trial) == [RING, RING, STAR]
    trial.choose(0)
    trial.remove()
    assert STAR in labels_of(trial), "known by its pixels"
    while trial.undo():
        pass
    assert trial.annotations() == before


def test_what_is_refused_changes_nothing(trial, segmenter, image):
    before, earlier = trial.annotations(), trial.session.config
    shown = shown_settings(segmenter.config)
    for labels, settings, error in (
        ("a; a", {}, LabelError),
        (" ;", {}, LabelError),
        (LABELS, {"min_share": 7.0}, ConfigError),
    ):
        with pytest.raises(error):
            trial.update(labels, {**shown, **settings})
        assert (trial.session.config, trial.names) == (earlier, (RING, STAR))
    trial.click(9.0, 9.0)
    trial.undo()
    assert trial.annotations() == before


def test_settings_that_were_not_moved_stay_as_they_were(segmenter, image):
    own = segmenter.with_config(presence_threshold=None)
    trial = Trial(own, image, LABELS, shown_settings(own.config))
    assert trial.session.config == own.config
    trial.update(LABELS, {**shown_settings(own.config), "prompts": "label"})
    assert (trial.session.config.presence_threshold, trial.session.config.point_threshold) == (
        None,
        None,
    )
    assert shown_settings(trial.session.config)["point_threshold"] == 0.8
    trial.update(LABELS, {**shown_settings(trial.session.config), "method": "clearclip"})
    assert trial.session.config.method.name == "clearclip"


def test_why_says_of_each_label_what_was_decided(trial):
    ring, star = trial.why()
    assert (ring.masks, ring.points, ring.threshold) == (3, 3, 0.32)
    assert ring.says.startswith("3 objects: score 0.74")
    assert (star.masks, star.says) == (0, "its highest score 0.095 is below the threshold 0.32")
    assert trial.label == RING
    trial.select(STAR)
    trial.take("beside")
    trial.click(5.0, 5.0)
    assert trial.why()[1].says == "set by hand; no mask: it has no positive point and no box"
    assert trial.label == STAR
    assert trial.explain().label == STAR


def test_notes_are_those_of_the_labels_that_are_typed(segmenter, image):
    trial = Trial(segmenter, image, "zebra", {})
    assert "doesn't know 'zebra'" in trial.notes[0]
    trial.update(RING, shown_settings(segmenter.config))
    assert trial.notes == []


def test_the_picture_has_the_images_shape(trial, image):
    trial.choose(0)
    with PILImage.open(BytesIO(canvas_picture(trial))) as drawn:
        assert drawn.width / drawn.height == pytest.approx(320 / 240, rel=0.01)


# -- words


def test_nothing_typed_is_html(segmenter, image):
    trial = Trial(segmenter, image, HTML, {})
    trial.take("box")
    trial.click(5, 5)
    trial.click(90, 90)
    (name,) = mask_names(trial)
    assert name.startswith(f"1: {HTML}, score ")
    for text in (why_table(trial.why(), trial.names), said(HTML)):
        assert "<img" not in text
        assert "&lt;img src=x onerror=alert(1)&gt;" in text


# -- a correction


def corrected(load, image, *given):
    return Correction(load, image, as_label_set([RING, STAR]).classes, given)


def test_models_are_loaded_when_a_click_needs_them(segmenter, image, scene, trial):
    loaded = []
    given = trial.annotations()
    canvas = corrected(lambda: loaded.append(1) or segmenter, image, *given)
    assert canvas.annotations() == given
    canvas.choose(0)
    canvas.move(STAR)
    canvas.remove()
    assert loaded == []
    assert canvas.changed
    canvas.undo()
    canvas.undo()
    assert not canvas.changed
    canvas.take("box")
    truth = instance_masks(scene, RING)[0]
    canvas.click(*around(truth)[0])
    canvas.click(*around(truth)[1])
    assert loaded == [1]
    assert len(canvas.annotations()) == 3, "in the place of the one that shows the same"
    assert canvas.marks()[:, 2].tolist() == [2, 3]
    canvas.select(STAR)
    canvas.click(5, 5)
    canvas.click(50, 50)
    assert labels_of(canvas) == [RING, RING, RING, STAR]
    canvas.forget()
    assert labels_of(canvas) == [RING] * 3
    while canvas.undo():
        pass
    assert canvas.annotations() == given


def test_only_what_is_set_by_hand_is_added(segmenter, image):
    canvas = corrected(lambda: segmenter, image)
    canvas.select(STAR)
    canvas.click(5, 5)
    assert labels_of(canvas) == [STAR]


# -- a run


def records():
    big = box(0, 0, 40, 40)
    return [
        record(1, "sure.png", (0.9, 0.0), found("cat", big)),
        record(2, f"{HTML}.png", (0.51, 0.0), found("cat", big, 0.6)),
        record(3, "below.png", (0.1, 0.295), found(HTML, big, 0.5)),
        replace(record(4, "cut.png", ()), state="failed", reason="cut"),
    ]


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, records())


@pytest.fixture
def way(run):
    reviewed = Reviewed(run, lambda: pytest.fail("models are not needed"))
    yield Round(reviewed)
    reviewed.close()


def test_the_order_of_doubt():
    limits = (0.5, 0.3)
    sure, above, below, cut = records()
    kept = above.annotations
    assert certainty(above, kept, limits) == pytest.approx(0.02)
    assert certainty(below, (), limits) == pytest.approx(0.005 / 0.3)
    assert certainty(cut, (), limits) == math.inf
    assert certainty(replace(above, beaten=(True, False)), kept, limits) == 1.0
    assert certainty(sure, sure.annotations, (None, None)) == 0.9
    assert certainty(sure, (), (None, None)) == math.inf


def test_a_run_is_gone_through_and_export_has_what_was_decided(run, way, tmp_path):
    assert [way.reviewed.review.record(i).file_name for i in way.reviewed.order] == [
        "below.png",
        f"{HTML}.png",
        "sure.png",
        "cut.png",
    ]
    assert way.canvas.annotations() == ()  # below its threshold
    assert "1 of 4 in the order of doubt &middot; 4 left &middot; <b>not decided yet" in (
        place_of(way)
    )
    way.reject()
    assert "&lt;img" in place_of(way)
    way.canvas.choose(0)
    way.canvas.move(HTML)
    way.accept()
    way.go(-1)
    assert "<b>corrected</b>" in place_of(way)
    way.go(1)
    way.accept()
    assert way.record.file_name == "cut.png"
    with pytest.raises(ConfigError, match="this image failed, so there is nothing to be rejected"):
        way.reject()
    way.accept()  # with no mask
    assert way.reviewed.left == 0
    verdicts = [way.reviewed.review.record(i).review.verdict for i in (1, 2, 3, 4)]
    assert verdicts == ["accepted", "corrected", "rejected", "corrected"]

    export_run(run, tmp_path / "out.json")
    coco = COCO(str(tmp_path / "out.json"))
    assert [i["file_name"] for i in coco.dataset["images"]] == [
        "sure.png",
        f"{HTML}.png",
        "cut.png",
    ]
    names = [coco.cats[a["category_id"]]["name"] for a in coco.dataset["annotations"]]
    assert names == ["cat", HTML]


def test_decided_images_come_last_and_the_order_stays(run, way):
    order = way.reviewed.order
    way.go(1)
    way.accept()
    assert way.at == 2
    way.reviewed.close()
    again = Reviewed(run, lambda: pytest.fail("models are not needed"))
    assert again.order == order
    assert again.left == 3
    assert Round(again).at == 0
    with pytest.raises(RunLockedError):
        open_review(run)
    again.close()


def test_an_image_that_is_gone_can_be_passed_by(run, way):
    (run.parent / "images/below.png").unlink()
    way.go(-1)
    assert way.canvas is None
    assert "below.png: no such file" in place_of(way)
    with pytest.raises(ConfigError, match="no such file; check the path; reject it, or go on"):
        way.accept()
    way.go(1)
    assert way.canvas.image.size == SIZE
    assert way.canvas.names == tuple(c.name for c in CLASSES)


# -- the desk


def test_uploads_are_bounded(segmenter, tmp_path, monkeypatch):
    desk = Desk(lambda: segmenter, tmp_path)
    path = tmp_path / "a.png"
    PILImage.new("RGB", (20, 10)).save(path)
    assert desk.read(str(path)).origin == "a.png"
    monkeypatch.setattr(desks, "MAX_PIXELS", 199)
    with pytest.raises(ImageError, match=r"^a.png: expected at most 199 pixels") as caught:
        desk.read(str(path))
    assert str(tmp_path) not in str(caught.value)
    path.unlink()
    with pytest.raises(ImageError, match=r"a.png: this upload is no longer here; load it again"):
        desk.read(str(path))
    for n in range(5):
        (tmp_path / f"{n}").mkdir()
        (tmp_path / f"{n}/file").touch()
        os.utime(tmp_path / f"{n}/file", ns=(n, n))
    delete_old(tmp_path, 2)
    assert sorted(p.parent.name for p in tmp_path.rglob("file")) == ["3", "4"]


def test_what_is_kept_on_the_device_is_bounded(segmenter, image, tmp_path, monkeypatch, encodings):
    monkeypatch.setattr(desks, "ENCODED", 2)
    desk = Desk(lambda: segmenter, tmp_path)
    trials = [Trial(segmenter, image, RING, {}) for _ in range(3)]
    for one in (*trials, trials[1]):
        with desk.using(one):
            """Its turn."""
    encodings.clear()
    for one in trials[1:]:
        one.click(1, 1)
    assert encodings == []
    trials[0].click(1, 1)
    assert encodings == ["clip", "sam"]


def test_an_export_is_a_file_that_pycocotools_loads(trial, segmenter, tmp_path):
    path = Desk(lambda: segmenter, tmp_path).export(trial.coco())
    assert Path(path).name == "annotations.json"
    coco = COCO(path)
    assert [c["name"] for c in coco.dataset["categories"]] == [RING, STAR]
    assert len(coco.anns) == 3
    assert coco.dataset["images"][0]["file_name"] == "street.png"
    trial.choose(0)
    trial.remove()
    assert len(COCO(Desk(lambda: segmenter, tmp_path).export(trial.coco())).anns) == 2


# -- the server


@pytest.fixture(scope="module")
def server(segmenter):
    pytest.importorskip("gradio", reason='needs the extra: pip install "clip2sam[app]"')
    with serving(lambda: segmenter, PRESETS["tiny"].config) as address:
        yield address.rstrip("/")


def upload(server, *files):
    return httpx.post(f"{server}/gradio_api/upload", files=[("files", f) for f in files])


def test_no_file_of_the_host_can_be_read(server, tmp_path):
    (tmp_path / "secret").write_text("hidden words")
    own = Path(__file__)
    for path in (
        str(tmp_path / "secret"),
        "/etc/passwd",
        str(own),
        "../../../../../../etc/passwd",
        "%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "http://127.0.0.1:1/",
        "https://example.com/a.png",
    ):
        for prefix in ("gradio_api/file=", "file="):
            answer = httpx.get(f"{server}/{prefix}{path}")
            assert answer.status_code in (403, 404), (path, answer.status_code)
            assert "hidden words" not in answer.text
    assert httpx.get(f"{server}/gradio_api/file=/etc/passwd").status_code == 403
    elsewhere = httpx.get(f"{server}/gradio_api/file=http://127.0.0.1:1/")
    assert elsewhere.text == "nothing is fetched from elsewhere"
    (path,) = upload(server, ("a.png", b"picture")).json()
    folder = Path(path).parents[1]
    assert httpx.get(f"{server}/gradio_api/file={path}").content == b"picture"
    inside = httpx.get(f"{server}/gradio_api/file={folder}/../../etc/passwd")
    assert inside.status_code == 403


def test_uploads_of_the_server_are_bounded(server, monkeypatch):
    large = upload(server, ("a.png", b"0" * (33 << 20)))
    assert (large.status_code, large.text) == (413, "expected at most 32 MB")

    def piecewise():
        yield b"0"

    whole = httpx.post(f"{server}/gradio_api/upload", content=piecewise())
    assert whole.status_code == 411
    monkeypatch.setattr("clip2sam.app.guard.delete_old", lambda folder: delete_old(folder, 1))
    paths = [upload(server, (f"{n}.png", bytes([n]))).json()[0] for n in range(3)]
    assert [Path(path).exists() for path in paths] == [False, True, True]


def test_other_hosts_frames_and_networks_are_refused(server):
    other = httpx.get(server, headers={"host": "evil.example"})
    assert (other.status_code, other.text) == (400, "Invalid host header")
    page = httpx.get(server)
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    for mark in ("fonts.googleapis", "cdnjs", "fonts.gstatic"):
        assert mark not in page.text
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert httpx.get(f"{server}/config").json()["analytics_enabled"] is False
    assert httpx.get(f"{server}/gradio_api/info").json()["named_endpoints"] == {}


def test_an_address_in_the_place_of_an_upload_is_not_fetched(server):
    config = httpx.get(f"{server}/config").json()
    ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
    (find,) = [d for d in config["dependencies"] if [ids["try-find"], "click"] in d["targets"]]
    url = "http://127.0.0.1:1/secret.png"
    file = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}
    data = [file, None, RING, "surgery", 0.3, 0.5, "object", 0.5]
    asked = {"data": data, "fn_index": find["id"], "session_hash": "other"}
    assert httpx.post(f"{server}/gradio_api/queue/join", json=asked).status_code == 200
    said = ""
    with httpx.stream("GET", f"{server}/gradio_api/queue/data?session_hash=other") as events:
        for line in events.iter_lines():
            said += line
            if "process_completed" in line:
                break
    assert json.loads(line.removeprefix("data: "))["success"] is False
    fetch = import_module("gradio.processing_utils").async_ssrf_protected_get
    with pytest.raises(ImageError, match="expected an uploaded image, got the address"):
        asyncio.run(fetch("https://127.0.0.1:1/a.png"))
    assert "Connect" not in said


def test_the_folder_and_the_environment_are_given_back(segmenter, monkeypatch):
    pytest.importorskip("gradio", reason='needs the extra: pip install "clip2sam[app]"')
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/before")
    with serving(lambda: segmenter, PRESETS["tiny"].config) as address:
        (path,) = upload(address.rstrip("/"), ("a.png", b"picture")).json()
        folder = Path(path).parents[1]
        assert folder.name.startswith("clip2sam-app-")
        assert folder.exists()
        port = int(address.rstrip("/").rpartition(":")[2])
        with (
            pytest.raises(ConfigError, match=r"already in use.*; give another --host or --port"),
            serving(lambda: segmenter, PRESETS["tiny"].config, port=port),
        ):
            """Not reached."""
    assert not folder.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "/before"


def test_without_gradio_the_extra_is_named(command_line, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, errors = command_line("app", "--preset", "tiny")
    assert (code, errors) == (
        2,
        'error: the app needs the package gradio: pip install "clip2sam[app]"\n',
    )
