"""The examples of CONTRIBUTING.md run; each by itself, with a few drawn images."""

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image as PILImage
from pycocotools.coco import COCO

import clip2sam
from clip2sam.tiny.scenes import scene
from tests.documents import ROOT, blocks
from tests.test_layout import LEVELS

METHOD, PRIOR, LOCATOR, RULE, CUTTER, PRESET, SOURCE, EXPORTER, ENGINE = (
    text for _, text in blocks("CONTRIBUTING.md")
)


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    """street.jpg, images/ and images.zip."""
    monkeypatch.chdir(tmp_path)
    PILImage.fromarray(scene(5).pixels).save("street.jpg")
    Path("images").mkdir()
    with ZipFile("images.zip", "w") as archive:
        for i in (5, 7):
            PILImage.fromarray(scene(i).pixels).save(f"images/{i}.png")
            archive.write(f"images/{i}.png", f"inner/{i}.png")


def run(text: str) -> dict:
    names: dict = {}
    exec(text, names)
    return names


@pytest.mark.parametrize("text", [METHOD, PRIOR], ids=["attention", "prior"])
def test_a_method(text):
    names = run(text)
    default = clip2sam.load("tiny")("street.jpg", ["cyan square", "orange ring"])
    assert names["segmenter"].config.method is names["method"]
    assert names["result"].maps.shape == default.maps.shape
    assert abs(names["result"].maps - default.maps).max() > 1e-3


def test_a_locator():
    result = run(LOCATOR)["result"]
    red, green, blue = result.image.pixels.astype(int).transpose(2, 0, 1)
    y, x = (red > np.maximum(green, blue) + 30).nonzero()
    corners = [(float(x.min()), float(y.min()), 2), (float(x.max() + 1), float(y.max() + 1), 3)]
    assert result.presence.tolist() == pytest.approx([0.9])
    assert [list(a.points) for a in result.everything] == [corners]


def test_a_cutter():
    result = run(CUTTER)["result"]
    assert result.annotations
    bright = result.image.pixels.mean(axis=2)
    for mask, annotation in zip(result.masks, result.annotations, strict=True):
        ((x, y, _),) = annotation.points
        assert mask[int(y), int(x)]
        away = abs(bright - bright[int(y), int(x)])
        assert np.median(away[mask]) < np.median(away[~mask])


def test_a_candidate_rule():
    names = run(RULE)
    assert names["segmenter"].config.candidate is names["by_stability"]
    assert names["result"].class_names == ("cyan square", "orange ring")


def test_a_preset(capsys):
    names = run(PRESET)
    assert names["result"].grids.shape == (2, 10, 10)
    assert "sam_vit_h_4b8939.pth" in capsys.readouterr().out


def test_a_source():
    names = run(SOURCE)
    assert (names["summary"].listed, names["summary"].failed) == (2, 0)
    written = COCO("run/annotations.json").dataset["images"]
    assert [image["file_name"] for image in written] == ["inner/5.png", "inner/7.png"]


def test_an_export_format():
    run(EXPORTER)
    every = Path("run/masks.csv").read_text().splitlines()
    annotations = COCO("run/annotations.json").dataset["annotations"]
    assert len(every) == len(annotations) > 0
    assert set(Path("sure.csv").read_text().splitlines()) < set(every)


def test_an_engine():
    names = run(ENGINE)
    assert (names["summary"].listed, names["summary"].failed) == (2, 0)
    classes = COCO("run/annotations.json").dataset["categories"]
    assert [c["name"] for c in classes] == ["red", "green", "blue"]
    assert sum(c.masks for c in names["summary"].classes) > 0


def test_the_table_names_every_room_in_order():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    named = [name.removesuffix(".py").rstrip("/") for name in rows]
    assert sorted(named) == sorted(LEVELS)
    levels = [LEVELS[name] for name in named]
    assert levels == sorted(levels, reverse=True)
