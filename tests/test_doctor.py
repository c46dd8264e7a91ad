"""`clip2sam doctor`: what is pasted into a bug report."""

import pytest
from typer.testing import CliRunner

import clip2sam
from clip2sam.cli.app import app
from clip2sam.errors import ModelError


def run(*arguments: str):
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_it_says_what_there_is_and_tries_tiny(tmp_path):
    done = run("--weights-dir", str(tmp_path))
    assert done.exit_code == 0, done.output
    text = done.stdout
    assert f"clip2sam {clip2sam.__version__}, torch 2." in text
    assert "device auto is cpu" in text
    assert f"weights folder: {tmp_path}\n" in text
    assert "sam_vit_h_4b8939.pth: missing, for vit-h" in text
    assert "weights folder: writable, " in text
    found = text.splitlines()[-1]
    assert found.startswith("tiny on one scene: ")
    assert " drawn objects found in " in found
    assert not list(tmp_path.iterdir()), "nothing is written there"


def broken(*_, **__):
    raise ModelError("not finite")


def test_it_prints_neither_the_home_folder_nor_a_password(tmp_path, monkeypatch):
    monkeypatch.setattr("clip2sam.models.loading.load", broken)  # the scene is not looked at
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLIP2SAM_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy:3128")
    text = run().stdout
    assert "CLIP2SAM_WEIGHTS=~/weights, " in text
    assert "HTTPS_PROXY=http://***@proxy:3128" in text
    assert str(tmp_path) not in text
    assert "secret" not in text


def test_what_is_wrong_is_an_exit_code(tmp_path, monkeypatch):
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"cut")
    monkeypatch.setattr("clip2sam.models.loading.load", broken)
    done = run("--weights-dir", str(tmp_path))
    assert done.exit_code == 1
    assert "sam_vit_b_01ec64.pth: damaged" in done.stdout
    assert "tiny on one scene: failed" in done.stdout
    assert "wrong: the preset tiny fails: not finite" in done.stderr
    assert "has 3 bytes, expected 375042383" in done.stderr


@pytest.mark.parametrize("word", ["versions", "bug report"])
def test_its_help(word):
    assert word in run("--help").output
