"""What a worker does: load the models once, then label one shard after another.

A worker is an actor of Ray. Between it and the driver there are only the records of this file.
"""

import platform
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from clip2sam import __version__
from clip2sam.data.images import printable
from clip2sam.data.labels import LabelSet
from clip2sam.data.records import ImageRecord
from clip2sam.errors import Clip2SamError, RunError, UnknownLabelWarning
from clip2sam.labelling.changes import StartCounts
from clip2sam.labelling.content import begun_shard
from clip2sam.labelling.engine import KeepAbove, SegmenterEngine
from clip2sam.labelling.lock import owner_of
from clip2sam.labelling.plan import Plan, Shard
from clip2sam.labelling.run import Recipe, label_dataset_iter, loaded_engine

SECONDS_PER_REPORT = 0.5
REASONS = 20
"""So many failures of a report come with their reasons; the others are counted."""


@dataclass(frozen=True)
class Task:
    """What all workers of a run are told."""

    plan: Plan
    token: str
    """Of the driver's lock: who sees it there sees the driver's folder."""
    labels: LabelSet
    models: Recipe
    preset: str
    keep_above: KeepAbove
    options: Mapping[str, Any]
    """For `label_dataset_iter`."""


@dataclass(frozen=True)
class Ready:
    """The models are loaded."""

    node: str
    versions: str


@dataclass(frozen=True)
class Report:
    """What became of a shard since the last report."""

    todo: int | None = None
    """In the first one: the images that were left to do."""
    images: int = 0
    failed: int = 0
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Warnings."""


@dataclass(frozen=True)
class Refusal:
    """An error that a user can cause."""

    kind: str
    """The name of its class."""
    message: str


def versions() -> str:
    """Of what the results depend on beside the fingerprint."""
    return f"clip2sam {__version__}, torch {torch.__version__}"


class ShardWorker:
    """The actor."""

    def __init__(self, task: Task) -> None:
        self._task, self._stopping = task, threading.Event()
        self._notes: list[str] = []

    def start(self) -> Ready | Refusal:
        """Check the folder, and load the models."""
        warnings.showwarning = self._note
        task = self._task
        try:
            owner = owner_of(task.plan.path)
            if owner is None or owner.token != task.token:
                raise RunError(
                    f"{printable(task.plan.path)}: a worker on {platform.node()} doesn't see the "
                    "folder that the driver works in; a run by Ray needs an output folder on "
                    "storage that all machines share, under the same path"
                )
            begun = begun_shard(task.plan)
            self._engine = loaded_engine(
                task.models, task.labels, task.keep_above, begun, _LoadedEngine
            )
        except Clip2SamError as error:
            return Refusal(type(error).__name__, str(error))
        return Ready(platform.node(), versions())

    def label(self, number: int) -> Iterator[Report | Refusal]:
        """Label what is left to do of a shard. The last report is followed by nothing; a refusal is
        the last word."""
        tally = _Tally(self._notes)
        plan = self._task.plan
        try:
            records = label_dataset_iter(
                plan.part(number),
                self._task.labels,
                plan.path,
                engine=self._engine,
                preset=self._task.preset,
                shard=Shard(number, plan.shards),
                on_start=tally.start,
                **self._task.options,
            )
            with closing(records):
                for record in records:
                    tally.add(record)
                    if self._stopping.is_set():
                        break
                    if tally.is_due:
                        yield tally.report()
        except Clip2SamError as error:
            yield tally.report()
            yield Refusal(type(error).__name__, str(error))
        else:
            yield tally.report()

    def stop(self) -> None:
        """End the shard behind the image that is worked on."""
        self._stopping.set()

    def _note(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        """In place of `warnings.showwarning`. Unknown labels are in the run's summary."""
        if issubclass(category, UserWarning) and not issubclass(category, UnknownLabelWarning):
            self._notes.append(str(message))


class _LoadedEngine(SegmenterEngine):
    """An engine for many shards, whose weights are hashed once."""

    def fingerprint(self) -> dict[str, Any]:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        return super().fingerprint()


class _Tally:
    """Counts of a shard between two reports."""

    def __init__(self, notes: list[str]) -> None:
        self._todo: int | None = None
        self._notes, self._reasons = notes, list[str]()
        self._images = self._failed = 0
        self._reported = time.monotonic()

    def start(self, _: object, counts: StartCounts) -> None:
        self._todo = counts.todo

    def add(self, record: ImageRecord) -> None:
        self._images += 1
        if record.state == "failed":
            self._failed += 1
            self._reasons.append(record.reason)

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._reported >= SECONDS_PER_REPORT

    def report(self) -> Report:
        notes = tuple(self._notes)
        told = Report(self._todo, self._images, self._failed, tuple(self._reasons[:REASONS]), notes)
        del self._notes[: len(notes)]
        self._todo, self._images, self._failed, self._reasons = None, 0, 0, []
        self._reported = time.monotonic()
        return told
