"""The command `demo`."""

from pathlib import Path
from typing import Annotated

from rich.table import Table
from rich.text import Text

from clip2sam.cli.console import out
from clip2sam.cli.options import Device, path_option


def demo(
    output: Annotated[Path, path_option("Folder for the images and the drawings.")] = Path(
        "demo-out"
    ),
    device: Device = "auto",
) -> None:
    """Draw images of shapes, segment them with the preset tiny, compare with the drawn truth."""
    from clip2sam.models.loading import load
    from clip2sam.tiny.demo import run_demo

    report = run_demo(load("tiny", device=device), output)
    columns = ("image", "label", "drawn", "found", "presence", "IoU")
    table = Table(*columns, title="clip2sam demo: preset tiny")
    for row in report.rows:
        style = "" if row.drawn == row.found else "red"
        table.add_row(
            row.image,
            Text(row.label),
            "yes" if row.drawn else "no",
            Text("yes" if row.found else "no", style=style),
            f"{row.presence:.3f}",
            "" if row.iou is None else f"{row.iou:.3f}",
        )
    out.print(table)
    out.print(report.summary())
    for path in report.written:
        out.print(Text(f"wrote {path}"))
