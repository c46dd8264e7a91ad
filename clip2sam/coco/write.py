"""COCO files: checked, then written whole or not at all."""

import os
from typing import Any

from clip2sam.coco.report import in_short
from clip2sam.coco.validate import validate
from clip2sam.data.files import as_json, write_atomically
from clip2sam.data.images import printable
from clip2sam.errors import CocoError


def write_coco(
    path: str | os.PathLike[str], document: dict[str, Any] | list[dict[str, Any]]
) -> None:
    """Check a dataset or results, and write it as JSON in UTF-8.

    Raises:
        CocoError: `validate` finds a fault; an older file stays as it was.
        OutputError: the file can't be written; an older file stays as it was.
    """
    if violations := validate(document):
        raise CocoError(
            f"{printable(path)}: not written, as it would not be valid COCO: {in_short(violations)}"
        )
    write_atomically(path, as_json(document).encode() + b"\n")
