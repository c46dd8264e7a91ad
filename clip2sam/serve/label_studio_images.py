"""The images of Label Studio's tasks: which addresses are fetched, and how.

Whoever reaches the server may send it tasks, so an address in a task is not trusted. What is
fetched: what Label Studio itself gives (uploads, local files, and files of a store, for which it
signs an address), at the one address of Label Studio that the server was started with; images of
the web at hosts that it was started with; and images that are in the task, as `data:` addresses. No
file of this machine is read. The token goes to Label Studio alone. A redirection is followed if it
is Label Studio's own, which leads to the stores of its projects, or leads to one of these hosts.
"""

import base64
import binascii
import re
import time
from dataclasses import dataclass
from urllib.parse import unquote, urljoin, urlsplit

import requests
from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from clip2sam import __version__
from clip2sam.data.addresses import WEB, check_address, is_url, scheme_of, shown_url
from clip2sam.data.network import is_page, session
from clip2sam.data.remote import CHUNK, TIMEOUT, errors_at
from clip2sam.data.retries import retried, status_of
from clip2sam.errors import ConfigError, ImageError, shown

SECONDS = 30.0
"""For an image with all tries, however steadily it comes."""
HOPS = 5
"""Redirections that are followed."""
OWN = re.compile(r"/(data|storage-data)/|/(tasks|projects)/[0-9]+/(presign|resolve)/")
"""How paths begin of files that Label Studio itself gives."""
STORES = ("s3", "gs", "azure-blob")
"""Schemes of addresses that Label Studio signs."""


@dataclass(frozen=True)
class TaskImages:
    """Reads the images of tasks. For several threads at once."""

    label_studio: str
    """The address of Label Studio, such as http://localhost:8080."""
    hosts: tuple[str, ...] = ()
    """Hosts of the web that images may come from: HOST, or HOST:PORT if it isn't the usual one."""
    max_bytes: int = 20_000_000

    def __post_init__(self) -> None:
        parts = urlsplit(self.label_studio)
        if scheme_of(self.label_studio) not in WEB or not parts.hostname or parts.query:
            raise ConfigError(
                "expected the address of Label Studio, such as http://localhost:8080, got "
                f"{shown(shown_url(self.label_studio))}"
            )
        for host in self.hosts:
            if not re.fullmatch(r"[^\s/@?#]+", host):
                raise ConfigError(
                    f"expected a host of images, such as images.example.org, got {shown(host)}"
                )

    def read(self, address: object, task: object, token: str) -> bytes:
        """The encoded image of a task.

        Args:
            address: what the task has as its image.
            task: its id.
            token: of Label Studio: a legacy token, or a personal access token.

        Raises:
            ImageError: it isn't given from there, or can't be had.
        """
        if not isinstance(address, str) or not address.strip():
            raise ImageError(f"expected an image's address as text, got {shown(address, 40)}")
        if address.startswith("data:"):
            return _of_data_address(address, self.max_bytes)
        url = self._url(address.strip(), task)
        self._check(url)
        end = time.monotonic() + SECONDS
        with errors_at(url):
            try:
                return retried(lambda: self._fetched(url, token, end), end)
            except requests.RequestException as error:
                if self._is_own(url) and status_of(error) in (401, 403):
                    raise ImageError(
                        f"{shown_url(url)}: Label Studio answered {status_of(error)}; start the "
                        "server with LABEL_STUDIO_API_KEY in its environment, a personal access "
                        "token of somebody who may see the project"
                    ) from error
                raise

    def _url(self, address: str, task: object) -> str:
        """Where an image of a task is requested."""
        if scheme_of(address) in STORES:
            if type(task) is not int:
                raise ImageError(f"{shown_url(address)}: the task has no id to sign it for")
            name = base64.urlsafe_b64encode(address.encode()).decode()
            return f"{self.label_studio.rstrip('/')}/tasks/{task}/presign/?fileuri={name}"
        if re.match("/?upload/", address):
            address = f"/data/{address.lstrip('/')}"
        if OWN.match(address):
            return self.label_studio.rstrip("/") + address
        if not is_url(address):
            raise ImageError(
                f"{shown(address)}: expected an http or https address, a file that Label Studio "
                "gives, such as an upload, or a data: address; no file of this machine is read"
            )
        return address

    def _check(self, url: str) -> None:
        """Refuse what is not to be fetched."""
        check_address(url, WEB)
        place = _place(url)
        if self._is_own(url):
            root = _parsed(self.label_studio).path or ""
            path = (_parsed(url).path or "").removeprefix(root.rstrip("/"))
            if not OWN.match(path) or ".." in re.split(r"[/\\]", unquote(unquote(path))):
                raise ImageError(
                    f"{shown_url(url)}: expected the address of a file of Label Studio, such as "
                    "/data/upload/1/cat.jpg, without .. in it"
                )
        elif not any(place == _place(f"{scheme_of(url)}://{host}") for host in self.hosts):
            raise ImageError(
                f"{shown_url(url)}: images are fetched from Label Studio and from hosts that the "
                f"server was started with, and {place[0]} is none of them; start it with "
                "--image-host"
            )

    def _is_own(self, url: str) -> bool:
        same = scheme_of(url) == scheme_of(self.label_studio)
        return same and _place(url) == _place(self.label_studio)

    def _fetched(self, url: str, token: str, end: float) -> bytes:
        """What is at an address, behind its redirections."""
        with session(ImageError) as connections:
            for _ in range(HOPS):
                own = self._is_own(url)
                with connections.get(
                    url,
                    auth=_Token(self._authorization(connections, token) if own else ""),
                    timeout=TIMEOUT,
                    stream=True,
                    allow_redirects=False,
                    headers={
                        "Accept-Encoding": "identity",
                        "User-Agent": f"clip2sam/{__version__}",
                    },
                ) as response:
                    response.raise_for_status()
                    if not response.is_redirect:
                        return _body(response, self.max_bytes, end)
                    target = urljoin(url, response.headers["Location"])
                check_address(target, WEB)
                if not own:
                    self._check(target)
                url = target
        raise ImageError(f"{shown_url(url)}: more than {HOPS} redirections; check the address")

    def _authorization(self, connections: requests.Session, token: str) -> str:
        """The header of requests to Label Studio. A personal access token (a JWT, which has two
        dots) is exchanged for one that holds for some minutes; a legacy one is sent itself."""
        if token.count(".") != 2:
            return f"Token {token}" if token else ""
        url = f"{self.label_studio.rstrip('/')}/api/token/refresh"
        asked = {"refresh": token}
        with connections.post(
            url, json=asked, auth=_Token(""), timeout=TIMEOUT, allow_redirects=False
        ) as response:
            response.raise_for_status()
            return f"Bearer {response.json()['access']}"


class _Token(requests.auth.AuthBase):
    """Sends a header, or none; in either case nothing of a .netrc."""

    def __init__(self, authorization: str) -> None:
        self.authorization = authorization

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.authorization:
            request.headers["Authorization"] = self.authorization
        return request


def _place(url: str) -> tuple[str, int]:
    """Host and port of an address."""
    parts = _parsed(url)
    return parts.host or "", parts.port or (443 if parts.scheme == "https" else 80)


def _parsed(url: str) -> Url:
    """An address as requests takes it: parsers differ in what the host of http://a\\@b/ is."""
    try:
        return parse_url(url)
    except LocationParseError:
        raise ImageError(
            f"{shown_url(url)}: expected an http or https address; correct it"
        ) from None


def _body(response: requests.Response, most: int, end: float) -> bytes:
    """The body of an answer, up to the limits of bytes and time."""
    where, data = shown_url(response.url), bytearray()
    if is_page(response):
        raise ImageError(f"{where} is a web page, expected an image; check the address")
    for chunk in response.iter_content(CHUNK):
        data += chunk
        if len(data) > most:
            raise ImageError(f"{where} gives more than {most:,} bytes; make the image smaller")
        if time.monotonic() > end:
            raise ImageError(f"{where} takes more than {SECONDS:g} s; make the image smaller")
    return bytes(data)


def _of_data_address(address: str, most: int) -> bytes:
    """The bytes of an address that has them in itself."""
    head, _, body = address.partition(",")
    if not re.fullmatch(r"data:image/[^,]*;base64", head):
        raise ImageError(
            f"{shown(head, 60)}: expected a data: address of an image in base64, such as "
            "data:image/png;base64,..."
        )
    if len(body) > most * 4 // 3 + 4:
        raise ImageError(f"a data: address of more than {most:,} bytes; make the image smaller")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):  # ValueError: a character that is not ASCII
        raise ImageError("a data: address that is no base64; write it anew") from None
