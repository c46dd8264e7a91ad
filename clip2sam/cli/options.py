"""Every option and argument that commands share, each defined once; and what several of them give
together: labels and settings."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clip2sam.clip.methods import METHODS
from clip2sam.errors import LabelError
from clip2sam.models.locators import LOCATORS, checked_method, settings_for

if TYPE_CHECKING:
    from clip2sam.config import Config
    from clip2sam.data.labels import LabelSet

# Kinds of values


def number_option(help: str, above: float = -math.inf, most: float = math.inf) -> Any:
    """An option whose value is a finite number: nan and inf would switch a comparison off, or drop
    every mask, in silence.

    Args:
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

    return typer.Option(help=help, metavar="NUMBER", parser=read)


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


def path_option(help: str) -> Any:
    """An option whose value is a path."""
    return typer.Option(help=help, metavar="PATH", parser=as_path)


# Images

Source = Annotated[
    str,
    typer.Argument(
        help="A folder, a .txt or .csv list, a COCO .json file, a quoted glob, or an image.",
        show_default=False,
        parser=as_source,
    ),
]
Root = Annotated[
    Path | None,
    path_option(
        "Folder that the names in a list or COCO file are relative to; else the file's own."
    ),
]

# Labels

Label = Annotated[
    list[str] | None,
    typer.Option(
        help="A label; repeat it for more. dog+cat: one mask for both.", show_default=False
    ),
]
Labels = Annotated[
    Path | None,
    path_option(
        "A labels file: .txt with a name a line; YAML or JSON also with text prompts, thresholds."
    ),
]
Caption = Annotated[
    str | None,
    typer.Option(
        help="A sentence: each phrase that names something is a label. In place of labels.",
        show_default=False,
    ),
]
Distractor = Annotated[
    list[str] | None,
    typer.Option(
        help="A label that competes with the others and gets no mask; repeatable.",
        show_default=False,
    ),
]

# Models

Preset = Annotated[
    str | None,
    typer.Option(
        help="Models: tiny, mobile, vit-b, vit-l, vit-h or vit-h-laion. By default the first of "
        "vit-h, vit-l, vit-b, mobile and vit-h-laion whose weights are here, else tiny (drawn "
        "shapes only).",
        show_default=False,
    ),
]
AllowUnknown = Annotated[
    bool,
    typer.Option("--allow-unknown", help="Go on with labels that the preset tiny doesn't know."),
]
PresetName = Annotated[
    str,
    typer.Argument(metavar="PRESET", help="tiny, mobile, vit-b, vit-l, vit-h or vit-h-laion."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="Apply torch.compile to SAM's image encoder.")
]
ClipCheckpoint = Annotated[Path | None, path_option("A file of your own for the preset's CLIP.")]
SamCheckpoint = Annotated[Path | None, path_option("A file of your own for the preset's SAM.")]
WeightsDir = Annotated[
    Path | None,
    path_option("Folder for weights; else CLIP2SAM_WEIGHTS, else the user's cache folder."),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]

# Settings

Published = Annotated[
    bool,
    typer.Option(
        "--published",
        help="Settings of the published demo: no presence decision, one mask a label.",
    ),
]
Method = Annotated[
    str | None, typer.Option(help=f"How labels are found: {', '.join((*METHODS, *LOCATORS))}.")
]
PlainSimilarity = Annotated[
    bool,
    typer.Option(
        "--no-feature-surgery",
        help="Plain cosines as scores; give a --presence-threshold that suits them.",
    ),
]
PresenceThreshold = Annotated[
    float | None,
    number_option("Raw score that a label must reach to be present; else the preset's."),
]
PointThreshold = Annotated[
    float | None,
    number_option(
        "Cells of the grid at or above it (0 to 1) are positive; else 0.5, with --one-mask 0.8."
    ),
]
Grid = Annotated[int | None, typer.Option(help="Cells a side of the grid of points.")]
OneMask = Annotated[
    bool,
    typer.Option(
        "--one-mask", help="One mask a label, as published; by default one for each object."
    ),
]
MaxObjects = Annotated[
    int | None,
    typer.Option(help="At most so many masks of a label in an image; by default 8.", min=1, max=64),
]
MinShare = Annotated[
    float | None,
    number_option(
        "Show masks so strong beside their label's best one in the image: 0 (all) to 1; else 0.5."
    ),
]
Tile = Annotated[
    str | None,
    typer.Option(
        help="Windows of large images, for small objects: auto, off, or a side in pixels.",
        metavar="auto|off|SIDE",
    ),
]
TileOverlap = Annotated[
    float | None,
    number_option("The part of a window that its neighbour shows as well, 0 to 0.9; else 0.5."),
]
Resolution = Annotated[int | None, typer.Option(help="Side of CLIP's square input in pixels.")]

# Outputs

Polygons = Annotated[bool, typer.Option("--polygons", help="COCO: write polygons instead of RLE.")]


def given_labels(
    label: list[str] | None, labels: Path | None, caption: str | None
) -> "list[str] | Path | LabelSet":
    """The labels of `--label`, of `--labels` or of `--caption`.

    Raises:
        LabelError: none of the options is given, or several are; or the caption names nothing.
    """
    from clip2sam.data.captions import labels_of_caption

    if caption is not None and not label and labels is None:
        return labels_of_caption(caption)
    given = labels_if_given(label, labels)
    if given is None or caption is not None:
        raise LabelError(
            "give labels by --label NAME (repeatable), by --labels FILE or by --caption SENTENCE: "
            "one of the three"
        )
    return given


def labels_if_given(label: list[str] | None, labels: Path | None) -> list[str] | Path | None:
    """The labels of `--label` or of `--labels`; None if none of the two options is given.

    Raises:
        LabelError: both are.
    """
    if label and labels is not None:
        raise LabelError(
            "give labels by --label NAME (repeatable) or by --labels FILE: one of the two"
        )
    return labels or label or None


def places(spans: Sequence[tuple[int, int]]) -> str:
    """Where a caption names a label, after its name: " [2:5, 17:20]"; nothing for other labels."""
    return f" [{', '.join(f'{start}:{end}' for start, end in spans)}]" if spans else ""


def settings(
    preset: str,
    *,
    published: bool = False,
    method: str | None = None,
    no_feature_surgery: bool = False,
    presence_threshold: float | None = None,
    point_threshold: float | None = None,
    grid: int | None = None,
    one_mask: bool = False,
    max_objects: int | None = None,
    min_share: float | None = None,
    tile: str | None = None,
    tile_overlap: float | None = None,
) -> "Config":
    """The preset's settings, or with `published` those of the published demo, with the options
    that are given in their place.

    Raises:
        ConfigError: an unknown preset or method, or a value out of range.
    """
    from clip2sam.config import published as published_demo
    from clip2sam.models.presets import get_preset

    base = published_demo() if published else get_preset(preset).config
    if method is not None:
        base = settings_for(checked_method(method), base)
    changes: dict[str, Any] = {
        "feature_surgery": False if no_feature_surgery else None,
        "presence_threshold": presence_threshold,
        "point_threshold": point_threshold,
        "grid": grid,
        "prompts": "label" if one_mask else None,
        "max_objects": max_objects,
        "min_share": min_share,
        "tile": int(tile) if tile is not None and tile.isdecimal() else tile,
        "tile_overlap": tile_overlap,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(base, **given)
