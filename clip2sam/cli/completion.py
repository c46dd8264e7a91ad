"""What the shell completes behind an option. Who presses Tab waits for the answer, so names that
only slow modules know are written here again; `tests/test_completion.py` compares them."""

from collections.abc import Callable, Sequence


def _any_of(names: Sequence[str]) -> Callable[[], Sequence[str]]:
    """For typer's `autocompletion`, which keeps those that begin as typed."""
    return lambda: names


PRESETS = (
    *("tiny", "mobile", "vit-b", "vit-l", "vit-h", "vit-h-laion"),
    *("sam2.1-t", "sam2.1-s", "sam2.1-b", "sam2.1-l", "edgetam"),
    *("sam-hq-b", "sam-hq-l", "sam-hq-h"),
)
"""The names of `clip2sam.models.presets.PRESETS`."""

presets = _any_of(PRESETS)
devices = _any_of(("auto", "cpu", "cuda", "mps"))
precisions = _any_of(("fp32", "bf16", "fp16"))
FORMATS = (
    *("coco", "results", "yolo", "labelstudio", "cvat", "labelme", "voc", "cityscapes"),
    *("png", "parquet", "jsonl"),
)
"""The names of `clip2sam.export.EXPORTERS`."""

formats = _any_of(FORMATS)
run_formats = _any_of(("coco", "parquet", "jsonl"))


def methods() -> Sequence[str]:
    from clip2sam.clip.methods import METHODS
    from clip2sam.models.locators import LOCATORS

    return (*METHODS, *LOCATORS)
