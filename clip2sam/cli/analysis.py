"""The commands `explain`, `tune` and `evaluate`."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from clip2sam.cli import completion
from clip2sam.cli.console import err, image_bar, out
from clip2sam.cli.groups import LabelOptions, MapOptions, MaskOptions, ModelOptions, spread
from clip2sam.cli.options import (
    SETTINGS,
    Caption,
    Method,
    Root,
    Source,
    as_path,
    count_option,
    flag,
    output_option,
    path_option,
    places,
    text_option,
)
from clip2sam.clip.methods import METHODS
from clip2sam.data.files import check_writable, write_atomically
from clip2sam.data.opening import check_found
from clip2sam.errors import ConfigError, LabelError
from clip2sam.models.locators import LOCATORS, checked_method, needs_clip

if TYPE_CHECKING:
    from clip2sam.analysis.bootstrap import Difference
    from clip2sam.analysis.budget import Budget
    from clip2sam.analysis.explain import Explanation
    from clip2sam.analysis.sweep import Trial
    from clip2sam.analysis.tune import Tuning
    from clip2sam.data.labels import LabelClass

FIGURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
"""What `save_figure` of `clip2sam.visualize` writes, which is slow to import."""

CLASSES_SHOWN = 80
"""So many classes of `evaluate` are printed; the file has them all."""


def check_figure(path: Path) -> None:
    """Find out in front of a long job whether its drawing can be written.

    Raises:
        ConfigError: the path's ending names no known format.
        OutputError: it can't be written.
    """
    if path.suffix.lower() not in FIGURES:
        raise ConfigError(
            f"can't write a figure as {path.name!r}: let the name end in .png, .jpg, .pdf or .svg"
        )
    check_writable(path)


@spread
def explain(
    image: Annotated[
        Path,
        typer.Argument(help="The image.", show_default=False, parser=as_path),
    ],
    *,
    labels: LabelOptions,
    caption: Caption = None,
    method: Method = None,
    maps: MapOptions,
    masks: MaskOptions,
    models: ModelOptions,
    explained: Annotated[
        str | None,
        typer.Argument(
            metavar="LABEL", help="The label to explain; else the first.", show_default=False
        ),
    ] = None,
    output: Annotated[Path, output_option("The drawing: .png, .jpg, .pdf or .svg.")] = Path(
        "explanation.png"
    ),
    number: Annotated[
        int, count_option("The object whose candidate masks are drawn.", "--object", min=1)
    ] = 1,
) -> None:
    """Draw why a label has its masks or none: maps, presence, points, candidates, objects.

    The whole image is looked at: --tile and --tile-overlap change nothing here.

    Example: clip2sam explain street.jpg --label "traffic light" --label person --label car
    """
    from clip2sam.data.images import load_image

    if explained is not None and caption is None and explained not in (labels.label or ()):
        labels = _with_label(labels, explained)
    label_set = labels.label_set(caption)
    chosen = explained or label_set.names[0]
    if chosen not in label_set.names:
        raise LabelError(
            f"expected one of the labels, {', '.join(map(repr, label_set.names))}, to explain, "
            f"got {chosen!r}; add it or choose another"
        )
    models = models.chosen(method=method)
    config = models.config(maps, masks, method=method)
    loaded = load_image(image)
    check_figure(output)
    models.check_known(label_set.classes, labels, method=method)
    segmenter = models.load(config, method=method)

    from clip2sam.analysis.explain import explain as explain_label
    from clip2sam.visualize import save_figure

    explanation = explain_label(segmenter, loaded, label_set, chosen, object=number - 1)
    save_figure(explanation.show(), output)
    for line in _explanation_lines(explanation):
        out.print(Text(line))
    out.print(Text(f"wrote {output}"))


def _with_label(options: LabelOptions, name: str) -> LabelOptions:
    """The same with one more label in front, but for a labels file, which has its own."""
    if options.labels is not None:
        return options
    return replace(options, label=[name, *(options.label or ())])


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


def _named(categories: Sequence[str], distractor: list[str] | None) -> "list[LabelClass]":
    """The labels that a COCO dataset's categories are."""
    from clip2sam.data.labels import LabelClass

    return [LabelClass(name, (name,)) for name in (*categories, *(distractor or ()))]


@spread
def tune(
    source: Source,
    *,
    labels: LabelOptions,
    method: Method = None,
    maps: MapOptions,
    models: ModelOptions,
    root: Root = None,
    output: Annotated[
        Path, output_option("The labels file to write, with a threshold for each class.")
    ] = Path("labels-tuned.yaml"),
    figure: Annotated[Path, path_option("The drawing: .png, .jpg, .pdf or .svg.")] = Path(
        "tuning.png"
    ),
) -> None:
    """Choose a presence threshold for each label from images; write the labels file with them.

    Without labels: the categories of the source, a COCO dataset, whose annotations are the truth.

    Example: clip2sam tune checked.json --root images/ --labels labels.yaml
    """
    from clip2sam.analysis.examples import category_names

    check_found(source, root)
    of_dataset = labels.given() is None and source.lower().endswith(".json")
    classes: Sequence[LabelClass]
    if of_dataset:
        classes = _named(category_names(Path(source)), labels.distractor)
    else:
        classes = labels.label_set().classes
    models = models.chosen(method=method)
    config = models.config(maps, method=method)
    check_writable(output)
    check_figure(figure)
    models.check_known(classes, labels, method=method)
    segmenter = models.load(config, method=method)

    from clip2sam.analysis.tune import tune as tune_labels
    from clip2sam.visualize import save_figure

    with image_bar() as bar:
        task = bar.add_task("scoring", total=None)
        tuning = tune_labels(
            segmenter,
            source,
            labels.given(),
            distractors=labels.distractor or (),
            root=root,
            on_image=lambda done, of: bar.update(task, completed=done, total=of),
        )
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


@spread
def evaluate(
    *,
    labels: LabelOptions,
    maps: MapOptions,
    masks: MaskOptions,
    models: ModelOptions,
    dataset: Annotated[
        Path | None,
        path_option("A COCO dataset with masks; by default drawn scenes."),
    ] = None,
    images: Annotated[
        Path | None, path_option("Folder of its images; by default the dataset's own.")
    ] = None,
    limit: Annotated[
        int | None, count_option("Judge so many images at most, the first ones.", min=1)
    ] = None,
    scenes: Annotated[int, count_option("Number of drawn scenes.", min=1)] = 100,
    split: Annotated[
        str, text_option("Which scenes: train, validation or test.", "NAME")
    ] = "validation",
    kind: Annotated[
        str,
        text_option(
            "Of scenes: plain; crowd (5 to 12 objects); several (2 to 5 objects of one look); "
            "large (from 448 pixels a side, objects of 0.5 to 2 % of the area).",
            "NAME",
        ),
    ] = "plain",
    method: Annotated[
        list[str] | None,
        text_option(
            f"{', '.join((*METHODS, *LOCATORS))}; repeat it to compare.",
            "NAME",
            SETTINGS,
            completed=completion.methods,
        ),
    ] = None,
    budget: Annotated[
        bool, flag("--budget", "Also show what each stage loses, against the truth.")
    ] = False,
    sweep: Annotated[
        bool, flag("--sweep", "Also try other settings, and show which of them pay.")
    ] = False,
    recognition: Annotated[
        bool, flag("--recognition", "Also show how well CLIP recognises labels in whole images.")
    ] = False,
    dense: Annotated[
        bool,
        flag("--dense", "Also show how well every pixel gets its label, as `dense` gives it."),
    ] = False,
    output: Annotated[Path | None, output_option("Write all figures into this JSON file.")] = None,
) -> None:
    """Judge every stage on images whose truth is known: pointing, presence, masks, COCO AP.

    Without labels: the dataset's categories, or those that each scene requests. With --budget: what
    each stage loses. With --sweep: which other settings pay on these images.

    Example: clip2sam evaluate --dataset instances.json --images photos/ --labels labels.yaml
    """
    from clip2sam.analysis.examples import CocoExamples, scene_examples
    from clip2sam.tiny.scenes import split_seed

    for name in method or ():
        checked_method(name)
    given = labels.given()
    label_set = labels.label_set() if given is not None else None
    truth: CocoExamples | None = None
    # drawn scenes are what tiny is for, and refuse labels that are none of theirs themselves
    models = (
        models.chosen() if dataset else replace(models, preset=models.preset or "tiny").chosen()
    )
    config = models.config(maps, masks)
    if dataset is None:
        count = min(scenes, limit or scenes)
        split_seed(split, count - 1, kind)
    else:
        way = None if not method or any(map(needs_clip, method)) else method[0]
        if label_set is not None:
            models.check_known(label_set.classes, labels, method=way)
        truth = CocoExamples(dataset, images or dataset.parent, limit)
        count = len(truth)
        if label_set is None:
            models.check_known(_named(truth.names, labels.distractor), labels, method=way)
    if output is not None:
        check_writable(output)
    segmenter = models.load(config)

    from clip2sam.analysis.budget import budget as measure_budget
    from clip2sam.analysis.dense import evaluate_dense
    from clip2sam.analysis.evaluate import evaluate as evaluate_examples
    from clip2sam.analysis.recognition import evaluate_recognition
    from clip2sam.analysis.sweep import sweep as try_settings
    from clip2sam.dense import DenseSettings
    from clip2sam.models.loading import with_method

    def measured(what: str, measure: Callable[..., Any], judged: Any) -> Any:
        """A measurement of the images, with its progress."""
        examples = scene_examples(split, count, kind=kind) if truth is None else truth
        with image_bar() as bar:
            task = bar.add_task(what, total=count)
            return measure(
                judged,
                examples,
                given,
                labels.distractor or (),
                on_example=lambda: bar.advance(task),
            )

    figures: dict[str, Any] = {}
    failures: dict[str, str] = {}
    for name in method or [config.method.name]:
        tried = with_method(segmenter, name, weights_dir=models.weights_dir, offline=models.offline)
        if maps.presence_threshold is not None:
            tried = tried.with_config(presence_threshold=maps.presence_threshold)
        figures[name] = measured(name, evaluate_examples, tried)
        failures |= dict(figures[name]["failures"])
        _print_figures(name, figures[name])
        if dataset is not None or given is not None:
            _print_classes(figures[name]["classes"])
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


def _print_classes(classes: dict[str, dict[str, Any]]) -> None:
    """A table of the classes; of many, those with the most objects."""
    columns = ("objects", "AP", "AP50", "recall", "false masks", "threshold")
    table = Table("class", *columns, title="classes; recall and false masks at an IoU of 0.5")
    shown = set(sorted(classes, key=lambda name: -classes[name]["objects"])[:CLASSES_SHOWN])
    for name in (name for name in classes if name in shown):
        own = classes[name]
        numbers = (f"{own[k]:.3f}" for k in ("AP", "AP50", "recall"))
        threshold = "none" if own["threshold"] is None else f"{own['threshold']:g}"
        row = (str(own["objects"]), *numbers, str(own["false_masks"]), threshold)
        table.add_row(Text(name), *row)
    out.print(table)
    if len(classes) > len(shown):
        rest = len(classes) - len(shown)
        out.print(f"and {rest} classes with fewer objects: --output FILE has all")


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
