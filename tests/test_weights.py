"""Weights: the right files or a clear error, whatever the network, the disk or a file does."""

import dataclasses
import errno
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
from inspect import unwrap
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from segment_anything import sam_model_registry

from clip2sam.clip.methods import MASKCLIP
from clip2sam.config import Config
from clip2sam.data import network as connections
from clip2sam.errors import ConfigError, WeightsError
from clip2sam.models import checkpoints, download, files, network
from clip2sam.models.checkpoints import check_quickgelu, load_clip, load_sam
from clip2sam.models.download import fetch, fetch_clip, fetch_sam
from clip2sam.models.loading import as_device, as_dtype, load
from clip2sam.models.presets import (
    PRESETS,
    ClipWeights,
    EmbeddedWeights,
    Preset,
    SamWeights,
    get_preset,
)
from clip2sam.tiny.models import build_tiny_sam, save_tiny_sam
from tests.file_server import FileServer, serve
from tests.models import small_clip, small_sam

CONTENT = random.Random(0).randbytes(400_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _calm(monkeypatch, tmp_path):
    """No waiting between tries, short timeouts, no proxy before the local server."""
    monkeypatch.setattr(download, "FIRST_WAIT", 0.0)
    for room in (download, network):
        monkeypatch.setattr(room, "TIMEOUT", (5.0, 0.3))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", *connections.BUNDLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no cache of the hub"))
    monkeypatch.delenv(files.ENVIRONMENT, raising=False)


@pytest.fixture
def server():
    with serve(CONTENT) as running:
        yield running


def sam_file(server: FileServer, **changes) -> SamWeights:
    known = {"model_type": "vit_b", "file": "sam.pth", "size": len(CONTENT), "sha256": SHA256}
    return SamWeights(**{**known, "url": f"{server.url}/sam.pth", **changes})


def fetched(server: FileServer, folder: Path, **changes) -> Path:
    return fetch_sam(sam_file(server, **changes), weights_dir=folder, progress=False)


def left_over(folder: Path) -> set[str]:
    """What a folder holds apart from locks."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def failure(server: FileServer, folder: Path, **changes) -> str:
    """The message of a fetch that must fail: one line, and no file under the final name."""
    with pytest.raises(WeightsError) as caught:
        fetched(server, folder, **changes)
    message = str(caught.value)
    assert "\n" not in message
    assert "sam.pth" not in left_over(folder)
    return message


# Presets and folders


def test_presets_name_the_official_files():
    for name, first in (("vit-b", "01ec64"), ("vit-l", "0b3195"), ("vit-h", "4b8939")):
        sam = get_preset(name).sam
        assert sam.model_type == name.replace("-", "_")
        assert sam.url.endswith(f"/segment_anything/sam_{sam.model_type}_{first}.pth")
        assert len(sam.sha256) == 64


@pytest.mark.parametrize("preset", [p for p in PRESETS.values() if isinstance(p.clip, ClipWeights)])
def test_presets_name_clip_as_open_clip_does(preset):
    source = open_clip.get_pretrained_cfg(preset.clip.model, preset.clip.pretrained)
    assert source["hub" if "hub" in source else "hf_hub"].rstrip("/") == preset.clip.hub
    needs_quickgelu = source.get("quick_gelu", False)
    assert open_clip.get_model_config(preset.clip.model).get("quick_gelu", False) == needs_quickgelu


def test_unknown_preset():
    with pytest.raises(
        ConfigError, match="no preset is called 'vit-x'; choose one of tiny, mobile"
    ):
        get_preset("vit-x")


def test_weights_dir_order(monkeypatch, tmp_path):
    assert files.weights_dir().name == "clip2sam"
    monkeypatch.setenv(files.ENVIRONMENT, "/from/environment")
    assert files.weights_dir() == Path("/from/environment")
    assert files.weights_dir(tmp_path) == tmp_path


def test_naming_files_needs_no_torch():
    program = (
        "import sys, clip2sam.models.files as f; f.paths('vit-h'); f.status(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


# Downloads


def test_download(server, tmp_path):
    folder = tmp_path / "not" / "yet"
    path = fetched(server, folder)
    assert path.read_bytes() == CONTENT
    assert left_over(folder) == {"sam.pth", "sam.pth.verified"}
    assert fetched(server, folder) == path
    assert server.requested == [""]


def test_cut_connection_is_resumed(server, tmp_path):
    server.faults = ["cut:300000", "cut:50000", "503", "429"]
    assert fetched(server, tmp_path).read_bytes() == CONTENT
    first, second, refused, throttled, last = server.requested
    assert first == ""
    assert second == "bytes=300000-", "every byte that came is kept"
    assert refused == throttled == last


def test_later_start_resumes(server, tmp_path):
    (tmp_path / "sam.pth.part").write_bytes(CONTENT[:123_456])
    assert fetched(server, tmp_path).read_bytes() == CONTENT
    assert server.requested == ["bytes=123456-"]
    assert left_over(tmp_path) == {"sam.pth", "sam.pth.verified"}


def test_complete_part_needs_no_network(server, tmp_path):
    (tmp_path / "sam.pth.part").write_bytes(CONTENT)
    assert fetched(server, tmp_path).read_bytes() == CONTENT
    assert server.requested == []


def test_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.faults = False, ["cut:300000"]
    assert fetched(server, tmp_path).read_bytes() == CONTENT
    assert server.requested == ["", "bytes=300000-"]


def test_server_that_always_cuts_is_given_up(server, tmp_path):
    server.ranges, server.faults = False, ["cut:300000"] * 20
    message = failure(server, tmp_path)
    assert "the download stopped at 300000 of 400000 bytes" in message
    place = tmp_path / "sam.pth"
    advice = f"get {server.url}/sam.pth (400,000 bytes) and put it at {place}"
    assert f"run again to go on, or {advice}" in message
    assert len(server.requested) == 1 + download.TRIES


@pytest.mark.parametrize("length", [45_000, 20_001])
def test_many_cuts_are_no_reason_to_give_up(server, tmp_path, length):
    """Also long before a chunk of ours is full."""
    assert length < download.CHUNK
    server.faults = [f"cut:{length}"] * 30
    assert fetched(server, tmp_path).read_bytes() == CONTENT
    assert len(server.requested) > download.TRIES


def test_garbage_from_an_earlier_start(server, tmp_path):
    (tmp_path / "sam.pth.part").write_bytes(b"<html>" * 1000)
    assert fetched(server, tmp_path).read_bytes() == CONTENT
    assert server.requested == ["bytes=6000-", ""]


def test_too_long_a_part(server, tmp_path):
    (tmp_path / "sam.pth.part").write_bytes(CONTENT + b"more")
    assert fetched(server, tmp_path).read_bytes() == CONTENT
    assert server.requested == [""]


def test_wrong_hash(server, tmp_path):
    message = failure(server, tmp_path, sha256="0" * 64)
    assert f"SHA-256 {SHA256}, expected {'0' * 64}" in message
    assert server.requested == [""]
    assert left_over(tmp_path) == set()


@pytest.mark.parametrize("have", [0, 1000])
def test_wrong_size_is_known_before_anything_is_taken(server, tmp_path, have):
    part = tmp_path / "sam.pth.part"
    part.write_bytes(CONTENT[:have])
    message = failure(server, tmp_path, size=len(CONTENT) + 1)
    assert "400000" in message
    assert "400001" in message
    assert f"put it at {tmp_path / 'sam.pth'}" in message
    assert part.read_bytes() == CONTENT[:have]


def test_more_than_expected_from_a_server_that_tells_no_length(server, tmp_path):
    server.tell_length = False
    assert "gave more than the expected 300000 bytes" in failure(server, tmp_path, size=300_000)
    assert (tmp_path / "sam.pth.part").stat().st_size == 0


def test_no_compressed_answer_is_requested(server, tmp_path):
    """A compressed answer has another length, and can't be resumed."""
    fetched(server, tmp_path)
    assert server.encodings == ["identity"]


def test_no_length_told(server, tmp_path):
    server.tell_length = False
    assert fetched(server, tmp_path).read_bytes() == CONTENT


def test_not_found(server, tmp_path):
    message = failure(server, tmp_path, url=f"{server.url}/missing")
    assert "404" in message
    assert (
        f"get {server.url}/missing (400,000 bytes) and put it at {tmp_path / 'sam.pth'}" in message
    )
    assert len(server.requested) == 1


def test_moved(server, tmp_path):
    (tmp_path / "sam.pth.part").write_bytes(CONTENT[:1000])
    assert fetched(server, tmp_path, url=f"{server.url}/moved").read_bytes() == CONTENT
    assert server.requested == ["bytes=1000-"] * 2


@pytest.mark.parametrize(
    "address",
    [
        "http://[bad/sam.pth",
        "http://" + "a" * 70 + ".invalid/sam.pth",
        "http://exa mple/\\x00",
        "http://127.0.0.1:99999999/sam.pth",
        "http://127.0.0.1:port/",
        "http://",
        "file:///etc/passwd",
        "//",
    ],
)
def test_moved_to_a_malformed_address(server, tmp_path, address):
    server.moved_to = address
    message = failure(server, tmp_path, url=f"{server.url}/moved")
    assert "the download failed (" in message or "the download stopped at 0 of" in message
    assert len(message) < 700


def test_a_length_that_is_no_number(server, tmp_path):
    (tmp_path / "sam.pth.part").write_bytes(CONTENT[:1000])
    server.headers = {"Content-Length": "many"}
    assert fetched(server, tmp_path).read_bytes() == CONTENT


def planted(kind: str, folder: Path, target: Path) -> Path:
    """Something that is no file of ours under the name of an unfinished download."""
    part = folder / "sam.pth.part"
    make = {
        "link": lambda: part.symlink_to(target),
        "dangling link": lambda: part.symlink_to(folder / "new"),
        "hard link": lambda: part.hardlink_to(target),
        "pipe": lambda: os.mkfifo(part),
        "folder": part.mkdir,
    }
    make[kind]()
    return part


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe", "folder"])
def test_nothing_is_written_through_a_planted_part(server, tmp_path, kind):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = tmp_path / "weights"
    folder.mkdir()
    part = planted(kind, folder, precious)
    message = failure(server, folder)
    assert f"{part} is " in message
    assert "delete it and run again" in message
    assert precious.read_text() == "mine"
    assert not (folder / "new").exists()
    assert server.requested == []


def test_progress_is_shown_on_a_terminal_only(server, tmp_path, monkeypatch):
    server.ranges, server.faults = False, ["cut:300000"]
    for place, terminal in (("terminal", True), ("log", False)):
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda shown=terminal: shown)
        monkeypatch.setattr(sys, "stderr", screen)
        fetch_sam(sam_file(server), weights_dir=tmp_path / place)
        assert ("sam.pth: 100%" in screen.getvalue()) == terminal


def test_slow_but_steady(server, tmp_path):
    """A transfer may take longer than the timeout for silence."""
    server.faults = ["trickle"]
    assert fetched(server, tmp_path).read_bytes() == CONTENT
    assert server.requested == [""]


def test_silence_is_given_up_and_resumed(server, tmp_path):
    server.faults = ["stall:300000"]
    assert fetched(server, tmp_path).read_bytes() == CONTENT
    assert server.requested == ["", "bytes=300000-"]


def test_silence_for_ever(server, tmp_path):
    server.faults = ["stall:0"] * 10
    assert "Read timed out" in failure(server, tmp_path)
    assert len(server.requested) == download.TRIES


def test_nobody_answers(server, tmp_path):
    server.stop()
    message = failure(server, tmp_path)
    assert "refused" in message
    assert f"put it at {tmp_path / 'sam.pth'}" in message


def other_process(server: FileServer, folder: Path) -> "subprocess.Popen[str]":
    program = (
        "from clip2sam.models.download import fetch_sam\n"
        "from clip2sam.models.presets import SamWeights\n"
        f"print(fetch_sam({sam_file(server)!r}, weights_dir={str(folder)!r}, progress=False))"
    )
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=pipe, stderr=pipe, text=True
    )


def test_parallel_starts_download_once(server, tmp_path):
    server.faults = ["hold:100000"]
    with other_process(server, tmp_path) as first:
        assert server.silent.wait(30)
        with other_process(server, tmp_path) as second:
            assert "another process is downloading sam.pth" in second.stderr.readline()
            server.go_on.set()
            for process in (first, second):
                assert process.communicate(timeout=30)[0].strip() == str(tmp_path / "sam.pth")
    assert server.requested == [""]
    assert (tmp_path / "sam.pth").read_bytes() == CONTENT


def test_killed_download_is_resumed(server, tmp_path):
    server.faults = ["hold:300000"]
    with other_process(server, tmp_path) as process:
        assert server.silent.wait(30)
        while not (part := tmp_path / "sam.pth.part").exists() or part.stat().st_size < 300_000:
            assert process.poll() is None
        process.kill()
    assert left_over(tmp_path) == {"sam.pth.part"}
    assert fetched(server, tmp_path).read_bytes() == CONTENT
    assert server.requested == ["", "bytes=300000-"]


# The disk


def test_no_room(server, tmp_path, monkeypatch):
    (tmp_path / "sam.pth.part").write_bytes(CONTENT[:100_000])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=299_999))
    message = failure(server, tmp_path)
    assert "needs 300000 more bytes" in message
    assert "has 299999 free" in message
    assert server.requested == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=300_000))
    assert fetched(server, tmp_path).read_bytes() == CONTENT


def test_disk_that_fills_up(server, tmp_path):
    """A limit on the size of files stands for the full disk; the next start resumes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        message = failure(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.strerror(errno.EFBIG) in message
    assert "--weights-dir" in message
    assert (tmp_path / "sam.pth.part").stat().st_size > 0
    assert fetched(server, tmp_path).read_bytes() == CONTENT


def test_folder_that_is_a_file(server, tmp_path):
    (tmp_path / "weights").write_text("")
    with pytest.raises(
        WeightsError, match=r"can't be written or read: (File exists|Not a directory)"
    ):
        fetched(server, tmp_path / "weights")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(server, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    folder.chmod(0o555)
    assert "Permission denied" in failure(server, folder)
    folder.chmod(0o755)
    path = fetched(server, folder)
    (folder / "sam.pth.verified").unlink()
    folder.chmod(0o555)
    assert fetched(server, folder) == path, (
        "a file that is there and right can be used without writing"
    )


def test_content_is_on_the_disk_before_the_name(server, tmp_path, monkeypatch):
    """Else a power cut could leave a complete name on an incomplete file."""
    synced, replace = [], os.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}"))
    )

    def rename(source, target) -> None:
        if Path(target).name == "sam.pth":
            assert str(tmp_path / "sam.pth.part") in synced
        replace(source, target)

    monkeypatch.setattr(os, "replace", rename)
    fetched(server, tmp_path)
    assert synced[0] == str(tmp_path / "sam.pth.part")


def test_file_that_can_not_be_remembered(server, tmp_path):
    (tmp_path / "sam.pth").write_bytes(CONTENT)
    (tmp_path / "sam.pth.verified").mkdir()
    assert fetched(server, tmp_path) == tmp_path / "sam.pth"
    assert server.requested == []


# Verified once, never wrongly remembered


def test_hash_is_measured_once(server, tmp_path, monkeypatch):
    """Before the download gets its name; `None` can't be called."""
    monkeypatch.setattr(files, "file_sha256", None)
    fetched(server, tmp_path)
    assert fetched(server, tmp_path) == tmp_path / "sam.pth"


def test_file_put_there_by_hand(server, tmp_path):
    (tmp_path / "sam.pth").write_bytes(CONTENT)
    assert fetch_sam(sam_file(server), weights_dir=tmp_path, offline=True) == tmp_path / "sam.pth"
    assert json.loads((tmp_path / "sam.pth.verified").read_text())["sha256"] == SHA256
    assert server.requested == []


@pytest.mark.parametrize("keep_time", [False, True])
def test_changed_after_verification(server, tmp_path, keep_time):
    path = fetched(server, tmp_path)
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"changed")
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(
        WeightsError,
        match=f"expected {SHA256}: its content changed; delete .*sam.pth and run again",
    ):
        fetched(server, tmp_path)
    assert path.exists(), "a person's file is not deleted for them"
    assert server.requested == [""]


def test_replaced_after_verification(server, tmp_path):
    path = fetched(server, tmp_path)
    other = tmp_path / "other"
    other.write_bytes(bytes(len(CONTENT)))
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)
    with pytest.raises(WeightsError, match="its content changed"):
        fetched(server, tmp_path)


def test_changed_while_it_is_read(server, tmp_path, monkeypatch):
    path = tmp_path / "sam.pth"
    path.write_bytes(CONTENT)

    def hash_and_write(file) -> str:
        Path(file).write_bytes(CONTENT[::-1])
        return SHA256

    monkeypatch.setattr(files, "file_sha256", hash_and_write)
    with pytest.raises(WeightsError, match="changed while it was read; run again when nothing"):
        fetched(server, tmp_path)
    assert left_over(tmp_path) == {"sam.pth"}, "nothing is remembered"


def test_cut_after_verification(server, tmp_path):
    path = fetched(server, tmp_path)
    os.truncate(path, 1000)
    with pytest.raises(
        WeightsError, match="has 1000 bytes, expected 400000: it is cut or another file; delete"
    ):
        fetched(server, tmp_path)


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"sha256": "ab"', '"text"'])
def test_torn_note_is_measured_again(server, tmp_path, note):
    fetched(server, tmp_path)
    (tmp_path / "sam.pth.verified").write_text(note)
    assert fetched(server, tmp_path) == tmp_path / "sam.pth"
    assert json.loads((tmp_path / "sam.pth.verified").read_text())["sha256"] == SHA256


def test_offline(server, tmp_path):
    with pytest.raises(WeightsError) as caught:
        fetch_sam(sam_file(server), weights_dir=tmp_path, offline=True)
    place = tmp_path / "sam.pth"
    advice = f"get {server.url}/sam.pth (400,000 bytes) and put it at {place}"
    assert str(caught.value) == f"sam.pth is missing: the download is forbidden (offline); {advice}"
    assert server.requested == []


def test_survey(server, tmp_path):
    vit_b = get_preset("vit-b")
    sam = sam_file(server, file="sam_vit_b.pth")
    presets = [Preset("mine", vit_b.clip, sam, ""), "vit-l"]

    def row(survey):
        (found,) = [entry for entry in survey(tmp_path, presets) if entry.file == sam.file]
        assert (found.kind, found.presets, found.path) == ("sam", ("mine",), tmp_path / sam.file)
        return found.state, found.size, found.sha256

    assert row(files.status) == ("missing", len(CONTENT), None)
    path = tmp_path / sam.file
    path.write_bytes(CONTENT)
    assert row(files.status) == ("present", len(CONTENT), None)
    assert row(files.verify) == ("verified", len(CONTENT), SHA256)
    assert row(files.status) == ("verified", len(CONTENT), SHA256)
    path.write_bytes(CONTENT[::-1])
    assert row(files.status) == ("present", len(CONTENT), None)
    damaged = hashlib.sha256(CONTENT[::-1]).hexdigest()
    assert row(files.verify) == ("damaged", len(CONTENT), damaged)
    path.write_bytes(CONTENT[:-1])
    (found,) = [entry for entry in files.status(tmp_path, presets) if entry.file == sam.file]
    assert found.state == "damaged"
    assert "has 399999 bytes, expected 400000" in found.problem
    assert files.paths(presets[0], weights_dir=tmp_path)["sam"] == path


def test_every_file_is_listed_once(tmp_path):
    listed = files.status(tmp_path)
    users = {entry.file: entry.presets for entry in listed}
    assert len(users) == len(listed) == 16
    others = set(PRESETS) - {"tiny", "vit-h-laion"}
    assert set(users["ViT-B-16-quickgelu-openai.safetensors"]) == others
    assert users["mobile_sam.pt"] == ("mobile",)
    assert users["sam_vit_h_4b8939.pth"] == ("vit-h", "vit-h-laion")


def test_verify_ignores_the_note(server, tmp_path):
    """A note that is wrong, with the right stamp, is found by `verify` alone."""
    preset = Preset("mine", get_preset("vit-b").clip, sam_file(server), "")
    path = fetched(server, tmp_path)
    path.write_bytes(CONTENT[::-1])
    local = files.local_file(preset.sam, tmp_path)
    local.remember(SHA256)
    assert {entry.state for entry in files.status(tmp_path, [preset])} == {"missing", "verified"}
    assert {entry.state for entry in files.verify(tmp_path, [preset])} == {"missing", "damaged"}


# Files of the hub


@pytest.fixture
def hub(server, monkeypatch):
    """The model hub's address, answered by the local server."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return server


REVISION = "0123456789" * 4
UNKNOWN = ClipWeights("ViT-B-16", "mine", "me/mine", revision=REVISION)
"""Neither its size nor its SHA-256 is published."""
KNOWN = dataclasses.replace(UNKNOWN, size=len(CONTENT), sha256=SHA256)


def test_clip_is_pinned():
    for name in ("vit-b", "vit-l", "vit-h"):
        clip = get_preset(name).clip
        assert (clip.size, clip.sha256[:8]) == (598516980, "4b869929")
        assert clip.url == (
            "https://huggingface.co/timm/vit_base_patch16_clip_224.openai/resolve/"
            "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d/open_clip_model.safetensors"
        )
    clip = get_preset("vit-h-laion").clip
    assert clip.url.endswith(
        "/7288da5a0d6f0b51c4a2b27c624837a9236d0112/open_clip_model.safetensors"
    )
    assert clip.sha256 is None


def test_a_file_of_the_hub_comes_as_every_other(hub, tmp_path):
    hub.faults = ["cut:300000"]
    path = fetch_clip(KNOWN, weights_dir=tmp_path, progress=False)
    assert path == tmp_path / KNOWN.file
    assert path.read_bytes() == CONTENT
    assert hub.requested == ["", "bytes=300000-"]
    assert hub.asked == [], "all is known of it"


def test_what_is_not_published_is_asked_of_the_server(hub, tmp_path, monkeypatch):
    path = fetch_clip(UNKNOWN, weights_dir=tmp_path, progress=False)
    assert path.read_bytes() == CONTENT
    assert hub.asked == [f"/me/mine/resolve/{REVISION}/open_clip_model.safetensors"]
    preset = Preset("mine", UNKNOWN, get_preset("tiny").sam, "")
    found = files.status(tmp_path, [preset])[0]
    assert (found.state, found.sha256, found.path) == ("verified", SHA256, path)
    monkeypatch.setattr(files, "file_sha256", None)
    assert fetch_clip(UNKNOWN, weights_dir=tmp_path, offline=True) == path
    assert len(hub.requested) == 1


def test_what_the_server_stated_counts_ever_after(hub, tmp_path):
    path = fetch_clip(UNKNOWN, weights_dir=tmp_path, progress=False)
    path.write_bytes(CONTENT[::-1])
    for _ in range(2):  # measured, then remembered
        with pytest.raises(WeightsError, match=f"expected {SHA256}: its content changed; delete "):
            fetch_clip(UNKNOWN, weights_dir=tmp_path, offline=True)


def test_the_hubs_own_statement_is_the_first_answers(hub):
    """The storage to which it redirects states an ETag of its own."""
    hub.moved_headers = {"X-Linked-Etag": f'"{"a" * 64}"', "X-Linked-Size": "12345"}
    told = network.stated(f"{hub.url}/me/mine/resolve/main/moved")
    assert told == network.Stated(12345, "a" * 64)


def test_another_file_than_the_hub_states_is_refused(hub, tmp_path):
    sha256 = "a" * 64
    hub.headers = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(CONTENT))}
    with pytest.raises(WeightsError, match=f"gave a file with SHA-256 {SHA256}, expected {sha256}"):
        fetch_clip(UNKNOWN, weights_dir=tmp_path, progress=False)
    assert left_over(tmp_path) == set()


def test_a_repository_that_was_renamed(hub):
    hub.moved_to = "/new/name/resolve/main/x"
    assert network.stated(f"{hub.url}/old/name/resolve/main/moved").sha256 == SHA256
    assert hub.asked == ["/old/name/resolve/main/moved", "/new/name/resolve/main/x"]


def test_a_server_that_states_nothing(server, tmp_path, caplog):
    server.headers = {"ETag": '"some other mark"'}
    weights = {"size": None, "sha256": None}
    assert fetched(server, tmp_path / "a", **weights).read_bytes() == CONTENT
    assert f"nobody states the SHA-256 of sam.pth; it has {SHA256}" in caplog.text
    server.tell_length = False
    assert "the server does not state its size" in failure(server, tmp_path / "b", **weights)


def test_an_unfinished_file_of_which_nothing_is_known_is_not_continued(server, tmp_path):
    server.headers = {"ETag": '"some other mark"'}
    (tmp_path / "sam.pth.part").write_bytes(b"of another file")
    weights = {"size": None, "sha256": None}
    assert fetched(server, tmp_path, **weights).read_bytes() == CONTENT


# Copies in the hub's own cache


def in_cache(cache: Path, content: bytes, revision: str = REVISION, sha256: str = SHA256) -> Path:
    """A file as the hub's client keeps it."""
    repository = cache / "models--me--mine"
    blob = repository / "blobs" / sha256
    link = repository / "snapshots" / revision / "open_clip_model.safetensors"
    for folder in (blob.parent, link.parent, repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(revision)
    blob.write_bytes(content)
    link.symlink_to(f"../../blobs/{sha256}")
    return link


@pytest.mark.parametrize("weights", [KNOWN, UNKNOWN])
@pytest.mark.parametrize("folder", ["cache", "hub"])
def test_a_copy_of_the_hubs_client_is_used(hub, tmp_path, monkeypatch, folder, weights):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    copy = in_cache(tmp_path / folder, CONTENT)
    assert fetch_clip(weights, weights_dir=tmp_path, offline=True) == copy
    preset = Preset("mine", weights, get_preset("tiny").sam, "")
    assert files.status(tmp_path, [preset])[0].state == "verified"
    assert hub.requested == []


def test_a_copy_of_another_revision_is_used_if_its_hash_is_right(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    copy = in_cache(tmp_path / "cache", CONTENT, revision="f" * 40)
    assert fetch_clip(KNOWN, weights_dir=tmp_path, offline=True) == copy
    with pytest.raises(WeightsError, match="is missing"):
        fetch_clip(UNKNOWN, weights_dir=tmp_path, offline=True)


@pytest.mark.parametrize(
    ("content", "sha256"),
    [(CONTENT[1:], SHA256), (CONTENT, "b" * 64), (CONTENT[::-1], SHA256)],
    ids=["cut", "another", "changed"],
)
def test_a_copy_that_is_not_right_is_left_alone(hub, tmp_path, monkeypatch, content, sha256):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    copy = in_cache(tmp_path / "cache", content, sha256=sha256)
    if len(content) != len(CONTENT) or sha256 != SHA256:  # seen without reading it
        preset = Preset("mine", KNOWN, get_preset("tiny").sam, "")
        assert files.status(tmp_path, [preset])[0].state == "missing"
    path = fetch_clip(KNOWN, weights_dir=tmp_path, progress=False)
    assert path == tmp_path / KNOWN.file
    assert path.read_bytes() == CONTENT
    assert copy.read_bytes() == content


# The network between


def test_a_mirror_of_the_hub(server, tmp_path, monkeypatch):
    published = f"{connections.HUB}/me/mine/resolve/main/sam.pth"
    monkeypatch.setattr(constants, "ENDPOINT", f"{server.url}/mirror")
    assert connections.address(published) == f"{server.url}/mirror/me/mine/resolve/main/sam.pth"
    assert network.hub_file(published) == network.hub_file(connections.address(published))
    assert fetched(server, tmp_path, url=published).read_bytes() == CONTENT
    server.stop()
    message = failure(server, tmp_path / "other", url=published)
    assert f"HF_ENDPOINT is {server.url}/mirror; run again to go on, or get {published}" in message


def test_other_sites_are_no_hub(server, monkeypatch):
    url = "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    assert connections.address(url) == url
    assert network.hub_file(url) is None
    assert connections.surroundings(url) == ""


def test_a_proxy_is_named_without_its_password(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    message = failure(server, tmp_path)
    assert "through the proxy http://***@127.0.0.1:9" in message
    assert "secret" not in message


def test_certificates_of_the_environment(tmp_path, monkeypatch):
    own, url = tmp_path / "own.pem", "https://example.com/x"
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    with pytest.raises(WeightsError, match=f"SSL_CERT_FILE names the certificates {own}, but"):
        connections.session(WeightsError)
    own.write_text("")
    assert connections.session(WeightsError).verify == str(own)
    assert connections.surroundings(url) == f"certificates of SSL_CERT_FILE={own}"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    assert connections.session(WeightsError).verify == str(tmp_path)
    assert connections.surroundings(url) == f"certificates of REQUESTS_CA_BUNDLE={tmp_path}"


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_web_page_is_called_that(server, tmp_path, size):
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    message = failure(server, tmp_path, size=size)
    assert message.startswith(f"{server.url}/sam.pth gave a web page where weights were expected")
    assert "the network may want a login" in message


# CLIP's file put there by hand


def test_clip_put_there_by_hand(hub, tmp_path):
    content = safetensors.torch.save({"a": torch.ones(3), "b": torch.ones(2)})
    preset = Preset("mine", UNKNOWN, get_preset("tiny").sam, "")
    place = tmp_path / UNKNOWN.file
    place.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    assert fetch_clip(preset, weights_dir=tmp_path, offline=True) == place
    assert hub.requested == []
    found = files.verify(tmp_path, [preset])[0]
    assert (found.state, found.sha256) == ("present", sha256), "no SHA-256 is published for it"
    assert found.tensors == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (CONTENT, "header too large"),
        (b"<html>log in first</html>", "header too large"),
        (safetensors.torch.save({"a": torch.ones(300)})[:-100], "incomplete"),
        (safetensors.torch.save({}), "it holds none"),
        (b"", "header too small"),
    ],
)
def test_what_is_no_clip_is_damaged_though_no_sha256_is_known(tmp_path, content, reason):
    place = tmp_path / UNKNOWN.file
    place.write_bytes(content)
    preset = Preset("mine", UNKNOWN, get_preset("tiny").sam, "")
    found = files.verify(tmp_path, [preset])[0]
    assert found.state == "damaged"
    assert found.problem.startswith(f"{place} can't be read as tensors (")
    assert reason in found.problem
    assert "delete it and run again to get http" in found.problem


@pytest.mark.parametrize("call", [fetch, load])
def test_all_files_that_are_missing_are_named_at_once(hub, tmp_path, call):
    hub.stop()
    preset = get_preset("vit-h")
    for reason in ("offline", "refused"):
        with pytest.raises(WeightsError) as caught:
            call(preset, weights_dir=tmp_path, offline=reason == "offline")
        clip, sam = str(caught.value).split("; sam_vit_h_4b8939.pth is missing too: ")
        assert clip.startswith("ViT-B-16-quickgelu-openai.safetensors is missing: ")
        assert reason in clip
        assert "missing too" not in clip
        assert sam == f"get {preset.sam.url} (2,564,550,879 bytes) and put it at " + str(
            tmp_path / preset.sam.file
        )
        assert "\n" not in str(caught.value)


def test_files_that_are_not_needed_are_not_missing(tmp_path, monkeypatch):
    """Neither a file in whose place another is given, nor one that is there already."""
    with pytest.raises(WeightsError) as caught:
        load("vit-h", clip_checkpoint="mine.pt", weights_dir=tmp_path, offline=True)
    assert str(caught.value).startswith("sam_vit_h_4b8939.pth is missing: the download is")
    (tmp_path / "sam_vit_h_4b8939.pth").write_bytes(b"here")
    with pytest.raises(WeightsError) as caught:
        fetch("vit-h", weights_dir=tmp_path, offline=True)
    assert str(caught.value).startswith("ViT-B-16-quickgelu-openai.safetensors is missing: ")
    assert "sam_vit_h" not in str(caught.value)


def test_clip_put_there_by_hand_is_compared_with_a_known_sha256(tmp_path):
    weights = ClipWeights("ViT-B-16", "mine", "me/mine", size=len(CONTENT), sha256=SHA256)
    place = tmp_path / weights.file
    preset = Preset("mine", weights, get_preset("vit-b").sam, "")

    def state() -> str:
        return files.verify(tmp_path, [preset])[0].state

    place.write_bytes(CONTENT)
    assert fetch_clip(preset, weights_dir=tmp_path, offline=True) == place
    assert state() == "verified"
    place.write_bytes(CONTENT[::-1])
    with pytest.raises(WeightsError, match=f"expected {SHA256}: .*; delete {place} and run again"):
        fetch_clip(preset, weights_dir=tmp_path, offline=True)
    assert state() == "damaged"
    place.write_bytes(CONTENT[1:])
    with pytest.raises(WeightsError, match="has 399999 bytes, expected 400000"):
        fetch_clip(preset, weights_dir=tmp_path, offline=True)


def test_clip_put_there_by_hand_comes_before_the_hubs(hub, tmp_path):
    copy = in_cache(tmp_path / "hub", CONTENT)
    assert fetch_clip(KNOWN, weights_dir=tmp_path) == copy
    place = tmp_path / KNOWN.file
    place.write_bytes(CONTENT)
    assert fetch_clip(KNOWN, weights_dir=tmp_path) == place


def test_the_hubs_own_offline_switch(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"the download is forbidden \(offline\)"):
        fetch_clip("vit-h", weights_dir=tmp_path)
    assert hub.requested == []
    sam = sam_file(hub, url=f"{hub.url}/sam.pth")
    assert fetch_sam(sam, weights_dir=tmp_path, progress=False).exists(), "it is not of the hub"


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("weights", [KNOWN, UNKNOWN])
def test_clip_out_of_reach(hub, tmp_path, offline, weights):
    hub.stop()
    with pytest.raises(WeightsError) as caught:
        fetch_clip(weights, weights_dir=tmp_path, offline=offline)
    message = str(caught.value)
    assert message.startswith("ViT-B-16-mine.safetensors is missing: ")
    assert ("(offline)" if offline else "refused") in message
    size = "size unknown" if weights is UNKNOWN else "400,000 bytes"
    assert message.endswith(
        f"get {hub.url}/me/mine/resolve/{REVISION}/open_clip_model.safetensors ({size}) and put it "
        f"at {tmp_path / weights.file}"
    )
    assert "\n" not in message


# Checkpoints of the user's own


def test_checkpoints_are_compared_with_a_sha256_that_the_user_gives(tmp_path):
    clip, sam = tmp_path / "clip.safetensors", tmp_path / "sam.pth"
    clip.write_bytes(b"clip")
    sam.write_bytes(b"sam")
    of_clip, of_sam = (hashlib.sha256(content).hexdigest() for content in (b"clip", b"sam"))
    files.check_own_files([clip, sam], ())
    files.check_own_files([clip, sam], [of_sam.upper(), f" {of_clip}"])
    files.check_own_files([None, sam], of_sam)
    with pytest.raises(WeightsError, match=f"{sam} has SHA-256 {of_sam}, expected {of_clip}: it"):
        files.check_own_files([clip, sam], of_clip)
    with pytest.raises(ConfigError, match=f"sha256: {of_clip} is of none of the 1 checkpoints"):
        files.check_own_files([None, sam], [of_sam, of_clip])
    with pytest.raises(ConfigError, match="expected 64 hexadecimal digits, got 'abc'"):
        files.check_own_files([sam], "abc")
    with pytest.raises(WeightsError, match=r"there is no file .*missing\.pth"):
        files.check_own_files([tmp_path / "missing.pth"], of_sam)


def test_load_compares_them_before_it_reads_them(tmp_path):
    path = tmp_path / "sam.pth"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match="it is another file, or was changed"):
        load("tiny", sam_checkpoint=path, sha256=SHA256)


# Loading: seeded checkpoints in the official formats


@pytest.fixture
def architecture(tmp_path):
    """A small CLIP architecture that open_clip knows by name."""
    text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    for name, quick in (("weights-test", False), ("weights-test-quickgelu", True)):
        config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick}
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    return "weights-test-quickgelu"


@pytest.mark.parametrize("form", ["safetensors", "pt", "training"])
def test_clip_loads(architecture, tmp_path, form):
    torch.manual_seed(3)
    state = {
        name: torch.randn_like(t)
        for name, t in open_clip.create_model(architecture).state_dict().items()
    }
    path = tmp_path / f"clip.{form}"
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state if form == "pt" else {"epoch": 3, "state_dict": state}, path)
    clip, tokenizer = load_clip(architecture, path, pretrained="openai")
    assert not clip.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in clip.state_dict().items())
    assert tokenizer(["a heart"]).shape == (1, 24)


def test_open_clip_reads_tensors_only(architecture, tmp_path, monkeypatch):
    """The file is read twice: by us first, then by open_clip, which must refuse the same files."""
    path = tmp_path / "clip.pt"
    torch.save(open_clip.create_model(architecture).state_dict(), path)
    given = {}
    create = open_clip.create_model
    monkeypatch.setattr(
        open_clip,
        "create_model",
        lambda *args, **kwargs: given.update(kwargs) or create(*args, **kwargs),
    )
    load_clip(architecture, path)
    assert given.pop("force_preprocess_cfg") == {}, "nothing is known of it"
    assert given == {"pretrained": str(path), "weights_only": True}


def test_clip_of_another_architecture(architecture, tmp_path):
    torch.save({"visual.conv1.weight": torch.zeros(3)}, tmp_path / "clip.pt")
    with pytest.raises(
        WeightsError,
        match=r"clip.pt does not fit open_clip's weights-test-quickgelu: .*Missing key",
    ):
        load_clip(architecture, tmp_path / "clip.pt")
    with pytest.raises(ConfigError, match="open_clip has no architecture 'ViT-X'"):
        load_clip("ViT-X", tmp_path / "clip.pt")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # scripting is on its way out of torch
def test_torchscript_is_not_run(architecture, tmp_path):
    """As OpenAI published its CLIP."""
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "clip.pt")
    with pytest.raises(
        WeightsError, match=r"is a TorchScript archive.*; it is not run. Leave the path out"
    ):
        load_clip(architecture, tmp_path / "clip.pt")


def test_quickgelu_is_checked(monkeypatch):
    small = {
        name: open_clip.CLIP(
            16,
            {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
            {"context_length": 8, "vocab_size": 10, "width": 16, "heads": 1, "layers": 1},
            quick_gelu=name.endswith("-quickgelu"),
        )
        for name in ("ViT-B-16", "ViT-B-16-quickgelu")
    }
    for name, pretrained, right in (
        ("ViT-B-16", "openai", False),
        ("ViT-B-16-quickgelu", "openai", True),
        ("ViT-B-16", "laion2b_s34b_b88k", True),
        ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", False),
        ("ViT-B-16", "my own", True),
    ):
        if right:
            check_quickgelu(small[name], name, pretrained)
            continue
        other = "ViT-B-16-quickgelu" if name == "ViT-B-16" else "ViT-B-16"
        with pytest.raises(
            ConfigError, match=f"the weights '{pretrained}' of ViT-B-16 were .*; use '{other}'"
        ):
            check_quickgelu(small[name], name, pretrained)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_weights_that_are_not_finite_are_refused(architecture, tmp_path, value, dtype, form):
    """Such a model runs, and every image ends without a mask."""
    state = {n: t.to(dtype) for n, t in open_clip.create_model(architecture).state_dict().items()}
    state["visual.proj"] = state["visual.proj"].clone()
    state["visual.proj"][3, 4] = value
    path = tmp_path / f"clip.{form}"
    (safetensors.torch.save_file if form == "safetensors" else torch.save)(state, path)
    for load_it, model in ((load_clip, architecture), (load_sam, "vit_b")):
        with pytest.raises(
            WeightsError,
            match=r"clip\..* holds values that are not finite, in the tensor visual\.proj",
        ):
            load_it(model, path)


def test_large_weights_are_finite(architecture, tmp_path):
    """Their sum is not."""
    state = open_clip.create_model(architecture).state_dict()
    state["visual.proj"] = torch.full_like(state["visual.proj"], 3e38)
    torch.save(state, tmp_path / "clip.pt")
    clip, _ = load_clip(architecture, tmp_path / "clip.pt")
    assert torch.equal(clip.visual.proj, state["visual.proj"])


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(3, device="meta"), torch.eye(3).to_sparse()],
    ids=["meta", "sparse"],
)
def test_tensors_that_are_not_plain_are_refused(tmp_path, tensor):
    torch.save({"weight": tensor}, tmp_path / "sam.pth")
    with pytest.raises(
        WeightsError, match=r"without values|expected plain tensors by name|read as"
    ):
        load_sam("vit_b", tmp_path / "sam.pth")


def test_names_of_tensors_are_texts(tmp_path):
    torch.save({7: torch.zeros(3)}, tmp_path / "sam.pth")
    with pytest.raises(
        WeightsError, match=r"holds 7 as torch.float32 .*, expected plain tensors by"
    ):
        load_sam("vit_b", tmp_path / "sam.pth")


def sam_state(model_type: str) -> dict[str, torch.Tensor]:
    """Tensors of the official names and shapes, not initialised."""
    with torch.device("meta"):
        model = sam_model_registry[model_type]()
    return {name: torch.empty(tensor.shape) for name, tensor in model.state_dict().items()}


def save_with_holes(state: dict[str, torch.Tensor], path: Path) -> None:
    """A checkpoint of full size and in the official form that takes no space: a sparse file, read
    as zeros."""
    with torch.serialization.skip_data():
        torch.save(state, path)


def test_sam_loads(tmp_path):
    path = tmp_path / "sam.pth"
    state = {name: torch.empty_like(t).normal_() for name, t in sam_state("vit_b").items()}
    torch.save(state, path)
    sam = load_sam("vit_b", path)
    assert not sam.training
    assert {t.device.type for t in [*sam.parameters(), *sam.buffers()]} == {"cpu"}
    assert sam.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in sam.state_dict().items())
    assert sam.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert sam.pixel_std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])
    assert sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.any()
    path.unlink()


def test_half_precision_sam_becomes_fp32(tmp_path):
    path = tmp_path / "sam.pth"
    state = sam_state("vit_b")
    halves = {name: t.half() for name, t in state.items() if name.startswith("mask_decoder")}
    save_with_holes({**state, **halves}, path)
    assert {parameter.dtype for parameter in load_sam("vit_b", path).parameters()} == {
        torch.float32
    }


def test_vit_h_at_full_size(tmp_path):
    path = tmp_path / "sam_vit_h.pth"
    save_with_holes(sam_state("vit_h"), path)
    assert path.stat().st_size == pytest.approx(2_564_550_879, rel=1e-4), (
        "as large as the official file"
    )
    sam = load_sam("vit_h", path)
    assert sum(parameter.numel() for parameter in sam.parameters()) == 641_090_608
    assert not any(tensor.is_meta for tensor in [*sam.parameters(), *sam.buffers()])


def test_sam_of_another_size_is_recognised(tmp_path):
    path = tmp_path / "sam.pth"
    save_with_holes(sam_state("vit_b"), path)
    with pytest.raises(WeightsError) as caught:
        load_sam("vit_l", path)
    message = str(caught.value)
    assert (
        f"{path} does not fit SAM vit_l; it looks like vit_b, name that, or the preset vit-b: "
        in message
    )
    assert "image_encoder.blocks.12." in message
    assert len(message) < 600
    assert "\n" not in message


def test_sam_with_keys_missing(tmp_path):
    path = tmp_path / "sam.pth"
    state = sam_state("vit_b")
    del state["mask_decoder.iou_token.weight"]
    save_with_holes(state, path)
    with pytest.raises(WeightsError, match=r"Missing key.*mask_decoder.iou_token.weight"):
        load_sam("vit_b", path)


def test_sam_type_that_does_not_exist(tmp_path):
    with pytest.raises(
        ConfigError, match="SAM has no model type 'vit_x'; choose one of vit_b, vit_l, vit_h, vit_t"
    ):
        load_sam("vit_x", tmp_path / "sam.pth")


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.place,))


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
@pytest.mark.parametrize(
    ("load_it", "model"), [(load_sam, "vit_b"), (load_clip, "ViT-B-16-quickgelu")]
)
def test_malicious_checkpoint_runs_nothing(tmp_path, form, load_it, model):
    path, trace = tmp_path / "sam.pth", tmp_path / "was here"
    state = {"weight": torch.zeros(2), "more": Malicious(trace)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(
        WeightsError, match="holds more than tensors, or isn't a checkpoint, and was not opened"
    ):
        load_it(model, path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"<html>not found</html>", b"PK\x03\x04 cut", CONTENT[:5000]]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_checkpoint(tmp_path, content, suffix):
    path = tmp_path / f"sam{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        load_sam("vit_b", path)
    assert str(caught.value).startswith(f"{path} can't be read as tensors: ")
    assert "\n" not in str(caught.value)


def test_cut_checkpoint(tmp_path):
    path = tmp_path / "sam.pth"
    torch.save({"weight": torch.zeros(10_000)}, path)
    os.truncate(path, 20_000)
    with pytest.raises(WeightsError, match="can't be read as tensors"):
        load_sam("vit_b", path)


@pytest.mark.parametrize("held", [{}, [1], {"network": {"weight": torch.zeros(2)}, "epoch": 1}])
def test_checkpoint_of_another_form(tmp_path, held):
    torch.save(held, tmp_path / "sam.pth")
    with pytest.raises(
        WeightsError, match=f"holds a {type(held).__name__} of .*, expected tensors by name"
    ):
        load_sam("vit_b", tmp_path / "sam.pth")


def test_no_such_checkpoint(tmp_path):
    with pytest.raises(
        WeightsError,
        match=r"there is no file .*sam\.pth; give the path of a checkpoint, or a preset",
    ):
        load_sam("vit_b", tmp_path / "sam.pth")


# A preset of one's own


@pytest.fixture
def own_preset(hub, architecture, monkeypatch) -> Preset:
    """Seeded checkpoints in the official formats, published by the local server. "vit_b" stands for
    a small SAM here."""
    torch.manual_seed(5)
    monkeypatch.setitem(sam_model_registry, "vit_b", small_sam)
    stream = io.BytesIO()
    torch.save(small_sam(seed=6).state_dict(), stream)
    hub.files = {
        "open_clip_model.safetensors": safetensors.torch.save(
            open_clip.create_model(architecture).state_dict()
        ),
        "my_sam.pth": stream.getvalue(),
    }
    published = hub.files["my_sam.pth"]
    return Preset(
        "mine",
        ClipWeights(architecture, "my-run", "me/my-clip"),
        SamWeights(
            "vit_b",
            "my_sam.pth",
            len(published),
            hashlib.sha256(published).hexdigest(),
            f"{hub.url}/my_sam.pth",
        ),
        "my own",
        resolution=64,
        config=Config(method=MASKCLIP, presence_threshold=None, grid=2),
    )


def test_own_preset(hub, own_preset, tmp_path):
    """A `Preset` object works wherever a preset's name does."""
    place = files.paths(own_preset, weights_dir=tmp_path)
    assert place["sam"] == tmp_path / "my_sam.pth"
    assert place["clip"] == tmp_path / "weights-test-quickgelu-my-run.safetensors"
    with pytest.raises(WeightsError, match=r"my-run.safetensors is missing: .*\(offline\)"):
        fetch(own_preset, weights_dir=tmp_path, offline=True)

    found = fetch(own_preset, weights_dir=tmp_path, progress=False)
    assert found == files.paths(own_preset, weights_dir=tmp_path)
    assert found["clip"].read_bytes() == hub.files["open_clip_model.safetensors"]
    assert {row.state for row in files.status(tmp_path, [own_preset])} == {"verified"}

    segmenter = load(own_preset, weights_dir=tmp_path, offline=True, device="cpu")
    assert segmenter.config == own_preset.config
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    result = segmenter(image, ["heart"])
    assert result.maps.shape == (1, 4, 4), "64 pixels are 4 patches of 16"
    assert tuple(result.class_names) == ("heart",)
    expected = torch.load(found["sam"], weights_only=True)
    for name, tensor in segmenter.sam.sam.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_activation_is_checked_on_loading(own_preset, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "record_of", lambda *_: {"quick_gelu": False})
    with pytest.raises(ConfigError, match=r"'my-run' of weights-test .*; use 'weights-test'"):
        load(own_preset, weights_dir=tmp_path, device="cpu")


def test_own_preset_that_was_changed(hub, own_preset, tmp_path):
    fetch(own_preset, weights_dir=tmp_path, progress=False)
    path = tmp_path / "my_sam.pth"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match=r"my_sam.pth has SHA-256 .*: its content changed"):
        load(own_preset, weights_dir=tmp_path, offline=True)


# From a preset to a segmenter


def test_resolution_has_an_order():
    """The argument precedes the settings', that the preset's, that the model's own."""
    tiny = get_preset("tiny")
    preset = Preset("mine", tiny.clip, tiny.sam, "", resolution=448, config=tiny.config)
    image = np.zeros((40, 40, 3), np.uint8)

    def side(*args, **kwargs) -> int:
        segmenter = load(*args, device="cpu", **kwargs)
        return segmenter(image, ["heart"]).maps.shape[-1] * 16

    assert side("tiny") == 224
    assert side(preset) == 448
    assert side(preset, config=Config(resolution=320)) == 320
    assert side(preset, config=Config(resolution=320), resolution=112) == 112


def test_settings_are_the_presets_unless_given():
    tiny = load("tiny", device="cpu").config
    assert tiny == get_preset("tiny").config
    assert tiny.presence_threshold == 0.32
    assert len(tiny.background_prompts) == 10 + 8 + 80
    assert {"heart", "red thing", "blue star"} <= set(tiny.background_prompts)
    assert load("tiny", device="cpu", config=Config()).config == Config()
    assert load("tiny", clip=small_clip(), sam=small_sam(), device="cpu").config == tiny
    assert load(clip=small_clip(), sam=small_sam(), device="cpu").config == Config()


def test_what_can_not_be_loaded():
    for wrong, message in (
        ({"preset": "vit-x"}, "no preset is called 'vit-x'; choose one of tiny, mobile"),
        (
            {"preset": "vit-x", "clip": 1, "sam": 1},
            "no preset is called 'vit-x'; choose one of tiny, mobile",
        ),
        ({"sam": 1}, r"give a preset, such as load\(\"tiny\"\), or both models"),
        ({"preset": "tiny", "device": "gpu"}, "does not run on 'gpu'; use auto, cpu, cuda, cuda:N"),
        (
            {"preset": "tiny", "precision": "exact"},
            "no precision is called 'exact'; choose one of fp32, bf16, fp16",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            load(**wrong)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("meta", "clip2sam does not run on 'meta'; use auto, cpu, cuda, cuda:N or mps"),
        ("vulkan", "clip2sam does not run on 'vulkan'"),
        ("gpu", "clip2sam does not run on 'gpu'"),
        ("", "clip2sam does not run on ''"),
        ("cuda:-1", "clip2sam does not run on 'cuda:-1'"),
        ("cuda:x", "clip2sam does not run on 'cuda:x'"),
        ("cuda:300", "clip2sam does not run on 'cuda:300'"),
        (None, "clip2sam does not run on None"),
        ([], "clip2sam does not run on \\[\\]"),
        ("xpu", "PyTorch finds no xpu here; use auto or cpu"),
        ("mps", "PyTorch finds no mps here; use auto or cpu"),
        ("cuda", "PyTorch finds no cuda here; use auto or cpu"),
        ("cuda:99", "PyTorch finds no cuda here; use auto or cpu"),
    ],
)
def test_devices_that_are_not_there(monkeypatch, device, message):
    for kind in ("cuda", "xpu", "mps"):
        monkeypatch.setattr(f"torch.{kind}.is_available", lambda: False)
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ConfigError, match=message):
        unwrap(as_device)(device)


def test_a_devices_number_is_checked(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert as_device("cuda:1") == torch.device("cuda", 1)
    assert as_device("auto") == as_device("cuda") == torch.device("cuda")
    assert as_device("cpu") == torch.device("cpu")
    with pytest.raises(
        ConfigError, match="device 'cuda:2' was given, but there are 2 of cuda, from"
    ):
        as_device("cuda:2")


def test_mps_is_refused_where_there_is_no_mac(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(ConfigError, match="but MPS is a Mac's, and this is none; use auto or cpu"):
        as_device("mps")


@pytest.mark.parametrize("precision", [None, [], 16, "exact"])
def test_precisions_that_do_not_exist(precision):
    with pytest.raises(ConfigError, match="choose one of fp32, bf16, fp16"):
        unwrap(as_dtype)(precision, torch.device("cpu"))


def test_a_precision_that_the_device_cannot_compute_in(monkeypatch):
    """As MPS, which had no bf16 on older systems."""

    def refuse(*_, **__):
        raise TypeError("BFloat16 is not\nsupported on MPS")

    monkeypatch.setattr("torch.ones", refuse)
    with pytest.raises(
        ConfigError,
        match=r"'cpu' can't compute in it \(BFloat16 is not supported on MPS\); use fp32",
    ):
        as_dtype("bf16", torch.device("cpu"))


def test_wrong_arguments_are_found_before_anything_is_loaded(monkeypatch):
    for name in ("_load_clip", "_load_sam"):
        monkeypatch.setattr(f"clip2sam.models.loading.{name}", None)  # can't be called
    for wrong, message in (
        ({"config": {"grid": 3}}, "config must be a Config, such as"),
        ({"resolution": 0}, "resolution must be a whole number from 1 to 8192 pixels, but got 0"),
        ({"resolution": 100_000}, "resolution must be .*, but got 100000"),
        ({"clip": "ViT-B-16"}, "a CLIP is named MODEL:WEIGHTS .*, but got 'ViT-B-16'"),
        ({"clip": 3}, "clip must be a model .*, but got 3"),
        ({"sam": {}}, "sam must be a model .*, but got {}"),
        ({"sam_checkpoint": ""}, "sam_checkpoint must be the path of a file, but got ''"),
        ({"clip_checkpoint": 7}, "clip_checkpoint must be the path of a file, but got 7"),
        ({"weights_dir": 7}, "weights_dir must be the path of a folder, but got 7"),
    ):
        with pytest.raises(ConfigError, match=message):
            unwrap(load)("tiny", device="cpu", **wrong)


@pytest.mark.parametrize("form", [str, Path])
def test_checkpoints_of_the_tiny_models(tmp_path, form):
    with pytest.raises(WeightsError, match=r"expected tiny weights at .*x, found no file"):
        load("tiny", device="cpu", sam_checkpoint=form(tmp_path / "x"))
    with pytest.raises(WeightsError, match=r"expected tiny weights at .*x, found no file"):
        load("tiny", device="cpu", clip_checkpoint=form(tmp_path / "x"))
    sam = build_tiny_sam()
    save_tiny_sam(sam, tmp_path / "sam.safetensors")
    loaded = load("tiny", device="cpu", sam_checkpoint=form(tmp_path / "sam.safetensors")).sam.sam
    token = "mask_decoder.iou_token.weight"
    assert torch.equal(loaded.state_dict()[token], sam.state_dict()[token].half().float())


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_precision_is_the_encoders(precision, dtype):
    loaded = load(clip=small_clip(), sam=small_sam(), precision=precision, device="cpu")
    assert {p.dtype for p in loaded.clip.model.parameters()} == {dtype}
    assert {p.dtype for p in loaded.sam.sam.image_encoder.parameters()} == {dtype}
    assert {p.dtype for p in loaded.sam.sam.mask_decoder.parameters()} == {torch.float32}
    assert {p.dtype for p in loaded.sam.sam.prompt_encoder.parameters()} == {torch.float32}


# The files inside the package


def test_embedded_files_are_named():
    embedded = files.paths("tiny")
    assert {kind: path.name for kind, path in embedded.items()} == {
        "clip": "tiny_clip.safetensors",
        "sam": "tiny_sam.safetensors",
    }
    assert fetch("tiny", offline=True) == embedded
    for survey, state in ((files.status, "present"), (files.verify, "verified")):
        assert {entry.state for entry in survey() if entry.presets == ("tiny",)} == {state}


@pytest.mark.parametrize("kind", ["clip", "sam"])
def test_one_flipped_bit_in_an_embedded_file_is_damage(tmp_path, monkeypatch, kind):
    path = files.paths("tiny")[kind]
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    (tmp_path / path.name).write_bytes(content)
    for module in ("clip2sam.tiny.files", "clip2sam.models.files"):
        monkeypatch.setattr(
            f"{module}.embedded_path",
            lambda name: tmp_path / name if name == path.name else path.with_name(name),
        )
    states = {row.kind: (row.state, row.problem) for row in files.verify(presets=["tiny"])}
    state, problem = states.pop(kind)
    assert state == "damaged"
    assert "its content changed; install clip2sam again. If you trained it anew: " in problem
    assert [state for state, _ in states.values()] == ["verified"]
    for call in (fetch, load):
        with pytest.raises(WeightsError, match=f"{path.name} has SHA-256"):
            call("tiny", offline=True)


def test_missing_part_of_the_package():
    lost = EmbeddedWeights("lost.safetensors")
    with pytest.raises(
        WeightsError, match=r"lost.safetensors, a part of clip2sam itself, is missing; install"
    ):
        fetch(Preset("mine", lost, lost, ""))
