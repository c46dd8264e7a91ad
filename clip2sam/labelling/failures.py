"""When the model fails on an image: the reason to record, and when to stop."""

from collections.abc import Callable
from typing import TypeVar

from clip2sam.data.images import printable
from clip2sam.errors import Clip2SamError, ModelError, RunError
from clip2sam.labelling.engine import is_out_of_memory, retried

T = TypeVar("T")

MODEL_FAILURES = 3
"""So many images in a row that the model fails on mean that the images are not the cause."""

START_AGAIN = "start again"
RETRY_FAILED = "start with --retry-failed"
"""How a job goes on when its cause is mended: the job without a journal, and the run."""


class ModelFailures:
    """Counts the images in a row that the model failed on.

    Args:
        again: START_AGAIN or RETRY_FAILED.
    """

    def __init__(self, again: str = START_AGAIN) -> None:
        self._again, self._in_a_row = again, 0

    def add(self, reason: str) -> None:
        """Count one more.

        Raises:
            RunError: it is the last of MODEL_FAILURES.
        """
        self._in_a_row += 1
        if self._in_a_row >= MODEL_FAILURES:
            raise RunError(
                f"the model failed on {self._in_a_row} images in a row, so they are not the cause; "
                f"the last one: {reason}. Correct it, then {self._again}"
            )

    def clear(self) -> None:
        """To be called for an image that the model did not fail on. One that could not be read
        says nothing of the model."""
        self._in_a_row = 0


def for_one_image(call: Callable[[], T]) -> T:
    """Do the model's part for one image, once more if memory runs out.

    Raises:
        ModelError: it failed on this image; the message is the reason for its record.
    """
    try:
        return retried(call)
    except Exception as error:
        if is_refusal(error):
            raise
        raise ModelError(reason_of(error)) from error


def is_refusal(error: Exception) -> bool:
    """Whether no image is the cause of an error from the model's part, but settings that don't
    fit, for example."""
    return isinstance(error, Clip2SamError) and not isinstance(error, ModelError)


def reason_of(error: Exception, again: str = START_AGAIN) -> str:
    """Why the model failed on an image, for its record.

    Args:
        again: START_AGAIN or RETRY_FAILED.
    """
    if is_out_of_memory(error):
        return f"memory ran out on this image alone; make it smaller, or free memory and {again}"
    if isinstance(error, ModelError):
        return printable(str(error))
    return (
        f"the model failed on this image ({type(error).__name__}: {printable(str(error))[:300]}); "
        "leave it out"
    )
