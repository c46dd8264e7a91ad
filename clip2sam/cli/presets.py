"""Which preset a command works with, and what that preset doesn't know."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from clip2sam.cli.console import err, print_warning
from clip2sam.errors import LabelError, UnknownLabelWarning

if TYPE_CHECKING:
    from clip2sam.data.labels import LabelClass

PREFERRED = ("vit-h", "vit-l", "vit-b", "mobile", "vit-h-laion")
"""The presets for photographs, the one that is taken first in front."""


def chosen_preset(
    preset: str | None, *, weights_dir: Path | None = None, run: Path | None = None
) -> str:
    """The preset that is named; else that of the run which is continued; else the first one for
    photographs whose files are all there; else tiny. A line says so where it isn't tiny.

    Args:
        run: a run's folder, which need not exist.

    Raises:
        RunError: the run's manifest is damaged.
    """
    from clip2sam.labelling.content import begun_run
    from clip2sam.models.files import status
    from clip2sam.models.presets import PRESETS

    if preset is not None:
        return preset
    begun = None if run is None else begun_run(run)
    if begun is not None:
        name = str(begun.fingerprint.get("preset")).partition(" with ")[0]
        if name in PRESETS:
            return name
    for name in PREFERRED:
        if all(file.state in ("present", "verified") for file in status(weights_dir, [name])):
            err.print(Text(f"preset {name}: its weights are here and no --preset is given"))
            return name
    return "tiny"


def check_known(
    preset: str, classes: "Sequence[LabelClass]", *, method: Any = None, allow: bool = False
) -> tuple[str, ...]:
    """Refuse labels that the embedded models don't know, or warn of them with `allow`. Other
    presets, and methods that bring their own models, know more words than can be listed.

    Returns:
        Their names.

    Raises:
        LabelError: there are such labels.
    """
    from clip2sam.models.locators import needs_clip
    from clip2sam.tiny.vocabulary import said_of_unknown, unknown_names

    if preset != "tiny" or not (method is None or needs_clip(method)):
        return ()
    unknown = unknown_names(classes)
    if not unknown:
        return ()
    fact = said_of_unknown(unknown)
    if not allow:
        raise LabelError(
            f"{fact}; for photographs use --preset mobile, vit-b, vit-l or vit-h, or go on all the "
            "same with --allow-unknown"
        )
    print_warning(f"{fact}, so what it says about them means nothing")
    warnings.simplefilter("ignore", UnknownLabelWarning)  # the models would say it once more
    return unknown


def print_unknown(names: Sequence[str]) -> None:
    """Below the results: of how many labels they mean nothing. On standard error, also where the
    results are JSON or nobody wants to see them."""
    from clip2sam.tiny.vocabulary import listed

    if names:
        print_warning(
            f"the embedded models don't know {len(names)} of the labels ({listed(names)}): what "
            "was found of them means nothing"
        )
