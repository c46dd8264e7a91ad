"""The command `classify`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from clip2sam.cli.console import err, image_bar, out
from clip2sam.cli.groups import LabelOptions, ModelOptions, listed, spread
from clip2sam.cli.options import Caption, Images, count_option, output_option
from clip2sam.cli.presets import print_unknown
from clip2sam.data.files import check_writable

if TYPE_CHECKING:
    from clip2sam.labelling.each import Outcome
    from clip2sam.recognition import Recognition


@spread
def classify(
    images: Images,
    *,
    labels: LabelOptions,
    caption: Caption = None,
    models: ModelOptions,
    top: Annotated[
        int | None, count_option("Print so many labels an image; else all.", min=1)
    ] = None,
    output: Annotated[Path | None, output_option("Write all figures into this JSON file.")] = None,
) -> None:
    """Say what is in images as a whole, by CLIP alone: no masks, and no SAM at work.

    The probabilities say which one label an image is and sum to 1 (together with the
    distractors'). The scores say which labels are in it, for images with several things: compare
    those of a label between images.

    Example: clip2sam classify photos/ --label cat --label dog --output scores.json
    """
    from clip2sam.data.sources import check_output

    label_set = labels.label_set(caption)
    models = models.chosen()
    config = models.config()
    source = listed(images, offline=models.offline)
    if output is not None:
        check_output(source, output)
        check_writable(output)
    unknown = models.check_known(label_set.classes, labels)
    segmenter = models.load(config)

    from clip2sam.labelling.each import each_image
    from clip2sam.recognition import recognise

    outcomes = each_image(
        source, lambda image, *_: recognise(segmenter, segmenter.encode([image]), label_set)[0]
    )
    rows: list[dict[str, Any]] = []
    try:
        with image_bar() as bar:
            task = bar.add_task("classifying", total=len(source.keys))
            for outcome in outcomes:
                rows.append(_as_row(outcome))
                _print_image(outcome, rows[-1], top)
                bar.advance(task)
    except KeyboardInterrupt:
        where = f"; {output} has the images done so far" if output else ""
        err.print(Text(f"interrupted{where}"))
        raise typer.Exit(130) from None
    finally:
        if output is not None:
            _write(output, rows)
    failed = sum("failed" in row for row in rows)
    where = f"; wrote {output}" if output else ""
    out.print(Text(f"{len(rows)} images, {len(label_set.wanted)} labels, {failed} failed{where}"))
    print_unknown(unknown)
    raise typer.Exit(1 if failed else 0)


def _as_row(outcome: "Outcome[Recognition]") -> dict[str, Any]:
    """An image in the file: its labels, the most probable first, or why it failed."""
    from clip2sam.data.records import as_float32

    row: dict[str, Any] = {"image_id": outcome.image_id, "file_name": outcome.key}
    found = outcome.value
    if found is None:
        return {**row, "failed": outcome.reason}
    columns = (found.probabilities, found.scores, found.cosines)
    figures = [
        dict(zip(("probability", "score", "cosine"), map(as_float32, numbers), strict=True))
        for numbers in zip(*columns, strict=True)
    ]
    labels = [{"label": name, **own} for name, own in zip(found.class_names, figures, strict=True)]
    return {**row, "labels": sorted(labels, key=lambda one: -float(one["probability"]))}


def _print_image(outcome: "Outcome[Recognition]", row: dict[str, Any], top: int | None) -> None:
    from clip2sam.data.images import printable

    out.print(Text(printable(outcome.key), style="bold"))
    if "failed" in row:
        err.print(Text(f"  failed: {row['failed']}", style="red"))
        return
    for one in row["labels"][:top]:
        figures = f"probability {one['probability']:.3f}, score {one['score']:.3f}"
        out.print(Text(f"  {one['label']}: {figures}"))


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    from clip2sam.data.files import write_atomically

    text = json.dumps({"images": rows}, indent=1)  # file names may have bytes that are not UTF-8
    write_atomically(output, text.encode() + b"\n")
