"""The command line: arguments in, the rooms' functions called, what they say printed. Nothing inside imports it."""

import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from clip2sam import __version__
from clip2sam.cli import analysis as commands
from clip2sam.cli import label as labelling
from clip2sam.errors import Clip2SamError, LabelError, WeightsError

if TYPE_CHECKING:  # models and tables are slow to import: each command imports what it needs
    from clip2sam.data.labels import LabelSet
    from clip2sam.labelling.segment import Segmented
    from clip2sam.pipeline import Segmenter

EXIT_CODES = """\
Exit codes: 0 all well; 1 some pictures failed, or a file is not valid; 2 wrong usage, labels or options;
3 weights are missing, damaged or out of reach; 130 interrupted (what was done is written)."""

app = typer.Typer(
    help="clip2sam: typed labels in, masks out, with no training.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
weights_app = typer.Typer(
    help="List, download, verify and find the models' weights.", no_args_is_help=True
)
app.add_typer(weights_app, name="weights")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Preset = Annotated[str, typer.Option(help="Which models: tiny, vit-b, vit-l, vit-h, vit-h-laion.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help="exact (float32), bf16 or fp16.")]
WeightsDir = Annotated[
    Path | None,
    typer.Option(help="Folder for weights; else CLIP2SAM_WEIGHTS, else the user's cache folder."),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]


@app.command(epilog=EXIT_CODES)
def segment(
    pictures: Annotated[
        list[Path], typer.Argument(help="Pictures, or folders of pictures.", show_default=False)
    ],
    label: Annotated[
        list[str], typer.Option(help="A label to cut out; repeat it for more.", show_default=False)
    ] = [],  # noqa: B006
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A YAML or JSON file of labels, with synonyms and thresholds if you like."
        ),
    ] = None,
    distractor: Annotated[
        list[str],
        typer.Option(
            help="A label that competes and is never exported; repeatable.", show_default=False
        ),
    ] = [],  # noqa: B006
    output: Annotated[Path, typer.Option(help="Folder for annotations.json and overlays/.")] = Path(
        "out"
    ),
    preset: Preset = "tiny",
    method: Annotated[str | None, typer.Option(help="raw, maskclip, surgery or clearclip.")] = None,
    presence: Annotated[
        float | None,
        typer.Option(help="Raw score that a label must reach; the preset's own by default."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Grid cells at or above it (0 to 1) become positive points."),
    ] = None,
    grid: Annotated[int | None, typer.Option(help="Cells a side of the grid of points.")] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="The published recipe: no presence decision, SAM's favourite mask."
        ),
    ] = False,
    resolution: Annotated[
        int | None, typer.Option(help="Side of CLIP's square input in pixels.")
    ] = None,
    overlays: Annotated[str, typer.Option(help="Labels to draw: found, all or none.")] = "found",
    polygons: Annotated[
        bool, typer.Option("--polygons", help="Write polygons instead of RLE.")
    ] = False,
    device: Device = "auto",
    precision: Precision = "exact",
    clip_checkpoint: Annotated[
        Path | None, typer.Option(help="Your own file for the preset's CLIP.")
    ] = None,
    sam_checkpoint: Annotated[
        Path | None, typer.Option(help="Your own file for the preset's SAM.")
    ] = None,
    weights_dir: WeightsDir = None,
    offline: Offline = False,
) -> None:
    """Cut labels out of pictures: annotations.json (COCO, with scores) and a drawing of each label found.

    Example: clip2sam segment street.jpg --label person --label "traffic light" --output out/
    """
    if overlays not in ("found", "all", "none"):
        _fail(f"--overlays must be found, all or none, but got {overlays!r}")
    asked = _labels(label, labels, distractor)
    from clip2sam.data.images import find_images
    from clip2sam.models.loading import load

    files = find_images(pictures)
    segmenter = load(
        preset,
        device=device,
        precision=precision,
        resolution=resolution,
        clip_checkpoint=clip_checkpoint,
        sam_checkpoint=sam_checkpoint,
        weights_dir=weights_dir,
        offline=offline,
    )
    _configure(
        segmenter, published, method=method, presence=presence, threshold=threshold, grid=grid
    )
    done = _segment_with_progress(segmenter, files, asked, output, overlays, polygons)
    _print_summary(done, asked, output)
    raise typer.Exit(1 if any(s.failure for s in done) else 0)


def _labels(label: list[str], file: Path | None, distractors: list[str]) -> "LabelSet":
    if bool(label) == (file is not None):
        raise LabelError(
            "say what to cut out: --label NAME (repeatable) or --labels FILE, one of the two"
        )
    from clip2sam.data.labels import as_label_set

    return as_label_set(label if file is None else file, distractors=distractors)


def _configure(
    segmenter: "Segmenter", published: bool, *, method: str | None, **changes: Any
) -> None:
    """Lay the options that were given over the preset's settings."""
    from clip2sam.clip import as_method
    from clip2sam.config import published as published_config

    given = {name: value for name, value in changes.items() if value is not None}
    if method is not None:
        given["method"] = as_method(method)
    segmenter.config = replace(published_config() if published else segmenter.config, **given)


def _segment_with_progress(
    segmenter: "Segmenter",
    files: list[Path],
    labels: "LabelSet",
    output: Path,
    overlays: Any,
    polygons: bool,
) -> "list[Segmented]":
    from clip2sam.labelling.segment import segment_files

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as progress:
        task = progress.add_task("segmenting", total=len(files))

        def on_picture(picture: "Segmented") -> None:
            _print_picture(picture)
            progress.advance(task)

        try:
            return segment_files(
                segmenter,
                files,
                labels,
                output,
                overlays=overlays,
                polygons=polygons,
                on_picture=on_picture,
            )
        except KeyboardInterrupt:
            _fail(
                f"interrupted; {output / 'annotations.json'} holds the pictures done until then",
                130,
            )


def _print_picture(picture: "Segmented") -> None:
    """One block a picture: what was found, then what was not and why."""
    from clip2sam.data.images import printable

    out.print(Text(printable(picture.file_name), style="bold"))
    if picture.failure:
        err.print(Text(f"  failed: {picture.failure}", style="red"))
    for annotation in picture.annotations:
        out.print(Text(f"  {annotation.label}: mask, score {annotation.score:.3f}"))
    for absent in picture.absent:
        out.print(Text(f"  {absent.label}: absent, {absent.reason}", style="dim"))


def _print_summary(done: "list[Segmented]", labels: "LabelSet", output: Path) -> None:
    masks, failed = sum(len(s.annotations) for s in done), sum(bool(s.failure) for s in done)
    drawings = sum(len(s.overlays) for s in done)
    out.print(
        Text(
            f"{len(done)} pictures, {len(labels.wanted)} labels, {masks} masks, {failed} failed; wrote "
        )
        + Text(str(output / "annotations.json"), style="bold")
        + Text(f" and {drawings} drawings in {output / 'overlays'}" if drawings else "")
    )


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A COCO data set or results file.")],
    dataset: Annotated[
        Path | None,
        typer.Option(help="The data set that a results file belongs to, to check its ids against."),
    ] = None,
) -> None:
    """Report every violation of the COCO format in a file, with its place. Exit code 1 if there is any."""
    from clip2sam.coco.validate import validate as find_violations

    violations = find_violations(file, dataset)
    for violation in violations:
        out.print(Text(f"{violation.place}: {violation.message}"))
    out.print(Text(f"{file}: {len(violations)} violations" if violations else f"{file}: valid"))
    raise typer.Exit(1 if violations else 0)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for the pictures, drawings and annotations.")
    ] = Path("demo-out"),
    device: Device = "auto",
) -> None:
    """Draw pictures of shapes, cut them out with the tiny preset, and compare with the drawn truth."""
    from clip2sam.models.loading import load
    from clip2sam.tiny.demo import run_demo

    report = run_demo(load("tiny", device=device), output)
    table = Table(
        "picture", "label", "drawn", "found", "presence", "IoU", title="clip2sam demo: preset tiny"
    )
    for row in report.rows:
        right = row.drawn == row.found
        table.add_row(
            row.image,
            Text(row.label),
            "yes" if row.drawn else "no",
            Text("yes" if row.found else "no", style="" if right else "red"),
            f"{row.presence:.3f}",
            "" if row.iou is None else f"{row.iou:.3f}",
        )
    out.print(table)
    out.print(report.summary())
    for path in report.written:
        out.print(Text(f"wrote {path}"))


@app.command()
def evaluate(
    dataset: Annotated[
        Path | None,
        typer.Option(help="A COCO data set with masks; by default the drawn scenes are used."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of its pictures; by default the data set's own.")
    ] = None,
    scenes: Annotated[int, typer.Option(help="How many drawn scenes.")] = 100,
    split: Annotated[
        str, typer.Option(help="Which scenes: train, validation or test.")
    ] = "validation",
    method: Annotated[
        list[str],
        typer.Option(help="raw, maskclip, surgery or clearclip; repeatable, side by side."),
    ] = ["surgery"],  # noqa: B006
    published: Annotated[
        bool, typer.Option("--published", help="Judge the published recipe.")
    ] = False,
    presence: Annotated[float | None, typer.Option(help="Another presence threshold.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write all figures into this JSON file.")
    ] = None,
    preset: Preset = "tiny",
    device: Device = "auto",
    precision: Precision = "exact",
    weights_dir: WeightsDir = None,
    offline: Offline = False,
) -> None:
    """Judge every stage against pictures whose truth is known: pointing, presence, masks, COCO AP."""
    from clip2sam.analysis.evaluate import coco_examples, scene_examples
    from clip2sam.analysis.evaluate import evaluate as judge
    from clip2sam.models.loading import load

    segmenter = load(
        preset, device=device, precision=precision, weights_dir=weights_dir, offline=offline
    )
    found = {}
    for name in method:
        _configure(segmenter, published, method=name, presence=presence)
        if dataset is None:
            examples = scene_examples(split, scenes)
        else:
            examples = coco_examples(dataset, images or dataset.parent)
        with Progress(
            TextColumn(name), TextColumn("{task.completed} pictures"), console=err, transient=True
        ) as bar:
            task = bar.add_task(name, total=None)
            found[name] = judge(segmenter, examples, lambda: bar.advance(task))  # noqa: B023
        _print_figures(name, found[name])
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=1))


def _print_figures(method: str, figures: dict[str, Any]) -> None:
    """A table a method: a column for each kind of label, a row for each figure."""
    columns = (
        {**figures["kinds"], "all": figures["all"]}
        if len(figures["kinds"]) > 1
        else {"all": figures["all"]}
    )
    table = Table("figure", *columns, title=method)
    for row in figures["all"]:
        values = [column[row] for column in columns.values()]
        table.add_row(row, *(str(v) if isinstance(v, int) else f"{v:.3f}" for v in values))
    out.print(table)
    out.print(
        Text(
            "COCO over masks: "
            + ", ".join(f"{name} {value:.3f}" for name, value in figures["coco"].items())
        )
    )


app.command(epilog=EXIT_CODES)(commands.explain)
app.command(epilog=EXIT_CODES)(commands.tune)
app.command(epilog=labelling.EXIT_CODES)(labelling.label)
app.command(epilog=labelling.EXIT_CODES)(labelling.export)


@weights_app.command("list")
def weights_list(weights_dir: WeightsDir = None) -> None:
    """Show every preset's files, whether they are there, and where they come from."""
    from clip2sam.models import files as weights

    out.print(Text(f"weights folder: {weights.weights_dir(weights_dir)}"))
    for preset in weights.PRESETS.values():
        out.print(Text(f"  {preset.name}: {preset.description}"))
    _print_files(weights.status(weights_dir))


@weights_app.command("download")
def weights_download(
    preset: Annotated[str, typer.Argument(help="The preset to get.")],
    weights_dir: WeightsDir = None,
    offline: Offline = False,
) -> None:
    """Download and verify a preset's files; files that are there and right are left alone."""
    from clip2sam.models import download as weights

    for kind, path in weights.fetch(preset, weights_dir=weights_dir, offline=offline).items():
        out.print(Text(f"{kind}: {path}"))


@weights_app.command("verify")
def weights_verify(weights_dir: WeightsDir = None) -> None:
    """Read every file that is there and compare its SHA-256 with the published one. Exit code 1 if one is damaged."""
    from clip2sam.models import files as weights

    files = weights.verify(weights_dir)
    _print_files(files)
    raise typer.Exit(1 if any(f.state == "damaged" for f in files) else 0)


@weights_app.command("path")
def weights_path(
    preset: Annotated[str, typer.Argument(help="The preset.")],
    weights_dir: WeightsDir = None,
) -> None:
    """Print where a preset's files are or, when missing, where to put them by hand."""
    from clip2sam.models import files as weights

    for kind, path in weights.paths(preset, weights_dir=weights_dir).items():
        out.print(Text(f"{kind}: {path}"))


def _print_files(files: Any) -> None:
    for f in files:
        size = "size unknown" if f.size is None else f"{f.size:,} bytes"
        out.print(
            Text(f.file, style="bold")
            + Text(f"  {f.state}, {size}, {f.licence}, for {', '.join(f.presets)}")
        )
        out.print(Text(f"    at {f.path}" + (f"\n    from {f.url}" if f.url else ""), style="dim"))
    for f in files:
        if f.problem:
            err.print(Text(f"error: {f.problem}", style="red"))


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit


def _fail(message: str, code: int = 2) -> NoReturn:
    err.print(Text(f"error: {message}", style="red"))
    raise typer.Exit(code)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print(Text(f"warning: {message}", style="yellow"))


def main() -> None:
    """Run the command line: errors that a person can cause are one line, and an exit code that scripts can read."""
    warnings.showwarning = _show_warning
    try:
        app()
    except Clip2SamError as error:
        err.print(Text(f"error: {error}", style="red"))
        sys.exit(3 if isinstance(error, WeightsError) else 2)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
