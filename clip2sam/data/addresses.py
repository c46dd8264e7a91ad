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

_SECRET = re.compile(
    r"(.*[-_.])?(sig|signature|key|auth|pwd|policy)|.*(token|secret|passw(or)?d|credentials?)"
    r"|.*(accesskeyid|accessid|apikey)",
    re.IGNORECASE,
)
"""Names of a query's parts whose values give access: they are not shown."""

_SIGNATURE = re.compile(r"(x-amz-|x-goog-)?signature|sig", re.IGNORECASE)
_SIGNING = re.compile(
    r"(x-amz-|x-goog-).*|signature|awsaccesskeyid|googleaccessid|key-pair-id|expires|policy"
    r"|sig|s[vertp]|sip|spr|srt|sk[estv]|skoid|sktid",  # the last line: Azure's
    re.IGNORECASE,
)
"""Names of the parts that a signature is made of: they differ each time that it is made."""

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
        secret = _SECRET.fullmatch(part["name"])
        return f"{part['start']}{part['name']}=***" if secret else part[0]

    return _PART.sub(hidden, re.sub(r"://[^/?#\s]*@", "://", text))


def without_access(url: str) -> str:
    """An address without its name and password, and, where it is signed, without all that signs it:
    the same whenever and by whomever it is signed."""
    if not is_url(url):
        return url
    bare, mark, query = re.sub(r"://[^/?#]*@", "://", url).partition("?")
    parts = [(part.partition("=")[0], part) for part in query.split("&")]
    if any(_SIGNATURE.fullmatch(name) for name, _ in parts):
        parts = [(name, part) for name, part in parts if not _SIGNING.fullmatch(name)]
    return bare + (mark if parts else "") + "&".join(part for _, part in parts)


def plain_address(url: str) -> str:
    """An address without slashes at its end, but those of the scheme."""
    return re.sub(r"(?<=[^/:])/+$", "", url)


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
