"""A run over a data set, from the first picture to the files: `label`, and `label_iter` for a loop of one's own."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from clip2sam.data.images import MAX_PIXELS, printable
from clip2sam.data.labels import as_label_set
from clip2sam.data.records import Labelled
from clip2sam.data.sources import find_source
from clip2sam.errors import ConfigError
from clip2sam.labelling.decode_worker import DecoderProcess
from clip2sam.labelling.engine import Engine, SegmenterEngine
from clip2sam.labelling.fingerprint import check_same, fingerprint
from clip2sam.labelling.flow import Clock, run_flow
from clip2sam.labelling.journal import Journal
from clip2sam.labelling.manifest import (
    MANIFEST,
    RunFolder,
    begin_run,
    check_same_source,
    lock_run,
    open_run,
)
from clip2sam.labelling.readers import Decoder
from clip2sam.labelling.summary import Summary, publish
from clip2sam.pipeline import LabelsLike, Segmenter

BATCH = 8
TIMEOUT = 60.0
"""Seconds that decoding one picture may take."""

StrPath = str | os.PathLike[str]


def label(
    source: StrPath,
    labels: LabelsLike,
    output: StrPath,
    *,
    segmenter: Segmenter | str | Callable[[], Segmenter] = "tiny",
    on_picture: Callable[[Labelled], Any] = lambda _: None,
    on_start: Callable[[RunFolder, int], Any] = lambda run, todo: None,
    **settings: Any,
) -> Summary:
    """Label a data set: start, or go on where the run in `output` stopped; then publish.

    Args:
        source: a folder (all levels), a .txt or .csv list, a COCO .json file, a glob, or one picture.
        labels: names, a mapping from names to their synonyms, a labels file, or a `LabelSet`.
        output: the run's folder: manifest.json, journal-0001.jsonl, and at the end annotations.json, results.json,
            summary.json and presence.png.
        segmenter: the models: a segmenter, a preset's name, or a function that loads one (called once the lock is
            taken).
        on_picture: called for each picture once it is in the journal.
        on_start: called with the run and the number of pictures still to do.
        **settings: those of `label_iter`.

    Returns:
        The run in figures, over all starts.

    Raises:
        RunLockedError: another process works on this run.
        RunError: the run began with other pictures, labels, settings, weights or version: the message names them.
        OutputError: the disk is full; start again when there is room.
        TooManyFailuresError: more pictures failed than `max_failures`.
        ImageError: the source can't be listed. LabelError, ConfigError, WeightsError: as elsewhere.
    """
    pictures = _Run(source, labels, output, segmenter, on_start=on_start, **settings)
    with closing(pictures.records()) as records:
        for record in records:
            on_picture(record)
    assert pictures.summary is not None
    return pictures.summary


def label_iter(
    source: StrPath,
    labels: LabelsLike,
    output: StrPath,
    *,
    segmenter: Segmenter | str | Callable[[], Segmenter] = "tiny",
    **settings: Any,
) -> Iterator[Labelled]:
    """As `label`, for a loop of one's own: yields each picture of this start once it is in the journal.

    They come in the order in which they are ready. When the loop ends by itself, the files are published; when it
    is left, the run stops cleanly and can go on later.

    Args (also of `label`):
        distractors: names that compete with the labels and are never exported.
        root: the folder that the names in a list or COCO file are relative to; by default the one it lies in.
        batch_size: pictures between the model and the journal, which is what a kill can cost.
        readers: processes that decode; by default 2 to 8, by the number of processors.
        keep_above: also keep masks of labels below their threshold, down to this presence score, so that a later
            export can decide with lower thresholds.
        retry_failed: do the pictures again that failed earlier.
        max_failures: stop after more than so many failed pictures in this start.
        max_pixels: pictures with more (height times width, by their header) are failed ones.
        timeout: seconds that decoding one picture may take.
        preset: what to call models that are given, in the manifest.
    """
    return _Run(source, labels, output, segmenter, **settings).records()


class _Run:
    """One start of a run."""

    def __init__(
        self,
        source: StrPath,
        labels: LabelsLike,
        output: StrPath,
        segmenter: Segmenter | str | Callable[[], Segmenter],
        *,
        distractors: Sequence[str] = (),
        root: StrPath | None = None,
        batch_size: int = BATCH,
        readers: int | None = None,
        keep_above: float | None = None,
        retry_failed: bool = False,
        max_failures: int | None = None,
        max_pixels: int = MAX_PIXELS,
        timeout: float = TIMEOUT,
        preset: str = "own models",
        on_start: Callable[[RunFolder, int], Any] = lambda run, todo: None,
    ) -> None:
        self.source, self.root, self.output = source, root, Path(output)
        self.labels = as_label_set(labels, distractors=distractors)
        self.segmenter, self.preset = segmenter, segmenter if isinstance(segmenter, str) else preset
        self.batch_size = _at_least(1, "batch_size", batch_size)
        self.readers = _at_least(
            1, "readers", min(max(os.cpu_count() or 2, 2), 8) if readers is None else readers
        )
        self.keep_above, self.retry_failed, self.max_failures = (
            keep_above,
            retry_failed,
            max_failures,
        )
        self.max_pixels, self.timeout = (
            _at_least(1, "max_pixels", max_pixels),
            _at_least(0.001, "timeout", timeout),
        )
        self.on_start = on_start
        self.summary: Summary | None = None

    def records(self) -> Generator[Labelled, None, None]:
        """Do the work; `summary` is there when the iterator has ended."""
        self._check_output()
        with lock_run(self.output):
            known = open_run(self.output) if (self.output / MANIFEST).exists() else None
            if known is not None:
                check_same_source(known, self.source, self.root)
            pictures = find_source(self.source, self.root) if known is None else known.source
            segmenter = self._load()
            marks = fingerprint(
                segmenter,
                self.labels,
                preset=self.preset,
                keep_above=self.keep_above,
                max_pixels=self.max_pixels,
            )
            if known is not None:
                check_same(known.fingerprint, marks)
            run = known or begin_run(self.output, pictures, marks)
            threads = torch.get_num_threads()
            torch.set_num_threads(run.threads)
            try:
                yield from self._label(
                    run, SegmenterEngine(segmenter, self.labels, self.keep_above)
                )
            finally:
                torch.set_num_threads(threads)

    def _label(self, run: RunFolder, engine: Engine) -> Iterator[Labelled]:
        clock, labelled, keys = Clock(), 0, run.source.keys
        with closing(Journal(run.journal, len(keys))) as journal:
            wanted = [(i, key) for i, key in enumerate(keys) if self._is_wanted(journal, i)]
            self.on_start(run, len(wanted))
            for record in run_flow(
                wanted,
                engine,
                journal,
                run.thresholds,
                lambda: self._decoder(run.source.root),
                threads=min(self.readers, max(len(wanted), 1)),
                batch_size=self.batch_size,
                max_failures=self.max_failures,
                clock=clock,
            ):
                labelled += 1
                yield record
            self.summary = publish(run, journal.index, clock, labelled)

    def _is_wanted(self, journal: Journal, picture: int) -> bool:
        return picture not in journal.index.offsets or (
            self.retry_failed and picture in journal.index.failed
        )

    def _decoder(self, root: str) -> Decoder:
        return DecoderProcess(root, self.max_pixels, self.timeout)

    def _load(self) -> Segmenter:
        if isinstance(self.segmenter, str):
            from clip2sam.models.loading import load

            return load(self.segmenter)
        return self.segmenter if isinstance(self.segmenter, Segmenter) else self.segmenter()

    def _check_output(self) -> None:
        """The folder that is labelled is never written to."""
        source, output = os.path.realpath(self.source), os.path.realpath(self.output)
        if os.path.isdir(source) and os.path.commonpath([source, output]) == source:
            raise ConfigError(
                f"the output folder {printable(output)} lies in the folder of pictures, which is never written to; "
                "give one elsewhere"
            )


def _at_least(least: int | float, name: str, value: Any) -> Any:
    if not isinstance(value, int | float) or value < least:
        raise ConfigError(f"{name} must be {least:g} or more, but got {value!r}")
    return value
