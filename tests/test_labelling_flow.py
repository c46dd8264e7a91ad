"""The flow between decoders, a model and the journal: every fault costs what it must and no more."""

import random

import numpy as np
import pytest
import torch

from clip2sam import Image
from clip2sam.errors import ConfigError, OutputError, RunError, TooManyFailuresError
from clip2sam.labelling.engine import predict_within_memory, shortest
from clip2sam.labelling.flow import Clock, run_flow
from clip2sam.labelling.journal import Journal
from tests.labelling_fakes import Here, Threshold, threads_named, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("flow") / "in", 30)


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path / "journal-0001.jsonl", 1000)
    yield made
    made.close()


def run(
    pictures, journal, engine=None, *, wanted=None, threads=2, batch_size=8, make=Here, **settings
):
    wanted = wanted or [(i, f"{i:03d}.png") for i in range(30)]
    engine = engine or Threshold()
    make_decoder = lambda: make(pictures)  # noqa: E731
    return list(
        run_flow(
            wanted,
            engine,
            journal,
            [0.5] * 3,
            make_decoder,
            threads=threads,
            batch_size=batch_size,
            **settings,
        )
    )


def outcome(records):
    """What doesn't depend on time or order."""
    return {r.picture: (r.key, r.state, r.reason, r.size, r.presence, r.masks) for r in records}


@pytest.fixture(scope="module")
def expected(pictures, tmp_path_factory):
    made = Journal(tmp_path_factory.mktemp("plain") / "journal-0001.jsonl", 1000)
    result = outcome(run(pictures, made, threads=1, batch_size=1))
    made.close()
    return result


def test_every_picture_becomes_a_record_in_the_journal(pictures, journal, expected):
    records = run(pictures, journal)
    assert len(records) == 30
    assert {r.state for r in records} == {"done", "empty"}
    assert outcome(records) == expected == outcome(journal.records())
    assert not threads_named("reader", "writer")


@pytest.mark.parametrize(("threads", "batch_size"), [(1, 8), (3, 1), (4, 7), (2, 100)])
def test_the_outcome_does_not_depend_on_threads_or_batches(
    pictures, journal, expected, threads, batch_size
):
    assert outcome(run(pictures, journal, threads=threads, batch_size=batch_size)) == expected


def test_no_more_than_a_batch_is_between_model_and_journal(pictures, journal):
    class Watching(Threshold):
        most = 0

        def predict(self, images):
            self.seen += [image.origin for image in images]
            self.most = max(self.most, len(self.seen) - len(journal.index.offsets))
            return [image.pixels > 128 for image in images]

    for batch_size in (1, 2, 6):
        engine = Watching()
        run(pictures, journal, engine, batch_size=batch_size)
        journal.index.offsets.clear()
        assert engine.most <= batch_size


class OutOfMemoryAt(Threshold):
    """Memory runs out at one call, and for every batch above some size."""

    def __init__(self, call, largest=100):
        super().__init__()
        self.calls, self.call, self.largest = 0, call, largest

    def predict(self, images):
        self.calls += 1
        if self.calls == self.call or len(images) > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return super().predict(images)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_out_of_memory_at_call_1_to_20_changes_nothing(pictures, tmp_path, expected, batch_size):
    for call in range(1, 21):
        made = Journal(tmp_path / f"{call}.jsonl", 1000)
        engine = OutOfMemoryAt(call)
        assert outcome(run(pictures, made, engine, batch_size=batch_size)) == expected
        made.close()
        assert engine.calls > 20 or batch_size > 1
        assert sorted(engine.seen) == sorted(key for key, *_ in expected.values())


def test_batches_are_halved_until_they_fit(pictures, journal, expected):
    engine = OutOfMemoryAt(0, largest=2)
    assert outcome(run(pictures, journal, engine, batch_size=16)) == expected
    assert max(engine.batches) == 2
    assert engine.group <= 2


def test_memory_is_free_again_when_the_half_is_tried():
    """The failed attempt's tensors must not live on in a traceback."""
    import gc
    import weakref

    held, alive = [], []
    picture = Image(np.zeros((2, 2, 3), np.uint8), "array")

    class Holding(Threshold):
        def predict(self, images):
            tensor = torch.zeros(10)
            held.append(weakref.ref(tensor))
            alive.append(sum(ref() is not None for ref in held))
            if len(images) > 1:
                raise torch.OutOfMemoryError
            return [0]

    gc.disable()
    try:
        assert predict_within_memory(Holding(), [picture, picture]) == [0, 0]
    finally:
        gc.enable()
    assert alive == [1, 1, 1]


def test_a_picture_too_large_for_the_memory_costs_itself(pictures, journal, expected):
    class TooLarge(Threshold):
        def predict(self, images):
            if any(i.origin == "007.png" for i in images):
                raise MemoryError
            return super().predict(images)

    got = outcome(run(pictures, journal, TooLarge()))
    assert got.pop(7)[1:3] == (
        "failed",
        got_reason
        := "memory ran out on this picture alone; make it smaller, or free memory and use --retry-failed",
    )
    assert got_reason
    assert got == {k: v for k, v in expected.items() if k != 7}


@pytest.mark.parametrize("where", ["predict", "finish"])
def test_a_picture_that_the_model_fails_on_costs_itself(pictures, journal, expected, where):
    class Failing(Threshold):
        def predict(self, images):
            if where == "predict" and any(i.origin == "007.png" for i in images):
                raise ValueError("odd\npicture")
            return super().predict(images)

        def finish(self, image, prediction):
            if where == "finish" and image.origin == "007.png":
                raise ValueError("odd\npicture")
            return super().finish(image, prediction)

    got = outcome(run(pictures, journal, Failing()))
    assert got.pop(7)[1:3] == (
        "failed",
        "the model failed on this picture (ValueError: odd%0Apicture); leave it out",
    )
    assert got == {k: v for k, v in expected.items() if k != 7}


def test_a_model_that_fails_on_all_pictures_stops_the_run(pictures, journal):
    class Broken(Threshold):
        def predict(self, images):
            raise RuntimeError("device lost")

    with pytest.raises(
        RunError, match=r"failed on 3 pictures in a row.*device lost.*--retry-failed"
    ):
        run(pictures, journal, Broken())
    assert 3 <= len(journal.index.offsets) <= 3 + 8
    assert not threads_named("reader", "writer")


def test_an_error_of_ours_in_the_model_stops_the_run(pictures, journal):
    class Wrong(Threshold):
        def predict(self, images):
            raise ConfigError("no such thing")

    with pytest.raises(ConfigError, match="no such thing"):
        run(pictures, journal, Wrong())


def test_bad_pictures_cost_themselves_until_there_are_too_many(pictures, tmp_path, expected):
    wanted = [(i, f"{i:03d}.png") for i in range(30)] + [
        (i, f"gone-{i}.png") for i in range(30, 35)
    ]
    random.Random(0).shuffle(wanted)
    made = Journal(tmp_path / "a.jsonl", 1000)
    got = outcome(run(pictures, made, wanted=wanted, max_failures=5))
    assert {k: v for k, v in got.items() if k < 30} == expected
    assert all(got[i][1] == "failed" and "no such file" in got[i][2] for i in range(30, 35))
    made.close()
    made = Journal(tmp_path / "b.jsonl", 1000)
    with pytest.raises(TooManyFailuresError, match="5 pictures failed, more than the 4 allowed"):
        run(pictures, made, wanted=wanted, max_failures=4)
    assert len(made.index.failed) == 5
    made.close()


def test_a_full_disk_ends_the_run_and_leaves_a_good_journal(pictures, journal, monkeypatch):
    real, calls = Journal._write, []

    def write(self, line):
        calls.append(line)
        if len(calls) == 10:
            raise OSError(28, "No space left on device")
        real(self, line)

    monkeypatch.setattr(Journal, "_write", write)
    with pytest.raises(OutputError, match="No space left"):
        run(pictures, journal)
    assert len(calls) == 10
    assert len(list(journal.records())) == 9
    assert not threads_named("reader", "writer")


@pytest.mark.parametrize("ending", ["close", "interrupt"])
def test_stopping_keeps_what_the_model_has_done(pictures, journal, ending):
    engine = Threshold()

    class Interrupted(Threshold):
        def predict(self, images):
            if len(self.seen) >= 8:
                raise KeyboardInterrupt
            return super().predict(images)

    if ending == "interrupt":
        engine = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            run(pictures, journal, engine)
    else:
        wanted = [(i, f"{i:03d}.png") for i in range(30)]
        records = run_flow(
            wanted, engine, journal, [0.5] * 3, lambda: Here(pictures), threads=2, batch_size=8
        )
        next(records)
        records.close()
    assert 1 <= len(journal.index.offsets) == len(engine.seen) < 30
    assert not threads_named("reader", "writer")


def test_waiting_is_measured(pictures, journal):
    clock = Clock()
    run(pictures, journal, clock=clock)
    assert clock.began is not None
    assert 0 <= clock.waited_for_pictures + clock.waited_for_writer <= clock.total


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-8, 123456.789, -0.02])
def test_numbers_are_written_as_short_as_float32_allows(value):
    assert np.float32(shortest(np.float32(value))) == np.float32(value)
    assert len(repr(shortest(np.float32(value)))) <= 16
