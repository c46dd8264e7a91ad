"""The explorer's widgets: what they are, and how they lie. What they do is in `explorer.py`."""

from html import escape

import anywidget
import ipywidgets
import traitlets

from clip2sam.clip.methods import METHODS, Method
from clip2sam.config import Config
from clip2sam.data.palette import RGB

HINT = (
    "Click: a point on the object. Shift-click: a point beside it, to leave out. "
    "Click on a point: it goes away. All for the selected label."
)
"""What is said under the picture."""

LABELS_HINT = "Separate labels by ; or write each on a line of its own, then press Tab."


class ClickableImage(anywidget.AnyWidget):
    """An image that says where it was clicked."""

    _esm = """
    function render({ model, el }) {
      const image = document.createElement("img");
      image.style.maxWidth = "100%";
      image.style.cursor = "crosshair";
      image.draggable = false;  // a click with the mouse not quite still is a click
      const show = () => {
        const old = image.src;
        image.src = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
        if (old) URL.revokeObjectURL(old);
      };
      image.addEventListener("mousedown", (event) => {
        if (!event.shiftKey) return;
        event.preventDefault();  // else JupyterLab and the browser select cells and text
        document.activeElement?.blur();  // a text field gives what was typed, as on a plain click
      });
      image.addEventListener("click", (event) => {
        const box = image.getBoundingClientRect();
        const x = (event.clientX - box.left) / box.width;
        const y = (event.clientY - box.top) / box.height;
        model.set("click", [x, y, event.shiftKey ? 0 : 1, model.get("click")[3] + 1]);
        model.save_changes();
      });
      model.on("change:png", show);
      show();
      el.appendChild(image);
    }
    export default { render };
    """
    png = traitlets.Bytes(b"").tag(sync=True)
    click = traitlets.List([0.0, 0.0, 1, 0]).tag(sync=True)
    """x and y as shares of the width and the height, 1 for a plain click and 0 with the shift key,
    and the number of clicks."""


class Controls:
    """All widgets, and `box`, which holds them.

    Args:
        config: the settings that they show at first.
        names: the labels.
        side: of CLIP's map, in patches: a finer grid is refused.
        several: whether there are several images to go through.
    """

    def __init__(self, config: Config, names: tuple[str, ...], side: int, several: bool) -> None:
        self._make_settings(config, side)
        self.text = ipywidgets.Textarea(
            "; ".join(names),
            description="labels",
            rows=2,
            continuous_update=False,
            style={"description_width": "90px"},
            layout={"width": "98%"},
        )
        self.label = ipywidgets.Dropdown(
            options=names, description="selected", tooltip="The label that is shown and clicked for"
        )
        self.legend = ipywidgets.HTML()
        self.reset = ipywidgets.Button(description="forget clicks")
        self.previous = ipywidgets.Button(description="previous image")
        self.following = ipywidgets.Button(description="next image")
        self.place = ipywidgets.Label()
        self.status, self.image = ipywidgets.HTML(), ClickableImage()  # a Label would cut text off
        self.status.add_class("clip2sam-status")
        self._make_accepted()
        images = ipywidgets.HBox([self.previous, self.following, self.place])
        self.box = ipywidgets.VBox(
            [
                *([images] if several else []),
                self.text,
                ipywidgets.HTML(LABELS_HINT, layout={"margin": "0 0 0 100px"}),
                ipywidgets.HBox([self.method, self.prompts]),
                ipywidgets.HBox([self.presence_threshold, self.point_threshold]),
                ipywidgets.HBox([self.grid, self.min_share]),
                ipywidgets.HBox([self.label, self.legend]),
                self.status,
                self.image,
                ipywidgets.HTML(HINT),
                ipywidgets.HBox([self.reset, self.accept, self.undo]),
                ipywidgets.HBox([self.accepted, self.remove]),
                ipywidgets.HBox([self.path, self.export]),
            ]
        )

    def _make_settings(self, config: Config, side: int) -> None:
        """The fields of `Config`, each by its name."""
        half = {
            "style": {"description_width": "90px"},
            "continuous_update": False,
            "layout": {"width": "48%"},
        }
        self.method = ipywidgets.Dropdown(
            options=_methods(config.method),
            value=config.method,
            description="method",
            tooltip="How CLIP's features become a similarity map",
        )
        self.presence_threshold = ipywidgets.FloatSlider(
            config.presence_threshold or 0.0,
            min=-1e3,
            max=1e3,
            step=0.001,
            readout_format=".3f",
            description="presence",
            tooltip="A label is present if its raw score reaches this somewhere in the image",
            **half,
        )
        self.point_threshold = ipywidgets.FloatSlider(
            config.positive_from,
            min=0.05,
            max=1.0,
            step=0.05,
            description="points from",
            tooltip="Points are put where the score reaches this share of the label's highest",
            **half,
        )
        self.min_share = ipywidgets.FloatSlider(
            config.min_share,
            min=0.0,
            max=1.0,
            step=0.05,
            description="least share",
            tooltip="Masks below this share of the label's best mean raw score are left out",
            **half,
        )
        self.prompts = ipywidgets.Dropdown(
            options=[("for each object", "object"), ("for each label", "label")],
            value=config.prompts,
            description="one mask",
            tooltip="What gets a mask of its own",
        )
        cells = config.grid if isinstance(config.grid, int) else min(7, side)
        most = min(max(14, cells), side)
        self.grid = ipywidgets.IntSlider(
            cells,
            min=2,
            max=most,
            description="grid",
            tooltip="Cells a side of the grid that points are chosen on",
            **half,
        )

    def _make_accepted(self) -> None:
        self.accept = ipywidgets.Button(description="accept masks")
        self.undo = ipywidgets.Button(description="undo")
        self.accepted = ipywidgets.Select(
            description="accepted", rows=4, layout={"width": "70%"}, options=()
        )
        self.remove = ipywidgets.Button(description="remove")
        self.path = ipywidgets.Text("annotations.json", description="file")
        self.export = ipywidgets.Button(description="write COCO")


def show_range(slider: ipywidgets.FloatSlider, low: float, high: float) -> None:
    """Let a slider go from `low` to `high`, or farther if its value lies outside: that stays."""
    low, high = min(low, slider.value), max(high, slider.value)
    slider.min, slider.max = min(low, slider.min), max(high, slider.max)
    slider.min, slider.max = low, high


def legend(rows: list[tuple[str, RGB, int, bool]]) -> str:
    """HTML that names labels in their colours.

    Args:
        rows: name, colour, number of masks, and whether it is selected.
    """
    parts = []
    for name, fill, masks, selected in rows:
        tone = ", ".join(str(round(255 * part)) for part in fill)
        text = f"{escape(name)} ({masks})"
        text = f"<b><u>{text}</u></b>" if selected else text
        parts.append(f'<span style="color: rgb({tone})">&#9632;</span>&nbsp;{text}')
    return " &ensp; ".join(parts)


def _methods(own: Method) -> list[tuple[str, Method]]:
    """The published methods by name, and the segmenter's own if it is none of them."""
    methods = list(METHODS.items())
    return methods if own in METHODS.values() else [*methods, (f"{own.name} (own)", own)]
