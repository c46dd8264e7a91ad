"""What a request may ask for: labels and settings, checked, with what is wrong said in one line."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clip2sam.config import MAX_GRID, MAX_OBJECTS
from clip2sam.data.labels import LabelSet, label_set_of_json, quiet_label_set
from clip2sam.errors import ConfigError, LabelError, shown
from clip2sam.serve.queue import Limits

MAX_TEMPLATES = 100
"""Of a request: each is one more text for each label. The usual ones are 85."""


class Wanted(BaseModel):
    """The labels of a request."""

    label: Annotated[
        list[str],
        Field(description="A label, exactly as typed; repeat it. a+b: one mask for both."),
    ] = []
    distractor: Annotated[
        list[str],
        Field(description="A label that competes with the others and gets no mask; repeatable."),
    ] = []
    labels: Annotated[
        str | None,
        Field(
            description='In place of label and distractor: JSON as in a labels file, ["cat"] or '
            '{"tv": ["tv", "television"]} or {"classes": [{"name": "tv", "prompts": [...], '
            '"presence_threshold": 0.2}], "distractors": ["sky"], "templates": ["a {}."]}.'
        ),
    ] = None


class Settings(BaseModel):
    """Settings of one request; what is left out is the server's own."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    presence_threshold: Annotated[
        float | None,
        Field(
            description="Raw score that a label must reach somewhere to be present. null (JSON): "
            "no decision, every label gets a mask."
        ),
    ] = None
    feature_surgery: Annotated[
        bool | None,
        Field(
            description="Whether what all labels have in common is taken out of their maps. "
            "Without it scores are cosines, which need another presence_threshold."
        ),
    ] = None
    prompts: Annotated[
        Literal["object", "label"] | None,
        Field(description="One mask for each object of a label, or one for the label as a whole."),
    ] = None
    point_threshold: Annotated[
        float | None,
        Field(gt=0, le=1, description="Cells of the grid at or above it are positive."),
    ] = None
    grid: Annotated[
        int | None,
        Field(ge=2, le=MAX_GRID, description="Cells a side of the grid that points are chosen on."),
    ] = None
    max_objects: Annotated[
        int | None,
        Field(ge=1, le=MAX_OBJECTS, description="At most so many masks of a label."),
    ] = None
    min_share: Annotated[
        float | None,
        Field(
            ge=0, le=1, description="Give masks so strong beside their label's best one; 0: all."
        ),
    ] = None
    tile: Annotated[
        Literal["auto", "off"] | None,
        Field(description="Windows of large images, for small objects: up to 10 times the work."),
    ] = None
    tile_overlap: Annotated[
        float | None,
        Field(ge=0, le=0.9, description="The part of a window that its neighbour shows as well."),
    ] = None

    def changes(self) -> dict[str, Any]:
        """What is given, as fields of `Config`."""
        given = {name: getattr(self, name) for name in Settings.model_fields}
        named = self.model_fields_set
        return {
            name: value
            for name, value in given.items()
            if value is not None or (name == "presence_threshold" and name in named)
        }


class Query(Settings, Wanted):
    """The query parameters of a request: labels, settings, and the form of the masks."""

    polygons: Annotated[bool, Field(description="Give polygons instead of RLE.")] = False
    tolerance: Annotated[
        float | None,
        Field(
            ge=0,
            le=100,
            description="Of polygons: how far they may leave their mask's outline, in pixels; "
            "0: exact; else 1.",
        ),
    ] = None


class Form(BaseModel):
    """The parts of a multipart body. Query parameters may stand beside them."""

    file: Annotated[bytes, Field(description="The encoded image.")]
    labels: Annotated[
        str, Field(description="JSON, see the query parameter; empty: none are given here.")
    ] = ""
    settings: Annotated[
        str, Field(description="JSON: an object with the settings of the query; or empty.")
    ] = ""


def settings_of(text: str) -> dict[str, Any]:
    """Settings from JSON, as fields of `Config`.

    Raises:
        ConfigError: no JSON object, an unknown name, or a value that can't be.
    """
    try:
        return Settings.model_validate_json(text, strict=True).changes()
    except ValidationError as error:
        raise ConfigError(said_of(error.errors(), "settings")) from None


def labels_of(query: Query, text: str | None, limits: Limits) -> LabelSet:
    """The labels of a request.

    Args:
        text: JSON from the body, if there is one.

    Raises:
        LabelError: given in two places or in none, too many or too long, or what a labels file
            can't have.
    """
    given = [query.label or None, query.labels, text]
    if sum(one is not None for one in given) != 1:
        raise LabelError(
            "expected labels in one of three places, the query's label (repeatable) or labels "
            f"(JSON), or the form's labels (JSON), got {sum(one is not None for one in given)}"
        )
    written = query.labels if text is None else text
    if written is None:
        _check_number(len(query.label) + len(query.distractor), limits)
        labels = quiet_label_set(query.label, distractors=query.distractor)
    else:
        if query.distractor:
            raise LabelError('put the distractors into the JSON too, as {"distractors": [...]}')
        if len(written) > 4 * limits.max_labels * limits.max_text:
            raise LabelError(
                f"labels: expected at most {4 * limits.max_labels * limits.max_text} characters, "
                f"got {len(written)}; leave some out"
            )
        labels = label_set_of_json(written)
    check_labels(labels, limits)
    return labels


def check_labels(labels: LabelSet, limits: Limits) -> None:
    """Refuse labels that are too many or too long.

    Raises:
        LabelError: as said.
    """
    parts = labels.apart().classes
    texts = [text for part in parts for text in (part.name, *part.prompts)]
    templates = labels.templates or ()
    _check_number(len(parts), limits)
    if sum(len(part.prompts) for part in parts) > 4 * limits.max_labels:
        raise LabelError(
            f"expected at most {4 * limits.max_labels} text prompts of all labels; leave some out"
        )
    if len(templates) > MAX_TEMPLATES:
        raise LabelError(
            f"expected at most {MAX_TEMPLATES} templates, got {len(templates)}; leave some out"
        )
    for text in (*texts, *templates, *(c.name for c in labels.classes)):
        if len(text) > limits.max_text:
            raise LabelError(
                f"expected at most {limits.max_text} characters a label, text prompt or template, "
                f"got {len(text)}: {shown(text, 40)}; shorten it"
            )


def _check_number(count: int, limits: Limits) -> None:
    if count > limits.max_labels:
        raise LabelError(
            f"expected at most {limits.max_labels} labels, distractors included, got {count}; ask "
            "for some of them, then for the others"
        )


def said_of(errors: Sequence[Mapping[str, Any]], place: str) -> str:
    """What pydantic found wrong, in one line.

    Args:
        place: where it was looked for: "settings" or "query".
    """
    return "; ".join(_said(error, place) for error in errors[:5])


def _said(error: Mapping[str, Any], place: str) -> str:
    named = [str(part) for part in error["loc"] if part not in ("query", "body")]
    name = ".".join(named)
    known = Settings if place == "settings" else Query
    if error["type"] == "extra_forbidden":
        fields = ", ".join(known.model_fields)
        return f"{place}: nothing is called {shown(name, 40)}; choose from {fields}"
    message = str(error["msg"])
    found = "" if error["type"].startswith("json") else f", got {shown(error['input'])}"
    return f"{place}{': ' if name else ''}{name}: {message[:1].lower()}{message[1:]}{found}"
