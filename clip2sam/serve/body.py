"""Reading a body with a limit, and noticing a client that hangs up."""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from clip2sam.coco.document import file_name_fault

T = TypeVar("T")

NAMELESS = "image"
"""The file name of an image that has none."""

PARTS = ("file", "labels", "settings")
"""Of a multipart body."""


class GoneError(Exception):
    """The client has hung up: nobody waits for an answer."""


@dataclass(frozen=True)
class Body:
    """What a request brings."""

    data: bytes
    """The encoded image."""
    file_name: str = NAMELESS
    labels: str | None = None
    """JSON."""
    settings: str | None = None
    """JSON."""


async def read_body(request: Request, max_bytes: int) -> Body:
    """Read a body: an image, or a form with one.

    Raises:
        HTTPException: 413 beyond the limit, which is counted while reading; 415 for another kind of
            content; 422 for a form without an image.
        GoneError: the client has hung up.
    """
    promised = request.headers.get("content-length", "0")
    if promised.isdecimal() and int(promised) > max_bytes:
        raise _too_large(max_bytes)
    limited = Request(request.scope, _counted(request.receive, max_bytes))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            return await _form(limited, max_bytes)
        if kind.startswith("image/") or kind == "application/octet-stream":
            return Body(await limited.body())
    except ClientDisconnect:
        raise GoneError from None
    raise HTTPException(
        415,
        f"expected a body of image/* or multipart/form-data, got {kind[:80] or 'no content-type'}; "
        "send the image's bytes with a header such as Content-Type: image/jpeg",
    )


def _counted(receive: Receive, max_bytes: int) -> Receive:
    read = 0

    async def counting() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > max_bytes:
            raise _too_large(max_bytes)
        return message

    return counting


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(
        413,
        f"expected a body of at most {max_bytes:,} bytes; make the image smaller",
        headers={"Connection": "close"},  # the rest of it is not read
    )


async def _form(request: Request, max_bytes: int) -> Body:
    async with request.form(max_files=1, max_fields=2, max_part_size=max_bytes) as form:
        if unknown := sorted(set(form) - set(PARTS)):
            raise HTTPException(
                422, f"the form has a part {unknown[0][:40]!r}; choose from {', '.join(PARTS)}"
            )
        file, texts = form.get("file"), [form.get(name) for name in PARTS[1:]]
        if not isinstance(file, UploadFile) or any(isinstance(t, UploadFile) for t in texts):
            raise HTTPException(
                422, "expected a form with the image as the file named 'file', beside texts"
            )
        labels, settings = (text if isinstance(text, str) and text else None for text in texts)
        name = (file.filename or "").replace("\\", "/").rpartition("/")[2]
        good = name.isprintable() and not file_name_fault(name)
        return Body(await file.read(), name if good else NAMELESS, labels, settings)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do some work while the client is there. To be called when the body is read.

    Raises:
        GoneError: it has hung up; the work is cancelled.
    """
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise GoneError
        return await doing
    finally:
        for task in (doing, gone):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
