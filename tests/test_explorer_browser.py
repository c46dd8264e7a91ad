"""The explorer in JupyterLab, driven through a real browser: a label typed, a slider moved, clicks,
COCO written.

Needs Chromium and the extra `browser`; skipped without. Screenshots go to the folder named by
CLIP2SAM_SCREENSHOTS.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("jupyterlab", reason='needs the extra: pip install "clip2sam[browser]"')
pytest.importorskip("playwright", reason='needs the extra: pip install "clip2sam[browser]"')
from PIL import Image as PILImage
from playwright.sync_api import expect, sync_playwright

from clip2sam.coco.validate import validate
from clip2sam.tiny.scenes import scene, split_seed

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path")

CELL = """\
import clip2sam
clip2sam.Explorer(clip2sam.load("tiny"), "drawn.png", ["{label}"])
"""


@pytest.fixture(scope="module")
def drawn():
    """An image with one large object, and others."""
    return scene(split_seed("validation", 3))


@pytest.fixture(scope="module")
def lab(tmp_path_factory, drawn) -> Iterator[tuple[str, Path]]:
    """A JupyterLab over a folder with one notebook: the notebook's address and the folder."""
    folder = tmp_path_factory.mktemp("lab")
    PILImage.fromarray(drawn.pixels).save(folder / "drawn.png")
    cell = nbformat.v4.new_code_cell(CELL.format(label=drawn.objects[0].shape))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(
        nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}),
        folder / "look.ipynb",
    )
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        "--port=0",
        "--allow-root",
    ]
    command += ["--LabApp.extension_manager=readonly", f"--ServerApp.root_dir={folder}"]
    own = {
        name: str(folder / name)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR")
    }
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | own)
        try:
            yield address(folder / "log", server), folder
        finally:
            server.terminate()
            server.wait(20)


def address(log: Path, server: subprocess.Popen) -> str:
    """The address that the server prints when it listens, with its token."""
    for _ in range(300):
        found = re.search(r"http://127\.0\.0\.1:(\d+)/lab\?token=(\w+)", log.read_text())
        if found:
            return f"http://127.0.0.1:{found[1]}/lab/tree/look.ipynb?token={found[2]}"
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def page(lab):
    options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.goto(lab[0])
        page.locator(".jp-Notebook .cm-content").first.click(timeout=60_000)
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(
            timeout=60_000, state="attached"
        )
        page.keyboard.press("Shift+Enter")
        panels(page).wait_for(timeout=120_000)
        yield page
        browser.close()


def panels(page):
    return page.locator(".jp-OutputArea img[style*=crosshair]")


def text_field(page, name: str):
    return page.locator(f".widget-textarea:has(label:text-is('{name}')) textarea")


def says(page, pattern: str) -> None:
    """Wait until the line above the image is this: it changes after the image."""
    line = page.locator(".jp-OutputArea .widget-vbox > .widget-label").first
    expect(line).to_have_text(re.compile(pattern), timeout=20_000)


def changes(page, act: Callable[[], None]) -> None:
    """Do something, and wait until another image is shown."""
    before = panels(page).get_attribute("src")
    act()
    page.wait_for_function(
        "old => document.querySelector('.jp-OutputArea img[style*=crosshair]').src != old",
        arg=before,
        timeout=20_000,
    )


def snapshot(page, name: str) -> None:
    if folder := os.environ.get("CLIP2SAM_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def test_a_person_types_moves_and_clicks(page, lab, drawn):
    label = f"{drawn.objects[0].colour} {drawn.objects[0].shape}"
    snapshot(page, "1-first")
    says(page, f"^{drawn.objects[0].shape}: presence")

    def type_labels() -> None:
        text_field(page, "labels").fill(f"{label}\n{drawn.objects[0].colour} thing")
        page.keyboard.press("Tab")

    changes(page, type_labels)
    says(page, f"^{label}: presence")
    snapshot(page, "2-typed")

    slider = page.locator(".widget-slider:has(label:text-is('presence'))")
    bar = slider.locator(".noUi-base").bounding_box()

    def drag(share: float) -> None:
        box = slider.locator(".noUi-handle").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(bar["x"] + share * bar["width"], bar["y"] + bar["height"] / 2, steps=5)
        page.mouse.up()

    changes(page, lambda: drag(0.99))
    says(page, f"^{label}: (?!.*object)")  # no score is that high
    snapshot(page, "3-too-strict")
    changes(page, lambda: drag(0.01))
    says(page, "objects?, score")

    box = panels(page).bounding_box()
    middle = {"x": box["width"] / 2, "y": box["height"] / 2}
    changes(page, lambda: panels(page).click(position=middle))
    snapshot(page, "4-clicked")
    changes(
        page,
        lambda: panels(page).click(
            position={"x": middle["x"] + 50, "y": middle["y"]}, modifiers=["Shift"]
        ),
    )
    snapshot(page, "5-negative")

    page.get_by_role("button", name="accept masks").click()
    says(page, f"^accepted: {label}: ")
    page.get_by_role("button", name="write COCO").click()
    says(page, r"wrote \d+ masks")
    snapshot(page, "6-written")
    written = lab[1] / "annotations.json"
    assert validate(written) == []
    document = json.loads(written.read_text())
    assert [c["name"] for c in document["categories"]] == [label]
    assert len(document["annotations"]) >= 1
