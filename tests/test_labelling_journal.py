"""The journal: what is written comes back, and whatever is torn is cut off."""

import errno
import json
import os

import pytest

from clip2sam.data.records import FoundMask, Labelled
from clip2sam.errors import OutputError, RunError
from clip2sam.labelling import journal as room
from clip2sam.labelling.journal import Journal, as_line, read_index, read_record, read_records


def record(picture, state="done", key=None):
    key = key or f"ä/{picture}\udcff.png"
    if state == "failed":
        return Labelled(picture, key, state, "it is \udc80 bad\n", seconds={"decode": 0.1})
    masks = (FoundMask(1, "0@`\\12", 0.5, ((0.5, 12.25, 1), (3.0, 4.0, 0))),)
    return Labelled(
        picture,
        key,
        state,
        "",
        (10, 20),
        (0.1, None),
        masks if state == "done" else (),
        {"decode": 0.25},
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal-0001.jsonl"


def write(path, records, pictures=10):
    journal = Journal(path, pictures)
    for r in records:
        journal.append(r)
    journal.close()
    return journal


def test_records_come_back_in_the_lists_order_the_last_word_counts(path):
    written = [record(4), record(0, "failed"), record(2, "empty"), record(0)]
    journal = write(path, written)
    assert list(journal.records()) == [record(0), record(2, "empty"), record(4)]
    assert journal.index.failed == set()
    again = read_index(path, 10)
    assert again == journal.index
    assert list(read_records(path, again)) == list(journal.records())


def test_every_line_is_json_with_the_checksum_of_the_rest(path):
    import zlib

    write(path, [record(0), record(1, "failed")])
    for line in path.read_bytes().splitlines():
        row = json.loads(line)
        rest = line.replace(b'"crc":"' + row["crc"].encode() + b'",', b"", 1)
        assert int(row["crc"], 16) == zlib.crc32(rest)


def test_cut_at_every_byte_of_its_last_three_lines(path):
    """At most the line that is cut is lost, and what is appended afterwards is whole."""
    lines = [as_line(record(i, "failed" if i == 3 else "done")) for i in range(5)]
    whole = b"".join(lines)
    first = len(b"".join(lines[:2]))
    ends = [sum(map(len, lines[:n])) for n in range(6)]
    for cut in range(first, len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = max(n for n in range(6) if ends[n] <= cut)
        journal = Journal(path, 10)
        assert sorted(journal.index.offsets) == list(range(kept))
        assert path.stat().st_size == ends[kept]
        for i in range(kept, 5):
            journal.append(record(i, "failed" if i == 3 else "done"))
        os.close(journal._file)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 5000, b"{}\n", b"\xff\n\n", b'{"crc":"00000000","picture":1,"state":"done",'],
)
def test_garbage_at_the_end_is_cut_off(path, garbage):
    write(path, [record(0)])
    good = path.read_bytes()
    path.write_bytes(good + garbage)
    Journal(path, 10).close()
    assert path.read_bytes() == good


def test_a_damaged_line_before_good_ones_costs_its_picture_only(path):
    write(path, [record(0), record(1), record(2)])
    data = bytearray(path.read_bytes())
    data[len(as_line(record(0))) + 60] ^= 1
    path.write_bytes(data)
    journal = Journal(path, 10)
    assert sorted(journal.index.offsets) == [0, 2]
    assert journal.index.damaged == 1
    assert path.stat().st_size == len(data)
    journal.append(record(1))
    assert [r.picture for r in journal.records()] == [0, 1, 2]
    journal.close()


def test_any_changed_byte_is_noticed(path):
    line = as_line(record(0))
    for i in range(len(line)):
        path.write_bytes(line[:i] + bytes([line[i] ^ 4]) + line[i + 1 :])
        assert read_index(path, 10).offsets == {}, i


def test_a_picture_that_the_run_does_not_have_is_damage(path):
    path.write_bytes(as_line(record(7)))
    assert read_index(path, 7).offsets == {}
    assert read_index(path, 8).offsets == {7: 0}


def test_a_change_while_reading_is_noticed(path):
    write(path, [record(0)])
    with open(path, "rb") as file, pytest.raises(RunError, match="has changed at byte 3"):
        read_record(file, 3)


def test_a_full_disk_leaves_no_half_line(path, monkeypatch):
    """The disk takes a part of the third line, then nothing; with room again, the run goes on."""
    journal = write(path, [])
    journal = Journal(path, 10)
    journal.append(record(0))
    journal.append(record(1))
    good, real = path.read_bytes(), os.write

    def full(descriptor, data):
        if len(data) > 40:
            return real(descriptor, data[:40])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(room.os, "write", full)
    with pytest.raises(
        OutputError, match=r"No space left on device.*make room.*goes on where it stopped"
    ):
        journal.append(record(2))
    monkeypatch.undo()
    assert path.read_bytes() == good
    journal.append(record(2))
    journal.close()
    assert sorted(read_index(path, 10).offsets) == [0, 1, 2]


def test_a_really_full_disk(path):
    """/dev/full refuses every byte."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    journal = Journal(path, 10)
    os.dup2(os.open("/dev/full", os.O_WRONLY), journal._file)
    with pytest.raises(OutputError, match="No space left"):
        journal.append(record(0))
    os.close(journal._file)


def test_lines_go_to_the_disk_by_number_and_by_time(path, monkeypatch):
    synced = []
    monkeypatch.setattr(room.os, "fdatasync", synced.append, raising=False)
    now = [0.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    journal = Journal(path, 1000)
    for i in range(130):
        journal.append(record(i))
    assert len(synced) == 2
    journal.sync_if_due()
    assert len(synced) == 2
    now[0] = 6.0
    journal.sync_if_due()
    assert len(synced) == 3
    now[0] = 60.0
    journal.sync_if_due()
    assert len(synced) == 3, "nothing new was there"
    journal.close()
