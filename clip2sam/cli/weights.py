"""The commands `weights list`, `download`, `verify` and `path`."""

from collections.abc import Callable, Sequence
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from clip2sam.cli import completion
from clip2sam.cli.console import err, out, print_error
from clip2sam.cli.options import Offline, PresetName, WeightsDir

if TYPE_CHECKING:
    from clip2sam.models.files import FileStatus

app = typer.Typer(help="List, download, verify and find the models' weights.", no_args_is_help=True)


@app.command("list")
def list_files(weights_dir: WeightsDir = None) -> None:
    """List the files of every preset: whether and where they are, and where they come from.

    No file is read: verify does that.
    """
    from clip2sam.models import files
    from clip2sam.models.presets import PRESETS

    found = files.status(weights_dir)
    table = Table("preset", "size", "here", "licences", "for", box=None, padding=(0, 2, 0, 0))
    for preset in PRESETS.values():
        own = [file for file in found if preset.name in file.presets]
        there = sum(file.path.exists() for file in own)
        table.add_row(
            preset.name,
            _total(own),
            {0: "no", len(own): "yes"}.get(there, "in part"),
            ", ".join(dict.fromkeys(file.licence for file in own)),
            preset.description,
        )
    out.print(table)
    out.print(Text(f"\nweights folder: {files.weights_dir(weights_dir)}"))
    _print_files(found, _seen)
    out.print(Text("beside presets, in any command: --clip MODEL:WEIGHTS, a CLIP of open_clip's"))
    for path in files.others(weights_dir):
        out.print(Text(path.name, style="bold") + Text("  here, for --clip"))


@app.command()
def download(
    presets: Annotated[
        list[str],
        typer.Argument(
            metavar="PRESET...",
            help="Presets, see clip2sam weights list.",
            show_default=False,
            autocompletion=completion.presets,
        ),
    ],
    weights_dir: WeightsDir = None,
    offline: Offline = False,
) -> None:
    """Download and verify the files of presets. Files that are there and right are left alone.

    Example: clip2sam weights download vit-b vit-h
    """
    from clip2sam.models.download import fetch
    from clip2sam.models.files import local_file
    from clip2sam.models.presets import get_preset

    for preset in [get_preset(name) for name in presets]:
        fetch(preset, weights_dir=weights_dir, offline=offline)
        for weights in (preset.clip, preset.sam):
            local = local_file(weights, weights_dir)
            expected = local.expected_sha256
            known = f"SHA-256 {expected}" if expected else "no published SHA-256"
            out.print(Text(f"{local.path}\n  {known}"))
    chosen = "" if weights_dir is None else f" --weights-dir {quote(str(weights_dir))}"
    out.print(Text(f"next: clip2sam segment IMAGE --label person --preset {presets[0]}{chosen}"))


@app.command()
def verify(weights_dir: WeightsDir = None) -> None:
    """Read every file that is there and compare its SHA-256 with the published one.

    Exit code 1 if one is damaged.
    """
    from clip2sam.models import files

    found = files.verify(weights_dir)
    _print_files(found, _read)
    raise typer.Exit(1 if any(file.state == "damaged" for file in found) else 0)


@app.command()
def path(preset: PresetName, weights_dir: WeightsDir = None) -> None:
    """Print where a preset's files are or, if they are missing, where to put them by hand.

    Which are missing, and where they come from, goes to standard error.
    """
    from clip2sam.models import files

    found = files.status(weights_dir, [preset])
    for file in found:
        out.print(Text(f"{file.kind}: {file.path}"))
    missing = [file for file in found if file.state == "missing"]
    for file in missing:
        advice = files.by_hand(file.url, file.size, file.path)
        err.print(Text(f"{file.file} is missing: {advice}", style="yellow"))
    if missing:
        chosen = "" if weights_dir is None else f" --weights-dir {quote(str(weights_dir))}"
        err.print(Text(f"or run: clip2sam weights download {preset}{chosen}", style="yellow"))


def _total(files: "Sequence[FileStatus]") -> str:
    """What a preset takes on the disk."""
    sizes = [file.size for file in files]
    known = sum(size for size in sizes if size is not None) / 1e6
    return f"{'over ' if None in sizes else ''}{known:,.0f} MB"


def _print_files(files: "Sequence[FileStatus]", state: "Callable[[FileStatus], str]") -> None:
    from clip2sam.models.files import size_text

    for file in files:
        facts = f"  {state(file)}, {size_text(file.size)}, {file.licence}"
        place = f"    at {file.path}" + (f"\n    from {file.url}" if file.url else "")
        out.print(Text(file.file, style="bold") + Text(f"{facts}, for {', '.join(file.presets)}"))
        out.print(Text(place, style="dim"))
    for file in files:
        if file.problem:
            print_error(file.problem)


def _seen(file: "FileStatus") -> str:
    """What is known of a file that isn't read."""
    if file.state == "damaged":
        return "wrong size" if file.sha256 is None and file.path.is_file() else "damaged"
    states = {"missing": "not here", "present": "here, not verified", "verified": "here"}
    return states[file.state]


def _read(file: "FileStatus") -> str:
    """What reading a file has shown."""
    if file.state == "missing":
        return "not here"
    if file.state == "present":
        tensors = "" if file.tensors is None else f"readable, {file.tensors} tensors, "
        return f"no published hash; {tensors}SHA-256 {file.sha256}"
    return f"{file.state}, SHA-256 {file.sha256}" if file.sha256 else file.state
