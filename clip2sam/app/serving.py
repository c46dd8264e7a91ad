"""The server's start and end."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clip2sam.app.desk import MAX_BYTES, MAX_SESSIONS, Desk
from clip2sam.app.rounds import Reviewed
from clip2sam.config import Config
from clip2sam.errors import ConfigError, ImageError, one_line
from clip2sam.pipeline import Segmenter

ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_ALLOWED_PATHS": "",
    "HF_HUB_DISABLE_TELEMETRY": "True",
}
"""Gradio's own settings, whatever the user's are."""

PORTS = range(7860, 7960)
"""Where no port is given, the first free one of these."""

LAUNCH = {
    "share": False,
    "quiet": True,
    "prevent_thread_lock": True,
    "max_file_size": MAX_BYTES,
    "state_session_capacity": MAX_SESSIONS,
    "allowed_paths": [],
    "ssr_mode": False,
    "mcp_server": False,
    "run_history": False,
    "enable_monitoring": False,
    "footer_links": [],
}
"""No tunnel, no file but uploads and exports, and bounds."""


@contextmanager
def serving(
    load: Callable[[], Segmenter],
    config: Config,
    *,
    run: Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
) -> Iterator[str]:
    """Serve the app as long as the context lasts; gives its address.

    Args:
        load: gives the models, once they are needed.
        config: the settings that are shown first.
        run: a run's folder, for the tab "Review".
        host: the address to listen at.
        port: None: the first free one from 7860 on.

    Raises:
        ConfigError: a package of the extra is not installed, or the port is taken.
        RunError, RunLockedError: the run can't be reviewed.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="clip2sam-app-")))
        stack.enter_context(_environment({**ENVIRONMENT, "GRADIO_TEMP_DIR": str(folder)}))
        page, guard = _with_gradio(stack)
        desk = Desk(load, folder)
        reviewed = None if run is None else Reviewed(run, desk.segmenter)
        if reviewed is not None:
            stack.callback(reviewed.close)
        settings = {
            "server_name": host,
            "server_port": free_port(host, PORTS if port is None else [port]),
            "app_kwargs": {"middleware": guard.middleware(folder, host)},
            **LAUNCH,
            **page.looks(),
        }

        async def start() -> Any:
            """Where no event loop runs, Gradio makes some for its locks and leaves them open."""
            blocks = page.build_page(desk, config, reviewed)
            return blocks, blocks.launch(**settings)[1]

        blocks, address = asyncio.run(start())
        stack.callback(blocks.close, verbose=False)
        yield address


def free_port(host: str, ports: Iterable[int]) -> int:
    """The first of these ports that can be listened at.

    Raises:
        ConfigError: there is none.
    """
    fault: OSError | None = None
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                fault = error
            else:
                return port
    raise ConfigError(
        f"{host} can't be listened at ({fault and one_line(fault)}); give another --host or --port"
    ) from fault


def _with_gradio(stack: ExitStack) -> tuple[Any, Any]:
    """The parts that need Gradio, which can't fetch anything from now on.

    Raises:
        ConfigError: it isn't installed.
    """
    try:
        from gradio import processing_utils

        from clip2sam.app import guard, page
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'the app needs the package {error.name}: pip install "clip2sam[app]"'
        ) from error
    fetch = processing_utils.async_ssrf_protected_get
    processing_utils.async_ssrf_protected_get = _fetch_nothing
    stack.callback(setattr, processing_utils, "async_ssrf_protected_get", fetch)
    return page, guard


async def _fetch_nothing(url: str) -> Any:
    raise ImageError(f"expected an uploaded image, got the address {url!r:.80}; download it first")


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
