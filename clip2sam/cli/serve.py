"""The command `serve`."""

import os
import warnings
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.text import Text

from clip2sam.cli.console import err, print_error
from clip2sam.cli.groups import MapOptions, MaskOptions, ModelOptions, spread
from clip2sam.cli.options import (
    Host,
    MaxPixels,
    Method,
    Port,
    count_option,
    number_option,
    text_option,
)
from clip2sam.errors import ConfigError

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


@spread
def serve(
    *,
    host: Host = "127.0.0.1",
    port: Port = 8765,
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
    label_studio: Annotated[
        str | None,
        text_option(
            "Be an ML backend too, of the Label Studio at that address, whose tasks' images are "
            "fetched from there. LABEL_STUDIO_API_KEY has a token for it.",
            "URL",
        ),
    ] = None,
    image_host: Annotated[
        list[str] | None,
        text_option("A host that images of Label Studio's tasks may be on; repeatable.", "HOST"),
    ] = None,
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
    if image_host and label_studio is None:
        raise ConfigError(
            "--image-host is for the tasks of a Label Studio; give --label-studio too"
        )
    models = models.chosen(method=method)
    config = models.config(maps, masks, method=method)

    from clip2sam.serve.memory import keep_flat
    from clip2sam.serve.queue import Limits
    from clip2sam.serve.server import GRACE, bound, create_app, run

    routers = []
    if label_studio is not None:
        from clip2sam.serve.label_studio import label_studio_router, model_version
        from clip2sam.serve.label_studio_images import TaskImages

        images = TaskImages(label_studio, tuple(image_host or ()), max_bytes)
        version = model_version(models.name, config)
        token = os.environ.get("LABEL_STUDIO_API_KEY", "")
        routers.append(label_studio_router(images, version=version, token=token))
    listening = bound(host, port)
    keep_flat()
    # each label's text is another warning, and Python remembers them all
    warnings.simplefilter("ignore", UserWarning)
    limits = Limits(
        max_waiting=max_waiting, seconds=time_limit, max_bytes=max_bytes, max_pixels=max_pixels
    )
    app = create_app(
        lambda: models.load(config, method=method),
        preset=models.name,
        limits=limits,
        routers=routers,
    )
    where = f"[{host}]" if ":" in host else host
    address = f"http://{where}:{listening.getsockname()[1]}"
    err.print(Text(f"serving {models.name} at {address}, its schema at {address}/docs"))
    if not run(app, listening):
        print_error(f"what was in work was not finished within {GRACE:g} seconds")
        raise typer.Exit(1)
