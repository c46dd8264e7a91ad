"""Decoding elsewhere: pixels come back unchanged, crashes and hangs cost their image, nothing stays
behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from clip2sam.data.images import MAX_PIXELS, Image, load_image
from clip2sam.errors import ImageError, RunError
from clip2sam.labelling import decode_worker
from clip2sam.labelling.decode_worker import Budget, DecodeWorker
from clip2sam.labelling.readers import Readers
from tests.labelling_fakes import Here, reads, threads_named, write_images

# A far end with a native crash and a hang in it, by the image's name.
FAULTY = """
import ctypes, os
from clip2sam.labelling import decode_worker
real = decode_worker.load_image
def load_image(path, **settings):
    name = os.path.basename(path)
    if "crash" in name:
        ctypes.string_at(0)
    if "hang" in name:
        ctypes.PyDLL(None).sleep(1000)  # holds the interpreter's lock, as native code can
    if "chatty" in name:
        print("what a library prints")
    return real(path, **settings)
decode_worker.load_image = load_image
decode_worker.serve()
"""


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "in", 3)


@pytest.fixture
def worker():
    with DecodeWorker(MAX_PIXELS, 60.0) as made:
        yield made


def alive(pid):
    """Whether the process runs; one that has ended is waited for by then."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_pixels_come_back_unchanged_from_paths_and_bytes(images, worker):
    for i in range(3):
        path, key = images / f"{i:03d}.png", f"sub/\udcff{i}.png"
        expected = load_image(path).pixels
        for data in (str(path), path.read_bytes()):
            image = worker.decode(data, key)
            np.testing.assert_array_equal(image.pixels, expected)
            assert image.origin == f"sub/%FF{i}.png"
    pid = worker.pid
    assert alive(pid)
    worker.stop()
    assert not alive(pid)
    assert worker.pid is None


def test_large_bytes_come_through_the_pipe_whole(worker):
    pixels = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    data = b"P6 900 700 255\n" + pixels.tobytes()
    assert len(data) > 2**20, "more than any pipe holds"
    np.testing.assert_array_equal(worker.decode(data, "a").pixels, pixels)
    np.testing.assert_array_equal(worker.decode(data, "b").pixels, pixels)


SMALL = """
from clip2sam.labelling import decode_worker
decode_worker.LARGE = 100
decode_worker.serve()
"""


def test_large_images_share_a_budget_of_memory(images, monkeypatch):
    """Each asks, and only what fits is decoded at the same time; it comes out all the same."""
    monkeypatch.setattr(decode_worker, "CODE", SMALL)
    taken, most, sizes, lock = 0, 0, [], threading.Lock()

    class Watched(Budget):
        @contextmanager
        def taken(self, size):
            nonlocal taken, most
            with super().taken(size):
                with lock:
                    taken, most = taken + size, max(most, taken + size)
                    sizes.append(size)
                time.sleep(0.02)
                yield
                with lock:
                    taken -= size

    expected = load_image(images / "000.png")
    budget = Watched(2 * expected.pixels.size // 3 * decode_worker.BYTES_PER_PIXEL)
    make = lambda: DecodeWorker(MAX_PIXELS, 60.0, budget)  # noqa: E731
    wanted = [(i, "000.png") for i in range(20)]
    with Readers(iter(wanted), reads(images), make, 4) as readers:
        for read in readers:
            np.testing.assert_array_equal(read.image.pixels, expected.pixels)
    assert sizes == [24 * 24 * decode_worker.BYTES_PER_PIXEL] * 20
    assert most == 2 * sizes[0]


def test_one_larger_than_the_budget_waits_until_it_is_alone():
    budget, order = Budget(10), []

    def large():
        with budget.taken(100):
            order.append("large")

    with budget.taken(5):
        thread = threading.Thread(target=large)
        thread.start()
        time.sleep(0.05)
        order.append("small")
    thread.join(10)
    assert order == ["small", "large"]


LYING = """
from clip2sam.labelling import decode_worker
def load_image(data, max_pixels):
    bytearray(5 * 2**30)
decode_worker.load_image = load_image
decode_worker.serve()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit may not be there")
def test_a_worker_may_take_no_more_memory_than_an_image_needs(images, monkeypatch):
    monkeypatch.setattr(decode_worker, "CODE", LYING)
    with DecodeWorker(10**6, 60.0) as worker:
        with pytest.raises(ImageError, match=r"^a\.png: can't be read \(out of memory\)"):
            worker.decode(str(images / "000.png"), "a.png")
        assert worker.pid is not None


@pytest.mark.parametrize("as_bytes", [False, True])
def test_failures_have_the_name_of_the_source(images, as_bytes):
    PILImage.fromarray(np.zeros((300, 400, 3), np.uint8)).save(images / "large.png")
    (images / "bad\udcff.jpg").write_bytes(b"not an image")
    (images / "empty.png").write_bytes(b"")
    with DecodeWorker(100_000, 60.0) as worker:
        for key, message in (
            ("bad\udcff.jpg", r"^bad%FF\.jpg: expected an image .*text that starts with 'not an"),
            ("large.png", r"^large\.png: expected at most 100,000 pixels"),
            ("empty.png", r"^empty\.png: .*empty"),
        ):
            path = images / key
            with pytest.raises(ImageError, match=message) as caught:
                worker.decode(path.read_bytes() if as_bytes else str(path), key)
            assert str(images) not in str(caught.value)
        with pytest.raises(ImageError, match=r"^gone\.png: no such file"):
            worker.decode(str(images / "gone.png"), "gone.png")
        assert worker.decode(str(images / "000.png"), "000.png").origin == "000.png"


def test_a_crash_and_a_hang_cost_their_image(images, worker, monkeypatch):
    monkeypatch.setattr(decode_worker, "CODE", FAULTY)
    whole = images / "000.png"
    for name in ("crash.png", "hang.png", "chatty.png"):
        (images / name).write_bytes(whole.read_bytes())
    with pytest.raises(
        ImageError, match=r"crash\.png: the decode worker crashed on this image \(SIGSEGV\)"
    ):
        worker.decode(str(images / "crash.png"), "crash.png")
    worker.timeout = 1.0
    with pytest.raises(ImageError, match=r"hang\.png: decoding took more than 1 seconds"):
        worker.decode(str(images / "hang.png"), "hang.png")
    image = worker.decode(str(images / "chatty.png"), "chatty.png")
    assert image.size == load_image(whole).size


def test_the_timer_runs_while_an_image_is_decoded_only(images, worker):
    """Whatever time passes between images, nothing ends the process."""
    worker.timeout = 1.0
    worker.decode(str(images / "000.png"), "000.png")
    pid = worker.pid
    time.sleep(1.3)
    assert worker.decode(str(images / "001.png"), "001.png").origin == "001.png"
    assert worker.pid == pid


def test_a_worker_that_was_killed_between_images_costs_one(images, worker):
    worker.decode(str(images / "000.png"), "000.png")
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ImageError, match="SIGKILL"):
        worker.decode(str(images / "001.png"), "001.png")
    assert worker.decode(str(images / "001.png"), "001.png").origin == "001.png"


OWNER = """
import os, signal, sys
from clip2sam.labelling.decode_worker import Budget, DecodeWorker
worker = DecodeWorker(10**8, 60.0)
worker.decode(sys.argv[1], "key")
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_ends_when_its_owner_is_killed(images):
    path = str(images / "000.png")
    owner = subprocess.run(
        [sys.executable, "-c", OWNER, path], capture_output=True, text=True, check=False
    )
    assert owner.returncode == -signal.SIGKILL, owner.stderr
    while runs(int(owner.stdout)):
        time.sleep(0.01)


def runs(pid):
    """Whether a process that isn't a child runs. One that has ended may stay, if nobody waits for
    it."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_worker_that_cannot_start_stops_the_run(images, monkeypatch):
    monkeypatch.setattr(decode_worker, "CODE", "raise SystemExit(1)")
    with pytest.raises(RunError, match="no decode worker could be started"):
        DecodeWorker(MAX_PIXELS, 60.0).decode(str(images / "000.png"), "000.png")
    make = lambda: DecodeWorker(MAX_PIXELS, 60.0)  # noqa: E731
    with (
        pytest.raises(RunError, match="no decode worker"),
        Readers(iter([(1, "000.png")]), reads(images), make, 1) as readers,
    ):
        next(readers)


def test_the_far_end_loads_no_torch(images, worker):
    worker.decode(str(images / "000.png"), "000.png")
    maps = f"/proc/{worker.pid}/maps"
    if not os.path.exists(maps):
        pytest.skip("this system doesn't show what a process has loaded")
    with open(maps) as file:
        assert "libtorch" not in file.read()


def test_readers_yield_every_image_once(images):
    wanted = [(i, f"{i % 4:03d}.png") for i in range(40)]
    with Readers(iter(wanted), reads(images), Here, 3) as readers:
        got = list(readers)
    assert sorted(r.image_id for r in got) == list(range(40))
    assert all((r.image is None) == (r.image_id % 4 == 3) == bool(r.failure) for r in got)
    assert not threads_named("reader")


def test_a_source_may_fail_by_itself_and_may_read_bytes(images):
    def read(key):
        if key == "gone":
            raise ImageError("gone: no such object; check the bucket")
        return (images / key).read_bytes()

    wanted = [(1, "gone"), (2, "000.png")]
    with Readers(iter(wanted), read, lambda: DecodeWorker(MAX_PIXELS, 60.0), 1) as readers:
        gone, good = readers
    assert (gone.image, gone.failure) == (None, "gone: no such object; check the bucket")
    np.testing.assert_array_equal(good.image.pixels, load_image(images / "000.png").pixels)


def test_images_are_prepared_in_the_readers_threads(images):
    names = []

    class Prepared:
        nbytes = 7

    def prepare(image):
        names.append(threading.current_thread().name)
        if image.origin == "001.png":
            raise MemoryError
        return Prepared()

    wanted = [(i, f"{i:03d}.png") for i in range(3)]
    with Readers(iter(wanted), reads(images), Here, 1, prepare) as readers:
        got = {read.image_id: read for read in readers}
    assert names == ["reader-0"] * 3
    assert isinstance(got[0].prepared, Prepared)
    assert got[0].nbytes == 7
    assert got[1].prepared is None
    assert got[1].nbytes == got[1].image.pixels.nbytes


def test_a_name_that_coco_cannot_hold_costs_its_image(images):
    (images / "a\\b.png").write_bytes((images / "000.png").read_bytes())
    with Readers(iter([(1, "a\\b.png")]), reads(images), Here, 1) as readers:
        (read,) = readers
    assert read.image is None
    assert read.failure.startswith("a%5Cb.png: expected a POSIX path")
    assert read.failure.endswith("; rename it")


def test_readers_stay_ahead_by_a_bounded_amount(monkeypatch):
    """So many bytes, or one image, however many threads there are; one that is too large for that
    comes through."""
    monkeypatch.setattr("clip2sam.labelling.readers.BYTES_AHEAD", 3 * 100 * 100 * 3)
    decoded = []

    class Counting(Here):
        def decode(self, data, key):
            decoded.append(key)
            side = 400 if key == "10" else 100
            return Image(np.zeros((side, side, 3), np.uint8), key)

    with Readers(((i, str(i)) for i in range(30)), str, Counting, 2) as readers:
        taken = 0
        for _ in readers:
            taken += 1
            for _ in range(20):  # time for the threads to run ahead, if they would
                time.sleep(0.001)
            assert len(decoded) - taken <= 3 + 2
    assert taken == len(decoded) == 30


def test_one_slow_image_does_not_hold_up_the_others(images):
    go = threading.Event()

    class Slow(Here):
        def decode(self, data, key):
            if key == "slow":
                go.wait(30)
                data = str(images / "000.png")
            return super().decode(data, key)

    wanted = [(0, "slow"), *((i, "001.png") for i in range(1, 50))]
    with Readers(iter(wanted), reads(images), Slow, 2) as readers:
        got = [next(readers).image_id for _ in range(49)]
        go.set()
        got.append(next(readers).image_id)
    assert got[-1] == 0


def test_leaving_early_ends_threads_and_processes(images):
    made = []

    def make():
        made.append(DecodeWorker(MAX_PIXELS, 60.0))
        return made[-1]

    with Readers(((i, "000.png") for i in range(10**6)), reads(images), make, 2) as readers:
        next(readers)
        pids = [worker.pid for worker in made if worker.pid]
    assert not threads_named("reader")
    assert pids
    assert not any(alive(pid) for pid in pids)
    assert all(worker.pid is None for worker in made)


def test_leaving_early_stops_a_worker_that_is_busy(images):
    began, stopped, in_time = threading.Event(), threading.Event(), []

    class Busy(Here):
        def decode(self, data, key):
            if key == "001.png":
                began.set()
                in_time.append(stopped.wait(30))
            return super().decode(data, key)

        def stop(self):
            stopped.set()

    wanted = [(0, "000.png"), (1, "001.png")]
    with Readers(iter(wanted), reads(images), Busy, 1) as readers:
        next(readers)
        began.wait()
    assert in_time == [True]
    assert not threads_named("reader")


@pytest.mark.parametrize("where", ["worker", "source"])
def test_an_error_in_a_reader_is_not_lost(images, where):
    class Broken(Here):
        def decode(self, data, key):
            raise ZeroDivisionError(key)

    read = reads(images) if where == "worker" else lambda key: 1 // 0
    with (
        pytest.raises(ZeroDivisionError),
        Readers(iter([(1, "a")]), read, Broken, 1) as readers,
    ):
        next(readers)
