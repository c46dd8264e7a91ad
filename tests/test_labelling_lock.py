"""A run's lock where a flock is not enough: several machines, suspended processes, odd storage."""

import errno
import json
import os
import signal
import stat
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from filelock import FileLock

from clip2sam.data.records import ImageRecord
from clip2sam.errors import ConfigError, OutputError, RunError, RunLockedError
from clip2sam.export.coco import CocoExporter
from clip2sam.labelling import lock as room
from clip2sam.labelling import storage
from clip2sam.labelling.journal import Journal
from clip2sam.labelling.lock import lock_run, owner_of
from clip2sam.labelling.manifest import remove_leftovers
from clip2sam.labelling.run import label_dataset, label_dataset_iter
from clip2sam.labelling.storage import check_shared
from clip2sam.labelling.summary import check_exporters
from tests.labelling_fakes import Threshold, small_segmenter, threads_named, write_images


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(room, "BEAT", 0.05)
    monkeypatch.setattr(room, "LEASE", 0.3)


@pytest.fixture
def enter():
    """Hold a run's lock until the end of the test."""
    with ExitStack() as stack:
        yield lambda run: stack.enter_context(lock_run(run))


class Local(FileLock):
    """A flock that another machine doesn't see."""

    is_locked = True

    def acquire(self, *_, **__):
        """Held, whoever else holds it."""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """From now on this is another machine."""

    def move():
        boot = tmp_path / "boot_id"
        boot.write_text("0123-another\n")
        monkeypatch.setattr(room, "BOOT_ID", boot)
        monkeypatch.setattr(room, "FileLock", Local)

    return move


def left(folder, **changes):
    """What a killed process of another machine leaves; its count stands still."""
    row = {
        "beat": f"{7:010d}",
        "token": "0" * 32,
        "host": "node7",
        "pid": 41,
        "boot": "gone",
        "started": "2026-11-28T18:00:00Z",
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "owner").write_text(json.dumps(row))
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def wait_until(condition):
    """Ten seconds at most: what is waited for takes a few beats."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never came")


def begins():
    return pytest.warns(UserWarning, match=r"waiting up to .* seconds for a sign of life")


def test_the_owner_is_named_and_counts_and_leaves_nothing(tmp_path):
    run = tmp_path / "run"
    with lock_run(run) as lock:
        named = rf"works on this run \(process {os.getpid()} on .*, since 20"
        with pytest.raises(RunLockedError, match=named):
            lock_run(run).__enter__()
        assert owner_of(run) == lock.owner
        assert (lock.owner.pid, len(lock.owner.token)) == (os.getpid(), 32)
        before = (run / "owner").read_bytes()
        wait_until(lambda: (run / "owner").read_bytes() != before)
        now = (run / "owner").read_bytes()
        assert len(now) == len(before), "the count is changed in place"
        assert owner_of(run) == lock.owner
        (run / "manifest.json").touch()
    assert names(run) == ["manifest.json"]
    assert owner_of(run) is None
    assert not threads_named("owner")


def test_what_a_killed_process_of_this_machine_left_is_taken_over_at_once(tmp_path, enter):
    child = os.fork()
    if not child:
        try:
            enter(tmp_path / "run")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert owner_of(tmp_path / "run").pid == child
    with lock_run(tmp_path / "run") as lock:  # a warning would be an error
        assert owner_of(tmp_path / "run") == lock.owner
    assert names(tmp_path / "run") == []


def test_a_dead_machine_is_waited_for_and_taken_over_from(tmp_path, enter):
    run = left(tmp_path / "run")
    with begins(), pytest.warns(UserWarning, match=r"process 41 on node7, .* no sign of life"):
        enter(run)
    assert owner_of(run).pid == os.getpid()
    assert names(run) == ["lock", "owner"]


def test_a_machine_that_is_alive_is_left_alone(tmp_path, monkeypatch, elsewhere, enter):
    run = tmp_path / "run"
    monkeypatch.setattr(room, "LEASE", 10.0)
    with lock_run(run) as lock:
        elsewhere()
        refused = rf"works on this run \(process {os.getpid()} on .*; wait for it"
        with begins(), pytest.raises(RunLockedError, match=refused):
            enter(run)
        assert owner_of(run) == lock.owner
        assert names(run) == ["lock", "owner"]
        monkeypatch.setattr(lock, "_checked", -1e9)
        lock.check()
    assert not run.exists()


def test_a_machine_that_ends_while_it_is_watched_makes_room(tmp_path, monkeypatch, enter):
    run = left(tmp_path / "run")
    real = room.read_now

    def read_now(path):
        looks.append(path.name)
        if looks == ["owner"] * 3:
            path.unlink()
        return real(path)

    looks = []
    monkeypatch.setattr(room, "read_now", read_now)
    with begins() as told:
        enter(run)
    assert len(told) == 1, "nobody was taken over from"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[1]", b'{"token":1,"host":"a","pid":4,"boot":"","started":""}'],
    ids=["empty", "torn", "binary", "a list", "odd values"],
)
def test_a_damaged_owner_file_is_one_that_does_not_count(tmp_path, data, enter):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "owner").write_bytes(data)
    assert owner_of(tmp_path / "run") is None
    with begins(), pytest.warns(UserWarning, match="its file owner is damaged.*no sign of life"):
        enter(tmp_path / "run")


@pytest.mark.parametrize("pid", [0, -1, 2**40, True, "7"])
def test_no_process_has_such_a_number(tmp_path, pid):
    assert owner_of(left(tmp_path / "run", pid=pid)) is None


def test_a_process_of_this_machine_that_is_alive_is_watched_for_all_that(tmp_path, enter):
    """Two containers on one machine may reach the storage by different ways."""
    with lock_run(tmp_path / "other") as lock:
        mine = lock.owner
    run = left(tmp_path / "run", host=mine.host, boot=mine.boot, pid=os.getppid())
    with begins(), pytest.warns(UserWarning, match="no sign of life"):
        enter(run)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_any_flock_the_owner_file_locks(tmp_path, monkeypatch, number, enter):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr(room, "LEASE", 10.0)
    with lock_run(tmp_path / "run"):
        with begins(), pytest.raises(RunLockedError, match="works on this run"):
            enter(tmp_path / "run")
        assert names(tmp_path / "run") == ["lock", "owner"]
    assert not (tmp_path / "run").exists()


def test_one_of_several_machines_takes_over(tmp_path, monkeypatch, elsewhere):
    monkeypatch.setattr(room, "LEASE", 1.0)  # of which a busy machine must not sleep so much
    run, owners, refused, all_in = left(tmp_path / "run"), [], [], threading.Barrier(4)
    elsewhere()

    def start():
        all_in.wait()
        try:
            with lock_run(run) as lock:
                owners.append(lock.owner)
                wait_until(lambda: len(refused) == 3 or len(owners) > 1)
                assert owner_of(run) == lock.owner
        except RunLockedError as error:
            refused.append(error)

    def all_at_once():
        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with pytest.warns(UserWarning, match="sign of life"):
        all_at_once()
    assert (len(owners), len(refused)) == (1, 3)
    assert names(run) == []


def test_who_was_too_late_puts_the_next_owner_back(tmp_path, monkeypatch, enter):
    run = left(tmp_path / "run")
    real = os.rename

    def rename(old, new):
        """Between the last look and this, another machine has taken over."""
        monkeypatch.setattr(os, "rename", real)
        left(run, token="1" * 32, host="node8")
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.warns(UserWarning, match="sign of life") as told:
        enter(run)
    hosts = [word for one in told for word in str(one.message).split() if "node" in word]
    assert hosts == ["node7,", "node7,", "node8,", "node8,"], "waited for, then taken over from"
    assert names(run) == ["lock", "owner"]


def test_the_same_on_storage_without_links(tmp_path, monkeypatch, enter):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    test_who_was_too_late_puts_the_next_owner_back(tmp_path, monkeypatch, enter)


def lost(lock, monkeypatch):
    monkeypatch.setattr(lock, "_checked", -1e9)
    with pytest.raises(RunLockedError, match="has lost the run to another one") as caught:
        lock.check()
    return str(caught.value)


def test_who_is_taken_over_from_writes_no_more(tmp_path, monkeypatch, enter):
    path = tmp_path / "run" / "journal-0001.jsonl"
    lock = enter(tmp_path / "run")
    journal = Journal(path, (1, 2), ("cat",), lock.check)
    journal.append(ImageRecord(1, "a.png", state="failed", reason="bad"))
    written = path.read_bytes()
    left(tmp_path / "run")
    assert "(process 41 on node7, since 2026" in lost(lock, monkeypatch)
    for write in (
        lambda: journal.append(ImageRecord(2, "b.png", state="failed", reason="bad")),
        journal.sync,
        journal.close,
        lambda: Journal(path, (2,), ("cat",), lock.check),  # it would cut the first one's line off
    ):
        monkeypatch.setattr(lock, "_checked", -1e9)
        with pytest.raises(RunLockedError, match="It writes no more; wait for the other one"):
            write()
    assert path.read_bytes() == written
    lock.end()
    assert owner_of(tmp_path / "run").host == "node7", "its file stays"
    (tmp_path / "run" / "owner").unlink()
    assert "its file owner is gone" in lost(lock, monkeypatch)


def test_the_thread_has_the_loss_looked_at_at_once(tmp_path, monkeypatch):
    """Where the clock stood still too: of a machine that was suspended."""
    with lock_run(tmp_path / "run") as lock:
        left(tmp_path / "run")
        wait_until(lambda: lock._checked < 0)
        with pytest.raises(RunLockedError, match="node7"):
            lock.check()
    assert names(tmp_path / "run") == ["lock", "owner"], "the other one's"


def test_a_full_disk_does_not_end_the_run_but_is_named_when_it_is_lost(tmp_path, monkeypatch):
    def fsync(_):
        failed.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    failed = []
    with lock_run(tmp_path / "run") as lock:
        monkeypatch.setattr("os.fsync", fsync)
        wait_until(lambda: len(failed) > 1)
        monkeypatch.setattr(lock, "_checked", -1e9)
        lock.check()
        left(tmp_path / "run")
        assert "could not be renewed: No space left on device" in lost(lock, monkeypatch)


def test_a_suspended_process_that_wakes_up_is_refused(tmp_path, elsewhere, enter):
    run, (seen, tell), (wait, go) = tmp_path / "run", os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            journal = Journal(run / "j", (1,), (), enter(run).check)
            os.write(tell, b".")
            os.read(wait, 1)
            journal.append(ImageRecord(1, "a.png", state="failed", reason="bad"))
        except RunLockedError:
            code = 7
        finally:
            os._exit(code)
    os.read(seen, 1)
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    elsewhere()
    with begins(), pytest.warns(UserWarning, match=f"process {child} on .*no sign of life"):
        lock = enter(run)
    os.write(go, b".")
    os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert (run / "j").read_bytes() == b""
    assert owner_of(run) == lock.owner
    for end in (seen, tell, wait, go):
        os.close(end)


def test_a_run_that_is_taken_over_from_stops_and_leaves_manifest_and_files(tmp_path, monkeypatch):
    images, run = write_images(tmp_path / "in", 12), tmp_path / "run"
    monkeypatch.setattr(room, "BEAT", 0.0)  # every check looks
    records = label_dataset_iter(
        images, Threshold.classes, run, engine=Threshold(group=1), batch_size=2, readers=1
    )
    next(records)
    manifest = (run / "manifest.json").read_bytes()
    left(run)
    with pytest.raises(RunLockedError, match="lost the run"):
        list(records)
    assert (run / "manifest.json").read_bytes() == manifest
    assert len((run / "journal-0001.jsonl").read_bytes().splitlines()) < 12
    assert names(run) == ["journal-0001.jsonl", "lock", "manifest.json", "owner"]


def test_a_run_lost_while_the_model_is_loaded_does_not_begin(tmp_path, monkeypatch, enter):
    def load():
        left(tmp_path / "run")
        monkeypatch.setattr(room, "BEAT", 0.0)
        return small_segmenter()

    with pytest.raises(RunLockedError, match="lost the run"):
        label_dataset(write_images(tmp_path / "in", 1), ["cat"], tmp_path / "run", segmenter=load)
    assert names(tmp_path / "run") == ["lock", "owner"]


def test_errors_of_the_folder_name_it(tmp_path, monkeypatch, enter):
    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", fsync)
        with pytest.raises(OutputError, match=r"run: can't be written .No space left.*make room"):
            enter(run)
    assert not run.exists()
    (run / "owner").mkdir(parents=True)
    with pytest.raises(OutputError, match="a folder has this name: move it"):
        enter(run)
    with pytest.raises(RunError, match=r"run/owner: can't be read \(Is a directory\), so it isn't"):
        owner_of(run)
    assert names(run) == ["lock", "owner"]


def test_files_of_the_lock_are_the_runs_own(tmp_path):
    with pytest.raises(ConfigError, match=r"other than .*owner"):
        check_exporters({"owner": CocoExporter()})
    (tmp_path / ".owner.0123abcd.tmp").touch()
    (tmp_path / ".nfs000000000012").touch()
    remove_leftovers(tmp_path, ())
    assert names(tmp_path) == [".nfs000000000012"], "a file that NFS keeps for an open one"


def test_a_name_that_another_machine_has_removed_is_none(tmp_path, monkeypatch):
    def stale(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    (tmp_path / "owner").touch()
    monkeypatch.setattr(os, "open", stale)
    assert storage.read_now(tmp_path / "owner") is None


def test_a_folder_is_opened_before_a_file_is_believed_to_be_missing(tmp_path, monkeypatch):
    real, file = os.scandir, tmp_path / "new"

    def scandir(path):
        file.write_bytes(b"of another machine")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert storage.read_now(file) == b"of another machine"


def test_this_disk_is_fit_to_be_shared(tmp_path):
    check_shared(tmp_path / "new" / "run")
    assert names(tmp_path / "new" / "run") == []


def failing(number):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    return fails


def keeping(module, name, change):
    """The real function with other arguments."""
    real = getattr(module, name)
    return lambda *args, **named: real(*change(*args), **named)


def written_nowhere(file, data):
    return (file, data) if data == b"first" else (file, b"")


def later(path, flags, *mode):
    return path, flags & ~os.O_EXCL, *mode


TIMELESS = SimpleNamespace(st_size=len(b"first"), st_mtime_ns=0, st_mode=stat.S_IFDIR)

PLANTED = {
    "creating a file only where there is none": ("open", keeping(os, "open", later)),
    "reading what was just written": ("read", lambda *_: b""),
    "the size and time of a new file": ("stat", lambda *_, **__: TIMELESS),
    "appending to a file doesn't": ("write", keeping(os, "write", written_nowhere)),
    "changing a file in place and cutting it": ("truncate", failing(errno.EOPNOTSUPP)),
    "renaming a file over another one": ("replace", failing(errno.EPERM)),
    "removing a file": ("unlink", failing(errno.EPERM)),
}


@pytest.mark.parametrize("need", PLANTED)
def test_storage_that_lacks_something_is_refused(tmp_path, monkeypatch, need):
    name, fault = PLANTED[need]
    with monkeypatch.context() as patched:
        patched.setattr(storage, "_bucket", lambda _: None)
        patched.setattr(os, name, fault)
        with pytest.raises(RunError, match=f"{need}.*Expected a folder on NFS.*is none") as caught:
            check_shared(tmp_path / "run")
    assert "several machines can't share a run here" in str(caught.value)
    if name not in ("unlink", "stat"):  # without these it can't be cleared up
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("replace", [lambda *_: None, lambda old, _: os.unlink(old)])
def test_renaming_that_does_nothing_is_seen(tmp_path, monkeypatch, replace):
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(RunError, match="renaming a file over another one doesn't work"):
        check_shared(tmp_path / "run")


def test_a_full_disk_is_no_unfit_one(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "truncate", failing(errno.ENOSPC))
    with pytest.raises(OutputError, match="make room"):
        check_shared(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mounted", ["fuse.s3fs s3fs", "fuse mountpoint-s3", "fuse.rclone b:x"])
def test_an_object_store_is_refused_by_its_name(tmp_path, monkeypatch, mounted):
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(storage, "MOUNTS", mounts)
    mounts.write_text(
        f"20 1 0:1 / /x rw - fuse.s3fs s3fs rw\n21 1 {number} / / rw - ext4 s3fs rw\n"
    )
    check_shared(tmp_path / "run")
    mounts.write_text(f"21 1 {number} / / rw,noatime shared:1 - {mounted} rw\n")
    with pytest.raises(
        RunError, match=r"it is an object store, mounted by (s3fs|mountpoint-s3|rclone)"
    ):
        check_shared(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
