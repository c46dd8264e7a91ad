"""Connections to the web for weights and images alike: certificates, proxies, the hub's mirror. One
HTTP library (requests) for all of them.
"""

import os
import re
from pathlib import Path

import requests
from huggingface_hub import constants
from requests.utils import get_environ_proxies, select_proxy

from clip2sam.errors import Clip2SamError

HUB = "https://huggingface.co"
"""The hub's own address; HF_ENDPOINT names another one, such as a mirror."""
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
"""Environment variables that name a file of certificates; the first that is set counts."""


def address(url: str) -> str:
    """Where the file of that published address is requested: an address of the hub at HF_ENDPOINT,
    if that is set."""
    return constants.ENDPOINT + url[len(HUB) :] if url.startswith(f"{HUB}/") else url


def certificates(kind: type[Clip2SamError]) -> str | bool:
    """The file of certificates that the environment names; True if it names none.

    Args:
        kind: of the error.

    Raises:
        Clip2SamError: of that kind: an environment variable names a file of certificates that isn't
            there.
    """
    name, bundle = _bundle()
    if bundle and not Path(bundle).exists():
        raise kind(
            f"{name} names the certificates {bundle}, but there is no such file; correct the "
            "variable, or unset it"
        )
    return bundle or True


def session(kind: type[Clip2SamError]) -> requests.Session:
    """Connections with the proxies and certificates that the environment names.

    Raises:
        Clip2SamError: see `certificates`.
    """
    made = requests.Session()
    made.verify = certificates(kind)  # requests itself doesn't know SSL_CERT_FILE
    return made


def surroundings(url: str) -> str:
    """What the environment does to connections with that address, for messages of failures; empty
    if nothing. A proxy's password is left out."""
    parts, here = [], address(url)
    if constants.ENDPOINT != HUB and here.startswith(f"{constants.ENDPOINT}/"):
        parts.append(f"HF_ENDPOINT is {constants.ENDPOINT}")
    proxy = select_proxy(here, get_environ_proxies(here))
    if proxy:
        parts.append(f"through the proxy {without_password(proxy)}")
    name, bundle = _bundle()
    if bundle and here.startswith("https:"):
        parts.append(f"certificates of {name}={bundle}")
    return ", ".join(parts)


def without_password(proxy: str) -> str:
    """A proxy's address without the name and the password in it, for messages."""
    return re.sub(r"//[^/@]*@", "//***@", proxy)


def is_page(response: requests.Response) -> bool:
    """Whether an answer calls itself a web page."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml")


def _bundle() -> tuple[str, str]:
    """The variable that names certificates, and the file; both empty if none does."""
    return next(((name, os.environ[name]) for name in BUNDLES if os.environ.get(name)), ("", ""))
