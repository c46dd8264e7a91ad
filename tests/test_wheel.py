"""What a wheel holds: all that works in a checkout works where it is installed."""

import subprocess
import sys
from zipfile import ZipFile

import pytest

from tests.documents import ROOT

SUFFIXES = (".py", ".html", ".css", ".js")

pytest.importorskip("hatchling", reason="builds a wheel offline: pip install hatchling")


def test_a_wheel_is_typed_and_has_the_embedded_models(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*command, "--directory", tmp_path], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = (p for p in (ROOT / "clip2sam").rglob("*") if p.suffix in SUFFIXES)
    sources = {p.relative_to(ROOT).as_posix() for p in files}
    embedded = {f"clip2sam/embedded/tiny_{kind}.safetensors" for kind in ("clip", "sam")}
    wanted = sources | embedded | {"clip2sam/py.typed"}
    assert wanted <= names, wanted - names
    assert not any(name.startswith(("tests/", "scripts/")) for name in names)
