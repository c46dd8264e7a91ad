"""Where the command line prints: results to standard output, everything else to standard error."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_every_character() -> None:
    """Print what the terminal's encoding doesn't know as \\uXXXX, as Python does in tracebacks: a
    label or a file name must not end a run."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a program's own stream may have none
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def image_bar() -> Progress:
    """A bar that counts images, on a terminal only."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    )


def print_error(message: object) -> None:
    """One line on standard error, with control characters as in `repr`. Not as markup: file names
    may hold brackets."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message))
    err.print(Text(f"error: {line}", style="red"))


def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """In place of `warnings.showwarning`: without the line of code that it came from."""
    err.print(Text(f"warning: {message}", style="yellow"))
