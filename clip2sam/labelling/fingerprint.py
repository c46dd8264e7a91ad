"""What a run's results depend on, written down at its start and compared at each later one."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import clip2sam
from clip2sam.data.labels import LabelSet
from clip2sam.errors import RunError
from clip2sam.kernels.tensors import state_sha256
from clip2sam.pipeline import Segmenter


def fingerprint(
    segmenter: Segmenter,
    labels: LabelSet,
    *,
    preset: str,
    keep_above: float | None,
    max_pixels: int,
) -> dict[str, Any]:
    """Everything that decides what comes out for a picture, as JSON: labels, settings, weights, version.

    The weights stand there as the SHA-256 of what is loaded, whatever file it came from; precision is a part of that.
    The device is not there: a run may go on elsewhere, where the last digits may differ.
    """
    return {
        "version": clip2sam.__version__,
        "preset": preset,
        "labels": {"classes": [asdict(c) for c in labels.classes], "templates": labels.templates},
        "config": asdict(segmenter.config),
        "resolution": segmenter.clip.resolution,
        "keep_above": keep_above,
        "max_pixels": max_pixels,
        "weights": {
            "clip": state_sha256(segmenter.clip.model.state_dict()),
            "sam": state_sha256(segmenter.sam.sam.state_dict()),
        },
    }


def check_same(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `RunError`, naming what changed, if a run's fingerprint is another than at its start."""
    old, new = dict(_leaves(then)), dict(_leaves(now))
    places = [
        p
        for p in [*old, *(p for p in new if p not in old)]
        if old.get(p, _NOTHING) != new.get(p, _NOTHING)
    ]
    if not places:
        return
    named = [
        f"{p} was {_shown(old.get(p, _NOTHING))}, is now {_shown(new.get(p, _NOTHING))}"
        for p in places[:5]
    ]
    more = f"; and {len(places) - 5} more" if len(places) > 5 else ""
    raise RunError(
        f"this run began with other settings: {'; '.join(named)}{more}. Start in a new output folder, or go back to "
        "the settings that it began with"
    )


_NOTHING = object()


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no list or mapping, with its place, such as labels.classes[0].name."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple) and value:
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{place}[{i}]")
    else:
        yield place, list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    if value is _NOTHING:
        return "not there"
    text = repr(value)
    return text if len(text) <= 40 else text[:16] + "..." + text[-5:]
