"""Regions first: SAM's masks of the whole image, and CLIP's score of each for every label."""

import gc
import json

import numpy as np
import pytest
import torch

import clip2sam
from clip2sam import regions as room
from clip2sam.coco.reading import read_json
from clip2sam.config import Config
from clip2sam.data.images import Image
from clip2sam.data.labels import as_label_set
from clip2sam.errors import ConfigError, ModelError
from clip2sam.kernels.device import REGION_PROMPTS
from clip2sam.labelling.run import label_dataset
from clip2sam.locate import Locator
from clip2sam.models.loading import with_method
from clip2sam.models.locators import LOCATORS, settings_for
from clip2sam.models.presets import PRESETS
from clip2sam.pipeline import Segmenter
from clip2sam.proposals import mask_boxes
from clip2sam.regions import (
    ImageRegions,
    Regions,
    best_regions,
    combined,
    crop,
    distinct,
    find_regions,
    grid_points,
    pooled,
    region_heights,
    region_maps,
)
from clip2sam.tiny.scenes import instance_masks, scene, true_labels
from tests.labelling_fakes import small_segmenter, write_images
from tests.test_locate import iou
from tests.test_pipeline import noise

LABELS = ["cat", "dog", "owl", "bee"]


@pytest.fixture(scope="module")
def tiny():
    return clip2sam.load("tiny", device="cpu", method="regions")


@pytest.fixture
def loose(monkeypatch):
    """The small seeded models are sure of nothing."""
    monkeypatch.setattr(room, "LEAST_IOU", -100.0)
    monkeypatch.setattr(room, "LEAST_STABILITY", 0.2)


def small(points=3, view="dense", **config):
    base = small_segmenter()
    locator = Regions(base.clip, base.sam, points, view)
    return Segmenter(base.clip, base.sam, Config(presence_threshold=0.0, **config), locator)


def found_in(segmenter, *images):
    features = segmenter.encode(list(images))
    return segmenter.locator.locate(features, as_label_set(LABELS), segmenter.config)


def planted(boxes, low=32, quality=None):
    """Regions of a square image that are boxes (x0, y0, x1, y1) in cells of SAM's frame."""
    logits = torch.full((len(boxes), low, low), -5.0)
    for one, (x0, y0, x1, y1) in zip(logits, boxes, strict=True):
        one[y0:y1, x0:x1] = 5.0
    inside = logits > 0
    sure = torch.ones(len(boxes)) if quality is None else torch.tensor(quality)
    return ImageRegions(
        logits,
        sure,
        sure,
        mask_boxes(inside) * 4,
        room.same_object(inside),
        region_heights(inside.float()),
    )


def as_numpy(*tensors):
    return [tensor.double().numpy() for tensor in tensors]


# -- the formulas, by loops


def mean_inside(mask, tokens, cells):
    """The mean of a grid's tokens, each by the share of its cell that the mask covers."""
    total, weight = np.zeros(tokens.shape[-1]), 0.0
    for row in range(cells):
        for col in range(cells):
            # a cell is all pixels that it touches
            top, bottom = row * len(mask) // cells, -(-(row + 1) * len(mask) // cells)
            left, right = col * len(mask) // cells, -(-(col + 1) * len(mask) // cells)
            share = mask[top:bottom, left:right].mean()
            total += share * tokens[row * cells + col]
            weight += share
    return total / weight


def surgery_score(token, cls, text):
    """One token's score for each text, with the weights of the CLS token."""
    weights = np.exp(2 * text @ cls)
    weights /= weights.mean()
    products = weights * (text @ token)
    return products - products.mean()


@pytest.mark.parametrize("view", ["dense", "crops", "both"])
def test_scores_agree_with_loops(monkeypatch, view):
    boxes = [(0, 0, 32, 32), (3, 5, 20, 9), (30, 30, 32, 32), (10, 0, 11, 31)]
    own = planted(boxes)
    monkeypatch.setattr(room, "find_regions", lambda *_: own)
    segmenter, image = small(view=view), noise(128, 128)
    features, labels = segmenter.encode([image]), as_label_set(LABELS, distractors=["fox"])
    (scores,) = segmenter.locator.scores(features, labels, segmenter.config)
    clip, config = segmenter.clip, segmenter.config
    grid = features.tokens(config.method)
    (text, tokens) = as_numpy(clip.encode_labels(labels), grid.tokens[0])
    expected = np.zeros((len(boxes), 5))
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        token = mean_inside((own.logits[k] > 0).numpy(), tokens[1:], grid.rows)
        dense = surgery_score(token, tokens[0], text)
        crops = 0
        for more in (0, 0.25):  # a crop of the box, and one with a quarter more at each side
            across, down = more * (x1 - x0) * 4, more * (y1 - y0) * 4
            left, top = (int(np.floor(max(v, 0))) for v in (x0 * 4 - across, y0 * 4 - down))
            right, bottom = (int(np.ceil(min(v, 128))) for v in (x1 * 4 + across, y1 * 4 + down))
            pixels = clip.resize(Image(image.pixels[top:bottom, left:right].copy(), "x"))
            raw = clip.model.encode_image(clip.preprocess([pixels])).detach()[0].double().numpy()
            crops = crops + raw / np.linalg.norm(raw)
        crops = crops / np.linalg.norm(crops)
        seen = surgery_score(crops, crops, text)
        both = np.sqrt(np.maximum(dense, 0) * np.maximum(seen, 0))
        expected[k] = {"dense": dense, "crops": seen, "both": both}[view]
    expected *= clip.model.logit_scale.exp().item() / 100
    assert np.abs(expected).max() > 1e-3
    assert np.allclose(scores, expected, atol=1e-5)


def test_without_feature_surgery_labels_do_not_interact(monkeypatch):
    monkeypatch.setattr(room, "find_regions", lambda *_: planted([(3, 5, 20, 9), (1, 1, 9, 9)]))
    segmenter = small(feature_surgery=False)
    features = segmenter.encode([noise(128, 128)])
    few, more = (
        segmenter.locator.scores(features, as_label_set(names), segmenter.config)[0]
        for names in (LABELS[:2], LABELS)
    )
    assert torch.allclose(few, more[:, :2], atol=1e-6)


def test_the_mean_of_nothing_but_one_cell():
    tokens = torch.randn(1 + 4, 3)
    coverage = torch.tensor([[[0.0, 0.25], [0.0, 0.0]], [[0.5, 0.0], [0.0, 0.5]]])
    cls, one, two = pooled(coverage, tokens)
    assert torch.allclose(cls, tokens[0])
    assert torch.allclose(one, tokens[2])
    assert torch.allclose(two, (tokens[1] + tokens[4]) / 2)


def test_views_are_combined_by_their_geometric_mean():
    left, right = torch.tensor([[0.4, -0.2], [0.9, 0.0]]), torch.tensor([[0.1, 0.5], [0.4, 0.3]])
    assert torch.allclose(combined(left, right), torch.tensor([[0.2, 0.0], [0.6, 0.0]]))
    assert torch.equal(combined(left), left)


def test_the_best_of_each_object_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    boxes = [(x, y, x + w, y + h) for x, y, w, h in rng.integers(1, 16, (40, 4)).tolist()]
    own = planted(boxes, quality=rng.random(40).astype(np.float32).tolist())
    scores = torch.tensor(rng.normal(0.3, 0.4, (40, 6)).astype(np.float32))
    least, most, share = [0.0, 0.5, 5.0, 0.0, 0.0, 0.2], 3, 0.4
    row, label = best_regions(scores, own, torch.tensor(least), share, most)
    expected = set()
    for k in range(6):
        highest = max(scores[:, k].tolist())
        if highest < least[k]:
            continue
        kept = []
        order = (scores[:, k] * own.quality).argsort(descending=True).tolist()
        for r in order:
            weak = scores[r, k] <= 0 or scores[r, k] < share * highest
            if not weak and not any(overlap(boxes[r], boxes[j]) for j in kept):
                kept.append(r)
        expected |= {(r, k) for r in kept[:most]}
    assert {*zip(row.tolist(), label.tolist(), strict=True)} == expected
    assert {k for _, k in expected} == {0, 1, 3, 4, 5}


def overlap(a, b):
    """Whether two boxes are one object: an IoU above .5, or .8 of the smaller one in the other."""
    wide, high = (max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0) for i in (0, 1))
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    shared = wide * high
    return shared > 0.5 * (sum(areas) - shared) or shared > 0.8 * min(areas)


def test_of_a_region_and_one_around_it_one_gets_the_label():
    own = planted([(8, 8, 14, 14), (4, 4, 26, 26), (8, 20, 14, 25)])
    scores = torch.tensor([[0.8, 0.3], [0.7, 0.9], [0.6, 0.4]])
    row, label = best_regions(scores, own, torch.zeros(2), 0.5, 8)
    assert [*zip(row.tolist(), label.tolist(), strict=True)] == [(0, 0), (1, 1), (2, 0)]


def test_duplicates_are_one_region():
    """An IoU above .8 with a better one that is kept; a part of a region is a region too."""
    boxes = [(0, 0, 10, 10), (0, 0, 10, 9), (0, 0, 10, 7), (2, 2, 6, 6), (20, 20, 30, 30)]
    inside = planted(boxes).logits > 0
    quality = torch.tensor([0.7, 0.9, 0.8, 0.6, 0.95])
    assert distinct(inside, quality).tolist() == [4, 1, 2, 3]
    assert distinct(inside, torch.tensor([0.95, 0.9, 0.8, 0.6, 0.7])).tolist() == [0, 2, 4, 3]


def test_maps_have_each_score_at_the_middle_of_its_region():
    coverage = torch.zeros(3, 64, 64)
    coverage[0, 10:31, 20:61] = 1
    coverage[0, 9, 20:61] = 0.4
    coverage[1, 5, 5], coverage[1, 5, 6] = 0.25, 0.125  # smaller than a cell
    coverage[2] = 0.75
    heights = region_heights(coverage)
    assert heights.flatten(1).amax(dim=1).tolist() == [1, 1, 1]
    assert [(h > 0).sum().item() for h in heights] == [21 * 41, 1, 64 * 64]
    assert heights[0, 20, 40] == 1
    assert 0.99 <= heights[0, 10, 20] < 0.996
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.7], [0.5, -0.4]])
    maps = region_maps(heights, scores)
    assert maps.amax(dim=(1, 2)).tolist() == pytest.approx([0.9, 0.7])
    assert float(maps[0, 5, 5]) == pytest.approx(0.8)
    assert maps[1, 60, 1] == 0, "no region has a score above 0 there"
    for row, col in [(20, 40), (63, 0), (12, 22)]:
        best = max(
            0.0, *(float(s * h) for s, h in zip(scores[:, 0], heights[:, row, col], strict=True))
        )
        assert float(maps[0, row, col]) == pytest.approx(best)


def test_the_grid_is_the_middle_of_equal_parts():
    assert grid_points(2, (10, 40)).tolist() == [[10, 2.5], [30, 2.5], [10, 7.5], [30, 7.5]]


def test_crops_stay_in_the_image():
    image = noise(20, 30)
    assert np.array_equal(crop(image, [3.2, 4.0, 8.0, 9.5], 1.0).pixels, image.pixels[4:10, 3:8])
    assert np.array_equal(crop(image, [4.0, 4.0, 8.0, 8.0], 1.5).pixels, image.pixels[3:9, 3:9])
    assert np.array_equal(crop(image, [0.0, 10.0, 30.0, 20.0], 1.5).pixels, image.pixels[7:20])
    assert crop(image, [30.0, 20.0, 30.0, 20.0], 1.0).pixels.shape == (1, 1, 3)
    assert np.array_equal(crop(image, [5.0, 6.0, 5.0, 6.0], 1.0).pixels, image.pixels[6:7, 5:6])


def test_boxes_are_those_of_the_masks(tiny):
    """In pixels of an image that is not square."""
    logits = torch.full((3, 64, 64), -9.0)
    logits[0, 4:20, 10:30] = 9
    logits[0, 40:50, 40:60] = 9  # in the padding
    logits[1, :32] = 9  # beyond the image, which has the upper half of the frame
    boxes = tiny.sam.boxes(logits, (100, 200))
    for own, mask in zip(boxes, next(tiny.sam.upscale(logits, (100, 200))), strict=True):
        ys, xs = np.nonzero(mask.numpy())
        around = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0,) * 4
        assert np.abs(own.numpy() - around).max() <= 3.2, "a pixel of SAM's"
    assert boxes[1].tolist() == [0, 0, 200, 100]
    assert boxes[2].tolist() == [0, 0, 0, 0]


# -- bounded, and the same whatever comes along


def test_any_number_of_prompts_at_once_gives_the_same(monkeypatch, loose):
    image, sam = noise(128, 128), small_segmenter().sam
    embedding = small().encode([image]).embeddings([0])
    decode, at_once, quality = sam.decode, [], {}

    def counted(embeddings, prompts):
        at_once.append(len(prompts.coords))
        return decode(embeddings, prompts)

    monkeypatch.setattr(sam, "decode", counted)
    for most in (1024, 9):  # more than there are, and fewer
        monkeypatch.setattr(room, "MOST_MASKS", most)
        outcomes = []
        for chunk in (1, 7, 64):
            monkeypatch.setitem(REGION_PROMPTS, "cpu", chunk)
            outcomes.append(find_regions(sam, image, embedding, 8))
            assert max(at_once) == chunk
            at_once.clear()
        first, *others = outcomes
        for other in others:  # the last digits of a point's encoding may differ
            for name, value in vars(first).items():
                atol = 0.05 if name == "logits" else 1e-4
                assert torch.allclose(value, getattr(other, name), atol=atol), name
        quality[most] = first.quality.tolist()
    count = len(quality[9])
    assert 1 < count <= 9 < len(quality[1024])
    assert quality[9] == pytest.approx(quality[1024][:count]), "the surest of all are kept"


def test_what_is_found_in_an_image_does_not_depend_on_the_others(loose):
    segmenter = small(view="both")
    images = [noise(90, 130), noise(40, 40, seed=1), noise(64, 200, seed=2)]
    together = found_in(segmenter, *images)
    alone = [found_in(segmenter, image) for image in images]
    assert sum(together.proposals.counts) > 3
    assert together.proposals.counts == tuple(n for one in alone for n in one.proposals.counts)
    assert torch.equal(together.raw, torch.cat([one.raw for one in alone]))
    for name in ("boxes", "score", "label_index"):
        parts = torch.cat([getattr(one.proposals, name) for one in alone])
        assert torch.equal(getattr(together.proposals, name), parts), name
    logits = torch.cat([one.proposals.candidates.logits for one in alone])
    assert torch.equal(together.proposals.candidates.logits, logits)


def test_without_a_threshold_each_label_has_max_objects_at_most(loose):
    config = {"max_objects": 2, "point_threshold": 0.01}
    everything = small(5, **config).with_config(presence_threshold=None)
    labels = as_label_set(LABELS, distractors=["fox"])
    located = everything.locator.locate(
        everything.encode([noise(), noise(seed=1)]), labels, everything.config
    )
    found = located.proposals
    pairs = list(zip(found.image_index.tolist(), found.label_index.tolist(), strict=True))
    assert max(map(pairs.count, pairs)) == 2
    assert 4 not in found.label_index, "a distractor gets no mask"
    high = found.score.max().item() + 0.1
    some = everything.locator.locate(
        everything.encode([noise()]), labels, Config(presence_threshold=high)
    )
    assert not len(some.proposals.score), "no masks are gathered for absent labels"
    assert some.raw.any()


def test_other_labels_cost_no_model_and_nothing_stays(monkeypatch, loose):
    segmenter = small(view="both")
    features = segmenter.encode([noise()])
    first = segmenter.locate(features, as_label_set(LABELS)).raw
    for part, name in ((segmenter.sam, "decode"), (segmenter.clip, "encode_image")):
        monkeypatch.setattr(part, name, None)
    more = segmenter.locate(features, as_label_set([*LABELS, "fox"])).raw
    assert more.shape[1] == 5
    assert torch.equal(segmenter.locate(features, as_label_set(LABELS)).raw, first)
    with pytest.raises(TypeError):  # the models are gone
        segmenter.locate(segmenter.encode([noise(seed=1)]), as_label_set(LABELS))
    method = segmenter.config.method
    dense = [segmenter.locator.dense(features, method)[0] for _ in range(2)]
    assert dense[0] is dense[1]
    kept = segmenter.locator.regions(features)
    held = len(gc.get_referrers(kept))
    assert held
    del features
    gc.collect()
    assert len(gc.get_referrers(kept)) < held, "regions go with their features"


@pytest.mark.parametrize("view", ["dense", "crops", "both"])
def test_an_image_without_any_region(view, monkeypatch):
    monkeypatch.setattr(room, "LEAST_IOU", np.inf)
    segmenter = small(view=view)
    for threshold in (0.1, None):
        result = segmenter.with_config(presence_threshold=threshold)(noise(), LABELS)
        assert not result.everything
        assert result.presence.tolist() == [0, 0, 0, 0]
        assert [a.label for a in result.absent] == LABELS
    located = found_in(segmenter, noise(), noise(seed=1))
    assert located.proposals.counts == (0, 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2000, 3), (3, 2)])
@pytest.mark.parametrize("view", ["dense", "both"])
def test_images_of_extreme_shapes(size, view, loose):
    segmenter = small(view=view)
    located = found_in(segmenter, noise(*size))
    boxes = located.proposals.boxes
    assert located.raw.isfinite().all()
    assert len(boxes)
    assert ((boxes[:, :2] >= 0) & (boxes[:, :2] < boxes[:, 2:])).all()
    assert (boxes[:, 2:] <= torch.tensor([size[1], size[0]])).all()
    result = segmenter(noise(*size), LABELS)
    assert all(tuple(a.rle["size"]) == size for a in result.everything)


@pytest.mark.parametrize("broken", ["logits", "predicted_iou"])
def test_what_is_not_finite_is_told(monkeypatch, broken):
    segmenter = small()
    decode = segmenter.sam.decode

    def fails(*given):
        made = decode(*given)
        getattr(made, broken)[1, 2] = torch.nan
        return made

    monkeypatch.setattr(segmenter.sam, "decode", fails)
    what = {"logits": "SAM's mask logits", "predicted_iou": "SAM's predicted IoUs"}[broken]
    with pytest.raises(ModelError, match=f"street.png: {what} have values that are not finite"):
        segmenter(noise(), LABELS)


# -- as a method


@pytest.mark.filterwarnings("ignore::clip2sam.UnknownLabelWarning")
def test_it_finds_what_is_drawn(tiny):
    """The objects of two scenes have their masks, and a label that is not there has none."""
    found = []
    for seed in (5, 7):
        drawn = scene(seed)
        names = true_labels(drawn)["colour + shape"]
        result = tiny(drawn.pixels, [*names, "traffic light"])
        assert set(result.labels) == set(names)
        for name in names:
            masks = result.masks[[label == name for label in result.labels]]
            found += [max(iou(m, true) for m in masks) for true in instance_masks(drawn, name)]
    assert min(found) > 0.4
    assert np.mean(found) > 0.8


def test_a_distractor_beats_a_label_at_its_region(monkeypatch):
    own = planted([(2, 2, 12, 12), (20, 18, 30, 30)])
    monkeypatch.setattr(room, "find_regions", lambda *_: own)
    segmenter, labels = small(), as_label_set(["cat", "dog"], distractors=["fox"])
    scores = torch.tensor([[0.5, 0.1, 0.6], [0.4, 0.7, 0.6]])
    monkeypatch.setattr(segmenter.locator, "scores", lambda *_: [scores])
    maps = segmenter.locate(segmenter.encode([noise(128, 128)]), labels)
    assert maps.beaten[0].tolist() == [True, False, False]
    assert maps.present[0].tolist() == [False, True, False]
    assert maps.presence[0].tolist() == pytest.approx([0.5, 0.7, 0.6])
    assert segmenter.prompt(maps).label_index.tolist() == [1]


def test_settings_and_objects_that_are_refused(tiny):
    assert isinstance(tiny.locator, Regions)
    assert isinstance(tiny.locator, Locator)
    assert with_method(clip2sam.load("tiny", device="cpu"), "regions").locator.name == "regions"
    with pytest.raises(ConfigError, match="regions finds objects one by one, so one mask a label"):
        tiny.with_config(prompts="label")
    with pytest.raises(ConfigError, match="a CLIP input of 3 pixels holds no patch"):
        tiny.with_config(resolution=3)
    with pytest.raises(ConfigError, match="points must be a whole number from 1 to 64 points a"):
        Regions(tiny.clip, tiny.sam, 0)
    with pytest.raises(ConfigError, match="view must be one of dense, crops, both, but got 'crop'"):
        Regions(tiny.clip, tiny.sam, view="crop")


def test_background_prompts_stay_for_what_works_with_clip():
    preset = PRESETS["tiny"].config
    config = settings_for("regions", preset)
    assert config.background_prompts == preset.background_prompts != ()
    assert config.presence_threshold == LOCATORS["regions"].presence_threshold


def test_a_run_goes_on_with_equal_regions_only(tmp_path, loose):
    write_images(tmp_path / "in", 5)

    def label(folder, batch, segmenter):
        return label_dataset(
            tmp_path / "in", LABELS, tmp_path / folder, segmenter=segmenter, batch_size=batch
        )

    for folder, batch in (("whole", 3), ("parts", 1)):
        assert label(folder, batch, small()).failed == 0
    files = [tmp_path / folder / "annotations.json" for folder in ("whole", "parts")]
    documents = [read_json(file)["annotations"] for file in files]
    assert documents[0], "the small models find something"
    assert json.dumps(documents[0]) == json.dumps(documents[1])
    with pytest.raises(clip2sam.RunError, match=r"weights\.points was '3', is now '4'"):
        label("whole", 3, small(4))
    with pytest.raises(clip2sam.RunError, match=r"weights\.view was 'dense', is now 'both'"):
        label("whole", 3, small(view="both"))


def test_regions_in_tiles(loose):
    image = noise()
    result = small(tile=64, min_share=0.0)(image, LABELS)
    height, width = image.size
    assert result.everything
    for annotation in result.everything:
        (x0, y0, _), (x1, y1, _) = annotation.points
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
