"""The figure: labels and images go through the stages one after another and come out as masks.

labels --> text features --+
images --> CLIP's tokens --+--> locate: maps, presence --> instances --> prompt: points --+
images --> SAM's embeddings (only where there is a prompt) --------------------------------+
                                                                                            v
                                                                         choose: masks <-- decode

Each stage is public, takes a batch, and hands on one record of `clip2sam.types`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image as PILImage
from torch import Tensor

from clip2sam.candidates import agreement, as_rule
from clip2sam.clip.methods import Method
from clip2sam.clip.model import SurgeryCLIP
from clip2sam.config import Config, as_config
from clip2sam.data.images import Image, load_image
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.data.presence import is_present
from clip2sam.errors import ConfigError, ImageError, shown
from clip2sam.instances import (
    PEAKS_AN_OBJECT,
    find_instances,
    fine_maps,
    instance_prompts,
)
from clip2sam.points import grid_cells, point_prompts, pool_grid, select_points
from clip2sam.result import Found, Result, check_finite, find_in, finished
from clip2sam.sam import PromptSAM
from clip2sam.scoring import (
    Contrast,
    best_of_each,
    contrast,
    same_object,
    stability,
)
from clip2sam.similarity import (
    SurgeryTerms,
    beaten_by_distractors,
    feature_surgery,
    score_maps,
    surgery_terms,
)
from clip2sam.tiles import VIEWS_AT_ONCE, Window, best_presence, lowered, merged, views
from clip2sam.types import (
    Candidates,
    Instances,
    Masks,
    Prediction,
    Prompts,
    SimilarityMaps,
    Sizes,
    TokenGrid,
)

ImageLike = Image | str | PathLike[str] | bytes | PILImage.Image | Any
"""A path, encoded bytes, an RGB uint8 array (height, width, 3), a PIL image or an `Image`."""

LabelsLike = LabelSet | Sequence[str] | Mapping[str, Any] | PathLike[str]
"""Names, a mapping from names to their synonyms, a labels file, or a `LabelSet`."""


@dataclass(frozen=True)
class PreparedImage:
    """An image with the host's part of the work done: resized for both models."""

    image: Image
    clip_pixels: UInt8[np.ndarray, "side side 3"]
    sam_pixels: UInt8[np.ndarray, "frame_height frame_width 3"]

    @property
    def nbytes(self) -> int:
        """Bytes of all its pixels."""
        return self.image.pixels.nbytes + self.clip_pixels.nbytes + self.sam_pixels.nbytes


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
        clip: SurgeryCLIP,
        sam: PromptSAM,
        images: Sequence[Image | PreparedImage],
        group: int = 1,
        windows: Sequence[tuple[Window, ...]] | None = None,
    ) -> None:
        self._clip, self._sam, self._group = clip, sam, group
        self.whole = tuple(_image(given) for given in images)
        """The images themselves."""
        self.windows = tuple(windows or ((Window(0, 0, *image.size),) for image in self.whole))
        """The views of each image."""
        self._given: tuple[Image | PreparedImage, ...] = tuple(
            view
            for given, image, own in zip(images, self.whole, self.windows, strict=True)
            for view in (given, *(window.of(image) for window in own[1:]))
        )
        self._tokens: dict[tuple[Method, int], TokenGrid] = {}
        self._embeddings: dict[int, Tensor] = {}

    @property
    def images(self) -> tuple[Image, ...]:
        """What goes through the stages: the views of all images."""
        return tuple(_image(given) for given in self._given)

    def parts(self) -> "Iterator[Features]":
        """The views of large images a few at a time, in order, so that what is computed of them is
        given back; the features themselves where each image is one view."""
        if len(self._given) == len(self.whole):
            yield self
            return
        for first in range(0, len(self._given), VIEWS_AT_ONCE):
            few = self._given[first : first + VIEWS_AT_ONCE]
            yield Features(self._clip, self._sam, few, self._group)

    @property
    def sizes(self) -> Sizes:
        """(height, width) in pixels of each of `images`."""
        return tuple(image.size for image in self.images)

    @torch.no_grad()
    def tokens(self, method: Method, resolution: int | None = None) -> TokenGrid:
        """CLIP's dense features by a method, at a side of its square input in pixels (None: the
        model's own)."""
        side = self._clip.checked_resolution(resolution or self._clip.resolution)
        if (method, side) not in self._tokens:
            grids = []

            def encode(pixels: Tensor) -> Tensor:
                features, grid = self._clip.encode_image(pixels, method)
                grids.append(grid)
                return features

            squares = [self._clip_pixels(x, side) for x in self._given]
            tokens = _in_groups(encode, self._clip.preprocess(squares), self._group)
            self._tokens[method, side] = TokenGrid(tokens, *grids[0])
        return self._tokens[method, side]

    @torch.no_grad()
    def embeddings(self, which: Sequence[int]) -> Float[Tensor, "some channels rows cols"]:
        """SAM's image embeddings, in fp32, of the images with these indices."""
        missing = [i for i in which if i not in self._embeddings]
        if missing:
            pixels = self._sam.preprocess([self._sam_pixels(self._given[i]) for i in missing])
            made = _in_groups(self._sam.encode_image, pixels, self._group)
            self._embeddings.update(zip(missing, made, strict=True))
        return torch.stack([self._embeddings[i] for i in which])

    def _clip_pixels(self, given: Image | PreparedImage, side: int) -> UInt8[np.ndarray, "s s 3"]:
        if isinstance(given, Image):
            return self._clip.resize(given, side)
        ready = given.clip_pixels
        return ready if len(ready) == side else self._clip.resize(given.image, side)

    def _sam_pixels(self, given: Image | PreparedImage) -> UInt8[np.ndarray, "h w 3"]:
        return self._sam.resize(given) if isinstance(given, Image) else given.sam_pixels


class Segmenter:
    """Cuts labels out of images: a CLIP says where, a SAM cuts.

    Args:
        clip: an open_clip model in its adapter.
        sam: a segment-anything model in its adapter, on the same device.
        config: the settings; `clip2sam.published()` gives those of the published demo.

    Raises:
        ConfigError: settings of another type, a resolution that the CLIP can't take, or a grid that
            does not fit the CLIP's maps.
    """

    def __init__(self, clip: SurgeryCLIP, sam: PromptSAM, config: Config | None = None) -> None:
        self.clip = clip
        self.sam = sam
        self.config = as_config(config)
        side = clip.patches(self.config.resolution)
        grid_cells(side, side, self.config.grid)  # known now, before any image is worked on

    def __call__(
        self, image: ImageLike, labels: LabelsLike, *, distractors: Sequence[str] = ()
    ) -> Result:
        """Segment one image.

        Args:
            image: a path, bytes, RGB array, PIL image or `Image`.
            labels: names, a mapping from names to their synonyms, a labels file, or a `LabelSet`.
            distractors: names that compete with the labels and are never exported.

        Returns:
            The masks of the labels that are present, and the scores of those that are not.

        Raises:
            ImageError: the image can't be read.
            LabelError: a label is empty, given twice, or there is none.
            ModelError: a model's values are not finite.
        """
        features = self.encode([load_image(image)])
        return self.segment(features, as_label_set(labels, distractors=distractors))[0]

    def with_config(self, **changes: Any) -> "Segmenter":
        """The same models with other settings: fields of `Config`.

        Raises:
            ConfigError: a field that doesn't exist, or a value that it can't have.
        """
        fields = [field.name for field in dataclasses.fields(Config)]
        if unknown := sorted(changes.keys() - set(fields)):
            raise ConfigError(
                f"no settings are called {', '.join(unknown)}; choose from {', '.join(fields)}"
            )
        return Segmenter(self.clip, self.sam, replace(self.config, **changes))

    @property
    def view_side(self) -> int:
        """Side in pixels of CLIP's square input by the settings."""
        return self.config.resolution or self.clip.resolution

    # -- the stages

    def prepare(self, image: Image) -> PreparedImage:
        """The host's part of `encode`; may run in another thread while a model works. Windows of a
        large image are cut later, a few at a time.

        Raises:
            ImageError: the image was made by hand, and not of RGB uint8 (height, width, 3).
        """
        _check_image(image)
        return PreparedImage(
            image, self.clip.resize(image, self.config.resolution), self.sam.resize(image)
        )

    def encode(self, images: Sequence[Image | PreparedImage], *, group: int = 1) -> Features:
        """Features of a batch of images. Nothing is computed before it is needed: an image on which
        no label is present never reaches SAM's encoder.

        Args:
            images: one or more.
            group: how many of them an encoder takes at once. Groups always have that size, the last
                one filled up with repeats, so that the same kernels run for an image whatever comes
                with it.

        Raises:
            ImageError: there is none, or one is no RGB uint8 (height, width, 3).
        """
        known = [isinstance(image, Image | PreparedImage) for image in images]
        if not known or not all(known):
            raise ImageError("encode takes one or more images of load_image, in a list")
        for image in images:
            _check_image(_image(image))
        windows = [views(_image(image).size, self.config, self.view_side) for image in images]
        return Features(self.clip, self.sam, images, group, windows)

    @torch.no_grad()
    def locate(self, features: Features, labels: LabelSet) -> SimilarityMaps:
        """A raw map and a presence score for every class of every image, distractors included, and
        which classes are present."""
        grid = features.tokens(self.config.method, self.config.resolution)
        text, redundant = self._text(labels)
        scores = [  # image by image: the last digits must not depend on how many there are
            feature_surgery(tokens[None], text, redundant)[..., : len(labels.classes)]
            for tokens in grid.tokens
        ]
        raw = score_maps(torch.cat(scores), grid.rows, grid.cols)
        presence = raw.amax(dim=(-2, -1))
        distractor = torch.tensor([c.distractor for c in labels.classes], device=raw.device)
        beaten = beaten_by_distractors(raw, distractor)
        present = is_present(presence, beaten, self._thresholds(labels)) & ~distractor
        return SimilarityMaps(raw, presence, beaten, present, labels, features.sizes)

    @torch.no_grad()
    def instances(self, maps: SimilarityMaps) -> Instances:
        """The places of the objects of each label that is present."""
        return self._instances(maps, pool_grid(maps.raw, self.config.grid))

    def _instances(self, maps: SimilarityMaps, grids: Tensor) -> Instances:
        most = PEAKS_AN_OBJECT * self.config.max_objects
        return find_instances(maps, grids, self.config.positive_from, most)

    @torch.no_grad()
    def prompt(self, maps: SimilarityMaps) -> Prompts:
        """Points for each object of the labels that are present, or for each label as a whole, see
        `Config.prompts`."""
        config, grids = self.config, pool_grid(maps.raw, self.config.grid)
        start = config.positive_from
        if config.prompts == "object":
            instances = self._instances(maps, grids)
            if not config.max_negative:  # no slots for points that nobody asked for
                return instance_prompts(instances)
            points = select_points(grids, maps.sizes, start, 0, config.max_negative)
            return instance_prompts(instances, *points)
        points = select_points(grids, maps.sizes, start, config.max_positive, config.max_negative)
        return point_prompts(*points, maps.present, maps.sizes)

    def decode(self, features: Features, prompts: Prompts) -> Candidates:
        """SAM's candidate masks for each prompt, all prompts of the batch together."""
        prompted = [i for i, count in enumerate(prompts.counts) if count]
        if not prompted:
            return self.sam.no_candidates()
        return self.sam.decode(features.embeddings(prompted), prompts)

    @torch.no_grad()
    def choose(self, maps: SimilarityMaps, prompts: Prompts, candidates: Candidates) -> Masks:
        """Keep one candidate of each prompt, by the rule of `Config.candidate`, and score it. With
        one prompt an object, masks of the same object of a label are marked as not kept."""
        measured = None
        if self.config.prompts == "object":
            measured = self.contrast(maps, prompts, candidates.logits)
            agrees = measured.agreement
        else:
            agrees = self.agreement(maps, prompts, candidates)
        best = as_rule(self.config.candidate)(candidates, agrees).argmax(dim=-1)
        row = torch.arange(len(best), device=best.device)
        logits, predicted = candidates.logits[row, best], candidates.predicted_iou[row, best]
        score, ones = predicted.clamp(0, 1), torch.ones_like(predicted)
        inside, against, kept = ones, ones, ones.bool()
        if measured is not None:
            inside, against = measured.inside[row, best], measured.contrast[row, best]
            score = score * stability(logits) * agrees[row, best]
            kept = self._best_of_each(prompts, logits, score)
        return Masks(
            logits,
            predicted,
            agrees[row, best],
            best,
            score,
            inside,
            against,
            kept,
            label_index=prompts.label_index,
            counts=prompts.counts,
            sizes=prompts.sizes,
        )

    def _best_of_each(self, prompts: Prompts, logits: Tensor, score: Tensor) -> Tensor:
        """Which masks are kept, as in `Masks`. Images have masks of different sizes and numbers, so
        they are taken one by one."""
        columns = (logits, prompts.label_index, score)
        parts = zip(*(column.split(prompts.counts) for column in columns), strict=True)
        kept = []
        for (own, label, order), size in zip(parts, prompts.sizes, strict=True):
            group = label[:, None] == label
            same = same_object(self.sam.inside(own, size))
            kept.append(best_of_each(order, group, same, self.config.max_objects))
        return torch.cat(kept)

    def predict(self, features: Features, labels: LabelSet) -> Prediction:
        """The stages from `locate` to `choose`. No value crosses to the host on the way, only how
        many prompts each image has."""
        maps = self.locate(features, labels)
        prompts = self.prompt(maps)
        candidates = self.decode(features, prompts)
        return Prediction(maps, prompts, self.choose(maps, prompts, candidates))

    @torch.no_grad()
    def results(
        self,
        features: Features,
        prediction: Prediction,
        *,
        ids: tuple[int, ...] | None = None,
        names: tuple[str, ...] | None = None,
    ) -> list[Result]:
        """A prediction on the host: a result for each image.

        Args:
            ids, names: COCO image ids and file names for the results' records; by default 1, 2,
                3, ... and those of the images' origins.

        Raises:
            ModelError: maps, predicted IoUs or mask logits of an image are not finite.
        """
        return self._finished(features, self._found(features, prediction), ids, names)

    def segment(
        self,
        features: Features,
        labels: LabelSet,
        *,
        ids: tuple[int, ...] | None = None,
        names: tuple[str, ...] | None = None,
    ) -> list[Result]:
        """`predict` and `results`; the views of large images a few at a time, so that memory
        doesn't grow with their number.

        Args:
            ids, names: as for `results`.

        Raises:
            ModelError: maps, predicted IoUs or mask logits of an image are not finite.
        """
        found = self._found_in_parts(features, labels)
        return self._finished(features, found, ids, names)

    def find(self, features: Features, labels: LabelSet) -> list[Found]:
        """What `segment` makes results of: what was found in each image, its views together."""
        return _of_images(features, self._found_in_parts(features, labels), self.config)

    def presence(
        self, features: Features, labels: LabelSet
    ) -> list[tuple[Float[np.ndarray, "labels"], Bool[np.ndarray, "labels"]]]:
        """For each image the presence scores of all classes, and which are beaten, as `segment` has
        them; without SAM.

        Raises:
            ModelError: the maps of an image are not finite.
        """
        maps = []
        for few in features.parts():
            maps.append(self.locate(few, labels))
            for image, raw in zip(few.images, maps[-1].raw, strict=True):
                check_finite(image, "CLIP's similarity maps", raw.cpu().numpy())
        scores, beaten = (
            np.concatenate([getattr(m, name).cpu().numpy() for m in maps])
            for name in ("presence", "beaten")
        )
        ends = np.cumsum([len(own) for own in features.windows])[:-1]
        pairs = zip(np.split(scores, ends), np.split(beaten, ends), strict=True)
        return [best_presence(lowered(own), lost) for own, lost in pairs]

    def _found_in_parts(self, features: Features, labels: LabelSet) -> list[Found]:
        return [
            found
            for few in features.parts()
            for found in self._found(few, self.predict(few, labels))
        ]

    @torch.no_grad()
    def _found(self, features: Features, prediction: Prediction) -> list[Found]:
        """What was found in each view."""
        return [
            find_in(image, prediction, i, self.config, self.sam)
            for i, image in enumerate(features.images)
        ]

    def _finished(
        self,
        features: Features,
        found: list[Found],
        ids: tuple[int, ...] | None,
        names: tuple[str, ...] | None,
    ) -> list[Result]:
        """The result of each image, from what was found in each view."""
        return [
            finished(
                image,
                one,
                self.config,
                image_id=ids[i] if ids else i + 1,
                file_name=names[i] if names else None,
            )
            for i, (image, one) in enumerate(
                zip(features.whole, _of_images(features, found, self.config), strict=True)
            )
        ]

    # -- parts of the stages that explanations and benchmarks look at

    def agreement(
        self, maps: SimilarityMaps, prompts: Prompts, candidates: Candidates
    ) -> Float[Tensor, "prompts candidates"]:
        """How well each candidate agrees with the map of its prompt's label, 0 to 1. With one
        prompt an object: by the map's contrast at the candidate's border; with one a label: by how
        well it covers the whole map."""
        if self.config.prompts == "object":
            return self.contrast(maps, prompts, candidates.logits).agreement
        heat = maps.raw[prompts.image_index, prompts.label_index]
        cells = (heat.shape[-2], heat.shape[-1])
        return agreement(self._coverage(candidates.logits, prompts, cells), heat)

    def contrast(
        self, maps: SimilarityMaps, prompts: Prompts, logits: Float[Tensor, "prompts masks low low"]
    ) -> Contrast:
        """What the map of each prompt's label says about masks of the prompt."""
        fine = fine_maps(maps.raw[prompts.image_index, prompts.label_index])
        return contrast(self._coverage(logits, prompts, (fine.shape[-2], fine.shape[-1])), fine)

    def _coverage(
        self, logits: Float[Tensor, "prompts masks low low"], prompts: Prompts, cells: Any
    ) -> Float[Tensor, "prompts masks rows cols"]:
        """The share of each of a map's cells that each mask covers."""
        parts = zip(logits.split(prompts.counts), prompts.sizes, strict=True)
        return torch.cat([self.sam.coverage(own, size, cells) for own, size in parts])

    @torch.no_grad()
    def surgery_terms(self, features: Features, labels: LabelSet) -> SurgeryTerms:
        """The two terms of feature surgery that `locate` subtracts, for all classes and then the
        background prompts."""
        text, redundant = self._text(labels)
        grid = features.tokens(self.config.method, self.config.resolution)
        return surgery_terms(grid.tokens, text, redundant)

    def _text(self, labels: LabelSet) -> tuple[Tensor, Tensor | None]:
        """Text features of the classes and of the background prompts that are no label's own
        prompt; and the redundant feature for a label that stands alone."""
        text = self.clip.encode_labels(labels)
        own = {prompt for c in labels.classes for prompt in c.prompts}
        background = [p for p in self.config.background_prompts if p not in own]
        if background:
            text = torch.cat([text, self.clip.encode_texts(background, labels.templates)])
        return text, self.clip.encode_empty(labels.templates) if len(text) == 1 else None

    def _thresholds(self, labels: LabelSet) -> Float[Tensor, "labels"]:
        """The presence threshold of each class; NaN: no decision."""
        limits = labels.thresholds(self.config.presence_threshold)
        values = [torch.nan if t is None else t for t in limits]
        return torch.tensor(values, device=self.clip.device)


def _image(given: Image | PreparedImage) -> Image:
    return given.image if isinstance(given, PreparedImage) else given


def _of_images(features: Features, found: list[Found], config: Config) -> list[Found]:
    """What was found in each image, from what was found in each view."""
    rest = iter(found)
    return [
        merged(image.size, own, list(islice(rest, len(own))), config)
        for image, own in zip(features.whole, features.windows, strict=True)
    ]


def _check_image(image: Image) -> None:
    """Those of `load_image` are right; one made by hand may hold anything."""
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


def _in_groups(
    encode: Callable[[Float[Tensor, "_ 3 _ _"]], Tensor],
    pixels: Float[Tensor, "images 3 height width"],
    group: int,
) -> Tensor:
    """Encode `group` images at a time: (images, ...). The last group is filled up with its last
    image."""
    missing = -len(pixels) % group
    full = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
    return torch.cat([encode(part) for part in full.split(group)])[: len(pixels)]
