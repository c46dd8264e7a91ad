"""The figure: labels and images go through the stages one after another and come out as masks.

labels --> text features --+
images --> CLIP's tokens --+--> locate: maps, presence --> instances --> prompt: points --+
images --> SAM's embeddings (only where there is a prompt) --------------------------------+
                                                                                            v
                                                                         choose: masks <-- decode

Another locator than CLIP (`clip2sam.locate`) takes the place of the first two lines.

Each stage is public, takes a batch, and hands on one record of `clip2sam.types`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image as PILImage
from torch import Tensor

from clip2sam.candidates import agreement, as_rule
from clip2sam.clip.model import SurgeryCLIP
from clip2sam.config import Config, as_config
from clip2sam.data.images import Image, load_image
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.data.presence import best_presence, is_present, presence_of_classes
from clip2sam.errors import ConfigError, ImageError
from clip2sam.features import Features, PreparedImage, check_image, image_of, needed_clip
from clip2sam.instances import (
    PEAKS_AN_OBJECT,
    find_instances,
    fine_maps,
    instance_prompts,
)
from clip2sam.joins import joined_points, mean_maps
from clip2sam.locate import ClipLocator, Locator, as_locator
from clip2sam.points import point_prompts, pool_grid, select_points
from clip2sam.proposals import proposal_contrast, proposal_prompts
from clip2sam.result import Found, Result, check_finite, find_in, finished
from clip2sam.sam import Cutter
from clip2sam.scoring import (
    Contrast,
    best_of_each,
    contrast,
    same_object,
    stability,
)
from clip2sam.similarity import SurgeryTerms, beaten_by_distractors
from clip2sam.tiles import lowered, merged, views
from clip2sam.types import (
    Candidates,
    Instances,
    Masks,
    Prediction,
    Prompts,
    SimilarityMaps,
)

ImageLike = Image | str | PathLike[str] | bytes | PILImage.Image | Any
"""A path, encoded bytes, an RGB uint8 array (height, width, 3), a PIL image or an `Image`."""

LabelsLike = LabelSet | Sequence[str] | Mapping[str, Any] | PathLike[str]
"""Names, a mapping from names to their synonyms, a labels file, or a `LabelSet`."""


class Segmenter:
    """Cuts labels out of images: a CLIP says where, a SAM cuts.

    Args:
        clip: an open_clip model in its adapter; None: the locator needs none.
        sam: a segment-anything model in its adapter, on the same device.
        config: the settings; `clip2sam.published()` gives those of the published demo.
        locator: what finds the labels; None: the CLIP, by `Config.method`.

    Raises:
        ConfigError: settings of another type, or that the locator can't follow, such as a grid that
            does not fit its maps; or neither a CLIP nor a locator.
    """

    def __init__(
        self,
        clip: SurgeryCLIP | None,
        sam: Cutter,
        config: Config | None = None,
        locator: Locator | None = None,
    ) -> None:
        self._clip = clip
        self.sam = sam
        self.config = as_config(config)
        self.locator = as_locator(clip, locator)
        self.locator.check(self.config)  # known now, before any image is worked on

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
        return Segmenter(self._clip, self.sam, replace(self.config, **changes), self.locator)

    @property
    def clip(self) -> SurgeryCLIP:
        """The CLIP.

        Raises:
            ConfigError: there is none, the locator is another model.
        """
        return needed_clip(self._clip)

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self.sam.device

    @property
    def view_side(self) -> int:
        """Side in pixels of the square that the locator sees of an image, by the settings."""
        return self.config.resolution or self.locator.resolution

    def look_at(self, labels: LabelSet) -> None:
        """Warn of labels that the CLIP doesn't know, as far as that can be told. Segmenting does it
        too; a long job does it before it begins."""
        if self._clip is not None:
            self._clip.look_at(labels)

    def forget_labels(self) -> None:
        """Remember no more labels than fit into a bounded memory: for a server, whose users type
        what they like for months. Nothing is kept on disk, and nobody is warned of unknown ones."""
        if self._clip is not None:
            self._clip.forget_labels()

    # -- the stages

    def prepare(self, image: Image) -> PreparedImage:
        """The host's part of `encode`; may run in another thread while a model works. Windows of a
        large image are cut later, a few at a time.

        Raises:
            ImageError: the image was made by hand, and not of RGB uint8 (height, width, 3).
        """
        check_image(image)
        clip = self._clip
        square = None if clip is None else clip.resize(image, self.config.resolution)
        return PreparedImage(image, square, self.sam.resize(image))

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
            check_image(image_of(image))
        windows = [views(image_of(image).size, self.config, self.view_side) for image in images]
        return Features(self._clip, self.sam, images, group, windows)

    @torch.no_grad()
    def locate(self, features: Features, labels: LabelSet) -> SimilarityMaps:
        """A raw map and a presence score for every class of every image, distractors included, and
        which classes are present. A joined class is not there yet, but each of its parts."""
        parts = labels.apart()
        located = self.locator.locate(features, parts, self.config)
        raw = located.raw
        presence = raw.amax(dim=(-2, -1))
        distractor = torch.tensor([c.distractor for c in parts.classes], device=raw.device)
        beaten = beaten_by_distractors(raw, distractor)
        present = is_present(presence, beaten, self._thresholds(parts)) & ~distractor
        return SimilarityMaps(
            raw, presence, beaten, present, labels, features.sizes, located.proposals
        )

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
        `Config.prompts`; where objects were found one by one, their boxes."""
        config, start = self.config, self.config.positive_from
        if maps.proposals is not None:
            return proposal_prompts(maps.proposals, maps.present, start, config.max_objects)
        grids = pool_grid(maps.raw, config.grid)
        if config.prompts == "object":
            instances = self._instances(maps, grids)
            if not config.max_negative:  # no slots for points that nobody asked for
                return instance_prompts(instances)
            points = select_points(grids, maps.sizes, start, 0, config.max_negative)
            return instance_prompts(instances, *points)
        if maps.labels.has_joined:
            return self._joined_prompts(maps, grids)
        points = select_points(grids, maps.sizes, start, config.max_positive, config.max_negative)
        return point_prompts(*points, maps.present, maps.sizes)

    def _joined_prompts(self, maps: SimilarityMaps, grids: Tensor) -> Prompts:
        """One prompt a label, where some are joined."""
        config, groups = self.config, maps.labels.groups
        mixed = pool_grid(mean_maps(maps.raw, groups), config.grid)
        limit = maps.sizes, config.positive_from
        positive = select_points(grids, *limit, config.max_positive, 0)
        negative = select_points(mixed, *limit, 0, config.max_negative)
        coords, kinds, prompted = joined_points(positive, negative, maps.present, groups)
        return point_prompts(coords, kinds, prompted, maps.sizes)

    def decode(self, features: Features, prompts: Prompts) -> Candidates:
        """SAM's candidate masks for each prompt, all prompts of the batch together; the masks that
        are there already, if the locator found some."""
        if prompts.candidates is not None:
            return prompts.candidates
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
            measured = self.measured(maps, prompts, candidates.logits)
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
        best = [best_presence(lowered(own), lost) for own, lost in pairs]
        return [presence_of_classes(*one, labels.groups) for one in best]

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
            return self.measured(maps, prompts, candidates.logits).agreement
        raw = mean_maps(maps.raw, maps.labels.groups) if maps.labels.has_joined else maps.raw
        heat = raw[prompts.image_index, prompts.label_index]
        cells = (heat.shape[-2], heat.shape[-1])
        return agreement(self._coverage(candidates.logits, prompts, cells), heat)

    def measured(
        self, maps: SimilarityMaps, prompts: Prompts, logits: Float[Tensor, "prompts masks low low"]
    ) -> Contrast:
        """What the map of each prompt's label says about masks of the prompt; where objects were
        found one by one, what the score and the box of the prompt's own say."""
        if prompts.scores is None or prompts.boxes is None:
            fine = fine_maps(maps.raw[prompts.image_index, prompts.label_index])
            return contrast(self._coverage(logits, prompts, (fine.shape[-2], fine.shape[-1])), fine)
        columns = (logits, prompts.boxes)
        parts = zip(*(column.split(prompts.counts) for column in columns), strict=True)
        fits = [
            self.sam.fit(own, boxes, size)
            for (own, boxes), size in zip(parts, prompts.sizes, strict=True)
        ]
        return proposal_contrast(prompts.scores, torch.cat(fits))

    def _coverage(
        self, logits: Float[Tensor, "prompts masks low low"], prompts: Prompts, cells: Any
    ) -> Float[Tensor, "prompts masks rows cols"]:
        """The share of each of a map's cells that each mask covers."""
        parts = zip(logits.split(prompts.counts), prompts.sizes, strict=True)
        return torch.cat([self.sam.coverage(own, size, cells) for own, size in parts])

    def surgery_terms(self, features: Features, labels: LabelSet) -> SurgeryTerms:
        """The two terms of feature surgery that `locate` subtracts, for all classes (the parts of
        joined ones) and then the background prompts.

        Raises:
            ConfigError: it is not CLIP's maps that the labels are found on.
        """
        if not isinstance(self.locator, ClipLocator):
            raise ConfigError(
                f"expected labels that are found on CLIP's maps, but {self.locator.name} finds "
                "them; load the segmenter with a method of clip2sam.clip.METHODS"
            )
        return self.locator.terms(features, labels.apart(), self.config)

    def _thresholds(self, labels: LabelSet) -> Float[Tensor, "labels"]:
        """The presence threshold of each class; NaN: no decision."""
        limits = labels.thresholds(self.config.presence_threshold)
        values = [torch.nan if t is None else t for t in limits]
        return torch.tensor(values, device=self.device)


def _of_images(features: Features, found: list[Found], config: Config) -> list[Found]:
    """What was found in each image, from what was found in each view."""
    rest = iter(found)
    return [
        merged(image.size, own, list(islice(rest, len(own))), config)
        for image, own in zip(features.whole, features.windows, strict=True)
    ]
