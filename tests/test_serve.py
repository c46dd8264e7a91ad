"""The server as its clients meet it, in this process; with a port where its end is tested."""

import asyncio
import io
import json
import os
import signal
import threading

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from fastapi import APIRouter, Request
from PIL import Image as PILImage
from pycocotools.coco import COCO

from clip2sam.clip import model as clip_model
from clip2sam.coco.document import coco_document
from clip2sam.coco.validate import validate
from clip2sam.data.images import load_image
from clip2sam.data.labels import as_label_set, quiet_label_set
from clip2sam.errors import ModelError, WeightsError
from clip2sam.labelling import decode_worker
from clip2sam.labelling.decode_worker import DecodeWorker
from clip2sam.serve import memory
from clip2sam.serve.answer import CocoAnswer
from clip2sam.serve.queue import Limits
from clip2sam.serve.server import bound, create_app, run, without_folders
from clip2sam.serve.together import Asked, Together
from tests.labelling_fakes import Here, small_segmenter
from tests.test_labelling_decode_worker import FAULTY

PNG = {"content-type": "image/png"}
URL = "/v1/segment"


@pytest.fixture(autouse=True)
def _decoding_here(monkeypatch):
    monkeypatch.setattr("clip2sam.serve.queue.DecodeWorker", Here)


@pytest.fixture(scope="module")
def segmenter():
    return small_segmenter()


def png(seed=0, side=40):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + seed, 3), dtype=np.uint8)
    data = io.BytesIO()
    PILImage.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def serving(load, work, **limits):
    """What some work with a client gives, while the application runs. `work` gets the queue too."""
    app = create_app(load, preset="small", limits=Limits(**limits))

    async def all_of_it():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            await until(lambda: app.state.queue.state != "loading")
            return await work(client, app.state.queue)

    made = asyncio.run(all_of_it())
    assert app.state.ended, "the model's thread has ended"
    return made


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


class Gate:
    """A segmenter that waits at its encoder until it is opened."""

    def __init__(self, segmenter):
        self.open, self.entered = threading.Event(), threading.Event()
        self.segmenter = segmenter.with_config()
        self.batches = []
        real = self.segmenter.with_config

        def with_config(**changes):
            made = real(**changes)
            encode = made.encode

            def waiting(images, **settings):
                self.batches.append(len(images))
                self.entered.set()
                self.open.wait(20)
                return encode(images, **settings)

            made.encode = waiting
            return made

        self.segmenter.with_config = with_config

    def __call__(self):
        return self.segmenter


def ask(client, seed=0, **query):
    query = {"label": ["cat", "dog"], **query}
    return client.post(URL, params=query, content=png(seed), headers=PNG)


def one(load, **given):
    """The response to one request."""
    headers = {**PNG, **given.pop("headers", {})} if "files" not in given else {}
    limits = given.pop("limits", {})

    async def work(client, queue):
        return await client.post(URL, headers=headers, **given)

    return serving(load, work, **limits)


def detail(response, status):
    assert response.status_code == status, response.text
    assert set(response.json()) == {"detail"}
    assert "Traceback" not in response.text
    return response.json()["detail"]


# -- answers


def test_an_answer_is_coco_with_why_labels_are_absent(segmenter, tmp_path):
    labels, low = ["cat", " Cat", "dog, cow", "犬"], {"presence_threshold": 0.0625}
    response = one(lambda: segmenter, params={"label": labels, **low}, content=png())
    assert response.status_code == 200
    document = response.json()
    CocoAnswer.model_validate(document)
    assert not validate(document)
    (tmp_path / "one.json").write_text(response.text)
    assert COCO(str(tmp_path / "one.json")).loadRes(json.loads(response.text)["annotations"]).anns

    label_set = quiet_label_set(labels)
    expected = segmenter.with_config(**low)(png(), label_set)
    record = expected.record
    made = coco_document([record], label_set.wanted)
    assert document["annotations"] == made["annotations"]
    assert document["annotations"]
    assert [c["name"] for c in document["categories"]] == labels
    assert expected.absent
    for absent, ours in zip(document["absent"], expected.absent, strict=True):
        assert (absent["label"], absent["reason"]) == (ours.label, ours.reason)
        assert np.float32(absent["score"]) == np.float32(ours.score)
    assert document["info"]["presence_thresholds"] == dict.fromkeys(labels, 0.0625)
    assert document["info"]["preset"] == "small"
    assert [remark[:30] for remark in document["remarks"]] == [
        "labels that differ only in cas",
        "labels that look like lists ar",
    ]


def test_empty_texts_of_a_form_are_none(segmenter):
    """A browser sends all fields of a form."""
    form = {"files": {"file": ("a.png", png())}, "data": {"labels": "", "settings": ""}}
    assert one(lambda: segmenter, params={"label": "cat"}, **form).status_code == 200


def test_a_form_says_the_same_as_a_query(segmenter):
    settings = {"prompts": "label", "presence_threshold": None}
    form = {
        "files": {"file": ("a/b\\cat 1.png", png(), "image/png")},
        "data": {"labels": '{"cat": ["cat", "kitten"]}', "settings": json.dumps(settings)},
    }
    document = one(lambda: segmenter, params={"polygons": True}, **form).json()
    assert document["images"][0]["file_name"] == "cat 1.png"
    mask = document["annotations"][0]
    assert isinstance(mask["segmentation"], list)
    assert document["info"]["prompts"] == {"cat": ["cat", "kitten"]}
    assert document["info"]["masks"] == "one for each label"
    assert document["info"]["presence_thresholds"] == {"cat": None}
    labels = '{"classes": [{"name": "cat", "prompts": ["cat", "kitten"]}]}'
    query = {"labels": labels, "prompts": "label", "presence_threshold": -1, "polygons": True}
    same = one(lambda: segmenter, params=query, content=png()).json()
    assert same["annotations"] == document["annotations"]
    assert same["images"][0]["file_name"] == "image"


# -- batches


def asked_of(segmenter, count=5):
    """Requests with images, labels and settings of their own."""
    labels = [["cat", "dog"], ["dog"], ["a", "b", "cat"], ["cat+dog", "sky"], ["zebra", "horse"]]
    changes = [{}, {"min_share": 0.0}, {"prompts": "label"}, {"grid": 4}, {"tile": 32}]
    for i in range(count):
        own = segmenter.with_config(**changes[i])
        image = own.prepare(load_image(png(i, side=96)))
        yield Asked(image, as_label_set(labels[i]), own, "image")


def same(first, second):
    return (
        first.record == second.record
        and first.absent == second.absent
        and np.array_equal(first.maps, second.maps)
    )


@pytest.mark.parametrize("group", [1, 4])
def test_a_request_alone_and_in_a_batch_gives_the_same_to_the_last_digit(segmenter, group):
    together = Together(segmenter)
    together.group = group
    batch = list(asked_of(segmenter))
    alone = [together([asked])[0] for asked in batch]
    assert sum(len(result.annotations) for result in alone) > 5
    assert all(map(same, together(batch), alone))
    assert all(map(same, together(batch[::-1]), alone[::-1]))
    if group == 1:
        for asked, result in zip(batch, alone, strict=True):
            plain = asked.segmenter(asked.image.image, asked.labels)
            assert plain.annotations == result.annotations


def test_what_waits_is_a_batch(segmenter):
    gate = Gate(segmenter)

    async def work(client, queue):
        first = asyncio.create_task(ask(client))
        await until(gate.entered.is_set)
        others = [asyncio.create_task(ask(client, i, min_share=i / 9)) for i in range(1, 6)]
        await until(lambda: "clip2sam_queue_length 5.0" in queue.metrics.text().decode())
        gate.open.set()
        responses = await asyncio.gather(first, *others)
        return responses, (await client.get("/metrics")).text

    responses, metrics = serving(gate, work, batch_size=4)
    assert gate.batches == [1, 4, 1]
    for i, response in enumerate(responses):
        query = {"label": ["cat", "dog"], **({"min_share": i / 9} if i else {})}
        assert response.content == one(lambda: segmenter, params=query, content=png(i)).content
    assert 'clip2sam_requests_total{path="/v1/segment",status="200"} 6.0' in metrics
    assert "clip2sam_images_total 6.0" in metrics
    assert 'clip2sam_batch_size_bucket{le="1.0"} 2.0' in metrics
    assert "clip2sam_batch_size_sum 6.0" in metrics
    assert 'clip2sam_seconds_count{stage="queue"} 6.0' in metrics
    assert 'clip2sam_seconds_count{stage="decode"} 6.0' in metrics
    assert 'clip2sam_seconds_count{stage="model"} 3.0' in metrics


def test_values_that_are_not_finite_cost_their_request_alone(segmenter):
    batch = list(asked_of(segmenter, 3))
    decode, calls = batch[1].segmenter.decode, []

    def broken(features, prompts):
        calls.append(1)
        found = decode(features, prompts)
        found.logits.fill_(torch.nan)
        return found

    batch[1].segmenter.decode = broken
    first, second, third = Together(segmenter)(batch)
    assert calls == [1], "the batch was not done again"
    assert "SAM's mask logits" in str(second)
    assert isinstance(second, ModelError)
    assert second.__traceback__ is None
    alone = [Together(segmenter)([asked])[0] for asked in (batch[0], batch[2])]
    assert all(map(same, (first, third), alone))


def test_a_batch_that_fails_is_tried_one_by_one(segmenter):
    batch = list(asked_of(segmenter, 3))
    batch[1].segmenter.locate = lambda *_: 1 / 0
    outcomes = Together(segmenter)(batch)
    assert str(outcomes[1]).startswith("the model failed on this image (ZeroDivisionError")
    assert [outcome.record.state for outcome in outcomes[::2]] == ["done", "done"]


def test_a_batch_is_halved_when_memory_runs_out(segmenter, monkeypatch):
    sizes = []
    batch = list(asked_of(segmenter, 4))
    for asked in batch:
        encode = asked.segmenter.encode

        def scarce(images, encode=encode, **settings):
            sizes.append(len(images))
            if len(images) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return encode(images, **settings)

        monkeypatch.setattr(asked.segmenter, "encode", scarce)
    outcomes = Together(segmenter)(batch)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    assert [outcome.record.state for outcome in outcomes] == ["done"] * 4


def test_the_model_goes_on_after_a_failure(segmenter):
    broken = segmenter.with_config()
    broken.with_config = lambda **changes: failing if changes else segmenter
    failing = segmenter.with_config()
    failing.encode = lambda *_, **__: 1 / 0

    async def work(client, queue):
        return await ask(client, min_share=0.5), await ask(client)

    bad, good = serving(lambda: broken, work)
    assert detail(bad, 500) == (
        "the model failed on this image (ZeroDivisionError: division by zero); leave it out"
    )
    assert good.status_code == 200


# -- the queue's bounds


def test_a_full_queue_is_503_with_retry_after(segmenter):
    gate = Gate(segmenter)

    async def work(client, queue):
        waiting = [asyncio.create_task(ask(client)) for _ in range(3)]
        await until(lambda: gate.entered.is_set() and queue._taken == 3)
        queue._pace = 2.5
        refused = await ask(client)
        gate.open.set()
        return refused, await asyncio.gather(*waiting), await ask(client)

    refused, waited, later = serving(gate, work, max_waiting=3, batch_size=1)
    assert detail(refused, 503) == "3 requests are waiting already; try again later"
    assert refused.headers["retry-after"] == "8"
    assert {response.status_code for response in (*waited, later)} == {200}


def test_the_rate_is_measured(segmenter):
    async def work(client, queue):
        await ask(client)
        return queue._pace

    assert serving(lambda: segmenter, work) > 0


def test_a_request_that_takes_too_long_is_504_and_leaves_the_queue(segmenter):
    gate = Gate(segmenter)

    async def work(client, queue):
        first, second = await asyncio.gather(ask(client), ask(client))
        left = len(queue._waiting)
        gate.open.set()
        return first, second, left

    *responses, left = serving(gate, work, seconds=0.1, batch_size=1)
    assert left == 0
    assert gate.batches == [1], "the second never reached the model"
    for response in responses:
        assert detail(response, 504) == (
            "there was no result within 0.1 seconds; try again later, or with fewer labels or a "
            "smaller image"
        )


def test_a_client_that_hangs_up_leaves_the_queue(segmenter):
    gate = Gate(segmenter)
    app = create_app(gate, limits=Limits(batch_size=1))

    async def hang_up():
        async with app.router.lifespan_context(app):
            queue = app.state.queue
            await until(lambda: queue.state == "ready")
            hung_up, sent = asyncio.Event(), []
            messages = [{"type": "http.request", "body": png()}]

            async def receive():
                if messages:
                    return messages.pop()
                await hung_up.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message)

            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
            first = asyncio.create_task(ask(client))
            await until(gate.entered.is_set)
            scope = {
                "type": "http",
                "method": "POST",
                "path": URL,
                "query_string": b"label=cat",
                "headers": [(b"content-type", b"image/png")],
            }
            second = asyncio.create_task(app(scope, receive, send))
            await until(lambda: len(queue._waiting) == 1)
            hung_up.set()
            await second
            assert not queue._waiting
            gate.open.set()
            await first
            return sent

    assert asyncio.run(hang_up())[0]["status"] == 499
    assert gate.batches == [1]


def test_decoded_images_wait_in_a_bounded_room(segmenter):
    gate, decoded = Gate(segmenter), []

    async def work(client, queue):
        real = queue.decoded

        async def counted(data, name):
            decoded.append(name)
            return await real(data, name)

        queue.decoded = counted
        waiting = [asyncio.create_task(ask(client)) for _ in range(6)]
        await until(lambda: gate.entered.is_set() and len(queue._waiting) == 1)
        await asyncio.sleep(0.05)
        there = len(decoded)
        gate.open.set()
        return there, await asyncio.gather(*waiting)

    there, responses = serving(gate, work, batch_size=1)
    assert there == 2
    assert {response.status_code for response in responses} == {200}


# -- what is refused


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("form", [False, True])
def test_a_large_body_is_413(segmenter, chunked, form):
    data, headers = b"x" * 3000, PNG
    if form:
        made = httpx.Request("POST", "http://test", files={"file": ("a.png", data)})
        data, headers = made.read(), {"content-type": made.headers["content-type"]}

    async def pieces():
        for i in range(0, len(data), 500):
            sent.append(i)
            yield data[i : i + 500]

    sent = []
    if not chunked:
        headers = {**headers, "content-length": str(len(data))}
    query = {"params": {"label": "cat"}, "headers": headers}
    response = one(lambda: segmenter, content=pieces(), limits={"max_bytes": 1000}, **query)
    assert detail(response, 413) == (
        "expected a body of at most 1,000 bytes; make the image smaller"
    )
    assert len(sent) == (3 if chunked else 0), "the rest is not read"


CUT = png()[:-40]


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        ({"content": CUT}, 422, "image: the image is cut or damaged ("),
        ({"content": b""}, 422, "image: expected an image, found nothing: it is empty (0 bytes)"),
        ({"content": b"{}"}, 422, "image: expected an image (JPEG, PNG, WebP, TIFF, BMP, GIF, "),
        (
            {"content": png(side=60)},
            422,
            "image: expected at most 2,500 pixels, the header says 60 x 60 pixels (height x width)",
        ),
        (
            {"content": b"x", "headers": {"content-type": "text/plain"}},
            415,
            "expected a body of image/* or multipart/form-data, got text/plain; send the image's ",
        ),
        ({"files": {"file": ("a.png", CUT)}}, 422, "image: the image is cut or damaged ("),
        (
            {"files": {"image": ("a.png", CUT)}},
            422,
            "the form has a part 'image'; choose from file, labels, settings",
        ),
        (
            {"data": {"labels": '["a"]'}, "files": {"settings": ("a", b"")}},
            422,
            "expected a form with the image as the file named 'file', beside texts",
        ),
        (
            {"params": {}, "files": {"file": ("a.png", png())}},
            422,
            "expected labels in one of three places, the query's label (repeatable) or labels "
            "(JSON), or the form's labels (JSON), got 0",
        ),
        (
            {"files": {"file": ("a.png", png())}, "data": {"labels": '["a"]'}},
            422,
            "expected labels in one of three places",
        ),
        (
            {"params": {"labels": '["cat", '}},
            422,
            "labels: expected labels in YAML or JSON, but it can't be read: ",
        ),
        ({"params": {"labels": "names.txt"}}, 422, "labels: expected labels in YAML or JSON"),
        ({"params": {"labels": "[" * 9000}}, 422, "labels: expected labels in YAML or JSON"),
        (
            {"params": {"labels": '["cat"]', "distractor": "sky"}},
            422,
            'put the distractors into the JSON too, as {"distractors": [...]}',
        ),
        ({"params": {"label": ["a", "a"]}}, 422, "label 2: 'a' is given twice, first as label 1"),
        (
            {"params": {"label": [*"abcd"], "distractor": "e"}},
            422,
            "expected at most 4 labels, distractors included, got 5; ask for some of them, then ",
        ),
        ({"params": {"labels": '["a+b+c+d+e"]'}}, 422, "expected at most 4 labels, distractors"),
        (
            {"params": {"labels": json.dumps({"a": [str(i) for i in range(17)]})}},
            422,
            "expected at most 16 text prompts of all labels; leave some out",
        ),
        (
            {"params": {"label": "a" * 1001}},
            422,
            "expected at most 1000 characters a label, text prompt or template, got 1001: 'aaaa",
        ),
        (
            {"params": {"labels": '{"classes": ["a"], "templates": ["%s {}"]}' % ("x" * 1000)}},
            422,
            "expected at most 1000 characters a label, text prompt or template, got 1003: 'xxxx",
        ),
        (
            {"params": {"label": "a", "grd": 3}},
            422,
            "query: nothing is called 'grd'; choose from label, distractor, labels, presence_",
        ),
        (
            {"params": {"label": "a", "min_share": "nan"}},
            422,
            "query: min_share: input should be a finite number, got 'nan'",
        ),
        ({"params": {"label": "a", "tile": 64}}, 422, "query: tile: input should be 'auto' or 'o"),
        (
            {"params": {"label": "a", "tile": "auto", "prompts": "label"}},
            422,
            'tile must be "off" with one prompt a label: ',
        ),
        (
            {"data": {"settings": '{"grd": 3}'}, "files": {"file": ("a.png", png())}},
            422,
            "settings: nothing is called 'grd'; choose from presence_threshold, ",
        ),
        (
            {"data": {"settings": '{"grid": true}'}, "files": {"file": ("a.png", png())}},
            422,
            "settings: grid: input should be a valid integer, got True",
        ),
        (
            {"data": {"settings": "[]"}, "files": {"file": ("a.png", png())}},
            422,
            "settings: input should be an object, got []",
        ),
        (
            {"data": {"settings": "{"}, "files": {"file": ("a.png", png())}},
            422,
            "settings: invalid JSON: EOF while parsing an object",
        ),
    ],
)
def test_what_cannot_be_done_is_said(shared, given, status, said):
    given = {"params": {"label": "cat"}, "content": png(), **given}
    if "files" in given:
        given.pop("content")
    headers = given.pop("headers", PNG if "files" not in given else {})
    found = detail(shared(lambda client: client.post(URL, headers=headers, **given)), status)
    assert found.startswith(said)


@pytest.fixture(scope="module")
def shared(segmenter):
    """One application for many requests."""
    loop = asyncio.new_event_loop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clip2sam.serve.queue.DecodeWorker", Here)
        limits = Limits(max_labels=4, max_text=1000, max_pixels=2500)
        app = create_app(lambda: segmenter, limits=limits)
    running = app.router.lifespan_context(app)
    loop.run_until_complete(running.__aenter__())
    loop.run_until_complete(until(lambda: app.state.queue.state == "ready"))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(transport=transport, base_url="http://test")
    yield lambda request: loop.run_until_complete(request(client))
    loop.run_until_complete(running.__aexit__(None, None, None))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_other_addresses_and_methods_are_json_too(shared):
    assert detail(shared(lambda client: client.get("/etc/passwd")), 404) == "Not Found"
    assert detail(shared(lambda client: client.get(URL)), 405) == "Method Not Allowed"


def test_the_schema_has_everything(shared):
    schema = shared(lambda client: client.get("/openapi.json")).json()
    posted = schema["paths"][URL]["post"]
    assert set(posted["requestBody"]["content"]) == {"image/*", "multipart/form-data"}
    assert {p["name"] for p in posted["parameters"]} >= {"label", "min_share", "polygons"}
    assert all(p["description"] for p in posted["parameters"])
    assert set(posted["responses"]) == {"200", "413", "415", "422", "500", "503", "504"}
    answer = posted["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert answer.endswith("/CocoAnswer")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/root/.cache/clip2sam/a b.pt: no such file", "a b.pt: no such file"),
        (
            "can't read '/data/x/y.bin'; see https://a.b/c/d",
            "can't read 'y.bin'; see https://a.b/c/d",
        ),
        ("50 and/or 3 x 4 / 5", "50 and/or 3 x 4 / 5"),
        ("~/w/x.pt and /", "x.pt and /"),
    ],
)
def test_messages_name_no_folder(text, told):
    assert without_folders(text) == told


def test_a_router_gets_the_queue_and_its_errors_become_answers(segmenter):
    router = APIRouter()

    @router.post("/mine")
    async def mine(request: Request, share: float, fail: bool = False):
        if fail:
            raise ZeroDivisionError("/secret/path")
        queue, image = request.app.state.queue, load_image(png())
        result = await queue.segment(image, as_label_set(["cat"]), {"min_share": share})
        return {"labels": result.labels, "preset": request.app.state.preset}

    app = create_app(lambda: segmenter, preset="small", routers=[router])

    async def work():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            await until(lambda: app.state.queue.state == "ready")
            good, bad, bug = [
                await client.post("/mine", params=query)
                for query in ({"share": 0}, {"share": 2}, {"share": 0, "fail": True})
            ]
            return good, bad, bug, (await client.get("/metrics")).text

    good, bad, bug, metrics = asyncio.run(work())
    assert good.json() == {"labels": ["cat"] * len(good.json()["labels"]), "preset": "small"}
    assert good.json()["labels"]
    assert detail(bad, 422) == "min_share must be from 0 to 1, but got 2.0"
    assert detail(bug, 500) == "the server failed (ZeroDivisionError); its log has more"
    for status in (200, 422, 500):
        assert f'clip2sam_requests_total{{path="/mine",status="{status}"}} 1.0' in metrics


# -- beginning and end


def test_a_model_that_is_being_loaded_is_not_waited_for():
    go_on, app = threading.Event(), create_app(lambda: go_on.wait(20) and 1 / 0)

    async def work():
        async with app.router.lifespan_context(app):
            assert app.state.queue.state == "loading"

    asyncio.run(work())
    assert app.state.ended
    assert app.state.queue._thread.is_alive()
    go_on.set()
    app.state.queue._thread.join()


def test_a_signal_before_the_server_has_begun_ends_it(segmenter, monkeypatch):
    app, listening = create_app(lambda: segmenter), bound("127.0.0.1", 0)
    begin = uvicorn.Server.run

    def run_late(server, sockets):
        os.kill(os.getpid(), signal.SIGTERM)
        begin(server, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", run_late)
    assert run(app, listening)


def test_the_server_answers_while_the_model_is_loaded_and_says_why_it_is_not(segmenter, caplog):
    go_on = threading.Event()

    def load():
        go_on.wait()
        raise WeightsError("/home/someone/weights/vit.pt: no such file; fetch it")

    app = create_app(load)

    async def work():
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            early = [await client.get("/healthz"), await client.get("/readyz"), await ask(client)]
            go_on.set()
            await until(lambda: app.state.queue.state != "loading")
            return early, [
                await client.get("/healthz"),
                await client.get("/readyz"),
                await ask(client),
            ]

    early, late = asyncio.run(work())
    assert [response.status_code for response in (*early, *late)] == [200, 503, 503] * 2
    assert early[0].json() == {"status": "alive"}
    assert detail(early[1], 503) == "the model is being loaded; try again in a few seconds"
    assert early[1].headers["retry-after"] == "2"
    for response in late[1:]:
        assert detail(response, 503) == (
            "the model could not be loaded: vit.pt: no such file; fetch it"
        )
        assert "retry-after" not in response.headers
    assert "/home/someone/weights/vit.pt" in caplog.text, "the log has it in full"


def test_closing_refuses_what_waits_and_finishes_what_is_in_work(segmenter):
    gate = Gate(segmenter)

    async def work(client, queue):
        first = asyncio.create_task(ask(client))
        await until(gate.entered.is_set)
        second = asyncio.create_task(ask(client))
        await until(lambda: len(queue._waiting) == 1)
        queue.close()
        refused, third = await second, await ask(client)
        gate.open.set()
        return refused, third, await first

    refused, third, first = serving(gate, work)
    for response in (refused, third):
        assert detail(response, 503) == ("the server is shutting down; try again when it is back")
    assert first.status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_cleanly(segmenter, number):
    gate = Gate(segmenter)
    app, before = create_app(gate), signal.getsignal(number)
    listening = bound("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    answers = []

    def client():
        for _ in range(2):
            with httpx.Client(base_url=address, timeout=60) as own:
                while own.get("/readyz").status_code != 200:
                    pass
                thread = threading.Thread(
                    target=lambda: answers.append(
                        httpx.post(
                            f"{address}{URL}", params={"label": "cat"}, content=png(), headers=PNG
                        )
                    )
                )
                thread.start()
                threads.append(thread)
                gate.entered.wait()
        while not app.state.queue._waiting:
            pass
        os.kill(os.getpid(), number)
        while app.state.queue.state != "closed":
            pass
        gate.open.set()
        for thread in threads:
            thread.join()

    threads = []
    asking = threading.Thread(target=client)
    asking.start()
    assert run(app, listening)
    asking.join()
    assert sorted(response.status_code for response in answers) == [200, 503]
    assert signal.getsignal(number) is before


def test_a_crash_of_a_decoder_costs_its_image(segmenter, monkeypatch):
    monkeypatch.setattr("clip2sam.serve.queue.DecodeWorker", DecodeWorker)
    faulty = FAULTY.replace("os.path.basename(path)", "path[:5].decode('latin')")
    monkeypatch.setattr(decode_worker, "CODE", faulty)

    async def work(client, queue):
        bad = await client.post(URL, params={"label": "a"}, content=b"crash", headers=PNG)
        return bad, await ask(client)

    bad, good = serving(lambda: segmenter, work, decoders=1)
    assert "the decode worker crashed on this image (SIGSEGV)" in detail(bad, 422)
    assert good.status_code == 200


def test_text_features_are_bounded(monkeypatch):
    segmenter = small_segmenter()
    monkeypatch.setattr(clip_model, "TEXTS_KEPT", 3)
    first = segmenter.clip.encode_texts(["a"])
    for name in "bcde":
        segmenter.clip.encode_texts([name])
    assert [text for text, _ in segmenter.clip.text_features] == ["c", "d", "e"]
    assert torch.equal(segmenter.clip.encode_texts(["a"]), first)


def test_a_server_leaves_no_label_on_disk_and_warns_of_none(tmp_path):
    segmenter = small_segmenter()
    seen = []
    clip = clip_model.SurgeryCLIP(
        segmenter.clip.model, text_folder=tmp_path / "texts", on_labels=seen.append
    )
    from clip2sam.pipeline import Segmenter

    made = Segmenter(clip, segmenter.sam, segmenter.config)
    assert one(lambda: made, params={"label": "cat"}, content=png()).status_code == 200
    assert not (tmp_path / "texts").exists()
    assert not seen


def test_a_port_that_is_taken_is_said():
    with bound("127.0.0.1", 0) as listening:
        listening.listen()
        port = listening.getsockname()[1]
        with pytest.raises(ValueError, match=f"127.0.0.1:{port} can't be listened on .*--port"):
            bound("127.0.0.1", port)


# -- the command


def test_the_allocator_is_told_where_it_listens(monkeypatch):
    """In a process of its own it is seen by the figures of benchmarks/serve.py; here it isn't told,
    as it would be for all other tests too."""
    told = []

    class Library:
        def mallopt(self, option, value):
            told.append((option, value))
            return 1

    monkeypatch.setattr("ctypes.CDLL", lambda name: Library())
    assert memory.keep_flat()
    assert told == [(-8, 2), (-3, 1 << 20), (-1, 1 << 20)]
    monkeypatch.setattr(Library, "mallopt", lambda *_: 0)
    assert not memory.keep_flat()
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not memory.keep_flat(), "a library without mallopt"


def test_the_command_serves_with_its_limits(command_line, monkeypatch):
    served = []

    def run(app, listening):
        with listening:
            served.append((app, listening.getsockname()))
        return ended

    monkeypatch.setattr("clip2sam.serve.server.run", run)
    flat = []
    monkeypatch.setattr("clip2sam.serve.memory.keep_flat", lambda: flat.append(len(served)))
    options = ("--port", 0, "--max-waiting", 3, "--time-limit", 5, "--max-bytes", 10)
    ended = True
    code, out, errors = command_line("serve", "--preset", "tiny", *options, "--max-pixels", 100)
    (app, (host, port)) = served[0]
    assert (code, out, host) == (0, "", "127.0.0.1")
    address = f"http://127.0.0.1:{port}"
    assert errors == f"serving tiny at {address}, its schema at {address}/docs\n"
    assert app.state.queue.limits == Limits(3, 5.0, 10, 100)
    assert app.state.preset == "tiny"
    assert flat == [0], "in front of the threads"
    ended = False
    code, _, errors = command_line("serve", "--preset", "tiny", "--port", 0)
    assert code == 1
    assert errors.endswith("error: what was in work was not finished within 30 seconds\n")


def test_the_command_names_the_extra_that_is_missing(command_line, monkeypatch):
    monkeypatch.setattr("clip2sam.cli.serve.find_spec", lambda name: None)
    code, _, errors = command_line("serve", "--preset", "tiny")
    assert code == 2
    assert errors == ('error: serve needs the package fastapi: pip install "clip2sam[app]"\n')
