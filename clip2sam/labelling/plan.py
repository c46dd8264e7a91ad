"""A run in shards: its images cut into parts, each of which is labelled as a run of its own.

    run/shards/plan.json              what was cut, into how many parts
    run/shards/0003-of-0064/          a shard: images.json, and the files of a run

The plan is made once, by whichever process comes first, with a listing of the source that counts
from then on: it appears whole or not at all, and later ones read it. So all shards agree on names,
ids and borders, on however many machines they run. A shard's images are consecutive ones, so that
what was recorded of them can be joined in the source's order by reading one shard after another.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

from clip2sam.data.files import as_json, output_errors, sync_folder, write_atomically
from clip2sam.data.images import printable
from clip2sam.data.opening import kind_of, open_source, source_of
from clip2sam.data.sources import PathLike, Source, check_output
from clip2sam.errors import ConfigError, RunError, one_line
from clip2sam.labelling.changes import check_moved, nothing_moved
from clip2sam.labelling.manifest import MANIFEST, check_same_source, check_source, root_of
from clip2sam.labelling.storage import check_shared

FOLDER = "shards"
PLAN = "plan.json"
IMAGES = "images.json"
FORMAT = 1
MOST_SHARDS = 100_000

SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")


@dataclass(frozen=True)
class Shard:
    """One of the equal parts of a run."""

    number: int
    """From 1."""
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of <= MOST_SHARDS:
            raise ConfigError(
                f"a shard is given as NUMBER/OF with 1 <= NUMBER <= OF <= {MOST_SHARDS}, as in "
                f"3/64, but got {self.number}/{self.of}"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def folder(self) -> str:
        """The name of its folder. Names are in the order of the numbers."""
        width = max(len(str(self.of)), 4)
        return f"{self.number:0{width}}-of-{self.of:0{width}}"


def as_shard(given: "str | Shard", environ: Mapping[str, str] = os.environ) -> Shard:
    """A shard as it is typed.

    Args:
        given: "3/64"; or "auto": the place of this process in a Slurm array job
            (SLURM_ARRAY_TASK_ID), among the processes that torchrun has started (RANK, WORLD_SIZE),
            or, if there are both, in all of them together.
        environ: where these variables are.

    Raises:
        ConfigError: it is none, or the variables are not there or don't fit together.
    """
    if isinstance(given, Shard):
        return given
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", given)
    if found is not None:
        return Shard(int(found[1]), int(found[2]))
    if given != "auto":
        raise ConfigError(f"a shard is NUMBER/OF, as in 3/64, or auto, but got {given!r}")
    places = [place for place in (_in_slurm_array(environ), _in_torchrun(environ)) if place]
    if not places:
        raise ConfigError(
            "the shard auto needs SLURM_ARRAY_TASK_ID (an array job), or RANK and WORLD_SIZE "
            "(torchrun), but none of them is set; give NUMBER/OF, as in 3/64"
        )
    index, count = 0, 1
    for one, of in places:
        index, count = index * of + one, count * of
    return Shard(index + 1, count)


def _in_slurm_array(environ: Mapping[str, str]) -> tuple[int, int] | None:
    """This task's place from 0, and how many there are; None outside of an array job."""
    if SLURM[0] not in environ:
        return None
    task, first, last = (_number(environ, name) for name in SLURM)
    count, step = _number(environ, "SLURM_ARRAY_TASK_COUNT"), 1
    if "SLURM_ARRAY_TASK_STEP" in environ:
        step = _number(environ, "SLURM_ARRAY_TASK_STEP")
    if (task - first) % max(step, 1) or (last - first) // max(step, 1) + 1 != count:
        raise ConfigError(
            f"the Slurm array has {count} tasks from {first} to {last}, some of which are left "
            "out, so its ids don't say which shard this is; give NUMBER/OF, as in 3/64"
        )
    return _place("SLURM_ARRAY_TASK_ID", (task - first) // max(step, 1), count)


def _in_torchrun(environ: Mapping[str, str]) -> tuple[int, int] | None:
    if "RANK" not in environ and "WORLD_SIZE" not in environ:
        return None
    return _place("RANK", _number(environ, "RANK"), _number(environ, "WORLD_SIZE"))


def _place(name: str, index: int, count: int) -> tuple[int, int]:
    if not 0 <= index < count:
        raise ConfigError(
            f"{name} says that this is the process {index} (from 0) of {count}; give the shard as "
            "NUMBER/OF"
        )
    return index, count


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigError(
            f"the shard auto needs a whole number in the environment variable {name}, but got "
            f"{text!r}; give NUMBER/OF, as in 3/64"
        )
    return int(text)


@dataclass(frozen=True)
class Plan:
    """How a run is cut into shards."""

    path: Path
    """The run's folder."""
    kind: str | None
    origin: str
    root: str | None
    """The source's, as in `RunFolder`."""
    images: int
    """Of all shards."""
    shards: int
    sha256: str
    """Of all images' ids and names, in their order."""
    threads: int
    """PyTorch's threads, in all shards: on a CPU they are part of the arithmetic."""

    def folder(self, number: int) -> Path:
        """A shard's folder."""
        return shard_folder(self.path, Shard(number, self.shards))

    def folders(self) -> list[Path]:
        """Those of all shards, in their order."""
        return [self.folder(number) for number in range(1, self.shards + 1)]

    def part(self, number: int, source: Source | None = None) -> Source:
        """The images of a shard.

        Args:
            source: where they are read, if that isn't where they were when the plan was made; a
                source of the user's own must be given.

        Raises:
            RunError: the shard's list is missing or damaged.
            ConfigError: a source of the user's own is not given.
        """
        ids, keys = self.listed(number)
        origin, root, kind = self.origin, self.root, self.kind
        if source is not None:
            origin, root, kind = source.origin, root_of(source), kind_of(source)
        if kind is not None and root is not None:
            return source_of(kind, origin, root, keys, ids)
        if source is None:
            raise ConfigError(
                f"{printable(self.path)}: the images of this run come from an object; give it again"
            )
        return Part(source, keys, ids)

    def listed(self, number: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Ids and names of a shard's images.

        Raises:
            RunError: the shard's list is missing or damaged.
        """
        path = self.folder(number) / IMAGES
        try:
            rows = json.loads(path.read_bytes())
            return tuple(rows["ids"]), tuple(rows["keys"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(
                f"{printable(path)}: this list of a shard's images can't be used "
                f"({one_line(error)}); start in a new folder"
            ) from error


@dataclass(frozen=True)
class Part:
    """Some images of a source of the user's own, under the names and ids that they have there."""

    source: Source
    keys: tuple[str, ...]
    ids: tuple[int, ...]

    @property
    def origin(self) -> str:
        """The source's."""
        return self.source.origin

    def read(self, key: str) -> str | bytes:
        """As the source does."""
        return self.source.read(key)


def shard_folder(path: Path, shard: Shard) -> Path:
    """Where a shard is labelled, in a run's folder."""
    return path / FOLDER / shard.folder


def is_sharded(path: Path) -> bool:
    """Whether a run's folder has a plan."""
    return (path / FOLDER / PLAN).exists()


def planned(
    path: Path,
    source: PathLike | Source,
    root: PathLike | None,
    shards: int | Callable[[Source], int],
    *,
    threads: int,
    moved: bool = False,
    numbers: Iterable[int] | None = None,
) -> Plan:
    """The plan of a run that is started: made now if it has none; of the same source; and moved, if
    that is asked for.

    Args:
        path: the run's folder. Machines must be able to share it.
        source, root: as for `open_source`, or a source.
        shards, threads: as for `make_plan`.
        moved: the images are at another place than when the plan was made.
        numbers: shards whose images must be there then; by default all.

    Raises:
        RunError: as `make_plan`, `check_shared`, `check_same_source` and `check_moved`.
        ConfigError: the folder lies where images are read.
        ImageError: the source can't be listed.
        OutputError: the plan can't be written.
    """

    def listed() -> Source:
        return source if isinstance(source, Source) else open_source(source, root)

    def to_cut() -> Source:
        found = listed()
        check_output(found, path)
        return found

    if moved and not is_sharded(path):
        raise nothing_moved(path)
    plan = make_plan(path, to_cut, shards, threads=threads)
    check_shared(path)
    if not moved:
        check_same_source(path, (plan.origin, plan.root), source, root)
        return plan
    there = listed()
    for number in range(1, plan.shards + 1) if numbers is None else numbers:
        check_moved(path, plan.listed(number)[1], there)
    return move_plan(plan, there)


def make_plan(
    path: Path,
    listed: Callable[[], Source],
    shards: int | Callable[[Source], int],
    *,
    threads: int,
) -> Plan:
    """The plan of a run: that which is there, or a new one.

    Any number of processes may do that at once, also on several machines that share the folder: the
    first one's plan counts.

    Args:
        path: the run's folder.
        listed: lists the source, if there is no plan.
        shards: how many; or a function that says so of the source, if any number is right that a
            plan has already.
        threads: PyTorch's.

    Raises:
        RunError: the run has begun without shards, or with another number of them.
        ImageError: the source can't be listed, see also `check_source`.
        OutputError: the plan can't be written.
    """
    if not is_sharded(path):
        if (path / MANIFEST).exists():
            raise RunError(
                f"{printable(path)}: this run has begun without shards; go on without them, or "
                "give another output folder"
            )
        source = listed()
        _write_plan(path, source, shards if isinstance(shards, int) else shards(source), threads)
    plan = open_plan(path)
    if isinstance(shards, int) and plan.shards != shards:
        raise RunError(
            f"{printable(path)}: this run has {plan.shards} shards, not {shards}; give one of "
            f"those, 1/{plan.shards} to {plan.shards}/{plan.shards}, or another output folder"
        )
    return plan


def open_plan(path: Path) -> Plan:
    """The plan of a run in shards.

    Raises:
        RunError: there is none, it is one of another version, or it is damaged.
    """
    file = path / FOLDER / PLAN
    try:
        rows = json.loads(file.read_bytes())
        if rows["format"] != FORMAT:
            raise RunError(
                f"{printable(path)}: this run was cut into shards by another version of clip2sam "
                f"(format {rows['format']!r}, expected {FORMAT}); label into a new output folder"
            )
        del rows["format"]
        plan = Plan(path, **rows)
        Shard(plan.shards, plan.shards)
        return plan
    except OSError as error:
        raise RunError(
            f"{printable(path)}: expected a run in shards, but {FOLDER}/{PLAN} can't be read "
            f"({error.strerror}); check the path"
        ) from error
    except (ValueError, KeyError, TypeError, ConfigError, RecursionError) as error:
        raise RunError(
            f"{printable(file)}: this plan is damaged ({one_line(error)}); start in a new folder"
        ) from error


def move_plan(plan: Plan, source: Source) -> Plan:
    """Let a run in shards read its images at another place.

    Raises:
        OutputError: the plan can't be written; the older one stays.
    """
    moved = replace(plan, kind=kind_of(source), origin=source.origin, root=root_of(source))
    if moved != plan:
        _write(plan.path / FOLDER / PLAN, moved)
    return moved


def _write(path: Path, plan: Plan) -> None:
    rows = {"format": FORMAT, **asdict(plan)}
    del rows["path"]
    write_atomically(path, as_json(rows).encode() + b"\n")


def _write_plan(path: Path, source: Source, shards: int, threads: int) -> None:
    """Write it under another name first: it appears whole or, if another one is there, not."""
    check_source(source)
    borders = cut(len(source.keys), shards, getattr(source, "units", ()))
    beside = path / f".{FOLDER}.{secrets.token_hex(4)}.tmp"
    with output_errors(path):
        beside.mkdir(parents=True)
        try:
            for number, (first, end) in enumerate(pairwise(borders), 1):
                rows = {"ids": source.ids[first:end], "keys": source.keys[first:end]}
                name = Shard(number, shards).folder
                write_atomically(
                    beside / name / IMAGES, as_json({k: list(v) for k, v in rows.items()}).encode()
                )
            sha256 = digest(zip(source.ids, source.keys, strict=True))
            origin = (kind_of(source), source.origin, root_of(source))
            _write(beside / PLAN, Plan(path, *origin, len(source.keys), shards, sha256, threads))
            with suppress(OSError):  # a folder with files in it is there: another one was first
                os.rename(beside, path / FOLDER)
            sync_folder(path)
            if not is_sharded(path):
                os.rename(beside, path / FOLDER)  # again, for its error
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def digest(images: Iterable[tuple[int, str]]) -> str:
    """SHA-256 of images' ids and names, in hexadecimal digits."""
    total = hashlib.sha256()
    for image_id, key in images:
        total.update(f"{image_id} {key}\0".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def cut(images: int, shards: int, units: Sequence[int] = ()) -> list[int]:
    """Borders of parts that are as equal as can be: the part n has images border[n] to
    border[n + 1] - 1.

    Args:
        units: numbers of consecutive images that lie together in one file, of all images. If there
            are as many as parts or more, no part begins inside of one.
    """
    borders = [images * n // shards for n in range(shards + 1)]
    if len(units) < shards:
        return borders
    starts = [0, *accumulate(units)]
    return [_nearest(starts, border) for border in borders]


def _nearest(starts: Sequence[int], place: int) -> int:
    after = bisect_left(starts, place)
    return min(starts[max(after - 1, 0) : after + 1], key=lambda start: abs(start - place))


def remove_unused_plans(path: Path) -> None:
    """Remove what processes have left that were killed while they made a plan.

    Args:
        path: the folder of a run that has a plan.
    """
    for left in path.glob(f".{FOLDER}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def check_part(plan: Plan, number: int, ids: Sequence[int], keys: Sequence[str]) -> None:
    """Refuse a shard that has other images than the plan gives it.

    Raises:
        RunError: it has.
    """
    if (tuple(ids), tuple(keys)) != plan.listed(number):
        raise RunError(
            f"{printable(plan.folder(number))}: the images of this shard are not those that the "
            f"plan gives to {Shard(number, plan.shards)}; its folder is that of another shard or "
            "run: move it away, then label the shard again"
        )
