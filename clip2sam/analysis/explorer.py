"""An interactive view of one image in Jupyter: type labels, move settings, click points, see the
masks at once.

    from clip2sam.analysis.explorer import Explorer
    Explorer(clip2sam.load("tiny"), "street.jpg", ["person", "traffic light"])

Needs the extra `explorer`: pip install "clip2sam[explorer]". Each model encodes the image once
(CLIP once for each method), so a change costs the text features of new labels, the points and SAM's
mask decoder.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import torch
import traitlets
from jaxtyping import Float

from clip2sam.clip.methods import METHODS, Method
from clip2sam.coco.document import coco_document
from clip2sam.coco.write import write_coco
from clip2sam.config import Config
from clip2sam.data.images import load_image
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.errors import Clip2SamError
from clip2sam.pipeline import ImageLike, LabelsLike, Segmenter
from clip2sam.points import PADDING
from clip2sam.result import Result
from clip2sam.types import Prediction, Prompts
from clip2sam.visualize import result_label_figure

Points = Float[np.ndarray, "_ 3"]
"""x, y in continuous pixels, and 1 (positive) or 0 (negative)."""

NEAR = 0.03
"""A click closer to a point than this share of the image's longest side is on that point."""


class Bench:
    """An image whose features are kept, and the points that a person changed, label by label.

    Args:
        segmenter: the models, and the settings that a run starts from, but for tiles: it is the
            whole image that is looked at.
        image: as for the segmenter.

    Raises:
        ImageError: the image can't be read.
    """

    def __init__(self, segmenter: Segmenter, image: ImageLike) -> None:
        self.segmenter = segmenter.with_config(tile="off")
        self.features = self.segmenter.encode([load_image(image)])
        self.changed: dict[str, Points] = {}
        """Label -> all of its points, for the labels whose points were changed by hand."""

    def run(self, labels: LabelSet, **settings: Any) -> Result:
        """The stages, with the changed points in place of the computed ones. A label whose points
        were changed is present, but gets no mask without a positive point. With one prompt an
        object each of its positive points is an object.

        Args:
            settings: fields of `Config` that differ from the segmenter's.
        """
        stages = self.segmenter.with_config(**settings)
        maps = stages.locate(self.features, labels)
        parts = {c.name: rows for c, rows in zip(labels.classes, labels.groups, strict=True)}
        wanted = {c.name: parts[c.name][0] for c in labels.wanted}
        changed = {wanted[name]: p for name, p in self.changed.items() if name in wanted}
        present = maps.present.clone()
        for name in (
            self.changed.keys() & wanted.keys()
        ):  # a joined one's points are its first part's
            present[:, list(parts[name])] = False
        present[:, list(changed)] = True
        maps = replace(maps, present=present)
        each = stages.config.prompts == "object"
        prompts = replace_points(stages.prompt(maps), changed, each_object=each)
        masks = stages.choose(maps, prompts, stages.decode(self.features, prompts))
        return stages.results(self.features, Prediction(maps, prompts, masks))[0]

    def click(self, result: Result, label: str, x: float | int, y: float | int, kind: int) -> None:
        """Add a point to a label, or remove the point that is there.

        Args:
            result: what is shown; the label's points in it are changed.
            x, y: in continuous pixels of the image.
            kind: 1 positive, 0 negative.
        """
        points = self.points(result, label)
        far = np.hypot(points[:, 0] - x, points[:, 1] - y) > NEAR * max(result.image.size)
        added = np.concatenate([points, [[x, y, kind]]])
        self.changed[label] = added if far.all() else points[far]

    def points(self, result: Result, label: str) -> Points:
        """All points of a label, each once: those that were changed, or those of its masks."""
        pairs = zip(result.points, result.labels, strict=True)
        shown = [points for points, of in pairs if of == label]
        rows = dict.fromkeys(tuple(row) for one in shown for row in one.tolist())
        return self.changed.get(label, np.array(list(rows), float).reshape(-1, 3))


def replace_points(
    prompts: Prompts, changed: Mapping[int, Points], *, each_object: bool
) -> Prompts:
    """The prompts of one image, with other points for some labels.

    Args:
        prompts: of one image. Boxes and mask inputs are dropped.
        changed: label index -> its points. A label without a positive one has no prompt.
        each_object: a prompt for each positive point, with the label's negative ones; else one
            prompt with all of them.
    """
    device = prompts.coords.device
    table = torch.cat([prompts.coords, prompts.point_labels[..., None].float()], dim=-1)
    index = prompts.label_index.tolist()
    rows = [(i, points) for i, points in zip(index, table, strict=True) if i not in changed]
    rows += [
        (i, torch.tensor(points, dtype=torch.float32, device=device))
        for i, all_points in changed.items()
        for points in (_each_object(all_points) if each_object else [all_points])
        if (points[:, 2] == 1).any()
    ]
    rows.sort(key=lambda row: row[0])
    longest = max((len(points) for _, points in rows), default=0)
    padded = torch.full((len(rows), longest, 3), float(PADDING), device=device)
    for row, (_, points) in zip(padded, rows, strict=True):
        row[: len(points)] = points
    return Prompts(
        coords=padded[..., :2],
        point_labels=padded[..., 2].to(prompts.point_labels.dtype),
        label_index=prompts.label_index.new_tensor([i for i, _ in rows]),
        counts=(len(rows),),
        sizes=prompts.sizes,
    )


def _each_object(points: Points) -> list[Points]:
    """The points of each object: a positive one and all negative ones."""
    negative = points[points[:, 2] == 0]
    return [np.concatenate([one[None], negative]) for one in points[points[:, 2] == 1]]


class ClickableImage(anywidget.AnyWidget):
    """An image that says where it was clicked."""

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


class Explorer(ipywidgets.VBox):
    """The controls and three panels: map, grid with points, masks. A notebook shows it.

    A click on a panel adds a positive point to the label shown, with the shift key a negative one;
    a click on a point removes it. With one mask an object a positive point is an object. `result`
    is what is shown, `accepted` the accepted masks, and
    `coco()` those as a COCO dataset.

    Args:
        segmenter: the models, and the settings to start with.
        image: as for the segmenter.
        labels: as for the segmenter; others can be typed, separated by commas.

    Raises:
        ImageError: the image can't be read.
        LabelError: a label is empty, given twice, or there is none.
    """

    def __init__(self, segmenter: Segmenter, image: ImageLike, labels: LabelsLike) -> None:
        self.bench, self.label_set = Bench(segmenter, image), as_label_set(labels)
        self.settings: dict[str, Any] = {}
        """The fields of `Config` whose controls were moved."""
        self.accepted: dict[str, Result] = {}
        """Label -> the result whose masks of that label were accepted."""
        self.result = self.bench.run(self.label_set)
        self._make_controls(segmenter)
        super().__init__(
            [
                self.text,
                ipywidgets.HBox([self.label, self.method, self.reset, self.accept]),
                ipywidgets.HBox([self.presence_threshold, self.point_threshold]),
                ipywidgets.HBox([self.grid, self.min_share]),
                ipywidgets.HBox([self.prompts, self.path, self.export]),
                self.status,
                self.image,
            ]
        )
        self._observe()
        self._draw()

    def _make_controls(self, segmenter: Segmenter) -> None:
        config, names = segmenter.config, self.result.class_names
        style = {"style": {"description_width": "90px"}, "continuous_update": False}
        wide, half = ({"layout": {"width": width}, **style} for width in ("98%", "48%"))
        self.text = ipywidgets.Text(", ".join(names), description="labels", **wide)
        self.label = ipywidgets.Dropdown(options=names, description="shown")
        self.method = ipywidgets.Dropdown(
            options=_methods(config.method), value=config.method, description="method"
        )
        self.presence_threshold = ipywidgets.FloatSlider(
            config.presence_threshold or 0.0,
            min=-0.2,
            max=1.0,
            step=0.01,
            description="presence",
            **half,
        )
        self.point_threshold = ipywidgets.FloatSlider(
            config.positive_from, min=0.05, max=1.0, step=0.05, description="points from", **half
        )
        self.min_share = ipywidgets.FloatSlider(
            config.min_share, min=0.0, max=1.0, step=0.05, description="least share", **half
        )
        self.prompts = ipywidgets.Dropdown(
            options=[("for each object", "object"), ("for each label", "label")],
            value=config.prompts,
            description="one mask",
        )
        side = self.bench.segmenter.clip.patches(config.resolution)
        cells = config.grid if isinstance(config.grid, int) else min(7, side)
        most = min(max(14, cells), side)  # a grid that is finer than the map is refused
        self.grid = ipywidgets.IntSlider(cells, min=2, max=most, description="grid", **half)
        self.reset = ipywidgets.Button(description="forget clicks")
        self.accept = ipywidgets.Button(description="accept masks")
        self.path = ipywidgets.Text("annotations.json", description="file")
        self.export = ipywidgets.Button(description="write COCO")
        self.status = ipywidgets.Label()
        self.image = ClickableImage()

    def _observe(self) -> None:
        self.text.observe(lambda _: self._relabel(), "value")
        fields = ("method", "presence_threshold", "point_threshold", "grid", "min_share", "prompts")
        for field in fields:
            getattr(self, field).observe(partial(self._set, field), "value")
        self.label.observe(self._draw, "value")
        self.image.observe(lambda change: self._clicked(*change["new"][:3]), "click")
        self.reset.on_click(lambda _: self._forget())
        self.accept.on_click(lambda _: self._accept())
        self.export.on_click(lambda _: self._export())

    def coco(self) -> dict[str, Any]:
        """The accepted masks as a COCO dataset of this image; the categories are their labels."""
        annotations = [
            a
            for label, result in self.accepted.items()
            for a in result.annotations
            if a.label == label
        ]
        classes = [
            next(c for c in result.label_set.wanted if c.name == label)
            for label, result in self.accepted.items()
        ]
        return coco_document([replace(self.result.record, annotations=tuple(annotations))], classes)

    def _relabel(self) -> None:
        """Other labels were typed."""
        try:
            self.label_set = as_label_set([name.strip() for name in self.text.value.split(",")])
        except Clip2SamError as error:
            self.status.value = str(error)
            return
        self.result = self.bench.run(self.label_set, **self.settings)
        shown, names = self.label.value, self.result.class_names
        # The options and the value change one after the other: draw only after both.
        self.label.unobserve(self._draw, "value")
        self.label.options = names
        self.label.value = shown if shown in names else names[0]
        self.label.observe(self._draw, "value")
        self._draw()

    def _set(self, field: str, change: Any) -> None:
        """A control was moved. Fields whose control was never moved keep the segmenter's value,
        which the control may be unable to show (None, "half")."""
        if field == "point_threshold" and change["new"] == self._config().positive_from:
            return  # it is what the settings mean already
        self.settings[field] = change["new"]
        self._run()
        self.point_threshold.value = self._config().positive_from  # other prompts, other default

    def _config(self) -> Config:
        """The settings with what the controls changed."""
        return self.bench.segmenter.with_config(**self.settings).config

    def _run(self) -> None:
        self.result = self.bench.run(self.label_set, **self.settings)
        self._draw()

    def _draw(self, _: object = None) -> None:
        label = self.label.value
        index = self.result.class_names.index(label)
        self.figure = result_label_figure(self.result, index, self._prompts_drawn(label))
        drawn = BytesIO()  # quick: a notebook's own small PNG takes longer to pack than to draw
        self.figure.savefig(drawn, format="png", dpi=72, pil_kwargs={"compress_level": 1})
        self.image.png = drawn.getvalue()
        self.status.value = f"{label}: presence {self.result.presence[index]:.3f}, {self._found()}"

    def _prompts_drawn(self, label: str) -> list[Points]:
        """The label's prompts: first those of the masks, whose numbers they have, then points that
        were clicked and gave no mask that is shown."""
        pairs = zip(self.result.points, self.result.labels, strict=True)
        shown = [points for points, of in pairs if of == label]
        known = {tuple(row) for points in shown for row in points.tolist()}
        every = self.bench.points(self.result, label).astype(np.float32)
        rest = [row for row in every if tuple(row.tolist()) not in known]
        return [*shown, *(row[None] for row in rest)]

    def _found(self) -> str:
        """The masks of the label shown with score and share, and the shares of those that are left
        out; or why it has none."""
        label = self.label.value
        mine = [a for a in self.result.everything if a.label == label]
        if label in self.result.labels:
            if self.prompts.value == "label":
                return f"mask, score {mine[0].score:.2f}"
            least = self._config().min_share
            shown = [a for a in mine if a.share >= least]
            scores = ", ".join(f"{a.score:.2f} ({a.share:.2f})" for a in shown)
            weak = ", ".join(f"({a.share:.2f})" for a in mine if a.share < least)
            objects = f"{len(shown)} object{'s' * (len(shown) != 1)}"
            return f"{objects}, score (share) {scores}" + (f"; left out {weak}" if weak else "")
        points = self.bench.changed.get(label)
        if points is not None and not (points[:, 2] == 1).any():
            return "no mask: it has no positive point"
        return next(a.reason for a in self.result.absent if a.label == label)

    def _clicked(self, across: float, down: float, kind: int) -> None:
        """A click, as shares of the figure's width and height. One beside the panels does
        nothing."""
        place = self.figure.bbox.width * across, self.figure.bbox.height * (1 - down)
        panel = next((ax for ax in self.figure.axes if ax.bbox.contains(*place)), None)
        if panel is not None:
            x, y = panel.transData.inverted().transform(place)
            self.bench.click(self.result, self.label.value, float(x), float(y), int(kind))
            self._run()

    def _forget(self) -> None:
        self.bench.changed.pop(self.label.value, None)
        self._run()

    def _accept(self) -> None:
        """Accept the shown label's masks as they are now, in place of those accepted earlier."""
        label = self.label.value
        self.accepted.pop(label, None)
        if label in self.result.labels:
            self.accepted[label] = self.result
        accepted = f"accepted: {', '.join(self.accepted) or 'nothing'}"
        none = "" if label in self.accepted else f"{label} has no mask; "
        self.status.value = f"{none}{accepted}"

    def _export(self) -> None:
        if not self.accepted:
            self.status.value = f"no mask is accepted yet, so {self.path.value} was not written"
            return
        document = self.coco()
        try:
            write_coco(self.path.value, document)
        except Clip2SamError as error:
            self.status.value = str(error)
        else:
            count = len(document["annotations"])
            self.status.value = f"wrote {count} masks to {self.path.value}"


def _methods(own: Method) -> list[tuple[str, Method]]:
    """The published methods by name, and the segmenter's own if it is none of them."""
    methods = list(METHODS.items())
    return methods if own in METHODS.values() else [*methods, (f"{own.name} (own)", own)]
