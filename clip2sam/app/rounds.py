"""A run's images in the order of doubt, one after the other, and what is decided about each."""

import os
from collections.abc import Callable
from threading import Lock

from clip2sam.app.correction import Correction
from clip2sam.data.records import ImageRecord
from clip2sam.errors import Clip2SamError, ConfigError
from clip2sam.labelling.reviewing import RunReview, open_review
from clip2sam.pipeline import Segmenter
from clip2sam.review.doubt import certainty


class Reviewed:
    """A run that is open for a person's decisions: all sessions of the app share it.

    Args:
        run: its folder.
        load: gives the models, once a correction needs them.

    Raises:
        RunError: the folder is no run.
        RunLockedError: another process works on it.
    """

    def __init__(self, run: str | os.PathLike[str], load: Callable[[], Segmenter]) -> None:
        self.load = load
        self.lock = Lock()
        self.review: RunReview = open_review(run)
        doubts = []
        for place, image_id in enumerate(self.review.ids):
            proposed = self.review.proposed(image_id)
            doubt = certainty(proposed, self.review.kept(proposed), self.review.run.thresholds)
            doubts.append((doubt, place, image_id))
        self.order = tuple(image_id for _, _, image_id in sorted(doubts))
        """The ids of all images, the most doubtful first."""

    @property
    def left(self) -> int:
        """How many images nobody has decided about."""
        return len(self.order) - len(self.review.decided)

    def close(self) -> None:
        """Give the run free."""
        self.review.close()


class Round:
    """One person's way through a run.

    Args:
        reviewed: the run.
    """

    def __init__(self, reviewed: Reviewed) -> None:
        self.reviewed = reviewed
        self.at = -1
        self.canvas: Correction | None = None
        """The current image; None: it can't be shown, see `trouble`."""
        self.trouble = ""
        self._open(self._undecided(-1))

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.reviewed.order)

    @property
    def record(self) -> ImageRecord:
        """What counts now of the current image."""
        return self.reviewed.review.record(self.reviewed.order[self.at])

    def go(self, step: int) -> None:
        """To the next image (1) or the one before (-1), as far as there is one."""
        self._open(min(max(self.at + step, 0), self.count - 1))

    def accept(self) -> None:
        """The masks are right as they are. If they were changed, this is a correction. Then on to
        the next image that nobody has decided about.

        Raises:
            ConfigError: the image can't be shown.
            ImageError, OutputError, RunError: as `RunReview.write`; then nothing is written.
        """
        if self.canvas is None:
            raise ConfigError(f"{self.trouble or 'there is no image'}; reject it, or go on")
        if self.canvas.changed or self.record.state == "failed":
            self._write("corrected")
        else:
            self._write("accepted")

    def reject(self) -> None:
        """The image is left out of everything that is written. Then on, as after `accept`.

        Raises:
            ConfigError, ImageError, OutputError, RunError: as `RunReview.write`.
        """
        self._write("rejected")

    def _write(self, verdict: str) -> None:
        reviewed, image_id = self.reviewed, self.reviewed.order[self.at]
        corrected = self.canvas if verdict == "corrected" else None
        with reviewed.lock:
            if corrected is None:
                reviewed.review.write(image_id, verdict)
            else:
                made, size = corrected.annotations(), corrected.image.size
                reviewed.review.write(image_id, verdict, made, size=size)
        self._open(self._undecided(self.at))

    def _undecided(self, after: int) -> int:
        """The next place, and from the start again, that nobody has decided about; else the
        next one."""
        order, decided = self.reviewed.order, self.reviewed.review.decided
        places = [*range(after + 1, len(order)), *range(after + 1)]
        free = (place for place in places if order[place] not in decided)
        return next(free, min(after + 1, len(order) - 1))

    def _open(self, place: int) -> None:
        self.at, self.canvas, self.trouble = place, None, ""
        if not 0 <= place < self.count:
            self.trouble = "this run has no image that was labelled"
            return
        review, record = self.reviewed.review, self.record
        try:
            image = review.image(record.image_id)
        except Clip2SamError as error:
            self.trouble = str(error)
            return
        kept = review.kept(record)
        self.canvas = Correction(self.reviewed.load, image, review.run.classes, kept)
