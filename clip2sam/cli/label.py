"""The commands `label` and `export`. Models and tables are slow to import: each command imports what it needs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from clip2sam.errors import (
    ConfigError,
    LabelError,
    OutputError,
    RunError,
    RunLockedError,
    TooManyFailuresError,
)

if TYPE_CHECKING:
    from clip2sam.pipeline import Segmenter

EXIT_CODES = """\
Exit codes: 0 all well; 1 some pictures failed (see summary.json); 2 wrong usage, or the run began with other settings;
3 weights are missing, damaged or out of reach; 4 another process works on this run; 5 the disk is full or can't be
written; 6 more pictures failed than --max-failures; 130 interrupted (the same command goes on)."""

_CODES = {RunLockedError: 4, OutputError: 5, TooManyFailuresError: 6}


def label(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder, a .txt or .csv list, a COCO .json file, or a quoted glob.",
            show_default=False,
        ),
    ],
    label: Annotated[
        list[str], typer.Option(help="A label to cut out; repeat it for more.", show_default=False)
    ] = [],  # noqa: B006
    labels: Annotated[Path | None, typer.Option(help="A YAML or JSON file of labels.")] = None,
    distractor: Annotated[
        list[str],
        typer.Option(
            help="A label that competes and is never exported; repeatable.", show_default=False
        ),
    ] = [],  # noqa: B006
    output: Annotated[
        Path, typer.Option(help="The run's folder: started, or gone on with.")
    ] = Path("run"),
    root: Annotated[
        Path | None,
        typer.Option(
            help="What the names in a list or COCO file are relative to; else the file's folder."
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do failed pictures again.")
    ] = False,
    max_failures: Annotated[
        int | None, typer.Option(help="Stop after more failed pictures than this.")
    ] = None,
    keep_above: Annotated[
        float | None,
        typer.Option(
            help="Also keep masks below their threshold, down to this presence score, for a later export."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Pictures between the model and the journal.", min=1)
    ] = 8,
    readers: Annotated[
        int | None, typer.Option(help="Processes that decode pictures.", min=1)
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(help="Pictures with more, by their header, are failed.")
    ] = 100_000_000,
    timeout: Annotated[
        float, typer.Option(help="Seconds that decoding one picture may take.")
    ] = 60.0,
    preset: Annotated[
        str, typer.Option(help="Which models: tiny, vit-b, vit-l, vit-h, vit-h-laion.")
    ] = "tiny",
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
    published: Annotated[bool, typer.Option("--published", help="The published recipe.")] = False,
    resolution: Annotated[
        int | None, typer.Option(help="Side of CLIP's square input in pixels.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="exact (float32), bf16 or fp16.")] = "exact",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Put SAM's encoder through torch.compile.")
    ] = False,
    clip_checkpoint: Annotated[
        Path | None, typer.Option(help="Your own file for the preset's CLIP.")
    ] = None,
    sam_checkpoint: Annotated[
        Path | None, typer.Option(help="Your own file for the preset's SAM.")
    ] = None,
    weights_dir: Annotated[Path | None, typer.Option(help="Folder for weights.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print failures and errors only.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON a picture, and the summary last.")
    ] = False,
) -> None:
    """Label a data set: start, or go on where it stopped. Every picture is in a journal as soon as it is done.

    Example: clip2sam label images/ --labels labels.yaml --output run/
    """
    if bool(label) == (labels is not None):
        raise LabelError(
            "say what to cut out: --label NAME (repeatable) or --labels FILE, one of the two"
        )

    def load() -> "Segmenter":
        from clip2sam.models.loading import load as load_models

        segmenter = load_models(
            preset,
            device=device,
            precision=precision,
            compiled=compiled,
            resolution=resolution,
            clip_checkpoint=clip_checkpoint,
            sam_checkpoint=sam_checkpoint,
            weights_dir=weights_dir,
            offline=offline,
        )
        return _configured(
            segmenter, published, method, presence=presence, threshold=threshold, grid=grid
        )

    settings: dict[str, Any] = {
        "distractors": distractor,
        "root": root,
        "retry_failed": retry_failed,
        "max_failures": max_failures,
        "keep_above": keep_above,
        "batch_size": batch_size,
        "readers": readers,
        "max_pixels": max_pixels,
        "timeout": timeout,
        "preset": preset,
    }
    failed = _run(source, labels or label, output, load, settings, quiet, json)
    raise typer.Exit(1 if failed else 0)


def export(
    run: Annotated[
        Path, typer.Argument(help="The output folder of 'clip2sam label'.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="A file (coco, results, labelstudio) or a folder (yolo, png).", show_default=False
        ),
    ],
    format: Annotated[str, typer.Option(help="coco, results, yolo, labelstudio or png.")] = "coco",
    presence: Annotated[
        float | None,
        typer.Option(
            help="Presence score that every class must reach; else the run's own thresholds."
        ),
    ] = None,
    class_presence: Annotated[
        list[str],
        typer.Option(help="NAME=SCORE: the same for one class; repeatable.", show_default=False),
    ] = [],  # noqa: B006
    only: Annotated[
        list[str],
        typer.Option("--class", help="A class to keep; repeat it for more.", show_default=False),
    ] = [],  # noqa: B006
    min_score: Annotated[float, typer.Option(help="Least score of a mask, 0 to 1.")] = 0.0,
    min_area: Annotated[int, typer.Option(help="Least area of a mask in pixels.")] = 0,
    duplicates: Annotated[
        float | None,
        typer.Option(help="Of masks of one class with a larger IoU than this, keep the best."),
    ] = None,
    overlap: Annotated[
        str,
        typer.Option(
            help="Whose a pixel in several classes is: all keep it (keep), the best score, the small mask."
        ),
    ] = "keep",
    polygons: Annotated[
        bool, typer.Option("--polygons", help="coco: polygons instead of RLE.")
    ] = False,
    merge: Annotated[
        Path | None, typer.Option(help="coco: add to this file's rows, which stay as they are.")
    ] = None,
    image_prefix: Annotated[
        str, typer.Option(help="labelstudio: what stands in front of a picture's name.")
    ] = "/data/local-files/?d=",
) -> None:
    """Decide a run's masks anew, with other thresholds if you like, and write them in a format. Needs no model.

    Example: clip2sam export run/ --format coco --presence 0.2 --output annotations.json
    """
    from clip2sam.labelling.decide import Decision
    from clip2sam.labelling.export import export as export_run

    limits = [_name_and_number(text) for text in class_presence]
    decision = Decision(
        presence,
        dict(limits),
        tuple(only) or None,
        min_score,
        min_area,
        duplicates,
        overlap,  # type: ignore[arg-type]
    )
    try:
        summary = export_run(
            run, output, format, decision, polygons=polygons, merge=merge, image_prefix=image_prefix
        )
    except RunError as error:
        _fail(error)
    masks = sum(c.masks for c in summary.classes)
    Console(highlight=False, soft_wrap=True).print(
        Text(
            f"{summary.done + summary.empty} of {summary.listed} pictures, {masks} masks, {summary.failed} failed, to "
        )
        + Text(str(output), style="bold")
    )


def _run(
    source: str,
    labels: Any,
    output: Path,
    load: Any,
    settings: dict[str, Any],
    quiet: bool,
    machine: bool,
) -> int:
    """Label with a display; the number of failed pictures."""
    from clip2sam.cli.progress import Display
    from clip2sam.labelling.run import label as label_run
    from clip2sam.labelling.summary import as_rows

    out, err = (Console(stderr=stderr, highlight=False, soft_wrap=True) for stderr in (False, True))
    display = Display(out, err, quiet=quiet, machine=machine)
    try:
        with display:
            summary = label_run(
                source,
                labels,
                output,
                segmenter=load,
                on_start=display.start,
                on_picture=display.picture,
                **settings,
            )
    except KeyboardInterrupt:
        err.print(
            Text(f"interrupted; what was done is in {output}. The same command goes on from there.")
        )
        raise typer.Exit(130) from None
    except RunError as error:
        _fail(error)
    display.finish(summary, as_rows(summary))
    if not quiet and not machine:
        out.print(Text(f"wrote {output / 'annotations.json'}"))
    return summary.failed


def _configured(
    segmenter: "Segmenter", published: bool, method: str | None, **changes: Any
) -> "Segmenter":
    """The options that were given, laid over the preset's settings."""
    from dataclasses import replace

    from clip2sam.clip import as_method
    from clip2sam.config import published as published_config

    given = {name: value for name, value in changes.items() if value is not None}
    if method is not None:
        given["method"] = as_method(method)
    segmenter.config = replace(published_config() if published else segmenter.config, **given)
    return segmenter


def _name_and_number(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        return name, float(number)
    except ValueError as error:
        raise ConfigError(
            f"--class-presence: expected NAME=SCORE, got {text!r}; write it as in cat=0.2"
        ) from error


def _fail(error: RunError) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        Text(f"error: {error}", style="red")
    )
    sys.exit(_CODES.get(type(error), 2))
