"""What all sessions of the app share: the models, one at a time, and a folder for files."""

import hashlib
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from clip2sam.app.correction import Correction
from clip2sam.app.trial import Trial
from clip2sam.coco.write import write_coco
from clip2sam.data.images import Image
from clip2sam.errors import ImageError
from clip2sam.labelling.decode_worker import load_named
from clip2sam.pipeline import Segmenter

MAX_PIXELS = 40_000_000
"""Of an image: 120 MB in memory."""

MAX_BYTES = 32 * 1024 * 1024
"""Of an uploaded file."""

MAX_FILES = 200
"""Uploads and exports together; the oldest ones are deleted."""

MAX_SESSIONS = 16
"""Browser sessions whose image is kept; the one that was idle longest starts anew."""

ENCODED = 4
"""Images whose features are kept on the device; the others are encoded again when they are
needed."""

Kept = Trial | Correction


class Desk:
    """The models and the files.

    Args:
        load: gives the models; called once, when they are needed first.
        folder: for files, its own.
    """

    def __init__(self, load: Callable[[], Segmenter], folder: Path) -> None:
        self.folder = folder
        self._load = load
        self._segmenter: Segmenter | None = None
        self._lock = threading.RLock()
        self._encoded: list[weakref.ref[Kept]] = []

    def segmenter(self) -> Segmenter:
        """The models."""
        with self._lock:
            if self._segmenter is None:
                self._segmenter = self._load()
            return self._segmenter

    @contextmanager
    def using(self, canvas: Kept | None) -> Iterator[None]:
        """Work with the models: nobody else does meanwhile. Of ENCODED canvases, those used last,
        the features stay on the device."""
        with self._lock:
            yield
            if canvas is None:
                return
            kept = [ref for ref in self._encoded if ref() is not None and ref() is not canvas]
            self._encoded = [*kept, weakref.ref(canvas)]
            while len(self._encoded) > ENCODED:
                oldest = self._encoded.pop(0)()
                if oldest is not None:
                    oldest.release()

    def read(self, path: str) -> Image:
        """An uploaded image.

        Raises:
            ImageError: it is none, is too large, or was deleted since.
        """
        name = PurePath(path).name
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ImageError(f"{name}: this upload is no longer here; load it again") from error
        return load_named(data, name, MAX_PIXELS)

    def export(self, document: dict[str, Any]) -> str:
        """Write a COCO document into a file to be downloaded; gives its path.

        Raises:
            OutputError: the disk is full, or refuses.
        """
        mark = hashlib.sha256(repr(document).encode()).hexdigest()[:32]
        path = self.folder / mark / "annotations.json"
        if not path.exists():
            write_coco(path, document)
        return str(path)


def delete_old(folder: Path, most: int = MAX_FILES) -> None:
    """Keep so many of a folder's files, those that were written last."""
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                found.append((path.stat().st_mtime_ns, str(path)))
        except OSError:  # another request has deleted it meanwhile
            continue
    for _, old in sorted(found)[: max(len(found) - most, 0)]:
        Path(old).unlink(missing_ok=True)
