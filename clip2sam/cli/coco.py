"""The command `validate`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from clip2sam.cli.console import out
from clip2sam.cli.options import as_path, path_option


def validate(
    file: Annotated[
        Path,
        typer.Argument(help="A COCO dataset or results file.", parser=as_path),
    ],
    dataset: Annotated[
        Path | None,
        path_option("The dataset of a results file, to check its ids against."),
    ] = None,
) -> None:
    """Report every violation of the COCO format in a file, with its place. Exit code 1 if any."""
    from clip2sam.coco.validate import validate as find_violations

    violations = find_violations(file, dataset)
    for violation in violations:
        out.print(Text(f"{violation.place}: {violation.message}"))
    out.print(Text(f"{file}: {len(violations)} violations" if violations else f"{file}: valid"))
    raise typer.Exit(1 if violations else 0)
