"""What the encoders compute of a batch of images: each when it is first needed, then kept."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from clip2sam.clip.methods import Method
from clip2sam.clip.model import SurgeryCLIP
from clip2sam.data.images import Image
from clip2sam.errors import ConfigError, ImageError, shown
from clip2sam.sam import Cutter
from clip2sam.tiles import VIEWS_AT_ONCE, Window
from clip2sam.types import Embeddings, Sizes, TokenGrid


@dataclass(frozen=True)
class PreparedImage:
    """An image with the host's part of the work done: resized for both models."""

    image: Image
    clip_pixels: UInt8[np.ndarray, "side side 3"] | None
    """None: no CLIP looks at it."""
    sam_pixels: UInt8[np.ndarray, "frame_height frame_width 3"]

    @property
    def nbytes(self) -> int:
        """Bytes of all its pixels."""
        clip = 0 if self.clip_pixels is None else self.clip_pixels.nbytes
        return self.image.pixels.nbytes + clip + self.sam_pixels.nbytes


class Features:
    """What the encoders compute of a batch of images: each when it is first needed, then kept.

    Made by `Segmenter.encode`. Use it again with other labels and settings: only what changes is
    computed anew. With `Config.tile` an image may be several views, itself and its windows, and the
    stages take views for images; `Segmenter.segment` takes a few of them at a time.

    Args:
        windows: the views of each image, the whole image first; by default it is the only one.
    """

    def __init__(
        self,
        clip: SurgeryCLIP | None,
        sam: Cutter,
        images: Sequence[Image | PreparedImage],
        group: int = 1,
        windows: Sequence[tuple[Window, ...]] | None = None,
    ) -> None:
        self._clip, self._sam, self._group = clip, sam, group
        self.whole = tuple(image_of(given) for given in images)
        """The images themselves."""
        self.windows = tuple(windows or ((Window(0, 0, *image.size),) for image in self.whole))
        """The views of each image."""
        self._given: tuple[Image | PreparedImage, ...] = tuple(
            view
            for given, image, own in zip(images, self.whole, self.windows, strict=True)
            for view in (given, *(window.of(image) for window in own[1:]))
        )
        self._tokens: dict[tuple[Method, int], TokenGrid] = {}
        self._embeddings: dict[int, Embeddings] = {}

    @property
    def clip(self) -> SurgeryCLIP:
        """The CLIP that looks at the images.

        Raises:
            ConfigError: there is none.
        """
        return needed_clip(self._clip)

    @property
    def images(self) -> tuple[Image, ...]:
        """What goes through the stages: the views of all images."""
        return tuple(image_of(given) for given in self._given)

    def parts(self) -> "Iterator[Features]":
        """The views of large images a few at a time, in order, so that what is computed of them is
        given back; the features themselves where each image is one view."""
        if len(self._given) == len(self.whole):
            yield self
            return
        for first in range(0, len(self._given), VIEWS_AT_ONCE):
            few = self._given[first : first + VIEWS_AT_ONCE]
            yield Features(self._clip, self._sam, few, self._group)

    def alone(self, index: int) -> "Features":
        """One of `images` as features of its own, with all that is computed of it so far. So
        images are encoded together, and each is asked for labels of its own."""
        one = Features(self._clip, self._sam, self._given[index : index + 1], self._group)
        for key, grid in self._tokens.items():
            one._tokens[key] = TokenGrid(grid.tokens[index : index + 1], grid.rows, grid.cols)
        if index in self._embeddings:
            one._embeddings[0] = self._embeddings[index]
        return one

    @property
    def sizes(self) -> Sizes:
        """(height, width) in pixels of each of `images`."""
        return tuple(image.size for image in self.images)

    @torch.no_grad()
    def tokens(self, method: Method, resolution: int | None = None) -> TokenGrid:
        """CLIP's dense features by a method, at a side of its square input in pixels (None: the
        model's own).

        Raises:
            ConfigError: there is no CLIP, or it can't take the resolution.
        """
        clip = self.clip
        side = clip.checked_resolution(resolution or clip.resolution)
        if (method, side) not in self._tokens:
            grids = []

            def encode(pixels: Tensor) -> tuple[Tensor]:
                features, grid = clip.encode_image(pixels, method)
                grids.append(grid)
                return (features,)

            squares = [_clip_pixels(clip, x, side) for x in self._given]
            (tokens,) = _in_groups(encode, clip.preprocess(squares), self._group)
            self._tokens[method, side] = TokenGrid(tokens, *grids[0])
        return self._tokens[method, side]

    @torch.no_grad()
    def embeddings(self, which: Sequence[int]) -> Embeddings:
        """The cutter's image embeddings of the images with these indices, one or more."""
        missing = [i for i in which if i not in self._embeddings]
        if missing:
            pixels = self._sam.preprocess([self._sam_pixels(self._given[i]) for i in missing])
            made = _in_groups(self._sam.encode_image, pixels, self._group)
            self._embeddings.update(zip(missing, zip(*made, strict=True), strict=True))
        return _stacked([self._embeddings[i] for i in which])

    def _sam_pixels(self, given: Image | PreparedImage) -> UInt8[np.ndarray, "h w 3"]:
        return self._sam.resize(given) if isinstance(given, Image) else given.sam_pixels


def image_of(given: Image | PreparedImage) -> Image:
    """The image itself."""
    return given.image if isinstance(given, PreparedImage) else given


def _clip_pixels(
    clip: SurgeryCLIP, given: Image | PreparedImage, side: int
) -> UInt8[np.ndarray, "side side 3"]:
    ready = None if isinstance(given, Image) else given.clip_pixels
    if ready is not None and len(ready) == side:
        return ready
    return clip.resize(image_of(given), side)


def needed_clip(clip: SurgeryCLIP | None) -> SurgeryCLIP:
    """The CLIP itself.

    Raises:
        ConfigError: there is none.
    """
    if clip is None:
        raise ConfigError(
            "expected a segmenter with a CLIP, but it is another model that finds the labels; load "
            "the segmenter with a method of clip2sam.clip.METHODS"
        )
    return clip


def check_image(image: Image) -> None:
    """Those of `load_image` are right; one made by hand may hold anything.

    Raises:
        ImageError: it is not of RGB uint8 (height, width, 3).
    """
    pixels = image.pixels
    found = shown(pixels)
    if isinstance(pixels, np.ndarray):
        if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size:
            return
        found = f"{pixels.dtype} of shape {pixels.shape}"
    raise ImageError(
        f"{image.origin}: expected uint8 pixels of shape (height, width, 3) in RGB, got {found}; "
        "convert them, or give them to load_image"
    )


def _stacked(each: Sequence[Embeddings]) -> Embeddings:
    """Of images, one by one: for all of them together."""
    return tuple(torch.stack(own) for own in zip(*each, strict=True))


def _in_groups(
    encode: Callable[[Float[Tensor, "_ 3 _ _"]], tuple[Tensor, ...]],
    pixels: Float[Tensor, "images 3 height width"],
    group: int,
) -> tuple[Tensor, ...]:
    """Encode `group` images at a time: (images, ...) each. The last group is filled up with its
    last image."""
    missing = -len(pixels) % group
    full = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
    made = zip(*(encode(part) for part in full.split(group)), strict=True)
    return tuple(torch.cat(parts)[: len(pixels)] for parts in made)
