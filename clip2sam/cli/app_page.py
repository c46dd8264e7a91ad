"""The command `app`."""

import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text

from clip2sam.cli.console import err, out
from clip2sam.cli.groups import ModelOptions, spread
from clip2sam.cli.options import Host, Port, path_option

if TYPE_CHECKING:
    from clip2sam.pipeline import Segmenter

LOCAL = ("127.0.0.1", "localhost")


@spread
def app(
    *,
    run: Annotated[
        Path | None,
        path_option("The output folder of 'clip2sam label', to review it; else no review."),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 0,
    models: ModelOptions,
) -> None:
    """Try labels and settings in a browser, correct masks, review a run. Needs clip2sam[app].

    Example: clip2sam app --run run/
    """
    models = models.chosen(run=run)
    config = models.config()
    from clip2sam.app.serving import serving

    def load() -> "Segmenter":
        return models.load(config)

    with ExitStack() as stack:
        with err.status("starting"):
            served = serving(load, config, run=run, host=host, port=port or None)
            address = stack.enter_context(served)
        out.print(Text("open ") + Text(address, style="bold") + Text(" in a browser"))
        if host not in LOCAL:
            err.print(Text("whoever reaches this address can use the app: it asks for no password"))
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        err.print(Text("stopped"))
