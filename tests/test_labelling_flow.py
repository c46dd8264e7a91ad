"""The flow between decode workers, a model and the journal: every fault costs what it must and no
more."""

import gc
import random
import time
import weakref

import numpy as np
import pytest
import torch

from clip2sam.data.images import Image
from clip2sam.errors import ConfigError, ModelError, OutputError, RunError, TooManyFailuresError
from clip2sam.labelling.engine import predict_within_memory
from clip2sam.labelling.flow import run_flow
from clip2sam.labelling.journal import Journal, read_records
from clip2sam.labelling.summary import Clock
from tests.labelling_fakes import Here, Threshold, reads, threads_named, write_images

FIRST = 100
IDS = range(FIRST, FIRST + 40)
WANTED = [(FIRST + i, f"{i:03d}.png") for i in range(30)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("flow") / "in", 30)


def new_journal(path):
    return Journal(path, IDS, Threshold.classes)


@pytest.fixture
def journal(tmp_path):
    made = new_journal(tmp_path / "journal-0001.jsonl")
    yield made
    made.close()


def records_of(
    images, journal, engine=None, *, wanted=WANTED, threads=2, batch_size=8, make=Here, **settings
):
    return run_flow(
        wanted,
        reads(images),
        engine or Threshold(),
        journal,
        make,
        threads=threads,
        batch_size=batch_size,
        **settings,
    )


def run(*arguments, **settings):
    return list(records_of(*arguments, **settings))


def stored(journal):
    return list(read_records(journal.path, journal.index, IDS, journal.classes))


def outcome(records):
    """What doesn't depend on time or order."""
    return {
        r.image_id: (r.file_name, r.state, r.reason, r.size, r.presence, r.beaten, r.annotations)
        for r in records
    }


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory):
    made = new_journal(tmp_path_factory.mktemp("plain") / "journal-0001.jsonl")
    result = outcome(run(images, made, threads=1, batch_size=1))
    made.close()
    return result


def test_every_image_becomes_a_record_in_the_journal(images, journal, expected):
    records = run(images, journal)
    assert len(records) == 30
    assert {r.state for r in records} == {"done", "empty"}
    assert outcome(records) == expected == outcome(stored(journal))
    assert all(r.seconds.keys() == {"decode", "model", "masks"} for r in records)
    assert not threads_named("reader", "writer")


@pytest.mark.parametrize(
    ("presence", "beaten", "state"),
    [
        ((0.5, 0.1, 0.1), (False, False, False), "done"),
        ((0.49, 0.6, 0.1), (False, False, False), "empty"),
        ((0.6, 0.1, 0.1), (True, False, False), "empty"),
        ((None, 0.1, 0.1), (False, False, False), "empty"),
    ],
)
def test_an_image_is_done_if_a_mask_belongs_to_a_label_that_is_present(
    images, journal, presence, beaten, state
):
    """Also masks of absent labels may be kept: they don't make an image done."""

    class Fixed(Threshold):
        def finish(self, image, prediction):
            annotations = super().finish(image, prediction)[2]
            return presence, beaten, tuple(a for a in annotations if a.label == "red")

    (record,) = run(images, journal, Fixed(), wanted=WANTED[:1])
    assert [a.label for a in record.annotations] == ["red"]
    assert (record.state, record.presence, record.beaten) == (state, presence, beaten)


@pytest.mark.parametrize(("threads", "batch_size"), [(1, 8), (3, 1), (4, 7), (2, 100)])
def test_the_outcome_does_not_depend_on_threads_or_batches(
    images, journal, expected, threads, batch_size
):
    assert outcome(run(images, journal, threads=threads, batch_size=batch_size)) == expected


def test_no_more_than_a_batch_is_between_model_and_journal(images, tmp_path):
    """Images that can't be read never reach the model, and make no room for more."""

    class Watching(Threshold):
        most = 0

        def predict(self, prepared):
            self.seen += [image.origin for image in prepared]
            written = journal.index.offsets.keys() - journal.index.failed
            self.most = max(self.most, len(self.seen) - len(written))
            return [image.pixels > 128 for image in prepared]

        def finish(self, image, prediction):
            time.sleep(0.002)  # the model would run ahead, if it could
            return super().finish(image, prediction)

    gone = [(FIRST + i, f"gone-{i}.png") for i in range(30, 40)]
    for batch_size in (1, 2, 6):
        journal, engine = new_journal(tmp_path / f"{batch_size}.jsonl"), Watching()
        records = run(
            images, journal, engine, wanted=[*gone, *WANTED], threads=1, batch_size=batch_size
        )
        journal.close()
        assert len(records) == 40
        assert engine.most <= batch_size


class OutOfMemoryAt(Threshold):
    """Memory runs out at one call, and for every batch above some size."""

    def __init__(self, call, largest=100):
        super().__init__()
        self.calls, self.call, self.largest = 0, call, largest

    def predict(self, prepared):
        self.calls += 1
        if self.calls == self.call or len(prepared) > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return super().predict(prepared)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_out_of_memory_at_call_1_to_20_changes_nothing(images, tmp_path, expected, batch_size):
    for call in range(1, 21):
        made = new_journal(tmp_path / f"{call}.jsonl")
        engine = OutOfMemoryAt(call)
        assert outcome(run(images, made, engine, batch_size=batch_size)) == expected
        made.close()
        assert engine.calls > 20 or batch_size > 1
        assert sorted(engine.seen) == sorted(key for key, *_ in expected.values())


def test_batches_are_halved_until_they_fit(images, journal, expected):
    engine = OutOfMemoryAt(0, largest=2)
    assert outcome(run(images, journal, engine, batch_size=16)) == expected
    assert max(engine.batches) == 2
    assert engine.group <= 2


def test_memory_is_free_again_when_the_half_is_tried():
    """The failed attempt's tensors must not live on in a traceback."""
    held, alive = [], []

    def predict(images):
        tensor = torch.zeros(10)
        held.append(weakref.ref(tensor))
        alive.append(sum(ref() is not None for ref in held))
        if len(images) > 1:
            raise torch.OutOfMemoryError
        return [0]

    image = Image(np.zeros((2, 2, 3), np.uint8), "array")
    gc.disable()
    try:
        assert predict_within_memory(Threshold(), [image, image], predict) == [0, 0]
    finally:
        gc.enable()
    assert alive == [1, 1, 1]


def test_an_image_too_large_for_the_memory_costs_itself(images, journal, expected):
    class TooLarge(Threshold):
        def predict(self, prepared):
            if any(i.origin == "007.png" for i in prepared):
                raise MemoryError
            return super().predict(prepared)

    got = outcome(run(images, journal, TooLarge()))
    assert got.pop(107)[1:3] == (
        "failed",
        "memory ran out on this image alone; make it smaller, or free memory and start with "
        "--retry-failed",
    )
    assert got == {k: v for k, v in expected.items() if k != 107}


@pytest.mark.parametrize("where", ["prepare", "predict", "finish"])
def test_an_image_that_the_model_fails_on_costs_itself(images, journal, expected, where):
    def fail(here, origins):
        if where == here and "007.png" in origins:
            raise ValueError("odd\nimage")

    class Failing(Threshold):
        def prepare(self, image):
            fail("prepare", [image.origin])
            return super().prepare(image)

        def predict(self, prepared):
            fail("predict", [i.origin for i in prepared])
            return super().predict(prepared)

        def finish(self, image, prediction):
            fail("finish", [image.origin])
            return super().finish(image, prediction)

    got = outcome(run(images, journal, Failing()))
    assert got.pop(107)[1:3] == (
        "failed",
        "the model failed on this image (ValueError: odd%0Aimage); leave it out",
    )
    assert got == {k: v for k, v in expected.items() if k != 107}


def test_what_fails_in_a_readers_thread_is_tried_again_by_the_models(images, journal, expected):
    class Short(Threshold):
        failures = 0

        def prepare(self, image):
            if image.origin == "007.png" and self.failures < 1:
                self.failures += 1
                raise MemoryError
            return super().prepare(image)

    engine = Short()
    assert outcome(run(images, journal, engine)) == expected
    assert engine.failures == 1


def test_the_model_gets_what_was_prepared_and_the_host_the_image(images, journal, expected):
    class Ahead:
        def __init__(self, image):
            self.origin, self.mask, self.nbytes = image.origin, image.pixels > 128, 1

    class Preparing(Threshold):
        def prepare(self, image):
            return Ahead(image)

        def predict(self, prepared):
            assert all(type(p) is Ahead for p in prepared)
            return [p.mask for p in prepared]

    assert outcome(run(images, journal, Preparing())) == expected


def test_a_model_that_fails_on_all_images_stops_the_run(images, journal):
    class Broken(Threshold):
        def predict(self, prepared):
            raise RuntimeError("device lost")

    with pytest.raises(RunError, match=r"failed on 3 images in a row.*device lost.*--retry-failed"):
        run(images, journal, Broken())
    assert 3 <= len(journal.index.offsets) <= 3 + 8
    assert not threads_named("reader", "writer")


@pytest.mark.parametrize("where", ["predict", "finish"])
def test_values_that_are_not_finite_are_a_failure_of_the_model(images, journal, expected, where):
    """On one image: its failure, with its reason. On all: the end of the run."""

    class Overflowing(Threshold):
        def __init__(self, *bad):
            super().__init__()
            self.bad = bad

        def check(self, here, origins):
            if where == here and (not self.bad or set(self.bad) & set(origins)):
                raise ModelError("007.png: maps are not finite")

        def predict(self, prepared):
            self.check("predict", [i.origin for i in prepared])
            return super().predict(prepared)

        def finish(self, image, prediction):
            self.check("finish", [image.origin])
            return super().finish(image, prediction)

    got = outcome(run(images, journal, Overflowing("007.png")))
    assert got.pop(107)[1:3] == ("failed", "007.png: maps are not finite")
    assert got == {k: v for k, v in expected.items() if k != 107}
    with pytest.raises(RunError, match=r"failed on 3 images in a row.*maps are not finite"):
        run(images, journal, Overflowing())


def test_failures_that_are_not_in_a_row_stop_nothing(images, journal):
    class Shaky(Threshold):
        def finish(self, image, prediction):
            if int(image.origin[:3]) % 3:
                raise RuntimeError("odd")
            return super().finish(image, prediction)

    records = run(images, journal, Shaky(), threads=1)
    assert sum(r.state == "failed" for r in records) == 20


def test_an_error_of_ours_in_the_model_stops_the_run(images, journal):
    class Wrong(Threshold):
        def predict(self, prepared):
            raise ConfigError("no such thing")

    with pytest.raises(ConfigError, match="no such thing"):
        run(images, journal, Wrong())


def test_bad_images_cost_themselves_until_there_are_too_many(images, tmp_path, expected):
    gone = [(FIRST + i, f"gone-{i}.png") for i in range(30, 35)]
    wanted = [*WANTED, *gone]
    random.Random(0).shuffle(wanted)
    made = new_journal(tmp_path / "a.jsonl")
    got = outcome(run(images, made, wanted=wanted, max_failures=5))
    assert {k: v for k, v in got.items() if k < FIRST + 30} == expected
    assert all(got[i][1] == "failed" and "no such file" in got[i][2] for i, _ in gone)
    made.close()
    made = new_journal(tmp_path / "b.jsonl")
    with pytest.raises(TooManyFailuresError, match="5 images failed, more than the 4 allowed"):
        run(images, made, wanted=wanted, max_failures=4)
    assert len(made.index.failed) == 5
    made.close()


def test_a_full_disk_ends_the_run_and_leaves_a_good_journal(images, journal, monkeypatch):
    real, calls = Journal.append, []

    def append(self, record, stamp):
        calls.append(record)
        if len(calls) == 10:
            raise OutputError("No space left on device")
        real(self, record, stamp)

    monkeypatch.setattr(Journal, "append", append)
    with pytest.raises(OutputError, match="No space left"):
        run(images, journal)
    assert len(calls) == 10
    assert len(stored(journal)) == 9
    assert not threads_named("reader", "writer")


@pytest.mark.parametrize("ending", ["close", "interrupt"])
def test_stopping_keeps_what_the_model_has_done(images, journal, ending):
    engine = Threshold()

    class Interrupted(Threshold):
        def predict(self, prepared):
            if len(self.seen) >= 8:
                raise KeyboardInterrupt
            return super().predict(prepared)

    if ending == "interrupt":
        engine = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            run(images, journal, engine)
    else:
        records = records_of(images, journal, engine)
        next(records)
        records.close()
    assert 1 <= len(journal.index.offsets) == len(engine.seen) < 30
    assert not threads_named("reader", "writer")


def test_waiting_is_measured(images, journal):
    clock = Clock()
    run(images, journal, clock=clock)
    assert clock.began is not None
    assert 0 <= clock.waited_for_images + clock.waited_for_writer <= clock.total
