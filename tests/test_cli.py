"""The command line as a user meets it: what it prints, what it writes, how it exits."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image as PILImage
from pycocotools.coco import COCO
from typer.main import get_command

import clip2sam
from clip2sam.cli import app as cli
from clip2sam.cli.groups import ModelOptions
from clip2sam.coco.document import coco_document
from clip2sam.coco.rle import encode_mask
from clip2sam.coco.write import write_coco
from clip2sam.data.files import file_sha256
from clip2sam.data.labels import as_label_set
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.tiny.files import EMBEDDED
from clip2sam.tiny.scenes import instance_masks, scene, split_seed
from clip2sam.visualize.overlays import slug
from tests.documents import ROOT


@pytest.fixture
def run(monkeypatch, command_line, tmp_path):
    """The command line, called in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    return command_line


@pytest.fixture
def street(tmp_path) -> Path:
    """A drawn image with three objects; `labels_of(drawn())` are its labels."""
    path = tmp_path / "street.png"
    PILImage.fromarray(drawn().pixels).save(path)
    return path


def drawn():
    return scene(split_seed("validation", 77), 224, objects=(3, 3))


def labels_of(image) -> list[str]:
    return list(dict.fromkeys(f"{o.colour} {o.shape}" for o in image.objects))


def test_segment_writes_coco_and_overlays(run, street, tmp_path):
    labels = labels_of(drawn())
    arguments = [part for label in [*labels, "traffic light"] for part in ("--label", label)]
    arguments.append("--allow-unknown")
    code, printed, _ = run("segment", street, *arguments, "--output", "out")
    assert code == 0
    coco = COCO(str(tmp_path / "out" / "annotations.json"))
    assert [c["name"] for c in coco.dataset["categories"]] == [*labels, "traffic light"]
    found = {coco.cats[a["category_id"]]["name"] for a in coco.anns.values()}
    assert found <= set(labels)
    assert found
    assert all(0 <= a["score"] <= 1 for a in coco.anns.values())
    drawings = sorted(p.name for p in (tmp_path / "out" / "overlays").iterdir())
    assert len(drawings) == 1 + len(found), "all masks in one, and each label by itself"
    assert all(name.startswith("street.png.") for name in drawings)
    assert "traffic light: absent, its highest score" in printed
    assert "1 images, " in printed
    assert f"{len(coco.anns)} masks (one for each object), 0 failed" in printed
    assert coco.dataset["info"]["masks"] == "one for each object"
    assert run("validate", "out/annotations.json")[0] == 0
    code, printed, _ = run("segment", street, *arguments, "--overlays", "none", "--one-mask")
    assert "masks (one for each label), 0 failed" in printed


def test_a_caption_is_labels_with_their_places(run, street, tmp_path):
    first, second, _ = labels_of(drawn())
    caption = f"a {first} next to the {second}, and another {first}; the zebra is grey"
    code, output, _ = run(
        "segment",
        street,
        "--caption",
        caption,
        "--allow-unknown",
        "--overlays",
        "none",
        "--output",
        tmp_path / "out",
    )
    assert code == 0
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    spans = {c["name"]: c["caption_spans"] for c in document["categories"]}
    assert list(spans) == [first, second, "zebra"]
    assert {n: [caption[a:b] for a, b in own] for n, own in spans.items()} == {
        first: [first, first],
        second: [second],
        "zebra": ["zebra"],
    }
    assert document["info"]["caption"] == caption
    (a, b), (c, d) = spans[first]
    assert f"  {first} [{a}:{b}, {c}:{d}]: mask, score" in output
    (a, b) = spans["zebra"][0]
    assert f"  zebra [{a}:{b}]: absent, " in output
    assert run("validate", tmp_path / "out" / "annotations.json")[0] == 0

    code, output, _ = run("explain", street, "zebra", "--caption", caption, "--allow-unknown")
    assert (code, f"zebra [{a}:{b}]: presence" in output) == (0, True)
    code, output, _ = run(
        "label", street, "--caption", caption, "--allow-unknown", "--output", tmp_path / "run"
    )
    assert (code, f" zebra [{a}:{b}] " in output) == (0, True)
    of_run = json.loads((tmp_path / "run" / "annotations.json").read_text())
    assert of_run["categories"] == document["categories"]
    assert of_run["info"]["caption"] == caption
    code, _, errors = run(
        "label", street, "--caption", f"{caption} ", "--allow-unknown", "--output", "run"
    )
    assert code == 2
    assert "began with other settings: labels.caption was" in errors


def test_a_joined_label_has_one_mask(run, street, tmp_path):
    first, second, third = labels_of(drawn())
    joined = f"{first}+{second}"
    arguments = ("--label", joined, "--label", third, "--output", tmp_path / "out")
    code, output, _ = run("segment", street, *arguments)
    assert (code, output.count(f"  {joined}: mask, score")) == (0, 1)
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [c["name"] for c in document["categories"]] == [joined, third]
    assert sum(a["category_id"] == 1 for a in document["annotations"]) == 1
    (name,) = (p.name for p in (tmp_path / "out" / "overlays").glob("*01*"))
    assert name.endswith(f".01-{slug(joined)}.png")


@pytest.mark.filterwarnings("default:labels that look like")
def test_a_list_in_one_label_is_warned_of(run, street):
    code, _, errors = run("segment", street, "--allow-unknown", "--label", "circle, star")
    assert code == 0
    assert (
        errors.count("warning: labels that look like lists are one label each: 'circle, sta") == 1
    )
    assert "--label A --label B" in errors


def test_labels_come_from_one_option(run, street, tmp_path):
    (tmp_path / "labels.yaml").write_text("[cat]")
    for command in ("segment", "label", "explain"):
        for other in (["--label", "cat"], ["--labels", "labels.yaml"]):
            code, _, errors = run(command, street, "--caption", "a dog", *other)
            assert code == 2
            assert "by --labels FILE or by --caption SENTENCE: one of the three" in errors
        code, _, errors = run(command, street, "--caption", "it is blue")
        assert code == 2
        assert "expected a caption that names something, got 'it is blue'" in errors


def test_labels_file_polygons_and_all_overlays(run, street, tmp_path):
    label = labels_of(drawn())[0]
    (tmp_path / "labels.yaml").write_text(
        f"classes:\n  - {{name: Ding/1, prompts: [{label}]}}\ndistractors: [square]\n"
    )
    code, _, _ = run(
        "segment", street, "--labels", "labels.yaml", "--polygons", "--overlays", "all"
    )
    assert code == 0
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [c["name"] for c in document["categories"]] == ["Ding/1"]
    assert all(isinstance(a["segmentation"], list) for a in document["annotations"])
    assert [p.name for p in (tmp_path / "out" / "overlays").glob("*.01-*")] == [
        "street.png.01-Ding-1.png"
    ]
    corners = []
    for extra in (("--polygons",), ("--polygons", "--tolerance", "0")):
        plain = ("segment", street, "--labels", "labels.yaml", "--overlays", "none")
        assert run(*plain, *extra)[0] == 0
        document = json.loads((tmp_path / "out" / "annotations.json").read_text())
        corners.append(sum(len(p) for a in document["annotations"] for p in a["segmentation"]))
    assert corners[1] > 2 * corners[0] > 0
    code, _, errors = run("segment", street, "--labels", "labels.yaml", "--tolerance", "2")
    assert code == 2
    assert "the tolerance 2 is for polygons; give --polygons" in errors


def test_a_bad_image_costs_that_image(run, street, tmp_path):
    (tmp_path / "images").mkdir()
    street.rename(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.jpg").write_text("not an image")
    PILImage.fromarray(np.zeros((1, 9000, 3), np.uint8)).save(tmp_path / "images" / "c.png")
    code, printed, errors = run("segment", "images", "--label", "heart", "--overlays", "none")
    assert code == 1
    assert "b.jpg" in printed
    assert "failed: " in errors
    assert "3 images, 1 labels" in printed
    assert "1 failed" in printed
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [i["file_name"] for i in document["images"]] == ["a.png", "c.png"]


def test_an_interrupted_command_writes_what_was_done(run, street, tmp_path, monkeypatch):
    from clip2sam.labelling import each

    real = each.load_named

    def load(source, name, max_pixels):
        if name == "z.png":
            raise KeyboardInterrupt
        return real(source, name, max_pixels)

    monkeypatch.setattr(each, "load_named", load)
    arguments = (street, tmp_path / "z.png", "--label", "heart", "--overlays", "none")
    code, _, errors = run("segment", *arguments)
    assert code == 2  # there is no such file: found before anything starts
    assert "no such file" in errors
    (tmp_path / "z.png").write_bytes(street.read_bytes())
    code, _, errors = run("segment", *arguments)
    assert code == 130
    assert "interrupted; out/annotations.json has the images done so far" in errors
    assert len(json.loads((tmp_path / "out" / "annotations.json").read_text())["images"]) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["street.png"],
            2,
            "give labels by --label NAME (repeatable), by --labels FILE or by --caption SENTENCE",
        ),
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
        (["street.png", "--label", "heart", "--device", "tpu9"], 2, "use auto, cpu, cuda, cuda:N"),
        (
            ["street.png", "--label", "heart", "--precision", "int4"],
            2,
            "choose one of fp32, bf16, fp16",
        ),
        (["street.png", "--label", "a", "--overlays", "some"], 2, "must be found, all or none"),
        (["street.png", "--label", "a", "--point-threshold", "7"], 2, "at most 1, but got 7"),
        (["street.png", "--label", "heart", "--resolution", "3"], 2, "3 pixels holds no patch"),
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
        (["street.png", "--label", "a", "--output", "."], 2, "lies where images are read"),
        (["street.png", "--label", "a", "--threshold", "0.5"], 2, "No such option"),
    ],
)
def test_mistakes_are_one_clear_line(run, street, monkeypatch, arguments, code, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    got, _, errors = run("segment", *arguments)
    assert got == code
    assert message in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


NO_PATH = ": expected a path, got nothing"

JUDGED = ("segment", "label", "explain", "evaluate", "serve")
MAPPED = (*JUDGED, "dense", "tune")
NUMBERS = {
    "--presence-threshold": (*MAPPED, "export"),
    "--point-threshold": JUDGED,
    "--min-share": (*JUDGED, "export"),
    "--tile-overlap": MAPPED,
    "--threshold": ("dense",),
    "--timeout": ("label",),
    "--time-limit": ("serve",),
    "--tolerance": ("segment", "export"),
    "--val-share": ("export",),
    "--min-score": ("export",),
    "--duplicates": ("export",),
}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "-1e400", "NaN", "infinity"])
@pytest.mark.parametrize(("option", "command"), [(o, c) for o, cs in NUMBERS.items() for c in cs])
def test_numbers_are_finite(run, street, option, command, value):
    """In `export` they would drop classes in silence."""
    label = () if command in ("export", "serve") else ("--label", "heart")
    first = {"export": ("run", "--output", "x.json"), "evaluate": (), "serve": ()}.get(
        command, (street,)
    )
    code, _, errors = run(command, *first, *label, f"{option}={value}")
    assert code == 2
    assert f"Invalid value for '{option}'" in errors
    assert ": expected a " in errors
    assert errors.endswith(f"got '{value}'; see 'clip2sam {command} --help'\n")
    assert errors.count("\n") == 1


def test_every_option_of_a_float_is_checked():
    found = {
        (option.opts[0], name)
        for name, command in get_command(cli.app).commands.items()
        for option in getattr(command, "params", ())
        if option.metavar == "NUMBER"
    }
    assert found == {(o, c) for o, cs in NUMBERS.items() for c in cs}
    floats = [
        (f"--{name.replace('_', '-')}", command.callback.__name__)
        for command in cli.app.registered_commands
        for name, kind in get_type_hints(command.callback).items()
        if kind in (float, float | None)
    ]
    assert set(floats) == found


@pytest.mark.parametrize("value", ["nan", "inf", "1e400"])
def test_class_thresholds_are_finite(run, value):
    code, _, errors = run("export", "run", "--output", "x", "--class-threshold", f"cat={value}")
    assert (code, "expected a finite number" in errors) == (2, True), errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--presence-threshold", "much"], "expected a finite number, got 'much'"),
        (["--timeout", "0"], "expected a number above 0 and at most 86400, got '0'"),
        (["--timeout", "-1"], "expected a number above 0"),
        (["--timeout", "1e300"], "expected a number above 0 and at most 86400"),
        (["--resolution", "0"], "resolution must be a whole number from 1 to 8192 pixels"),
        (["--resolution", "100000"], "resolution must be a whole number from 1 to 8192 pixels"),
        (["--resolution", "8000"], "8000 pixels has 500 x 500 patches, more than the 256 x 256"),
        (["--grid", "20000"], "grid must be a whole number from 2 to 64 cells"),
        (
            ["--grid", "20"],
            "a grid of 20 x 20 cells is finer than CLIP's map of 14 x 14; use a grid",
        ),
        (["--grid", "100000"], "grid must be a whole number from 2 to 64 cells"),
        (["--device", "meta"], "clip2sam does not run on 'meta'"),
        (["--device", "mps"], "device 'mps' was given, but"),
        (["--device", "xpu"], "device 'xpu' was given, but"),
        (["--device", "cuda:99"], "device 'cuda:99' was given, but"),
        (
            ["--output", ""],
            f"'--output' / '-o'{NO_PATH}",
        ),
        (
            ["--labels", ""],
            f"'--labels' / '--classes'{NO_PATH}",
        ),
        (
            ["--weights-dir", ""],
            f"'--weights-dir'{NO_PATH}",
        ),
        (
            ["--sam-checkpoint", ""],
            f"'--sam-checkpoint'{NO_PATH}",
        ),
        (["--root", ""], f"'--root'{NO_PATH}"),
        (["--output", "a\0b"], "expected a path, got 'a\\x00b'"),
        (["--readers", "100000"], "'--readers'"),
        (["--max-pixels", "0"], "'--max-pixels'"),
        (["--max-failures", "-1"], "'--max-failures'"),
        (["--batch-size", "99999999999999999999"], "'--batch-size'"),
        (["--batch-size", "1" * 5000], "--batch-size"),
    ],
)
def test_values_out_of_range_are_one_clear_line(run, street, arguments, message):
    given = () if "--labels" in arguments else ("--label", "heart")
    code, _, errors = run("label", street, *given, *arguments)
    assert (code, "Traceback" in errors) == (2, False), errors
    assert message in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert not (street.parent / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("segment", ""),
        ("segment", "", "--label", "heart"),
        ("classify", "street.png", "--label", "heart", "--output", ""),
        ("export", ""),
        ("validate", ""),
        ("explain", ""),
        ("evaluate", "--dataset", ""),
        ("evaluate", "--output", ""),
        ("demo", "--output", ""),
        ("tune", "street.png", "--figure", ""),
        ("weights", "list", "--weights-dir", ""),
    ],
)
def test_an_empty_path_is_not_the_current_folder(run, street, arguments):
    more = ("--output", "x.json") if arguments[0] == "export" else ()
    code, _, errors = run(*arguments, *more)
    assert code == 2
    assert "expected a path, got nothing; see 'clip2sam " in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment"], "Missing argument 'images'; see 'clip2sam segment --help'"),
        (["segment", "--label"], "'--label' requires an argument; see 'clip2sam segment --help'"),
        (
            ["label", "x", "--jsn"],
            "No such option: --jsn (Possible options: --json); see 'clip2sam",
        ),
        (["label", "x", "--batch-size", "x"], "Invalid value for '--batch-size': "),
        (["evaluate", "a [red]\n\x1b[1mb"], r"argument(s) (a [red]\x0a\x1b[1mb); see"),
        (["sgement", "x"], "No such command 'sgement'"),
        (["--jsn"], "No such option: --jsn; see 'clip2sam --help'"),
        (["weights", "verfy"], "No such command 'verfy'"),
        (["weights", "path"], "Missing argument 'PRESET'; see 'clip2sam weights path --help'"),
        (["export", "run", "--output", "x", "--class-threshold", "a\nb\x1b"], r"got 'a\nb\x1b'"),
        (["export", "a\nb\x1b[1m", "--output", "x"], "expected the output folder of"),
    ],
)
def test_wrong_usage_is_one_line(run, arguments, message):
    code, printed, errors = run(*arguments)
    assert (code, printed) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert (errors.count("\n"), "\x1b" in errors) == (1, False)


def test_no_arguments_are_answered_with_the_help(run):
    for command in ([], ["weights"]):
        code, printed, errors = run(*command)
        assert (code, errors) == (2, "")
        assert "Usage: clip2sam" in printed


def test_an_abort_is_one_line(run, monkeypatch):
    def ask(*_, **__):
        raise EOFError  # a question at the end of standard input

    monkeypatch.setattr("clip2sam.coco.validate.validate", ask)
    code, _, errors = run("validate", "any.json")
    assert (code, errors.strip()) == (1, "error: aborted")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_knows_few_characters(run, street, monkeypatch, encoding):
    """Labels are printed with escapes."""
    label = "Straße ✓ 東京"
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, encoding))
    options = ("--allow-unknown", "--overlays", "none")
    code, _, errors = run("segment", street, "--label", label, *options)
    assert code == 0, errors
    sys.stdout.flush()
    assert b"\\u2713 \\u6771\\u4eac: absent" in terminal.getvalue()


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_is_130_without_a_traceback(tmp_path, signals):
    """The second one, while the command cleans up, ends it at once."""
    program = (
        "import signal, sys, time\n"
        # a shell's background jobs ignore Ctrl-C, and so do the processes that they start
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from clip2sam.cli import app\n"
        "def slow(*_, **__):\n"
        "    try:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('cleaning', flush=True); time.sleep(60 if sys.argv[2] == 'long' else 0)\n"
        "import clip2sam.coco.validate as module\n"
        "module.validate = slow\n"
        "app.main()\n"
    )
    (tmp_path / "long").touch()
    (tmp_path / "short").touch()
    argument = "long" if signals == 2 else "short"
    with subprocess.Popen(
        [sys.executable, "-c", program, "validate", argument],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        for line in ("ready\n", "cleaning\n")[:signals]:
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == (130 if signals == 1 else -signal.SIGINT)
    assert "Traceback" not in errors


def test_help_names_every_command_and_exit_code(run):
    code, printed, _ = run("--help")
    assert code == 0
    commands = [
        "segment",
        "classify",
        "dense",
        "label",
        "export",
        "merge",
        "report",
        "app",
        "serve",
        "explain",
        "tune",
        "evaluate",
        "validate",
        "demo",
        "doctor",
        "weights",
    ]
    assert set(commands) == set(get_command(cli.app).commands)
    for name in commands:
        assert f" {name} " in printed
        lines = run(name, "--help")[1].splitlines()
        assert " 4: another process works on this run" in map(str.rstrip, lines)
    assert run("--version")[1].strip() == clip2sam.__version__
    assert "traffic light" in run("segment", "--help")[1]


def test_the_readme_has_the_same_exit_codes():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {int(n): text.replace("`", "") for n, text in rows} == cli.EXIT_CODES


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (clip2sam.ModelError, 1),
        (clip2sam.WeightsError, 3),
        (clip2sam.RunLockedError, 4),
        (clip2sam.OutputError, 5),
        (clip2sam.TooManyFailuresError, 6),
        (clip2sam.RunError, 2),
        (clip2sam.ImageError, 2),
        (clip2sam.CocoError, 2),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(run, monkeypatch, error, code):
    def fail(*_, **__):
        raise error("what [it] says")

    monkeypatch.setattr("clip2sam.coco.validate.validate", fail)
    assert run("validate", "any.json") == (code, "", "error: what [it] says\n")


def test_an_output_that_cannot_be_written_is_5_in_every_command(run, street, tmp_path):
    (tmp_path / "file").write_text("no folder")
    label = ("--label", "heart")
    folder = tmp_path / "images"
    folder.mkdir()
    street.rename(folder / "street.png")
    assert run("label", "images", *label, "--output", "run")[0] == 0
    for arguments in (
        ("segment", "images", *label, "--output", "file/out"),
        ("classify", "images", *label, "--output", "file/scores.json"),
        ("dense", "images", *label, "--output", "file/maps"),
        ("label", "images", *label, "--output", "file/run"),
        ("export", "run", "--output", "file/annotations.json"),
        ("explain", "images/street.png", "heart", "--output", "file/drawing.png"),
        ("tune", "images", *label, "--output", "file/labels.yaml"),
        ("evaluate", "--scenes", "1", "--output", "file/figures.json"),
        ("demo", "--output", "file/demo"),
    ):
        code, _, errors = run(*arguments)
        assert code == 5, (arguments, errors)
        assert "can't be written" in errors


def test_an_option_is_the_same_in_every_command():
    """Defined once; the commands differ only where the same word means something else."""
    own = {"--output", "--dataset", "--images", "images", "--format"}
    own |= {
        "--json in merge",
        "run",
        "--polygons in export",
        "--method in evaluate",
        "--presence-threshold in export",
        "--max-objects in export",
    }
    seen: dict[str, tuple[str, str, bool]] = {}
    for command_name, command in get_command(cli.app).commands.items():
        for option in command.params:
            name = option.opts[0]
            if not own & {name, f"{name} in {command_name}"}:
                found = (option.name, option.help, option.multiple)
                assert seen.setdefault(name, found) == found, f"{name} in {command_name}"
    assert len(seen) > 30


def test_help_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys\n"
        "from clip2sam.cli import app\n"
        "sys.argv = ['clip2sam', 'label', '--help']\n"
        "try:\n    app.main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'cv2')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


MODELS = {"--preset", "--resolution", "--device", "--precision", "--clip-checkpoint"}
MODELS |= {"--clip", "--sam-checkpoint", "--weights-dir", "--offline"}
LABELS = {"--label", "--labels", "--distractor", "--allow-unknown"}
MAPS = {"--method", "--published", "--no-feature-surgery", "--presence-threshold"}
MAPS |= {"--tile", "--tile-overlap"}
MASKS = {"--point-threshold", "--grid", "--one-mask", "--max-objects", "--min-share"}


def test_options_that_go_together_are_in_every_command():
    every = {
        name: {option.opts[0] for option in command.params}
        for name, command in get_command(cli.app).commands.items()
    }
    asking = ("segment", "classify", "dense", "label", "explain", "tune", "evaluate")
    assert all(every[name] >= MODELS | LABELS for name in asking)
    assert all(every[name] >= MAPS for name in MAPPED)
    assert all(every[name] >= MASKS for name in JUDGED)
    assert all("--caption" in every[name] for name in ("segment", "classify", "label", "explain"))


def test_the_fields_names_mean_the_same(run, street, tmp_path, monkeypatch):
    (tmp_path / "names.txt").write_text("red circle")
    seen = {}

    def label_dataset(*source, **given):
        seen.update(given, labels=source[1].names, output=source[2], models=given["segmenter"])
        raise clip2sam.RunError("seen")

    monkeypatch.setattr("clip2sam.labelling.run.label_dataset", label_dataset)
    monkeypatch.setattr(
        "clip2sam.cli.groups.ModelOptions.load",
        lambda self, config, **_: seen.update(config=config),
    )
    options = ("--classes", "names.txt", "--conf", "0.25", "-o", "there", "--workers", "3")
    assert run("label", street, *options)[2] == "error: seen\n"
    assert (seen["labels"], seen["output"], seen["readers"]) == (("red circle",), Path("there"), 3)
    seen["models"]()
    assert seen["config"].presence_threshold == 0.25


@pytest.mark.parametrize(
    ("line", "suggested"),
    [
        ("segment x --threshold 0.5", "--point-threshold"),
        ("segment x --labl a", "--label"),
        ("label x --outptu y", "--output"),
        ("tune x --ofline", "--offline"),
        ("evaluate --limt 3", "--limit"),
    ],
)
def test_an_unknown_option_suggests_the_right_one(run, line, suggested):
    code, _, errors = run(*line.split())
    assert (code, errors.count("\n")) == (2, 1)
    assert "No such option: " in errors
    assert suggested in errors.split("Possible options:")[1]


def test_help_pages_fit_a_terminal(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert "<bool>" not in run("--help")[1]
    for name in get_command(cli.app).commands:
        page = run(name, "--help")[1]
        assert max(map(len, page.splitlines())) <= 80, name
        assert "<bool>" not in page, name
        panels = [title for title in ("Labels", "Settings", "Models") if f"╭─ {title} ─" in page]
        assert len(page.splitlines()) < 48 or panels, name
    for name in ("list", "download", "verify", "path"):
        assert "<bool>" not in run("weights", name, "--help")[1], name


def test_mps_falls_back_on_the_cpu(monkeypatch):
    """PyTorch reads this when it is imported."""
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "")  # so that it is put back at the end
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK")
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("clip2sam.models.loading.load", lambda *_, **given: given["device"])
    models = ModelOptions("tiny", device="mps").chosen()
    assert models.load(models.config()) == "mps"
    assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"


def test_evaluate_judges_the_first_images_class_by_class(run, street, tmp_path):
    first, second, _ = labels_of(drawn())
    records = [
        ImageRecord(
            i,
            name,
            (224, 224),
            annotations=tuple(
                Annotation(label, encode_mask(mask), 1.0)
                for label in (first, second)
                for mask in instance_masks(drawn(), label)
            ),
        )
        for i, name in ((1, "street.png"), (2, "gone.png"))
    ]
    write_coco(
        tmp_path / "truth.json", coco_document(records, as_label_set([first, second]).wanted)
    )
    (tmp_path / "labels.yaml").write_text(
        json.dumps([{"name": first, "presence_threshold": 0.25}, second])
    )
    code, printed, errors = run(
        "evaluate", "--dataset", "truth.json", "--limit", 1, "--labels", "labels.yaml", "-o", "f"
    )
    assert code == 0, errors
    classes = json.loads((tmp_path / "f").read_text())["surgery"]["classes"]
    assert [classes[name]["threshold"] for name in (first, second)] == [0.25, 0.32]
    for name in (first, second):
        own = classes[name]
        assert (own["images"], own["objects"]) == (1, len(instance_masks(drawn(), name)))
        row = next(line for line in printed.splitlines() if name in line)
        assert [cell.strip() for cell in row.split("│")[1:-1]] == [
            name,
            str(own["objects"]),
            f"{own['AP']:.3f}",
            f"{own['AP50']:.3f}",
            f"{own['recall']:.3f}",
            str(own["false_masks"]),
            f"{own['threshold']:g}",
        ]
    code, _, errors = run("evaluate", "--dataset", "truth.json", "--label", first)
    assert (code, "gone.png, found none; give the folder" in errors) == (2, True)


MISTAKES = [
    ("segment street.png --label star --preset huge", 2, "no preset is called 'huge'"),
    ("segment street.png --label star --tile 3", 2, "tile must be a whole number from 32"),
    ("segment street.png --labels nowhere.txt", 2, "nowhere.txt: expected a labels file, found"),
    ("segment street.png --classes star", 2, "or give names by --label: --label 'star'"),
    ("segment street.png --label star --output file", 5, "file: can't be written (File exists)"),
    ("segment street.png --label star --output file/out", 5, "can't be written (Not a directory)"),
    ("segment empty --label star", 2, "no image found in"),
    ("segment street.png --label star --sam-checkpoint no.pth", 3, "check the path of --sam-check"),
    ("classify street.png --label star --device tpu9", 2, "clip2sam does not run on 'tpu9'"),
    ("classify street.png --label star --output empty", 5, "a folder has this name"),
    ("classify nowhere --label star", 2, "no such file or folder"),
    ("classify street.png --label star --resolution 0", 2, "resolution must be a whole number"),
    ("dense street.png --label star --precision int4", 2, "no precision is called 'int4'"),
    ("dense street.png --label star --method magic", 2, "no method is called 'magic'"),
    ("dense street.png --label star --output file", 5, "file: can't be written (File exists)"),
    ("label nowhere --label star", 2, "no such file or folder"),
    ("label empty --label star", 2, "no image found in"),
    ("label street.png --label star --changed never", 2, "--changed must be again or refuse"),
    ("label street.png --label star --output file", 5, "file: can't be written (File exists)"),
    ("label street.png --label star --grid 1", 2, "grid must be a whole number from 2"),
    ("label street.png --labels nowhere.yaml", 2, "nowhere.yaml: expected a labels file"),
    ("export nowhere --output x.json", 2, "expected the output folder of 'clip2sam label'"),
    ("export nowhere --output empty", 5, "a folder has this name"),
    ("export nowhere --output x.json --overlap most", 2, "overlap must be one of keep"),
    ("explain nowhere.png star", 2, "no such file"),
    ("explain street.png star --output x.doc", 2, "let the name end in .png"),
    ("explain street.png star --output file/x.png", 5, "can't be written (Not a directory)"),
    ("explain street.png star --preset huge", 2, "no preset is called 'huge'"),
    ("segment street.png --label star --clip ViT-L-14", 2, "a CLIP is named MODEL:WEIGHTS"),
    ("label street.png --label star --clip ViT-L-14:openai", 2, "name the preset too: --preset"),
    ("tune nowhere --label star", 2, "no such file or folder"),
    ("tune street.png --label star --device mips", 2, "clip2sam does not run on 'mips'"),
    ("tune street.png --label star --figure x.doc", 2, "let the name end in .png"),
    ("tune street.png", 2, "give labels by --label NAME"),
    ("evaluate --preset huge", 2, "no preset is called 'huge'"),
    ("evaluate --method magic", 2, "no method is called 'magic'"),
    ("evaluate --split all", 2, "expected the split"),
    ("evaluate --kind odd", 2, "expected a kind of scene"),
    ("evaluate --dataset nowhere.json", 2, "nowhere.json"),
    ("evaluate --dataset truth.json", 2, "give the folder of the images with --images"),
    ("evaluate --output empty", 5, "a folder has this name"),
    ("evaluate --min-share 2", 2, "min_share must be from 0 to 1"),
    ("demo --device tpu9", 2, "clip2sam does not run on 'tpu9'"),
    ("demo --output file", 5, "file: can't be written (File exists)"),
    ("validate nowhere.json", 1, ""),
    ("weights path huge", 2, "no preset is called 'huge'"),
]
SLOW = ("torch", "open_clip", "segment_anything", "matplotlib", "transformers")
CALLS = """
import json, sys
from contextlib import redirect_stderr
from io import StringIO
from clip2sam.cli import app, console
for line in sys.stdin:
    errors = StringIO()
    console.err.file = errors
    sys.argv = ["clip2sam", *line.split()]
    try:
        app.main()
    except SystemExit as stop:
        code = stop.code
    slow = [name for name in {slow} if name in sys.modules]
    print(json.dumps([line.strip(), code, errors.getvalue(), slow]), file=sys.__stderr__)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each of the MISTAKES is answered with, by one process that says what it has imported."""
    folder = tmp_path_factory.mktemp("mistakes")
    PILImage.fromarray(drawn().pixels).save(folder / "street.png")
    (folder / "file").write_text("no folder")
    (folder / "empty").mkdir()
    image = {"id": 1, "file_name": "gone.png", "height": 8, "width": 8}
    truth = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "star"}]}
    (folder / "truth.json").write_text(json.dumps(truth))
    done = subprocess.run(
        [sys.executable, "-c", CALLS.format(slow=SLOW)],
        input="\n".join(line for line, *_ in MISTAKES),
        cwd=folder,
        env={**os.environ, "CLIP2SAM_WEIGHTS": str(folder / "weights")},
        capture_output=True,
        text=True,
        check=True,
    )
    left = {path.name for path in folder.iterdir()}
    assert left == {"street.png", "file", "empty", "truth.json"}
    rows = [json.loads(row) for row in done.stderr.splitlines()]
    return {line: answer for line, *answer in rows}


@pytest.mark.parametrize(("line", "code", "message"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_mistakes_are_told_before_slow_imports(answers, line, code, message):
    got, errors, slow = answers[line]
    assert (got, slow) == (code, []), errors
    assert message in errors
    assert errors.count("\n") <= 1


def test_validate_names_every_place(run, tmp_path):
    (tmp_path / "bad.json").write_text(
        '{"images": [{"id": 0}], "annotations": [], "categories": []}'
    )
    code, printed, _ = run("validate", "bad.json")
    assert code == 1
    assert "images[0]" in printed
    assert "violations" in printed


def states(printed: str) -> dict[str, str]:
    """What `weights list` or `verify` says of each file, in front of its size."""
    return dict(re.findall(r"^(\S+\.(?:pth|safetensors))  (.*?), (?:size|[\d,]+ b)", printed, re.M))


def test_weights_list_claims_nothing_that_was_not_checked(run, tmp_path):
    folder = tmp_path / "w"
    folder.mkdir()
    clip = "ViT-B-16-quickgelu-openai.safetensors"
    (folder / clip).write_bytes(b"<html>log in first")
    laion = "ViT-B-16-laion2b_s34b_b88k.safetensors"  # its size is published, its SHA-256 isn't
    count = 598516980 - 8 - 128
    header = {"a": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}
    with (folder / laion).open("wb") as file:
        file.write((128).to_bytes(8, "little") + json.dumps(header).encode().ljust(128))
        file.truncate(598516980)
    with (folder / "sam_vit_b_01ec64.pth").open("wb") as file:
        file.truncate(375042383)
    (folder / "sam_vit_h_4b8939.pth").write_bytes(b"cut")
    code, printed, errors = run("weights", "list", "--weights-dir", "w")
    assert code == 0
    here = {name: state for name, state in states(printed).items() if state != "not here"}
    assert here == {
        "tiny_clip.safetensors": "here, not verified",
        "tiny_sam.safetensors": "here, not verified",
        clip: "wrong size",
        laion: "here, not verified",
        "sam_vit_b_01ec64.pth": "here, not verified",
        "sam_vit_h_4b8939.pth": "wrong size",
    }
    assert states(printed)["sam_vit_l_0b3195.pth"] == "not here"
    assert "expected 2564550879" in errors
    code, printed, errors = run("weights", "verify", "--weights-dir", "w")
    assert code == 1
    found = states(printed)
    assert (
        found["tiny_sam.safetensors"] == f"verified, SHA-256 {EMBEDDED['tiny_sam.safetensors'][1]}"
    )
    measured = file_sha256(folder / laion)
    assert found[laion] == f"no published hash; readable, 1 tensors, SHA-256 {measured}"
    assert found["sam_vit_l_0b3195.pth"] == "not here"
    assert found["sam_vit_h_4b8939.pth"] == found[clip] == "damaged"
    assert found["sam_vit_b_01ec64.pth"].startswith("damaged, SHA-256 ")
    (folder / laion).write_bytes(b"cut")
    assert run("weights", "verify", "--weights-dir", "w")[0] == 1


def test_weights_path_says_what_is_missing_beside_the_paths(run, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "ViT-B-16-quickgelu-openai.safetensors").write_bytes(b"here")
    code, printed, errors = run("weights", "path", "vit-h", "--weights-dir", "w")
    assert code == 0
    place = Path("w") / "sam_vit_h_4b8939.pth"
    assert printed.splitlines() == [
        f"clip: {Path('w') / 'ViT-B-16-quickgelu-openai.safetensors'}",
        f"sam: {place}",
    ]
    url = "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth"
    assert errors.splitlines() == [
        f"sam_vit_h_4b8939.pth is missing: get {url} (2,564,550,879 bytes) and put it at {place}",
        "or run: clip2sam weights download vit-h --weights-dir w",
    ]
    assert run("weights", "path", "tiny") == (0, run("weights", "path", "tiny")[1], "")


def test_all_missing_weights_are_named_at_once(run, street):
    missing = ("ViT-B-16-quickgelu-openai.safetensors", "sam_vit_h_4b8939.pth")
    where = ("--offline", "--weights-dir", "w")
    for arguments in (
        ("weights", "download", "vit-h"),
        ("segment", street, "--label", "cat", "--preset", "vit-h"),
    ):
        code, _, errors = run(*arguments, *where)
        assert code == 3
        assert len(errors.splitlines()) == 1
        for file in missing:
            assert f"put it at {Path('w') / file}" in errors


@pytest.mark.usefixtures("decode_workers")
def test_label_and_export(run, street, tmp_path):
    labels = labels_of(drawn())
    (tmp_path / "images").mkdir()
    street.rename(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.jpg").write_text("not an image")
    arguments = ["label", "images", *(part for x in labels for part in ("--label", x))]
    code, printed, errors = run(*arguments)
    assert code == 1
    assert "2 listed = 1 done + 0 empty + 1 failed; 2 labelled now" in printed
    assert "masks: one for each object" in printed
    assert "failed: b.jpg" in errors
    code, printed, errors = run(*arguments, "--json")
    assert (code, json.loads(printed)["labelled_now"]) == (1, 0)
    assert run(*arguments, "--quiet") == (1, "", "")
    assert run("export", "run", "--output", "again.json")[0] == 0
    assert (tmp_path / "again.json").read_bytes() == (
        tmp_path / "run" / "annotations.json"
    ).read_bytes()
    code, printed, _ = run("export", "run", "--format", "results", "--output", "r.json")
    assert code == 0
    rows = json.loads((tmp_path / "r.json").read_text())
    assert printed == f"1 of 2 images, {len(rows)} masks, 1 failed, to r.json\n"
    assert rows
    code, printed, _ = run(*arguments, "--format", "jsonl", "--format", "parquet")
    assert (code, printed.splitlines()[-1]) == (
        1,
        "wrote run/annotations.jsonl, run/annotations.parquet",
    )
    assert run("export", "run", "--format", "parquet", "--output", "t.parquet")[0] == 0
    for name in ("", "images."):
        again, published = (tmp_path / f"{name}t.parquet", tmp_path / "run")
        assert again.read_bytes() == (published / f"{name}annotations.parquet").read_bytes()
    assert len((tmp_path / "run" / "annotations.jsonl").read_text().splitlines()) == len(rows)
    code, _, errors = run(*arguments, "--format", "yolo")
    assert code == 2
    assert "a run writes coco, parquet, jsonl, but got yolo; choose one or more of them" in errors
    fits = []
    for extra in ((), ("--tolerance", "0"), ("--tolerance", "4")):
        code, printed, _ = run("export", "run", "--polygons", *extra, "--output", "p.json")
        assert (code, len(printed.splitlines())) == (0, 2)
        fits.append(printed.splitlines()[1])
    assert fits[1] == (
        "polygons: IoU with their masks 1.000 in the median, 1.000 at worst, "
        f"0 of {len(rows)} below 0.9"
    )
    assert len(set(fits)) == 3
    wanted = ("export", "run", "--output", "none.json", "--class-threshold")
    for label in labels:
        wanted += (f"{label}=9", "--class-threshold")
    assert run(*wanted[:-1])[0] == 0
    assert json.loads((tmp_path / "none.json").read_text())["annotations"] == []
    code, _, errors = run(*wanted[:-1], "--class-threshold", "heart")
    assert code == 2
    assert "--class-threshold: expected NAME=SCORE, got 'heart'" in errors
    code, _, errors = run("export", "run", "--format", "yolo", "--polygons", "--output", "yolo")
    assert code == 2
    assert "the option polygons is for the format coco or cvat, not yolo" in errors
    yolo = ("export", "run", "--format", "yolo", "--val-share", "0")
    assert run(*yolo, "--output", "yolo")[0] == 0
    assert (tmp_path / "yolo" / "images" / "train" / "a.png").exists()
    assert len(list((tmp_path / "yolo" / "labels" / "train").iterdir())) == 1, "b.jpg has failed"
    assert run(*yolo, "--images", "none", "--output", "labels")[0] == 0
    assert not (tmp_path / "labels" / "images").exists()
    code, _, errors = run(*yolo, "--images", "move", "--output", "yolo")
    assert code == 2
    assert "images must be one of copy, link, none, but got 'move'" in errors


def test_every_setting_reaches_the_run(run, street):
    arguments = ("label", street, "--label", "heart", "--output", "run/it")
    assert run(*arguments)[0] == 0
    for option, value, place in (
        ("--method", "raw", "engine.config.method.name"),
        ("--presence-threshold", "-1", "engine.config.presence_threshold"),
        ("--point-threshold", "0.5", "engine.config.point_threshold"),
        ("--grid", "5", "engine.config.grid"),
        ("--resolution", "160", "engine.config.resolution"),
        ("--precision", "bf16", "engine.precision"),
        ("--distractor", "star", "labels.classes[1].name"),
        ("--keep-above", "0.1", "engine.keep_above"),
        ("--max-pixels", "1000000", "max_pixels"),
    ):
        code, _, errors = run(*arguments, option, value)
        assert code == 2
        assert f"this run began with other settings: {place} was " in errors, option
    code, _, errors = run(*arguments, "--published")
    assert code == 2
    assert "engine.config.resolution was None, is now 512" in errors


def test_an_image_that_changed_is_named_and_labelled_again_or_refused(run, street, tmp_path):
    arguments = ("label", street, "--label", "heart", "--output", "run/it")
    assert run(*arguments)[0] == 0
    os.utime(tmp_path / street, ns=(1, 1))
    code, _, errors = run(*arguments, "--changed", "refuse")
    assert code == 2
    assert "street.png" in errors
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, errors = run(*arguments)
    assert code == 0
    assert "warning: " in errors
    assert "street.png" in errors
    assert run(*arguments, "--changed", "never")[0] == 2


def test_a_run_whose_images_were_moved_goes_on_with_moved(run, street, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / street).rename(tmp_path / "in" / "street.png")
    arguments = ("--label", "heart", "--output", "run/it")
    assert run("label", "in", *arguments, "--hash")[0] == 0
    line = (tmp_path / "run" / "it" / "journal-0001.jsonl").read_text()
    assert len(json.loads(line)["file"][2]) == 64, "the SHA-256"
    (tmp_path / "in").rename(tmp_path / "there")
    code, _, errors = run("label", "there", *arguments)
    assert code == 2
    assert "if the same images were moved there, give --moved" in " ".join(errors.split())
    assert run("label", "there", *arguments, "--moved", "--changed", "refuse")[0] == 0
    assert run("label", "there", *arguments, "--changed", "refuse")[0] == 0


def test_progress_counts_what_the_run_keeps(run, street, monkeypatch):
    monkeypatch.setattr("clip2sam.cli.progress.SECONDS_PER_LINE", 0.0)
    there = labels_of(drawn())[0]
    arguments = ("label", street, "--label", there, "--label", "red thing")
    code, _, errors = run(*arguments, "--keep-above", "-1", "--output", "run/it")
    assert code == 0
    assert errors.startswith("1 images listed\n1 of 1 images, ")
    assert errors.endswith(f"; {there} 1\n")


def test_a_run_that_cannot_go_on_says_why(run, street, tmp_path):
    arguments = ("label", street, "--label", "heart", "--output", "run")
    assert run(*arguments)[0] == 0
    with FileLock(tmp_path / "run" / "lock"):
        code, _, errors = run(*arguments)
    assert code == 4
    assert "another process works on this run" in errors
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).write_text("not an image")
    failing = ("label", "images", "--label", "heart", "--output", "few", "--max-failures", "1")
    code, _, errors = run(*failing)
    assert code == 6
    assert "more than the 1 allowed" in errors
    for wrong, message in (
        (("label", street, "--output", "other"), "give labels by --label NAME (repeatable)"),
        (("label", "nowhere", "--label", "heart", "--output", "other"), "no such file or folder"),
        (("label", "images", "--label", "heart", "--output", "images/run"), "never written to"),
        (("export", "images", "--output", "x.json"), "expected the output folder of 'clip2sam"),
    ):
        code, _, errors = run(*wrong)
        assert code == 2
        assert message in errors
    assert not (tmp_path / "other").exists()


def test_a_run_prints_a_line_of_json_for_each_image(run, street, tmp_path):
    arguments = ("label", street, "--label", "heart", "--json", "--output", "run/of/json")
    code, printed, errors = run(*arguments)
    assert (code, errors) == (0, "")
    record, summary = map(json.loads, printed.splitlines())
    assert (record["file_name"], record["image_id"]) == ("street.png", 1)
    assert summary["listed"] == 1


def test_evaluate_takes_labels_and_writes_all_figures(run, tmp_path):
    (tmp_path / "labels.yaml").write_text("[{name: moon, prompts: [moon]}, heart]")
    arguments = ("evaluate", "--labels", "labels.yaml", "--distractor", "star", "--output", "f")
    code, printed, _ = run(*arguments, "--scenes", 3, "--method", "raw", "--method", "surgery")
    assert code == 0
    assert printed.count("COCO over masks, mean over categories: AP ") == 2
    assert printed.count("over all pairs of image and label: AP ") == 2
    figures = json.loads((tmp_path / "f").read_text())
    assert list(figures) == ["raw", "surgery"]
    assert [figures[name]["all"]["pairs"] for name in figures] == [6, 6]
    assert figures["raw"] != figures["surgery"]
    assert run(*arguments, "--scenes", 1)[0] == 0
    figures = json.loads((tmp_path / "f").read_text())["surgery"]["all"]
    assert figures["present"] == 0
    assert figures["pointing"] is None  # NaN, which JSON doesn't have
    code, _, errors = run("evaluate", "--scenes", 1, "--label", "traffic light")
    assert code == 2
    assert "got 'traffic light'" in errors


def test_evaluate_shows_what_stages_lose_and_which_settings_pay(run, tmp_path):
    labels = [part for name in ("circle", "star", "heart") for part in ("--label", name)]
    arguments = ("evaluate", "--scenes", 1, "--kind", "several", "--budget", "--sweep", *labels)
    code, printed, _ = run(*arguments, "--output", "f")
    assert code == 0
    assert "mean IoU lost: presence 0.000; points " in printed
    assert "candidate agreement" in printed
    figures = json.loads((tmp_path / "f").read_text())["surgery"]
    assert figures["budget"]["miou"]["pipeline"] == figures["all"]["miou"]
    assert figures["sweep"][0]["name"] == "base"
    assert figures["sweep"][1]["miou_gain"]["low"] <= figures["sweep"][1]["miou_gain"]["high"]
    code, _, errors = run("evaluate", "--kind", "crowds")
    assert code == 2
    assert "expected a kind of scene out of plain, crowd, several, large, got 'crowds'" in errors


def test_evaluate_shows_how_well_whole_images_are_recognised(run, tmp_path):
    arguments = ("evaluate", "--scenes", 9, "--label", "heart", "--label", "star", "--output", "f")
    code, printed, _ = run(*arguments, "--recognition")
    assert code == 0
    assert "recognition in whole images, mAP" in printed
    figures = json.loads((tmp_path / "f").read_text())["surgery"]["recognition"]
    assert set(figures["all"]) == {"labels", "raw", "softmax", "surgery"}
    assert figures["all"]["labels"] == 2
    assert figures["all"]["surgery"] > 0.5
    assert "recognition" not in run(*arguments)[1]


def test_classify_prints_and_writes_what_clip_says(run, street, tmp_path):
    labels = [*labels_of(drawn()), "green thing", "heart"]
    arguments = [part for label in labels for part in ("--label", label)]
    code, printed, _ = run("classify", street, *arguments, "--top", 2, "--output", "o/scores.json")
    assert code == 0
    lines = printed.splitlines()
    assert lines[0] == "street.png"
    assert [line.split(":")[0].strip() in labels for line in lines[1:3]] == [True, True]
    assert lines[3] == f"1 images, {len(labels)} labels, 0 failed; wrote o/scores.json"
    (image,) = json.loads((tmp_path / "o" / "scores.json").read_text())["images"]
    assert (image["file_name"], image["image_id"]) == ("street.png", 1)
    rows = image["labels"]
    assert sorted(row["label"] for row in rows) == sorted(labels)
    probabilities = [row["probability"] for row in rows]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    first = rows[0]
    assert lines[1] == (
        f"  {first['label']}: probability {first['probability']:.3f}, score {first['score']:.3f}"
    )
    by_score = sorted(rows, key=lambda row: -row["score"])
    assert {row["label"] for row in by_score[:3]} == set(labels_of(drawn()))
    code, printed, _ = run("classify", street, *arguments, "--distractor", "pink arrow thing")
    assert len(printed.splitlines()) == len(labels) + 2
    assert printed.endswith(f"1 images, {len(labels)} labels, 0 failed\n")


def test_classify_goes_on_after_a_bad_image(run, street, tmp_path, monkeypatch):
    monkeypatch.setattr("clip2sam.sam.model.PromptSAM.encode_image", None)  # SAM is not at work
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("not an image")
    street.rename(tmp_path / "images" / "b.png")
    code, printed, errors = run("classify", "images", "--label", "heart", "--output", "s.json")
    assert code == 1
    assert "  failed: a.png: expected an image" in errors
    assert "2 images, 1 labels, 1 failed; wrote s.json" in printed
    bad, good = json.loads((tmp_path / "s.json").read_text())["images"]
    assert bad["failed"].startswith("a.png: expected an image")
    assert [row["label"] for row in good["labels"]] == ["heart"]
    assert 0 < good["labels"][0]["probability"] < 1
    code, _, errors = run("classify", "images", "--label", "heart", "--output", "images/s.json")
    assert code == 2
    assert "which is never written to" in errors


def test_an_interrupted_classify_writes_what_was_done(run, street, tmp_path, monkeypatch):
    from clip2sam.labelling import each

    def load(source, name, max_pixels):
        raise KeyboardInterrupt

    monkeypatch.setattr(each, "load_named", load)
    code, _, errors = run("classify", street, "--label", "heart", "--output", "s.json")
    assert (code, errors) == (130, "interrupted; s.json has the images done so far\n")
    assert json.loads((tmp_path / "s.json").read_text()) == {"images": []}


def test_dense_writes_label_maps_and_their_classes(run, street, tmp_path):
    labels = labels_of(drawn())
    arguments = [part for label in [*labels, "traffic light"] for part in ("--label", label)]
    arguments.append("--allow-unknown")
    code, printed, _ = run("dense", street, *arguments, "--output", "maps")
    assert code == 0
    found = np.array(PILImage.open(tmp_path / "maps" / "street.png"))
    assert found.shape == (224, 224)
    assert set(np.unique(found)) == {0, 1, 2, 3}
    shares = [f"{label}: {(found == i).mean():.1%}" for i, label in enumerate(labels, 1)]
    assert all(f"  {share} of the pixels" in printed for share in shares)
    assert printed.splitlines()[1].startswith("  background: ")
    assert "traffic light" not in printed
    assert printed.endswith("1 images, 4 labels, 0 failed; wrote 1 label maps into maps\n")
    classes = json.loads((tmp_path / "maps" / "classes.json").read_text())
    assert [(row["id"], row["name"]) for row in classes] == [
        *enumerate(["background", *labels, "traffic light"])
    ]
    assert classes[0]["color"] == [0, 0, 0]
    colours = np.array(PILImage.open(tmp_path / "maps" / "street.png").convert("RGB"))
    for i, label in enumerate(labels, 1):
        assert classes[i]["color"] == colours[found == i][0].tolist()
        true = np.any(instance_masks(drawn(), label), axis=0)
        assert (found[true] == i).mean() > 0.5


def test_the_settings_of_dense_reach_the_map(run, street, tmp_path):
    arguments = [part for label in labels_of(drawn()) for part in ("--label", label)]

    def pixels(*more):
        assert run("dense", street, *arguments, *more)[0] == 0
        return np.array(PILImage.open(tmp_path / "out" / "street.png"))

    plain = pixels("--no-refine")
    assert (pixels() != plain).any()
    fewer, more = (pixels("--no-refine", "--threshold", t) > 0 for t in (0.5, 0.1))
    assert fewer.sum() < (plain > 0).sum() < more.sum()
    assert (pixels("--no-refine", "--presence-threshold", 0.1) > 0).sum() > (plain > 0).sum()
    assert (pixels("--no-refine", "--tile", 128) != plain).any()
    assert (pixels("--no-refine", "--no-feature-surgery") != plain).any()
    assert (pixels("--no-refine", "--method", "raw") != plain).any()


def test_dense_goes_on_after_a_bad_image(run, street, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("not an image")
    street.rename(tmp_path / "images" / "b.png")
    code, printed, errors = run("dense", "images", "--label", "heart")
    assert code == 1
    assert "  failed: a.png: expected an image" in errors
    assert "2 images, 1 labels, 1 failed; wrote 1 label maps into out" in printed
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["b.png", "classes.json"]
    code, _, errors = run("dense", "images", "--label", "heart", "--output", "images/maps")
    assert code == 2
    assert "which is never written to" in errors


def test_an_interrupted_dense_says_where_the_maps_are(run, street, tmp_path, monkeypatch):
    from clip2sam.labelling import each

    def load(source, name, max_pixels):
        raise KeyboardInterrupt

    monkeypatch.setattr(each, "load_named", load)
    code, _, errors = run("dense", street, "--label", "heart")
    assert (code, errors) == (130, "interrupted; out has the images done so far\n")


def test_evaluate_shows_how_well_pixels_are_labelled(run, tmp_path):
    arguments = ("evaluate", "--scenes", 2, "--kind", "large", "--dense", "--output", "f")
    labels = [part for name in ("circle", "star", "ring", "moon") for part in ("--label", name)]
    figures = []
    for tile in ("off", "auto"):
        code, printed, _ = run(*arguments, *labels, "--tile", tile)
        assert code == 0
        assert "every pixel" in printed
        figures.append(json.loads((tmp_path / "f").read_text())["surgery"]["dense"])
        assert figures[-1]["with SAM's masks"]["mIoU"] > figures[-1]["maps alone"]["mIoU"]
    assert list(figures[0]) == ["maps alone", "with SAM's masks"]
    assert set(figures[0]["maps alone"]["classes"]) <= {"circle", "star", "ring", "moon"}
    for way in figures[0]:
        assert figures[0][way]["mIoU"] != figures[1][way]["mIoU"]


def test_an_interrupted_run_says_how_to_continue(run, street, monkeypatch):
    from clip2sam.cli.progress import Display

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Display, "image", interrupt)
    code, _, errors = run("label", street, "--label", "heart", "--output", "run/it")
    assert code == 130
    assert "interrupted; run/it has what was done: the same command continues" in errors


def test_demo_compares_with_the_drawn_truth(run, tmp_path):
    code, printed, _ = run("demo", "--output", "demo")
    assert code == 0
    assert re.search(
        r"\d+ of \d+ drawn objects found, mean IoU 0\.\d+; \d+ of \d+ masks are false; "
        r"\d+ of \d+ absent labels got a mask",
        printed,
    )
    named = [
        line.removeprefix("wrote ") for line in printed.splitlines() if line.startswith("wrote ")
    ]
    assert named
    assert all((tmp_path / name).is_file() for name in named)


def test_names_are_relative_to_the_folder_that_holds_all(run, street, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(street.read_bytes())
    code, _, _ = run("segment", "a/x.png", "b", "--label", "heart", "--overlays", "none")
    assert code == 0
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [i["file_name"] for i in document["images"]] == ["a/x.png", "b/x.png"]


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


def test_regions_as_a_method_of_all_commands(run, street, tmp_path):
    labels = [part for label in labels_of(drawn()) for part in ("--label", label)]
    method = ("--method", "regions", *labels)
    drawn_not = ("--overlays", "none")
    code, printed, errors = run("segment", street, *method, *drawn_not, "--output", "out")
    assert (code, errors) == (0, ""), printed
    document = json.loads(Path("out/annotations.json").read_text())
    assert set(document["info"]["presence_thresholds"].values()) == {0.057}
    assert (document["info"]["method"], document["info"]["preset"]) == ("regions", "tiny")
    masks = len(document["annotations"])
    assert masks
    assert run("label", street, *method, "--output", "run")[0] == 0
    assert len(json.loads(Path("run/annotations.json").read_text())["annotations"]) == masks
    dataset = ("--dataset", "out/annotations.json", "--images", str(tmp_path))
    code, printed, errors = run("evaluate", *dataset, *method, "--output", "figures.json")
    assert code == 0, errors
    figures = json.loads(Path("figures.json").read_text())["regions"]
    assert figures["objects"]["AP"] > 0.9, "against its own masks"
    tuned = run("tune", "out/annotations.json", "--root", str(tmp_path), *method)
    assert tuned[0] == 0, tuned
