"""Every option and argument that commands share, each defined once. `groups` puts those together
that go together."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clip2sam.cli import completion
from clip2sam.clip.methods import METHODS
from clip2sam.models.locators import LOCATORS

# Kinds of options

LABELS, SETTINGS, MODELS = "Labels", "Settings", "Models"
"""The panels of a help page, beside that of a command's own options."""


def number_option(
    help: str,
    *names: str,
    above: float = -math.inf,
    most: float = math.inf,
    panel: str | None = None,
) -> Any:
    """An option whose value is a finite number: nan and inf would switch a comparison off, or drop
    every mask, in silence.

    Args:
        names: if it has others than its parameter's.
        above: the value must be higher.
        most: the highest value.
    """

    expected = "a finite number"
    if math.isfinite(above):
        expected = f"a number above {above:g} and at most {most:g}"

    def read(text: str | float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and above < value <= most):
            raise typer.BadParameter(f"expected {expected}, got {text!r:.80}")
        return value

    return typer.Option(*names, help=help, metavar="NUMBER", parser=read, rich_help_panel=panel)


def as_path(text: str | Path) -> Path:
    """A path, given or by default. An empty one would mean the current folder: a variable of a
    shell script that is not set."""
    if not str(text) or "\0" in str(text):
        found = repr(str(text)) if str(text) else "nothing"
        raise typer.BadParameter(f"expected a path, got {found}")
    return Path(text)


def as_source(text: str) -> str:
    """A source as it is typed, checked as `as_path` does."""
    as_path(text)
    return text


def path_option(help: str, *names: str, panel: str | None = None) -> Any:
    """An option whose value is a path.

    Args:
        names: if it has others than its parameter's.
    """
    return typer.Option(*names, help=help, metavar="PATH", parser=as_path, rich_help_panel=panel)


def output_option(help: str) -> Any:
    """The option `--output`, which every command describes itself."""
    return path_option(help, "--output", "-o")


def text_option(
    help: str,
    metavar: str,
    panel: str | None = None,
    *names: str,
    completed: Callable[[], Sequence[str]] | None = None,
) -> Any:
    """An option whose value is a text, or a list of them that it is repeated for.

    Args:
        names: if it has others than its parameter's.
        completed: what the shell offers as values.
    """
    return typer.Option(
        *names, help=help, metavar=metavar, rich_help_panel=panel, autocompletion=completed
    )


def count_option(
    help: str,
    *names: str,
    min: int | None = None,
    max: int | None = None,
    panel: str | None = None,
) -> Any:
    """An option whose value is a whole number.

    Args:
        names: if it has others than its parameter's.
        min, max: the least and the highest value.
    """
    return typer.Option(*names, help=help, metavar="N", min=min, max=max, rich_help_panel=panel)


def flag(name: str, help: str, panel: str | None = None) -> Any:
    """An option without a value."""
    return typer.Option(name, help=help, metavar="", rich_help_panel=panel)


# Images

Images = Annotated[
    list[str],
    typer.Argument(
        help="Images, folders of images, quoted globs, addresses (https://...).",
        show_default=False,
        parser=as_source,
    ),
]
Source = Annotated[
    str,
    typer.Argument(
        help="A folder of images, .tar or .parquet files; a quoted glob or braces "
        "('shards/{000..127}.tar'); a .txt or .csv list, also of addresses; a COCO .json file; an "
        "image; or the address of such (https://, s3://, gs://, hf://), lists excepted.",
        show_default=False,
        parser=as_source,
    ),
]
MaxPixels = Annotated[int, count_option("Images with more pixels, by their header, fail.", min=1)]
Root = Annotated[
    Path | None,
    path_option(
        "Folder that the names in a list or COCO file are relative to; else the file's own."
    ),
]

# Labels

Label = Annotated[
    list[str] | None,
    text_option("A label; repeat it for more. dog+cat: one mask for both.", "NAME", LABELS),
]
Labels = Annotated[
    Path | None,
    path_option(
        "A labels file: .txt with a name a line; YAML or JSON also with text prompts, thresholds.",
        "--labels",
        "--classes",
        panel=LABELS,
    ),
]
Caption = Annotated[
    str | None,
    text_option(
        "A sentence: each phrase that names something is a label. In place of labels.",
        "SENTENCE",
        LABELS,
    ),
]
Distractor = Annotated[
    list[str] | None,
    text_option(
        "A label that competes with the others and gets no mask; repeatable.", "NAME", LABELS
    ),
]
AllowUnknown = Annotated[
    bool,
    flag("--allow-unknown", "Go on with labels that the preset tiny doesn't know.", LABELS),
]

# Models

Preset = Annotated[
    str | None,
    text_option(
        f"{', '.join(completion.PRESETS)}. By default the first of vit-h, vit-l, vit-b, mobile and "
        "vit-h-laion whose weights are here, else tiny (drawn shapes only).",
        "NAME",
        MODELS,
        completed=completion.presets,
    ),
]
PresetName = Annotated[
    str,
    typer.Argument(
        metavar="PRESET",
        help=f"{', '.join(completion.PRESETS)}.",
        autocompletion=completion.presets,
    ),
]
Resolution = Annotated[
    int | None, count_option("Side of CLIP's square input in pixels.", panel=MODELS)
]
Device = Annotated[
    str,
    text_option("auto, cpu, cuda, cuda:N or mps.", "NAME", MODELS, completed=completion.devices),
]
Precision = Annotated[
    str, text_option("fp32, bf16 or fp16.", "NAME", MODELS, completed=completion.precisions)
]
Compile = Annotated[bool, flag("--compile", "Apply torch.compile to SAM's image encoder.", MODELS)]
Clip = Annotated[
    str | None,
    text_option(
        "Another CLIP than the preset's, as open_clip names it: ViT-L-14:openai. Give a "
        "--presence-threshold for it, see clip2sam tune.",
        "MODEL:WEIGHTS",
        MODELS,
    ),
]
ClipCheckpoint = Annotated[
    Path | None,
    path_option("A file of your own for the preset's CLIP, or for that of --clip.", panel=MODELS),
]
SamCheckpoint = Annotated[
    Path | None, path_option("A file of your own for the preset's SAM.", panel=MODELS)
]
Sha256 = Annotated[
    list[str] | None,
    text_option("That such a file must have; repeat it for two.", "HEX", MODELS, "--sha256"),
]
WeightsDir = Annotated[
    Path | None,
    path_option(
        "Folder for weights; else CLIP2SAM_WEIGHTS, else the user's cache folder.", panel=MODELS
    ),
]
Offline = Annotated[bool, flag("--offline", "Never use the network.", MODELS)]

# Settings

Published = Annotated[
    bool,
    flag(
        "--published",
        "Settings of the published demo: no presence decision, one mask a label.",
        SETTINGS,
    ),
]
Method = Annotated[
    str | None,
    text_option(
        f"How labels are found: {', '.join((*METHODS, *LOCATORS))}.",
        "NAME",
        SETTINGS,
        completed=completion.methods,
    ),
]
PlainSimilarity = Annotated[
    bool,
    flag(
        "--no-feature-surgery",
        "Plain cosines as scores; give a --presence-threshold that suits them.",
        SETTINGS,
    ),
]
PresenceThreshold = Annotated[
    float | None,
    number_option(
        "Raw score that a label must reach to be present; else the preset's.",
        "--presence-threshold",
        "--conf",
        panel=SETTINGS,
    ),
]
PointThreshold = Annotated[
    float | None,
    number_option(
        "Cells of the grid at or above it (0 to 1) are positive; else 0.5, with --one-mask 0.8.",
        panel=SETTINGS,
    ),
]
Grid = Annotated[int | None, count_option("Cells a side of the grid of points.", panel=SETTINGS)]
OneMask = Annotated[
    bool,
    flag("--one-mask", "One mask a label, as published; else one for each object.", SETTINGS),
]
MaxObjects = Annotated[
    int | None,
    count_option(
        "At most so many masks of a label in an image; else 8.", panel=SETTINGS, min=1, max=64
    ),
]
MinShare = Annotated[
    float | None,
    number_option(
        "Show masks so strong beside their label's best one in the image: 0 (all) to 1; else 0.5.",
        panel=SETTINGS,
    ),
]
Tile = Annotated[
    str | None,
    text_option(
        "Windows of large images, for small objects: auto, off, or a side in pixels.",
        "auto|off|N",
        SETTINGS,
    ),
]
TileOverlap = Annotated[
    float | None,
    number_option(
        "The part of a window that its neighbour shows as well, 0 to 0.9; else 0.5.",
        panel=SETTINGS,
    ),
]

# A server

Host = Annotated[
    str,
    text_option("The address to listen on; 0.0.0.0: all, then anybody may ask.", "ADDRESS"),
]
Port = Annotated[int, count_option("The port to listen on; 0: a free one.", min=0, max=65535)]

# Outputs

Polygons = Annotated[bool, flag("--polygons", "COCO: write polygons instead of RLE.")]
Tolerance = Annotated[
    float | None,
    number_option("Of polygons: how far they may leave their mask's outline, in pixels; else 1."),
]


def places(spans: Sequence[tuple[int, int]]) -> str:
    """Where a caption names a label, after its name: " [2:5, 17:20]"; nothing for other labels."""
    return f" [{', '.join(f'{start}:{end}' for start, end in spans)}]" if spans else ""
