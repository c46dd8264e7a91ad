"""The app in a real browser: from an upload to an exported file, and a run that is reviewed.

Needs Gradio, Chromium and playwright; skipped without. Screenshots go to the folder named by
CLIP2SAM_SCREENSHOTS.
"""

import os
from pathlib import Path

import pytest
from PIL import Image as PILImage
from pycocotools.coco import COCO

pytest.importorskip("playwright", reason='needs the extra: pip install "clip2sam[browser]"')
pytest.importorskip("gradio", reason='needs the extra: pip install "clip2sam[app]"')
from playwright.sync_api import expect

import clip2sam
from clip2sam.app.serving import serving
from clip2sam.labelling.content import open_content
from clip2sam.labelling.reviewing import open_review
from clip2sam.labelling.run import label_dataset
from clip2sam.models.presets import PRESETS
from clip2sam.tiny.demo import demo_scenes
from tests.browsers import CHROMIUM
from tests.review_runs import HTML

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path"),
    # of Gradio's queue, for pandas
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

RING, STAR = "purple ring", "orange star"
ODD = f"{HTML}${{alert(2)}}{{{{value}}}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two scenes, and a run over them."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "images").mkdir()
    for number, scene in enumerate(demo_scenes()[:2]):
        PILImage.fromarray(scene.pixels).save(folder / f"images/scene-{number}.png")
    label_dataset(folder / "images", [RING, "pink ring"], folder / "run", preset="tiny")
    return folder


@pytest.fixture(scope="module")
def address(folder):
    segmenter = clip2sam.load("tiny")
    run = folder / "run"
    with serving(lambda: segmenter, PRESETS["tiny"].config, run=run) as address:
        yield address


@pytest.fixture
def opened(address, chromium):
    """Opens the page in a session of its own. In the end it fails if the page asked for anything
    from elsewhere, if it said that something is wrong, or if a dialog of HTML in a label opened."""
    said, pages = [], []

    def wrong(message):
        if message.type == "error":
            said.append(message.text)

    def asked(request):
        if not request.url.startswith((address, "data:", "blob:")):
            said.append(request.url)

    def open_page(**look):
        page = chromium.new_page(**{"viewport": {"width": 1280, "height": 900}, **look})
        page.on("console", wrong)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", asked)
        page.goto(address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []


def snapshot(page, name: str, **how) -> None:
    if folder := os.environ.get("CLIP2SAM_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"app-{name}.png"), **how)


def find(page, path, labels):
    page.get_by_role("tab", name="Try").click()
    page.locator("#try-labels textarea").fill(labels)
    page.locator("#try-image input[type=file]").set_input_files(path)
    expect(page.locator("#try-canvas img.canvas")).to_be_visible(timeout=30_000)
    expect(page.locator("#try-stages img")).to_be_visible(timeout=30_000)


def click(page, tab, across, down):
    """Click the canvas at a share of its width and height, and wait for the next picture."""
    canvas = page.locator(f"#{tab}-canvas img.canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    before = canvas.get_attribute("src")
    canvas.click(position={"x": across * box["width"], "y": down * box["height"]})
    expect(canvas).not_to_have_attribute("src", before, timeout=30_000)


def take(page, tab, name):
    page.locator(f"#{tab}-tool").get_by_text(name).click()
    expect(page.locator(f"#{tab}-tool").get_by_label(name)).to_be_checked()
    page.wait_for_timeout(300)  # the server knows it too


def test_from_an_upload_to_an_exported_file(opened, folder, tmp_path):
    page = opened(color_scheme="light")
    find(page, folder / "images/scene-0.png", f"{RING}; {STAR}\n{ODD}")
    rows = page.locator("#try-why tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_contain_text("3 objects: score 0.74")
    expect(rows.nth(1)).to_contain_text("is below the threshold 0.32")
    expect(rows.nth(2).locator("th")).to_have_text(ODD)
    expect(page.locator("#try-status")).to_contain_text("doesn't know")

    click(page, "try", 0.05, 0.9)
    expect(rows.nth(0)).to_contain_text("set by hand")
    page.locator("#try-label").get_by_text(STAR).click()
    take(page, "try", "box")
    click(page, "try", 0.57, 0.66)
    expect(page.locator("#try-status")).to_have_text("now click the opposite corner")
    click(page, "try", 0.84, 0.99)
    expect(rows.nth(1).locator("td").first).to_have_text("1")
    snapshot(page, "1-try", full_page=True)

    take(page, "try", "choose a mask")
    click(page, "try", 0.5, 0.45)  # the edge of a ring
    page.locator("#try-remove").click()
    expect(page.locator("#try-status")).to_have_text("removed")
    page.keyboard.press("u")
    expect(page.locator("#try-status")).to_have_text("took back the last change")
    with page.expect_download() as download:
        page.locator("#try-export").click()
    download.value.save_as(tmp_path / "annotations.json")
    coco = COCO(str(tmp_path / "annotations.json"))
    assert [c["name"] for c in coco.dataset["categories"]] == [RING, STAR, ODD]
    labels = [coco.cats[a["category_id"]]["name"] for a in coco.dataset["annotations"]]
    assert labels == [RING, RING, RING, STAR]


def test_sessions_do_not_see_each_other_and_errors_are_ours(opened, folder, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no image")
    one, other = opened(), opened(viewport={"width": 420, "height": 900}, color_scheme="dark")
    find(one, folder / "images/scene-0.png", RING)
    find(other, folder / "images/scene-1.png", "pink ring")
    snapshot(other, "2-narrow-dark", full_page=True)
    click(one, "try", 0.05, 0.9)
    expect(one.locator("#try-why tbody tr")).to_have_count(1)
    expect(one.locator("#try-why tbody")).to_contain_text("set by hand")
    other.locator("#try-forget").click()
    expect(other.locator("#try-why tbody")).not_to_contain_text("set by hand")
    other.locator("#try-labels textarea").fill("a; a")
    other.locator("#try-find").click()
    expect(other.locator("#try-status .wrong")).to_contain_text("given twice")


def test_a_run_is_reviewed_by_keys_and_corrected(opened, folder):
    page = opened(color_scheme="dark")
    place = page.locator("#review-place")
    expect(place).to_contain_text("1 of 2 in the order of doubt · 2 left · not decided yet")
    page.keyboard.press("n")
    expect(place).to_contain_text("2 of 2")
    page.keyboard.press("p")
    expect(place).to_contain_text("1 of 2")
    snapshot(page, "3-review")
    first = place.locator("b").first.inner_text()
    page.locator("#review-label").get_by_text("pink ring").click()
    take(page, "review", "box")
    click(page, "review", 0.32, 0.36)
    click(page, "review", 0.54, 0.63)
    expect(page.locator("#review-accept")).to_have_text("Save correction (a)")
    snapshot(page, "4-corrected")
    page.locator("#review-accept").click()
    expect(place).to_contain_text("2 of 2 in the order of doubt · 1 left")
    page.keyboard.press("r")
    expect(place).to_contain_text("0 left · rejected")
    with pytest.raises(clip2sam.RunLockedError):
        open_review(folder / "run")
    verdicts = {r.file_name: r.review.verdict for r in open_content(folder / "run").records()}
    assert verdicts.pop(first) == "corrected"
    assert list(verdicts.values()) == ["rejected"]
