"""The page: its tabs, its looks."""

import gradio as gr

from clip2sam.app.desk import Desk
from clip2sam.app.review_tab import KEYS, ReviewTab
from clip2sam.app.rounds import Reviewed
from clip2sam.app.try_tab import TryTab
from clip2sam.config import Config

CSS = """
img.canvas { display: block; width: 100%; cursor: crosshair; user-select: none; }
#review-canvas img.canvas { max-height: 70vh; width: auto; max-width: 100%; }
#try-maps img, #try-stages img { max-width: 100%; }
.said { margin: 0; min-height: 1.5em; } .said.wrong { color: #b3261e; }
.dark .said.wrong { color: #ff8a80; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
label span { overflow-wrap: anywhere; }
table.why { width: 100%; border-collapse: collapse; font-size: .9em; }
table.why th, table.why td { text-align: left; padding: .15em .6em .15em 0; vertical-align: top; }
"""

THEME_FONTS = {
    "font": ("system-ui", "sans-serif"),
    "font_mono": ("ui-monospace", "monospace"),
}
"""Those of the reader's own machine: none is fetched."""


def build_page(desk: Desk, config: Config, reviewed: Reviewed | None) -> gr.Blocks:
    """The page with its tabs.

    Args:
        config: the settings that are shown first.
        reviewed: the run for the tab "Review"; None: there is no such tab.
    """
    with gr.Blocks(
        title="clip2sam", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True
    ) as page:
        if reviewed is not None:
            with gr.Tab("Review"):
                review = ReviewTab(desk, reviewed)
            review.listen(page)
        with gr.Tab("Try"):
            TryTab(desk, config)
    page.queue(max_size=32, api_open=False)
    return page


def looks() -> dict[str, object]:
    """What `launch` takes of the page's looks."""
    return {"theme": gr.themes.Base(**THEME_FONTS), "css": CSS, "head": KEYS}
