"""The command `app`."""

import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from rich.text import Text

from clip2sam.cli.console import err, out
from clip2sam.cli.groups import ModelOptions, spread
from clip2sam.cli.options import count_option, path_option, text_option

LOCAL = ("127.0.0.1", "localhost")


@spread
def app(
    *,
    run: Annotated[
        Path | None,
        path_option("The output folder of 'clip2sam label', to review it; else no review."),
    ] = None,
    host: Annotated[
        str, text_option("Address to listen at; others than 127.0.0.1 are open to all.", "ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, count_option("Port; else the first free one from 7860 on.", min=1, max=65535)
    ] = None,
    models: ModelOptions,
) -> None:
    """Try labels and settings in a browser, correct masks, review a run. Needs clip2sam[app].

    Example: clip2sam app --run run/
    """
    models = models.chosen(run=run)
    config = models.config()
    from clip2sam.app.serving import serving

    loading = err.status("starting")
    loading.start()
    with serving(lambda: models.load(config), config, run=run, host=host, port=port) as address:
        loading.stop()
        out.print(Text("open ") + Text(address, style="bold") + Text(" in a browser"))
        if host not in LOCAL:
            err.print(Text("whoever reaches this address can use the app: it asks for no password"))
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        err.print(Text("stopped"))
