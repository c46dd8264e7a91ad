"""The commands `explain` and `tune`. Models and drawing are slow to import: each command imports what it needs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clip2sam.errors import LabelError

if TYPE_CHECKING:
    from clip2sam.analysis.tune import Tuning


def explain(
    picture: Annotated[Path, typer.Argument(help="The picture.", show_default=False)],
    explained: Annotated[
        str | None,
        typer.Argument(
            metavar="[LABEL]", help="The label to explain; else the first.", show_default=False
        ),
    ] = None,
    label: Annotated[
        list[str],
        typer.Option(help="A label that is asked; repeat it for more.", show_default=False),
    ] = [],  # noqa: B006
    labels: Annotated[Path | None, typer.Option(help="A YAML or JSON file of all labels.")] = None,
    distractor: Annotated[
        list[str],
        typer.Option(
            help="A label that competes and is never exported; repeatable.", show_default=False
        ),
    ] = [],  # noqa: B006
    output: Annotated[Path, typer.Option(help="The drawing: .png, .jpg, .pdf or .svg.")] = Path(
        "explanation.png"
    ),
    preset: Annotated[
        str, typer.Option(help="Which models: tiny, vit-b, vit-l, vit-h, vit-h-laion.")
    ] = "tiny",
    presence: Annotated[
        float | None,
        typer.Option(help="Raw score that a label must reach; the preset's own by default."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="raw, maskclip, surgery or clearclip.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Draw why a label has its mask, or none: its map, what was redundant, presence, grid, points, candidates.

    Example: clip2sam explain street.jpg --label "traffic light" --label person --label car
    """
    from clip2sam.analysis.explain import explain as explain_label
    from clip2sam.clip import as_method
    from clip2sam.data.labels import as_label_set
    from clip2sam.models.loading import load
    from clip2sam.visualize import save_figure

    if label and labels is not None:
        raise LabelError("say the labels once: --label NAME (repeatable) or --labels FILE")
    names = [*label] if explained is None or explained in label else [explained, *label]
    asked = as_label_set(labels or names, distractors=distractor)
    chosen = explained or asked.names[0]
    changes: dict[str, Any] = {} if presence is None else {"presence": presence}
    if method is not None:
        changes["method"] = as_method(method)
    explanation = explain_label(
        load(preset, device=device).with_config(**changes), picture, asked, chosen
    )
    save_figure(explanation.show(), output)
    score = f"presence {explanation.presence[explanation.index]:.3f}"
    typer.echo(
        f"{chosen}: {score}, {f'absent, {explanation.reason}' if explanation.reason else 'mask'}"
    )
    typer.echo(f"wrote {output}")


def tune(
    source: Annotated[
        str,
        typer.Argument(
            help="A COCO .json file, a folder, a .txt or .csv list, or a quoted glob.",
            show_default=False,
        ),
    ],
    label: Annotated[
        list[str], typer.Option(help="A label; repeat it for more.", show_default=False)
    ] = [],  # noqa: B006
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A YAML or JSON file of labels. Without labels: the data set's categories."
        ),
    ] = None,
    distractor: Annotated[
        list[str],
        typer.Option(
            help="A label that competes and is never exported; repeatable.", show_default=False
        ),
    ] = [],  # noqa: B006
    root: Annotated[
        Path | None,
        typer.Option(
            help="What the names in a list or COCO file are relative to; else the file's folder."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="The labels file to write, with a threshold a class.")
    ] = Path("labels-tuned.yaml"),
    figure: Annotated[Path, typer.Option(help="The drawing: .png, .jpg, .pdf or .svg.")] = Path(
        "tuning.png"
    ),
    preset: Annotated[
        str, typer.Option(help="Which models: tiny, vit-b, vit-l, vit-h, vit-h-laion.")
    ] = "tiny",
    method: Annotated[str | None, typer.Option(help="raw, maskclip, surgery or clearclip.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Choose a presence threshold for each label from pictures, and write the labels file that has them.

    Example: clip2sam tune checked.json --root images/ --labels labels.yaml --output labels-tuned.yaml
    """
    from clip2sam.analysis.tune import tune as tune_labels
    from clip2sam.clip import as_method
    from clip2sam.models.loading import load
    from clip2sam.visualize import save_figure

    if label and labels is not None:
        raise LabelError("say the labels once: --label NAME (repeatable) or --labels FILE")
    segmenter = load(preset, device=device)
    if method is not None:
        segmenter = segmenter.with_config(method=as_method(method))
    tuning = tune_labels(
        segmenter, source, labels or label or None, distractors=distractor, root=root
    )
    tuning.write(output)
    save_figure(tuning.show(), figure)
    for line in _table(tuning):
        typer.echo(line)
    for name, reason in tuning.failures:
        typer.echo(f"{name}: {reason}", err=True)
    typer.echo(
        f"{len(tuning.pictures)} pictures, {len(tuning.failures)} failed; wrote {output} and {figure}"
    )
    raise typer.Exit(1 if tuning.failures else 0)


def _table(tuning: "Tuning") -> list[str]:
    """A line a class: its threshold, and what is known about it."""
    lines = []
    for c in tuning.classes:
        line = (
            f"{c.name}: {'no threshold' if c.threshold is None else f'threshold {c.threshold:.4g}'}"
        )
        if c.truth is None:
            line += ", truth not known"
        else:
            line += f", in {int(c.truth.sum())} of {len(c.truth)} pictures"
        if c.threshold is not None and c.truth is not None:
            line += (
                ", precision {:.3f}, recall {:.3f}".format(*c.at(c.threshold))
                + f", AUC {c.auc:.3f}"
            )
        lines.append(line)
    return lines
