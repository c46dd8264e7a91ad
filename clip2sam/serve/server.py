"""The server's application: routes, errors as JSON, its beginning and its end."""

import asyncio
import contextlib
import logging
import re
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import uvicorn
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clip2sam import __version__
from clip2sam.data.labels import LabelSet, remarks_on
from clip2sam.errors import (
    Clip2SamError,
    ConfigError,
    ModelError,
    OutOfTimeError,
    UnavailableError,
    one_line,
)
from clip2sam.serve import asked
from clip2sam.serve.answer import CocoAnswer, Problem, answer_of
from clip2sam.serve.body import Body, GoneError, read_body, unless_gone
from clip2sam.serve.metrics import Metrics
from clip2sam.serve.queue import Limits, Place, WorkQueue
from clip2sam.tiny.vocabulary import said_of_unknown, unknown_names

if TYPE_CHECKING:
    from clip2sam.pipeline import Segmenter

GRACE = 30.0
"""Seconds that what is in work may still take when the server ends."""

LOG = logging.getLogger("clip2sam.serve")

STATUS = {ModelError: 500, UnavailableError: 503, OutOfTimeError: 504}
"""Of errors; 422 for all others that a user can cause."""

DETAILS: dict[int | str, dict[str, Any]] = {
    413: {"model": Problem, "description": "The body is too large."},
    415: {"model": Problem, "description": "The body is neither an image nor a form."},
    422: {"model": Problem, "description": "The image, the labels or the settings can't be used."},
    500: {"model": Problem, "description": "The model failed on this image."},
    503: {
        "model": Problem,
        "description": "The model is being loaded, too many requests wait, or the server shuts "
        "down: try again after Retry-After seconds.",
    },
    504: {"model": Problem, "description": "The time limit of a request has passed."},
}

BODY = {
    "required": True,
    "content": {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {"schema": asked.Form.model_json_schema()},
    },
}

router = APIRouter()


def create_app(
    load: "Callable[[], Segmenter]",
    *,
    preset: str = "own models",
    limits: Limits | None = None,
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """The application, as uvicorn runs it.

    Args:
        load: gives the models; called in a thread when the server starts, which answers meanwhile.
        preset: what answers call the models.
        limits: what it takes.
        routers: more routes. A router's functions take the request, and find there
            `request.app.state.queue`, the `clip2sam.serve.queue.WorkQueue`, and
            `request.app.state.preset`. Errors of `clip2sam.errors` that they let through become
            answers as those of our own routes do.
    """
    app = FastAPI(
        title="clip2sam",
        version=__version__,
        summary="Typed labels in, masks out: COCO, one image a request.",
        openapi_tags=[{"name": "masks"}, {"name": "state"}],
        lifespan=_lifespan,
    )
    app.state.queue = WorkQueue(load, limits)
    app.state.preset, app.state.ended = preset, False
    app.include_router(router)
    for more in routers:
        app.include_router(more)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(_Counting, metrics=app.state.queue.metrics)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    queue: WorkQueue = app.state.queue
    queue.start()
    try:
        yield
    finally:
        app.state.ended = await asyncio.to_thread(queue.stop, GRACE)


# -- routes


@router.get("/healthz", tags=["state"], summary="Is the server alive?")
async def healthz() -> dict[str, str]:
    """Whether the server is alive, at once."""
    return {"status": "alive"}


@router.get(
    "/readyz", tags=["state"], summary="Is the model loaded?", responses={503: DETAILS[503]}
)
async def readyz(request: Request) -> dict[str, str]:
    """Whether the model is loaded. 503 before that, and with the reason if loading failed."""
    queue: WorkQueue = request.app.state.queue
    _ = queue.segmenter
    return {"status": "ready", "preset": request.app.state.preset}


@router.get(
    "/metrics", tags=["state"], summary="Figures for Prometheus", response_class=PlainTextResponse
)
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    queue: WorkQueue = request.app.state.queue
    return Response(queue.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post(
    "/v1/segment",
    tags=["masks"],
    summary="Masks of the labels in an image",
    response_model=CocoAnswer,
    responses=DETAILS,
    openapi_extra={"requestBody": BODY},
)
async def segment(request: Request, query: Annotated[asked.Query, Query()]) -> Response:
    """Segment one image: a mask for each object of the labels that are present.

    The body is the image (JPEG, PNG, WebP, TIFF, BMP, GIF, ...), with labels and settings in the
    query; or a form with the image as `file`, and `labels` and `settings` as JSON.
    """
    queue: WorkQueue = request.app.state.queue
    try:
        async with queue.place() as place:
            body = await read_body(request, queue.limits.max_bytes)
            work = _segmented(place, queue, query, body, request.app.state.preset)
            content = await unless_gone(request, work)
    except GoneError:
        return Response(status_code=499)  # which nobody reads; the metrics count it
    return Response(content, media_type="application/json")


async def _segmented(
    place: Place, queue: WorkQueue, query: asked.Query, body: Body, preset: str
) -> bytes:
    labels = await asyncio.to_thread(asked.labels_of, query, body.labels, queue.limits)
    changes = query.changes() | ({} if body.settings is None else asked.settings_of(body.settings))
    segmenter = queue.segmenter.with_config(**changes)
    image = await place.decode(body.data)
    result = await place.segment(image, labels, changes, file_name=body.file_name)
    return await asyncio.to_thread(
        answer_of,
        result,
        segmenter,
        preset=preset,
        polygons=query.polygons,
        tolerance=query.tolerance,
        remarks=remarks(labels, preset),
    )


def remarks(labels: LabelSet, preset: str) -> list[str]:
    """What looks wrong with labels, for those who asked for them."""
    found = list(remarks_on(labels.classes))
    if preset == "tiny" and (unknown := unknown_names(labels.classes)):
        found.append(f"{said_of_unknown(unknown)}, so what it says about them means nothing")
    return found


# -- errors


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": without_folders(detail)}, status, headers=headers)


async def _told(_: Request, error: Exception) -> JSONResponse:
    """An error that a user can cause, or that is told to them."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 422)
    if status == 500:
        LOG.error("%s", error)
    retry = getattr(error, "retry_after", None)
    headers = None if retry is None else {"Retry-After": str(retry)}
    return _problem(status, str(error), headers)


async def _not_valid(_: Request, error: Exception) -> JSONResponse:
    errors = error.errors() if isinstance(error, RequestValidationError) else ()
    return _problem(422, asked.said_of(errors, "query"))


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, str(error.detail), dict(error.headers or {}))


async def _bug(_: Request, error: Exception) -> JSONResponse:
    return _problem(500, f"the server failed ({type(error).__name__}); its log has more")


HANDLERS: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    Clip2SamError: _told,
    RequestValidationError: _not_valid,
    HTTPException: _http,
    Exception: _bug,
}


def without_folders(text: str) -> str:
    """A message without the folders of this machine: of each absolute path only the name is left.
    Addresses of the web stay."""
    return re.sub(r"(?<![\w.:/])~?/(?:[^\s/:;,'\"()]+/)*([^\s/:;,'\"()]+)", r"\1", text)


class _Counting:
    """Counts the answers, by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                self.metrics.answered(path, message["status"])
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, counted)
        except Exception:  # a bug, which starlette answers outside of here
            self.metrics.answered(getattr(scope.get("route"), "path", "other"), 500)
            raise


# -- running it


class _Server(uvicorn.Server):
    """When it is told to end, what waits is refused at once, and what is in work is finished."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app: Any = self.config.app
        app.state.queue.close()
        await super().shutdown(sockets)


def run(app: FastAPI, listening: socket.socket) -> bool:
    """Serve until SIGTERM or SIGINT.

    Args:
        listening: a bound socket, see `bound`.

    Returns:
        Whether what was in work has been finished.
    """
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=int(GRACE)
    )
    server = _Server(config)

    def end(*_: Any) -> None:
        """Ahead of uvicorn's own handlers; and behind them: it raises the signal once more."""
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return bool(app.state.ended)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; 0 is a free port.

    Raises:
        ConfigError: the address can't be had.
    """
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(kind, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(
            f"{host}:{port} can't be listened on ({one_line(error)}); give another --port"
        ) from error
    return listening
