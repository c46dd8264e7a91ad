"""The commands `label` and `export`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.text import Text

from clip2sam.cli import completion
from clip2sam.cli.console import err, out
from clip2sam.cli.options import (
    AllowUnknown,
    Caption,
    ClipCheckpoint,
    Compile,
    Device,
    Distractor,
    Grid,
    Label,
    Labels,
    MaxObjects,
    Method,
    MinShare,
    Offline,
    OneMask,
    PlainSimilarity,
    PointThreshold,
    Polygons,
    Precision,
    PresenceThreshold,
    Preset,
    Published,
    Resolution,
    Root,
    SamCheckpoint,
    Source,
    Tile,
    TileOverlap,
    Tolerance,
    WeightsDir,
    as_path,
    given_labels,
    number_option,
    path_option,
    settings,
)
from clip2sam.cli.presets import check_known, chosen_preset
from clip2sam.errors import ConfigError

if TYPE_CHECKING:
    from clip2sam.pipeline import Segmenter


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


def label(
    source: Source,
    label: Label = None,
    labels: Labels = None,
    caption: Caption = None,
    distractor: Distractor = None,
    output: Annotated[Path, path_option("The run's folder: started or continued.")] = Path("run"),
    root: Root = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do failed images again.")
    ] = False,
    max_failures: Annotated[
        int | None, typer.Option(help="Stop after more failed images than this.", min=0)
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
        str, typer.Option(help="Images that changed, came or went since: again or refuse.")
    ] = "again",
    moved: Annotated[
        bool, typer.Option("--moved", help="The run's images are at another place now: SOURCE.")
    ] = False,
    hash_images: Annotated[
        bool,
        typer.Option("--hash", help="Tell changed images also by their content (SHA-256)."),
    ] = False,
    batch_size: Annotated[
        int, typer.Option(help="Images between the model and the journal.", min=1, max=4096)
    ] = 8,
    readers: Annotated[
        int | None, typer.Option(help="Processes that decode images.", min=1, max=256)
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(help="Images with more pixels, by their header, fail.", min=1)
    ] = 100_000_000,
    timeout: Annotated[
        float, number_option("Seconds that decoding one image may take.", above=0.0, most=86400.0)
    ] = 60.0,
    preset: Preset = None,
    allow_unknown: AllowUnknown = False,
    published: Published = False,
    method: Method = None,
    no_feature_surgery: PlainSimilarity = False,
    presence_threshold: PresenceThreshold = None,
    point_threshold: PointThreshold = None,
    grid: Grid = None,
    one_mask: OneMask = False,
    max_objects: MaxObjects = None,
    min_share: MinShare = None,
    tile: Tile = None,
    tile_overlap: TileOverlap = None,
    resolution: Resolution = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    compiled: Compile = False,
    clip_checkpoint: ClipCheckpoint = None,
    sam_checkpoint: SamCheckpoint = None,
    weights_dir: WeightsDir = None,
    offline: Offline = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print failures and errors only.")] = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print a line of JSON for each image, then the summary."),
    ] = False,
) -> None:
    """Label a dataset: start, or continue. Every image is in a journal as soon as it is done.

    Each object of a label gets a mask; with --one-mask a label gets one for all of it.

    Example: clip2sam label images/ --labels labels.yaml --output run/
    """
    from clip2sam.cli.progress import Display
    from clip2sam.data.labels import as_label_set
    from clip2sam.labelling.changes import Changed
    from clip2sam.labelling.run import label_dataset

    if changed not in get_args(Changed):
        raise ConfigError(f"--changed must be again or refuse, but got {changed!r}")
    chosen = chosen_preset(preset, weights_dir=weights_dir, run=output)
    label_set = as_label_set(given_labels(label, labels, caption), distractors=distractor or ())
    config = settings(
        chosen,
        published=published,
        method=method,
        no_feature_surgery=no_feature_surgery,
        presence_threshold=presence_threshold,
        point_threshold=point_threshold,
        grid=grid,
        one_mask=one_mask,
        max_objects=max_objects,
        min_share=min_share,
        tile=tile,
        tile_overlap=tile_overlap,
    )
    check_known(chosen, label_set.classes, method=method, allow=allow_unknown)

    def load_models() -> "Segmenter":
        from clip2sam.models.loading import load
        from clip2sam.tiles import cost

        segmenter = load(
            chosen,
            config=config,
            method=method,
            device=device,
            precision=precision,
            compiled=compiled,
            resolution=resolution,
            clip_checkpoint=clip_checkpoint,
            sam_checkpoint=sam_checkpoint,
            weights_dir=weights_dir,
            offline=offline,
        )
        if config.tile != "off" and not quiet and not json:
            err.print(Text(cost(config, segmenter.view_side)))
        return segmenter

    display = Display(out, err, quiet=quiet, as_json=json)
    try:
        with display:
            summary = label_dataset(
                source,
                label_set,
                output,
                segmenter=load_models,
                preset=chosen,
                root=root,
                retry_failed=retry_failed,
                changed=changed,  # type: ignore[arg-type]  # checked above
                moved=moved,
                hash_images=hash_images,
                max_failures=max_failures,
                keep_above=None if keep_above == "off" else keep_above,
                batch_size=batch_size,
                readers=readers,
                max_pixels=max_pixels,
                timeout=timeout,
                on_start=display.start,
                on_image=display.image,
            )
    except KeyboardInterrupt:
        err.print(Text(f"interrupted; {output} has what was done: the same command continues"))
        raise typer.Exit(130) from None
    display.finish(summary)
    if not quiet and not json:
        out.print(Text(f"wrote {output / 'annotations.json'}"))
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
        path_option("A file (coco, results, labelstudio) or a folder (yolo, png)."),
    ],
    format: Annotated[
        str,
        typer.Option(
            help="coco, results, yolo, labelstudio or png.", autocompletion=completion.formats
        ),
    ] = "coco",
    presence_threshold: Annotated[
        float | None,
        number_option("Presence score that every class must reach; else the run's own."),
    ] = None,
    class_threshold: Annotated[
        list[str] | None,
        typer.Option(help="NAME=SCORE: the same for one class; repeatable.", show_default=False),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--class", help="A class to keep; repeat it for more.", show_default=False),
    ] = None,
    min_score: Annotated[float, number_option("Least score of a mask, 0 to 1.")] = 0.0,
    min_share: MinShare = None,
    max_objects: MaxObjects = None,
    min_area: Annotated[int, typer.Option(help="Least area of a mask in pixels.")] = 0,
    duplicates: Annotated[
        float | None,
        number_option("Of masks of one class with a larger IoU than this, keep the best."),
    ] = None,
    overlap: Annotated[
        str,
        typer.Option(
            help="Pixels in several classes: all keep them (keep), the best score, the small mask."
        ),
    ] = "keep",
    polygons: Polygons = False,
    tolerance: Tolerance = None,
    merge: Annotated[
        Path | None, path_option("coco: add to this file's rows, which stay as they are.")
    ] = None,
    image_prefix: Annotated[
        str | None,
        typer.Option(
            help="labelstudio: what stands in front of an image's name; by default "
            "/data/local-files/?d=."
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="yolo: copy, link (hard links) or none; else copy.", metavar="copy|link|none"
        ),
    ] = None,
    val_share: Annotated[
        float | None,
        number_option("yolo: share of the images for validation, chosen by name; else 0.1."),
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
    )
    written, masks = summary.done + summary.empty, sum(c.masks for c in summary.classes)
    counts = f"{written} of {summary.listed} images, {masks} masks, {summary.failed} failed, to "
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
