"""Where the command line prints: results to standard output, everything else to standard error."""

from typing import Any

from rich.console import Console
from rich.text import Text

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(message: object) -> None:
    """One line on standard error. Not as markup: file names may hold brackets."""
    err.print(Text(f"error: {message}", style="red"))


def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """In place of `warnings.showwarning`: without the line of code that it came from."""
    err.print(Text(f"warning: {message}", style="yellow"))
