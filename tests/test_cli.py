"""The command line as a person meets it: what it prints, what it writes, how it exits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from pycocotools.coco import COCO

import clip2sam
from clip2sam.cli import app as cli
from clip2sam.labelling.segment import relative_names
from clip2sam.tiny.scenes import scene, split_seed
from clip2sam.visualize.overlays import slug


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Call the command line in a fresh folder: returns (exit code, what it printed, errors)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clip2sam", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def street(tmp_path) -> Path:
    """A drawn picture with three objects; its labels are in `objects`."""
    path = tmp_path / "street.png"
    PILImage.fromarray(drawn().pixels).save(path)
    return path


def drawn():
    return scene(split_seed("validation", 77), 224, objects=(3, 3))


def labels_of(picture) -> list[str]:
    return list(dict.fromkeys(f"{o.colour} {o.shape}" for o in picture.objects))


def test_segment_writes_coco_and_overlays(run, street, tmp_path):
    labels = labels_of(drawn())
    arguments = [part for label in [*labels, "traffic light"] for part in ("--label", label)]
    code, printed, _ = run("segment", street, *arguments, "--output", "out")
    assert code == 0
    coco = COCO(str(tmp_path / "out" / "annotations.json"))
    assert [c["name"] for c in coco.dataset["categories"]] == [*labels, "traffic light"]
    found = {coco.cats[a["category_id"]]["name"] for a in coco.anns.values()}
    assert found <= set(labels)
    assert found
    assert all(0 <= a["score"] <= 1 for a in coco.anns.values())
    drawings = sorted(p.name for p in (tmp_path / "out" / "overlays").iterdir())
    assert len(drawings) == len(found)
    assert all(name.startswith("street.png.") for name in drawings)
    assert "traffic light: absent, its highest score" in printed
    assert "1 pictures, " in printed
    assert run("validate", "out/annotations.json")[0] == 0


def test_labels_file_polygons_and_all_overlays(run, street, tmp_path):
    label = labels_of(drawn())[0]
    (tmp_path / "labels.yaml").write_text(
        f"classes:\n  - {{name: Ding/1, prompts: [{label}]}}\ndistractors: [sky]\n"
    )
    code, _, _ = run(
        "segment", street, "--labels", "labels.yaml", "--polygons", "--overlays", "all"
    )
    assert code == 0
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [c["name"] for c in document["categories"]] == ["Ding/1"]
    assert all(isinstance(a["segmentation"], list) for a in document["annotations"])
    assert [p.name for p in (tmp_path / "out" / "overlays").iterdir()] == [
        "street.png.01-Ding-1.png"
    ]


def test_a_bad_picture_costs_that_picture(run, street, tmp_path):
    (tmp_path / "pictures").mkdir()
    street.rename(tmp_path / "pictures" / "a.png")
    (tmp_path / "pictures" / "b.jpg").write_text("not a picture")
    PILImage.fromarray(np.zeros((1, 9000, 3), np.uint8)).save(tmp_path / "pictures" / "c.png")
    code, printed, errors = run("segment", "pictures", "--label", "heart", "--overlays", "none")
    assert code == 1
    assert "b.jpg" in printed
    assert "failed: " in errors
    assert "3 pictures, 1 labels" in printed
    assert "1 failed" in printed
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [i["file_name"] for i in document["images"]] == ["a.png", "c.png"]


def test_an_interrupted_run_writes_what_was_done(run, street, tmp_path, monkeypatch):
    from clip2sam.labelling import segment as segmenting

    real = segmenting.load_image

    def load(path):
        if Path(path).name == "z.png":
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(segmenting, "load_image", load)
    code, _, errors = run(
        "segment", street, tmp_path / "z.png", "--label", "heart", "--overlays", "none"
    )
    assert code == 2  # there is no such file: found before anything starts
    (tmp_path / "z.png").write_bytes(street.read_bytes())
    code, _, errors = run(
        "segment", street, tmp_path / "z.png", "--label", "heart", "--overlays", "none"
    )
    assert code == 130
    assert "interrupted" in errors
    assert len(json.loads((tmp_path / "out" / "annotations.json").read_text())["images"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["street.png"], 2, "say what to cut out: --label NAME"),
        (["street.png", "--label", "a", "--labels", "x.yaml"], 2, "one of the two"),
        (["street.png", "--label", " "], 2, "label"),
        (["street.png", "--label", "a", "--label", "a"], 2, "'a'"),
        (
            ["street.png", "--label", "a", "--preset", "huge"],
            2,
            "no preset is called 'huge'; choose one of tiny",
        ),
        (
            ["street.png", "--label", "a", "--method", "magic"],
            2,
            "choose one of raw, maskclip, surgery, clearclip",
        ),
        (["street.png", "--label", "a", "--device", "tpu9"], 2, "use auto, cpu or cuda"),
        (
            ["street.png", "--label", "a", "--precision", "int4"],
            2,
            "choose one of exact, bf16, fp16",
        ),
        (["street.png", "--label", "a", "--overlays", "some"], 2, "must be found, all or none"),
        (["street.png", "--label", "a", "--threshold", "7"], 2, "at most 1, but got 7"),
        (["street.png", "--label", "a", "--resolution", "3"], 2, "3 pixels holds no patch"),
        (["nowhere.png", "--label", "a"], 2, "no such file"),
        (["street.png", "--labels", "nowhere.yaml"], 2, "nowhere.yaml"),
        (
            ["street.png", "--label", "a", "--preset", "vit-b", "--offline", "--weights-dir", "w"],
            3,
            "offline",
        ),
        (
            ["street.png", "--label", "a", "--sam-checkpoint", "nowhere.pth", "--preset", "vit-b"],
            3,
            "",
        ),
        (["street.png", "--no-such-option"], 2, "No such option"),
    ],
)
def test_mistakes_are_one_clear_line(run, street, monkeypatch, arguments, code, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    got, _, errors = run("segment", *arguments)
    assert got == code
    assert message in errors
    assert "Traceback" not in errors


def test_help_and_version_are_quick_to_read(run):
    code, printed, _ = run("--help")
    assert code == 0
    for word in ("segment", "validate", "weights", "demo", "Exit codes"):
        assert word in printed
    assert run("--version")[1].strip() == clip2sam.__version__
    assert "traffic light" in run("segment", "--help")[1]


def test_help_does_not_load_pytorch():
    code = "import sys; import clip2sam.cli.app; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_validate_names_every_place(run, tmp_path):
    (tmp_path / "bad.json").write_text(
        '{"images": [{"id": 0}], "annotations": [], "categories": []}'
    )
    code, printed, _ = run("validate", "bad.json")
    assert code == 1
    assert "images[0]" in printed
    assert "violations" in printed


def test_weights_commands(run, tmp_path):
    code, printed, _ = run("weights", "list", "--weights-dir", "w")
    assert code == 0
    assert "sam_vit_h_4b8939.pth" in printed
    code, printed, _ = run("weights", "path", "vit-h", "--weights-dir", "w")
    assert code == 0
    assert str(Path("w") / "sam_vit_h_4b8939.pth") in printed.replace("\n", "")
    code, _, errors = run("weights", "download", "vit-h", "--offline", "--weights-dir", "w")
    assert code == 3
    assert "ViT-B-16" in errors
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "sam_vit_h_4b8939.pth").write_bytes(b"cut")
    code, _, errors = run("weights", "verify", "--weights-dir", "w")
    assert code == 1
    assert "expected 2564550879" in errors


def test_demo_compares_with_the_drawn_truth(run, tmp_path):
    code, printed, _ = run("demo", "--output", "demo")
    assert code == 0
    assert "drawn labels found, mean IoU" in printed
    named = [
        line.removeprefix("wrote ") for line in printed.splitlines() if line.startswith("wrote ")
    ]
    assert named
    assert all((tmp_path / name).is_file() for name in named)


def test_names_are_relative_and_portable(tmp_path):
    assert relative_names([]) == []
    assert relative_names([tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]) == [
        "a/x.png",
        "b/x.png",
    ]
    assert relative_names([tmp_path / "x.png"]) == ["x.png"]


def test_names_that_are_not_utf8_or_not_portable(run, street, tmp_path):
    odd = os.fsdecode(b"bad\xff.png")
    (tmp_path / "p").mkdir()
    for name in (odd, "back\\slash.png", "new\nline.png"):
        (tmp_path / "p" / name).write_bytes(street.read_bytes())
    code, printed, errors = run("segment", "p", "--label", "heart", "--overlays", "none")
    assert code == 1
    assert "got a backslash" in errors
    assert "bad%FF.png" in printed
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert sorted(i["file_name"] for i in document["images"]) == sorted([odd, "new\nline.png"])


def test_slugs_are_safe_file_names():
    assert slug("traffic light") == "traffic-light"
    assert slug("../../etc/passwd\0") == "etc-passwd"
    assert slug("Straße ✓ 東京") == "Straße-東京"
    assert slug("...") == "label"
    assert len(slug("x" * 500)) == 60
