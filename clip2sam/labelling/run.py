"""A run over a dataset, from the first image to the files."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from clip2sam.config import finite_number, whole_number
from clip2sam.data.images import MAX_PIXELS, printable
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.data.opening import open_source
from clip2sam.data.records import ImageRecord
from clip2sam.data.sources import FileSource, Source, check_output
from clip2sam.errors import ConfigError, RunError
from clip2sam.export import Exporter
from clip2sam.labelling.changes import (
    Changed,
    Found,
    StartCounts,
    check_moved,
    find_changes,
    goes_on_on,
    nothing_moved,
    reading,
    say_reviewed,
    take_in_new,
    write_stamps,
)
from clip2sam.labelling.content import begun_shard, check_like, content_of
from clip2sam.labelling.decode_worker import Budget, DecodeWorker
from clip2sam.labelling.engine import Engine, KeepAbove, SegmenterEngine, engine_device
from clip2sam.labelling.fingerprint import check_same, check_thresholds, fingerprint
from clip2sam.labelling.flow import run_flow
from clip2sam.labelling.journal import Journal
from clip2sam.labelling.lock import RunLock, lock_run
from clip2sam.labelling.manifest import (
    MANIFEST,
    RunFolder,
    add_work,
    begin_run,
    check_same_source,
    move_run,
    open_run,
    remove_leftovers,
    root_of,
)
from clip2sam.labelling.outputs import (
    FORMATS,
    checked_formats,
    of_shard,
    own_exporters,
    own_files,
)
from clip2sam.labelling.plan import (
    Plan,
    Shard,
    as_shard,
    is_sharded,
    open_plan,
    planned,
)
from clip2sam.labelling.summary import (
    PRESENCE,
    SUMMARY,
    Clock,
    Summary,
    check_exporters,
    publish,
)
from clip2sam.models.loading import load
from clip2sam.models.presets import Preset
from clip2sam.pipeline import LabelsLike, Segmenter

IMAGES_IN_FLIGHT = 8
"""Images between the model and the journal, unless told otherwise."""

TIMEOUT = 60.0
"""Seconds that decoding one image may take, unless told otherwise."""

StrPath = str | os.PathLike[str]
Recipe = str | Preset | Callable[[], Segmenter | Engine]
"""A preset's name, a preset, or a function that loads a segmenter, or an engine."""

Models = str | Preset | Segmenter | Callable[[], Segmenter]
OnStart = Callable[[RunFolder, StartCounts], Any]


def label_dataset(
    source: StrPath | Source,
    labels: LabelsLike,
    output: StrPath,
    *,
    segmenter: Models = "tiny",
    engine: Engine | None = None,
    exporters: Mapping[str, Exporter] | None = None,
    formats: Sequence[str] = FORMATS,
    on_image: Callable[[ImageRecord], Any] | None = None,
    on_start: OnStart | None = None,
    distractors: Sequence[str] = (),
    root: StrPath | None = None,
    batch_size: int = IMAGES_IN_FLIGHT,
    readers: int | None = None,
    keep_above: KeepAbove = "auto",
    retry_failed: bool = False,
    changed: Changed = "again",
    moved: bool = False,
    hash_images: bool = False,
    max_failures: int | None = None,
    max_pixels: int = MAX_PIXELS,
    timeout: float = TIMEOUT,
    preset: str = "own models",
    shard: str | Shard | None = None,
) -> Summary:
    """Label a dataset: start, or continue where the run in `output` stopped; then publish.

    Args:
        source: a folder (all levels), a .txt or .csv list, a COCO .json file, a glob, an image;
            tars or Parquet files, see `open_source`; the address of a folder, glob, tar, Parquet
            file or image (https, s3, gs, hf), or a list of addresses; or a `Source` object of your
            own.
        labels: names, a mapping from names to their synonyms, a labels file, or a `LabelSet`.
        output: the run's folder: manifest.json, journal-0001.jsonl, and at the end summary.json,
            presence.png and the exporters' files.
        segmenter: the models: a preset's name, a `Preset`, a segmenter, or a function that loads
            one (called once the run is locked).
        engine: an engine of your own in place of a segmenter; no model is loaded then.
        exporters: what is written at the end: a file name in `output` for each exporter. By
            default the files of `formats`.
        formats: one or more of coco (annotations.json, and results.json: COCO results), parquet
            (annotations.parquet) and jsonl (annotations.jsonl); of the last two the images are in
            images.annotations.parquet and images.annotations.jsonl. Files of other formats that an
            earlier start has written stay as they are.
        on_image: called with the record of each image of this start once it is in the journal.
        on_start: called with the run and what this start found: how many images are still to do,
            new, changed and gone.
        distractors: names that compete with the labels and are never exported.
        root: folder that the names in a list or COCO file are relative to; by default the file's
            own.
        batch_size: images between the model and the journal, which is what a kill can cost.
        readers: processes that decode images; by default 2 to 8, by the number of processors.
        keep_above: also keep masks of labels below their presence threshold, so that a later
            export can decide with lower ones: down to this score; "auto": down to 0.9 of each
            label's threshold, where labels are found on CLIP's maps, without tiles and joined
            labels (a run that has begun goes on as it began); None: no masks below the threshold.
            The published files don't depend on it.
        retry_failed: label those images again that failed in earlier starts.
        changed: what becomes of images whose file has another size or time than when it was
            labelled, and of those that the source has got since. "again": a warning names them,
            and they are labelled (again). New ones come behind all others and get the next ids, so
            the files are not those of a run that had them from the start. Images that the source
            has no longer are named too; what was labelled of them stays in the files. "refuse": a
            RunError names them all. Of a `Source` that is no `FileSource`, only new images and
            those that are gone are noticed.
        moved: the images are at another place than when the run began: a source with at least half
            of them is taken, and the run goes on there, also in later starts. Times of files don't
            count then, as a copy may have others: an image is the same if its file has the same
            size, and the same SHA-256 where `hash_images` has recorded it.
        hash_images: also record the SHA-256 of the images' files, and compare those that were
            recorded with files of the same size: it shows changes that leave size and time as they
            were, for which all images are read at each start with it. A hash that was recorded
            also counts without it where the time is another one: a file with the same content is
            the same image. Images that were labelled without it get theirs at the next start with
            it. The published files don't depend on it. Not for a `Source` of your own.
        max_failures: stop after more than so many failed images in this start.
        max_pixels: images with more (height times width, by their header) are failed ones.
        timeout: seconds that decoding one image may take.
        preset: what the manifest calls models that are given as objects.
        shard: label this part of the images only, such as "3/64", see
            `clip2sam.labelling.plan.as_shard`: a run of its own in `output`/shards/0003-of-0064.
            Any number of them may run at once, on machines that share the folder. The first one
            lists the source, for all of them and for good. At its end a shard writes its own
            Parquet or JSON lines, or what `exporters` say; `merge_run` makes the files of the
            whole, COCO among them.

    Returns:
        The run (or shard) in figures, over all starts.

    Raises:
        RunLockedError: another process works on this run.
        RunError: the run began with other images, labels, settings, weights or another version:
            the message names them; or the model fails on every image.
        OutputError: the disk is full or refuses; start again when there is room.
        TooManyFailuresError: more images failed than `max_failures`.
        ImageError: the source can't be listed.
        LabelError, ConfigError, WeightsError: labels, settings or weights that can't be used.
    """
    records = label_dataset_iter(
        source,
        labels,
        output,
        segmenter=segmenter,
        engine=engine,
        exporters=exporters,
        formats=formats,
        on_start=on_start,
        distractors=distractors,
        root=root,
        batch_size=batch_size,
        readers=readers,
        keep_above=keep_above,
        retry_failed=retry_failed,
        changed=changed,
        moved=moved,
        hash_images=hash_images,
        max_failures=max_failures,
        max_pixels=max_pixels,
        timeout=timeout,
        preset=preset,
        shard=shard,
    )
    with closing(records):
        while True:
            try:
                record = next(records)
            except StopIteration as end:
                summary: Summary = end.value
                return summary
            if on_image is not None:
                on_image(record)


def label_dataset_iter(
    source: StrPath | Source,
    labels: LabelsLike,
    output: StrPath,
    *,
    segmenter: Models = "tiny",
    engine: Engine | None = None,
    exporters: Mapping[str, Exporter] | None = None,
    formats: Sequence[str] = FORMATS,
    on_start: OnStart | None = None,
    distractors: Sequence[str] = (),
    root: StrPath | None = None,
    batch_size: int = IMAGES_IN_FLIGHT,
    readers: int | None = None,
    keep_above: KeepAbove = "auto",
    retry_failed: bool = False,
    changed: Changed = "again",
    moved: bool = False,
    hash_images: bool = False,
    max_failures: int | None = None,
    max_pixels: int = MAX_PIXELS,
    timeout: float = TIMEOUT,
    preset: str = "own models",
    shard: str | Shard | None = None,
) -> Generator[ImageRecord, None, Summary]:
    """As `label_dataset`, for a loop of your own: yields the record of each image of this start
    once it is in the journal, in the order in which they are ready.

    When the loop ends by itself, the files are published. When it is left, the run stops cleanly
    and can be continued later. Settings out of range are refused at once, everything else when the
    first record is requested. Arguments and errors are those of `label_dataset`.
    """
    workers = min(max(os.cpu_count() or 2, 2), 8)
    if isinstance(source, Source) and root is not None:
        raise ConfigError("root is for lists and COCO files; leave it out with a source object")
    if engine is not None and keep_above not in ("auto", None):
        raise ConfigError("keep_above is for a segmenter; give your engine its own floors")
    if hash_images and isinstance(source, Source) and not isinstance(source, FileSource):
        raise ConfigError("hash_images is for files; leave it out with a source of your own")
    if exporters is not None and tuple(formats) != FORMATS:
        raise ConfigError("formats is for runs without exporters; leave one of the two out")
    if changed not in get_args(Changed):
        raise ConfigError(f"changed must be 'again' or 'refuse', but got {changed!r}")
    start = _Start(
        source=source,
        root=root,
        labels=as_label_set(labels, distractors=distractors),
        output=Path(output),
        models=segmenter,
        engine=engine,
        preset=_name(segmenter, preset) if engine is None else preset,
        exporters=None if exporters is None else check_exporters(exporters),
        formats=checked_formats(formats),
        on_start=on_start,
        batch_size=whole_number("batch_size", batch_size, 1, 4096, "images"),
        readers=whole_number(
            "readers", workers if readers is None else readers, 1, 256, "processes"
        ),
        keep_above=_checked_keep_above(keep_above),
        retry_failed=retry_failed,
        changed=changed,
        moved=moved,
        hash_images=hash_images,
        max_failures=_checked_failures(max_failures),
        max_pixels=whole_number("max_pixels", max_pixels, 1, 10**12, "pixels"),
        timeout=_checked_timeout(timeout),
    )
    return start.records() if shard is None else start.shard_records(as_shard(shard))


@dataclass(frozen=True)
class _Start:
    """One start of a run: the arguments of `label_dataset`, checked."""

    source: StrPath | Source
    root: StrPath | None
    labels: LabelSet
    output: Path
    models: Models
    engine: Engine | None
    preset: str
    exporters: Mapping[str, Exporter] | None
    formats: tuple[str, ...]
    on_start: OnStart | None
    batch_size: int
    readers: int
    keep_above: KeepAbove
    retry_failed: bool
    changed: Changed
    moved: bool
    hash_images: bool
    max_failures: int | None
    max_pixels: int
    timeout: float
    plan: Plan | None = None
    """Of a shard: that of its run."""

    def shard_records(self, shard: Shard) -> Generator[ImageRecord, None, Summary]:
        """Label what is left to do of a shard."""
        plan = planned(
            self.output,
            self.source,
            self.root,
            shard.of,
            threads=torch.get_num_threads(),
            moved=self.moved,
            numbers=[shard.number],
        )
        own = self.source if isinstance(self.source, Source) else None
        part, folder = plan.part(shard.number, own), plan.folder(shard.number)
        begun = open_run(folder) if (folder / MANIFEST).exists() else None
        moved = begun is not None and (begun.origin, begun.root) != (part.origin, root_of(part))
        formats = of_shard(self.formats)
        start = replace(
            self, source=part, root=None, output=folder, formats=formats, moved=moved, plan=plan
        )
        return (yield from start.records())

    def records(self) -> Generator[ImageRecord, None, Summary]:
        """Label what is left to do, then publish."""
        begun = self._begun()
        source = self._source(begun)
        check_output(source, self.output)
        if self.hash_images and not isinstance(source, FileSource):
            raise ConfigError(
                "hash_images (--hash) is for image files; leave it out for images in tars or "
                "Parquet files, or at addresses"
            )
        with lock_run(self.output) as lock:
            files = own_files(self.formats) if self.exporters is None else tuple(self.exporters)
            remove_leftovers(self.output, (MANIFEST, SUMMARY, PRESENCE, *files))
            begun = self._begun()  # anew: another process may have begun or extended it in between
            engine = self.engine or self._load(begun)
            lock.check()  # loading takes long
            marks = fingerprint(
                engine.fingerprint(), self.labels, preset=self.preset, max_pixels=self.max_pixels
            )
            if begun is not None:
                check_thresholds(begun, marks, engine.thresholds)
                check_same(begun.fingerprint, marks)
            threads = torch.get_num_threads() if self.plan is None else self.plan.threads
            other = None if self.plan is None else begun_shard(self.plan)
            if other is not None:
                check_like(other, marks, threads)
            run = (
                take_in_new(begun, source, self.changed)
                if begun
                else begin_run(
                    self.output,
                    source,
                    self.labels.wanted,
                    marks,
                    thresholds=engine.thresholds,
                    floors=engine.floors,
                    min_share=engine.min_share,
                    device=engine_device(engine),
                    threads=threads,
                )
            )
            threads = torch.get_num_threads()
            torch.set_num_threads(run.threads)
            try:
                return (yield from self._label(run, source, engine, begun, lock))
            finally:
                torch.set_num_threads(threads)

    def _label(
        self,
        run: RunFolder,
        source: Source,
        engine: Engine,
        begun: RunFolder | None,
        lock: RunLock,
    ) -> Generator[ImageRecord, None, Summary]:
        clock, budget = Clock(), Budget()
        with closing(Journal(run.journal, run.ids, run.class_names, lock.check)) as journal:
            moved = self.moved and (source.origin, root_of(source)) != (run.origin, run.root)
            found = find_changes(
                run,
                source,
                journal.index.stamps,
                self.changed,
                hashed=self.hash_images,
                moved=moved,
            )
            say_reviewed(run, found.changed & journal.index.proposed.keys())
            write_stamps(journal, found.stamps)
            if moved:  # last: a start that was killed in front of this is moved again
                run = move_run(run, source)
            wanted = [
                (i, k)
                for i, k in zip(run.ids, run.keys, strict=True)
                if i in found.changed or self._is_todo(journal, i)
            ]
            if wanted:
                run = goes_on_on(run, engine_device(engine))
            if self.on_start is not None:
                self.on_start(run, _counts(run, begun, found, len(wanted)))
            flow = run_flow(
                wanted,
                reading(source, found.gone),
                engine,
                journal,
                lambda: DecodeWorker(self.max_pixels, self.timeout, budget),
                threads=min(self.readers, max(len(wanted), 1)),
                batch_size=self.batch_size,
                max_failures=self.max_failures,
                clock=clock,
                hashed=self.hash_images,
            )
            try:
                yield from flow
            finally:
                lock.check()
                run = add_work(run, clock.work)
            exporters = self.exporters
            if exporters is None:
                exporters = own_exporters(run, self.formats)
            content = content_of(run, journal.index)
            return publish(content, exporters, clock.work, drawn=self.plan is None)

    def _is_todo(self, journal: Journal, image_id: int) -> bool:
        failed = image_id in journal.index.failed
        return image_id not in journal.index.offsets or (self.retry_failed and failed)

    def _begun(self) -> RunFolder | None:
        """The run in the output folder, if one has begun."""
        if self.plan is None and is_sharded(self.output):
            shards = open_plan(self.output).shards
            raise RunError(
                f"{printable(self.output)}: this run is in {shards} shards; label them, as with "
                f"--shard 1/{shards}, or merge them, or give another output folder"
            )
        if not (self.output / MANIFEST).exists():
            if self.moved:
                raise nothing_moved(self.output)
            return None
        run = open_run(self.output)
        if not self.moved:
            check_same_source(run.path, (run.origin, run.root), self.source, self.root)
        return run

    def _source(self, begun: RunFolder | None) -> Source:
        """Where the images are read. A folder is listed at each start: it may have new ones."""
        if begun is not None and self.moved:
            source = self._listed()
            check_moved(begun.path, begun.keys, source)
            return source
        if begun is None or isinstance(self.source, Source):
            return self._listed()
        return open_source(begun.origin, begun.root)  # the same, whatever links led to it now

    def _listed(self) -> Source:
        """The source as it was given."""
        if isinstance(self.source, Source):
            return self.source
        return open_source(self.source, self.root)

    def _load(self, begun: RunFolder | None) -> Engine:
        return loaded_engine(self.models, self.labels, self.keep_above, begun)


def loaded_engine(
    models: Recipe | Segmenter,
    labels: LabelSet,
    keep_above: KeepAbove,
    begun: RunFolder | None,
    kind: type[SegmenterEngine] = SegmenterEngine,
) -> Engine:
    """The engine of models that are loaded now, if they are not yet. A function that gives an
    engine gives this one.

    Args:
        keep_above: as for `label_dataset`; "auto" in a run that has begun is what it began with.
        begun: the run, or one of its shards, if it has begun.
        kind: what is made of a segmenter.
    """
    if isinstance(models, str | Preset):
        models = load(models)
    elif not isinstance(models, Segmenter):
        made = models()
        if not isinstance(made, Segmenter):
            return made
        models = made
    if keep_above == "auto" and begun is not None:
        keep_above = begun.fingerprint.get("engine", {}).get("keep_above")
    return kind(models, labels, keep_above)


def _counts(run: RunFolder, begun: RunFolder | None, found: Found, todo: int) -> StartCounts:
    if begun is None:
        return StartCounts(begins=True, listed=len(run.keys), todo=todo)
    new = len(run.keys) - len(begun.keys)
    return StartCounts(False, len(run.keys), todo, new, len(found.changed), len(found.gone))


def _name(models: Models, otherwise: str) -> str:
    """What the manifest calls the models."""
    if isinstance(models, Preset):
        return models.name
    return models if isinstance(models, str) else otherwise


def _checked_keep_above(given: Any) -> KeepAbove:
    if given is None or given == "auto":
        return given
    return finite_number("keep_above", given)


def _checked_failures(most: Any) -> int | None:
    return None if most is None else whole_number("max_failures", most, 0, 10**12, "images")


def _checked_timeout(timeout: Any) -> float:
    """What the timer of a decode worker can't hold would fail every image."""
    seconds = finite_number("timeout", timeout)
    if not 0.001 <= seconds <= 86400:
        raise ConfigError(f"timeout must be from 0.001 to 86400 seconds, but got {timeout!r}")
    return seconds
