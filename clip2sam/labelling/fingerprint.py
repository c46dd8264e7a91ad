"""What a run's results depend on, written down when it begins and compared at each later start."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from clip2sam import __version__
from clip2sam.data.files import as_json
from clip2sam.data.labels import LabelSet, class_row
from clip2sam.errors import ConfigError, RunError
from clip2sam.labelling.decide import Decision, decided_thresholds
from clip2sam.labelling.manifest import RunFolder


def fingerprint(
    engine: Mapping[str, Any], labels: LabelSet, *, preset: str, max_pixels: int
) -> dict[str, Any]:
    """Everything that the result of an image depends on, as JSON.

    The device is not there: a run may continue elsewhere, where the last digits may differ. The
    manifest has it, see `RunFolder.devices`.

    Args:
        engine: the engine's own part, see `Engine.fingerprint`.
        preset: the name of the models.
        max_pixels: the limit for images, by their header.

    Raises:
        ConfigError: the engine's part can't be written as JSON.
    """
    marks = {
        "version": __version__,
        "preset": preset,
        "labels": {
            "classes": [class_row(c) for c in labels.classes],
            "templates": labels.templates,
            **({"caption": labels.caption} if labels.caption else {}),
        },
        "max_pixels": max_pixels,
        "engine": dict(engine),
    }
    try:
        loaded: dict[str, Any] = json.loads(as_json(marks))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the engine's fingerprint can't be written as JSON ({error}); make it of finite "
            "numbers, texts, lists and mappings"
        ) from error
    return loaded


def plain(value: Any) -> Any:
    """A value of settings as JSON. A function is known by its module and qualified name alone: give
    it another name when you change what it does."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, partial):
        return [plain(value.func), plain(value.args), plain(value.keywords)]
    if callable(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    return value


def check_same(then: Mapping[str, Any], now: Mapping[str, Any], *, what: str = "this run") -> None:
    """Refuse a run whose fingerprint is another than when it began.

    Args:
        what: what began with `then`.

    Raises:
        RunError: it is; the message names what changed, causes before what follows from them.
    """
    changed = list(_changes(then, now).values())
    if changed:
        more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise RunError(
            f"{what} began with other settings: {'; '.join(changed[:5])}{more}. Start in a new "
            "output folder, or go back to the settings that it began with"
        )


def check_thresholds(
    run: RunFolder, now: Mapping[str, Any], thresholds: Sequence[float | None]
) -> None:
    """Refuse other presence thresholds than those that a run began with, where nothing else has
    changed and the run has the masks for them: an export decides by them, without the models.

    Args:
        now: the fingerprint of this start.
        thresholds: of this start, one for each of the run's classes.

    Raises:
        RunError: they are other ones; the message has the whole command.
    """
    changed = _changes(run.fingerprint, now)
    if not changed or not all(place.endswith("presence_threshold") for place in changed):
        return
    decision = _decision(run, thresholds)
    if decision is None:
        return
    raise RunError(
        f"this run began with other thresholds: {'; '.join(list(changed.values())[:5])}. It has "
        "the masks for the new ones, so nothing need be labelled again. To decide by them: "
        f"{_export_command(run, decision)} -- to label more images, give the old ones"
    )


def _decision(run: RunFolder, thresholds: Sequence[float | None]) -> Decision | None:
    """What an export needs to decide by these thresholds; None if it can't, or nothing changes."""
    pairs = zip(run.class_names, run.thresholds, thresholds, strict=True)
    other = {name: now for name, then, now in pairs if now != then}
    limits = [now for now in other.values() if now is not None]
    if not limits or len(limits) < len(other):  # no threshold at all: an export can't say that
        return None
    one_for_all = len(limits) == len(thresholds) and len(set(limits)) == 1
    decision = (
        Decision(presence_threshold=limits[0])
        if one_for_all
        else Decision(class_thresholds={name: t for name, t in other.items() if t is not None})
    )
    try:
        decided_thresholds(run, decision)
    except ConfigError:  # below what the run has
        return None
    return decision


def _export_command(run: RunFolder, decision: Decision) -> str:
    """The command that decides a run so."""
    words = ["clip2sam", "export", str(run.path), "--output", str(run.path / "decided.json")]
    if decision.presence_threshold is not None:
        words += ["--presence-threshold", str(decision.presence_threshold)]
    for name, threshold in decision.class_thresholds.items():
        words += ["--class-threshold", f"{name}={threshold}"]
    return shlex.join(words)


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What differs, by its place: what a person has set before what follows from it, and the
    weights, which no one can read, last."""
    old, new = dict(_leaves(then)), dict(_leaves(now))
    changed = {
        place: f"{place} was {_shown(old.get(place, _NOTHING))}, is now "
        f"{_shown(new.get(place, _NOTHING))}"
        for place in {**old, **new}
        if old.get(place, _NOTHING) != new.get(place, _NOTHING)
    }
    return {place: changed[place] for place in sorted(changed, key=_rank)}


ORDER = ("engine.precision", "version", "", "labels", "engine.weights")
"""Beginnings of places, in the order in which a refusal names them; "" is all others."""


def _rank(place: str) -> int:
    rank = (i for i, start in enumerate(ORDER) if start and place.startswith(start))
    return next(rank, ORDER.index(""))


_NOTHING = object()


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no list or mapping, with its place, such as labels.classes[0].name."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{place}[{i}]")
    else:
        yield place, value


def _shown(value: Any) -> str:
    if value is _NOTHING:
        return "not there"
    text = repr(value)
    return text if len(text) <= 40 else text[:16] + "..." + text[-5:]
