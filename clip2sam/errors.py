"""The errors a person can cause. Each message says what was expected, what came, and what to do
next.

The command line prints them on one line and exits; everything else that escapes is a bug.
"""


class Clip2SamError(Exception):
    """Base of every error that clip2sam raises on purpose."""


class ImageError(Clip2SamError, ValueError):
    """An image that can't be read or used."""


class LabelError(Clip2SamError, ValueError):
    """A label, labels file or template that can't be used."""


class ConfigError(Clip2SamError, ValueError):
    """An option, preset or model that doesn't exist or doesn't fit."""


class WeightsError(Clip2SamError, OSError):
    """A weight file that is missing, cut, changed or out of reach."""


class ModelError(Clip2SamError, RuntimeError):
    """A model computed values that are not finite, so there is no result for this image."""


class CocoError(Clip2SamError, ValueError):
    """Annotations that are not, or would not be, valid COCO."""


class OutputError(Clip2SamError, OSError):
    """A file or folder that can't be written: the disk is full, or refuses. Older files stay."""


class RunError(Clip2SamError, RuntimeError):
    """A run over a dataset that can't go on: other settings than at its start, or no run at all."""


class RunLockedError(RunError):
    """Another process works on the same run."""


class TooManyFailuresError(RunError):
    """More images failed than were allowed."""


class UnavailableError(Clip2SamError, RuntimeError):
    """A server has no result now: its model is not there yet, or not any more, or too many wait.

    Args:
        retry_after: seconds after which another try may do; None: none will.
    """

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OutOfTimeError(Clip2SamError, TimeoutError):
    """The time limit of a server's request has passed."""


class UnknownLabelWarning(UserWarning):
    """Labels that the models don't know: what is found of them means nothing."""


def shown(value: object, limit: int = 80) -> str:
    """A value that a message names: its `repr` on one line, cut."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[:limit] + " ..."


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error of a library on one line. A failed connection's own reason comes first: requests
    wraps it in another."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    text = " ".join(str(reason or error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + " ..."
