"""What the web says of weights: files of the hub, and what a server states of a file. Connections
are those of `clip2sam.data.network`.
"""

import re
from dataclasses import dataclass
from urllib.parse import urljoin

import requests
from huggingface_hub import constants

from clip2sam.data.files import is_sha256
from clip2sam.data.network import HUB, address, is_page, session, surroundings
from clip2sam.errors import WeightsError

TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and seconds of silence; a slow but steady transfer may take any time."""
REDIRECTS = 5

_HUB_PATH = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository of the Hugging Face hub."""

    repository: str
    """"owner/name"."""
    revision: str
    """A commit, or a branch."""
    name: str


@dataclass(frozen=True)
class Stated:
    """What a server states of a file before it is downloaded."""

    size: int | None
    """Bytes."""
    sha256: str | None
    """64 hexadecimal digits."""


def hub_file(url: str) -> HubFile | None:
    """The hub's file at that address; None for the address of another site."""
    for start in (HUB, constants.ENDPOINT):
        if url.startswith(f"{start}/") and (found := _HUB_PATH.fullmatch(url[len(start) :])):
            return HubFile(**found.groupdict())
    return None


def check_no_page(response: requests.Response, url: str) -> None:
    """Refuse a web page in the place of a file.

    Raises:
        WeightsError: it is one.
    """
    if not is_page(response):
        return
    around = surroundings(url)
    raise WeightsError(
        f"{url} gave a web page where weights were expected ({response.url:.200}"
        f"{', ' + around if around else ''}): the network may want a login, or block the address; "
        "open it in a browser, or get the file elsewhere"
    )


def stated(url: str) -> Stated:
    """What is stated of a file: the hub states the size and SHA-256 of large ones.

    Raises:
        requests.RequestException: no answer, or a refusal.
        WeightsError: a web page, or certificates that aren't there.
    """
    here = address(url)
    with session(WeightsError) as connection:
        for _ in range(REDIRECTS):
            # identity: a compressed answer would have another length
            headers = {"Accept-Encoding": "identity"}
            answer = connection.head(here, headers=headers, timeout=TIMEOUT, allow_redirects=False)
            answer.raise_for_status()
            # The hub's own answer has them, the storage to which it redirects doesn't.
            if not answer.is_redirect or "X-Linked-Size" in answer.headers:
                break
            here = urljoin(here, answer.headers["Location"])
    check_no_page(answer, url)
    # Those of a redirection are of the redirection itself.
    plain = {} if answer.is_redirect else answer.headers
    size = answer.headers.get("X-Linked-Size", plain.get("Content-Length", ""))
    mark = answer.headers.get("X-Linked-Etag", plain.get("ETag", "")).strip('"')
    return Stated(int(size) if size.isdecimal() else None, mark if is_sha256(mark) else None)
