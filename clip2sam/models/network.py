"""Connections to where weights are published: certificates, proxies, the hub's address and what it
states of a file. One HTTP library (requests) for all of them.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import requests
import urllib3
from huggingface_hub import constants
from requests.utils import get_environ_proxies, select_proxy

from clip2sam.data.files import is_sha256
from clip2sam.errors import WeightsError

TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and seconds of silence; a slow but steady transfer may take any time."""
HUB = "https://huggingface.co"
"""The hub's own address; HF_ENDPOINT names another one, such as a mirror."""
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
"""Environment variables that name a file of certificates; the first that is set counts."""
LOST = (
    requests.ConnectionError,
    requests.Timeout,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.TimeoutError,
)
"""Errors of a connection that another try may not have."""
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


def address(url: str) -> str:
    """Where the file of that published address is requested: an address of the hub at HF_ENDPOINT,
    if that is set."""
    return constants.ENDPOINT + url[len(HUB) :] if url.startswith(f"{HUB}/") else url


def session() -> requests.Session:
    """Connections with the proxies and certificates that the environment names.

    Raises:
        WeightsError: an environment variable names a file of certificates that isn't there.
    """
    made, (name, bundle) = requests.Session(), _bundle()
    if bundle:
        if not Path(bundle).exists():
            raise WeightsError(
                f"{name} names the certificates {bundle}, but there is no such file; correct the "
                "variable, or unset it"
            )
        made.verify = bundle  # requests itself doesn't know SSL_CERT_FILE
    return made


def surroundings(url: str) -> str:
    """What the environment does to connections with that address, for messages of failures; empty
    if nothing. A proxy's password is left out."""
    parts = []
    if constants.ENDPOINT != HUB and hub_file(url) is not None:
        parts.append(f"HF_ENDPOINT is {constants.ENDPOINT}")
    proxy = select_proxy(address(url), get_environ_proxies(address(url)))
    if proxy:
        parts.append(f"through the proxy {without_password(proxy)}")
    name, bundle = _bundle()
    if bundle and address(url).startswith("https:"):
        parts.append(f"certificates of {name}={bundle}")
    return ", ".join(parts)


def without_password(proxy: str) -> str:
    """A proxy's address without the name and the password in it, for messages."""
    return re.sub(r"//[^/@]*@", "//***@", proxy)


def check_no_page(response: requests.Response, url: str) -> None:
    """Refuse a web page in the place of a file.

    Raises:
        WeightsError: it is one.
    """
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind not in ("text/html", "application/xhtml+xml"):
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
    with session() as connection:
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


def may_pass(error: Exception) -> bool:
    """Whether another try may succeed."""
    if isinstance(error, requests.HTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, LOST) and not isinstance(error, requests.exceptions.SSLError)


def _bundle() -> tuple[str, str]:
    """The variable that names certificates, and the file; both empty if none does."""
    return next(((name, os.environ[name]) for name in BUNDLES if os.environ.get(name)), ("", ""))
