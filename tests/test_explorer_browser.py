"""The explorer in JupyterLab, driven through a real browser: labels typed, a slider moved, clicks,
images one after the other, COCO written.

Needs Chromium and the extra `browser`; skipped without. Screenshots go to the folder named by
CLIP2SAM_SCREENSHOTS.
"""

import json
import os
import re
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
from tests.browsers import CHROMIUM

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path")

CELL = """\
import clip2sam
clip2sam.Explorer(clip2sam.load("tiny"), ["drawn.png", "other.png"], ["{label}"])
"""


@pytest.fixture(scope="module")
def drawn():
    """An image with one large object, and others."""
    return scene(split_seed("validation", 3))


@pytest.fixture(scope="module")
def lab(tmp_path_factory, drawn) -> Iterator[tuple[str, Path]]:
    """A JupyterLab over a folder with one notebook and two images: the notebook's address and the
    folder."""
    folder, settings = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("settings")
    PILImage.fromarray(drawn.pixels).save(folder / "drawn.png")
    PILImage.fromarray(scene(split_seed("validation", 8)).pixels).save(folder / "other.png")
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
    news = settings / "JUPYTERLAB_SETTINGS_DIR/@jupyterlab/apputils-extension"
    news.mkdir(parents=True)  # else a question about news covers a part of the page
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    own = {
        name: str(settings / name)
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
    expect(page.locator(".clip2sam-status")).to_have_text(re.compile(pattern), timeout=20_000)


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


def press(page, button: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()


def drag(page, name: str, share: float) -> None:
    """Move a slider's handle to a share of its length."""
    slider = page.locator(f".widget-slider:has(label:text-is('{name}'))")
    bar = slider.locator(".noUi-base").bounding_box()
    box = slider.locator(".noUi-handle").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(bar["x"] + share * bar["width"], bar["y"] + bar["height"] / 2, steps=5)
    page.mouse.up()


def click_at(page, across: float, down: float, *keys) -> None:
    """Click a place of the figure, given as shares of its width and height."""
    box = panels(page).bounding_box()
    panels(page).click(
        position={"x": across * box["width"], "y": down * box["height"]}, modifiers=list(keys)
    )


def test_a_person_types_moves_clicks_and_goes_on(page, lab, drawn):
    first = drawn.objects[0]
    label, other = f"{first.colour} {first.shape}", f"{first.colour} thing"
    snapshot(page, "1-first")
    says(page, f"^{first.shape}: presence")

    def type_labels() -> None:
        text_field(page, "labels").fill(f"{label}; {other}")
        page.keyboard.press("Tab")

    changes(page, type_labels)
    says(page, f"^{label}: presence")
    options = page.locator(".widget-dropdown:has(label:text-is('selected')) option")
    expect(options).to_have_text([label, other])
    snapshot(page, "2-typed")

    changes(page, lambda: drag(page, "presence", 0.99))
    says(page, f"^{label}: .*is below the threshold")  # no score is that high
    snapshot(page, "3-too-strict")
    changes(page, lambda: drag(page, "presence", 0.01))
    says(page, "1 object: score")

    changes(page, lambda: click_at(page, 0.5, 0.5))
    says(page, "1 point gave no mask")  # a point on nothing: it is said
    snapshot(page, "4-clicked")
    changes(page, lambda: click_at(page, 0.55, 0.5, "Shift"))
    snapshot(page, "5-negative")
    changes(page, lambda: click_at(page, 0.5, 0.5))  # on the point: it goes away
    changes(page, lambda: press(page, "forget clicks"))
    says(page, "1 object: score [0-9.]+ share 1.00$")

    press(page, "accept masks")
    says(page, f"^accepted: {label}: 1 mask.*, drawn.png$")
    changes(page, lambda: press(page, "next image"))
    expect(page.get_by_text("2 of 2: other.png")).to_be_visible()
    snapshot(page, "6-next")
    press(page, "next image")
    says(page, "^this is the last image$")
    changes(page, lambda: page.get_by_label("selected").select_option(other))
    says(page, f"^{other}: presence .*objects: score")
    snapshot(page, "7-selected")
    press(page, "accept masks")
    says(page, f"^accepted: {other}: .*, other.png$")
    listed = page.locator(".widget-select option")
    expect(listed).to_have_text([re.compile("drawn.png$"), re.compile("other.png$")])
    press(page, "undo")
    expect(listed).to_have_text([re.compile("drawn.png$")])
    snapshot(page, "8-undone")
    changes(page, lambda: press(page, "previous image"))
    expect(page.get_by_text("1 of 2: drawn.png")).to_be_visible()

    press(page, "write COCO")
    says(page, "^wrote 1 mask of 1 image to annotations.json$")
    snapshot(page, "9-written")
    written = lab[1] / "annotations.json"
    assert validate(written) == []
    document = json.loads(written.read_text())
    assert [c["name"] for c in document["categories"]] == [label]
    assert [i["file_name"] for i in document["images"]] == ["drawn.png"]
    assert len(document["annotations"]) == 1


def test_a_click_is_the_explorers_alone(page):
    """With Shift, JupyterLab would select cells; with the mouse not quite still, the browser would
    drag the image away."""
    page.locator(".jp-Notebook .cm-content").last.click()
    changes(page, lambda: click_at(page, 0.5, 0.5, "Shift"))
    expect(page.locator(".jp-Cell.jp-mod-selected")).to_have_count(1)
    box = panels(page).bounding_box()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])

    def click_unsteadily() -> None:
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"] + 8, box["y"] + 0.5 * box["height"], steps=8)
        page.mouse.up()

    changes(page, click_unsteadily)


def test_a_click_takes_labels_that_are_still_being_typed(page):
    """The text field gives them away when it loses the focus."""
    for keys, label in (((), "circle"), (("Shift",), "star")):
        text_field(page, "labels").fill(label)
        changes(page, lambda keys=keys: click_at(page, 0.5, 0.5, *keys))
        says(page, f"^{label}: ")
