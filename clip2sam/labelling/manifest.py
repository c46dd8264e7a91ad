"""A run's folder: the manifest, which says what is labelled and how; and the names of its files.

How is frozen when the run begins. Images are only added, behind the others and under new ids.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clip2sam.data import sources
from clip2sam.data.files import as_json, output_errors, write_atomically
from clip2sam.data.images import printable
from clip2sam.data.labels import LabelClass, class_from_row, class_row
from clip2sam.data.opening import KINDS, kind_of, origin_of, source_of
from clip2sam.data.sources import Source
from clip2sam.errors import ConfigError, ImageError, RunError, one_line
from clip2sam.labelling import journal
from clip2sam.labelling.lock import LOCK, OWNER

MANIFEST = "manifest.json"
FORMAT = 3
"""Of the manifest and the journal. Runs in another one are refused."""


@dataclass(frozen=True)
class Work:
    """What starts of a run did."""

    images: int = 0
    """Labelled; one that was labelled again counts again."""
    seconds: float = 0.0
    """From the first image on."""
    waited_for_images: float = 0.0
    """Seconds for which the model had no image."""
    waited_for_writer: float = 0.0
    """Seconds for which the model had no room for what it made."""

    def __add__(self, other: "Work") -> "Work":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Work(*(one + more for one, more in pairs))


@dataclass(frozen=True)
class RunFolder:
    """A run that has begun: what is known of it without the models."""

    path: Path
    origin: str
    """What identifies the source, see `Source.origin`."""
    root: str | None
    """What the keys are relative to: of files the absolute path of a folder; None for a source of
    the user's own."""
    keys: tuple[str, ...]
    """The images' names."""
    ids: tuple[int, ...]
    """The images' COCO ids."""
    classes: tuple[LabelClass, ...]
    """The classes that are exported, in the user's order."""
    thresholds: tuple[float | None, ...]
    """The presence threshold of each of `classes`; None: no decision is taken."""
    floors: tuple[float | None, ...]
    """The presence score of each of `classes` down to which the journal has masks; None: it has
    them all."""
    min_share: float
    """The share from which on an annotation of the journal is shown, see `Annotation.share`."""
    fingerprint: dict[str, Any]
    threads: int
    """PyTorch's threads at the start. On a CPU they are part of the arithmetic: another number
    gives other last digits."""
    started: str | None = None
    """When the run began, see `time_now`; None if it isn't known."""
    work: Work = Work()
    """What all starts did, those that were killed excepted."""
    kind: str | None = None
    """The source's, see `clip2sam.data.opening`; None for a source of the user's own."""
    devices: tuple[str, ...] = ()
    """The kinds of devices that images were computed on, such as "cpu", the first one in front;
    empty if the engine doesn't say, or of a run that was begun before they were recorded."""

    @property
    def journal(self) -> Path:
        """The journal's path."""
        return self.path / journal.FILE

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of `classes`."""
        return tuple(c.name for c in self.classes)

    @property
    def source(self) -> Source | None:
        """The run's images, not listed anew; None for a source of the user's own."""
        if self.kind is None or self.root is None:
            return None
        return source_of(self.kind, self.origin, self.root, self.keys, self.ids)

    def check_output(self, output: Path) -> None:
        """Refuse an output that would overwrite the run itself, or lie where its images are read.

        Raises:
            ConfigError: it would.
        """
        own = [(self.path / name).resolve() for name in (MANIFEST, LOCK, OWNER, journal.FILE)]
        if output.resolve() in own:
            raise ConfigError(f"{printable(output)} is the run's own file; give another output")
        if (source := self.source) is not None:
            sources.check_output(source, output)


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what a killed process has left of files that it was writing, see `atomic_file`.

    Args:
        folder: the run's, locked.
        names: of its own files: nothing else is touched. Copies of a damaged journal are its own
            too.

    Raises:
        OutputError: one can't be removed.
    """
    own = {name[:40] for name in (OWNER, *names)}
    with output_errors(folder):
        for path in folder.iterdir():
            found = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.tmp", path.name, re.DOTALL)
            if found is None or path.is_dir():
                continue
            if found[1] in own or found[1].startswith(f"{journal.FILE}.damaged-"):
                path.unlink()


def begin_run(
    path: Path,
    source: Source,
    classes: Sequence[LabelClass],
    fingerprint: dict[str, Any],
    *,
    thresholds: Sequence[float | None],
    floors: Sequence[float | None],
    min_share: float,
    threads: int,
    device: str = "",
) -> RunFolder:
    """Freeze a new run's images, classes and settings in its manifest.

    Args:
        path: the run's folder, locked.
        classes: those that are exported.
        fingerprint, thresholds, floors, min_share, threads: as in `RunFolder`.
        device: the first of `RunFolder.devices`; "": the engine doesn't say.

    Raises:
        RunError: the folder has a journal already.
        ConfigError: not one threshold and one floor for each class, or see `time_now`.
        ImageError: the source's ids or keys are not what `Source` asks for.
        OutputError: the manifest can't be written.
    """
    if (path / journal.FILE).exists():
        raise RunError(
            f"{printable(path)}: there is a journal but no {MANIFEST}, so it can't be known what "
            "was labelled; give another output folder"
        )
    if not len(classes) == len(thresholds) == len(floors):
        raise ConfigError(
            f"expected a threshold and a floor for each of {len(classes)} classes, but the engine "
            f"has {len(thresholds)} and {len(floors)}; make the engine for the same labels"
        )
    check_source(source)
    rows = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "threads": threads,
        "started": time_now(),
        "devices": [device] if device else [],
        "classes": [class_row(c) for c in classes],
        "thresholds": list(thresholds),
        "floors": list(floors),
        "min_share": min_share,
        "kind": kind_of(source),
        "source": source.origin,
        "root": root_of(source),
        "ids": list(source.ids),
        "keys": list(source.keys),
    }
    write_atomically(path / MANIFEST, as_json(rows).encode() + b"\n")
    return open_run(path)


def time_now() -> str:
    """The time, UTC, to the second: 2026-11-28T18:00:00Z. If the environment has SOURCE_DATE_EPOCH
    (seconds since 1970), it is that time: then runs of any day give the same files.

    Raises:
        ConfigError: SOURCE_DATE_EPOCH is no such number.
    """
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        now = datetime.now(UTC) if fixed is None else datetime.fromtimestamp(int(fixed), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(
            f"SOURCE_DATE_EPOCH must be a number of seconds since 1970, but got {fixed!r}; unset it"
        ) from error
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def extend_run(run: RunFolder, keys: Sequence[str], ids: Sequence[int]) -> RunFolder:
    """Add images behind those that a run has. Its folder must be locked.

    Raises:
        OutputError: the manifest can't be written; the older one stays.
    """
    longer = replace(run, keys=(*run.keys, *keys), ids=(*run.ids, *ids))
    _rewrite(run, keys=list(longer.keys), ids=list(longer.ids))
    return longer


def move_run(run: RunFolder, source: Source) -> RunFolder:
    """Let a run read its images at another place. Its folder must be locked.

    Raises:
        OutputError: the manifest can't be written; the older one stays.
    """
    kind, root = kind_of(source), root_of(source)
    _rewrite(run, source=source.origin, root=root, kind=kind)
    return replace(run, origin=source.origin, root=root, kind=kind)


def add_device(run: RunFolder, device: str) -> RunFolder:
    """Note that a run goes on on another kind of device. Its folder must be locked.

    Raises:
        OutputError: the manifest can't be written; the older one stays.
    """
    longer = replace(run, devices=(*run.devices, device))
    _rewrite(run, devices=list(longer.devices))
    return longer


def add_work(run: RunFolder, work: Work) -> RunFolder:
    """Count what a start did. The run's folder must be locked.

    Raises:
        OutputError: the manifest can't be written; the older one stays.
    """
    if not work.images:
        return run
    total = run.work + work
    _rewrite(run, work=asdict(total))
    return replace(run, work=total)


def root_of(source: Source) -> str | None:
    """What a source's keys are relative to; None for a source of the user's own."""
    return None if kind_of(source) is None else source.root  # type: ignore[attr-defined]


def _rewrite(run: RunFolder, **changes: Any) -> None:
    rows = json.loads((run.path / MANIFEST).read_bytes())
    write_atomically(run.path / MANIFEST, as_json({**rows, **changes}).encode() + b"\n")


def check_source(source: Source) -> None:
    """A source of the user's own may be wrong in ways that would spoil the run.

    Raises:
        ImageError: keys or ids are there twice, are not as many, or an id is below 1.
    """
    for name, values in (("keys", source.keys), ("ids", source.ids)):
        if len(set(values)) != len(source.keys):
            raise ImageError(
                f"{printable(source.origin)}: expected {len(source.keys)} different {name}, one "
                f"for each image, got {len(set(values))} in {len(values)}; correct the source"
            )
    if min(source.ids, default=1) < 1:
        raise ImageError(
            f"{printable(source.origin)}: expected image ids from 1, got {min(source.ids)}; "
            "correct the source"
        )


def open_run(path: Path) -> RunFolder:
    """A run that has begun.

    Raises:
        RunError: the folder is none, is one of another version, or its manifest is damaged.
    """
    manifest = path / MANIFEST
    try:
        rows = json.loads(manifest.read_bytes())
        if rows["format"] != FORMAT:
            raise RunError(_other_format(path, rows["format"]))
        _check_rows(rows)
        return RunFolder(
            path,
            rows["source"],
            rows["root"],
            tuple(rows["keys"]),
            tuple(rows["ids"]),
            tuple(map(class_from_row, rows["classes"])),
            tuple(rows["thresholds"]),
            tuple(rows["floors"]),
            rows["min_share"],
            rows["fingerprint"],
            rows["threads"],
            rows.get("started"),
            Work(**rows.get("work", {})),
            _kind(rows),
            tuple(rows.get("devices", ())),
        )
    except OSError as error:
        raise RunError(
            f"{printable(path)}: expected the output folder of 'clip2sam label', but its "
            f"{MANIFEST} can't be read ({error.strerror}); check the path"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{printable(manifest)}: this manifest is damaged ({one_line(error)}); start in a new "
            "folder"
        ) from error


def _kind(rows: dict[str, Any]) -> str | None:
    """Older runs have no kind: they are of files, or of objects of the user's own."""
    kind: str | None = rows.get("kind", None if rows["root"] is None else "files")
    return kind


def _check_rows(rows: dict[str, Any]) -> None:
    """A manifest that someone has edited may be JSON and still hold anything."""
    keys, ids, classes = rows["keys"], rows["ids"], rows["classes"]
    n = len(classes)
    good = {
        "source": isinstance(rows["source"], str),
        "root": isinstance(rows["root"], str | None),
        "kind": _kind(rows) in (*KINDS, None) and (_kind(rows) is None) == (rows["root"] is None),
        "keys": _are(keys, str) and len(set(keys)) == len(keys),
        "ids": _are(ids, int)
        and len(set(ids)) == len(ids) == len(keys)
        and min(ids, default=1) >= 1,
        "classes": _are(classes, dict) and all(map(_is_class, classes)),
        "thresholds": _are_numbers(rows["thresholds"]) and len(rows["thresholds"]) == n,
        "floors": _are_numbers(rows["floors"]) and len(rows["floors"]) == n,
        "min_share": _are_numbers([rows["min_share"]]) and 0 <= rows["min_share"] <= 1,
        "fingerprint": isinstance(rows["fingerprint"], dict),
        "threads": _are([rows["threads"]], int) and rows["threads"] >= 1,
        "started": isinstance(rows.get("started"), str | None),
        "work": _is_work(rows.get("work", {})),
        "devices": _are(rows.get("devices", []), str),
    }
    wrong = [name for name, fine in good.items() if not fine]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: not what a run writes")


def _are(values: Any, *kinds: type) -> bool:
    return isinstance(values, list) and all(type(value) in kinds for value in values)


def _are_numbers(values: Any) -> bool:
    return _are(values, int, float, type(None)) and all(map(math.isfinite, filter(None, values)))


def _is_work(row: dict[str, Any]) -> bool:
    values = list(row.values())
    return _are_numbers(values) and None not in values and min(values, default=0) >= 0


def _is_class(row: dict[str, Any]) -> bool:
    return (
        _are([row["name"], row["supercategory"]], str)
        and _are(row["prompts"], str)
        and _are_numbers([row["presence_threshold"]])
        and _are([row["distractor"]], bool)
        and all(map(_is_class, row.get("joined", [])))
        and all(_are(span, int) and len(span) == 2 for span in row.get("spans", []))
    )


def _other_format(path: Path, found: object) -> str:
    older = isinstance(found, int) and found < FORMAT
    return (
        f"{printable(path)}: this run was begun by {'an older' if older else 'another'} version of "
        f"clip2sam (format {found!r}, expected {FORMAT}); label into a new output folder"
    )


def check_same_source(
    path: Path,
    began: tuple[str, str | None],
    source: str | os.PathLike[str] | Source,
    root: str | os.PathLike[str] | None,
) -> None:
    """Refuse other images than those that a run began with. Links are resolved: another way to the
    same folder is the same source.

    Args:
        path: the run's folder.
        began: origin and root of the source that it began with.
        source, root: as for `clip2sam.data.opening.open_source`, or a source.

    Raises:
        RunError: the source, or its root, is another one.
    """
    if isinstance(source, Source):
        origin, top = source.origin, root_of(source)
    else:
        origin = origin_of(source)
        top = (began[1] or origin) if root is None else origin_of(root)
    files = began[1] is not None and top is not None
    for what, then, now in zip(("source", "root"), began, (origin, top), strict=True):
        if then != now and not (files and _resolved(then) == _resolved(now)):
            raise RunError(
                f"{printable(path)}: this run began with the {what} {_named(then)}, now it is "
                f"{_named(now)}; start in a new output folder, or, if the same images were moved "
                "there, give --moved (moved=True)"
            )


def _resolved(places: str | None) -> list[str]:
    """Paths joined by NUL, without links."""
    return [os.path.realpath(place) for place in (places or "").split("\0")]


def _named(place: str | None) -> str:
    return "of an object" if place is None else printable(place)
