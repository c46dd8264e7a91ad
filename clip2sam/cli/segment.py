"""The command `segment`."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.text import Text

from clip2sam.cli.console import err, image_bar, out
from clip2sam.cli.options import (
    AllowUnknown,
    Caption,
    ClipCheckpoint,
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
    SamCheckpoint,
    Tile,
    TileOverlap,
    Tolerance,
    WeightsDir,
    as_source,
    given_labels,
    path_option,
    places,
    settings,
)
from clip2sam.cli.presets import check_known, chosen_preset, print_unknown
from clip2sam.errors import ConfigError

if TYPE_CHECKING:
    from clip2sam.data.records import ImageRecord
    from clip2sam.result import Result


def segment(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders of images, quoted globs, addresses (https://...).",
            show_default=False,
            parser=as_source,
        ),
    ],
    label: Label = None,
    labels: Labels = None,
    caption: Caption = None,
    distractor: Distractor = None,
    output: Annotated[Path, path_option("Folder for annotations.json and overlays/.")] = Path(
        "out"
    ),
    overlays: Annotated[str, typer.Option(help="Labels to draw: found, all or none.")] = "found",
    polygons: Polygons = False,
    tolerance: Tolerance = None,
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
    clip_checkpoint: ClipCheckpoint = None,
    sam_checkpoint: SamCheckpoint = None,
    weights_dir: WeightsDir = None,
    offline: Offline = False,
) -> None:
    """Segment labels in images: a mask for each object, in annotations.json (COCO, scores).

    In overlays/ all masks of an image are drawn in one (IMAGE.00-all.png), and each label found by
    itself. With --one-mask a label gets one mask for all of it.

    Example: clip2sam segment street.jpg --label person --label "traffic light" --output out/
    """
    from clip2sam.coco.outlines import tolerance_of
    from clip2sam.config import PROMPTS
    from clip2sam.data.images import printable
    from clip2sam.data.labels import as_label_set
    from clip2sam.data.urls import find_images
    from clip2sam.labelling.segment import check_place, segment_images, without_own
    from clip2sam.models.loading import load
    from clip2sam.tiles import cost
    from clip2sam.visualize.overlays import Overlays

    if overlays not in get_args(Overlays):
        raise ConfigError(f"--overlays must be found, all or none, but got {overlays!r}")
    pixels = tolerance_of(tolerance, polygons=polygons)
    preset = chosen_preset(preset, weights_dir=weights_dir)
    # mistakes are found before the models are loaded
    label_set = as_label_set(given_labels(label, labels, caption), distractors=distractor or ())
    config = settings(
        preset,
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
    source, drawn = without_own(find_images(images, offline=offline))
    for folder, count in drawn.items():
        err.print(Text(f"left out {count} images in {printable(folder)}: clip2sam has drawn them"))
    check_place(source, output)
    unknown = check_known(preset, label_set.classes, method=method, allow=allow_unknown)
    segmenter = load(
        preset,
        config=config,
        method=method,
        device=device,
        precision=precision,
        resolution=resolution,
        clip_checkpoint=clip_checkpoint,
        sam_checkpoint=sam_checkpoint,
        weights_dir=weights_dir,
        offline=offline,
    )
    if config.tile != "off":
        err.print(Text(cost(config, segmenter.view_side)))
    drawings = 0
    with image_bar() as progress:
        task = progress.add_task("segmenting", total=len(source.keys))

        def on_image(
            record: "ImageRecord", result: "Result | None", drawn: tuple[Path, ...]
        ) -> None:
            nonlocal drawings
            drawings += len(drawn)
            _print_image(record, result)
            progress.advance(task)

        try:
            records = segment_images(
                segmenter,
                source,
                label_set,
                output,
                overlays=overlays,  # type: ignore[arg-type]  # checked above
                polygons=polygons,
                tolerance=pixels,
                preset=preset,
                on_image=on_image,
            )
        except KeyboardInterrupt:
            err.print(
                Text(f"interrupted; {output / 'annotations.json'} has the images done so far")
            )
            raise typer.Exit(130) from None
    failed = sum(record.state == "failed" for record in records)
    masks = sum(len(record.annotations) for record in records)
    counts = (
        f"{len(records)} images, {len(label_set.wanted)} labels, {masks} masks "
        f"({PROMPTS[config.prompts]}), {failed} failed"
    )
    where = f" and {drawings} drawings in {output / 'overlays'}" if drawings else ""
    out.print(Text(f"{counts}; wrote {output / 'annotations.json'}{where}"))
    print_unknown(unknown)
    raise typer.Exit(1 if failed else 0)


def _print_image(record: "ImageRecord", result: "Result | None") -> None:
    """What was found in an image, object by object, then what is absent and why."""
    from clip2sam.data.images import printable
    from clip2sam.data.labels import numbers

    out.print(Text(printable(record.file_name), style="bold"))
    if record.state == "failed":
        err.print(Text(f"  failed: {record.reason}", style="red"))
    classes = () if result is None else result.label_set.wanted
    named = {c.name: f"{c.name}{places(c.spans)}" for c in classes}
    which = numbers([a.label for a in record.annotations])
    for annotation, number in zip(record.annotations, which, strict=True):
        share = f", share {annotation.share:.2f}" if number else ""
        name = f"{named[annotation.label]} {number}".rstrip()
        out.print(Text(f"  {name}: mask, score {annotation.score:.3f}{share}"))
    weak = Counter(a.label for a in (() if result is None else result.everything))
    weak.subtract(a.label for a in record.annotations)
    for label, count in weak.items():
        if count:
            out.print(
                Text(f"  {named[label]}: {count} weaker left out, see --min-share", style="dim")
            )
    for absent in () if result is None else result.absent:
        out.print(Text(f"  {named[absent.label]}: absent, {absent.reason}", style="dim"))
