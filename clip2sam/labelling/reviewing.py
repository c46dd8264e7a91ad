"""A person's decisions about a run's images, as lines of its journal."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import cast, get_args

from clip2sam.coco.document import checked_masks
from clip2sam.data.images import MAX_PIXELS, Image, printable
from clip2sam.data.records import Annotation, ImageRecord, Review, Verdict
from clip2sam.data.sources import FileSource
from clip2sam.errors import ConfigError, ImageError, RunError
from clip2sam.labelling.content import Content, open_content
from clip2sam.labelling.decide import Decision, decide, decided_for, decided_thresholds
from clip2sam.labelling.decode_worker import load_named
from clip2sam.labelling.journal import Index, Journal, Stamp, file_stamp, is_other, read_record
from clip2sam.labelling.lock import lock_run
from clip2sam.labelling.manifest import RunFolder, open_run, time_now
from clip2sam.labelling.plan import is_sharded, open_plan


@dataclass
class _Part:
    """A run without shards, or one shard."""

    run: RunFolder
    index: Index
    journal: Journal | None = None
    """Once something was written."""


def open_review(run: str | os.PathLike[str], *, by: str = "") -> "RunReview":
    """Open a run, finished or not, for a person's decisions. Use it as a context manager.

    Args:
        run: the output folder of `label_dataset`, whole or in shards.
        by: who decides; written beside each decision.

    Raises:
        RunError: the folder is no run, or its parts don't belong together.
        RunLockedError: it is at work, or somebody else reviews it.
    """
    return RunReview(Path(run), by)


class RunReview:
    """A run that a person goes through. Nobody else can label, merge or review it meanwhile.

    Each decision is a line of the journal, brought to the disk before `write` returns. It is
    replaced by another decision only: not by a retry, and not by labelling again. If an image
    itself is changed and labelled again, what was decided about the old one stays in the journal
    and no longer counts.

    Every part's index stays in memory: some 300 bytes an image. A shard is locked at the first
    decision about one of its images.
    """

    def __init__(self, path: Path, by: str = "") -> None:
        self._by, self._stack = by, ExitStack()
        # in front of the lock, whose files would be made in any folder; no journal is read yet
        open_plan(path) if is_sharded(path) else open_run(path)
        with ExitStack() as stack:
            self._lock = stack.enter_context(lock_run(path))
            self.content: Content = open_content(path)
            """What was recorded when the review began; `content.run` has classes and thresholds."""
            self._parts = [_Part(run, index) for run, index in self.content.parts()]
            self._stack = stack.pop_all()
        self.run: RunFolder = self.content.run
        """Of a run in shards: without images."""
        self._decision = decided_for(self.run, Decision())
        self._thresholds = decided_thresholds(self.run, self._decision)
        pairs = ((n, i, k) for n, p in enumerate(self._parts) for i, k in _images(p.run))
        self._places = {image_id: (n, key) for n, image_id, key in pairs}

    def __enter__(self) -> "RunReview":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the run free. Everything that was decided is on the disk already."""
        self._stack.close()

    @property
    def ids(self) -> tuple[int, ...]:
        """Of all recorded images, in the order of the source."""
        return tuple(i for p in self._parts for i in p.run.ids if i in p.index.offsets)

    @property
    def decided(self) -> frozenset[int]:
        """Ids of the images that a person has decided about."""
        return frozenset(i for p in self._parts for i in p.index.proposed)

    def records(self) -> Iterator[ImageRecord]:
        """What counts now of every recorded image, in the order of the source: a person's decision,
        or else what the model found, with the masks that the run's thresholds leave out."""
        return (self.record(image_id) for image_id in self.ids)

    def record(self, image_id: int) -> ImageRecord:
        """What counts now of an image.

        Raises:
            RunError: the run has not recorded such an image.
        """
        part, _ = self._part(image_id)
        return _read(part, part.index.offsets[image_id])

    def proposed(self, image_id: int) -> ImageRecord:
        """What the model found in an image, also if a person has decided about it since.

        Raises:
            RunError: as `record`.
        """
        part, _ = self._part(image_id)
        at = part.index.proposed.get(image_id, part.index.offsets[image_id])
        return _read(part, at)

    def kept(self, record: ImageRecord) -> tuple[Annotation, ...]:
        """The annotations of a record that `export` writes by default."""
        if record.state == "failed":
            return ()
        names = self.run.class_names
        return decide(record, self._decision, names, self._thresholds).annotations

    def image(self, image_id: int) -> Image:
        """Read an image from the run's source.

        Raises:
            ImageError: it can't be read, or has changed since it was labelled: the masks are of the
                old one.
            RunError: as `record`; or the run was made of a source of the user's own, which is not
                known here.
        """
        part, key = self._part(image_id)
        source = part.run.source
        if source is None:
            raise RunError(
                f"{printable(part.run.path)}: this run was labelled from a source object, so its "
                "images can't be read again; review a run of files, tars or Parquet files"
            )
        data = source.read(key)
        self._same_file(part, image_id)
        return load_named(data, key, part.run.fingerprint.get("max_pixels", MAX_PIXELS))

    def write(
        self,
        image_id: int,
        verdict: str,
        annotations: Sequence[Annotation] | None = None,
        *,
        size: tuple[int, int] | None = None,
    ) -> ImageRecord:
        """Write a decision. When this returns, it is on the disk.

        Args:
            verdict: "accepted", "corrected" or "rejected", see `Review`.
            annotations: the masks as they are right now; None (not if corrected): those that the
                run itself keeps.
            size: (height, width) of the image in pixels, for one that failed.

        Returns:
            The record as it counts from now on.

        Raises:
            ConfigError: another verdict, corrected without annotations, or an image that failed and
                is not corrected.
            ImageError: the image's file has changed since it was labelled.
            CocoError: an annotation doesn't fit the image, see `checked_masks`.
            RunError: as `record`.
            RunLockedError: the image's shard is at work.
            OutputError: the disk is full, or the journal can't be written; then nothing is.
        """
        part, _ = self._part(image_id)
        record = self._decided(self.record(image_id), verdict, annotations, size)
        for _ in checked_masks(record, self.run.classes):
            """Nothing is written that no exporter would take."""
        journal = self._opened(part)
        journal.append(record, self._same_file(part, image_id))
        journal.sync()
        return record

    def _decided(
        self,
        record: ImageRecord,
        verdict: str,
        annotations: Sequence[Annotation] | None,
        size: tuple[int, int] | None,
    ) -> ImageRecord:
        where = printable(record.file_name)
        if verdict not in get_args(Verdict):
            raise ConfigError(
                f"{where}: the verdict must be one of {', '.join(get_args(Verdict))}, but got "
                f"{verdict!r}"
            )
        if verdict == "corrected" and annotations is None:
            raise ConfigError(f"{where}: a correction needs the annotations as they are right")
        if record.state == "failed" and verdict != "corrected":
            raise ConfigError(
                f"{where}: this image failed, so there is nothing to be {verdict}; correct it with "
                "masks of your own, or label it again (--retry-failed)"
            )
        made = self.kept(record) if annotations is None else tuple(annotations)
        order = {name: n for n, name in enumerate(self.run.class_names)}
        made = tuple(sorted(made, key=lambda a: (order.get(a.label, -1), -a.score)))
        if record.state == "failed":
            none = (None,) * len(order)
            record = replace(
                record, size=size or (0, 0), presence=none, beaten=(False,) * len(none)
            )
        return replace(
            record,
            state="done" if made else "empty",
            reason="",
            annotations=made,
            review=Review(cast(Verdict, verdict), self._by, time_now()),
        )

    def _same_file(self, part: _Part, image_id: int) -> Stamp | None:
        """The stamp of an image's file, if it is the one that was labelled; with the SHA-256 of its
        bytes, so that a decision outlives a new time: copying a file or touching it gives it one.
        """
        then, source = part.index.stamps.get(image_id), part.run.source
        if then is None or not isinstance(source, FileSource):
            return then
        key = self._places[image_id][1]
        now = file_stamp(source.read(key), hashed=True)
        if now is not None and is_other(then, now):
            raise ImageError(
                f"{printable(key)}: changed since it was labelled, so its masks don't belong to "
                "it; start 'clip2sam label' on the run again, then review"
            )
        return now or then  # a decision about masks can be taken where the image is not

    def _part(self, image_id: int) -> tuple[_Part, str]:
        """An image's part and key."""
        number, key = self._places.get(image_id, (0, ""))
        part = self._parts[number]
        if not key or image_id not in part.index.offsets:
            raise RunError(
                f"{printable(self.run.path)}: expected the id of an image that was labelled, got "
                f"{image_id}"
            )
        return part, key

    def _opened(self, part: _Part) -> Journal:
        if part.journal is None:
            lock = self._lock
            with ExitStack() as stack:
                if part.run.path != self.run.path:
                    lock = stack.enter_context(lock_run(part.run.path))
                run = part.run
                journal = Journal(run.journal, run.ids, run.class_names, lock.check)
                stack.enter_context(closing(journal))
                self._stack.push(stack.pop_all())
            part.journal, part.index = journal, journal.index
        return part.journal


def _images(run: RunFolder) -> Iterator[tuple[int, str]]:
    return zip(run.ids, run.keys, strict=True)


def _read(part: _Part, offset: int) -> ImageRecord:
    with open(part.run.journal, "rb") as file:
        return read_record(file, offset, part.run.class_names)
