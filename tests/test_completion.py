"""Pressing Tab: what the command line answers to the shells, by the protocol of their scripts."""

import json
import os
import subprocess
import sys

import pytest

from clip2sam.cli import completion
from clip2sam.clip.methods import METHODS
from clip2sam.export import EXPORTERS
from clip2sam.labelling.outputs import FILES
from clip2sam.models.loading import DTYPES
from clip2sam.models.locators import LOCATORS
from clip2sam.models.presets import PRESETS

CODE = """
import json, os, sys
from contextlib import redirect_stdout
from io import StringIO
from clip2sam.cli import app
heavy = ("torch", "matplotlib", "cv2", "huggingface_hub", "open_clip")
for line in sys.stdin:
    words = ["clip2sam", *json.loads(line)]
    os.environ |= {"COMP_WORDS": "\\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    with redirect_stdout(StringIO()) as offered:
        try:
            app.main()
        except SystemExit:
            pass
    loaded = [name for name in heavy if name in sys.modules]
    print(json.dumps([offered.getvalue().split(), loaded]))
"""
CASES = [
    (["se"], ["segment", "serve"]),
    (["weights", "ver"], ["verify"]),
    (["label", "images/", "--allow"], ["--allow-unknown"]),
    (["segment", "a.jpg", "--preset", ""], list(PRESETS)),
    (["segment", "a.jpg", "--grid", "no", "--preset", "vit-h"], ["vit-h", "vit-h-laion"]),
    (["label", "images/", "--method", "cl"], ["clearclip", "clipseg"]),
    (["evaluate", "--method", "regions", "--method", "sam"], ["sam3"]),
    (["export", "run", "--format", ""], list(EXPORTERS)),
    (["segment", "a.jpg", "--precision", "f"], ["fp32", "fp16"]),
    (["segment", "a.jpg", "--device", "c"], ["cpu", "cuda"]),
    (["weights", "path", "vit-l"], ["vit-l"]),
    (["label", ""], []),  # nothing: then the shell offers files
]


@pytest.fixture(scope="module")
def offers() -> list[tuple[list[str], list[str]]]:
    """What bash offers for the last word of each case, which may be begun or empty, and what slow
    packages were imported until then: by one process, which says nothing on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | {"_CLIP2SAM_COMPLETE": "complete_bash"},
        input="\n".join(json.dumps(words) for words, _ in CASES),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "", "no message is in the way"
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[" ".join(words) for words, _ in CASES])
def test_tab_offers(offers, case):
    assert offers[case] == [CASES[case][1], []], "quick: nothing slow was imported"


def test_the_names_that_are_offered_are_those_that_are_taken():
    assert list(completion.presets()) == list(PRESETS)
    assert list(completion.precisions()) == list(DTYPES)
    assert list(completion.formats()) == list(EXPORTERS)
    assert list(completion.run_formats()) == list(FILES)
    assert list(completion.methods()) == [*METHODS, *LOCATORS]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_a_shells_script_is_shown(shell):
    command = [sys.executable, "-m", "clip2sam.cli", "--show-completion", shell]
    own = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # so that a shell can be named
    done = subprocess.run(
        command, env=os.environ | own, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "_CLIP2SAM_COMPLETE" in done.stdout or "_CLIP2SAM_COMPLETE".lower() in done.stdout
