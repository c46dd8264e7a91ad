"""Another try for what fails on a network and may not fail the next time."""

import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

TRIES = 4
"""All in all."""
FIRST_WAIT = 0.5
"""Seconds before the second try, doubled for each further one, and from half to one and a half of
it: many readers that failed at once don't come back at once."""
LONGEST_WAIT = 30.0
"""Seconds that a server may ask for."""

LOST = {
    "requests.exceptions": ("ConnectionError", "Timeout", "ChunkedEncodingError"),
    "urllib3.exceptions": ("ProtocolError", "TimeoutError"),
    "aiohttp.client_exceptions": ("ClientConnectionError", "ClientPayloadError"),
    "httpx": ("TransportError",),
    "botocore.exceptions": ("HTTPClientError", "ConnectionError"),
    "builtins": ("ConnectionError", "TimeoutError"),
}
"""By module: classes of errors of a connection that another try may not have. By name, as none of
these libraries needs to be there."""

Given = TypeVar("Given")


def retried(action: Callable[[], Given], until: float) -> Given:
    """What `action` gives, after as many tries as it needs.

    Args:
        until: the moment (`time.monotonic`) after which no further try begins.

    Raises:
        Exception: the last one of `action`, if TRIES of them failed, or the first that will not
            pass.
    """
    for number in range(TRIES - 1):
        try:
            return action()
        except Exception as error:
            wait = FIRST_WAIT * 2**number * random.SystemRandom().uniform(0.5, 1.5)
            wait = max(wait, _asked_wait(error))
            if not may_pass(error) or time.monotonic() + wait > until:
                raise
        time.sleep(wait)
    return action()


def may_pass(error: BaseException) -> bool:
    """Whether another try may succeed: a connection was lost or timed out, or the server says so
    (408, 429, 5xx)."""
    if (status := status_of(error)) is not None:
        return status in (408, 429) or status >= 500
    errors = list(_causes(error))
    return any(map(_is_lost, errors)) and not any(map(_is_final, errors))


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of any of the libraries is about, if one is."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore's
            response = response.get("ResponseMetadata", {})
            found = [response.get("HTTPStatusCode")]
        else:
            holders = (response, cause)
            found = [getattr(h, name, None) for h in holders for name in _STATUS]
        for value in found:
            if type(value) is int and 400 <= value < 600:
                return value
    return None


_STATUS = ("status_code", "status", "code")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it was made of, each once."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            reason = getattr(one, "reason", None)
            waiting += [one.__cause__, one.__context__, reason, *one.args]


def _is_lost(error: BaseException) -> bool:
    return any(kind.__name__ in LOST.get(kind.__module__, ()) for kind in type(error).__mro__)


def _is_final(error: BaseException) -> bool:
    """A certificate that isn't trusted, or a host that nobody knows."""
    unknown = isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME
    return unknown or any("SSLError" in kind.__name__ for kind in type(error).__mro__)


def _asked_wait(error: BaseException) -> float:
    """Seconds that the server asks to wait, at most LONGEST_WAIT; 0 if it doesn't ask."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = headers.get("Retry-After", "")
    return min(float(asked), LONGEST_WAIT) if asked.isdecimal() else 0.0
