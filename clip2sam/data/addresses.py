"""Addresses as text: which are known, how they are shown, and what of them is a secret."""

import re
from urllib.parse import urlsplit

from clip2sam.data.images import printable
from clip2sam.errors import ImageError

WEB = ("http", "https")
HERE = ("file", "memory")
"""Schemes that need no network."""
SCHEMES = (*WEB, "s3", "gs", "hf", *HERE)
"""What an address may begin with, in lower case."""

SIGNING = re.compile(
    r"""x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|key-pair-id|expires|policy
    |s[vertpsi]|sip|spr|srt|sk[a-z]{1,3}  # Azure's
    |.*(sig|token|secret|password|passwd|credential|auth|api_?key).*|key|pwd""",
    re.IGNORECASE | re.VERBOSE,
)
"""Names of a query's parts that only give access: they differ each time that an address is signed,
and who has them has the image."""

_PART = re.compile(r"(?P<start>[?&;])(?P<name>[^=&;#\s]+)=(?P<value>[^&#\s'\")]*)")


def is_url(text: object) -> bool:
    """Whether something is meant as an address: a scheme and two slashes."""
    return isinstance(text, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def scheme_of(url: str) -> str:
    """An address's scheme in lower case; empty if it has none."""
    return url.partition("://")[0].lower() if is_url(url) else ""


def shown_url(url: str) -> str:
    """An address for messages and files: without a name, a password or a signature."""
    return printable(without_secrets(url))


def without_secrets(text: str) -> str:
    """A text without the names, passwords and signatures of the addresses in it."""

    def hidden(part: re.Match[str]) -> str:
        secret = SIGNING.fullmatch(part["name"])
        return f"{part['start']}{part['name']}=***" if secret else part[0]

    return _PART.sub(hidden, re.sub(r"://[^/?#\s]*@", "://", text))


def check_address(url: str, schemes: tuple[str, ...] = SCHEMES) -> None:
    """Refuse what is no address, or one that nothing here can read.

    Raises:
        ImageError: as said; without secrets.
    """
    try:
        parts = urlsplit(url)
        place = bool(parts.hostname) or (scheme_of(url) in HERE and bool(parts.netloc + parts.path))
    except ValueError:  # half of an IPv6 address
        place = False
    # fsspec takes "::" for an address inside another one
    nested = "::" in url and scheme_of(url) not in WEB
    if scheme_of(url) not in schemes or not place or nested:
        names = [f"{scheme}://" for scheme in schemes]
        raise ImageError(
            f"{shown_url(url)}: expected an address that begins with {', '.join(names[:-1])} or "
            f"{names[-1]} and names a host or bucket, or a path; correct it"
        )
