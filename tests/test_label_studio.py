"""Label Studio's ML backend: in this process, with a Label Studio that is a small server here."""

import asyncio
import base64
import json
import logging
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from clip2sam.coco.outlines import outline_of
from clip2sam.coco.rle import decode_rle, encode_mask
from clip2sam.config import Config
from clip2sam.data.records import Annotation
from clip2sam.errors import ConfigError, ImageError
from clip2sam.serve import label_studio
from clip2sam.serve.label_studio import label_studio_router, model_version
from clip2sam.serve.label_studio_brush import brush_rle
from clip2sam.serve.label_studio_config import controls_of, labels_of
from clip2sam.serve.label_studio_images import TaskImages
from clip2sam.serve.queue import Limits
from clip2sam.serve.server import create_app
from tests.labelling_fakes import Here, small_segmenter
from tests.test_serve import png, until

brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="scripts/setup installs it")

PERSONAL = "head.body.signature"
LABELS = ["cat", "dog", "a+b", "犬"]


@pytest.fixture(autouse=True)
def _decoding_here(monkeypatch):
    monkeypatch.setattr("clip2sam.serve.queue.DecodeWorker", Here)


@pytest.fixture(scope="module")
def segmenter():
    return small_segmenter()


@pytest.fixture(scope="module")
def all_present():
    return small_segmenter(presence_threshold=None, prompts="label")


def interface(tag="BrushLabels", labels=LABELS, more=""):
    inner = "".join(f'<Label value="{label}"/>' for label in labels)
    return (
        f'<View><{tag} name="shape" toName="img">{inner}</{tag}>{more}'
        '<Header value="$title"/><Image name="img" value="$picture"/></View>'
    )


# -- the labelling interface


def test_an_interface_gives_its_labels_by_the_names_of_its_results():
    controls = controls_of(
        '<View><Image name="left" value="$a"/><Image name="right" value="$b"/>'
        '<!-- <!DOCTYPE --><brushlabels name="one" toName="left"><View><Label value=" Cat "/>'
        '<Label value="tv" alias="T" /></View></brushlabels>'
        '<PolygonLabels name="two" toName="right"><Label value="tv" alias="T"/>'
        '<Label value="Vehicle" predicted_values="car, truck,,car"/><Label value="a+b"/>'
        '</PolygonLabels><RectangleLabels name="three" toName="left"><Label value="no"/>'
        "</RectangleLabels></View>"
    )
    assert [(c.name, c.to_name, c.image, c.kind) for c in controls] == [
        ("one", "left", "a", "brushlabels"),
        ("two", "right", "b", "polygonlabels"),
    ]
    assert [list(c.labels) for c in controls] == [[" Cat ", "T"], ["T", "Vehicle", "a+b"]]
    labels = labels_of(controls, Limits())
    prompts = {c.name: c.prompts for c in labels.classes}
    assert sorted(prompts) == [" Cat ", "T", "Vehicle", "a+b"]
    assert (prompts[" Cat "], prompts["T"]) == ((" Cat ",), ("tv",))
    assert prompts["Vehicle"] == ("car", "truck")
    joined = next(c for c in labels.classes if c.name == "a+b")
    assert [part.name for part in joined.joined] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<View/>", "expected a tag BrushLabels or PolygonLabels, got View; add one"),
        (interface("RectangleLabels"), "got View, RectangleLabels, Label, Header, Image; add"),
        ("<View>", "expected XML (no element found"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>', "XML without <!DOCTYPE"),
        ("<View>" + " " * 1_000_000, "at most 1,000,000 characters, got 1,000,006"),
        (interface().replace('toName="img"', 'toName="i"'), "Image tag, got toName 'i'"),
        (interface().replace('name="shape"', ""), "BrushLabels '': expected a name"),
        (interface().replace("$picture", "picture"), "such as $image, got 'picture'; tasks"),
        (interface(labels=[]), "expected Label tags, each with a value, in it"),
        (interface(labels=[""]), "expected Label tags, each with a value, in it"),
    ],
)
def test_an_interface_without_masks_is_refused_in_words(text, said):
    with pytest.raises(ConfigError) as error:
        controls_of(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# -- masks


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (7, 13), (130, 257)])
def test_the_rle_is_label_studios_own(size):
    random = np.random.default_rng(0).random(size)
    for mask in (random < 0, random < 2, random < 0.02, random < 0.6, random > random[0, 0]):
        ours = brush_rle(mask).tolist()
        values = brush.decode_rle(ours).reshape(*size, 4)
        assert np.array_equal(values, np.repeat(mask[..., None], 4, axis=2) * 255)
        theirs = brush.mask2rle(mask.astype(np.uint8) * 255)
        assert theirs in (ours, [*ours, 0])  # theirs ends in a byte of nothing, if no bit is left


def test_polygons_fit_their_masks_whatever_it_costs():
    rows, cols = np.ogrid[:40, :40]
    mask = (rows - 20) ** 2 + (cols - 20) ** 2 < 15**2
    mask[18:24, 18:24] = False
    own = Annotation("cat", encode_mask(mask), 0.5, (), 1.0)
    assert outline_of(own.rle).iou < 0.98
    outline = label_studio.close_outline(own)
    assert outline.iou >= 0.98


# -- images


class Pretender(ThreadingHTTPServer):
    """A Label Studio: gives `files` to those who have its token."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes | tuple[int, str]] = {}
        """By path: the content, or status and Location."""
        self.asked: list[tuple[str, str]] = []
        """Path and Authorization of each request."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        """Quiet."""

    def do_GET(self):
        own = self.headers.get("Authorization", "")
        self.server.asked.append((self.path, own))
        found = self.server.files.get(self.path, (404, ""))
        self.answer(found)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (self.path, asked) == ("/api/token/refresh", {"refresh": PERSONAL})
        self.answer(b'{"access": "short"}')

    def answer(self, found):
        status, location = found if isinstance(found, tuple) else (200, "")
        body = found if isinstance(found, bytes) else b""
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def pretending():
    server = Pretender()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def studio():
    with pretending() as server:
        yield server


@pytest.mark.parametrize(
    ("token", "sent"), [("", ""), ("0123abcd", "Token 0123abcd"), (PERSONAL, "Bearer short")]
)
def test_uploads_are_fetched_from_label_studio_with_the_token(studio, token, sent):
    studio.files = {"/data/upload/1/a%20b.png": b"abc", "/data/local-files/?d=c%2Fd.png": b"d"}
    images = TaskImages(studio.url)
    for address in (
        "/data/upload/1/a b.png",
        "upload/1/a b.png",
        f"{studio.url}/data/upload/1/a b.png",
    ):
        assert images.read(address, 7, token) == b"abc"
    assert images.read("/data/local-files/?d=c%2Fd.png", 7, token) == b"d"
    assert {own for _, own in studio.asked} == {sent}


def test_label_studio_signs_the_addresses_of_stores_and_they_get_no_token(studio):
    with pretending() as store, pretending() as inner:
        name = base64.urlsafe_b64encode(b"s3://b/a.png").decode()
        studio.files = {f"/tasks/7/presign/?fileuri={name}": (303, f"{store.url}/b/a.png?sig=1")}
        store.files = {"/b/a.png?sig=1": b"abc"}
        assert TaskImages(studio.url).read("s3://b/a.png", 7, "secret") == b"abc"
        assert store.asked == [("/b/a.png?sig=1", "")]
        store.files = {"/b/a.png?sig=1": (302, f"{inner.url}/admin")}
        with pytest.raises(ImageError, match="is none of them"):
            TaskImages(studio.url).read("s3://b/a.png", 7, "secret")
        assert inner.asked == []


def test_images_of_the_web_come_from_the_named_hosts_alone(studio):
    with pretending() as web:
        web.files = {"/a.png": b"abc", "/b.png": (302, f"{studio.url}/data/upload/1/a.png")}
        studio.files = {"/data/upload/1/a.png": b"own"}
        host = web.url.removeprefix("http://")
        images = TaskImages(studio.url, (host,))
        assert images.read(f"{web.url}/a.png", 7, "secret") == b"abc"
        assert images.read(f"{web.url}/b.png", 7, "secret") == b"own"
        assert [own for _, own in web.asked] == ["", ""]
        for address in (
            f"http://{host}@127.0.0.1:1/a.png",
            f"http://127.0.0.1:1\\@{host}/a.png",
            f"http://127.0.0.1:1#@{host}/a.png",
            f"http://127.0.0.1:1/{host}/a.png",
        ):
            with pytest.raises(ImageError, match=r"127\.0\.0\.1 is none of them; start it with"):
                images.read(address, 7, "secret")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "expected an image's address as text, got None"),
        ({"url": "a"}, "expected an image's address as text, got {'url': 'a'}"),
        ("", "expected an image's address as text, got ''"),
        ("/etc/passwd", "no file of this machine is read"),
        ("../etc/passwd", "no file of this machine is read"),
        ("upload.png", "no file of this machine is read"),
        ("file:///etc/passwd", "expected an address that begins with http:// or https://"),
        ("memory://a", "expected an address that begins with http:// or https://"),
        ("/data/upload/../../etc/passwd", "without .. in it"),
        ("/data/%2e%2e/etc/passwd", "without .. in it"),
        ("/data/%252e%252e/etc/passwd", "without .. in it"),
        ("/data/a\\..\\b", "without .. in it"),
        ("STUDIO/api/projects", "expected the address of a file of Label Studio"),
        ("STUDIO/data/missing.png", "answered 404"),
        ("STUDIO/data/secret.png", "LABEL_STUDIO_API_KEY in its environment, a personal access"),
        ("STUDIO/data/large.png", "gives more than 1,000 bytes; make the image smaller"),
        ("STUDIO/data/round.png", "more than 5 redirections"),
        ("http://169.254.169.254/latest", "169.254.169.254 is none of them"),
        ("http://[", "expected an address that begins with"),
        ("data:text/plain;base64,YQ==", "expected a data: address of an image in base64"),
        ("data:image/png;base64,é", "a data: address that is no base64"),
        ("data:image/png;base64," + "A" * 2000, "a data: address of more than 1,000 bytes"),
    ],
)
def test_what_no_image_may_be_fetched_from(studio, address, said):
    studio.files = {
        "/data/secret.png": (401, ""),
        "/data/large.png": bytes(1001),
        "/data/round.png": (302, "/data/round.png"),
        "/api/projects": b"no image",
        "/etc/passwd": b"no image",
    }
    address = address.replace("STUDIO", studio.url) if isinstance(address, str) else address
    with pytest.raises(ImageError) as error:
        TaskImages(studio.url, max_bytes=1000).read(address, 7, "secret")
    assert said in str(error.value)
    assert "secret" not in str(error.value).replace("secret.png", "")


@pytest.mark.parametrize("address", ["localhost:8080", "ftp://localhost", "http://", "http://a/?b"])
def test_the_address_of_label_studio_is_checked(address):
    with pytest.raises(
        ConfigError, match="expected the address of Label Studio, such as http://lo"
    ):
        TaskImages(address)


@pytest.mark.parametrize("host", ["http://a", "a/b", "", "a b", "user@a"])
def test_hosts_of_images_are_checked(host):
    with pytest.raises(ConfigError, match="expected a host of images, such as images"):
        TaskImages("http://localhost:8080", (host,))


# -- the backend


def backend(segmenter, work, *, studio="http://127.0.0.1:1", token="", ready=True, **limits):
    """What some work with a client of the backend gives, while it runs."""
    router = label_studio_router(TaskImages(studio), version="v1", token=token)
    load = (
        segmenter if callable(segmenter) and not hasattr(segmenter, "encode") else lambda: segmenter
    )
    app = create_app(load, preset="small", limits=Limits(**limits), routers=[router])

    async def all_of_it():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            if ready:
                await until(lambda: app.state.queue.state != "loading")
            return await work(client)

    return asyncio.run(all_of_it())


def setup(text, token="0123"):
    hostname = "http://localhost:8080"
    return {"project": "1.1", "schema": text, "hostname": hostname, "access_token": token}


def asked(text, *addresses, context=None):
    """A request for predictions, as Label Studio 1.23.2 makes it."""
    tasks = [{"id": i, "data": {"picture": a}, "project": 1} for i, a in enumerate(addresses, 1)]
    params = {"login": None, "password": None, "context": context}
    return {"tasks": tasks, "project": "1.1", "label_config": text, "params": params}


def inline(seed=0):
    return "data:image/png;base64," + base64.b64encode(png(seed)).decode()


def predicted(segmenter, request, **given):
    async def work(client):
        response = await client.post("/predict", json=request)
        assert response.status_code == 200, response.text
        assert set(response.json()) == {"results", "model_version"}
        return response.json()["results"]

    return backend(segmenter, work, **given)


def test_a_brush_region_is_our_mask_with_its_label_and_score(segmenter):
    expected = segmenter(png(2), LABELS)
    (prediction,) = predicted(segmenter, asked(interface(), inline(2)))
    masks = expected.record.annotations
    height, width = expected.record.size
    assert len(prediction["result"]) == len(masks) > 1
    assert expected.absent
    assert {r["value"]["brushlabels"][0] for r in prediction["result"]} == {m.label for m in masks}
    for mask, region in zip(masks, prediction["result"], strict=True):
        value = region.pop("value")
        assert region.pop("id") in "0123456789"
        assert region == {
            "type": "brushlabels",
            "from_name": "shape",
            "to_name": "img",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": mask.score,
        }
        assert (value["format"], value["brushlabels"]) == ("rle", [mask.label])
        alpha = brush.decode_rle(value["rle"]).reshape(height, width, 4)[..., 3]
        assert np.array_equal(alpha == 255, decode_rle(mask.rle))
    scores = [mask.score for mask in masks]
    assert prediction["score"] == min(scores) < max(scores)
    assert prediction["model_version"] == "v1"


def test_a_polygon_region_is_a_part_of_our_mask_in_percent(segmenter):
    expected = segmenter(png(2), LABELS)
    (prediction,) = predicted(segmenter, asked(interface("PolygonLabels"), inline(2)))
    height, width = expected.record.size
    for i, mask in enumerate(expected.record.annotations):
        parts = [r for r in prediction["result"] if r["id"].startswith(f"{i}-")]
        assert parts
        assert {r["score"] for r in parts} == {mask.score}
        assert all(r["value"]["polygonlabels"] == [mask.label] for r in parts)
        assert {(r["from_name"], r["to_name"]) for r in parts} == {("shape", "img")}
        scale = (width / 100, height / 100)
        rings = [(np.array(r["value"]["points"]) * scale).ravel().tolist() for r in parts]
        drawn = mask_utils.merge(mask_utils.frPyObjects(rings, height, width))
        assert mask_utils.iou([drawn], [mask.rle], [0])[0, 0] >= 0.98
    assert len({r["id"] for r in prediction["result"]}) == len(prediction["result"])


def test_each_tag_gets_the_regions_of_its_own_labels(all_present):
    more = '<PolygonLabels name="other" toName="img"><Label value="cat" alias="C"/></PolygonLabels>'
    request = asked(interface(labels=["dog", "犬"], more=more), inline(1))
    (prediction,) = predicted(all_present, request)
    found = {(r["from_name"], *r["value"][r["type"]]) for r in prediction["result"]}
    assert found == {("shape", "dog"), ("shape", "犬"), ("other", "C")}


def test_a_task_that_cant_be_read_costs_that_task_alone(segmenter, caplog, studio):
    studio.files = {"/data/upload/1/a.png": png(2)}
    given = [inline(1), "/etc/passwd", "/data/upload/1/a.png", "data:image/png;base64,AAAA"]
    request = asked(interface(), *given)
    request["tasks"].append({"id": 5, "data": {"text": "no picture"}})
    request["tasks"].append({"id": 6})
    with caplog.at_level(logging.WARNING):
        results = predicted(segmenter, request, studio=studio.url, token="0123")
    assert [sorted(r) for r in results] == [
        ["model_version", "result", "score"],
        ["error"],
        ["model_version", "result", "score"],
        ["error"],
        ["error"],
        ["error"],
    ]
    assert results[0] == predicted(segmenter, asked(interface(), inline(1)))[0]
    assert results[2] == predicted(segmenter, asked(interface(), inline(2)))[0]
    assert "no file of this machine" in results[1]["error"]
    assert "expected an image (JPEG" in results[3]["error"]
    assert "address as text, got None" in results[4]["error"]
    assert "expected a task with data, got None" in results[5]["error"]
    said = [record.getMessage() for record in caplog.records]
    assert {one[:22] for one in said} == {f"Label Studio: task {i}: "[:22] for i in (2, 4, 5, 6)}
    assert any("/etc/passwd" in one for one in said)


def test_setup_keeps_the_token_of_a_project(segmenter, studio):
    studio.files = {"/data/upload/1/a.png": png(1)}

    async def work(client):
        for token in ("old", "new"):
            response = await client.post("/setup", json=setup(interface(), token))
            assert response.json() == {"model_version": "v1"}
            await client.post("/predict", json=asked(interface(), "/data/upload/1/a.png"))

    backend(segmenter, work, studio=studio.url)
    assert [own for _, own in studio.asked] == ["Token old", "Token new"]
    backend(segmenter, work, studio=studio.url, token="mine")
    assert [own for _, own in studio.asked[2:]] == ["Token mine", "Token mine"]


def test_setup_is_answered_while_the_model_is_being_loaded(segmenter, caplog):
    loaded = threading.Event()

    def load():
        loaded.wait()
        return segmenter

    async def work(client):
        answers = [
            await client.get("/health"),
            await client.get("/versions"),
            await client.post("/setup", json=setup(interface())),
            await client.post("/webhook", content=b"\0 no JSON"),
            await client.post("/predict", json=asked(interface(), inline())),
            await client.post("/setup", json=setup(interface("RectangleLabels"))),
        ]
        loaded.set()
        return answers

    health, versions, good, webhook, early, bad = backend(load, work, ready=False)
    assert (health.status_code, health.json()["status"]) == (200, "UP")
    assert versions.json() == {"versions": ["v1"]}
    assert (good.status_code, good.json()) == (200, {"model_version": "v1"})
    assert webhook.status_code == 200
    assert early.status_code == 503
    assert "the model is being loaded" in early.json()["detail"]
    assert bad.status_code == 422
    assert "expected a tag BrushLabels or PolygonLabels" in bad.json()["detail"]
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("Label Studio: no predictions: the model is being loaded")
    assert said[1].startswith("Label Studio: a project was not set up: labelling interface")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ([], "expected a request with a JSON object, got []"),
        ({}, "expected a request with a list of tasks, got None"),
        ({"tasks": ["a"]}, "expected a request with a list of tasks, got ['a']"),
        ({**asked(interface()), "label_config": 1}, "expected a request with label_config as text"),
        (asked(interface("Labels")), "expected a tag BrushLabels or PolygonLabels"),
        (asked(interface(labels=[f"l{i}" for i in range(101)])), "expected at most 100 labels"),
        (asked(interface(), context={"result": []}), "switch the project's interactive"),
    ],
)
def test_a_request_that_cant_be_used_is_refused_in_words(segmenter, request_, said):
    async def work(client):
        return await client.post("/predict", json=request_)

    response = backend(segmenter, work)
    assert response.status_code == 422
    assert said in response.json()["detail"]


def test_a_request_is_bounded_in_bytes(segmenter, monkeypatch):
    monkeypatch.setattr(label_studio, "MOST_BYTES", 10)

    async def work(client):
        return await client.post("/predict", content=b"[" * 11)

    response = backend(segmenter, work)
    assert response.status_code == 413
    assert response.json()["detail"].startswith("expected a request of at most 10 bytes")


def test_tasks_wait_for_places_in_a_full_queue(segmenter, monkeypatch):
    monkeypatch.setattr(label_studio, "PAUSE", 0.01)
    given = [inline(i) for i in range(5)]
    results = predicted(segmenter, asked(interface(), *given), max_waiting=1, batch_size=2)
    alone = [predicted(segmenter, asked(interface(), one))[0] for one in given[:2]]
    assert results[:2] == alone
    assert all("result" in one for one in results)


def test_what_is_not_done_in_time_is_said(segmenter, monkeypatch):
    monkeypatch.setattr(label_studio, "SECONDS", 0.0)
    results = predicted(segmenter, asked(interface(), inline(), inline(1)))
    assert results == [{"error": "no time was left of 0 seconds; ask for it again"}] * 2


def test_other_settings_are_another_version():
    versions = {model_version("tiny", Config()), model_version("tiny", Config(grid=8))}
    assert len(versions | {model_version("vit-b", Config())}) == 3
    assert model_version("tiny", Config()) == model_version("tiny", Config())
    assert all(version.startswith("clip2sam ") and " tiny " in version for version in versions)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--image-host", "a"], "--image-host is for the tasks of a Label Studio; give"),
        (["--label-studio", "localhost"], "expected the address of Label Studio, such as"),
    ],
)
def test_options_are_checked_before_anything_is_served(command_line, arguments, said):
    code, _, error = command_line("serve", "--preset", "tiny", "--port", 0, *arguments)
    assert code == 2
    assert said in " ".join(error.split())
