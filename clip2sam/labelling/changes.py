"""Images that were changed, replaced, added, removed or moved since a run began."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clip2sam.data.images import printable
from clip2sam.data.opening import kind_of
from clip2sam.data.sources import FileSource, Source
from clip2sam.errors import ImageError, RunError
from clip2sam.labelling.journal import Journal, Stamp, file_stamp, is_other, read_record
from clip2sam.labelling.manifest import RunFolder, add_device, check_source, extend_run

Changed = Literal["again", "refuse"]
"""What becomes of images that were changed since they were labelled, added or removed: a warning
names them, and those that are there are labelled (again); or the start is refused."""

NAMED = 5
"""So many images are named; the others are counted."""


@dataclass(frozen=True)
class Found:
    """What became of the images that a run has."""

    changed: set[int] = field(default_factory=set)
    """Ids of those whose file is another one than when it was read."""
    gone: set[str] = field(default_factory=set)
    """Keys of those that are no longer in the source."""
    stamps: dict[int, Stamp] = field(default_factory=dict)
    """By id: new stamps of files that are the same all the same, see `write_stamps`."""


@dataclass(frozen=True)
class StartCounts:
    """What a start of a run found, in numbers of images."""

    begins: bool
    """Whether it is the run's first one."""
    listed: int
    """All that the run has."""
    todo: int
    """Those that are to be labelled."""
    new: int = 0
    """Added to the source since the run began; in the list from this start on."""
    changed: int = 0
    """Changed since they were labelled."""
    gone: int = 0
    """No longer in the source; what was labelled of them stays."""


def find_changes(
    run: RunFolder,
    source: Source,
    stamps: Mapping[int, Stamp],
    changed: Changed,
    *,
    hashed: bool = False,
    moved: bool = False,
) -> Found:
    """Compare a run's images with what its source has now.

    Gone is an image that the source has no longer, or whose file was there and is not. Changed is
    one whose file has another size, or another content where the journal has its SHA-256, or else
    another time (mtime). Files of a `FileSource` only: another source may give a new file each
    time.

    Args:
        stamps: by image id, those of the journal.
        hashed: read every file that has a SHA-256 in the journal, and not only those with another
            time.
        moved: the times don't count: a copy may have others.

    Raises:
        RunError: there are some, and they are to be refused.
    """
    found, listed, names = Found(), frozenset(source.keys), []
    for image_id, key in zip(run.ids, run.keys, strict=True):
        then = stamps.get(image_id)
        now: Stamp | None = None
        if key not in listed:
            found.gone.add(key)
        elif then is not None and isinstance(source, FileSource):
            try:
                now = _stamp_now(source.read(key), then, hashed)
            except ImageError:  # now it is a link that leads out of the root: reading it says so
                now = Stamp(-1, 0)
            if now is None:
                found.gone.add(key)
            elif is_other(then, now, moved):
                found.changed.add(image_id)
                names.append(key)
            elif (kept := now._replace(sha256=now.sha256 or then.sha256)) != then:
                found.stamps[image_id] = kept
    gone = [key for key in run.keys if key in found.gone]
    _say(run, gone, "are no longer in the source", changed, "what was labelled of them is kept")
    _say(run, names, "were changed since they were labelled", changed)
    return found


def say_reviewed(run: RunFolder, ids: Collection[int]) -> None:
    """Warn of changed images that a person had decided on: what was decided is of the old image.
    Its lines stay in the journal."""
    keys = [key for image_id, key in zip(run.ids, run.keys, strict=True) if image_id in ids]
    _say(run, keys, "that were reviewed have changed", "again", "they are to be reviewed again")


def _stamp_now(path: str, then: Stamp, hashed: bool) -> Stamp | None:
    """A file's stamp, with its hash where that is asked for or tells more than the time."""
    now = file_stamp(path)
    if now is None or now.size != then.size:
        return now
    if hashed or (then.sha256 is not None and now.time != then.time):
        return file_stamp(path, hashed=True)
    return now._replace(sha256=then.sha256)


def reading(source: Source, gone: Collection[str]) -> Callable[[str], str | bytes]:
    """`Source.read`, which isn't asked for images that are gone: they are an `ImageError`."""

    def read(key: str) -> str | bytes:
        if key in gone:
            raise ImageError(
                f"{printable(key)}: no longer in the source, where it was when the run began; put "
                "it back, then use --retry-failed"
            )
        return source.read(key)

    return read


def goes_on_on(run: RunFolder, device: str) -> RunFolder:
    """The run, with the kind of device that its next images are computed on. A warning says so if
    it is none that it was on: the same image may get other single pixels there.

    Args:
        device: such as "cpu"; "" if the engine doesn't say.

    Raises:
        OutputError: the manifest can't be written.
    """
    if not device or device in run.devices:
        return run
    if run.devices:
        warnings.warn(
            f"{printable(run.path)}: begun on {', '.join(run.devices)}, goes on on {device}: "
            "single pixels of masks may differ from those that it would have had there",
            stacklevel=2,
        )
    return add_device(run, device)


def write_stamps(journal: Journal, stamps: Mapping[int, Stamp]) -> None:
    """Write the lines of some images anew, with other stamps of their files: they were moved, or
    touched, or have a hash now.

    Raises:
        OutputError: the journal can't be written.
    """
    if not stamps:
        return
    with open(journal.path, "rb") as file:
        for image_id, stamp in stamps.items():
            record = read_record(file, journal.index.offsets[image_id], journal.classes)
            journal.append(record, stamp)
    journal.sync()


def nothing_moved(path: Path) -> RunError:
    """The refusal of a run that is said to have moved where none has begun."""
    return RunError(
        f"{printable(path)}: expected a run whose images were moved, but none has begun there; "
        "check the output folder, or leave out --moved (moved=True)"
    )


def check_moved(path: Path, keys: Sequence[str], source: Source) -> None:
    """Refuse a new place that has less than half of a run's images.

    Args:
        path: the run's folder.
        keys: its images' names.
        source: the new place.

    Raises:
        RunError: it has not.
    """
    there = frozenset(source.keys)
    if isinstance(source, FileSource):  # a list may name files that are not there
        there = frozenset(key for key in keys if key in there and _is_there(source, key))
    found = sum(key in there for key in keys)
    if 2 * found < len(keys):
        raise RunError(
            f"{printable(path)}: expected this run's images in {printable(source.origin)}, but "
            f"only {found} of {len(keys)} are there; check the source and its root, or start "
            "in a new output folder"
        )


def _is_there(source: FileSource, key: str) -> bool:
    try:
        return file_stamp(source.read(key)) is not None
    except ImageError:
        return False


def take_in_new(run: RunFolder, source: Source, changed: Changed) -> RunFolder:
    """The run, with the images that its source has got since behind those that it had.

    They keep the ids that a COCO file or a source of the user's own gives them; else they get the
    next free ones.

    Raises:
        RunError: there are some, and they are to be refused; or the source's ids are other ones
            than when the run began, or it is of another kind.
        ImageError: the source's ids or keys are not what `Source` asks for.
        OutputError: the manifest can't be written.
    """
    check_source(source)
    if (kind := kind_of(source)) != run.kind and source.origin == run.origin:
        then, now = (name or "of an object" for name in (run.kind, kind))
        raise RunError(
            f"{printable(run.path)}: this run began with images of the kind {then!r}, now the "
            f"source has others in front of them ({now!r}); remove these, or start in a new output "
            "folder"
        )
    known = dict(zip(run.keys, run.ids, strict=True))
    new = [(k, i) for k, i in zip(source.keys, source.ids, strict=True) if k not in known]
    if _has_own_ids(source):
        _check_ids(run, source, known)
    else:
        first = max(run.ids, default=0) + 1
        new = [(key, first + n) for n, (key, _) in enumerate(new)]
    _say(run, [key for key, _ in new], "were added since the run began", changed)
    return extend_run(run, [k for k, _ in new], [i for _, i in new]) if new else run


def _has_own_ids(source: Source) -> bool:
    return kind_of(source) is None or source.origin.lower().endswith(".json")


def _check_ids(run: RunFolder, source: Source, known: dict[str, int]) -> None:
    names = {image_id: key for key, image_id in known.items()}
    for key, image_id in zip(source.keys, source.ids, strict=True):
        then = f"{printable(key)} {known.get(key, image_id)}"
        if known.get(key, image_id) == image_id:
            then = f"{printable(names.get(image_id, key))} {image_id}"
        now = f"{printable(key)} {image_id}"
        if then != now:
            raise RunError(
                f"{printable(run.path)}: the source gives image ids other than when the run began: "
                f"then {then}, now {now}; start in a new output folder"
            )


def _say(
    run: RunFolder,
    keys: Sequence[str],
    what: str,
    changed: Changed,
    otherwise: str = "they are labelled now",
) -> None:
    if not keys:
        return
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    found = (
        f"{printable(run.path)}: {len(keys)} images {what}: "
        f"{', '.join(map(printable, keys[:NAMED]))}{more}"
    )
    if changed == "refuse":
        raise RunError(
            f"{found}; put the old ones back, start in a new output folder, or go on with what is "
            "there (changed='again')"
        )
    warnings.warn(f"{found}; {otherwise}", stacklevel=2)
