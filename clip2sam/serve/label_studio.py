"""Label Studio's ML backend: it sends tasks, and gets predictions for the labels of its projects.

Source of the protocol: label_studio/ml/api_connector.py and models.py of Label Studio 1.23.2,
https://github.com/HumanSignal/label-studio
"""

import asyncio
import contextlib
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from clip2sam import __version__
from clip2sam.coco.outlines import Outline, outline_of
from clip2sam.coco.rle import decode_rle
from clip2sam.config import Config
from clip2sam.data.files import as_json
from clip2sam.data.labels import LabelSet
from clip2sam.data.records import Annotation
from clip2sam.errors import Clip2SamError, ConfigError, UnavailableError, shown
from clip2sam.export.label_studio import least_score, polygon_region, region
from clip2sam.labelling.fingerprint import plain
from clip2sam.result import Result
from clip2sam.serve.body import GoneError, unless_gone
from clip2sam.serve.label_studio_brush import brush_rle
from clip2sam.serve.label_studio_config import Control, controls_of, labels_of
from clip2sam.serve.label_studio_images import TaskImages
from clip2sam.serve.queue import Limits, WorkQueue
from clip2sam.serve.server import without_folders

SECONDS = 90.0
"""For all tasks of a request: Label Studio waits 100 seconds, and takes nothing then."""
MOST_BYTES = 100_000_000
"""Of a request: tasks may have their images in them."""
MOST_PROJECTS = 1000
"""Whose tokens are kept."""
FETCHES = 4
"""Images that are fetched at the same time, of all requests."""
TOLERANCES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Of polygons, in pixels, tried one after the other: few corners are easy to correct."""
LEAST_IOU = 0.98
"""Of polygons with their mask; if it is less, the next tolerance is tried."""
PAUSE = 0.5
"""Seconds until a task tries again to get a place in a queue that is full."""

log = logging.getLogger(__name__)


def model_version(preset: str, config: Config) -> str:
    """What predictions say they are made by. Label Studio asks for none of a task that has one of
    the same version: so other settings are another version."""
    settings = hashlib.sha256(as_json(plain(asdict(config))).encode()).hexdigest()
    return f"clip2sam {__version__} {preset} {settings[:8]}"


def label_studio_router(images: TaskImages, *, version: str, token: str = "") -> APIRouter:
    """The routes of an ML backend, for `clip2sam.serve.server.create_app`.

    Args:
        images: reads the images of tasks.
        version: see `model_version`.
        token: of Label Studio, personal or legacy; without one that which Label Studio sends for
            a project, a legacy one.
    """
    backend = _Backend(images, version, token)
    router = APIRouter(tags=["Label Studio"])
    router.add_api_route("/health", backend.health, methods=["GET"])
    router.add_api_route("/versions", backend.versions, methods=["GET"])
    router.add_api_route("/setup", backend.setup, methods=["POST"])
    router.add_api_route("/predict", backend.predict, methods=["POST"])
    router.add_api_route("/webhook", backend.webhook, methods=["POST"])
    return router


@dataclass(frozen=True)
class _Asked:
    """One request for predictions."""

    images: tuple[tuple[str, tuple[Control, ...], LabelSet], ...]
    """Where a task has an image, the tags that belong to it, and their labels: in most projects one
    of these."""
    token: str
    queue: WorkQueue
    until: float
    """The moment (of the event loop's clock) at which it is answered."""
    gate: asyncio.Semaphore
    """For tasks that are in work: enough to fill a batch, the others wait without a place."""


class _Backend:
    def __init__(self, images: TaskImages, version: str, token: str) -> None:
        self._images, self._version, self._token = images, version, token
        self._tokens: OrderedDict[str, str] = OrderedDict()
        self._fetching = ThreadPoolExecutor(FETCHES, "label-studio")

    # -- at once

    async def health(self) -> dict[str, str]:
        """Whether the server is alive, also while the model is being loaded."""
        return {"status": "UP", "model_class": "clip2sam"}

    async def versions(self) -> dict[str, list[str]]:
        """The versions to choose from: one."""
        return {"versions": [self._version]}

    async def webhook(self) -> dict[str, str]:
        """Label Studio tells each change of a project. Nothing is learnt from it."""
        return {"status": "ignored"}

    async def setup(self, request: Request) -> dict[str, str]:
        """Check a project's labelling interface, and keep its token."""
        with _refusals_logged("a project was not set up"):
            asked = await _read(request)
            project, token = _text(asked, "project"), _text(asked, "access_token")
            _images(_text(asked, "schema"), request.app.state.queue.limits)
        self._tokens[project] = token
        self._tokens.move_to_end(project)
        if len(self._tokens) > MOST_PROJECTS:
            self._tokens.popitem(last=False)
        return {"model_version": self._version}

    # -- predictions

    async def predict(self, request: Request) -> Response:
        """A prediction for each task: its regions, or an "error" in their place. Label Studio makes
        no prediction of that, and writes it to its log."""
        queue: WorkQueue = request.app.state.queue
        try:
            with _refusals_logged("no predictions"):
                _ = queue.segmenter  # refuses while the model is being loaded
                body = await _read(request)
                tasks, asked = _tasks(body), self._asked(body, queue)
            results = await unless_gone(request, self._outcomes(tasks, asked))
        except (GoneError, ClientDisconnect):
            return Response(status_code=499)  # which nobody reads; the metrics count it
        answer = {"results": results, "model_version": self._version}
        content = await asyncio.to_thread(as_json, answer)
        return Response(content, media_type="application/json")

    def _asked(self, body: dict[str, Any], queue: WorkQueue) -> _Asked:
        parameters = body.get("params")
        if isinstance(parameters, dict) and parameters.get("context"):
            raise ConfigError(
                "predictions are made of whole images: points and boxes that a person draws are "
                "not used; switch the project's interactive preannotations off"
            )
        return _Asked(
            _images(_text(body, "label_config"), queue.limits),
            self._token or self._tokens.get(_text(body, "project"), ""),
            queue,
            asyncio.get_running_loop().time() + SECONDS,
            asyncio.Semaphore(2 * queue.limits.batch_size),
        )

    async def _outcomes(self, tasks: list[dict[str, Any]], asked: _Asked) -> list[dict[str, Any]]:
        async with asyncio.TaskGroup() as group:
            doing = [group.create_task(self._outcome(task, asked)) for task in tasks]
        return [one.result() for one in doing]

    async def _outcome(self, task: dict[str, Any], asked: _Asked) -> dict[str, Any]:
        """A task's prediction, or what is wrong: that costs this task alone."""
        try:
            async with asyncio.timeout_at(asked.until), asked.gate:
                return await self._prediction(task, asked)
        except TimeoutError as error:
            reason = str(error) or f"no time was left of {SECONDS:g} seconds; ask for it again"
        except Clip2SamError as error:
            reason = str(error)
        log.warning("Label Studio: task %s: %s", shown(task.get("id"), 40), reason)
        return {"error": without_folders(reason)}

    async def _prediction(self, task: dict[str, Any], asked: _Asked) -> dict[str, Any]:
        fields = task.get("data")
        if not isinstance(fields, dict):
            raise ConfigError(f"expected a task with data, got {shown(fields, 40)}")
        made: list[tuple[Control, Result]] = []
        loop = asyncio.get_running_loop()
        for field, controls, labels in asked.images:
            data = await loop.run_in_executor(
                self._fetching, self._images.read, fields.get(field), task.get("id"), asked.token
            )
            result = await _result(asked.queue, data, labels)
            made += [(control, result) for control in controls]
        return await asyncio.to_thread(self._of_results, made)

    def _of_results(self, made: Sequence[tuple[Control, Result]]) -> dict[str, Any]:
        masks = [
            (control, result, mask)
            for control, result in made
            for mask in result.record.annotations
            if mask.label in control.labels
        ]
        regions = [
            one
            for i, (control, result, mask) in enumerate(masks)
            for one in _regions(control, result.record.size, mask, f"{i}")
        ]
        score = least_score(mask for _, _, mask in masks)
        return {"model_version": self._version, "score": score, "result": regions}


def _images(
    interface: str, limits: Limits
) -> tuple[tuple[str, tuple[Control, ...], LabelSet], ...]:
    """See `_Asked.images`."""
    controls = controls_of(interface)
    own = {c.image: tuple(other for other in controls if other.image == c.image) for c in controls}
    return tuple((field, some, labels_of(some, limits)) for field, some in own.items())


async def _result(queue: WorkQueue, data: bytes, labels: LabelSet) -> Result:
    """A result, waiting as long as it takes for a place in the queue."""
    while True:
        try:
            async with queue.place() as place:
                image = await place.decode(data)
                return await place.segment(image, labels)
        except UnavailableError:
            if queue.state != "ready":
                raise
        await asyncio.sleep(PAUSE)


def _regions(
    control: Control, size: tuple[int, int], mask: Annotation, name: str
) -> list[dict[str, Any]]:
    """The regions of a mask: one of a brush, or a polygon for each part."""
    if control.kind == "brushlabels":
        rle = brush_rle(decode_rle(mask.rle)).tolist()
        value = {"format": "rle", "rle": rle, "brushlabels": [mask.label]}
        return [region(mask, size, control.kind, value, name, control.name, control.to_name)]
    return [
        polygon_region(
            mask,
            size,
            polygon,
            name=f"{name}-{part}",
            from_name=control.name,
            to_name=control.to_name,
        )
        for part, polygon in enumerate(close_outline(mask).polygons)
    ]


def close_outline(mask: Annotation) -> Outline:
    """The polygons of a mask, with as few corners as they fit it with."""
    outlines = (outline_of(mask.rle, tolerance) for tolerance in TOLERANCES)
    best = next(outlines)
    while best.iou < LEAST_IOU and (closer := next(outlines, None)):
        best = closer
    return best


# -- requests


@contextlib.contextmanager
def _refusals_logged(what: str) -> Iterator[None]:
    """Label Studio shows the status of a refusal alone, and points at the server's log."""
    try:
        yield
    except Clip2SamError as error:
        log.warning("Label Studio: %s: %s", what, error)
        raise


async def _read(request: Request) -> dict[str, Any]:
    """A request's JSON object, read up to a limit."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise HTTPException(
                413,
                f"expected a request of at most {MOST_BYTES:,} bytes; send fewer tasks at once",
                headers={"Connection": "close"},  # the rest of it is not read
            )
    try:
        body = await asyncio.to_thread(json.loads, bytes(data))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"expected a request of JSON ({error}); send what the schema says"
        ) from None
    if not isinstance(body, dict):
        raise ConfigError(f"expected a request with a JSON object, got {shown(body, 40)}")
    return body


def _text(body: dict[str, Any], name: str) -> str:
    text = body.get(name)
    if not isinstance(text, str):
        raise ConfigError(f"expected a request with {name} as text, got {shown(text, 40)}")
    return text


def _tasks(body: dict[str, Any]) -> list[dict[str, Any]]:
    tasks = body.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise ConfigError(f"expected a request with a list of tasks, got {shown(tasks, 40)}")
    return tasks
