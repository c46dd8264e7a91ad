"""The tab "Try": an image, labels, settings; masks, maps and reasons."""

from typing import Any

import gradio as gr

from clip2sam.app.desk import Desk
from clip2sam.app.drawing import maps_picture, why_picture
from clip2sam.app.easel import ONE_AT_A_TIME, Easel, picture
from clip2sam.app.trial import Trial, shown_settings
from clip2sam.app.words import said, why_table
from clip2sam.clip.methods import METHODS
from clip2sam.config import PROMPTS, Config
from clip2sam.errors import Clip2SamError, LabelError

HINT = "Load an image, type labels, press Find."


class TryTab:
    """The widgets, and what they do.

    Args:
        desk: the models.
        config: the settings that are shown first.
    """

    def __init__(self, desk: Desk, config: Config) -> None:
        self.desk = desk
        self.state = gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                self._inputs(config)
            with gr.Column(scale=3, min_width=320):
                self.easel = Easel(desk, "try", lambda state: state, HINT)
                self.why = gr.HTML(elem_id="try-why")
                self.maps = gr.HTML(elem_id="try-maps")
                self.export = gr.DownloadButton(
                    "Write COCO", interactive=False, elem_id="try-export"
                )
        with gr.Accordion("The selected label through all stages", open=True):
            self.stages = gr.HTML(elem_id="try-stages")
        self._listen()

    def _inputs(self, config: Config) -> None:
        now = shown_settings(config)
        self.image = gr.Image(
            sources=["upload", "clipboard"],
            type="filepath",
            label="image",
            height=220,
            buttons=[],
            elem_id="try-image",
        )
        self.image.preprocess = _as_it_came
        self.labels = gr.Textbox(
            label="labels",
            info="one a line, or separated by ;",
            lines=3,
            max_lines=12,
            max_length=10_000,
            elem_id="try-labels",
        )
        self.find = gr.Button("Find", variant="primary", elem_id="try-find")
        own = [] if now["method"] in METHODS else [now["method"]]
        self.method = gr.Dropdown(
            [*METHODS, *own], value=now["method"], label="CLIP method", elem_id="try-method"
        )
        self.presence = gr.Slider(
            min(now["presence_threshold"], -0.5),
            max(now["presence_threshold"], 1.5),
            now["presence_threshold"],
            step=0.001,
            label="presence threshold",
            info="the raw score that a label must reach",
            elem_id="try-presence",
        )
        self.points = gr.Slider(
            0.05,
            1.0,
            now["point_threshold"],
            step=0.05,
            label="grid threshold",
            info="points where the score is this share of the highest",
            elem_id="try-points",
        )
        self.prompts = gr.Radio(
            [(text, kind) for kind, text in PROMPTS.items()],
            value=now["prompts"],
            label="masks",
            elem_id="try-prompts",
        )
        self.share = gr.Slider(
            0.0,
            1.0,
            now["min_share"],
            step=0.05,
            label="least share",
            info="beside the label's best mask",
            elem_id="try-share",
        )

    def _listen(self) -> None:
        controls = [self.method, self.presence, self.points, self.prompts, self.share]
        inputs = [self.state, self.labels, *controls]
        quick = [self.state, *self.easel.outputs, self.why, self.export, self.points]
        slow = [self.maps, self.stages]
        moved = [self.method.input, self.prompts.input]
        moved += [self.presence.release, self.points.release, self.share.release]
        events = [event(self._update, inputs, quick, **ONE_AT_A_TIME) for event in moved]
        with_image = [self.image, *inputs]
        for event in (self.find.click, self.image.upload):
            events.append(event(self._find, with_image, quick, **ONE_AT_A_TIME))
        self.image.clear(lambda: None, None, self.state, **ONE_AT_A_TIME)
        events += self.easel.listen(self.state, quick, self._shown)
        for event in events:
            event.then(self._slow, [self.state], slow, **ONE_AT_A_TIME)

    def _find(self, path: str | None, trial: Trial | None, labels: str, *controls: Any) -> Any:
        """Begin with an image, or with the same one again: what was done to it by hand is gone."""
        settings = _settings(controls)
        try:
            if path is None:
                return self._shown(None, HINT, True)
            if not labels.strip():
                raise LabelError("type labels: names, separated by ; or on a line each")
            with self.desk.using(None):
                image = self.desk.read(path)
                trial = Trial(self.desk.segmenter(), image, labels, settings)
            with self.desk.using(trial):
                return self._shown(trial, "; ".join(trial.notes), bool(trial.notes))
        except Clip2SamError as error:
            return self._shown(None, str(error), True)

    def _update(self, trial: Trial | None, labels: str, *controls: Any) -> Any:
        """Other settings, or other labels."""

        def do(canvas: Trial) -> str:
            canvas.update(labels, _settings(controls))
            return "; ".join(canvas.notes)

        if trial is None:
            return self._shown(None, HINT, False)
        return self._shown(*self.easel.act(do, trial))

    def _shown(self, trial: Trial | None, note: str, wrong: bool) -> list[Any]:
        """The state, and the values of all that is quick."""
        easel = self.easel.shown(trial, note, wrong)
        if trial is None:
            nothing = gr.update(value=None, interactive=False)
            return [None, *easel, "", nothing, gr.update()]
        try:
            file = gr.update(value=self.desk.export(trial.coco()), interactive=True)
        except Clip2SamError as error:
            easel[0] = said(str(error), wrong=True)
            file = gr.update(value=None, interactive=False)
        why = why_table(trial.why(), trial.names)
        return [trial, *easel, why, file, trial.session.config.positive_from]

    def _slow(self, trial: Trial | None) -> list[str]:
        """The pictures below."""
        if trial is None:
            return ["", ""]
        with self.desk.using(trial):
            maps = picture(maps_picture(trial), "map, grid and masks of the selected label")
            try:
                stages = picture(why_picture(trial), "the selected label through all stages")
            except Clip2SamError as error:
                stages = said(str(error), wrong=True)
        return [maps, stages]


def _settings(controls: tuple[Any, ...]) -> dict[str, Any]:
    names = ("method", "presence_threshold", "point_threshold", "prompts", "min_share")
    return dict(zip(names, controls, strict=True))


def _as_it_came(upload: Any) -> str | None:
    """In the place of Gradio's own decoding: the file's path in the app's folder. clip2sam decodes
    it, with its own limits."""
    return None if upload is None else upload.path
