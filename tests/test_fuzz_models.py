"""Whatever a weight file, a server or a command line holds: our own errors, and never a wrong file
under a right name."""

import hashlib
import io
import json
import random
import sys
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from segment_anything import sam_model_registry

from clip2sam.cli import app as cli
from clip2sam.errors import ConfigError, WeightsError
from clip2sam.models import download, files
from clip2sam.models.checkpoints import load_clip, load_sam
from clip2sam.models.download import fetch_sam
from clip2sam.models.presets import SamWeights
from clip2sam.tiny.models import load_tiny_clip, load_tiny_sam
from tests.file_server import serve
from tests.models import small_sam

CONTENT = random.Random(0).randbytes(30_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()

SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
"""Examples share a folder, a server and patches, and leave nothing in them for the next one."""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """With a small CLIP that open_clip knows, and a small SAM in the place of ViT-B."""
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
    }
    (tmp_path / "fuzz-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "fuzz-test.json")
    monkeypatch.setitem(sam_model_registry, "vit_b", small_sam)
    return tmp_path


LOADERS = {
    "clip": lambda path: load_clip("fuzz-test", path),
    "sam": lambda path: load_sam("vit_b", path),
    "tiny clip": load_tiny_clip,
    "tiny sam": load_tiny_sam,
}


def load_or_refuse(path: Path) -> None:
    for load in LOADERS.values():
        try:
            load(path)
        except (WeightsError, ConfigError) as error:
            message = str(error)
            assert "\n" not in message


def torch_file(state: object, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


STATE = {"visual.proj": torch.ones(3, 2), "mask_decoder.x": torch.zeros(2, dtype=torch.float16)}
SEEDS = (
    safetensors.torch.save(STATE, {"known_tokens": "[1, 2]"}),
    torch_file(STATE),
    torch_file({"state_dict": STATE}, zipped=False),
)


@settings(max_examples=60, deadline=None, suppress_health_check=SHARED)
@given(st.binary(max_size=200), st.sampled_from([".pth", ".safetensors", ""]))
@example(b"\xff" * 8 + b"{", ".safetensors")
@example((2).to_bytes(8, "little") + b"{}", ".safetensors")
@example(b"PK\x05\x06" + bytes(18), ".pth")
def test_any_bytes_as_a_checkpoint(folder, content, suffix):
    path = folder / f"weights{suffix}"
    path.write_bytes(content)
    load_or_refuse(path)


@settings(max_examples=80, deadline=None, suppress_health_check=SHARED)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
    st.sampled_from([".pth", ".safetensors"]),
)
def test_damaged_checkpoints(folder, seed, changes, length, suffix):
    content = bytearray(seed)
    for place, value in changes:
        content[int(place * len(content))] = value
    path = folder / f"weights{suffix}"
    path.write_bytes(content[: max(int(length * len(content)), 1)])
    load_or_refuse(path)


leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
documents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
headers = st.dictionaries(
    st.sampled_from(["__metadata__", "token_embedding.weight", "visual.proj", "x"]),
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "?"]),
            "shape": st.lists(st.integers(-1, 4), max_size=3) | documents,
            "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2) | documents,
            "known_tokens": st.text(max_size=6) | documents.map(json.dumps),
        },
    )
    | documents,
    max_size=3,
)


@settings(max_examples=80, deadline=None, suppress_health_check=SHARED)
@given(headers, st.binary(max_size=64))
@example({"__metadata__": {"known_tokens": "[" * 50_000}}, b"")
@example(
    {
        "__metadata__": {"known_tokens": "[]"},
        "token_embedding.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    },
    bytes(4),
)
def test_any_header_of_safetensors(folder, header, data):
    text = json.dumps(header).encode()
    path = folder / "weights.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    load_or_refuse(path)


@settings(max_examples=40, deadline=None, suppress_health_check=SHARED)
@given(documents, st.booleans())
def test_any_object_in_a_torch_file(folder, held, zipped):
    path = folder / "weights.pth"
    path.write_bytes(torch_file(held, zipped))
    load_or_refuse(path)


# Servers


@pytest.fixture(scope="module")
def server():
    with serve(CONTENT) as running:
        yield running


answers = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from([200, 204, 206, 226, 301, 302, 304, 307, 400, 416, 429, 500]),
        "headers": st.dictionaries(
            st.sampled_from(
                ["Content-Length", "Content-Range", "Content-Encoding", "Transfer-Encoding"]
            ),
            st.sampled_from(
                [
                    "0",
                    "-1",
                    "30000",
                    "30001",
                    "1e4",
                    "x",
                    "bytes",
                    "bytes 0-29999/30000",
                    "bytes 7-29999/30000",
                    "bytes */*",
                    "gzip",
                    "br",
                    "deflate",
                    "chunked",
                    "identity",
                ]
            ),
            max_size=2,
        ),
        "moved_to": st.sampled_from(["/found", "/moved", "http://[", "//", "", "ftp://x/", "\\"]),
        "faults": st.lists(
            st.sampled_from(["", "cut:0", "cut:1", "cut:20000", "404", "503"]), max_size=3
        ),
        "tell_length": st.booleans(),
        "ranges": st.booleans(),
        "content": st.sampled_from([CONTENT[:-1], CONTENT + b"x", b"", CONTENT[::-1]]),
    },
)

USUAL = {
    "status": None,
    "headers": {},
    "moved_to": "/found",
    "faults": [],
    "tell_length": True,
    "ranges": True,
    "content": CONTENT,
}


@settings(max_examples=60, deadline=None, suppress_health_check=SHARED)
@given(
    answers,
    st.sampled_from([b"", CONTENT[:7], CONTENT[:-1], CONTENT + b"x", b"<html>"]),
    st.sampled_from(["sam.pth", "moved"]),
)
@example({}, b"", "sam.pth")
@example({"status": 206}, b"", "sam.pth")
@example({"headers": {"Content-Encoding": "gzip"}}, b"", "sam.pth")
@example({"status": 302, "moved_to": ""}, b"", "sam.pth")
def test_whatever_a_server_answers(server, folder, monkeypatch, answer, part, address):
    monkeypatch.setattr(download, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(download, "TIMEOUT", (2.0, 0.2))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    vars(server).update({**USUAL, **answer})
    path, unfinished = folder / "sam.pth", folder / "sam.pth.part"
    for old in (path, unfinished, folder / "sam.pth.verified"):
        old.unlink(missing_ok=True)
    if part:
        unfinished.write_bytes(part)
    weights = SamWeights("vit_b", "sam.pth", len(CONTENT), SHA256, f"{server.url}/{address}")
    try:
        assert fetch_sam(weights, weights_dir=folder, progress=False) == path
    except WeightsError as error:
        message = str(error)
        assert "\n" not in message
        assert not path.exists()
    else:
        assert path.read_bytes() == CONTENT
        assert files.local_file(weights, folder).remembered() == SHA256


# Numbers


numbers = st.one_of(
    st.floats().map(str),
    st.integers().map(str),
    st.text(max_size=6),
    st.sampled_from(["nan", "-inf", "1e400", "1_0", "٣", "0x10", "", " 5", "9" * 5000, "1/2"]),
)
COMMANDS = (
    ("label", "nowhere", "--label", "a"),
    ("export", "nowhere", "--output", "out.json"),
)
OPTIONS = {
    "label": [
        "--grid",
        "--resolution",
        "--timeout",
        "--keep-above",
        "--batch-size",
        "--readers",
        "--max-pixels",
        "--max-failures",
        "--presence-threshold",
        "--point-threshold",
    ],
    "export": [
        "--presence-threshold",
        "--class-threshold",
        "--min-score",
        "--min-area",
        "--duplicates",
    ],
}


@settings(max_examples=80, deadline=None, suppress_health_check=SHARED)
@given(st.sampled_from(COMMANDS), st.data())
def test_any_number_on_the_command_line(tmp_path, monkeypatch, capsys, command, data):
    monkeypatch.chdir(tmp_path)
    option = data.draw(st.sampled_from(OPTIONS[command[0]]))
    value = data.draw(numbers)
    monkeypatch.setattr(sys, "argv", ["clip2sam", *command, f"{option}={value}"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["label", "tune"])
def test_an_empty_source_is_not_the_current_folder(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["clip2sam", command, "", "--label", "a"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "expected a path, got nothing" in " ".join(capsys.readouterr().err.split())
