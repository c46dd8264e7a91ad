"""The README's examples run: each block marked `runs as a test`, with the tiny preset and a drawn street.jpg."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from clip2sam.cli import app as cli
from clip2sam.data.labels import load_labels
from clip2sam.tiny.scenes import scene

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"<!-- runs as a test(?:: \S+)? -->\n```(\w+)\n(.*?)```", README, re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


@pytest.fixture(autouse=True)
def street(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PILImage.fromarray(scene(5).pixels).save("street.jpg")


def test_there_is_one_block_of_each_kind():
    assert [kind for kind, _ in BLOCKS] == ["bash", "yaml", "python", "python"]


def test_the_command(monkeypatch):
    for line in blocks("bash")[0].strip().splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
    assert Path("out/annotations.json").is_file()


def test_the_labels_file():
    Path("labels.yaml").write_text(blocks("yaml")[0])
    labels = load_labels("labels.yaml")
    assert labels.names == ("person", "traffic light", "sky", "road")
    assert [c.threshold for c in labels.wanted] == [None, 0.12]


def test_python():
    names: dict = {}
    exec(blocks("python")[0].replace('"vit-h"', '"tiny"'), names)
    assert names["result"].class_names == ("person", "traffic light")
    assert names["result"].masks.dtype == bool


def test_the_stages_one_by_one():
    names: dict = {}
    exec(blocks("python")[1], names)
    assert names["heat"].shape == (3, 333, 500)
    assert names["published_points"].shape[1] == 3
    assert set(np.unique(names["published_points"][:, 2].numpy())) == {0, 1}
    assert names["alone"].shape == (1, 197, 1)
