"""The small jobs' loop: the images of a source one after another; a bad one costs that image."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from clip2sam.data.images import MAX_PIXELS, Image
from clip2sam.data.sources import Source
from clip2sam.errors import ImageError, ModelError
from clip2sam.labelling.decode_worker import load_named
from clip2sam.labelling.failures import ModelFailures, for_one_image

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of an image of a source."""

    image_id: int
    key: str
    value: T | None = None
    """What the work gave; None: it failed."""
    reason: str = ""
    """Why it failed."""


def each_image(source: Source, work: Callable[[Image, int, str], T]) -> Iterator[Outcome[T]]:
    """Do some work on every image of a source, in its order.

    Args:
        work: takes an image, its COCO id and its key. Its ImageErrors and ModelErrors, and all that
            a model raises on one image, are that image's outcome.

    Raises:
        RunError: the model failed on several images in a row; after the last one's outcome.
    """
    in_a_row = ModelFailures()
    for image_id, key in zip(source.ids, source.keys, strict=True):
        try:
            image = load_named(source.read(key), key, MAX_PIXELS)
            value = for_one_image(partial(work, image, image_id, key))
        except ImageError as error:
            yield Outcome(image_id, key, reason=str(error))
        except ModelError as error:
            yield Outcome(image_id, key, reason=str(error))
            in_a_row.add(str(error))
        else:
            yield Outcome(image_id, key, value)
            in_a_row.clear()
