"""The README's examples run, with the preset tiny and a drawn street.jpg."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image as PILImage
from typer.main import get_command

import clip2sam
from clip2sam.cli import app as cli
from clip2sam.tiny.scenes import scene
from tests.documents import ROOT, blocks

BLOCKS = blocks("README.md")
BASH, YAML, PYTHON, STAGES, FUNCTIONS = (text for _, text in BLOCKS)


@pytest.fixture(autouse=True)
def street(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PILImage.fromarray(scene(5).pixels).save("street.jpg")


def test_there_is_one_block_of_each_kind():
    assert [kind for kind, _ in BLOCKS] == ["bash", "yaml", "python", "python", "python"]


def test_the_command(monkeypatch):
    for line in BASH.strip().splitlines():
        # without the weights of a preset for photographs
        monkeypatch.setattr(sys, "argv", [*shlex.split(line), "--allow-unknown"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
    assert Path("out/annotations.json").is_file()


def test_the_labels_file():
    Path("labels.yaml").write_text(YAML)
    labels = clip2sam.as_label_set("labels.yaml")
    assert labels.names == ("person", "traffic light", "sky", "road")
    assert labels.thresholds(0.1) == (0.1, 0.12, 0.1, 0.1)
    assert [c.distractor for c in labels.classes] == [False, False, True, True]


@pytest.mark.filterwarnings("ignore::clip2sam.UnknownLabelWarning")
def test_python_and_the_stages():
    names: dict = {}
    exec(PYTHON.replace('"vit-h"', '"tiny"'), names)
    assert names["result"].class_names == ("person", "traffic light")
    assert names["result"].masks.dtype == bool
    exec(STAGES, names)
    assert names["maps"].raw.shape[:2] == (1, 3)
    assert names["masks"].counts == names["prompts"].counts
    assert names["results"][0].class_names == ("person", "traffic light")


def test_the_functions_below_the_stages():
    names: dict = {}
    exec(FUNCTIONS, names)
    assert names["heat"].shape == (3, 333, 500)
    assert names["alone"].shape == (1, 197, 1)
    assert names["presence"].shape == (1, 3)
    assert set(names["point_labels"][0, 0, names["chosen"]].tolist()) == {0, 1}
    points = names["points"]
    assert points.shape[1] == 2
    assert (points >= 0).all()
    assert (points < points.new_tensor([500, 333])).all()


def test_every_command_and_option_that_is_named_exists():
    """Also in the blocks that need files or weights which aren't here."""
    pages = ("other_tools", "methods", "formats")
    documents = ("README.md", "CONTRIBUTING.md", *(f"docs/{page}.md" for page in pages))
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in documents)
    text = text.replace("\\\n", " ")  # lines that continue
    lines = [line for line in text.splitlines() if re.match(r" {0,4}clip2sam \w", line)]
    assert len(lines) > 8
    for line in lines:
        first, *words = shlex.split(line, comments=True)[1:]
        command = get_command(cli.app).commands[first]
        if first == "weights":
            command = command.commands[words[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        unknown = {word for word in words if word.startswith("--")} - options
        assert not unknown, line
