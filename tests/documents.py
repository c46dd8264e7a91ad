"""Code in documents: the blocks behind a comment `runs as a test`, in their order."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

_BLOCK = re.compile(r"<!-- runs as a test(?:: [^>]+)? -->\n```(\w+)\n(.*?)```", re.DOTALL)


def blocks(document: str) -> list[tuple[str, str]]:
    """(language, text) of each block of a document of this repository."""
    return _BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))
