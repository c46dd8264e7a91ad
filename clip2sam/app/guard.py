"""What the server lets through: small requests from this machine's own page."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from clip2sam.app.desk import MAX_BYTES, delete_old

Asgi = Callable[..., Awaitable[None]]

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "worker-src 'self' blob:; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""The page may fetch from here only, and no other page may hold it in a frame."""

FORM = 64 * 1024
"""Bytes of a request beside its file."""


LOOPBACK = ("127.0.0.1", "localhost")


def middleware(folder: Path, host: str) -> list[Middleware]:
    """What stands before the app. At this machine's own address, requests that name another host
    are refused: they come from a page of elsewhere that gave its name our address.

    Args:
        folder: that of uploads.
        host: the address that is listened at.
    """
    guard = Middleware(Guard, folder=folder)
    if host not in LOOPBACK:
        return [guard]
    return [Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)), guard]


class Guard:
    """An ASGI middleware.

    Args:
        app: what comes behind it.
        folder: that of uploads; before each request that may add one, the oldest are deleted.
    """

    def __init__(self, app: Asgi, folder: Path) -> None:
        self._app, self._folder = app, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if refusal := self._refused(scope):
            await refusal(scope, receive, send)
            return
        if scope["method"] == "POST":
            delete_old(self._folder)

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _refused(self, scope: Any) -> PlainTextResponse | None:
        path = scope["path"].replace("\\", "/")
        if any(mark in path for mark in ("file=http:", "file=https:", "/proxy=")):
            return PlainTextResponse("nothing is fetched from elsewhere", 403)
        if scope["method"] in ("GET", "HEAD"):
            return None
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return PlainTextResponse("expected a request with its length", 411)
        if int(length) > MAX_BYTES + FORM:
            return PlainTextResponse(f"expected at most {MAX_BYTES >> 20} MB", 413)
        return None
