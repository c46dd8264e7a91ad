"""Shapes of every function of the package are checked: jaxtyping's import hook with beartype."""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import open_clip  # noqa: F401 (what is imported behind the hook is compiled anew in each process)
import pytest
import torch
from jaxtyping import install_import_hook
from PIL import Image

assert "clip2sam" not in sys.modules, "the hook must be in place before the package is imported"
install_import_hook("clip2sam", "beartype.beartype")

torch.set_num_threads(1)  # the models are small: threads cost more than they give

Image.preinit()
save_png = Image.SAVE["PNG"]


def _save_quickly(image, *arguments, **named) -> None:
    """Most of a drawing's time is deflate's: the pixels are the same at its lowest level."""
    image.encoderinfo.setdefault("compress_level", 1)
    save_png(image, *arguments, **named)


Image.register_save("PNG", _save_quickly)


@pytest.fixture(autouse=True, scope="session")
def _own_folder(tmp_path_factory) -> Iterator[None]:
    """Nothing is read from, or left in, the user's own folder of weights and text features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")  # files are compared to the byte
        patch.setenv("CLIP2SAM_WEIGHTS", str(tmp_path_factory.mktemp("weights")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _decoding_here() -> Iterator[None]:
    """Runs start no processes to decode images: they'd take more time than all else. Those who
    ask for `decode_workers` have them."""
    with pytest.MonkeyPatch.context() as patch:
        fakes = import_module("tests.labelling_fakes")  # behind the hook
        patch.setattr("clip2sam.labelling.run.DecodeWorker", fakes.Here)
        yield


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Chromium, for tests that are skipped where playwright or `tests.browsers.CHROMIUM` is not."""
    play = pytest.importorskip("playwright.sync_api")
    path = import_module("tests.browsers").CHROMIUM
    options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with play.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture
def decode_workers(monkeypatch) -> None:
    """Images of runs are decoded in processes of their own, as outside the tests."""
    from clip2sam.labelling.decode_worker import DecodeWorker

    monkeypatch.setattr("clip2sam.labelling.run.DecodeWorker", DecodeWorker)


@pytest.fixture
def command_line(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Calls the command line: gives (exit code, what it printed, errors)."""
    main = import_module("clip2sam.cli.app").main  # behind the hook

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clip2sam", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
