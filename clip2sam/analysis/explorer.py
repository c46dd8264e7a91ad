"""An interactive look at one picture in Jupyter: type labels, move settings, click points, see the mask at once.

    from clip2sam.analysis.explorer import Explorer
    Explorer(clip2sam.load("tiny"), "street.jpg", ["person", "traffic light"])

Needs the extra `explorer`: pip install "clip2sam[explorer]". The picture is encoded once by each model (by CLIP once
for each method), so that a change costs the text features of new labels, the points and SAM's decoder.
"""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import torch
import traitlets
from jaxtyping import Float
from torch import Tensor

from clip2sam.clip import METHODS
from clip2sam.coco.document import coco_document, write_coco
from clip2sam.config import Config
from clip2sam.data.images import load_image
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.errors import Clip2SamError
from clip2sam.pipeline import ImageLike, LabelsLike, Segmenter
from clip2sam.points import PADDING
from clip2sam.result import Result, as_result
from clip2sam.types import PointPrompts, Prediction
from clip2sam.visualize import result_label_figure

Points = Float[np.ndarray, "points 3"]
"""x, y in continuous pixels, and 1 (positive) or 0 (negative)."""

NEAR = 0.03
"""A click this near to a point, as a share of the picture's longest side, means that point."""


class Bench:
    """A picture whose embeddings are kept, and the points that a person changed, label by label.

    Args:
        segmenter: the models. The settings are given with each run.
        image: as for the segmenter.

    Raises:
        ImageError: the picture can't be read.
    """

    def __init__(self, segmenter: Segmenter, image: ImageLike) -> None:
        self.segmenter, self.image = segmenter, load_image(image)
        self.changed: dict[str, Points] = {}
        """Label -> all of its points, for the labels whose points were changed by hand."""
        self._tokens: dict[str, Tensor] = {}
        self._embedding: Tensor | None = None

    @torch.no_grad()
    def run(self, labels: LabelSet, config: Config) -> Result:
        """The pipeline with these settings. A label whose points were changed is present and has those."""
        settings = Segmenter(self.segmenter.clip, self.segmenter.sam, config)
        if config.method.name not in self._tokens:
            clip = settings.clip
            self._tokens[config.method.name] = clip.encode_image(
                clip.preprocess([self.image]), config.method
            )
        if self._embedding is None:
            self._embedding = settings.sam.encode_image(settings.sam.preprocess([self.image]))[0]
        maps = settings._maps(self._tokens[config.method.name], labels)
        present, grids, prompts = settings._prompts(self.image, labels, maps)
        prompts = self._with_changes(labels, prompts)
        candidates = settings._decode(self.image, prompts, self._embedding)
        masks = settings._masks(self.image, maps, prompts, candidates)
        return as_result(
            self.image,
            labels,
            config,
            settings.sam,
            Prediction(maps, grids, present, prompts, masks),
        )

    def click(self, result: Result, label: str, x: float | int, y: float | int, kind: int) -> None:
        """Add a point to a label, or remove the one that is there.

        Args:
            result: what is shown: the label's points in it are those that are changed.
            x, y: in continuous pixels of the picture.
            kind: 1 positive, 0 negative.
        """
        index = result.class_names.index(label)
        shown = [
            p for p, of in zip(result.points, result.label_indices, strict=True) if of == index
        ]
        points = self.changed.get(label, np.concatenate([np.zeros((0, 3)), *shown]))
        far = np.hypot(points[:, 0] - x, points[:, 1] - y) > NEAR * max(self.image.size)
        self.changed[label] = (
            points[far] if not far.all() else np.concatenate([points, [[x, y, kind]]])
        )

    def _with_changes(self, labels: LabelSet, prompts: PointPrompts) -> PointPrompts:
        """The prompts, those of changed labels replaced. Without a positive point a label has no prompt."""
        wanted = [c.name for c in labels.wanted]
        mine = {
            wanted.index(name): points for name, points in self.changed.items() if name in wanted
        }
        if not mine:
            return prompts
        where = prompts.coords.device
        kept = [i for i, label in enumerate(prompts.label_index.tolist()) if label not in mine]
        rows = [
            (
                int(prompts.label_index[i]),
                torch.cat([prompts.coords[i], prompts.point_labels[i, :, None].float()], -1),
            )
            for i in kept
        ]
        rows += [
            (i, torch.tensor(p, dtype=torch.float32, device=where))
            for i, p in mine.items()
            if (p[:, 2] == 1).any()
        ]
        rows.sort(key=lambda row: row[0])
        longest = max((len(points) for _, points in rows), default=0)
        table = torch.full((len(rows), longest, 3), float(PADDING), device=where)
        for row, (_, points) in zip(table, rows, strict=True):
            row[: len(points)] = points
        index = torch.tensor([i for i, _ in rows], dtype=prompts.label_index.dtype, device=where)
        return PointPrompts(table[..., :2], table[..., 2].to(prompts.point_labels.dtype), index)


class ClickablePicture(anywidget.AnyWidget):
    """A picture that says where it was clicked."""

    _esm = """
    function render({ model, el }) {
      const image = document.createElement("img");
      image.style.maxWidth = "100%";
      image.style.cursor = "crosshair";
      const show = () => {
        const old = image.src;
        image.src = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
        if (old) URL.revokeObjectURL(old);
      };
      image.addEventListener("click", (event) => {
        const box = image.getBoundingClientRect();
        const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
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
    """x and y as shares of the width and the height, 1 for a plain click and 0 with the shift key, and a count."""


class Explorer(ipywidgets.VBox):
    """The controls and three panels: map, grid with points, mask. A notebook shows it as it is.

    A click on a panel adds a positive point to the label shown, with the shift key a negative one; a click on a point
    removes it. `result` is what is shown, `accepted` what was accepted, `coco()` that as a data set.

    Args:
        segmenter: the models, and the settings to begin with.
        image: as for the segmenter.
        labels: as for the segmenter; others can be typed, separated by commas.
    """

    def __init__(self, segmenter: Segmenter, image: ImageLike, labels: LabelsLike) -> None:
        self.bench, self.label_set = Bench(segmenter, image), as_label_set(labels)
        self.config, self.accepted = segmenter.config, dict[str, Result]()
        self.result = self.bench.run(self.label_set, self.config)
        names = self.result.class_names
        wide = {"layout": {"width": "98%"}, "style": {"description_width": "90px"}}
        half = {
            "layout": {"width": "48%"},
            "style": {"description_width": "90px"},
            "continuous_update": False,
        }
        grid = self.config.grid if isinstance(self.config.grid, int) else 7
        self.text = ipywidgets.Text(
            ", ".join(names), description="labels", continuous_update=False, **wide
        )
        self.label = ipywidgets.Dropdown(options=names, description="shown")
        self.method = ipywidgets.Dropdown(
            options=list(METHODS), value=self.config.method.name, description="method"
        )
        self.presence = ipywidgets.FloatSlider(
            self.config.presence or 0.0,
            min=-0.2,
            max=1.0,
            step=0.01,
            description="presence",
            **half,
        )
        self.threshold = ipywidgets.FloatSlider(
            self.config.threshold, min=0.05, max=1.0, step=0.05, description="points from", **half
        )
        self.grid = ipywidgets.IntSlider(grid, min=2, max=14, description="grid", **half)
        self.reset = ipywidgets.Button(description="forget clicks")
        self.accept = ipywidgets.Button(description="accept mask")
        self.path = ipywidgets.Text("annotations.json", description="file")
        self.export = ipywidgets.Button(description="write COCO")
        self.status = ipywidgets.Label()
        self.picture = ClickablePicture()
        super().__init__(
            [
                self.text,
                ipywidgets.HBox([self.label, self.method, self.reset, self.accept]),
                ipywidgets.HBox([self.presence, self.threshold]),
                ipywidgets.HBox([self.grid, self.path, self.export]),
                self.status,
                self.picture,
            ]
        )
        self.text.observe(lambda _: self._relabel(), "value")
        for control in (self.method, self.presence, self.threshold, self.grid):
            control.observe(lambda _: self._run(), "value")
        self.label.observe(self._draw, "value")
        self.picture.observe(lambda change: self._clicked(*change["new"][:3]), "click")
        self.reset.on_click(lambda _: self._forget())
        self.accept.on_click(lambda _: self._accept())
        self.export.on_click(lambda _: self._export())
        self._draw()

    def coco(self) -> dict[str, Any]:
        """The accepted masks as a COCO data set of this picture."""
        annotations = [
            a
            for label, result in self.accepted.items()
            for a in result.annotations
            if a.label == label
        ]
        return coco_document(
            [self.result.record()],
            [annotations],
            as_label_set(list(self.accepted) or self._names()),
        )

    def _names(self) -> Sequence[str]:
        return self.result.class_names

    def _relabel(self) -> None:
        """Other labels were typed."""
        try:
            self.label_set = as_label_set([name.strip() for name in self.text.value.split(",")])
        except Clip2SamError as error:
            self.status.value = str(error)
            return
        self._decide()
        shown, names = self.label.value, self._names()
        self.label.unobserve(
            self._draw, "value"
        )  # the list and what is chosen in it change one after the other
        self.label.options = names
        self.label.value = shown if shown in names else names[0]
        self.label.observe(self._draw, "value")
        self._draw()

    def _run(self) -> None:
        self._decide()
        self._draw()

    def _decide(self) -> None:
        self.config = replace(
            self.config,
            method=METHODS[self.method.value],
            presence=self.presence.value,
            threshold=self.threshold.value,
            grid=self.grid.value,
        )
        self.result = self.bench.run(self.label_set, self.config)

    def _draw(self, _: object = None) -> None:
        index = self._names().index(self.label.value)
        self._figure = result_label_figure(self.result, index)
        drawn = (
            BytesIO()
        )  # not the small PNG of a stored notebook, whose packing takes longer than the drawing
        self._figure.savefig(drawn, format="png", dpi=72, pil_kwargs={"compress_level": 1})
        self.picture.png = drawn.getvalue()
        found = self.result.labels.count(self.label.value)
        self.status.value = f"{self.label.value}: presence {self.result.presence[index]:.3f}, " + (
            "mask"
            if found
            else next(a.reason for a in self.result.absent if a.label == self.label.value)
        )

    def _clicked(self, across: float, down: float, kind: int) -> None:
        """A click at shares of the whole drawing's width and height; one beside the panels does nothing."""
        place = self._figure.bbox.width * across, self._figure.bbox.height * (1 - down)
        panel = next((ax for ax in self._figure.axes if ax.bbox.contains(*place)), None)
        if panel is not None:
            x, y = panel.transData.inverted().transform(place)
            self.bench.click(self.result, self.label.value, float(x), float(y), int(kind))
            self._run()

    def _forget(self) -> None:
        self.bench.changed.pop(self.label.value, None)
        self._run()

    def _accept(self) -> None:
        """Take over the shown label's masks as they are now, in the place of those accepted earlier."""
        self.accepted[self.label.value] = self.result
        self.status.value = f"accepted: {', '.join(self.accepted)}"

    def _export(self) -> None:
        try:
            write_coco(Path(self.path.value), self.coco())
        except Clip2SamError as error:
            self.status.value = str(error)
        else:
            self.status.value = (
                f"wrote {len(self.coco()['annotations'])} masks to {self.path.value}"
            )
