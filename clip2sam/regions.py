"""Regions first: SAM cuts all of an image into masks, and CLIP says which label each of them is.

A grid of points prompts SAM without a label. The masks that it is sure of, one of each object or
part, are the image's regions. They and what CLIP sees in them are the same for all labels, so
further labels of an image cost a product of small matrices. CLIP has two views of a region: its
dense tokens inside the mask, which know the image around it, and crops of it as images of their
own.

Sources: Gu et al., 2021 (ViLD), https://arxiv.org/abs/2104.13921: regions without a class, a crop
of each and one 1.5 times as large through CLIP, and the geometric mean of two views' scores.
Kirillov et al., 2023, https://arxiv.org/abs/2304.02643, and segment-anything's
`SamAutomaticMaskGenerator`: the grid of points and its filters. Measured in LOG.md, 2026-11-28.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor

from clip2sam.clip.methods import RAW_CLIP, Method
from clip2sam.clip.model import SurgeryCLIP
from clip2sam.config import Config, whole_number
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelSet
from clip2sam.errors import ConfigError, shown
from clip2sam.features import Features
from clip2sam.kernels.device import REGION_CROPS, REGION_PROMPTS, budget
from clip2sam.kernels.tensors import state_sha256
from clip2sam.locate import BOX_CELLS, FALL, Located, check_finds_objects, label_texts
from clip2sam.result import check_finite, finite_if_all_are
from clip2sam.sam import Cutter
from clip2sam.scoring import best_of_each, same_object, stability
from clip2sam.types import Candidates, Embeddings, Prompts, Proposals

VIEWS = ("dense", "crops", "both")
"""What of a region CLIP may look at."""

POINTS, MOST_POINTS = 16, 64
"""Points a side of the grid that prompts SAM, and the most of them; segment-anything takes 32."""

LEAST_IOU, LEAST_STABILITY = 0.6, 0.7
"""A mask is a region from these two of SAM's own figures on. segment-anything takes .88 and .95;
here CLIP sorts out what is left, and stricter filters lose objects."""

SAME_REGION = 0.8
"""Two masks with a higher IoU are one region: that of which SAM is surer."""

MOST_MASKS = 1024
"""So many masks of an image are compared with each other at most, those of which SAM is surest."""

MOST_REGIONS = 256
"""So many regions an image has at most."""

WIDER = 1.5
"""The larger of a region's two crops, as a multiple of its box."""

LOGIT_SCALE = 100.0
"""That of OpenAI's CLIPs. Scores are multiplied by the CLIP's own and divided by this one: cosines
differ more for a CLIP that was trained with a lower one. So one threshold serves all CLIPs."""

BLUR = 9
"""Cells a side of the square in which a region's cells are counted to find its middle."""


@dataclass(frozen=True)
class ImageRegions:
    """The regions of one image, the surest first: what doesn't depend on labels."""

    logits: Float[Tensor, "regions low low"]
    """As in `Candidates`."""
    predicted_iou: Float[Tensor, "regions"]
    quality: Float[Tensor, "regions"]
    """How sure SAM is of each: predicted IoU times stability."""
    boxes: Float[Tensor, "regions 4"]
    """x0, y0, x1, y1 in continuous pixels of the image, around each mask."""
    same: Bool[Tensor, "regions regions"]
    """Which of them can't be two objects of one label."""
    heights: Float[Tensor, "regions rows cols"]
    """Each as a map: 1 at its middle, a little less elsewhere in the mask, 0 outside."""


@dataclass
class _Known:
    """What is kept of a batch, an entry for each image."""

    regions: list[ImageRegions]
    views: dict[tuple[Method | None, int], list[Tensor]] = field(default_factory=dict)
    """By dense method (None: crops) and resolution."""


class Regions:
    """A locator: masks of SAM without a label, each with CLIP's score for every label.

    Args:
        clip, sam: the models, on one device.
        points: points a side of the grid that prompts SAM. More of them find smaller objects, and
            cost as much more: 1 to 64.
        view: what of a region CLIP looks at: "dense" tokens inside its mask; "crops" of it, which
            cost two passes through CLIP a region; or "both": the geometric mean of the two scores.

    Raises:
        ConfigError: a number of points out of range, or an unknown view.
    """

    name = "regions"

    def __init__(
        self, clip: SurgeryCLIP, sam: Cutter, points: int = POINTS, view: str = "dense"
    ) -> None:
        self.clip, self.sam = clip, sam
        self.points = whole_number("points", points, 1, MOST_POINTS, "points a side")
        if view not in VIEWS:
            raise ConfigError(f"view must be one of {', '.join(VIEWS)}, but got {shown(view)}")
        self.view = view
        self._scale = float(clip.model.logit_scale.detach().exp()) / LOGIT_SCALE
        self._known: WeakKeyDictionary[Features, _Known] = WeakKeyDictionary()

    @property
    def resolution(self) -> int:
        """CLIP's own."""
        return self.clip.resolution

    def weights(self) -> dict[str, str]:
        """CLIP's, and the two settings."""
        clip = state_sha256(self.clip.model.state_dict())
        return {"clip": clip, "points": str(self.points), "view": self.view}

    def check(self, config: Config) -> None:
        """Refuse one prompt a label, and a resolution that the CLIP can't take."""
        check_finds_objects(self.name, config)
        self.clip.patches(config.resolution)

    @torch.no_grad()
    def locate(self, features: Features, labels: LabelSet, config: Config) -> Located:
        """Score every region of every image for every class.

        Raises:
            ModelError: a value that SAM gives for an image is not finite.
        """
        least = self._least(labels, config)
        maps, found = [], []
        regions, scores = self.regions(features), self.scores(features, labels, config)
        for own, score in zip(regions, scores, strict=True):
            maps.append(region_maps(own.heights, score))
            wanted = score[:, : len(least)]
            found.append(best_regions(wanted, own, least, config.positive_from, config.max_objects))
        rows = [row for row, _ in found]
        picked = list(zip(regions, rows, strict=True))
        proposals = Proposals(
            boxes=torch.cat([own.boxes[row] for own, row in picked]),
            score=torch.cat([s[r, k] for s, (r, k) in zip(scores, found, strict=True)]),
            label_index=torch.cat([label for _, label in found]),
            counts=tuple(len(row) for row in rows),
            sizes=features.sizes,
            candidates=Candidates(
                torch.cat([own.logits[row] for own, row in picked])[:, None],
                torch.cat([own.predicted_iou[row] for own, row in picked])[:, None],
            ),
        )
        return Located(torch.stack(maps), proposals)

    def _least(self, labels: LabelSet, config: Config) -> Float[Tensor, "labels"]:
        """The presence threshold of each class that may get masks, 0 where there is none: the masks
        of a label that is absent need not be gathered."""
        limits = labels.thresholds(config.presence_threshold)[: len(labels.wanted)]
        return torch.tensor([t or 0.0 for t in limits], device=self.sam.device).clamp(min=0)

    def regions(self, features: Features) -> list[ImageRegions]:
        """The regions of each image: found when they are first needed, and kept as long as the
        features are there."""
        return self._of(features).regions

    @torch.no_grad()
    def scores(
        self, features: Features, labels: LabelSet, config: Config
    ) -> list[Float[Tensor, "regions classes"]]:
        """For each image the score of each region for each class, distractors too."""
        texts = label_texts(self.clip, labels, config)
        views = []
        if self.view != "crops":
            tokens = self.dense(features, config.method, config.resolution)
            views.append([texts.scores(one[None])[0, 1:] for one in tokens])
        if self.view != "dense":
            crops = self.crops(features, config.resolution)
            views.append([texts.scores(one[:, None])[:, 0] for one in crops])
        return [combined(*own) * self._scale for own in zip(*views, strict=True)]

    def dense(
        self, features: Features, method: Method, resolution: int | None = None
    ) -> list[Float[Tensor, "image_and_regions channels"]]:
        """For each image the CLS token, then the mean of the dense tokens in each region."""
        known, key = self._of(features), (method, resolution or self.clip.resolution)
        if key not in known.views:
            grid = features.tokens(method, resolution)
            own = zip(known.regions, features.sizes, grid.tokens, strict=True)
            known.views[key] = [
                pooled(self._coverage(r, size, (grid.rows, grid.cols)), x) for r, size, x in own
            ]
        return known.views[key]

    def crops(
        self, features: Features, resolution: int | None = None
    ) -> list[Float[Tensor, "regions channels"]]:
        """For each image a unit feature of the crops of each region."""
        known, side = self._of(features), resolution or self.clip.resolution
        if (None, side) not in known.views:
            known.views[None, side] = [
                crop_features(self.clip, image, own.boxes, side)
                for own, image in zip(known.regions, features.images, strict=True)
            ]
        return known.views[None, side]

    @torch.no_grad()
    def _of(self, features: Features) -> _Known:
        if features not in self._known:
            embeddings = features.embeddings(range(len(features.images)))
            found = [
                find_regions(self.sam, image, tuple(x[i : i + 1] for x in embeddings), self.points)
                for i, image in enumerate(features.images)
            ]
            self._known[features] = _Known(found)
        return self._known[features]

    def _coverage(
        self, regions: ImageRegions, size: tuple[int, int], cells: tuple[int, int]
    ) -> Float[Tensor, "regions rows cols"]:
        return self.sam.coverage(regions.logits[:, None], size, cells)[:, 0]


# -- the regions of an image


def find_regions(sam: Cutter, image: Image, embeddings: Embeddings, points: int) -> ImageRegions:
    """The masks that a grid of `points` a side gives. A few prompts are decoded at a time, and
    `MOST_MASKS` masks kept, so that memory doesn't grow with their number.

    Raises:
        ModelError: a value that SAM gives is not finite.
    """
    size, nothing = image.size, sam.no_candidates()
    found = _Sure(nothing.logits[:, 0].half(), *nothing.predicted_iou[:, :2].T)
    for xy in grid_points(points, size).to(sam.device).split(budget(REGION_PROMPTS, sam.device)):
        made = sam.decode(embeddings, point_each(xy, size))
        logits, predicted_iou = made.logits.flatten(0, 1), made.predicted_iou.flatten()
        check_finite(image, "SAM's predicted IoUs", predicted_iou.cpu().numpy())
        check_finite(image, "SAM's mask logits", finite_if_all_are(logits))
        seen = sam.inside(logits, size).flatten(1).any(dim=1)
        found = found.surest_with(logits, predicted_iou, seen)
    kept = distinct(sam.inside(found.logits, size), found.quality)
    logits = found.logits[kept].float()
    coverage = sam.coverage(logits[:, None], size, (BOX_CELLS, BOX_CELLS))[:, 0]
    return ImageRegions(
        logits,
        found.predicted_iou[kept],
        found.quality[kept],
        boxes=sam.boxes(logits, size),
        same=same_object(sam.inside(logits, size)),
        heights=region_heights(coverage),
    )


class _Sure(NamedTuple):
    """Masks that SAM is sure of, in the order of the grid."""

    logits: Float16[Tensor, "masks low low"]
    """In half of the memory: the masks are the same."""
    predicted_iou: Float[Tensor, "masks"]
    quality: Float[Tensor, "masks"]

    def surest_with(
        self,
        logits: Float[Tensor, "more low low"],
        predicted_iou: Float[Tensor, "more"],
        seen: Bool[Tensor, "more"],
    ) -> "_Sure":
        """The surest of these and of more masks, if these are sure and `seen` in the image. It
        makes no difference how many come at once."""
        steady = stability(logits)
        sure = seen & (predicted_iou >= LEAST_IOU) & (steady >= LEAST_STABILITY)
        more = (logits[sure].half(), predicted_iou[sure], (predicted_iou * steady)[sure])
        all_of_them = _Sure(*(torch.cat(pair) for pair in zip(self, more, strict=True)))
        best = all_of_them.quality.argsort(descending=True, stable=True)[:MOST_MASKS]
        return _Sure(*(column[best.sort().values] for column in all_of_them))


def grid_points(side: int, size: tuple[int, int]) -> Float[Tensor, "points 2"]:
    """(x, y) in continuous pixels of the centres of `side` x `side` equal parts of an image of
    (height, width) `size`, row by row."""
    steps = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(steps * size[0], steps * size[1], indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)


def point_each(coords: Float[Tensor, "points 2"], size: tuple[int, int]) -> Prompts:
    """A prompt of one positive point for each place in one image."""
    ones = torch.ones(len(coords), 1, dtype=torch.long, device=coords.device)
    return Prompts(coords[:, None], ones, torch.zeros_like(ones[:, 0]), (len(coords),), (size,))


def distinct(
    inside: Bool[Tensor, "masks rows cols"], quality: Float[Tensor, "masks"]
) -> Int[Tensor, "kept"]:
    """The masks of one image without duplicates, the best first."""
    same = same_object(inside, SAME_REGION, contained=1.0)
    kept = best_of_each(quality, torch.ones_like(same), same, MOST_REGIONS).nonzero()[:, 0]
    return kept[quality[kept].argsort(descending=True, stable=True)]


def region_heights(
    coverage: Float[Tensor, "regions rows cols"],
) -> Float[Tensor, "regions rows cols"]:
    """Regions as maps. A cell of which half is covered, or as much as of no other, is in the
    region: 1 where most of the region is around it, up to `FALL` less elsewhere."""
    most = coverage.amax(dim=(-2, -1), keepdim=True)
    inside = coverage >= most.clamp(max=0.5)
    around = F.avg_pool2d(coverage[:, None], BLUR, stride=1, padding=BLUR // 2)[:, 0] * inside
    share = around / around.amax(dim=(-2, -1), keepdim=True)
    return torch.where(inside, 1 - FALL * (1 - share), 0.0)


# -- what CLIP sees of them


def pooled(
    coverage: Float[Tensor, "regions rows cols"], tokens: Float[Tensor, "tokens channels"]
) -> Float[Tensor, "image_and_regions channels"]:
    """The CLS token, then for each region the mean of the patch tokens, each by the share of its
    cell that is covered. Not normalised: its score is the mean of the tokens' scores."""
    weights = coverage.flatten(1)
    means = weights @ tokens[1:] / weights.sum(dim=1, keepdim=True)
    return torch.cat([tokens[:1], means])


def crop_features(
    clip: SurgeryCLIP, image: Image, boxes: Float[Tensor, "regions 4"], side: int
) -> Float[Tensor, "regions channels"]:
    """CLIP's features of two crops of each region, added and made unit again. The crops are
    squashed to CLIP's square of `side` pixels, and have their background."""
    cuts = [crop(image, box, factor) for box in boxes.tolist() for factor in (1.0, WIDER)]
    at_once, features = budget(REGION_CROPS, clip.device), []
    for first in range(0, len(cuts), at_once):
        squares = [clip.resize(cut, side) for cut in cuts[first : first + at_once]]
        features.append(clip.encode_image(clip.preprocess(squares), RAW_CLIP)[0][:, 0])
    if not cuts:
        return boxes.new_zeros(0, clip.encode_empty().shape[1])
    return F.normalize(torch.cat(features).unflatten(0, (-1, 2)).sum(dim=1), dim=-1)


def crop(image: Image, box: list[float], factor: float) -> Image:
    """The pixels of a box that is `factor` times as large, as far as the image goes; at least one
    pixel.

    Args:
        box: x0, y0, x1, y1 in continuous pixels.
    """
    x0, y0, x1, y1 = box
    spans = ((y0, y1, image.size[0]), (x0, x1, image.size[1]))
    return Image(image.pixels[tuple(_pixels(*span, factor) for span in spans)], image.origin)


def _pixels(low: float, high: float, length: int, factor: float) -> slice:
    more = (high - low) * (factor - 1) / 2
    first = min(max(math.floor(low - more), 0), length - 1)
    return slice(first, max(min(math.ceil(high + more), length), first + 1))


# -- which label they are


def combined(
    *scores: Float[Tensor, "regions classes"],
) -> Float[Tensor, "regions classes"]:
    """One score of one or more views: their geometric mean, 0 if one is not above 0."""
    if len(scores) == 1:
        return scores[0]
    return torch.stack(scores).clamp(min=0).prod(dim=0) ** (1 / len(scores))


def best_regions(
    scores: Float[Tensor, "regions labels"],
    regions: ImageRegions,
    least: Float[Tensor, "labels"],
    share: float,
    most: int,
) -> tuple[Int[Tensor, "found"], Int[Tensor, "found"]]:
    """The regions that are objects of each label: the best first, then the best of those that show
    none of the objects so far, and so on, where the best is that of the highest score times
    quality. So of a region and a larger one around it only one is an object.

    Args:
        least: a label whose highest score is below it has none.
        share: in (0, 1]: an object has at least this share of its label's highest score.
        most: so many of a label at most.

    Returns:
        The region and the label of each.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    best = scores.amax(dim=0) if len(scores) else least
    able = (scores > 0) & (scores >= share * best) & (best >= least)
    left = (scores * regions.quality[:, None]).masked_fill(~able, -torch.inf).T
    every = torch.arange(len(left), device=left.device)
    for _ in range(min(most, len(scores))):
        height, lead = left.max(dim=1)
        kept[lead, every] |= height > 0
        left = left.masked_fill(regions.same[lead], -torch.inf)
    row, label = kept.nonzero(as_tuple=True)
    return row, label


def region_maps(
    heights: Float[Tensor, "regions rows cols"], scores: Float[Tensor, "regions classes"]
) -> Float[Tensor, "classes rows cols"]:
    """Of each class the highest score of the regions at each place; 0 where there is none."""
    maps = heights.new_zeros(scores.shape[1], *heights.shape[1:])
    for height, score in zip(heights, scores, strict=True):  # all at once would be much memory
        torch.maximum(maps, height * score[:, None, None], out=maps)
    return maps
