"""Files appear whole or not at all, and reach the disk in the right order."""

import errno
import json
import os
import re
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip2sam.data.files import (
    JsonList,
    as_json,
    atomic_file,
    check_writable,
    fitting_name,
    output_errors,
    write_atomically,
)
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


@pytest.mark.parametrize(
    ("path", "folder", "message"),
    [
        ("file", True, r"file: can't be written \(File exists\); a file stands where a folder"),
        ("file/deep/x", True, "a file stands where a folder is needed"),
        ("file/x.json", False, "a file stands where a folder is needed"),
        ("made", False, r"made: can't be written \(Is a directory\); a folder has this name"),
        ("x" * 300, False, "give a shorter name"),
        ("pipe", False, "found a device, pipe or socket"),
        ("/proc/x", True, "/proc/x: can't be written"),
        ("/proc/x/y.json", False, "/proc/x/y.json: can't be written"),
    ],
)
def test_an_output_is_tried_in_front_of_a_job(tmp_path, monkeypatch, path, folder, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "made").mkdir()
    os.mkfifo("pipe")
    with pytest.raises(OutputError, match=message):
        check_writable(path, folder=folder)
    for good, kind in (("made", True), ("new/deep", True), ("file", False), ("new/x.json", False)):
        check_writable(good, folder=kind)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "made", "pipe"}
    assert list((tmp_path / "made").iterdir()) == []


def test_a_folder_that_refuses_files_is_found_out(tmp_path, monkeypatch):
    def refuse(**where):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OutputError, match=r"can't be written .* check the folder's permission"):
        check_writable(tmp_path / "out", folder=True)


def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    victim, path = tmp_path / "victim", tmp_path / "data.json"
    victim.write_text("not to be touched")
    path.symlink_to(victim)
    write_atomically(path, b"new")
    assert (path.is_symlink(), path.read_bytes()) == (False, b"new")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "01234567")
    planted = tmp_path / ".data.json.01234567.tmp"
    planted.symlink_to(victim)
    with pytest.raises(OutputError, match="can't be written"):
        write_atomically(path, b"newer")
    assert (planted.is_symlink(), path.read_bytes()) == (True, b"new"), "not ours to remove"
    planted.unlink()
    planted.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="can't be written"):
        write_atomically(path, b"newer")
    assert not (tmp_path / "nowhere").exists()
    assert victim.read_text() == "not to be touched"


def test_devices_and_pipes_are_not_replaced_by_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="expected a file or nothing there, found a device, pipe"):
        write_atomically(tmp_path / "pipe", b"x")
    assert not (tmp_path / "pipe").is_file()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("path", ["", "/", ".", "a\0b"])
def test_what_is_no_name_of_a_file_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="expected the path of a file to write, got"):
        write_atomically(path, b"x")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room, then start the same command again"),
        (errno.EDQUOT, "make room"),
        (errno.EROFS, "this place is read-only: give an output elsewhere"),
        (errno.EACCES, "check the folder's permissions, or give an output elsewhere"),
        (errno.EPERM, "check the folder's permissions"),
        (errno.ENAMETOOLONG, "give a shorter name"),
        (errno.ENOTDIR, "a file stands where a folder is needed: move it, or give another output"),
        (errno.EISDIR, "a folder has this name: move it, or give another output"),
        (errno.ENOENT, "check the path"),
        (errno.EIO, "check the disk, then start the same command again"),
    ],
)
def test_the_advice_fits_the_cause(number, advice):
    reason = os.strerror(number)
    with pytest.raises(OutputError) as caught, output_errors("x.json"):
        raise OSError(number, reason)
    assert str(caught.value).startswith(f"x.json: can't be written ({reason}); {advice}")
    assert ("make room" in str(caught.value)) == (number in (errno.ENOSPC, errno.EDQUOT))


def test_the_advice_of_real_causes(tmp_path):
    (tmp_path / "file").touch()
    for path, advice in (
        (tmp_path, "a folder has this name"),
        (tmp_path / "file" / "data.json", "a file stands where a folder is needed"),
        (tmp_path / "file" / "sub" / "data.json", "a file stands where a folder is needed"),
        (tmp_path / ("x" * 256), "give a shorter name"),
        ("/proc/clip2sam/data.json", "check the path"),
    ):
        with pytest.raises(OutputError, match=advice):
            write_atomically(path, b"x")


@given(name=st.text(min_size=1, max_size=300), ending=st.text(max_size=30))
def test_names_fit_a_file_system_by_their_bytes(name, ending):
    fitted = fitting_name(name, ending)
    assert len(os.fsencode(fitted)) <= 255
    assert fitted.endswith(ending)
    if len(os.fsencode(name + ending)) <= 255:
        assert fitted == name + ending
    else:
        start, mark = fitted[: len(fitted) - len(ending) - 9], fitted[-len(ending) - 9 :]
        assert name.startswith(start)
        assert re.match("~[0-9a-f]{8}", mark)
        assert len(os.fsencode(fitted)) > 255 - 4, "no more is cut than needed"
        assert fitting_name(name + "x", ending) != fitted


def test_a_shortened_name_is_always_the_same():
    assert fitting_name("犬" * 84, ".txt") == "犬" * 80 + "~e77b30e3.txt"
    assert fitting_name(os.fsdecode(b"\xe9" * 252), ".png")[:3] == "\udce9" * 3


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
