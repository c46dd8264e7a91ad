"""What a COCO file says of itself: by what it was made, of which labels, with which thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from clip2sam.coco.document import made_by
from clip2sam.config import DEFAULT_POINT_THRESHOLDS, PROMPTS, Config
from clip2sam.data.images import MAX_PIXELS
from clip2sam.data.labels import LabelSet
from clip2sam.labelling.decide import Decision, decided_for, decided_thresholds
from clip2sam.labelling.fingerprint import fingerprint, plain
from clip2sam.labelling.manifest import RunFolder

_APART = ("presence_threshold", "class_thresholds", "classes", "min_share")
"""Fields of a decision that are there as thresholds of the classes, or for themselves."""


def run_info(run: RunFolder, decision: Decision | None = None) -> dict[str, Any]:
    """What a run's COCO file says of itself, if its masks were decided so; by default as the run
    itself did.

    Raises:
        ConfigError: the decision doesn't fit the run.
    """
    decision = decided_for(run, decision or Decision())
    thresholds = zip(run.class_names, decided_thresholds(run, decision), strict=True)
    usual = Decision()
    return info_of(
        run.fingerprint,
        date=run.started,
        thresholds={name: limit for name, limit in thresholds if limit != float("inf")},
        min_share=decision.min_share,
        decision={
            field.name: getattr(decision, field.name)
            for field in fields(decision)
            if field.name not in _APART
            and getattr(decision, field.name) != getattr(usual, field.name)
        },
    )


def settings_info(
    config: Config, locator: str, labels: LabelSet, *, preset: str, date: str | None = None
) -> dict[str, Any]:
    """What a COCO file says of itself that no run has made.

    Args:
        locator: the name of what finds the labels.
        preset: what it calls the models.
        date: when it began, ISO 8601.
    """
    settings = {"config": plain(asdict(config)), "locator": locator}
    thresholds = labels.thresholds(config.presence_threshold)
    return info_of(
        fingerprint(settings, labels, preset=preset, max_pixels=MAX_PIXELS),
        date=date,
        thresholds=dict(zip((c.name for c in labels.wanted), thresholds, strict=False)),
        min_share=config.min_share,
    )


def info_of(
    marks: Mapping[str, Any],
    *,
    date: str | None,
    thresholds: Mapping[str, float | None],
    min_share: float | None,
    decision: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`info` of a COCO file; what is not known is left out.

    Args:
        marks: a fingerprint, see `clip2sam.labelling.fingerprint`.
        date: when it began, ISO 8601.
        thresholds: presence thresholds by label; None: no decision.
        min_share: see `Config.min_share`.
        decision: what else a mask had to satisfy.
    """
    labels, engine = marks.get("labels", {}), marks.get("engine", {})
    config, classes = engine.get("config", {}), labels.get("classes", [])
    positive = config.get("point_threshold") or DEFAULT_POINT_THRESHOLDS.get(config.get("prompts"))
    made = {
        **made_by(marks.get("version", ""), labels.get("caption", "")),
        "date_created": date,
        "clip2sam": marks.get("version"),
        "preset": marks.get("preset"),
        "method": _method(engine),
        "masks": PROMPTS.get(config.get("prompts")),
        "prompts": _prompts(classes, distractors=False),
        "distractors": _prompts(classes, distractors=True) or None,
        "templates": labels.get("templates"),
        "presence_thresholds": dict(thresholds),
        "point_threshold": positive,
        "min_share": min_share,
        "decision": decision or None,
    }
    return {key: value for key, value in made.items() if value is not None}


def _method(engine: Mapping[str, Any]) -> str | None:
    """Of finding labels: CLIP's method, or another model's name."""
    locator: str | None = engine.get("locator")
    method = engine.get("config", {}).get("method")
    return method["name"] if locator == "CLIP" and isinstance(method, dict) else locator


def _prompts(classes: Sequence[Mapping[str, Any]], *, distractors: bool) -> dict[str, list[str]]:
    """The text prompts of each label; of a joined one those of its parts."""
    return {
        row["name"]: [
            *row["prompts"],
            *(prompt for part in row.get("joined", ()) for prompt in part["prompts"]),
        ]
        for row in classes
        if row["distractor"] == distractors
    }
