"""Images in tar files: WebDataset's shards, img2dataset's folders.

Nothing is unpacked to disk: a listing reads the members' headers and notes where their bytes are,
and an image is read from that place. Members that are no images are passed over. Links, devices,
folders and sparse files are no images, whatever their name. A sample's images (`1.left.jpg`,
`1.right.jpg`) are images of their own.
"""

import re
import tarfile
import threading
import warnings
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import BinaryIO, NamedTuple, cast

from clip2sam.data.containers import find_containers, open_container, read_all, read_range
from clip2sam.data.images import SUFFIXES, printable
from clip2sam.data.remote import MAX_BYTES
from clip2sam.data.sources import PathLike, checked_key
from clip2sam.errors import ImageError, one_line

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
TAR_SUFFIXES = (".tar", *COMPRESSED)

_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""How compressed files begin."""

BLOCK = 512
"""Bytes of a header; it stands directly in front of its member's bytes."""

MOST_EXTENSION = 1 << 16
"""Bytes of a header's extension (a long name, attributes): more is damage or malice."""

TARS_AT_HAND = 8
"""So many tars have their members looked up by a dict: readers are in one or two at a time."""


@dataclass(frozen=True)
class TarSource:
    """Images in tars. Readers may call it from any number of threads."""

    origin: str
    """As of `FileSource`; addresses as they were given."""
    root: str
    """Absolute path of the folder, or address, that all keys are relative to."""
    keys: tuple[str, ...]
    """The tar below the root, "/", the member: "00000.tar/000000012.jpg". The tars are sorted by
    the bytes of their names, the members have the tar's order."""
    ids: tuple[int, ...]
    """1, 2, 3, ... in the order of the keys."""
    _places: "_Places" = field(default_factory=lambda: _Places(), compare=False, repr=False)

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The tars, relative to the root."""
        return tuple(dict.fromkeys(map(tar_of, self.keys)))

    @cached_property
    def units(self) -> tuple[int, ...]:
        """The numbers of consecutive images that are in one tar."""
        return tuple(sum(1 for _ in images) for _, images in groupby(self.keys, tar_of))

    def read(self, key: str) -> bytes:
        """An image's encoded bytes.

        Raises:
            ImageError: its name can't be a file's; the tar is gone, cut or another one than when it
                was listed; the image has more than MAX_BYTES.
        """
        tar = tar_of(key)
        _check_name(key[len(tar) + 1 :], tar)
        start, size, mark = self._places.find(self.root, tar, key)
        if size > MAX_BYTES:
            raise ImageError(
                f"{printable(key)}: expected at most {MAX_BYTES} bytes, got {size}; make the image "
                "smaller"
            )
        data = read_range(self.root, tar, start - BLOCK, start + size)
        if len(data) < BLOCK or zlib.crc32(data[:BLOCK]) != mark:
            raise ImageError(
                f"{printable(key)}: this tar is another one than when it was listed; start again, "
                "with --retry-failed"
            )
        if len(data) < BLOCK + size:
            raise ImageError(f"{printable(key)}: the tar is cut here; get a whole copy of it")
        return data[BLOCK:]


def find_tars(given: PathLike | Sequence[PathLike], root: PathLike | None = None) -> TarSource:
    """List the images in tars.

    Of a tar that is cut or damaged, what is in front of that is listed. Where a tar has several
    members of one name, the last one counts, as when it is unpacked. Warnings say so.

    Args:
        given: see `find_containers`.
        root: as for `find_source`; of addresses an address.

    Raises:
        ImageError: see `find_containers`; or a tar is compressed, or no image is found.
    """
    found = find_containers(given, root, TAR_SUFFIXES)
    keys: list[str] = []
    places = _Places()
    for tar in found.names:
        _check_plain(tar)
    for tar in found.names:
        scan = _scan(found.root, tar)
        _say(tar, scan)
        keys += scan.found
        places.add(tar, _Members(scan.found))
    if not keys:
        raise _none_found(found.names)
    ids = tuple(range(1, len(keys) + 1))
    return TarSource(found.origin, found.root, tuple(keys), ids, places)


def check_tars(given: PathLike | Sequence[PathLike], root: PathLike | None = None) -> None:
    """Find out whether there is an image, without listing them all.

    Raises:
        ImageError: as `find_tars`, for tars up to the first that has an image.
    """
    found = find_containers(given, root, TAR_SUFFIXES)
    for tar in found.names:
        _check_plain(tar)
        with open_container(found.root, tar) as file:
            try:
                if any(True for _ in _images(file, tar)):
                    return
            except _Damaged:
                continue
    raise _none_found(found.names)


def _check_plain(tar: str) -> None:
    """Refuse a compressed tar, and folders whose names would be taken for a tar's."""
    if tar.lower().endswith(COMPRESSED):
        raise _compressed(tar)
    if tar_of(f"{tar}/") != tar:
        raise ImageError(
            f"{printable(tar)}: a folder in this path ends in .tar, as the tars in keys do; rename "
            "it, or give a --root below it"
        )


def _compressed(tar: str) -> ImageError:
    return ImageError(
        f"{printable(tar)}: this tar is compressed, so an image can't be read at its place in it; "
        "decompress it to a .tar (images are compressed anyway)"
    )


def _none_found(tars: Sequence[str]) -> ImageError:
    return ImageError(
        f"no image found in {len(tars)} tars, {printable(tars[0])} among them: looked for names "
        f"ending in {', '.join(SUFFIXES)}"
    )


def tar_of(key: str) -> str:
    """The tar that a key is in, relative to the root: up to the first ".tar" that is followed by a
    slash, so that no member's name chooses the file.

    Raises:
        ImageError: it is in none.
    """
    found = re.search(r"\.tar(?=/)", key, re.IGNORECASE | re.ASCII)
    if found is None:
        raise ImageError(f"{printable(key)}: expected a tar and a name in it; correct the name")
    return key[: found.end()]


def _check_name(name: str, tar: str) -> None:
    """Nothing is ever written by a member's name here, but exports name files by it."""
    try:
        checked_key(name, printable(tar))
    except ImageError as error:
        raise ImageError(
            f"{printable(tar)}: expected a member's name below the tar, with no '..' and no '/' in "
            f"front, got {printable(name)!r}; write the tar anew"
        ) from error


class _Damaged(Exception):
    """What is wrong with a tar, behind the members that are good."""


class _Place(NamedTuple):
    """Where a member's bytes are in its tar."""

    start: int
    size: int
    mark: int
    """CRC-32 of its header, by which another tar at its place is noticed."""


class _Members:
    """Where the images of a tar are, in some 30 bytes each beside their keys."""

    def __init__(self, found: Mapping[str, _Place]) -> None:
        self.keys = tuple(found)
        self._starts = array("q", (place.start for place in found.values()))
        self._sizes = array("q", (place.size for place in found.values()))
        self._marks = array("I", (place.mark for place in found.values()))

    def by_key(self) -> dict[str, _Place]:
        places = map(_Place, self._starts, self._sizes, self._marks)
        return dict(zip(self.keys, places, strict=True))


class _Places:
    """Where the images of a source are. Tars that were not listed are scanned when they are first
    asked for, once each."""

    def __init__(self) -> None:
        self._members: dict[str, _Members] = {}
        self._at_hand: OrderedDict[str, dict[str, _Place]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["_Places"], tuple[()]]:
        return _Places, ()  # in another process they are found again

    def add(self, tar: str, members: _Members) -> None:
        """Note the images of a tar."""
        self._members[tar] = members

    def find(self, root: str, tar: str, key: str) -> _Place:
        """Where an image is.

        Raises:
            ImageError: it is not in the tar, or the tar can't be read.
        """
        with self._lock:
            place = self._of(root, tar).get(key)
        if place is None:
            raise ImageError(
                f"{printable(key)}: no longer in its tar, where it was when it was listed; put it "
                "back, then use --retry-failed"
            )
        return place

    def _of(self, root: str, tar: str) -> dict[str, _Place]:
        if tar not in self._at_hand:
            if tar not in self._members:
                self._members[tar] = _Members(_scan(root, tar).found)
            self._at_hand[tar] = self._members[tar].by_key()
            while len(self._at_hand) > TARS_AT_HAND:
                self._at_hand.popitem(last=False)
        self._at_hand.move_to_end(tar)
        return self._at_hand[tar]


class _Scan(NamedTuple):
    """What the headers of a tar say."""

    found: dict[str, _Place]
    """By key, in the tar's order: its images."""
    twice: list[str]
    """Keys of members that came again: the last one of each counts."""
    fault: str
    """What is wrong with the tar behind them, if anything."""


def _scan(root: str, tar: str) -> _Scan:
    found: dict[str, _Place] = {}
    twice: list[str] = []
    with open_container(root, tar) as file:
        try:
            for key, place in _images(file, tar):
                if key in found:
                    twice.append(key)
                found[key] = place
        except _Damaged as error:
            return _Scan(found, twice, str(error))
    return _Scan(found, twice, "")


def _say(tar: str, scan: _Scan) -> None:
    if scan.fault:
        warnings.warn(
            f"{printable(tar)}: {scan.fault}; the {len(scan.found)} images in front of that are "
            "taken; get a whole copy of it",
            stacklevel=3,
        )
    if scan.twice:
        warnings.warn(
            f"{printable(tar)}: {len(scan.twice)} images have the name of an earlier one, "
            f"{printable(scan.twice[0])} for one; the last one of each name is taken",
            stacklevel=3,
        )


def _images(file: BinaryIO, tar: str) -> Iterator[tuple[str, _Place]]:
    """Key and place of each image of a tar.

    Raises:
        ImageError: it is compressed.
        _Damaged: at the end, if it doesn't end as a tar does.
    """
    headers = _Headers(file)
    try:
        archive = tarfile.open(  # noqa: SIM115  # the file is not its own, closing does nothing
            fileobj=cast(BinaryIO, headers), mode="r:", encoding="utf-8", errors="surrogateescape"
        )
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
            if member.size < 0:  # the next header would be an earlier one
                raise _Damaged(f"the header at byte {member.offset} leads backwards")
            is_file = member.isreg() and not member.issparse()
            if is_file and member.name.lower().endswith(SUFFIXES):
                mark = zlib.crc32(headers.last)
                yield _key(tar, member.name), _Place(member.offset_data, member.size, mark)
    except tarfile.TarError as error:
        if headers.first.startswith(_MAGIC):
            raise _compressed(tar) from error
        raise _Damaged(f"cut or damaged at byte {file.tell()} ({one_line(error)})") from error
    except (OSError, ValueError, OverflowError, RecursionError) as error:  # sizes out of the world
        raise _Damaged(f"damaged at byte {headers.at} ({one_line(error)})") from error
    if headers.last != bytes(BLOCK):  # tarfile takes whatever it can't read for the end
        what = "damaged" if len(headers.last) == BLOCK else "cut"
        raise _Damaged(f"{what} at byte {headers.at}, where its end mark was expected")


def _key(tar: str, name: str) -> str:
    """The key of a member. A name that is no good stays as it is, and fails when it is read."""
    try:
        return f"{tar}/{checked_key(name, tar)}"
    except ImageError:
        return f"{tar}/{name}"


class _Headers:
    """A file as tarfile reads the headers of: nothing large is read, whatever they say."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.first = b""
        """The first bytes that were read."""
        self.last = b""
        """What was read last: behind a regular file's header, that header."""
        self.at = 0
        """Where that began, in bytes."""

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MOST_EXTENSION:
            raise tarfile.ReadError(f"a header of {count} bytes")
        self.at = self._file.tell()
        self.last = read_all(self._file, count)
        self.first = self.first or self.last
        return self.last

    def seek(self, place: int) -> int:
        return self._file.seek(place)

    def tell(self) -> int:
        return self._file.tell()
