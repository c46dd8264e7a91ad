"""Decoding elsewhere: pixels come back unchanged, crashes and hangs cost their picture, nothing stays behind."""

import os
import threading
import time

import numpy as np
import pytest
from PIL import Image as PILImage

from clip2sam.data.images import MAX_PIXELS, load_image
from clip2sam.errors import ImageError, RunError
from clip2sam.labelling import decode_worker as room
from clip2sam.labelling.decode_worker import DecoderProcess
from clip2sam.labelling.readers import Readers
from tests.labelling_fakes import Here, threads_named, write_pictures

# A far end with a native crash and a hang in it, by the picture's name.
FAULTY = """
import ctypes, os
from clip2sam.labelling import decode_worker as decoder
real = decoder.load_image
def load_image(path, **settings):
    name = os.path.basename(path)
    if "crash" in name:
        ctypes.string_at(0)
    if "hang" in name:
        ctypes.PyDLL(None).sleep(1000)  # holds the interpreter's lock, as a hang in a native decoder can
    if "chatty" in name:
        print("what a library prints")
    return real(path, **settings)
decoder.load_image = load_image
decoder.serve()
"""


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "in", 3)


def alive(process):
    return process is not None and process.poll() is None


def test_pixels_come_back_unchanged_and_failures_with_the_lists_name(pictures):
    PILImage.fromarray(np.zeros((300, 400, 3), np.uint8)).save(pictures / "large.png")
    (pictures / "bad\udcff.jpg").write_bytes(b"not a picture")
    (pictures / "out.png").symlink_to("/etc/passwd")
    with DecoderProcess(str(pictures), 100_000, 60.0) as decoder:
        for i in range(3):
            image = decoder.decode(f"{i:03d}.png")
            np.testing.assert_array_equal(
                image.pixels, load_image(pictures / f"{i:03d}.png").pixels
            )
            assert image.origin == f"{i:03d}.png"
        with pytest.raises(
            ImageError, match=r"^bad%FF\.jpg: expected a picture .*text that starts with 'not a"
        ):
            decoder.decode("bad\udcff.jpg")
        with pytest.raises(ImageError, match=r"^large\.png: expected at most 100,000 pixels"):
            decoder.decode("large.png")
        with pytest.raises(ImageError, match="leads out of"):
            decoder.decode("out.png")
        with pytest.raises(ImageError, match=r"^gone\.png: no such file"):
            decoder.decode("gone.png")
        process = decoder._process
        assert alive(process)
    assert not alive(process)


def test_a_crash_and_a_hang_cost_their_picture(pictures, monkeypatch):
    monkeypatch.setattr(room, "CODE", FAULTY)
    for name in ("crash.png", "hang.png", "chatty.png"):
        (pictures / name).write_bytes((pictures / "000.png").read_bytes())
    with DecoderProcess(str(pictures), MAX_PIXELS, 0.3) as decoder:
        with pytest.raises(
            ImageError, match=r"crash\.png: the decoder crashed on this picture \(SIGSEGV\)"
        ):
            decoder.decode("crash.png")
        decoder.timeout = 1.0
        with pytest.raises(ImageError, match=r"hang\.png: decoding took more than 1 seconds"):
            decoder.decode("hang.png")
        assert decoder.decode("chatty.png").size == load_image(pictures / "000.png").size


def test_a_decoder_that_was_killed_between_pictures_costs_one(pictures):
    with DecoderProcess(str(pictures), MAX_PIXELS, 60.0) as decoder:
        decoder.decode("000.png")
        decoder._process.kill()
        decoder._process.wait()
        with pytest.raises(ImageError, match="SIGKILL"):
            decoder.decode("001.png")
        assert decoder.decode("001.png").origin == "001.png"


def test_a_decoder_ends_when_nobody_asks_any_more(pictures):
    decoder = DecoderProcess(str(pictures), MAX_PIXELS, 60.0)
    decoder.decode("000.png")
    process = decoder._process
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()


def test_a_decoder_that_cannot_start_stops_the_run(pictures, monkeypatch):
    monkeypatch.setattr(room, "CODE", "raise SystemExit(1)")
    with pytest.raises(RunError, match="no decoder process could be started"):
        DecoderProcess(str(pictures), MAX_PIXELS, 60.0).decode("000.png")
    with (
        pytest.raises(RunError, match="no decoder process"),
        Readers(
            iter([(0, "000.png")]), lambda: DecoderProcess(str(pictures), MAX_PIXELS, 60.0), 1
        ) as readers,
    ):
        next(readers)


def test_readers_yield_every_picture_once(pictures):
    wanted = [(i, f"{i % 4:03d}.png") for i in range(40)]
    with Readers(iter(wanted), lambda: Here(pictures), 3) as readers:
        got = list(readers)
    assert sorted(r.picture for r in got) == list(range(40))
    assert all((r.image is None) == (r.picture % 4 == 3) == bool(r.failure) for r in got)
    assert not threads_named("reader")


def test_a_name_that_coco_cannot_hold_costs_its_picture(pictures):
    (pictures / "a\\b.png").write_bytes((pictures / "000.png").read_bytes())
    with Readers(iter([(0, "a\\b.png")]), lambda: Here(pictures), 1) as readers:
        (read,) = readers
    assert read.image is None
    assert read.failure.startswith("a%5Cb.png: expected a POSIX path")
    assert read.failure.endswith("; rename it")


def test_readers_stay_ahead_by_a_bounded_amount(monkeypatch):
    """So many bytes, or one picture, however many threads there are; one that is too large for it comes through."""
    monkeypatch.setattr("clip2sam.labelling.readers.BYTES_AHEAD", 3 * 100 * 100 * 3)
    decoded = []

    class Counting(Here):
        def decode(self, key):
            decoded.append(key)
            side = 400 if key == "10" else 100
            return room.Image(np.zeros((side, side, 3), np.uint8), key)

    with Readers(((i, str(i)) for i in range(30)), lambda: Counting(""), 2) as readers:
        taken = 0
        for _ in readers:
            taken += 1
            for _ in range(20):  # time for the threads to run ahead, if they would
                time.sleep(0.001)
            assert len(decoded) - taken <= 3 + 2
    assert taken == len(decoded) == 30


def test_one_slow_picture_does_not_hold_up_the_others(pictures):
    go = threading.Event()

    class Slow(Here):
        def decode(self, key):
            if key == "slow":
                go.wait(30)
                key = "000.png"
            return super().decode(key)

    wanted = [(0, "slow"), *((i, "001.png") for i in range(1, 50))]
    with Readers(iter(wanted), lambda: Slow(pictures), 2) as readers:
        got = [next(readers).picture for _ in range(49)]
        go.set()
        got.append(next(readers).picture)
    assert got[-1] == 0


def test_leaving_early_ends_threads_and_processes(pictures):
    made = []

    def make():
        made.append(DecoderProcess(str(pictures), MAX_PIXELS, 60.0))
        return made[-1]

    with Readers(((i, "000.png") for i in range(10**6)), make, 2) as readers:
        next(readers)
        processes = [d._process for d in made if d._process]
    assert not threads_named("reader")
    assert not any(alive(p) for p in processes)
    assert all(d._process is None for d in made)


def test_an_error_in_a_reader_is_not_lost(pictures):
    class Broken(Here):
        def decode(self, key):
            raise ZeroDivisionError(key)

    with (
        pytest.raises(ZeroDivisionError),
        Readers(iter([(0, "a")]), lambda: Broken(pictures), 1) as readers,
    ):
        next(readers)


def test_the_far_end_loads_no_pytorch(pictures):
    with DecoderProcess(str(pictures), MAX_PIXELS, 60.0) as decoder:
        decoder.decode("000.png")
        maps = f"/proc/{decoder._process.pid}/maps"
        if not os.path.exists(maps):
            pytest.skip("this system doesn't show what a process has loaded")
        with open(maps) as file:
            assert "libtorch" not in file.read()
