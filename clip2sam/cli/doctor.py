"""The command `doctor`: what there is to know about an installation, to paste into a bug report."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer
from rich.text import Text

from clip2sam.cli.console import err, out
from clip2sam.cli.options import WeightsDir
from clip2sam.errors import Clip2SamError, one_line

PACKAGES = (
    "clip2sam",
    "torch",
    "torchvision",
    "open_clip_torch",
    "segment-anything",
    "timm",
    "transformers",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "pillow",
    "pycocotools",
    "matplotlib",
    "huggingface_hub",
    "requests",
    "ipywidgets",
)
"""Whose versions matter."""

ENVIRONMENT = (
    "CLIP2SAM_WEIGHTS",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)
"""Variables that change what clip2sam does."""


def doctor(weights_dir: WeightsDir = None) -> None:
    """Print versions, devices, weights and what is writable, and try the preset tiny on a scene.

    Made to be pasted into a bug report: the home folder is printed as ~, a proxy's password is not
    printed. Nothing is downloaded. Exit code 1 if something is wrong.

    Example: clip2sam doctor
    """
    wrong: list[str] = []
    for section in (_versions(), _devices(), _weights(weights_dir, wrong), _writable(weights_dir)):
        for line in section:
            out.print(Text(_without_home(line)))
    out.print(Text(_tried(wrong)))
    for problem in wrong:
        err.print(Text(f"wrong: {_without_home(problem)}", style="red"))
    raise typer.Exit(1 if wrong else 0)


def _versions() -> Iterator[str]:
    from clip2sam.data.network import without_password

    yield f"Python {platform.python_version()}, {platform.platform()}"
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue  # an optional one, or the other build of OpenCV
    yield f"packages: {', '.join(found)}"
    set_here = {name: os.environ[name] for name in ENVIRONMENT if os.environ.get(name)}
    named = [f"{name}={without_password(value)}" for name, value in set_here.items()]
    yield f"environment: {', '.join(named) or 'nothing that matters is set'}"


def _devices() -> Iterator[str]:
    import torch

    from clip2sam.kernels.linear import packing_is_supported
    from clip2sam.models.loading import as_device

    bf16 = "bf16 in hardware" if packing_is_supported() else "no bf16 in hardware: use fp32"
    kind = torch.backends.cpu.get_cpu_capability()
    yield f"PyTorch {torch.__version__}"
    yield f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads, {kind}, {bf16}"
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        yield f"cuda:{i}: {card.name}, {card.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        yield "mps: there"
    yield f"device auto is {as_device('auto')}"


def _weights(weights_dir: Path | None, wrong: list[str]) -> Iterator[str]:
    from clip2sam.models import files

    yield f"weights folder: {files.weights_dir(weights_dir)}"
    for file in files.status(weights_dir):
        yield f"  {file.file}: {file.state}, for {', '.join(file.presets)}"
        if file.problem:
            wrong.append(file.problem)
    for path in files.others(weights_dir):
        yield f"  {path.name}: there, for --clip"


def _writable(weights_dir: Path | None) -> Iterator[str]:
    from clip2sam.models import files

    places = {
        "weights folder": files.weights_dir(weights_dir),
        "current folder": Path.cwd(),
        "folder for temporary files": Path(tempfile.gettempdir()),
    }
    for name, place in places.items():
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(there).free / 2**30
        able = "writable" if os.access(there, os.W_OK | os.X_OK) else "NOT writable"
        yield f"{name}: {able}, {free:.1f} GiB free"


def _tried(wrong: list[str]) -> str:
    """The preset tiny on one drawn scene, which needs no download."""
    from clip2sam.models.loading import load
    from clip2sam.tiny.demo import compare, demo_labels, demo_scenes

    scene = demo_scenes()[0]
    try:
        segmenter = load("tiny")
        segmenter(scene.pixels, demo_labels(scene))  # the first call prepares more than the next
        began = time.perf_counter()
        result = segmenter(scene.pixels, demo_labels(scene))
        seconds = time.perf_counter() - began
    except Clip2SamError as error:
        wrong.append(f"the preset tiny fails: {one_line(error)}")
        return "tiny on one scene: failed"
    rows = [compare("", scene, result, label) for label in result.class_names]
    found, drawn = sum(len(row.ious) for row in rows), sum(row.drawn for row in rows)
    if 2 * found < drawn:
        wrong.append(f"the preset tiny found {found} of {drawn} drawn objects")
    return f"tiny on one scene: {found} of {drawn} drawn objects found in {seconds:.2f} s"


def _without_home(line: str) -> str:
    home = os.path.expanduser("~")
    return line if home in ("/", "") else line.replace(home, "~")
