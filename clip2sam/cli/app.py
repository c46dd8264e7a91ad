"""The command line: the commands put together, and errors turned into exit codes.

Nothing inside the package imports it. Models and matplotlib are slow to import: each command
imports what it needs when it runs.
"""

import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from clip2sam import __version__
from clip2sam.cli import weights
from clip2sam.cli.analysis import evaluate, explain, tune
from clip2sam.cli.app_page import app as app_page
from clip2sam.cli.classify import classify
from clip2sam.cli.coco import validate
from clip2sam.cli.console import out, print_error, print_every_character, print_warning
from clip2sam.cli.dataset import export, label, merge
from clip2sam.cli.demo import demo
from clip2sam.cli.dense import dense
from clip2sam.cli.doctor import doctor
from clip2sam.cli.options import flag
from clip2sam.cli.report import report
from clip2sam.cli.segment import segment
from clip2sam.cli.serve import serve
from clip2sam.errors import (
    Clip2SamError,
    ConfigError,
    ModelError,
    OutputError,
    RunLockedError,
    TooManyFailuresError,
    WeightsError,
    one_line,
)

EXIT_CODES = {
    0: "all well",
    1: "some images failed, or a file is not valid",
    2: "wrong usage, labels or options, or a run that began with others",
    3: "weights are missing, damaged or out of reach",
    4: "another process works on this run",
    5: "an output can't be written",
    6: "more images failed than --max-failures",
    130: "interrupted; what was done is written",
}
"""Of all commands."""

ERROR_CODES = {
    ModelError: 1,
    WeightsError: 3,
    RunLockedError: 4,
    OutputError: 5,
    TooManyFailuresError: 6,
}
"""The exit codes of errors; 2 for all others that a user can cause."""

UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""The base of typer's errors about arguments, which has no public name there."""


class Plain:
    """A help page that gives no type of a flag: there is none to type."""

    def get_help_option(self, ctx: Any) -> Any:
        """The flag `--help`."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.metavar = ""
        return option

    def get_params(self, ctx: Any) -> Any:
        """All options: typer's own for the shell's completion are flags too."""
        params = super().get_params(ctx)  # type: ignore[misc]
        for option in params:
            if option.name in ("install_completion", "show_completion"):
                option.metavar = ""
        return params


class PlainCommand(Plain, TyperCommand):
    """A command."""


class PlainGroup(Plain, TyperGroup):
    """Commands together."""


EXIT_CODES_HELP = "Exit codes\n" + "\n".join(f"{n}: {text}" for n, text in EXIT_CODES.items())

app = typer.Typer(
    cls=PlainGroup,
    help="clip2sam: typed labels in, masks out, with no training.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    segment,
    classify,
    dense,
    label,
    merge,
    export,
    report,
    app_page,
    serve,
    explain,
    tune,
    evaluate,
    validate,
    demo,
    doctor,
)
for command in COMMANDS:
    app.command(cls=PlainCommand, epilog=EXIT_CODES_HELP)(command)
for registered in weights.app.registered_commands:
    registered.cls = PlainCommand
app.add_typer(weights.app, name="weights", cls=PlainGroup, epilog=EXIT_CODES_HELP)


@app.callback(invoke_without_command=True)
def print_version(
    version: Annotated[bool, flag("--version", "Print the version and exit.")] = False,
) -> None:
    """Without a command."""
    if version:
        out.print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line. An error that a user can cause is one line and an exit code."""
    warnings.showwarning = print_warning
    print_every_character()
    try:
        with second_interrupt_ends_at_once():
            # else typer prints errors itself, in frames
            code = app(prog_name="clip2sam", standalone_mode=False)
    except Clip2SamError as error:
        print_error(error)
        code = next((code for kind, code in ERROR_CODES.items() if isinstance(error, kind)), 2)
    except UsageError as error:
        _print_usage_error(error)
        code = 2
    except typer.Abort:
        print_error("aborted")
        code = 1
    sys.exit(code)


def _print_usage_error(error: Any) -> None:
    """What is wrong with the arguments, and which help says what is right. Where arguments are
    missing altogether, typer has printed the help already and the error has no message."""
    message = error.format_message().rstrip(".")
    if not message:
        return
    names = {"weights", *(command.__name__ for command in COMMANDS)}
    command = next((f"clip2sam {name}" for name in sys.argv[1:] if name in names), "clip2sam")
    if error.ctx is not None:
        command = error.ctx.command_path
    print_error(f"{one_line(ConfigError(message))}; see '{command} --help'")


@contextmanager
def second_interrupt_ends_at_once() -> Iterator[None]:
    """The first Ctrl-C is a KeyboardInterrupt: what is done is written. The second one ends the
    process, without the tracebacks of what it was cleaning up: no file depends on that."""
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    ours = before is signal.default_int_handler
    ours = ours and threading.current_thread() is threading.main_thread()
    if ours:  # a shell's background jobs ignore it, and other programs have handlers of their own
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if ours and signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)
