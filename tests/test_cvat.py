"""CVAT's own driver runs the function, over HTTP, against the few answers of a server that it asks
for. What it sends back is decoded by cvat-sdk."""

import io
import json
import pickle
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlparse

import cvat_sdk.auto_annotation as cvataa
import numpy as np
import pytest
from cvat_sdk import Client
from cvat_sdk.core.client import Config
from cvat_sdk.masks import decode_mask
from PIL import Image as PILImage

import clip2sam
from clip2sam.coco.rle import encode_mask
from clip2sam.cvat import DetectionFunction, create
from clip2sam.data.images import load_image
from clip2sam.data.labels import as_label_set
from clip2sam.data.records import Annotation
from clip2sam.errors import ConfigError, LabelError, ModelError, RunError
from clip2sam.pipeline import Segmenter
from clip2sam.tiny.scenes import scene

DATE = "2026-01-01T00:00:00Z"


def png(image, **saved):
    file = io.BytesIO()
    image.save(file, "PNG", **saved)
    return file.getvalue()


class Task:
    """A task of a CVAT server, with what the driver asks for. `sent` is what it uploads."""

    def __init__(self, frames, labels, kind="any"):
        self.frames, self.sent = frames, []
        self.labels = [
            {"id": 70 + i, "name": name, "type": kind, "attributes": [], "sublabels": []}
            for i, name in enumerate(labels)
        ]

    def answer(self, method, path, query):
        if path == "/api/tasks/1":
            lists = {"jobs": {"completed": 0, "validation": 0}, "labels": {"url": "x"}}
            task = {"id": 1, "size": len(self.frames), "updated_date": DATE, "dimension": "2d"}
            chunks = {"data_chunk_size": 100, "data_original_chunk_type": "imageset"}
            return {**lists, **task, **chunks, "organization_id": None, "organization": None}
        if path == "/api/labels":
            return {"count": len(self.labels), "next": None, "results": self.labels}
        if path == "/api/tasks/1/data/meta":
            frames = [{"name": name, "related_files": 0} for name in self.frames]
            return {"chunks_updated_date": DATE, "frames": frames, "deleted_frames": []}
        if path == "/api/tasks/1/data" and query["quality"] == ["original"]:
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w") as archive:
                for i, data in enumerate(self.frames.values()):
                    archive.writestr(f"{i:06d}.png", data)
            return file.getvalue()
        assert (method, path) == ("PATCH", "/api/tasks/1/annotations"), (method, path)
        return {"version": 0, "tags": [], "shapes": [], "tracks": []}


def handler_of(task):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = urlparse(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if body:
                task.sent.append((parse_qs(asked.query), json.loads(body)))
            answer = task.answer(self.command, asked.path.rstrip("/"), parse_qs(asked.query))
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(200)
            kind = "application/zip" if isinstance(answer, bytes) else "application/vnd.cvat+json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_PATCH = do_GET

        def log_message(self, *args):
            """Nothing is printed."""

    return Handler


@pytest.fixture
def annotated(tmp_path):
    """Runs the driver over a task; gives the shapes that it uploads."""

    def run(task, function, **options):
        with ThreadingHTTPServer(("127.0.0.1", 0), handler_of(task)) as server:
            thread = Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                url = f"http://127.0.0.1:{server.server_port}"
                config = Config(cache_dir=tmp_path / "cache")
                with Client(url, config=config, check_server_version=False) as client:
                    cvataa.annotate_task(client, 1, function, **options)
            finally:
                server.shutdown()
                thread.join()
        ((query, sent),) = task.sent
        assert query["action"] == ["create"]
        assert sent["tags"] == []
        return sent["shapes"]

    return run


@pytest.fixture(scope="module")
def segmenter():
    return clip2sam.load("tiny")


class Found(Segmenter):
    """In the place of a segmenter: it finds the same annotations in every image, or fails."""

    def __init__(self, *annotations, fails=()):
        self.annotations, self.fails, self.images = annotations, list(fails), []

    def look_at(self, labels):
        """All are known."""

    def encode(self, images):
        self.images += images
        return images

    def segment(self, images, labels):
        if self.fails and (error := self.fails.pop(0)):
            raise error
        return [self]


HEIGHT, WIDTH = 40, 60


def ring_and_dot():
    """A mask with a hole, and a second part."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[4:30, 6:40] = True
    mask[10:20, 12:30] = False
    mask[32:38, 50:58] = True
    return mask


def fake(*annotations, fails=(), **options):
    found, labels = Found(*annotations, fails=fails), {"cat": "cat", "dog, wet": "dog"}
    return found, DetectionFunction(found, as_label_set(labels), **options)


def picture(**saved):
    return png(PILImage.new("RGB", (WIDTH, HEIGHT), "grey"), **saved)


def masks_of(shapes, frame, size):
    height, width = size
    return [
        decode_mask(s["points"], image_width=width, image_height=height)
        for s in shapes
        if s["frame"] == frame
    ]


def drawn(shapes):
    """What a filling rule of even and odd makes of polygons: a pixel's centre is inside."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = np.zeros((HEIGHT, WIDTH), bool)
    for shape in shapes:
        ring = np.reshape(shape["points"], (-1, 2))
        for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y1 != y2:
                crosses = (min(y1, y2) <= y) & (y < max(y1, y2))
                inside ^= crosses & (x1 + (y - y1) * (x2 - x1) / (y2 - y1) > x)
    return inside


def test_a_task_is_annotated_as_the_segmenter_has_it(annotated, segmenter):
    scenes = [scene(seed, objects=(2, 4)) for seed in (6, 7)]
    names = sorted({f"{o.colour} {o.shape}" for s in scenes for o in s.objects})
    task = Task(
        {f"{i}.png": png(PILImage.fromarray(s.pixels)) for i, s in enumerate(scenes)}, names
    )
    shapes = annotated(task, create(labels=", ".join(names), preset="tiny"))
    assert len(shapes) > 2
    for frame, one in enumerate(scenes):
        result = segmenter(one.pixels, names)
        own = [s for s in shapes if s["frame"] == frame]
        assert [s["label_id"] for s in own] == [70 + names.index(n) for n in result.labels]
        assert [s["score"] for s in own] == pytest.approx(result.scores.tolist())
        assert {(s["type"], s["source"]) for s in own} == {("mask", "auto")}
        found = masks_of(shapes, frame, one.size)
        assert all(np.array_equal(*pair) for pair in zip(found, result.masks, strict=True))


def test_masks_keep_holes_and_parts(annotated):
    mask = ring_and_dot()
    _, function = fake(Annotation("dog, wet", encode_mask(mask), 0.75))
    (shape,) = annotated(Task({"a.png": picture()}, ["cat", "dog, wet"]), function)
    assert (shape["label_id"], shape["score"]) == (71, 0.75)
    assert np.array_equal(masks_of([shape], 0, mask.shape)[0], mask)


@pytest.mark.parametrize("asked", ["by CVAT", "by a parameter"])
def test_polygons_have_holes_cut_out_and_parts_in_a_group(annotated, asked):
    mask = ring_and_dot()
    square = np.zeros_like(mask)
    square[2:6, 42:48] = True
    own = {"polygons": True} if asked == "by a parameter" else {}
    found = [Annotation("cat", encode_mask(m), 0.5) for m in (square, mask)]
    _, function = fake(*found, tolerance=0.0, **own)
    task = Task({"a.png": picture()}, ["cat", "dog, wet"], "polygon" if own else "any")
    shapes = annotated(task, function, conv_mask_to_poly=not own)
    assert {(s["type"], s["score"]) for s in shapes} == {("polygon", 0.5)}
    assert [s.get("group") for s in shapes] == [None, 2, 2]
    assert np.array_equal(drawn(shapes[:1]), square)
    assert np.array_equal(drawn(shapes[1:]), mask)


def test_masks_below_the_confidence_threshold_are_left_out(annotated):
    rle = encode_mask(ring_and_dot())
    found = [Annotation("cat", rle, score) for score in (0.25, 0.5, 0.75)]
    task = Task({"a.png": picture()}, ["cat", "dog, wet"])
    shapes = annotated(task, fake(*found)[1], conf_threshold=0.5)
    assert [s["score"] for s in shapes] == [0.5, 0.75]


def test_labels_that_the_task_lacks(annotated):
    rle = encode_mask(ring_and_dot())
    found = [Annotation("cat", rle, 0.5), Annotation("dog, wet", rle, 0.5)]
    task = Task({"a.png": picture()}, ["cat"])
    with pytest.raises(cvataa.BadFunctionError, match="label 'dog, wet' is not in dataset"):
        annotated(task, fake(*found)[1])
    shapes = annotated(task, fake(*found)[1], allow_unmatched_labels=True)
    assert [s["label_id"] for s in shapes] == [70]


def test_a_task_of_rectangles_is_refused_before_the_first_image(annotated):
    found, function = fake()
    with pytest.raises(cvataa.BadFunctionError, match="has type 'mask' in the function"):
        annotated(Task({"a.png": picture()}, ["cat", "dog, wet"], "rectangle"), function)
    assert not found.images


def turned():
    exif = PILImage.Exif()
    exif[0x0112] = 6
    return picture(exif=exif)


def deep():
    values = np.full((HEIGHT, WIDTH), 0x8080, np.uint16)
    return png(PILImage.fromarray(values))


@pytest.mark.parametrize(
    ("data", "size", "pixel"),
    [
        (turned(), (WIDTH, HEIGHT), 128),
        (deep(), (HEIGHT, WIDTH), 128),
        (png(PILImage.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))), (HEIGHT, WIDTH), 255),
        (png(PILImage.new("L", (WIDTH, HEIGHT), 128)), (HEIGHT, WIDTH), 128),
        (png(PILImage.new("RGB", (WIDTH, HEIGHT), "grey").quantize()), (HEIGHT, WIDTH), 128),
        (png(PILImage.new("1", (WIDTH, HEIGHT), 1)), (HEIGHT, WIDTH), 255),
    ],
    ids=["EXIF", "16 bit", "RGBA", "L", "P", "1"],
)
def test_every_kind_of_image_reaches_the_models_as_upright_rgb(annotated, data, size, pixel):
    found, function = fake()
    assert annotated(Task({"a.png": data}, ["cat", "dog, wet"]), function) == []
    (image,) = found.images
    assert image.size == size
    assert np.array_equal(image.pixels, np.full((*size, 3), pixel))


def test_a_failure_costs_its_image_and_three_in_a_row_the_task(annotated, caplog):
    annotation = Annotation("cat", encode_mask(ring_and_dot()), 0.5)
    frames = {name: picture() for name in ("a.png", "b\n.png", "c.png", "d.png", "e.png")}
    again = ModelError("not finite")
    once = [None, again, RuntimeError("no such kernel"), None, again]
    shapes = annotated(Task(frames, ["cat", "dog, wet"]), fake(annotation, fails=once)[1])
    assert [s["frame"] for s in shapes] == [0, 3]
    said = [r.getMessage() for r in caplog.records if r.name == "clip2sam.cvat"]
    assert said == [
        "b%0A.png gets no annotations: not finite",
        "c.png gets no annotations: the model failed on this image (RuntimeError: no such kernel); "
        "leave it out",
        "e.png gets no annotations: not finite",
    ]
    task = Task(frames, ["cat", "dog, wet"])
    with pytest.raises(RunError, match=r"failed on 3 images in a row.*not finite\. Correct it"):
        annotated(task, fake(annotation, fails=[None, again, again, again])[1])
    assert task.sent == []  # nothing was uploaded, so nothing in the task has changed


def test_an_image_that_is_too_large_costs_itself(annotated, caplog, monkeypatch):
    monkeypatch.setattr("clip2sam.cvat.load_image", lambda i: load_image(i, max_pixels=99))
    assert annotated(Task({"a.png": picture()}, ["cat", "dog, wet"]), fake()[1]) == []
    assert "a.png gets no annotations: PIL image: expected at most 99 pixels" in caplog.text


def test_labels_as_they_are_typed(tmp_path, segmenter, monkeypatch):
    monkeypatch.setattr("clip2sam.cvat.load", lambda preset, **given: segmenter)
    file = tmp_path / "labels.yaml"
    file.write_text(
        "classes:\n- {name: 'Circle, red', prompts: [red circle]}\ndistractors: [star]\n"
    )

    def names(labels, **more):
        return [label.name for label in create(labels=labels, preset="tiny", **more).spec.labels]

    assert names("Red circle , blue  square,triangle+heart", distractors="star, moon") == [
        "Red circle",
        "blue  square",
        "triangle+heart",
    ]
    assert names(str(file)) == ["Circle, red"]
    assert names(["Circle"]) == ["Circle"]
    with pytest.raises(LabelError, match="label 2: "):
        names("star,,moon")
    with pytest.raises(LabelError, match="expected at least one label, got none"):
        names(" ")
    with pytest.raises(LabelError, match=r"absent\.txt"):
        names("absent.txt")


def test_settings_are_those_of_the_command_line(segmenter, monkeypatch):
    told = {}

    def loading(preset, **given):
        told.update(given, preset=preset)
        return segmenter

    monkeypatch.setattr("clip2sam.cvat.load", loading)
    made = []

    class Noted(DetectionFunction):
        def __init__(self, segmenter, labels, **options):
            made.append((segmenter, {**options, "labels": labels}))

    monkeypatch.setattr("clip2sam.cvat.DetectionFunction", Noted)
    create(labels="star", preset="tiny")
    assert made[0][0].config == segmenter.config
    create(
        labels="star",
        distractors="moon, heart",
        preset="tiny",
        presence_threshold=0.25,
        max_objects=3,
        min_share=0.75,
        one_mask=True,
        device="cpu",
        offline=True,
        tolerance=2.5,
    )
    config, options = made[1][0].config, made[1][1]
    assert (config.presence_threshold, config.max_objects, config.min_share) == (0.25, 3, 0.75)
    assert (config.prompts, options["tolerance"]) == ("label", 2.5)
    assert options["labels"].names == ("star", "moon", "heart")
    assert (told["preset"], told["device"], told["offline"]) == ("tiny", "cpu", True)
    for tile in (640, "640"):
        create(labels="star", preset="tiny", tile=tile)
        assert made[-1][0].config.tile == 640
    with pytest.raises(ConfigError, match="the tolerance must be 0 pixels or more, but got -1"):
        create(labels="star", preset="tiny", tolerance=-1.0)


def test_agents_can_send_the_spec_to_another_process():
    _, function = fake()
    spec = pickle.loads(pickle.dumps(function.spec))
    assert [(label.id, label.name, label.type) for label in spec.labels] == [
        (1, "cat", "mask"),
        (2, "dog, wet", "mask"),
    ]
