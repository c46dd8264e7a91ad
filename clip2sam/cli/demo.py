"""The command `demo`."""

from pathlib import Path
from typing import Annotated

from rich.table import Table
from rich.text import Text

from clip2sam.cli.console import out
from clip2sam.cli.groups import ModelOptions
from clip2sam.cli.options import Device, output_option
from clip2sam.data.files import check_writable


def demo(
    output: Annotated[Path, output_option("Folder for the images and the drawings.")] = Path(
        "demo-out"
    ),
    device: Device = "auto",
) -> None:
    """Draw images of shapes, segment them with the preset tiny, compare with the drawn truth."""
    check_writable(output, folder=True)
    models = ModelOptions("tiny", device=device).chosen()
    segmenter = models.load(models.config())

    from clip2sam.tiny.demo import run_demo

    report = run_demo(segmenter, output)
    columns = ("image", "label", "drawn", "masks", "found", "IoU", "presence")
    table = Table(*columns, title="clip2sam demo: preset tiny, objects drawn and found")
    for row in report.rows:
        right = row.drawn == row.masks == len(row.ious)
        table.add_row(
            row.image,
            Text(row.label),
            str(row.drawn),
            Text(str(row.masks), style="" if right else "red"),
            str(len(row.ious)),
            " ".join(f"{iou:.2f}" for iou in row.ious),
            f"{row.presence:.3f}",
        )
    out.print(table)
    out.print(report.summary())
    for path in report.written:
        out.print(Text(f"wrote {path}"))
