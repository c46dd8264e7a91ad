"""The command `serve`."""

import warnings
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.text import Text

from clip2sam.cli.console import err, print_error
from clip2sam.cli.groups import MapOptions, MaskOptions, ModelOptions, spread
from clip2sam.cli.options import MaxPixels, Method, count_option, number_option, text_option
from clip2sam.errors import ConfigError

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


@spread
def serve(
    *,
    host: Annotated[
        str,
        text_option("The address to listen on; 0.0.0.0: all, then anybody may ask.", "ADDRESS"),
    ] = "127.0.0.1",
    port: Annotated[
        int, count_option("The port to listen on; 0: a free one.", min=0, max=65535)
    ] = 8765,
    max_waiting: Annotated[
        int, count_option("Requests at the same time; more are refused with 503.", min=1, max=4096)
    ] = 64,
    time_limit: Annotated[
        float,
        number_option("Seconds that a request may take, waiting too.", above=0.0, most=86400.0),
    ] = 60.0,
    max_bytes: Annotated[
        int, count_option("Bytes of a request; larger ones are refused with 413.", min=1)
    ] = 20_000_000,
    max_pixels: MaxPixels = 25_000_000,
    method: Method = None,
    maps: MapOptions,
    masks: MaskOptions,
    models: ModelOptions,
) -> None:
    """Serve masks over HTTP: POST /v1/segment takes an image and labels, and gives COCO.

    Settings are those of requests that give none of their own. There is no password: whoever
    reaches the port may ask. The schema is at /docs.

    Example: clip2sam serve --preset vit-b --port 8765
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ConfigError(f'serve needs the package {missing[0]}: pip install "clip2sam[app]"')
    models = models.chosen(method=method)
    config = models.config(maps, masks, method=method)

    from clip2sam.serve.queue import Limits
    from clip2sam.serve.server import GRACE, bound, create_app, run

    listening = bound(host, port)
    # each label's text is another warning, and Python remembers them all
    warnings.simplefilter("ignore", UserWarning)
    limits = Limits(
        max_waiting=max_waiting, seconds=time_limit, max_bytes=max_bytes, max_pixels=max_pixels
    )
    app = create_app(lambda: models.load(config, method=method), preset=models.name, limits=limits)
    where = f"[{host}]" if ":" in host else host
    address = f"http://{where}:{listening.getsockname()[1]}"
    err.print(Text(f"serving {models.name} at {address}, its schema at {address}/docs"))
    if not run(app, listening):
        print_error(f"what was in work was not finished within {GRACE:g} seconds")
        raise typer.Exit(1)
