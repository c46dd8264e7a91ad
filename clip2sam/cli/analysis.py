"""The commands `explain`, `tune` and `evaluate`."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from clip2sam.cli import completion
from clip2sam.cli.console import err, out
from clip2sam.cli.options import (
    AllowUnknown,
    Caption,
    ClipCheckpoint,
    Device,
    Distractor,
    Label,
    Labels,
    MaxObjects,
    Method,
    MinShare,
    Offline,
    OneMask,
    PlainSimilarity,
    PointThreshold,
    Precision,
    PresenceThreshold,
    Preset,
    Published,
    Root,
    SamCheckpoint,
    Source,
    Tile,
    WeightsDir,
    as_path,
    given_labels,
    labels_if_given,
    path_option,
    places,
    settings,
)
from clip2sam.cli.presets import check_known, chosen_preset
from clip2sam.clip.methods import METHODS
from clip2sam.data.files import write_atomically
from clip2sam.models.locators import LOCATORS

if TYPE_CHECKING:
    from clip2sam.analysis.bootstrap import Difference
    from clip2sam.analysis.budget import Budget
    from clip2sam.analysis.explain import Explanation
    from clip2sam.analysis.sweep import Trial
    from clip2sam.analysis.tune import Tuning
    from clip2sam.data.labels import LabelClass

Figure = Annotated[Path, path_option("The drawing: .png, .jpg, .pdf or .svg.")]


def explain(
    image: Annotated[
        Path,
        typer.Argument(help="The image.", show_default=False, parser=as_path),
    ],
    explained: Annotated[
        str | None,
        typer.Argument(
            metavar="[LABEL]", help="The label to explain; else the first.", show_default=False
        ),
    ] = None,
    label: Label = None,
    labels: Labels = None,
    caption: Caption = None,
    distractor: Distractor = None,
    output: Figure = Path("explanation.png"),
    preset: Preset = None,
    allow_unknown: AllowUnknown = False,
    presence_threshold: PresenceThreshold = None,
    point_threshold: PointThreshold = None,
    one_mask: OneMask = False,
    max_objects: MaxObjects = None,
    min_share: MinShare = None,
    number: Annotated[
        int, typer.Option("--object", help="The object whose candidate masks are drawn.", min=1)
    ] = 1,
    method: Method = None,
    device: Device = "auto",
) -> None:
    """Draw why a label has its masks or none: maps, presence, points, candidates, objects.

    Example: clip2sam explain street.jpg --label "traffic light" --label person --label car
    """
    from clip2sam.analysis.explain import explain as explain_label
    from clip2sam.data.labels import as_label_set
    from clip2sam.models.loading import load
    from clip2sam.visualize import save_figure

    one_of = labels_if_given(label, labels)
    given = one_of or [] if caption is None else given_labels(label, labels, caption)
    if isinstance(given, list) and explained is not None and explained not in given:
        given = [explained, *given]
    label_set = as_label_set(given, distractors=distractor or ())
    chosen = explained or label_set.names[0]
    preset = chosen_preset(preset)
    check_known(preset, label_set.classes, method=method, allow=allow_unknown)
    config = settings(
        preset,
        method=method,
        presence_threshold=presence_threshold,
        point_threshold=point_threshold,
        one_mask=one_mask,
        max_objects=max_objects,
        min_share=min_share,
    )
    segmenter = load(preset, config=config, method=method, device=device)
    explanation = explain_label(segmenter, image, label_set, chosen, object=number - 1)
    save_figure(explanation.show(), output)
    for line in _explanation_lines(explanation):
        out.print(Text(line))
    out.print(Text(f"wrote {output}"))


def _explanation_lines(explanation: "Explanation") -> list[str]:
    """The decision, then a line for each object."""
    index = explanation.index
    name = f"{explanation.label}{places(explanation.label_set.classes[index].spans)}"
    head = f"{name}: presence {explanation.presence[index]:.3f}"
    if explanation.reason:
        return [f"{head}, absent, {explanation.reason}"]
    if explanation.prompts == "label":
        return [f"{head}, mask"]
    lines = [f"{head}, {explanation.shown} of {len(explanation.objects)} objects shown"]
    for i, one in enumerate(explanation.objects, 1):
        verdict = f", left out: {one.left_out}" if one.left_out else ""
        lines.append(f"  object {i}: score {one.score:.3f}, share {one.share:.2f}{verdict}")
    return lines


def _classes(
    given: list[str] | Path | None, distractor: list[str] | None, dataset: Path | None
) -> "list[LabelClass]":
    """The labels that are asked for: those that are given, else a COCO dataset's categories."""
    from clip2sam.analysis.examples import category_names
    from clip2sam.data.labels import LabelClass, as_label_set

    if given is not None:
        return list(as_label_set(given, distractors=distractor or ()).classes)
    names = (*(category_names(dataset) if dataset else ()), *(distractor or ()))
    return [LabelClass(name, (name,)) for name in names]


def tune(
    source: Source,
    label: Label = None,
    labels: Labels = None,
    distractor: Distractor = None,
    root: Root = None,
    output: Annotated[
        Path, path_option("The labels file to write, with a threshold for each class.")
    ] = Path("labels-tuned.yaml"),
    figure: Figure = Path("tuning.png"),
    preset: Preset = None,
    allow_unknown: AllowUnknown = False,
    method: Method = None,
    device: Device = "auto",
) -> None:
    """Choose a presence threshold for each label from images; write the labels file with them.

    Without labels: the categories of the source, a COCO dataset, whose annotations are the truth.

    Example: clip2sam tune checked.json --root images/ --labels labels.yaml
    """
    from clip2sam.analysis.tune import tune as tune_labels
    from clip2sam.models.loading import load
    from clip2sam.visualize import save_figure

    given = labels_if_given(label, labels)
    preset = chosen_preset(preset)
    dataset = Path(source) if source.endswith(".json") else None
    classes = _classes(given, distractor, dataset if preset == "tiny" else None)
    check_known(preset, classes, method=method, allow=allow_unknown)
    config = settings(preset, method=method)
    segmenter = load(preset, config=config, method=method, device=device)
    tuning = tune_labels(segmenter, source, given, distractors=distractor or (), root=root)
    tuning.write(output)
    save_figure(tuning.show(), figure)
    for line in _threshold_lines(tuning):
        out.print(Text(line))
    for name, reason in tuning.failures:
        err.print(Text(f"{name}: {reason}", style="red"))
    counts = f"{len(tuning.images)} images, {len(tuning.failures)} failed"
    out.print(Text(f"{counts}; wrote {output} and {figure}"))
    raise typer.Exit(1 if tuning.failures else 0)


def _threshold_lines(tuning: "Tuning") -> list[str]:
    """A line for each class: its threshold, and what is known about it."""
    lines = []
    for c in tuning.classes:
        line = f"{c.name}: no threshold"
        if c.threshold is not None:
            line = f"{c.name}: threshold {c.threshold:.4g}"
        if c.truth is None:
            line += ", truth not known"
        else:
            line += f", in {int(c.truth.sum())} of {len(c.truth)} images"
            if c.threshold is not None:
                precision, recall = c.at(c.threshold)
                line += f", precision {precision:.3f}, recall {recall:.3f}, AUC {c.auc:.3f}"
        lines.append(line)
    return lines


def evaluate(
    dataset: Annotated[
        Path | None,
        path_option("A COCO dataset with masks; by default drawn scenes."),
    ] = None,
    images: Annotated[
        Path | None, path_option("Folder of its images; by default the dataset's own.")
    ] = None,
    scenes: Annotated[int, typer.Option(help="Number of drawn scenes.", min=1)] = 100,
    split: Annotated[
        str, typer.Option(help="Which scenes: train, validation or test.")
    ] = "validation",
    kind: Annotated[
        str,
        typer.Option(
            help="Of scenes: plain; crowd (5 to 12 objects); several (2 to 5 objects of one look); "
            "large (from 448 pixels a side, objects of 0.5 to 2 % of the area)."
        ),
    ] = "plain",
    label: Label = None,
    labels: Labels = None,
    distractor: Distractor = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join((*METHODS, *LOCATORS))}; repeat it to compare.",
            show_default=False,
            autocompletion=completion.methods,
        ),
    ] = None,
    no_feature_surgery: PlainSimilarity = False,
    published: Published = False,
    presence_threshold: PresenceThreshold = None,
    one_mask: OneMask = False,
    max_objects: MaxObjects = None,
    min_share: MinShare = None,
    budget: Annotated[
        bool, typer.Option("--budget", help="Also show what each stage loses, against the truth.")
    ] = False,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="Also try other settings, and show which of them pay."),
    ] = False,
    recognition: Annotated[
        bool,
        typer.Option(
            "--recognition", help="Also show how well CLIP recognises labels in whole images."
        ),
    ] = False,
    dense: Annotated[
        bool,
        typer.Option(
            "--dense", help="Also show how well every pixel gets its label, as `dense` gives it."
        ),
    ] = False,
    tile: Tile = None,
    output: Annotated[Path | None, path_option("Write all figures into this JSON file.")] = None,
    preset: Preset = None,
    allow_unknown: AllowUnknown = False,
    device: Device = "auto",
    precision: Precision = "fp32",
    clip_checkpoint: ClipCheckpoint = None,
    sam_checkpoint: SamCheckpoint = None,
    weights_dir: WeightsDir = None,
    offline: Offline = False,
) -> None:
    """Judge every stage on images whose truth is known: pointing, presence, masks, COCO AP.

    Without labels: the dataset's categories, or those that each scene requests. With --budget: what
    each stage loses. With --sweep: which other settings pay on these images.

    Example: clip2sam evaluate --dataset instances.json --images photos/ --labels labels.yaml
    """
    from clip2sam.analysis.budget import budget as measure_budget
    from clip2sam.analysis.dense import evaluate_dense
    from clip2sam.analysis.evaluate import evaluate as evaluate_examples
    from clip2sam.analysis.examples import coco_examples, scene_examples
    from clip2sam.analysis.recognition import evaluate_recognition
    from clip2sam.analysis.sweep import sweep as try_settings
    from clip2sam.dense import DenseSettings
    from clip2sam.models.loading import load, with_method
    from clip2sam.models.locators import checked_method, needs_clip

    for name in method or ():
        checked_method(name)
    given = labels_if_given(label, labels)
    # drawn scenes are what tiny is for, and refuse labels that are none of theirs themselves
    preset = chosen_preset(preset or (None if dataset else "tiny"), weights_dir=weights_dir)
    if dataset is not None and preset == "tiny":
        classes = _classes(given, distractor, dataset)
        if not method or any(map(needs_clip, method)):
            check_known(preset, classes, allow=allow_unknown)
    config = settings(
        preset,
        published=published,
        no_feature_surgery=no_feature_surgery,
        presence_threshold=presence_threshold,
        one_mask=one_mask,
        max_objects=max_objects,
        min_share=min_share,
        tile=tile,
    )
    segmenter = load(
        preset,
        config=config,
        device=device,
        precision=precision,
        clip_checkpoint=clip_checkpoint,
        sam_checkpoint=sam_checkpoint,
        weights_dir=weights_dir,
        offline=offline,
    )

    def measured(what: str, measure: Callable[..., Any], judged: Any) -> Any:
        """A measurement of the images, with its progress."""
        if dataset is None:
            examples = scene_examples(split, scenes, kind=kind)
        else:
            examples = coco_examples(dataset, images or dataset.parent)
        columns = (TextColumn(what), TextColumn("{task.completed} images"))
        with Progress(*columns, console=err, transient=True) as bar:
            task = bar.add_task(what, total=None)
            return measure(
                judged, examples, given, distractor or (), on_example=lambda: bar.advance(task)
            )

    figures: dict[str, Any] = {}
    failures: dict[str, str] = {}
    for name in method or [config.method.name]:
        tried = with_method(segmenter, name, weights_dir=weights_dir, offline=offline)
        if presence_threshold is not None:
            tried = tried.with_config(presence_threshold=presence_threshold)
        figures[name] = measured(name, evaluate_examples, tried)
        failures |= dict(figures[name]["failures"])
        _print_figures(name, figures[name])
        if budget:
            spent = measured(f"{name}, budget", measure_budget, tried)
            figures[name]["budget"] = asdict(spent) | {"losses": spent.losses()}
            _print_budget(spent)
        if sweep:
            trials, _ = measured(f"{name}, sweep", try_settings, tried)
            figures[name]["sweep"] = [asdict(trial) for trial in trials]
            _print_sweep(trials)
        if recognition:
            known = measured(f"{name}, recognition", evaluate_recognition, tried)
            figures[name]["recognition"] = known
            failures |= dict(known["failures"])
            _print_recognition(known)
        if dense:
            figures[name]["dense"] = {}
            for title, refine in (("maps alone", False), ("with SAM's masks", True)):
                judge = partial(evaluate_dense, settings=DenseSettings(refine=refine))
                labelled = measured(f"{name}, {title}", judge, tried)
                figures[name]["dense"][title] = labelled
                failures |= dict(labelled["failures"])
            _print_dense(figures[name]["dense"])
    if output is not None:
        write_atomically(output, json.dumps(_without_nan(figures), indent=1).encode() + b"\n")
    for image, reason in failures.items():
        err.print(Text(f"{image}: {reason}", style="red"))
    raise typer.Exit(1 if failures else 0)


def _print_figures(method: str, figures: dict[str, Any]) -> None:
    """A table for a method: a column for each kind of label, a row for each figure."""
    kinds = figures["kinds"] if len(figures["kinds"]) > 1 else {}
    columns = {**kinds, "all": figures["all"]}
    table = Table("figure", *columns, title=method)
    for row in figures["all"]:
        values = [column[row] for column in columns.values()]
        table.add_row(row, *(str(v) if isinstance(v, int) else f"{v:.3f}" for v in values))
    out.print(table)
    found = figures["objects"]
    per_image = {k: v for k, v in found.items() if not k.startswith("AP")}
    pooled = {k: v for k, v in found.items() if k.startswith("AP")}
    out.print(Text(f"COCO over masks, mean over categories: {_listed(figures['coco'])}"))
    out.print(Text(f"over all pairs of image and label: {_listed(pooled)}"))
    out.print(Text(f"an image: {_listed(per_image)}"))


def _listed(figures: dict[str, float]) -> str:
    return "; ".join(f"{name} {value:.3f}" for name, value in figures.items())


def _print_budget(budget: "Budget") -> None:
    """A table of the steps from the pipeline to the truth, and what each stage loses."""
    table = Table("step", "mIoU", "AP, pooled", title="budget")
    for step, miou in budget.miou.items():
        table.add_row(step, f"{miou:.3f}", f"{budget.ap[step]:.3f}")
    out.print(table)
    out.print(Text(f"mean IoU lost: {_listed(budget.losses())}"))


def _print_sweep(trials: "list[Trial]") -> None:
    """A table of settings, and one of what they gain. A gain whose interval leaves out 0 is
    marked."""
    columns = ("mIoU", "AP, pooled", "AP50", "false masks", "ms an image")
    table = Table("settings", *columns, title="sweep")
    gains = Table("settings", "mIoU gained", "AP gained", title="against the base")
    for t in trials:
        numbers = (t.miou, t.ap, t.ap50, t.false_masks)
        table.add_row(t.name, *(f"{n:.3f}" for n in numbers), f"{1000 * t.seconds:.0f}")
        if t.miou_gain and t.ap_gain:
            gains.add_row(t.name, *map(_with_interval, (t.miou_gain, t.ap_gain)))
    out.print(table)
    out.print(gains)
    out.print(Text("in brackets: 95 %, bootstrap over images; *: it leaves out 0"))


def _print_recognition(figures: dict[str, Any]) -> None:
    """A table of mAP: a row for each kind of label."""
    groups = {**figures["kinds"], "all": figures["all"]}
    table = Table("kind", *figures["all"], title="recognition in whole images, mAP")
    for name, group in groups.items():
        table.add_row(name, *(str(v) if isinstance(v, int) else f"{v:.3f}" for v in group.values()))
    out.print(table)


def _print_dense(variants: dict[str, dict[str, Any]]) -> None:
    """A table of the figures of label maps: a row for each way to make them."""
    columns = ("mIoU", "background", "accuracy")
    table = Table("label maps", *columns, title="every pixel")
    for title, figures in variants.items():
        table.add_row(title, *(f"{figures[column]:.3f}" for column in columns))
    out.print(table)


def _with_interval(gain: "Difference") -> str:
    return f"{gain.value:+.3f} ({gain.low:+.3f}, {gain.high:+.3f}){'*' * gain.sure}"


def _without_nan(value: Any) -> Any:
    """The same with null for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
