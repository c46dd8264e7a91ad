"""The command `dense`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from clip2sam.cli.console import err, image_bar, out
from clip2sam.cli.groups import LabelOptions, MapOptions, ModelOptions, listed, spread
from clip2sam.cli.options import Caption, Images, Method, flag, number_option, output_option
from clip2sam.cli.presets import print_unknown
from clip2sam.data.files import check_writable, write_atomically

if TYPE_CHECKING:
    from clip2sam.data.labels import LabelSet
    from clip2sam.dense import LabelMap
    from clip2sam.labelling.each import Outcome


@spread
def dense(
    images: Images,
    *,
    labels: LabelOptions,
    caption: Caption = None,
    method: Method = None,
    maps: MapOptions,
    models: ModelOptions,
    output: Annotated[Path, output_option("Folder for the label maps and classes.json.")] = Path(
        "out"
    ),
    threshold: Annotated[
        float | None,
        number_option(
            "Raw score below which a pixel is background; else 0.9 of the presence threshold."
        ),
    ] = None,
    no_refine: Annotated[
        bool, flag("--no-refine", "Leave SAM's masks out: CLIP's maps alone.")
    ] = False,
) -> None:
    """Give every pixel one label or background: a PNG of class numbers for each image.

    NAME.png, where NAME is the image's file name without suffix, has 0 for background, 1 for the
    first label and so on; classes.json has their names and colours.

    Example: clip2sam dense photos/ --label road --label car --label sky --output maps/
    """
    from clip2sam.data.sources import check_output

    label_set = labels.label_set(caption)
    models = models.chosen(method=method)
    config = models.config(maps, method=method)
    source = listed(images, offline=models.offline)
    check_output(source, output)
    check_writable(output, folder=True)
    unknown = models.check_known(label_set.classes, labels, method=method)
    segmenter = models.load(config, method=method)

    from clip2sam.dense import DenseSettings, label_pixels
    from clip2sam.export.names import FileNames
    from clip2sam.labelling.each import each_image

    chosen = DenseSettings(threshold=threshold, refine=not no_refine)
    _write_classes(output / "classes.json", label_set)
    outcomes = each_image(
        source,
        lambda image, *_: label_pixels(segmenter, segmenter.encode([image]), label_set, chosen)[0],
    )
    names, count, failed = FileNames(), 0, 0
    try:
        with image_bar() as bar:
            task = bar.add_task("labelling pixels", total=len(source.keys))
            for outcome in outcomes:
                if outcome.value is not None:
                    path = names.path(output, outcome.key, ".png")
                    write_atomically(path, outcome.value.to_png())
                _print_image(outcome)
                count, failed = count + 1, failed + (outcome.value is None)
                bar.advance(task)
    except KeyboardInterrupt:
        err.print(Text(f"interrupted; {output} has the images done so far"))
        raise typer.Exit(130) from None
    finally:
        names.write_list(output)
    counts = f"{count} images, {len(label_set.wanted)} labels, {failed} failed"
    out.print(Text(f"{counts}; wrote {count - failed} label maps into {output}"))
    print_unknown(unknown)
    raise typer.Exit(1 if failed else 0)


def _write_classes(path: Path, labels: "LabelSet") -> None:
    """Names and colours of all class numbers."""
    from clip2sam.export.png import class_colours

    names = ("background", *(c.name for c in labels.wanted))
    rows = [
        {"id": i, "name": name, "color": colour}
        for i, (name, colour) in enumerate(
            zip(names, class_colours(len(names) - 1).tolist(), strict=True)
        )
    ]
    write_atomically(path, json.dumps(rows, indent=1, ensure_ascii=False).encode() + b"\n")


def _print_image(outcome: "Outcome[LabelMap]") -> None:
    """The labels that an image has, with their share of its pixels, the largest first."""
    import numpy as np

    from clip2sam.data.images import printable

    out.print(Text(printable(outcome.key), style="bold"))
    if outcome.value is None:
        err.print(Text(f"  failed: {outcome.reason}", style="red"))
        return
    names = ("background", *outcome.value.class_names)
    pixels = np.bincount(outcome.value.numbers.ravel(), minlength=len(names))
    for i in np.argsort(-pixels, kind="stable"):
        if pixels[i]:
            out.print(Text(f"  {names[i]}: {pixels[i] / pixels.sum():.1%} of the pixels"))
