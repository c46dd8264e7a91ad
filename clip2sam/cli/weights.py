"""The commands `weights list`, `download`, `verify` and `path`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from clip2sam.cli.console import out, print_error
from clip2sam.cli.options import Offline, PresetName, WeightsDir

if TYPE_CHECKING:
    from clip2sam.models.files import FileStatus

app = typer.Typer(help="List, download, verify and find the models' weights.", no_args_is_help=True)


@app.command("list")
def list_files(weights_dir: WeightsDir = None) -> None:
    """List the files of every preset: where they are, and where they come from."""
    from clip2sam.models import files
    from clip2sam.models.presets import PRESETS

    out.print(Text(f"weights folder: {files.weights_dir(weights_dir)}"))
    for preset in PRESETS.values():
        out.print(Text(f"  {preset.name}: {preset.description}"))
    _print_files(files.status(weights_dir))


@app.command()
def download(preset: PresetName, weights_dir: WeightsDir = None, offline: Offline = False) -> None:
    """Download and verify a preset's files. Files that are there and right are left alone."""
    from clip2sam.models.download import fetch

    for kind, path in fetch(preset, weights_dir=weights_dir, offline=offline).items():
        out.print(Text(f"{kind}: {path}"))


@app.command()
def verify(weights_dir: WeightsDir = None) -> None:
    """Read every file that is there and compare its SHA-256 with the published one.

    Exit code 1 if one is damaged.
    """
    from clip2sam.models import files

    found = files.verify(weights_dir)
    _print_files(found)
    raise typer.Exit(1 if any(file.state == "damaged" for file in found) else 0)


@app.command()
def path(preset: PresetName, weights_dir: WeightsDir = None) -> None:
    """Print where a preset's files are or, if they are missing, where to put them by hand."""
    from clip2sam.models import files

    for kind, place in files.paths(preset, weights_dir=weights_dir).items():
        out.print(Text(f"{kind}: {place}"))


def _print_files(files: "Sequence[FileStatus]") -> None:
    for file in files:
        size = "size unknown" if file.size is None else f"{file.size:,} bytes"
        facts = f"  {file.state}, {size}, {file.licence}, for {', '.join(file.presets)}"
        place = f"    at {file.path}" + (f"\n    from {file.url}" if file.url else "")
        out.print(Text(file.file, style="bold") + Text(facts))
        out.print(Text(place, style="dim"))
    for file in files:
        if file.problem:
            print_error(file.problem)
