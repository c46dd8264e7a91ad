"""The commands `label` and `export`."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from clip2sam.cli import completion
from clip2sam.cli.console import err, image_bar, out
from clip2sam.cli.groups import LabelOptions, MapOptions, MaskOptions, ModelOptions, spread
from clip2sam.cli.options import (
    SETTINGS,
    Caption,
    Compile,
    MaxPixels,
    Method,
    MinShare,
    Root,
    Source,
    Tolerance,
    as_path,
    count_option,
    flag,
    number_option,
    output_option,
    path_option,
    text_option,
)
from clip2sam.cli.ray import RayOptions, label_by_ray
from clip2sam.data.files import check_writable
from clip2sam.data.opening import check_found
from clip2sam.errors import ConfigError

if TYPE_CHECKING:
    from clip2sam.pipeline import Segmenter

CHANGED = ("again", "refuse")
"""`clip2sam.labelling.changes.Changed`, which is slow to import."""

FOLDER_FORMATS = ("yolo", "labelme", "voc", "cityscapes", "png")
"""The formats of `export` that write a folder."""


Formats = Annotated[
    list[str] | None,
    text_option(
        "What is written at the end: coco, parquet, jsonl; repeatable. By default coco.",
        "NAME",
        completed=completion.run_formats,
    ),
]


def _keep_above(text: str | float) -> str | float:
    """The value of --keep-above: auto, off, or a finite number."""
    if text in ("auto", "off"):
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(f"expected a finite number, auto or off, got {text!r:.80}")
    return value


@spread
def label(
    source: Source,
    *,
    labels: LabelOptions,
    caption: Caption = None,
    method: Method = None,
    maps: MapOptions,
    masks: MaskOptions,
    models: ModelOptions,
    compiled: Compile = False,
    output: Annotated[Path, output_option("The run's folder: started or continued.")] = Path("run"),
    format: Formats = None,
    root: Root = None,
    shard: Annotated[
        str | None,
        text_option(
            "Label the N-th of OF equal parts only, then 'merge'; auto: by Slurm's array or "
            "torchrun.",
            "N/OF|auto",
        ),
    ] = None,
    retry_failed: Annotated[bool, flag("--retry-failed", "Do failed images again.")] = False,
    max_failures: Annotated[
        int | None, count_option("Stop after more failed images than this.", min=0)
    ] = None,
    keep_above: Annotated[
        Any,
        typer.Option(
            help="Also keep masks below their threshold for exports: down to this presence score; "
            "auto: to 0.9 of the threshold; off.",
            metavar="NUMBER|auto|off",
            parser=_keep_above,
        ),
    ] = "auto",
    changed: Annotated[
        str,
        text_option("Images that changed, came or went since: again or refuse.", "WHAT"),
    ] = "again",
    moved: Annotated[
        bool, flag("--moved", "The run's images are at another place now: SOURCE.")
    ] = False,
    hash_images: Annotated[
        bool, flag("--hash", "Tell changed images also by their content (SHA-256).")
    ] = False,
    batch_size: Annotated[
        int, count_option("Images between the model and the journal.", min=1, max=4096)
    ] = 8,
    readers: Annotated[
        int | None,
        count_option("Processes that decode images, for each model.", min=1, max=256),
    ] = None,
    max_pixels: MaxPixels = 100_000_000,
    timeout: Annotated[
        float, number_option("Seconds that decoding one image may take.", above=0.0, most=86400.0)
    ] = 60.0,
    ray: RayOptions,
    quiet: Annotated[bool, flag("--quiet", "Print failures and errors only.")] = False,
    json: Annotated[
        bool, flag("--json", "Print a line of JSON for each image, then the summary.")
    ] = False,
) -> None:
    """Label a dataset: start, or continue. Every image is in a journal as soon as it is done.

    Each object of a label gets a mask; with --one-mask a label gets one for all of it.

    Example: clip2sam label images/ --labels labels.yaml --output run/
    """
    if changed not in CHANGED:
        raise ConfigError(f"--changed must be again or refuse, but got {changed!r}")
    from clip2sam.labelling.outputs import FILES, checked_formats, of_shard
    from clip2sam.labelling.plan import as_shard, shard_folder

    formats = checked_formats(format or ("coco",))
    part = None if shard is None else as_shard(shard)
    readers = ray.readers(readers, shard=shard)
    label_set = labels.label_set(caption)
    models = models.chosen(method=method, run=output)
    config = models.config(maps, masks, method=method)
    check_found(source, root, offline=models.offline)
    check_writable(output, folder=True)
    models.check_known(label_set.classes, labels, method=method)

    from clip2sam.cli.progress import Display
    from clip2sam.labelling.run import label_dataset

    def load_models() -> "Segmenter":
        from clip2sam.tiles import cost

        here = models if shard != "auto" else models.on_own_gpu()
        segmenter = here.load(config, method=method, compiled=compiled)
        if config.tile != "off" and not quiet and not json:
            err.print(Text(cost(config, segmenter.view_side)))
        return segmenter

    display = Display(out, err, quiet=quiet, as_json=json)
    settings: dict[str, Any] = {
        "preset": models.name,
        "formats": formats,
        "root": root,
        "retry_failed": retry_failed,
        "changed": changed,
        "moved": moved,
        "hash_images": hash_images,
        "max_failures": max_failures,
        "keep_above": None if keep_above == "off" else keep_above,
        "batch_size": batch_size,
        "readers": readers,
        "max_pixels": max_pixels,
        "timeout": timeout,
    }
    try:
        with display:
            if ray.is_asked:
                load = partial(models.anywhere().load, config, method=method, compiled=compiled)
                summary = label_by_ray(ray, source, label_set, output, load, display, settings)
            else:
                summary = label_dataset(
                    source,
                    label_set,
                    output,
                    segmenter=load_models,
                    shard=part,
                    on_start=display.start,
                    on_image=display.image,
                    **settings,
                )
    except KeyboardInterrupt:
        err.print(Text(f"interrupted; {output} has what was done: the same command continues"))
        raise typer.Exit(130) from None
    display.finish(summary)
    if not quiet and not json:
        folder = output if part is None else shard_folder(output, part)
        written = [FILES[name][0] for name in (formats if part is None else of_shard(formats))]
        if written:
            out.print(Text(f"wrote {', '.join(str(folder / name) for name in written)}"))
        if part is not None:
            out.print(Text(f"shard {part} is labelled; when all are: clip2sam merge {output}"))
    raise typer.Exit(1 if summary.failed else 0)


def merge(
    run: Annotated[
        Path,
        typer.Argument(
            help="The output folder that all shards were labelled into.",
            show_default=False,
            parser=as_path,
        ),
    ],
    *,
    format: Formats = None,
    quiet: Annotated[bool, flag("--quiet", "Print failures and errors only.")] = False,
    json: Annotated[bool, flag("--json", "Print the summary as a line of JSON.")] = False,
) -> None:
    """Publish a run whose shards are all labelled, as if it had been one. Needs no model.

    Example: clip2sam merge run/
    """
    from clip2sam.cli.progress import print_summary
    from clip2sam.labelling.content import begun_run
    from clip2sam.labelling.merge import merge_run
    from clip2sam.labelling.outputs import FILES, checked_formats

    formats = checked_formats(format or ("coco",))
    with image_bar() as bar:
        task = bar.add_task("merging", total=None, visible=not (quiet or json))
        summary = merge_run(
            run,
            formats=formats,
            on_image=lambda done, of: bar.update(task, completed=done, total=of),
        )
    shard = begun_run(run)
    assert shard is not None  # all have begun
    print_summary(out, summary, shard.classes, quiet=quiet, as_json=json, merged=True)
    if not quiet and not json:
        out.print(Text(f"wrote {', '.join(str(run / FILES[name][0]) for name in formats)}"))
    raise typer.Exit(1 if summary.failed else 0)


def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="The output folder of 'clip2sam label'.",
            show_default=False,
            parser=as_path,
        ),
    ],
    output: Annotated[
        Path,
        output_option("A folder (yolo, labelme, voc, cityscapes, png) or a file (the others)."),
    ],
    format: Annotated[
        str,
        text_option(
            f"{', '.join(completion.FORMATS[:-1])} or {completion.FORMATS[-1]}.",
            "NAME",
            completed=completion.formats,
        ),
    ] = "coco",
    presence_threshold: Annotated[
        float | None,
        number_option(
            "Presence score that every class must reach; else the run's own.",
            "--presence-threshold",
            "--conf",
            panel=SETTINGS,
        ),
    ] = None,
    class_threshold: Annotated[
        list[str] | None, text_option("The same for one class; repeatable.", "NAME=SCORE", SETTINGS)
    ] = None,
    only: Annotated[
        list[str] | None,
        text_option("A class to keep; repeat it for more.", "NAME", SETTINGS, "--class"),
    ] = None,
    min_score: Annotated[
        float, number_option("Least score of a mask, 0 to 1.", panel=SETTINGS)
    ] = 0.0,
    min_share: MinShare = None,
    max_objects: Annotated[
        int | None,
        count_option(
            "At most so many masks of a label in an image; else all.",
            panel=SETTINGS,
            min=1,
            max=64,
        ),
    ] = None,
    min_area: Annotated[int, count_option("Least area of a mask in pixels.", panel=SETTINGS)] = 0,
    duplicates: Annotated[
        float | None,
        number_option(
            "Of masks of one class with a larger IoU than this, keep the best.", panel=SETTINGS
        ),
    ] = None,
    overlap: Annotated[
        str,
        text_option(
            "Pixels in several classes: all keep them (keep), the best score, the small mask.",
            "WHAT",
            SETTINGS,
        ),
    ] = "keep",
    polygons: Annotated[
        bool, flag("--polygons", "coco, cvat: write polygons instead of RLE.")
    ] = False,
    tolerance: Tolerance = None,
    merge: Annotated[
        Path | None, path_option("coco: add to this file's rows, which stay as they are.")
    ] = None,
    image_prefix: Annotated[
        str | None,
        text_option(
            "labelstudio: what stands in front of an image's name; else /data/local-files/?d=.",
            "TEXT",
        ),
    ] = None,
    images: Annotated[
        str | None,
        text_option(
            "yolo, voc, labelme: copy, link (hard links) or none; else copy for yolo, none for the "
            "others.",
            "copy|link|none",
        ),
    ] = None,
    val_share: Annotated[
        float | None,
        number_option("yolo, voc: share of the images for validation, chosen by name; else 0.1."),
    ] = None,
) -> None:
    """Decide a run's masks again, also by other thresholds, and write them. Needs no model.

    Example: clip2sam export run/ --presence-threshold 0.2 --output annotations.json
    """
    from clip2sam.labelling.decide import Decision
    from clip2sam.labelling.export import export_run

    decision = Decision(
        presence_threshold,
        dict(_name_and_score(text) for text in class_threshold or ()),
        tuple(only) if only else None,
        min_score,
        min_share,
        max_objects,
        min_area,
        duplicates,
        overlap,
    )
    check_writable(output, folder=format in FOLDER_FORMATS)
    with image_bar() as bar:
        task = bar.add_task("exporting", total=None)
        summary = export_run(
            run,
            output,
            format,
            decision,
            polygons=polygons,
            tolerance=tolerance,
            merge=merge,
            image_prefix=image_prefix,
            images=images,
            val_share=val_share,
            on_image=lambda done, of: bar.update(task, completed=done, total=of),
        )
    written, masks = summary.done + summary.empty, sum(c.masks for c in summary.classes)
    counts = f"{written} of {summary.listed} images, {masks} masks, {summary.failed} failed"
    if summary.reviewed:
        counts += f", {summary.reviewed} reviewed ({summary.rejected} of them rejected)"
    counts += ", to "
    out.print(Text(counts) + Text(str(output), style="bold"))
    if summary.polygons is not None:
        out.print(str(summary.polygons))


def _name_and_score(text: str) -> tuple[str, float]:
    name, _, written = text.rpartition("=")
    try:
        score = float(written)
    except ValueError as error:
        raise ConfigError(
            f"--class-threshold: expected NAME=SCORE, got {text!r}; write it as in cat=0.2"
        ) from error
    if not math.isfinite(score):
        raise ConfigError(f"--class-threshold: expected a finite number, got {text!r}")
    return name, score
