"""Images of a dataset that lie at addresses: below a folder of a store, those that match a glob, or
those that a list names.

The key of an image of a list is its address without "https://", or with the scheme as the first
folder: `host/a.jpg` is https://host/a.jpg, `s3/bucket/a.jpg` is s3://bucket/a.jpg. So keys stay as
they are when the list grows or is sorted, and lead back to the image without the list. An address
for which that isn't so (a query, a password, a character that no name of a file may have) is looked
up in the list: its key ends in "~" and 16 hexadecimal digits of its SHA-256. What signs an address
doesn't count there, see `without_access`: signed anew, it is the same image.
"""

import hashlib
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit

from clip2sam.data.addresses import (
    HERE,
    SCHEMES,
    WEB,
    check_address,
    is_url,
    plain_address,
    scheme_of,
    shown_url,
    without_access,
    without_secrets,
)
from clip2sam.data.files import cut_to_bytes
from clip2sam.data.images import SUFFIXES, printable
from clip2sam.data.remote import check_there, found, is_glob
from clip2sam.data.sources import LIST_SUFFIXES, PathLike, checked_key, list_entries, none_found
from clip2sam.data.urls import fetch_image
from clip2sam.errors import ConfigError, ImageError

LISTED = "https://"
"""The root of all lists."""

_MARKED = re.compile(r"~[0-9a-f]{16}(\.[A-Za-z0-9]+)?")
"""How a key ends whose address is looked up."""

_looking_up = threading.Lock()


@dataclass(frozen=True)
class RemoteSource:
    """Images at addresses."""

    origin: str
    """The address of a folder, glob or image, or the absolute path of a list of addresses."""
    root: str
    """The address that all keys are below; of a list LISTED."""
    keys: tuple[str, ...]
    """Sorted by their bytes, each once."""
    ids: tuple[int, ...]
    """1, 2, 3, ... in the order of the keys."""

    def read(self, key: str) -> bytes:
        """The bytes at an image's address.

        Raises:
            ImageError: see `fetch_image`; or the list has the image no longer.
        """
        return fetch_image(self.address(key), key)

    def address(self, key: str) -> str:
        """Where an image is, with all that access needs: not for messages and files.

        Raises:
            ImageError: it is to be looked up in the list, which can't be read or has it no longer.
        """
        if is_url(self.origin):
            return f"{_folder(self.root)}{key}"
        if not _is_marked(key):
            return _address_of(key)
        with _looking_up:  # by one thread, and once
            looked_up = self._looked_up
        if key not in looked_up:
            raise ImageError(
                f"{printable(key)}: {printable(self.origin)} has its address no longer; put it back"
            )
        return looked_up[key]

    @cached_property
    def _looked_up(self) -> dict[str, str]:
        """The addresses of those keys that don't tell them: the first one that the list has."""
        wanted = {key: key for key in self.keys if _is_marked(key)}
        addresses: dict[str, str] = {}
        for _, entry in list_entries(self.origin):
            if (key := key_of(entry)) in wanted:
                addresses.setdefault(wanted[key], entry)
        return addresses


def is_remote(given: object) -> bool:
    """Whether a source is an address, or a list whose first entry is one.

    Raises:
        ImageError: the list can't be read.
    """
    if is_url(given):
        return True
    if not isinstance(given, str | os.PathLike):
        return False
    path = os.fspath(given)
    if not path.lower().endswith(LIST_SUFFIXES) or not os.path.isfile(path):
        return False
    return is_url(next((entry for _, entry in list_entries(path)), ""))


def find_remote(given: PathLike, root: PathLike | None = None) -> RemoteSource:
    """List the images of what `is_remote`.

    Args:
        given: the address of a folder (all levels), of a glob or of an image; or a list. Of a list,
            each entry is an image: one that is no good address, too, which fails when it is read.
        root: the address that the keys are below; by default the folder itself, the one in front of
            a glob's first wildcard, or that of the image. Not of a list.

    Raises:
        ImageError: a folder can't be listed, or no image is found; the root is another one.
    """
    if is_url(given):
        return _in_store(str(given), None if root is None else os.fspath(root))
    if root not in (None, LISTED):
        raise ImageError(
            f"{printable(given)}: this list has addresses, which are below no root; leave out "
            "--root (root)"
        )
    path = os.path.abspath(given)
    return _source(path, LISTED, (key_of(entry) for _, entry in list_entries(path)))


def check_remote(given: PathLike, *, offline: bool = False) -> None:
    """Find out in front of a long job whether what `is_remote` can be asked: by one request; of a
    list by none, as any of its images may be gone.

    Raises:
        ImageError: it can't.
        ConfigError: the network is needed and not to be used.
    """
    entries = [str(given)] if is_url(given) else (entry for _, entry in list_entries(given))
    far = next((one for one in entries if scheme_of(one) not in HERE), None)
    if offline and far is not None:
        raise ConfigError(
            f"{shown_url(far)} is an address, but the network is not to be used (offline); leave "
            "it out, or allow the network"
        )
    if is_url(given):
        check_open(str(given))
        check_there(_in_front(str(given)))


def key_of(entry: str) -> str:
    """The name of a list's image: of no other image of any list, whatever it is."""
    scheme = scheme_of(entry)
    rest = entry[len(scheme) + len("://") :]
    key = (
        rest if scheme == "https" else f"{scheme}/{rest.lstrip('/') if scheme == 'file' else rest}"
    )
    if scheme in SCHEMES and _is_name(key) and _address_of(key) == entry:
        return key
    same = without_access(entry)
    mark = hashlib.sha256(same.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    bare = re.sub(r"[?#].*", "", same, flags=re.DOTALL) if is_url(entry) else same
    name = re.sub(r'[\\:*?"<>|]', "_", printable(bare.removeprefix(LISTED).replace("://", "/")))
    ending = re.search(r"[.][A-Za-z0-9]{1,10}$", name)
    whole = name[: ending.start()] if ending else name
    parts = [cut_to_bytes(part, 100) for part in whole.split("/") if part.strip(". ")]
    return f"{'/'.join(parts[:20]) or 'image'}~{mark}{ending[0] if ending else ''}"


def _address_of(key: str) -> str:
    """The address that a key without a mark stands for."""
    scheme, _, rest = key.partition("/")
    if scheme == "file":
        return f"file:///{rest}"
    return f"{scheme}://{rest}" if scheme in SCHEMES and scheme != "https" else f"https://{key}"


def _is_name(key: str) -> bool:
    """Whether a key can be a file's name as it is, and shows no password and no query."""
    try:
        same = checked_key(key, "") == key
    except ImageError:
        return False
    odd = re.search(r'[\\:*?"<>|#]|^[^/]*@|^http/[^/]*@', key)
    return same and printable(key) == key and odd is None and not _is_marked(key)


def _is_marked(key: str) -> bool:
    return "~" in key and _MARKED.fullmatch(key, key.rindex("~")) is not None


def _in_store(url: str, root: str | None) -> RemoteSource:
    check_open(url)
    alone = scheme_of(url) in WEB and not is_glob(url) and _is_image(urlsplit(url).path)
    names = [url] if alone else found(url)
    alone = names == [url]
    if not alone and not is_glob(url):
        names = [name for name in names if _is_image(name)]
    top = _folder(root or (url.rpartition("/")[0] if alone else _in_front(url)))
    if outside := next((name for name in names if not name.startswith(top)), None):
        raise ImageError(
            f"{shown_url(outside)}: this image lies outside of the root {shown_url(top)}; give "
            "another --root"
        )
    return _source(plain_address(url), plain_address(top), (name[len(top) :] for name in names))


def check_open(url: str) -> None:
    """Refuse what would bring a password or a signature into a run's files.

    Raises:
        ImageError: as said, or it is no good address.
    """
    check_address(url)
    check_address(_in_front(url))  # a bucket has no wildcard
    if without_secrets(url) != url:
        raise ImageError(
            f"{shown_url(url)}: a name, a password or a signature in this address would be kept in "
            "the run's files; give credentials by the environment (AWS_..., HF_TOKEN, ~/.netrc), "
            "or the address in a list"
        )


def _in_front(url: str) -> str:
    """A folder itself, or the one in front of a glob's first wildcard."""
    if not is_glob(url):
        return url
    start = re.split(r"[*?\[]", url, maxsplit=1)[0]
    return start.rpartition("/")[0]


def _folder(url: str) -> str:
    return url if url.endswith("/") else f"{url}/"


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _source(origin: str, root: str, keys: Iterable[str]) -> RemoteSource:
    chosen = tuple(sorted(set(keys), key=os.fsencode))
    if not chosen:
        raise none_found(origin)
    return RemoteSource(origin, root, chosen, tuple(range(1, len(chosen) + 1)))
