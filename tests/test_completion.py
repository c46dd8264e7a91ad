"""Pressing Tab: what the command line answers to the shells, by the protocol of their scripts."""

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
import atexit, sys
from clip2sam.cli import app
heavy = ("torch", "matplotlib", "cv2", "huggingface_hub", "open_clip")
atexit.register(lambda: print([name for name in heavy if name in sys.modules], file=sys.stderr))
app.main()
"""


def complete(*words: str) -> list[str]:
    """What bash offers for the last word, which may be begun or empty."""
    asked = {
        "_CLIP2SAM_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(["clip2sam", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "[]\n", "quick: nothing slow was imported, and no message is in the way"
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["se"], ["segment"]),
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
    ],
)
def test_tab_offers(words, offered):
    assert complete(*words) == offered


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
