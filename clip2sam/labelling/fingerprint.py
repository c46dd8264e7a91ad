"""What a run's results depend on, written down when it begins and compared at each later start."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from clip2sam import __version__
from clip2sam.data.files import as_json
from clip2sam.data.labels import LabelSet, class_row
from clip2sam.errors import ConfigError, RunError


def fingerprint(
    engine: Mapping[str, Any], labels: LabelSet, *, preset: str, max_pixels: int
) -> dict[str, Any]:
    """Everything that the result of an image depends on, as JSON.

    The device is not there: a run may continue elsewhere, where the last digits may differ.

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


def check_same(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a run whose fingerprint is another than when it began.

    Raises:
        RunError: it is; the message names what changed.
    """
    old, new = dict(_leaves(then)), dict(_leaves(now))
    changed = [
        f"{place} was {_shown(old.get(place, _NOTHING))}, is now {_shown(new.get(place, _NOTHING))}"
        for place in {**old, **new}
        if old.get(place, _NOTHING) != new.get(place, _NOTHING)
    ]
    if changed:
        more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise RunError(
            f"this run began with other settings: {'; '.join(changed[:5])}{more}. Start in a new "
            "output folder, or go back to the settings that it began with"
        )


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
