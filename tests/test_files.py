"""Files appear whole or not at all, and reach the disk in the right order."""

import json
import os

import pytest

from clip2sam.data.files import JsonList, as_json, atomic_file, output_errors, write_atomically
from clip2sam.errors import OutputError, WeightsError


def test_the_bytes_reach_the_disk_before_the_name_and_the_folder_after_it(tmp_path, monkeypatch):
    """Else a power cut leaves an empty file under the name, or the old one, or none."""
    path = tmp_path / "data.bin"
    path.write_bytes(b"old")
    steps = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor: int) -> None:
        synced = os.readlink(f"/proc/self/fd/{descriptor}")
        if synced == str(tmp_path):
            steps.append(("fsync folder", path.read_bytes()))
        else:
            with open(synced, "rb") as file:
                steps.append(("fsync file", file.read()))
        fsync(descriptor)

    def traced_replace(source, target) -> None:
        steps.append(("replace", target == path))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert steps == [("fsync file", b"new"), ("replace", True), ("fsync folder", b"new")]
    steps.clear()
    write_atomically(path, b"newer")
    assert steps == [("fsync file", b"newer"), ("replace", True), ("fsync folder", b"newer")]


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "data.json"
    path.write_text("the old one")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, full)
    with pytest.raises(
        OutputError, match=r"data\.json: can't be written \(No space left on device\); make room"
    ):
        write_atomically(path, b"new")
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_raised_while_writing_goes_through_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "data.json"
    path.write_text("the old one")

    def write_half(error: BaseException) -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise error

    for error in (KeyboardInterrupt(), ValueError("x"), WeightsError("an OSError of our own")):
        with pytest.raises(type(error)) as caught:
            write_half(error)
        assert caught.value is error
        assert path.read_text() == "the old one"
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "data.json"
    path.write_text("the old one")
    child = os.fork()
    if child == 0:
        try:
            os.fsync = lambda _: os._exit(9)  # the bytes are written, the name is not there yet
            write_atomically(path, b"x" * 100_000)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert path.read_text() == "the old one"


def test_missing_folders_are_made_and_long_names_in_any_script_fit(tmp_path):
    path = tmp_path / "a" / "b" / ("犬" * 80 + ".json")  # 245 bytes; a file system takes 255
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"
    assert len(list(path.parent.iterdir())) == 1


def test_places_that_can_t_be_written(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "data.json"):
        with pytest.raises(OutputError, match="can't be written"):
            write_atomically(path, b"x")


def test_an_error_of_the_output_is_named_once(tmp_path):
    inner = OutputError("inner.json: can't be written")
    with pytest.raises(OutputError) as caught, output_errors(tmp_path / "outer.json"):
        raise inner
    assert caught.value is inner


def test_json_is_compact_in_any_script_and_carries_undecodable_bytes(tmp_path):
    value = {"a": [1, 0.1, None], "b": "犬 " + os.fsdecode(b"caf\xe9")}
    text = as_json(value)
    assert text == '{"a":[1,0.1,null],"b":"犬 caf\\udce9"}'
    assert json.loads(text.encode()) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json(float("nan"))
    with open(tmp_path / "list.json", "w+b") as file:
        rows = JsonList(file, [1, 2])
        rows.add({"a": "犬"})
        file.seek(0)
        assert file.read().decode() == '1,2,{"a":"犬"}'
