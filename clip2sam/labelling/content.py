"""What a run has recorded, whole or in shards, read one part after another."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clip2sam.data.images import printable
from clip2sam.data.records import ImageRecord
from clip2sam.errors import ConfigError, RunError
from clip2sam.labelling.fingerprint import check_same
from clip2sam.labelling.journal import Index, read_index, read_records
from clip2sam.labelling.manifest import MANIFEST, RunFolder, Work, open_run
from clip2sam.labelling.plan import FOLDER, Plan, Shard, check_part, digest, is_sharded, open_plan

Parts = Callable[[], Iterator[tuple[RunFolder, Index]]]

NAMED = 8
"""So many shards are named in a message; the others are counted."""


@dataclass(frozen=True)
class Content:
    """A run's records, and what is known of the run as a whole. Only one part of it is in memory at
    a time: of a run in shards one shard."""

    run: RunFolder
    """Of a run in shards: what all shards agree on, the work of all of them, and no images."""
    images: int
    """All that the run has, recorded or not."""
    parts: Parts
    """Each part's own run, and the index of its journal; read anew at each call."""
    runs: Callable[[], Iterator[RunFolder]]
    """The same without the journals."""

    def records(self) -> Iterator[ImageRecord]:
        """The records of all images that have one, in the order of the source.

        Raises:
            RunError: a journal and its manifest don't belong together.
        """
        for _, recorded in self.records_of_parts():
            yield from recorded

    def records_of_parts(self) -> Iterator[tuple[RunFolder, Iterator[ImageRecord]]]:
        """The same, with each part's own run, which has the source of its images.

        Raises:
            RunError: as `records`.
        """
        for run, index in self.parts():
            yield run, _records(run, index)

    def check_lines(self) -> None:
        """Warn of lines that were passed over.

        Raises:
            RunError: that is all that a journal has.
        """
        for run, index in self.parts():
            name = printable(run.journal)
            if not index.offsets and run.journal.exists() and run.journal.stat().st_size:
                raise RunError(
                    f"{name}: no line of this journal can be read, so there is nothing to take "
                    "from it; get a whole copy of it, or label again"
                )
            if index.passed_over:
                warnings.warn(
                    f"{name}: {index.passed_over} of its lines can't be read, or are about images "
                    "that this run doesn't have, and were passed over; start the run again to "
                    "label them",
                    stacklevel=3,
                )

    def reader(self) -> Callable[[str], str | bytes]:
        """What reads an image by its name, as `Source.read`; of a run in shards from the source of
        its shard, as only that has the names. To be asked in the order of `records`."""
        runs, keys, source = self.runs(), frozenset[str](), self.run.source

        def read(key: str) -> str | bytes:
            nonlocal keys, source
            while key not in keys:
                run = next(runs, None)
                if run is None:
                    raise RunError(
                        f"{printable(key)}: expected the name of an image of this run, in the "
                        "order of its source"
                    )
                keys, source = frozenset(run.keys), run.source
            assert source is not None  # of the same kind as that of the whole
            return source.read(key)

        return read

    def check_output(self, output: Path) -> None:
        """Refuse an output that would overwrite the run itself, or lie where its images are read.

        Raises:
            ConfigError: it would.
        """
        self.run.check_output(output)
        shards = (self.run.path / FOLDER).resolve()
        if is_sharded(self.run.path) and output.resolve().is_relative_to(shards):
            raise ConfigError(
                f"{printable(output)} lies among the run's own shards; give another output"
            )


def _records(run: RunFolder, index: Index) -> Iterator[ImageRecord]:
    keys = dict(zip(run.ids, run.keys, strict=True))
    for record in read_records(run.journal, index, run.ids, run.class_names):
        if record.file_name != keys[record.image_id]:
            raise RunError(
                f"{printable(run.journal)}: the journal's image {record.image_id} has "
                "another name than the manifest's; they belong to different runs"
            )
        yield record


def content_of(run: RunFolder, index: Index) -> Content:
    """What a run without shards has recorded."""
    return Content(run, len(run.keys), lambda: iter([(run, index)]), lambda: iter([run]))


def open_content(path: Path) -> Content:
    """What a run has recorded, finished or not.

    Raises:
        RunError: the folder is no run, its manifest or plan is damaged, its journal can't be read,
            or its shards don't belong together.
    """
    if not is_sharded(path):
        run = open_run(path)
        return content_of(run, read_index(run.journal, run.ids))
    plan = open_plan(path)
    begun = [n for n in range(1, plan.shards + 1) if (plan.folder(n) / MANIFEST).exists()]
    if not begun:
        raise RunError(f"{printable(path)}: no shard of this run has begun; label them first")
    return Content(
        _head(plan, begun),
        plan.images,
        lambda: _shards(plan, begun),
        lambda: (run for run, _ in _shards(plan, begun, indexed=False)),
    )


def open_complete(path: Path) -> Content:
    """What a run in shards has recorded, if that is all: each image in one shard, and none without
    a line in its journal.

    Raises:
        RunError: shards are missing, not finished, or don't belong together; or it has none.
    """
    plan = open_plan(path)
    missing = [n for n in range(1, plan.shards + 1) if not (plan.folder(n) / MANIFEST).exists()]
    if missing:
        raise RunError(
            f"{printable(path)}: {_named(missing)} of {plan.shards} {_have(missing)} not begun; "
            f"label {'it' if len(missing) == 1 else 'them'}, as with --shard "
            f"{Shard(missing[0], plan.shards)}"
        )
    content, todo = open_content(path), dict[int, int]()

    def listed() -> Iterator[tuple[int, str]]:
        """All images, with a look at what is left to do of each shard."""
        for number, (run, index) in enumerate(content.parts(), 1):
            if left := sum(image_id not in index.offsets for image_id in run.ids):
                todo[number] = left
            yield from zip(run.ids, run.keys, strict=True)

    sha256 = digest(listed())
    if todo:
        raise RunError(
            f"{printable(path)}: {_named(list(todo))} of {plan.shards} {_have(list(todo))} "
            f"{sum(todo.values())} images without a line in the journal; start "
            f"{'it' if len(todo) == 1 else 'them'} again, as with --shard "
            f"{Shard(min(todo), plan.shards)}"
        )
    if sha256 != plan.sha256:
        raise RunError(
            f"{printable(path)}: the shards' images together are not those of the plan; a list in "
            "it has changed: label into a new folder"
        )
    return content


def _named(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    shown = ", ".join(map(str, numbers[:NAMED]))
    return f"shard{'' if len(numbers) == 1 else 's'} {shown}{more}"


def _have(numbers: Sequence[int]) -> str:
    return "has" if len(numbers) == 1 else "have"


def _shards(
    plan: Plan, numbers: Sequence[int], *, indexed: bool = True
) -> Iterator[tuple[RunFolder, Index]]:
    """Shards that have begun, each opened when it is its turn.

    Args:
        indexed: False: with an empty index each; the journals are not read.
    """
    for number in numbers:
        run = open_run(plan.folder(number))
        yield run, read_index(run.journal, run.ids) if indexed else Index()


def _head(plan: Plan, numbers: Sequence[int]) -> RunFolder:
    """What shards agree on, as a run without images.

    Raises:
        RunError: they don't belong together.
    """
    first: RunFolder | None = None
    began, work, devices = [], Work(), dict[str, None]()
    for number, (run, _) in zip(numbers, _shards(plan, numbers, indexed=False), strict=True):
        check_part(plan, number, run.ids, run.keys)
        first = first or run
        check_like(first, run.fingerprint, run.threads)
        began.append(run.started or "")
        work += run.work
        devices |= dict.fromkeys(run.devices)
    assert first is not None  # whoever calls has found one
    started = min(filter(None, began), default=None)
    return replace(
        first, path=plan.path, keys=(), ids=(), started=started, work=work, devices=tuple(devices)
    )


def check_like(other: RunFolder, marks: dict[str, object], threads: int) -> None:
    """Refuse a shard that is labelled in another way than another one.

    Args:
        other: the other shard.
        marks, threads: the shard's fingerprint, and its PyTorch threads.

    Raises:
        RunError: the message names what differs.
    """
    check_same(
        {**other.fingerprint, "threads": other.threads},
        {**marks, "threads": threads},
        what=f"the shard {printable(other.path.name)} of this run",
    )


def begun_run(path: Path) -> RunFolder | None:
    """The run in a folder, or of one in shards the first shard that has begun; None if none has.

    Raises:
        RunError: its plan or manifest is damaged, or of another version.
    """
    if is_sharded(path):
        return begun_shard(open_plan(path))
    return open_run(path) if (path / MANIFEST).exists() else None


def begun_shard(plan: Plan) -> RunFolder | None:
    """The first of the shards that have begun, if any has."""
    begun = (folder for folder in plan.folders() if (folder / MANIFEST).exists())
    found = next(begun, None)
    return None if found is None else open_run(found)
