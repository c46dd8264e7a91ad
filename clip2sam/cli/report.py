"""The command `report`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from clip2sam.cli.console import image_bar, out
from clip2sam.cli.options import as_path, output_option
from clip2sam.data.files import check_writable


def report(
    run: Annotated[
        Path,
        typer.Argument(
            help="The output folder of 'clip2sam label', finished or not.",
            show_default=False,
            parser=as_path,
        ),
    ],
    *,
    output: Annotated[
        Path | None, output_option("Folder for the page; else 'report' in the run's.")
    ] = None,
) -> None:
    """Write a run as a page to look through: it opens from disk. Needs no model and no network.

    Example: clip2sam report run/
    """
    from clip2sam.review.page import write_report

    if output is not None:
        check_writable(output, folder=True)
    with image_bar() as bar:
        task = bar.add_task("writing", total=None)
        page = write_report(
            run, output, on_image=lambda done, of: bar.update(task, completed=done, total=of)
        )
    out.print(Text("open ") + Text(str(page), style="bold") + Text(" in a browser"))
