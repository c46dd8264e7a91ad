"""The widgets around a canvas: the picture that is clicked, the tools, the list of masks. Both tabs
have them."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from clip2sam.app.canvas import TOOLS, Canvas
from clip2sam.app.desk import Desk
from clip2sam.app.drawing import canvas_picture
from clip2sam.app.words import mask_names, said
from clip2sam.errors import Clip2SamError, ConfigError

ONE_AT_A_TIME: dict[str, Any] = {
    "concurrency_id": "models",
    "concurrency_limit": 1,
    "api_visibility": "private",
    "show_progress": "hidden",
}
"""Of all events: the models run once at a time, whoever asks."""

CLICK = """
element.addEventListener("click", (event) => {
  const image = event.target.closest("img.canvas");
  if (!image) return;
  const box = image.getBoundingClientRect();
  trigger("click", {
    x: (event.clientX - box.left) / box.width,
    y: (event.clientY - box.top) / box.height,
    beside: event.shiftKey,
  });
});
"""
"""Where the picture was clicked, as shares of its width and height."""


def picture(jpeg: bytes, name: str, kind: str = "") -> str:
    """A picture within the page: no file is made of it."""
    data = b64encode(jpeg).decode()
    return (
        f'<img class="{kind}" alt="{name}" draggable="false" src="data:image/jpeg;base64,{data}">'
    )


class Easel:
    """The widgets of one tab, in its present layout context.

    Args:
        desk: the models.
        name: of the tab, for the widgets' ids.
        canvas_of: the canvas in a session's state; None: there is none.
    """

    def __init__(
        self, desk: Desk, name: str, canvas_of: Callable[[Any], Canvas | None], hint: str
    ) -> None:
        self.desk, self.canvas_of, self.hint = desk, canvas_of, hint
        self.status = gr.HTML(said(hint), elem_id=f"{name}-status")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self.picture = gr.HTML(js_on_load=CLICK, elem_id=f"{name}-canvas")
            with gr.Column(scale=1, min_width=220):
                self._tools(name)

    def _tools(self, name: str) -> None:
        tools = [(text, tool) for tool, text in TOOLS.items()]
        self.label = gr.Radio([], label="label: clicks are for it", elem_id=f"{name}-label")
        self.tool = gr.Radio(tools, value="add", label="a click is a", elem_id=f"{name}-tool")
        with gr.Row():
            self.undo = gr.Button("Undo (u)", size="sm", min_width=90, elem_id=f"{name}-undo")
            self.forget = gr.Button(
                "Forget clicks", size="sm", min_width=90, elem_id=f"{name}-forget"
            )
        self.masks = gr.Dropdown([], label="mask", elem_id=f"{name}-masks", filterable=False)
        self.target = gr.Dropdown([], label="to label", elem_id=f"{name}-target")
        with gr.Row():
            self.move = gr.Button("Move", size="sm", min_width=90, elem_id=f"{name}-move")
            self.remove = gr.Button("Remove", size="sm", min_width=90, elem_id=f"{name}-remove")

    @property
    def outputs(self) -> list[Any]:
        """What `shown` gives values for."""
        return [self.status, self.label, self.tool, self.picture, self.masks, self.target]

    def shown(self, canvas: Canvas | None, note: str, wrong: bool) -> list[Any]:
        """The widgets' values."""
        if canvas is None:
            none = [gr.update(choices=[], value=None)] * 2
            return [said(note, wrong=wrong), gr.update(choices=[], value=None), "add", "", *none]
        masks = canvas.masks()
        listed = [(name, place) for place, name in enumerate(mask_names(canvas))]
        chosen = [place for place, (key, _) in enumerate(masks) if key == canvas.chosen]
        return [
            said(note, wrong=wrong),
            gr.update(choices=list(canvas.names), value=canvas.label),
            canvas.tool,
            picture(canvas_picture(canvas), "the image with its masks", "canvas"),
            gr.update(choices=listed, value=chosen[0] if chosen else None),
            gr.update(choices=list(canvas.names), value=canvas.label),
        ]

    def act(self, do: Callable[..., str], state: Any, *given: Any) -> tuple[Any, str, bool]:
        """Do something to the canvas of a session: the session's state, what is to be said, and
        whether it went wrong."""
        canvas: Any = self.canvas_of(state)
        try:
            if canvas is None:
                raise ConfigError(self.hint)
            with self.desk.using(canvas):
                return state, do(canvas, *given), False
        except Clip2SamError as error:
            return state, str(error), True

    def listen(
        self, state: gr.State, outputs: Sequence[Any], show: Callable[..., Any]
    ) -> list[Any]:
        """Let the widgets do what they are for; gives the events.

        Args:
            outputs: all that changes with the canvas.
            show: their values, from what `act` gives.
        """

        def when(event: Any, do: Callable[..., str], *inputs: Any) -> Any:
            def handle(session: Any, *given: Any) -> Any:
                return show(*self.act(do, session, *given))

            return event(handle, [state, *inputs], list(outputs), **ONE_AT_A_TIME)

        def clicked(session: Any, event: gr.EventData) -> Any:
            return show(*self.act(_click, session, event.x, event.y, event.beside))

        return [
            self.picture.click(clicked, [state], list(outputs), **ONE_AT_A_TIME),
            when(self.label.input, _select, self.label),
            when(self.tool.input, _take, self.tool),
            when(self.undo.click, _undo),
            when(self.forget.click, _forget),
            when(self.masks.input, _choose, self.masks),
            when(self.move.click, _move, self.target),
            when(self.remove.click, _remove),
        ]


def _click(canvas: Canvas, across: float, down: float, beside: bool) -> str:
    height, width = canvas.image.size
    x, y = (min(max(float(share), 0.0), 1.0) for share in (across, down))
    tool = canvas.tool
    if beside and tool == "add":
        canvas.tool = "beside"
    try:
        return canvas.click(x * width, y * height)
    finally:
        canvas.tool = tool


def _select(canvas: Canvas, label: str) -> str:
    canvas.select(label)
    return ""


def _take(canvas: Canvas, tool: str) -> str:
    canvas.take(tool)
    return ""


def _undo(canvas: Canvas) -> str:
    return "took back the last change" if canvas.undo() else "there is nothing to undo"


def _forget(canvas: Canvas) -> str:
    canvas.forget()
    return f"{canvas.label}: no point or box is set by hand"


def _choose(canvas: Canvas, place: int) -> str:
    canvas.choose(place)
    return ""


def _move(canvas: Canvas, label: str) -> str:
    canvas.move(label)
    return f"moved to {label}"


def _remove(canvas: Canvas) -> str:
    canvas.remove()
    return "removed"
