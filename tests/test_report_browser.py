"""A report in a real browser, from disk: filters, orders, keys, clicks; nothing from elsewhere.

Needs Chromium and playwright; skipped without. Screenshots go to the folder named by
CLIP2SAM_SCREENSHOTS.
"""

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason='needs the extra: pip install "clip2sam[browser]"')
from playwright.sync_api import expect

from clip2sam.data.records import ImageRecord
from clip2sam.labelling.reviewing import open_review
from clip2sam.review.page import write_report
from tests.browsers import CHROMIUM
from tests.review_runs import HTML, box, found, make_run, record

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path")

ODD = f"{HTML}.png"


def records():
    """Sixty images: two pages. The thresholds are .5 for cat and .3 for the other class."""
    big, small = box(0, 0, 40, 40), box(10, 10, 8, 8)
    special = [
        record(1, "sure.png", (0.9, 0.0), found("cat", small, 0.35, 0.8), found("cat", big)),
        record(2, ODD, (0.1, 0.6), found(HTML, big, 0.7)),
        record(3, "above.png", (0.51, 0.0), found("cat", big, 0.6)),
        record(4, "below.png", (0.1, 0.295), found(HTML, big, 0.5)),
        record(5, "beaten.png", (0.5, 0.0), beaten=(True, False)),
        ImageRecord(6, "cut.png", state="failed", reason=f"cut.png: it is {HTML}"),
        record(7, "gone.png", (0.9, 0.0), found("cat", big, 0.95)),
    ]
    return [*special, *(record(n, f"{n:02}.png", (0.1, 0.1)) for n in range(8, 61))]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The path of a report's page."""
    folder = tmp_path_factory.mktemp("report")
    run = make_run(folder, records())
    with open_review(run) as review:
        review.write(1, "accepted")
        review.write(60, "rejected")
    (folder / "images/gone.png").unlink()
    return write_report(run)


@pytest.fixture
def page(written, chromium):
    """The page, opened anew; fails at the end if it asked for anything but files, if it said
    anything on the console, or if a dialog of HTML in a name opened."""
    page = chromium.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda r: r.url.startswith("file://") or said.append(r.url))
    page.goto(written.as_uri())
    page.locator("figure").first.wait_for()
    yield page
    page.close()
    assert said == []


def names(page):
    return page.locator("#grid .name").all_text_contents()


def snapshot(page, name: str) -> None:
    if folder := os.environ.get("CLIP2SAM_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"report-{name}.png"))


def choose(page, name: str, value: str) -> None:
    page.locator(f"#{name}").select_option(value)


def test_the_page_says_what_was_asked_and_how_it_went(page):
    says = "60 images: 4 done, 54 empty, 1 failed; 2 reviewed, 1 of them rejected"
    expect(page.locator("#counts")).to_have_text(says)
    page.locator("#asked summary").first.click()
    row = page.locator("#asked tr", has_text="kitten").locator("td")
    expect(row).to_have_text(["cat", "cat; kitten", "0.5", "0.450"])
    expect(page.locator("#asked")).to_contain_text("by hand")
    page.locator("#failures summary").click()
    expect(page.locator("#failures li")).to_have_text(f"cut.png cut.png: it is {HTML}")
    cat = page.locator("#classes li").first
    expect(cat).to_contain_text("3 images, 4 masks, mean score 0.70, threshold 0.500")
    assert cat.locator(".histogram rect").count() == 3
    expect(page.locator("figure", has_text="gone.png")).to_contain_text("no such file")
    expect(page.locator("figure", has_text="cut.png")).to_contain_text("failed")
    expect(page.locator("figure .name").nth(1)).to_have_text(ODD)
    snapshot(page, "1-asked")


def test_filters_and_orders(page):
    choose(page, "class", "0")
    assert names(page) == ["sure.png", "above.png", "gone.png"], "those in which it was found"
    choose(page, "presence", "nearly-absent")
    assert names(page) == ["above.png"]
    choose(page, "class", "")
    choose(page, "presence", "nearly-present")
    assert names(page) == ["below.png"]
    choose(page, "presence", "any")
    choose(page, "state", "2")
    assert names(page) == ["cut.png"]
    choose(page, "state", "")
    choose(page, "review", "rejected")
    assert names(page) == ["60.png"]
    choose(page, "review", "accepted")
    expect(page.locator("figcaption").first).to_contain_text("accepted")
    assert names(page) == ["sure.png"]
    choose(page, "review", "none")
    assert len(names(page)) == 48
    expect(page.locator("#where")).to_contain_text("of 58")
    choose(page, "review", "any")
    page.locator("#least").fill("0.65")
    assert names(page) == ["sure.png", ODD, "gone.png"]
    page.locator("#most").fill("0.8")
    assert names(page) == [ODD]
    page.locator("#least").fill("0")
    page.locator("#most").fill("1")
    choose(page, "sort", "doubt")
    assert names(page)[:2] == ["below.png", "above.png"]
    choose(page, "sort", "low")
    assert names(page)[:4] == ["sure.png", "above.png", ODD, "gone.png"]
    choose(page, "sort", "high")
    assert names(page)[:2] == ["gone.png", "sure.png"]
    choose(page, "class", "0")
    choose(page, "presence", "not-found")
    page.locator("#least").fill("0.9")
    expect(page.locator("#where")).to_have_text("no image is so; change the filters")


def test_keys_turn_pages_toggle_classes_and_go_through_images(page):
    paths = page.locator("figure path")
    expect(paths).to_have_count(5)
    page.keyboard.press("1")
    expect(paths).to_have_count(1)
    expect(page.locator("#classes button").first).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("0")
    expect(paths).to_have_count(5)
    page.keyboard.press("0")
    expect(paths).to_have_count(0)
    page.keyboard.press("0")
    page.keyboard.press("b")
    expect(page.locator("path.below")).to_have_count(1)
    expect(page.locator("#where")).to_have_text("1 to 48 of 60, page 1 of 2")
    page.keyboard.press(".")
    expect(page.locator("#where")).to_have_text("49 to 60 of 60, page 2 of 2")
    page.keyboard.press(",")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer-name")).to_have_text(ODD)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-name")).to_have_text("above.png")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(page.locator("figure:focus .name")).to_have_text("above.png")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()


def test_the_large_view_goes_on_over_pages(page):
    page.locator("figure").nth(47).click()
    expect(page.locator("#viewer-name")).to_have_text("48.png")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-name")).to_have_text("49.png")
    page.keyboard.press("Escape")
    expect(page.locator("#where")).to_have_text("49 to 60 of 60, page 2 of 2")
    expect(page.locator("figure:focus .name")).to_have_text("49.png")


def test_a_click_on_a_mask_shows_its_figures(page):
    page.locator("figure").first.locator("path").last.click()  # the small one is in front
    facts = page.locator("#mask-facts td")
    expected = ["cat", "0.350", "0.800", "0.900", "0.500", "cat; kitten"]
    expect(facts).to_have_text([*expected, "1 positive, 1 negative", "yes"])
    expect(page.locator("#viewer circle")).to_have_count(2)
    snapshot(page, "2-mask")
    page.locator("#viewer path").first.click(position={"x": 5, "y": 5})
    expect(facts.nth(1)).to_have_text("0.900")
    page.locator("#viewer path").first.click(position={"x": 5, "y": 5})
    expect(page.locator(".hint")).to_be_visible()
    rows = page.locator("#viewer-facts tr", has_text=re.compile("^cat"))
    expect(rows.locator("td")).to_have_text(["cat", "0.900", "0.500", "present"])


def test_the_large_view_says_how_near_a_decision_was(page):
    said = {"above.png": "present, nearly absent", "below.png": "absent, nearly present"}
    for name, verdict in {**said, "beaten.png": "absent: a distractor is stronger"}.items():
        page.locator("figure", has_text=name).click()
        expect(page.locator("#viewer-facts")).to_contain_text(verdict)
        page.keyboard.press("Escape")


def test_masks_lie_where_they_belong(page):
    """Outline and image agree: a mask of two thirds of the width, from the left."""
    figure = page.locator("figure").nth(2)
    image, mask = (figure.locator(kind).bounding_box() for kind in ("img", "path"))
    wide = min(image["width"], image["height"] * 60 / 40)  # the image fits into its frame
    left = image["x"] + (image["width"] - wide) / 2
    assert abs(mask["x"] - left) < 4
    assert abs(mask["width"] - wide * 2 / 3) < 6


def test_dark_where_the_reader_has_dark(page):
    def ground():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert ground() == "rgb(246, 247, 249)"
    page.emulate_media(color_scheme="dark")
    assert ground() == "rgb(20, 23, 27)"
    snapshot(page, "3-dark")
