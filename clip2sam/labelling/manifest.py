"""A run's folder: the manifest that freezes what is labelled and how, the lock, and the names of its files."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from clip2sam.data.files import as_json, atomic_file, disk_errors
from clip2sam.data.images import printable
from clip2sam.data.labels import LabelClass
from clip2sam.data.sources import Source
from clip2sam.errors import RunError, RunLockedError
from clip2sam.labelling import journal

MANIFEST = "manifest.json"
LOCK = "lock"
FORMAT = 1
"""Of the manifest and the journal; a run in another one is refused."""


@dataclass(frozen=True)
class RunFolder:
    """A run that has begun: what can be known of it without the models."""

    path: Path
    source: Source
    fingerprint: dict[str, Any]
    threads: int
    """PyTorch's threads at the start. They are part of the arithmetic on a CPU: another number, other last digits."""

    @property
    def journal(self) -> Path:
        return self.path / journal.FILE

    @cached_property
    def classes(self) -> tuple[LabelClass, ...]:
        """The classes that are exported, in the user's order."""
        rows = self.fingerprint["labels"]["classes"]
        return tuple(
            LabelClass(**{**r, "prompts": tuple(r["prompts"])}) for r in rows if not r["distractor"]
        )

    @cached_property
    def thresholds(self) -> tuple[float | None, ...]:
        """The presence threshold of each of `classes`; None: no decision is taken."""
        general = self.fingerprint["config"]["presence"]
        return tuple(general if c.threshold is None else c.threshold for c in self.classes)

    @cached_property
    def floors(self) -> tuple[float | None, ...]:
        """The presence score of each of `classes` down to which the journal has masks; None: it has them all."""
        kept = self.fingerprint["keep_above"]
        return tuple(t if t is None or kept is None else min(t, kept) for t in self.thresholds)


@contextmanager
def lock_run(path: Path) -> Iterator[None]:
    """Make the run's folder and hold its lock, or raise `RunLockedError` at once. The lock ends with the process."""
    lock = FileLock(path / LOCK)
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunLockedError(
                f"{printable(path)}: another process works on this run; wait for it, or give another output folder"
            ) from error
    try:
        yield
    finally:
        lock.release()


def begin_run(path: Path, source: Source, fingerprint: dict[str, Any]) -> RunFolder:
    """Freeze a new run's pictures and settings in its manifest."""
    if (path / journal.FILE).exists():
        raise RunError(
            f"{printable(path)}: there is a journal but no {MANIFEST}, so it can't be known what was labelled; give "
            "another output folder"
        )
    rows = {"format": FORMAT, "fingerprint": fingerprint, "threads": torch.get_num_threads()}
    rows |= {"source": source.origin, "root": source.root}
    with atomic_file(path / MANIFEST) as file:
        file.write(as_json({**rows, "ids": source.ids, "pictures": source.keys}).encode() + b"\n")
    return open_run(path)


def open_run(path: Path) -> RunFolder:
    """A run that has begun. Raises `RunError` if the folder is none, or its manifest is damaged."""
    manifest = path / MANIFEST
    try:
        rows = json.loads(manifest.read_bytes())
        if rows["format"] != FORMAT:
            raise RunError(
                f"{printable(manifest)}: expected a run in format {FORMAT}, got {rows['format']!r}"
            )
        ids = None if rows["ids"] is None else tuple(rows["ids"])
        source = Source(rows["source"], rows["root"], tuple(rows["pictures"]), ids)
        return RunFolder(path, source, rows["fingerprint"], rows["threads"])
    except OSError as error:
        raise RunError(
            f"{printable(path)}: expected the output folder of 'clip2sam label', but its {MANIFEST} can't be read "
            f"({error.strerror}); check the path"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{printable(manifest)}: this manifest is damaged ({error}); start in a new folder"
        ) from error


def check_same_source(
    run: RunFolder, source: str | os.PathLike[str], root: str | os.PathLike[str] | None
) -> None:
    """Raise `RunError` if other pictures are asked for than those that the run began with."""
    for what, then, now in (
        ("source", run.source.origin, os.path.abspath(source)),
        ("root", run.source.root, run.source.root if root is None else os.path.abspath(root)),
    ):
        if then != now:
            raise RunError(
                f"{printable(run.path)}: this run began with the {what} {printable(then)}, now it is {printable(now)}; "
                "start in a new output folder"
            )
