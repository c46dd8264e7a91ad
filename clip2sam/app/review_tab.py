"""The tab "Review": a run's images in the order of doubt; accept, reject, correct."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from clip2sam.app.desk import Desk
from clip2sam.app.easel import ONE_AT_A_TIME, Easel
from clip2sam.app.rounds import Reviewed, Round
from clip2sam.app.words import place_of
from clip2sam.errors import Clip2SamError

HINT = "This image can't be shown; reject it, or go on."

KEYS = """
<script>
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, [contenteditable], [role=listbox]");
  if ((typing && typing.type !== "radio") || event.ctrlKey || event.metaKey || event.altKey) return;
  const name = { a: "accept", r: "reject", n: "next", p: "previous", u: "undo" }[event.key];
  const buttons = ["review", "try"].map((tab) => document.querySelector(`#${tab}-${name}`));
  const button = buttons.find((one) => one && one.offsetParent);
  if (!button) return;
  event.preventDefault();
  button.click();
});
</script>
"""
"""Keys press the buttons while the tab is shown."""


class ReviewTab:
    """The widgets, and what they do.

    Args:
        desk: the models, which only a correction needs.
        reviewed: the run.
    """

    def __init__(self, desk: Desk, reviewed: Reviewed) -> None:
        self.desk, self.reviewed = desk, reviewed
        self.state = gr.State(None)
        self.place = gr.HTML(elem_id="review-place")
        with gr.Row():
            self.previous = gr.Button("Previous (p)", elem_id="review-previous")
            self.accept = gr.Button("Accept (a)", variant="primary", elem_id="review-accept")
            self.reject = gr.Button("Reject (r)", variant="stop", elem_id="review-reject")
            self.next = gr.Button("Next (n)", elem_id="review-next")
        self.easel = Easel(desk, "review", lambda way: way and way.canvas, HINT)

    @property
    def outputs(self) -> list[Any]:
        """All that changes."""
        return [self.state, *self.easel.outputs, self.place, self.accept]

    def listen(self, page: gr.Blocks) -> None:
        """Let the widgets do what they are for, and show the first image."""
        page.load(self._begin, None, self.outputs, **ONE_AT_A_TIME)
        self.easel.listen(self.state, self.outputs, self._shown)
        for button, do in (
            (self.previous, lambda way: way.go(-1)),
            (self.next, lambda way: way.go(1)),
            (self.accept, Round.accept),
            (self.reject, Round.reject),
        ):
            button.click(self._decide(do), [self.state], self.outputs, **ONE_AT_A_TIME)

    def _begin(self) -> list[Any]:
        return self._shown(Round(self.reviewed), "", False)

    def _decide(self, do: Callable[[Round], None]) -> Callable[[Round | None], list[Any]]:
        def handle(way: Round | None) -> list[Any]:
            if way is None:  # the session was idle for long
                return self._begin()
            try:
                do(way)
            except Clip2SamError as error:
                return self._shown(way, str(error), True)
            return self._shown(way, "", False)

        return handle

    def _shown(self, way: Round | None, note: str, wrong: bool) -> list[Any]:
        """The state, and the values of all widgets."""
        if way is None:
            return self._begin()
        changed = way.canvas is not None and way.canvas.changed
        accept = "Save correction (a)" if changed else "Accept (a)"
        return [way, *self.easel.shown(way.canvas, note, wrong), place_of(way), accept]
