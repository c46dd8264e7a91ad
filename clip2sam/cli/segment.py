"""The command `segment`."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from clip2sam.cli.console import err, image_bar, out
from clip2sam.cli.groups import LabelOptions, MapOptions, MaskOptions, ModelOptions, listed, spread
from clip2sam.cli.options import (
    Caption,
    Images,
    Method,
    Polygons,
    Tolerance,
    output_option,
    places,
    text_option,
)
from clip2sam.cli.presets import print_unknown
from clip2sam.config import PROMPTS
from clip2sam.data.files import check_writable
from clip2sam.errors import ConfigError

if TYPE_CHECKING:
    from clip2sam.data.records import ImageRecord
    from clip2sam.result import Result

OVERLAYS = ("found", "all", "none")
"""`clip2sam.visualize.overlays.Overlays`, which is slow to import."""


@spread
def segment(
    images: Images,
    *,
    labels: LabelOptions,
    caption: Caption = None,
    method: Method = None,
    maps: MapOptions,
    masks: MaskOptions,
    models: ModelOptions,
    output: Annotated[Path, output_option("Folder for annotations.json and overlays/.")] = Path(
        "out"
    ),
    overlays: Annotated[str, text_option("Labels to draw: found, all or none.", "WHICH")] = "found",
    polygons: Polygons = False,
    tolerance: Tolerance = None,
) -> None:
    """Segment labels in images: a mask for each object, in annotations.json (COCO, scores).

    In overlays/ all masks of an image are drawn in one (IMAGE.00-all.png), and each label found by
    itself. With --one-mask a label gets one mask for all of it.

    Example: clip2sam segment street.jpg --label person --label "traffic light" --output out/
    """
    from clip2sam.coco.outlines import tolerance_of
    from clip2sam.data.urls import check_place

    if overlays not in OVERLAYS:
        raise ConfigError(f"--overlays must be found, all or none, but got {overlays!r}")
    pixels = tolerance_of(tolerance, polygons=polygons)
    label_set = labels.label_set(caption)
    models = models.chosen(method=method)
    config = models.config(maps, masks, method=method)
    source = listed(images, offline=models.offline)
    check_place(source, output)
    check_writable(output, folder=True)
    unknown = models.check_known(label_set.classes, labels, method=method)
    segmenter = models.load(config, method=method)

    from clip2sam.labelling.segment import segment_images
    from clip2sam.tiles import cost

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
                preset=models.name,
                on_image=on_image,
            )
        except KeyboardInterrupt:
            err.print(
                Text(f"interrupted; {output / 'annotations.json'} has the images done so far")
            )
            raise typer.Exit(130) from None
    failed = sum(record.state == "failed" for record in records)
    found = sum(len(record.annotations) for record in records)
    counts = (
        f"{len(records)} images, {len(label_set.wanted)} labels, {found} masks "
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
