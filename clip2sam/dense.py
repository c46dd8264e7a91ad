"""Every pixel of an image gets one label, or background: a semantic segmentation.

The raw maps of all labels are stretched to the image, bilinearly; a pixel takes the label with the
highest score, and is background where that is too low. Where several views of a large image show a
pixel, its scores are averaged first. Scores of all labels at all pixels would not fit into memory,
so the image is worked on in bands of a few rows. SAM's masks then say where objects end.

Published code (https://github.com/mc-lan/ClearCLIP, https://github.com/wangf3014/SCLIP,
https://github.com/sinahmr/NACLIP) does the same with cosines (`Config.feature_surgery` off), and
takes the background decision on the softmax over labels: the highest probability must reach a
threshold, which is set for each dataset. The best one depends on the number of labels; that of raw
scores hardly does, and on scenes it was as good or better. So that is the default here, and
`DenseSettings.probability` is the published one.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8, UInt16
from torch import Tensor

from clip2sam.coco.rle import decode_rle
from clip2sam.config import finite_number
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.errors import ConfigError, LabelError
from clip2sam.export.png import index_png
from clip2sam.features import Features
from clip2sam.kernels.device import DENSE_SCORES
from clip2sam.pipeline import Segmenter
from clip2sam.result import check_finite
from clip2sam.tiles import VIEWS_AT_ONCE, Window

THRESHOLD_SHARE = 0.9
"""A label's pixels need this share of its presence threshold. On scenes 0.8 to 1 were best."""

REGION_SHARE = 0.5
"""A mask's mean score needs this share of what a pixel needs: maps are coarse, so that an object's
mean is far below its peak."""

MAX_CLASSES = 2**16 - 1
"""What a label map of 16 bits can tell apart."""

Mask = Bool[np.ndarray, "height width"] | dict[str, Any]
"""A mask of the whole image, or its RLE."""


@dataclass(frozen=True)
class DenseSettings:
    """How pixels get their labels.

    Raises:
        ConfigError: a number that is not finite, a probability beyond 0 to 1, or a temperature of 0
            or below.
    """

    threshold: float | None = None
    """Raw score below which a pixel is background. None: THRESHOLD_SHARE of its label's presence
    threshold; where there is none, no pixel is background by its score."""
    probability: float = 0.0
    """Probability of its label, by softmax over the labels of raw score / temperature, below which
    a pixel is background as well, as in published code. 0: it doesn't matter."""
    temperature: float = 0.025
    """Raw scores are divided by it before the softmax. Published code has 1/40 and 1/50."""
    refine: bool = True
    """Whether SAM's masks say where objects end."""

    def __post_init__(self) -> None:
        if self.threshold is not None:
            finite_number("threshold", self.threshold)
        if not 0 <= finite_number("probability", self.probability) <= 1:
            raise ConfigError(f"probability must be from 0 to 1, but got {self.probability}")
        if finite_number("temperature", self.temperature) <= 0:
            raise ConfigError(f"temperature must be above 0, but got {self.temperature}")


@dataclass(frozen=True)
class LabelMap:
    """The label of every pixel of one image, on the host."""

    image: Image
    label_set: LabelSet
    numbers: UInt16[np.ndarray, "height width"]
    """0 is background, 1 the first of `class_names`, and so on."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """All labels requested, as typed, in the order given, without distractors."""
        return tuple(c.name for c in self.label_set.wanted)

    def to_png(self) -> bytes:
        """An index image: 8 bits with a palette for up to 255 classes, else 16 bits."""
        return index_png(self.numbers, len(self.class_names))


@torch.no_grad()
def label_pixels(
    segmenter: Segmenter,
    features: Features,
    labels: LabelSet,
    settings: DenseSettings | None = None,
    masks: Sequence[Iterable[Mask]] | None = None,
) -> list[LabelMap]:
    """Give every pixel of each image a label. Distractors compete; where they win is background.

    Args:
        segmenter: its locator, its presence thresholds, and its SAM; with `Config.tile` also
            windows of large images.
        features: of the images, by `segmenter.encode`.
        labels: checked labels.
        masks: what the labels are refined by: for each image any masks, of objects or of other
            regions, that may overlap. None: the segmenter's own masks of the labels, if
            `DenseSettings.refine` says so.

    Raises:
        ConfigError: masks of another size than their image, or not as many lists of them as images.
        LabelError: more classes than a label map can hold.
        ModelError: a model's values are not finite.
    """
    chosen = settings or DenseSettings()
    if len(labels.wanted) > MAX_CLASSES:
        raise LabelError(
            f"expected at most {MAX_CLASSES} labels, as many as a label map can tell apart, got "
            f"{len(labels.wanted)}; leave some out"
        )
    if masks is None:
        masks = [()] * len(features.whole)
        if chosen.refine:
            results = segmenter.segment(features, labels)
            masks = [[a.rle for a in result.annotations] for result in results]
    if len(masks) != len(features.whole):
        raise ConfigError(
            f"expected a list of masks for each of {len(features.whole)} images, got {len(masks)}"
        )
    limits = _limits(segmenter, labels, chosen)
    found = []
    columns = (features.whole, features.windows, masks, _maps(segmenter, features, labels))
    for image, views, own, maps in zip(*columns, strict=True):
        regions = [r for r in (_region(mask, image) for mask in own) if r.area]
        bands = _bands(maps, _averaged(views), len(labels.classes), image.size)
        numbers, means = _counted(bands, image.size, limits, regions, chosen)
        given = _decided(means, REGION_SHARE * limits, chosen)
        _refine(numbers, regions, given, means.amax(dim=1))
        found.append(LabelMap(image, labels, numbers))
    return found


def _limits(
    segmenter: Segmenter, labels: LabelSet, settings: DenseSettings
) -> Float[Tensor, "labels"]:
    """The score that a pixel of each class must reach. No pixel is a distractor's."""

    def limit(threshold: float | None) -> float:
        if settings.threshold is not None:
            return settings.threshold
        return -math.inf if threshold is None else THRESHOLD_SHARE * threshold

    thresholds = labels.thresholds(segmenter.config.presence_threshold)
    values = [
        math.inf if c.distractor else limit(t)
        for c, t in zip(labels.classes, thresholds, strict=True)
    ]
    return torch.tensor(values, device=segmenter.device)


def _averaged(views: tuple[Window, ...]) -> tuple[Window, ...]:
    """The views that count: the windows, as published; the whole image where it has none."""
    return views[1:] or views


Maps = Float[Tensor, "labels rows cols"]


def _maps(segmenter: Segmenter, features: Features, labels: LabelSet) -> Iterator[Iterator[Maps]]:
    """For each image the raw maps of its views that count."""
    if len(features.images) == len(features.whole):
        raws = segmenter.locate(features, labels).raw
        for image, raw in zip(features.whole, raws, strict=True):
            yield iter([_checked(image, raw, labels)])
        return
    for image, views in zip(features.whole, features.windows, strict=True):
        yield _of_windows(segmenter.with_config(tile="off"), image, _averaged(views), labels)


def _of_windows(
    segmenter: Segmenter, image: Image, windows: tuple[Window, ...], labels: LabelSet
) -> Iterator[Maps]:
    """The raw maps of windows, which are computed a few at a time, when they are needed."""
    for first in range(0, len(windows), VIEWS_AT_ONCE):
        few = [window.of(image) for window in windows[first : first + VIEWS_AT_ONCE]]
        for raw in segmenter.locate(segmenter.encode(few), labels).raw:
            yield _checked(image, raw, labels)


def _checked(image: Image, raw: Float[Tensor, "parts rows cols"], labels: LabelSet) -> Maps:
    """The maps of the classes: that of a joined one is the highest of its parts' maps."""
    check_finite(image, "the labels' maps", raw.cpu().numpy())
    if not labels.has_joined:
        return raw
    return torch.stack([raw[list(group)].amax(dim=0) for group in labels.groups])


@dataclass(frozen=True)
class _View:
    """A part of an image and its maps, ready to be stretched to its pixels row by row."""

    window: Window
    raw: Maps
    down: Float[Tensor, "rows height"]
    across: Float[Tensor, "cols width"]

    def scores(self, top: int, bottom: int) -> Float[Tensor, "labels band width"]:
        """Of its own rows of pixels from `top` to before `bottom`."""
        return self.down[:, top:bottom].T @ self.raw @ self.across


def _view(window: Window, raw: Maps) -> _View:
    def stretch(cells: int, pixels: int) -> Float[Tensor, "cells pixels"]:
        """What each cell gives to each pixel, by PyTorch's own interpolation."""
        each = torch.eye(cells, device=raw.device)[None]
        return F.interpolate(each, pixels, mode="linear", align_corners=False)[0]

    rows, cols = raw.shape[1:]
    return _View(window, raw, stretch(rows, window.height), stretch(cols, window.width))


def _bands(
    maps: Iterator[Maps], windows: Sequence[Window], labels: int, size: tuple[int, int]
) -> Iterator[tuple[int, Float[Tensor, "labels band width"]]]:
    """The scores of all labels at the pixels of some rows of an image of (height, width) pixels,
    band by band from the top, each with the row that it starts at. Where views overlap they are
    averaged.

    Args:
        maps: of the windows, in their order, which is row by row.
    """
    height, width = size
    waiting = deque(windows)
    seen: list[_View] = []
    rows = max(DENSE_SCORES // (labels * width), 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        while waiting and waiting[0].top < bottom:
            seen.append(_view(waiting.popleft(), next(maps)))
        seen = [v for v in seen if v.window.top + v.window.height > top]
        yield top, _average(seen, top, bottom, width)


def _average(
    views: Sequence[_View], top: int, bottom: int, width: int
) -> Float[Tensor, "labels band width"]:
    raw = views[0].raw
    total = raw.new_zeros(len(raw), bottom - top, width)
    count = raw.new_zeros(bottom - top, width)
    for view in views:
        window = view.window
        first, end = max(top, window.top), min(bottom, window.top + window.height)
        down, across = slice(first - top, end - top), slice(window.left, window.left + window.width)
        total[:, down, across] += view.scores(first - window.top, end - window.top)
        count[down, across] += 1
    return total / count


@dataclass(frozen=True)
class _Region:
    """A mask, without what is around its box, eight pixels a byte."""

    top: int
    left: int
    width: int
    area: int
    bits: UInt8[np.ndarray, "height packed"]

    def rows(self, first: int = 0, end: int | None = None) -> Bool[np.ndarray, "rows width"]:
        """Some rows of its box."""
        part = np.unpackbits(self.bits[first:end], axis=1, count=self.width)
        return part.view(np.bool_)


def _region(mask: Mask, image: Image) -> _Region:
    pixels = decode_rle(mask) if isinstance(mask, dict) else mask
    if pixels.shape != image.size:
        raise ConfigError(
            f"{image.origin}: expected masks of the image's size, {image.size[0]} x "
            f"{image.size[1]} pixels (height x width), got one of {pixels.shape[0]} x "
            f"{pixels.shape[1]}; give masks of the whole image"
        )
    down, across = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    if not len(down):
        return _Region(0, 0, 0, 0, np.zeros((0, 0), np.uint8))
    box = pixels[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
    bits = np.packbits(box, axis=1)
    return _Region(int(down[0]), int(across[0]), box.shape[1], int(box.sum()), bits)


def _counted(
    bands: Iterator[tuple[int, Float[Tensor, "labels band width"]]],
    size: tuple[int, int],
    limits: Float[Tensor, "labels"],
    regions: Sequence[_Region],
    settings: DenseSettings,
) -> tuple[UInt16[np.ndarray, "height width"], Float[Tensor, "regions labels"]]:
    """The number of each pixel by itself; and the mean score of each label in each region."""
    numbers = np.zeros(size, np.uint16)
    means = limits.new_zeros(len(regions), len(limits))
    for top, scores in bands:
        bottom = top + scores.shape[1]
        own = _decided(scores.flatten(1).T, limits, settings)
        numbers[top:bottom] = own.view(scores.shape[1:]).cpu().numpy()
        for region, mean in zip(regions, means, strict=True):
            first, end = max(top, region.top), min(bottom, region.top + len(region.bits))
            if first < end:
                inside = region.rows(first - region.top, end - region.top)
                across = slice(region.left, region.left + region.width)
                part = scores[:, first - top : end - top, across].flatten(1)
                weights = torch.from_numpy(inside).to(part).flatten() / region.area
                mean += part @ weights
    return numbers, means


def _decided(
    scores: Float[Tensor, "places labels"], limits: Float[Tensor, "labels"], settings: DenseSettings
) -> Int[Tensor, "places"]:
    """The number of the best label of each place, a pixel or a region; 0 for background."""
    best = scores.max(dim=1)
    kept = best.values >= limits[best.indices]
    if settings.probability:
        above = (scores - best.values[:, None]) / settings.temperature
        kept &= 1 / above.exp().sum(dim=1) >= settings.probability
    return torch.where(kept, best.indices + 1, 0)


def _refine(
    numbers: UInt16[np.ndarray, "height width"],
    regions: Sequence[_Region],
    given: Int[Tensor, "regions"],
    score: Float[Tensor, "regions"],
) -> None:
    """Give the pixels of each region its number, in place; the region of the best score is on top.
    A label that a region has been given is nowhere else: maps bleed over their objects' borders."""
    own = given.cpu().numpy()
    kept = np.arange(MAX_CLASSES + 1, dtype=np.uint16)
    kept[own] = 0
    numbers[:] = kept[numbers]
    for k in score.cpu().numpy().argsort(kind="stable"):
        region = regions[k]
        inside = region.rows()
        down = slice(region.top, region.top + len(inside))
        numbers[down, region.left : region.left + region.width][inside] = own[k]
