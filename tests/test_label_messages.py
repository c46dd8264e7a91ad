"""What `clip2sam label` says to a person: at its start, at its end, and when it is refused."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image as PILImage

from clip2sam.cli import app as cli
from clip2sam.tiny.scenes import scene


@pytest.fixture
def label(monkeypatch, capsys, tmp_path):
    """`clip2sam label` beside a folder in/ of three scenes: (code, printed, errors)."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for seed in range(3):
        PILImage.fromarray(scene(seed, 96).pixels).save(f"in/{seed}.png")

    def call(*arguments: object) -> tuple[int, str, str]:
        given = ("in", "--label", "star", "--label", "circle", *arguments)
        monkeypatch.setattr(sys, "argv", ["clip2sam", "label", *map(str, given)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


@pytest.mark.filterwarnings("default")
def test_the_first_line_says_what_was_listed_and_the_last_what_was_done(label):
    _, printed, errors = label()
    assert errors.splitlines()[0] == "3 images listed"
    assert "; 3 labelled now, in " in printed.splitlines()[-2]
    assert "by all starts" not in printed
    _, printed, errors = label()
    assert errors == "3 images listed; 3 of them in the journal already, 0 to do\n"
    assert "; 0 labelled now, in 0.0 s; 3 by all starts, in " in printed.splitlines()[-2]
    for seed in (7, 8):
        PILImage.fromarray(scene(seed, 96).pixels).save(f"in/{seed}.png")
    PILImage.fromarray(scene(9, 80).pixels).save("in/0.png")
    Path("in/1.png").unlink()
    _, printed, errors = label()
    assert errors.splitlines()[-1] == (
        "5 images listed, 2 new, 1 changed, 1 no longer there; 2 of them in the journal already, "
        "3 to do"
    )
    assert "; 3 labelled now, in " in printed.splitlines()[-2]
    assert "; 6 by all starts, in " in printed.splitlines()[-2]
    assert not Path("run/lock").exists()
    for quiet in ("--quiet", "--json"):
        assert "listed" not in label(quiet)[2]


def test_a_higher_threshold_is_answered_with_a_command_that_works(label, monkeypatch, capsys):
    assert label("--output", "my run")[0] == 0
    code, _, errors = label("--output", "my run", "--presence-threshold", "0.8")
    assert code == 2
    assert errors.startswith(
        "error: this run began with other thresholds: engine.config.presence_threshold was "
    )
    command = errors.partition("To decide by them: ")[2].partition(" -- to label")[0]
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code, capsys.readouterr().err
    assert label("--output", "anew", "--presence-threshold", "0.8")[0] == 0
    decided, anew, first = (
        json.loads(Path(path).read_text())["annotations"]
        for path in ("my run/decided.json", "anew/annotations.json", "my run/annotations.json")
    )
    assert decided == anew
    assert 0 < len(decided) < len(first)


def test_masks_below_the_threshold_are_kept_unless_switched_off(label):
    for given, name in ((("--keep-above", "off"), "off"), ((), "auto")):
        assert label("--output", name, *given)[0] == 0
    off, auto = (Path(name, "annotations.json").read_bytes() for name in ("off", "auto"))
    assert off == auto
    floors = [
        json.loads(Path(n, "manifest.json").read_text())["floors"][0] for n in ("off", "auto")
    ]
    assert floors[1] == pytest.approx(0.9 * floors[0])
    code, _, errors = label("--keep-above", "nan")
    assert code == 2
    assert "expected a finite number, auto or off, got 'nan'" in errors
