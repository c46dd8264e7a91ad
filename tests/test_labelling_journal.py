"""The journal: what is written comes back, and whatever is torn is cut off."""

import errno
import json
import os
import warnings
import zlib
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.errors import OutputError, RunError
from clip2sam.labelling import journal as room
from clip2sam.labelling.journal import (
    Journal,
    Stamp,
    as_line,
    file_stamp,
    read_index,
    read_record,
    read_records,
)

CLASSES = ("cat", "dog", "日本")
IDS = (41, 7, 3, 1000, 5)
"""In the order of a source, which needn't be that of the numbers."""


def record(image_id, state="done"):
    name = f"ä/{image_id}\udcff.png"
    if state == "failed":
        reason = "it is \udc80 bad\n"
        return ImageRecord(image_id, name, state="failed", reason=reason, seconds={"decode": 0.1})
    rle = {"size": [10, 20], "counts": "0@`\\12"}
    annotations = (Annotation("日本", rle, 0.5, ((0.5, 12.25, 1), (3.0, 4.0, 0))),)
    return ImageRecord(
        image_id,
        name,
        (10, 20),
        state,
        annotations=annotations if state == "done" else (),
        presence=(0.1, None, 0.3),
        beaten=(False, False, True),
        seconds={"decode": 0.25},
    )


PIECES = [
    piece
    for i in IDS[:3]
    for line in [as_line(record(i), CLASSES, Stamp(5, i))]
    for piece in (line, line[:-1], line[:70], line[70:], line.replace(b"image", b"Image"))
]
"""Lines, whole and cut."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal-0001.jsonl"


def write(path, records):
    journal = Journal(path, IDS, CLASSES)
    for r in records:
        journal.append(r)
    journal.close()
    return journal


def stored(path, index=None):
    return list(read_records(path, index or read_index(path, IDS), IDS, CLASSES))


def test_records_come_back_in_the_sources_order_the_last_line_counts(path):
    journal = write(path, [record(1000), record(41, "failed"), record(3, "empty"), record(41)])
    assert stored(path) == [record(41), record(3, "empty"), record(1000)]
    assert journal.index.failed == set()
    assert read_index(path, IDS) == journal.index
    with closing(Journal(path, IDS, CLASSES)) as again:
        again.append(record(3, "failed"))
    assert read_index(path, IDS).failed == {3}


def test_every_line_is_json_with_the_checksum_of_the_rest(path):
    write(path, [record(41), record(7, "failed")])
    for line in path.read_bytes().splitlines():
        row = json.loads(line)
        assert list(row)[:3] == ["crc", "image_id", "state"]
        rest = line.replace(b'"crc":"' + row["crc"].encode() + b'",', b"", 1)
        assert int(row["crc"], 16) == zlib.crc32(rest)


def test_cut_at_every_byte_of_its_last_three_lines(path):
    """At most the line that is cut is lost, and what is appended afterwards is whole."""
    records = [record(i, "failed" if i == 1000 else "done") for i in IDS]
    lines = [as_line(r, CLASSES) for r in records]
    whole = b"".join(lines)
    first = len(b"".join(lines[:2]))
    ends = [sum(map(len, lines[:n])) for n in range(6)]
    for cut in range(first, len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = max(n for n in range(6) if ends[n] <= cut)
        journal = Journal(path, IDS, CLASSES)
        assert list(journal.index.offsets) == list(IDS[:kept])
        assert path.stat().st_size == ends[kept]
        for r in records[kept:]:
            journal.append(r)
        journal.close()
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 5000, b"\xff", b'{"crc":"00000000","image_id":7,"state":"done",'],
)
def test_one_torn_line_at_the_end_is_cut_off(path, garbage):
    write(path, [record(41)])
    good = path.read_bytes()
    path.write_bytes(good + garbage)
    Journal(path, IDS, CLASSES).close()
    assert path.read_bytes() == good
    assert list(path.parent.iterdir()) == [path]


def all_lines():
    return b"".join(as_line(record(i), CLASSES) for i in IDS)


def pretty_printed():
    rows = [json.loads(line) for line in all_lines().splitlines()]
    return b"".join(json.dumps(row, indent=1).encode() + b"\n" for row in rows)


UNREADABLE = {
    "an object": (b"{}\n", 1),
    "lines without text": (b"\xff\n\n", 2),
    "UTF-16": (all_lines().decode().encode("utf-16"), 5),
    "pretty-printed": (pretty_printed(), None),
    "old Mac line ends": (all_lines().replace(b"\n", b"\r"), 1),
    "one line joined": (all_lines().replace(b"\n", b""), 1),
    "images that the run doesn't have": (as_line(record(8), CLASSES) * 3, 3),
}


@pytest.mark.parametrize(("bad", "lines"), UNREADABLE.values(), ids=UNREADABLE)
def test_more_than_a_torn_line_is_copied_before_it_is_cut_off(path, bad, lines):
    write(path, [record(41)])
    good = path.read_bytes()
    for n in (1, 2):
        path.write_bytes(good + bad)
        with pytest.warns(
            UserWarning, match=rf"jsonl: {lines or '[0-9]+'} of its lines can't be .*"
        ) as w:
            Journal(path, IDS, CLASSES).close()
        copy = path.with_name(f"journal-0001.jsonl.damaged-{n}")
        assert f"is kept as {copy.name}. What they said is labelled again" in str(w[0].message)
        assert copy.read_bytes() == good + bad
        assert path.read_bytes() == good
    assert len(list(path.parent.iterdir())) == 3


@pytest.mark.parametrize("end", [b"\r\n", b" \n", b"\t \r\n"])
def test_blanks_and_carriage_returns_at_the_end_of_lines_do_no_harm(path, end):
    path.write_bytes(all_lines().replace(b"\n", end))
    with closing(Journal(path, IDS, CLASSES)) as journal:
        journal.append(record(41, "failed"))
    assert stored(path) == [record(41, "failed"), *(record(i) for i in IDS[1:])]
    assert read_index(path, IDS).passed_over == 0


def test_the_size_and_time_of_the_file_that_was_read_are_kept(path):
    with closing(Journal(path, IDS, CLASSES)) as journal:
        journal.append(record(41), Stamp(123, 1_700_000_000_000_000_001))
        journal.append(record(7, "failed"), Stamp(0, -5))
        journal.append(record(3), Stamp(9, 9))
        journal.append(record(3))
    assert journal.index.stamps == {41: Stamp(123, 1_700_000_000_000_000_001), 7: Stamp(0, -5)}
    assert read_index(path, IDS) == journal.index
    assert stored(path) == [record(41), record(7, "failed"), record(3)]
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [row.get("file") for row in rows] == [
        [123, 1_700_000_000_000_000_001],
        [0, -5],
        [9, 9],
        None,
    ]


def test_the_hash_of_the_file_is_kept_when_there_is_one(path, tmp_path):
    (tmp_path / "a.png").write_bytes(b"abc")
    stamp = file_stamp(str(tmp_path / "a.png"), hashed=True)
    assert stamp.size == 3
    assert stamp.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with closing(Journal(path, IDS, CLASSES)) as journal:
        journal.append(record(41), stamp)
        journal.append(record(7), Stamp(5, 6))
    assert read_index(path, IDS).stamps == {41: stamp, 7: Stamp(5, 6)} == journal.index.stamps
    assert stored(path) == [record(41), record(7)]
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [row["file"] for row in rows] == [list(stamp), [5, 6]]


def test_what_is_no_file_has_no_hash(tmp_path):
    """A pipe would be waited for, for ever."""
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        stamp = file_stamp(str(place), hashed=True)
        assert (stamp is not None, stamp.sha256) == (True, None)
    assert file_stamp(str(tmp_path / "none"), hashed=True) is None


@pytest.mark.parametrize("kind", ["folder", "pipe", "locked"])
def test_a_journal_that_is_no_file_is_refused_in_a_line(path, kind):
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"")
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    message = "can't be read" if kind == "locked" else "expected the run's journal, which is a file"
    with pytest.raises(RunError, match=message):
        Journal(path, IDS, CLASSES)


def test_a_damaged_line_before_good_ones_costs_its_image_only(path):
    write(path, [record(41), record(7), record(3)])
    data = bytearray(path.read_bytes())
    data[len(as_line(record(41), CLASSES)) + 60] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"1 of its lines can't be read, .* have\. What they said"):
        journal = Journal(path, IDS, CLASSES)
    assert list(path.parent.iterdir()) == [path], "nothing was cut off, so nothing was copied"
    assert list(journal.index.offsets) == [41, 3]
    assert path.stat().st_size == len(data)
    journal.append(record(7))
    journal.close()
    assert [r.image_id for r in stored(path)] == [41, 7, 3]


def test_any_changed_byte_is_noticed(path):
    line = as_line(record(41), CLASSES)
    for i in range(len(line)):
        path.write_bytes(line[:i] + bytes([line[i] ^ 4]) + line[i + 1 :])
        assert read_index(path, IDS).offsets == {}, i


def test_an_image_that_the_run_does_not_have_is_damage(path):
    path.write_bytes(as_line(record(8), CLASSES))
    assert read_index(path, IDS).offsets == {}
    assert read_index(path, (*IDS, 8)).offsets == {8: 0}


def test_a_change_while_reading_is_noticed(path):
    write(path, [record(41)])
    with open(path, "rb") as file, pytest.raises(RunError, match="has changed at byte 3"):
        read_record(file, 3, CLASSES)


def test_a_line_that_is_no_record_is_refused_even_with_its_checksum(path):
    for rest in (
        b"1}",
        b'"size":[1]}',
        b'"annotations":[{"label":99}],"size":[1,1]}',
        b"[" * 99999,
    ):
        body = b'{"image_id":41,"state":"done",' + rest
        line = b'{"crc":"%08x",' % zlib.crc32(body.rstrip(b" \t\r\n")) + body[1:] + b"\n"
        path.write_bytes(line)
        index = read_index(path, IDS)
        assert list(index.offsets) == [41]
        with pytest.raises(RunError, match="the line at byte 0 of the journal is no record of"):
            stored(path)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, b"\n", b"\r\n", b"\0", b"{", b"\xff\xfe"]), max_size=12))
def test_no_journal_breaks_a_start_and_none_is_cut_without_a_copy(tmp_path_factory, pieces):
    """Whatever the bytes: every line that is whole is kept, and what is cut off is a torn line or
    was copied first."""
    path = tmp_path_factory.mktemp("fuzz") / "journal-0001.jsonl"
    path.write_bytes(data := b"".join(pieces))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Journal(path, IDS, CLASSES).close()
    kept, copies = path.read_bytes(), list(path.parent.glob("*.damaged-*"))
    assert data.startswith(kept)
    lost = data[len(kept) :]
    if b"\n" in lost or lost.count(b'"crc":') > 1:
        assert [copy.read_bytes() for copy in copies] == [data]
        assert said
    for r in stored(path):
        assert r in map(record, IDS)


def test_a_full_disk_leaves_no_half_line(path, monkeypatch):
    """The disk takes a part of the third line, then nothing; with room again, the run continues."""
    journal = Journal(path, IDS, CLASSES)
    journal.append(record(41))
    journal.append(record(7))
    good, real = path.read_bytes(), os.write

    def full(descriptor, data):
        if len(data) > 40:
            return real(descriptor, data[:40])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(room.os, "write", full)
    with pytest.raises(
        OutputError, match=r"No space left on device.*make room.*continues where it stopped"
    ):
        journal.append(record(3))
    monkeypatch.undo()
    assert path.read_bytes() == good
    journal.append(record(3))
    journal.close()
    assert stored(path) == [record(41), record(7), record(3)]


def test_a_really_full_disk(path, monkeypatch):
    """/dev/full refuses every byte."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    journal, real = Journal(path, IDS, CLASSES), os.write
    full = os.open("/dev/full", os.O_WRONLY)  # never read: its zeros have no end
    monkeypatch.setattr(room.os, "write", lambda descriptor, data: real(full, data))
    with pytest.raises(OutputError, match="No space left"):
        journal.append(record(41))
    os.close(full)
    journal.close()
    assert path.read_bytes() == b""


class Disk:
    """Notes when the journal's bytes, and its folder's entries, are brought to the disk."""

    def __init__(self, monkeypatch):
        self.synced: list[int] = []
        """The journal's size at each sync."""
        self.folders = 0
        self.now = 0.0
        monkeypatch.setattr(room.os, "fdatasync", self._sync, raising=False)
        monkeypatch.setattr(room, "sync_folder", self._sync_folder)
        monkeypatch.setattr(room.time, "monotonic", lambda: self.now)

    def _sync(self, descriptor):
        self.synced.append(os.fstat(descriptor).st_size)

    def _sync_folder(self, folder):
        assert (folder / "journal-0001.jsonl").exists()
        self.folders += 1


def test_lines_go_to_the_disk_by_number_by_time_and_at_the_end(path, monkeypatch):
    disk = Disk(monkeypatch)
    journal = Journal(path, IDS, CLASSES)
    assert disk.folders == 1, "the new file's name is on the disk before its first line"
    sizes = []
    for _ in range(130):
        journal.append(record(41))
        sizes.append(path.stat().st_size)
    assert disk.synced == [sizes[63], sizes[127]]
    journal.sync_if_due()
    assert len(disk.synced) == 2
    disk.now = 6.0
    journal.sync_if_due()
    assert disk.synced[2:] == [sizes[-1]]
    disk.now = 60.0
    journal.sync_if_due()
    assert len(disk.synced) == 3, "nothing new was there"
    journal.append(record(7))
    assert len(disk.synced) == 4, "it is long ago"
    journal.append(record(3))
    journal.close()
    assert disk.synced[4:] == [path.stat().st_size]


def test_a_disk_that_refuses_to_sync_is_an_error_of_the_output(path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    journal = Journal(path, IDS, CLASSES)
    journal.append(record(41))
    monkeypatch.setattr(room.os, "fdatasync", refuse, raising=False)
    with pytest.raises(OutputError, match=r"journal-0001\.jsonl: .*Input/output error"):
        journal.sync()
    with pytest.raises(OutputError):
        journal.close()
