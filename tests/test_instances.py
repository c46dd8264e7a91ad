"""One prompt and one mask for each object: where objects are, which masks are kept, how they are
scored, and what of it is shown."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clip2sam
from clip2sam.data.images import Image
from clip2sam.instances import FINE, find_instances, fine_maps, instance_prompts
from clip2sam.points import pool_grid, select_points
from clip2sam.scoring import (
    HALF_CONTRAST,
    best_of_each,
    contrast,
    same_object,
    shares_of_best,
    stability,
)
from clip2sam.tiny.scenes import instance_masks, scene, split_scene, split_seed
from clip2sam.types import SimilarityMaps


def bumps(places, side=14, width=1.2):
    """A map with a bump at each (row, col, height), in tokens."""
    rows, cols = np.meshgrid(*[np.arange(side) + 0.5] * 2, indexing="ij")
    heights = [
        h * np.exp(-((rows - r) ** 2 + (cols - c) ** 2) / 2 / width**2) for r, c, h in places
    ]
    return torch.tensor(np.sum(heights, axis=0), dtype=torch.float32)


def as_maps(raw, sizes, present=None):
    raw = torch.stack([torch.stack(one) for one in raw])
    images, labels = raw.shape[:2]
    return SimilarityMaps(
        raw,
        raw.amax(dim=(-2, -1)),
        torch.zeros(images, labels, dtype=torch.bool),
        torch.ones(images, labels, dtype=torch.bool) if present is None else torch.tensor(present),
        clip2sam.as_label_set([f"label {i}" for i in range(labels)]),
        sizes,
    )


def found(maps, threshold=0.5, most=8):
    return find_instances(maps, pool_grid(maps.raw, 7), threshold, most)


# Where objects are


def test_every_bump_is_an_object_the_highest_first():
    """Of two images of different sizes; coordinates are (x, y) in pixels of the original image."""
    first = [bumps([(3, 4, 0.8), (10, 9, 1.0), (3, 11, 0.7)]), bumps([(7, 7, 0.5)])]
    second = [bumps([(5, 2, 1.0), (5, 12, 0.9)]), bumps([(12, 3, 0.2)])]
    instances = found(as_maps([first, second], ((140, 280), (70, 70))))
    assert instances.counts == (4, 3)
    assert instances.label_index.tolist() == [0, 0, 0, 1, 0, 0, 1]
    assert instances.image_index.tolist() == [0, 0, 0, 0, 1, 1, 1]
    places = [(9, 10), (4, 3), (11, 3), (7, 7)]  # (col, row)
    expected = [(col * 20, row * 10) for col, row in places]
    expected += [(col * 5, row * 5) for col, row in [(2, 5), (12, 5), (3, 12)]]
    # A fine cell is 14 / 64 tokens; bilinear maps peak at a token's centre, half a token away.
    error = (instances.coords - torch.tensor(expected)).abs()
    assert (error / torch.tensor([[20.0, 10]] * 4 + [[5.0, 5]] * 3)).max() <= 0.75
    expected = [1.0, 0.8, 0.7, 0.5, 1.0, 0.9, 0.2]  # between four tokens a bump is 16 % lower
    assert instances.height.tolist() == pytest.approx(expected, rel=0.17)
    assert instances.height[0] > instances.height[1] > instances.height[2]


def test_weak_maxima_those_too_near_and_those_beyond_the_most_are_left_out():
    raw = bumps([(3, 3, 1.0), (11, 3, 0.6), (11, 11, 0.4)])
    assert found(as_maps([[raw]], ((14, 14),))).counts == (2,)
    assert found(as_maps([[raw]], ((14, 14),)), threshold=0.3).counts == (3,)
    assert found(as_maps([[raw]], ((14, 14),)), threshold=0.3, most=1).counts == (1,)
    two_tokens = bumps([(4.5, 4.5, 1.0), (4.5, 6.2, 0.9)], width=0.5)
    three_tokens = bumps([(4.5, 4.5, 1.0), (4.5, 7.5, 0.9)], width=0.5)
    assert found(as_maps([[two_tokens]], ((14, 14),)), threshold=0.3).counts == (1,)
    assert found(as_maps([[three_tokens]], ((14, 14),)), threshold=0.3).counts == (2,)


def test_objects_lie_in_or_beside_positive_cells_of_the_grid():
    """One high token makes a peak that its cell's mean doesn't show."""
    raw = bumps([(4, 4, 1.0)], width=2.5)
    raw[12, 12] = 0.9
    instances = found(as_maps([[raw]], ((14, 14),)))
    assert instances.counts == (1,)
    assert instances.coords[0].tolist() == pytest.approx([4, 4], abs=0.6)


def test_absent_constant_and_broken_maps_have_no_object():
    raw = [bumps([(3, 3, 1.0)]), torch.ones(14, 14), torch.full((14, 14), torch.nan)]
    assert found(as_maps([raw], ((9, 9),))).label_index.tolist() == [0]
    assert found(as_maps([raw], ((9, 9),), [[False, True, True]])).counts == (0,)


def test_a_label_whose_scores_are_all_negative_has_one_object():
    """Without a presence decision it is prompted all the same, at its best place."""
    instances = found(as_maps([[bumps([(3, 10, 0.5), (10, 3, 0.45)]) - 1]], ((14, 14),)))
    assert instances.counts == (1,)
    assert instances.coords[0].tolist() == pytest.approx([10, 3], abs=0.6)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(14, 14), (7, 8), (24, 32), (70, 80)]))
@settings(max_examples=25, deadline=None)
def test_any_map_gives_each_present_label_one_to_eight_places_in_the_image(seed, side):
    generator = torch.Generator().manual_seed(seed)
    maps = as_maps([[torch.randn(side, generator=generator) for _ in range(3)]], ((30, 50),))
    instances = found(maps)
    counts = torch.bincount(instances.label_index, minlength=3)
    assert ((counts >= 1) & (counts <= 8)).all()
    assert ((instances.coords > 0) & (instances.coords < torch.tensor([50, 30]))).all()
    tokens = instances.coords / torch.tensor([50 / side[1], 30 / side[0]])
    apart = torch.cdist(tokens, tokens) + 9 * torch.eye(len(tokens))
    apart = apart.where(instances.label_index[:, None] == instances.label_index, 9.0)
    assert apart.min() > 1.999
    assert fine_maps(maps.raw[0]).shape[-1] == max(FINE, 2 * side[1])


def test_a_prompt_has_its_place_and_its_labels_negative_points():
    maps = as_maps([[bumps([(3, 4, 1.0), (10, 9, 1.0)]), bumps([(8, 8, 1.0)])]], ((14, 14),))
    grids = pool_grid(maps.raw, 7)
    instances = find_instances(maps, grids, 0.5, 8)
    for most in (0, 2):
        points = select_points(grids, maps.sizes, 0.5, 0, most)
        prompts = instance_prompts(instances, *points)
        assert torch.equal(prompts.coords[:, 0], instances.coords)
        assert (prompts.point_labels[:, 0] == 1).all()
        assert (prompts.point_labels[:, 1:] == 0).sum(dim=1).tolist() == [most, most, most]
        assert not (prompts.point_labels[:, 1:] == 1).any()
        negative = points[0][0][prompts.label_index]
        assert torch.equal(prompts.coords[:, 1:], negative)


# Masks of one label


def box(top, left, bottom, right, side=20):
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_same_object_by_overlap_or_containment():
    masks = torch.stack(
        [
            box(0, 0, 10, 10),
            box(0, 3, 10, 13),  # with the first: IoU .54, and .7 of each in the other
            box(0, 6, 10, 16),  # with the first: IoU .25; with the second the same .54
            box(2, 0, 5, 4),  # in the first one; a quarter of it in the second
            box(8, 0, 13, 5),  # .4 of it in the first
            torch.zeros(20, 20, dtype=torch.bool),
        ]
    )
    same = same_object(masks)
    pairs = {tuple(pair) for pair in same.nonzero().tolist() if pair[0] < pair[1]}
    assert pairs == {(0, 1), (1, 2), (0, 3)}
    assert torch.equal(same, same.T)
    assert not same[5].any(), "an empty mask shows no object"


def test_the_best_of_each_object_is_kept():
    group = torch.tensor([0, 0, 0, 1, 1])
    of_one = group[:, None] == group
    same = torch.eye(5, dtype=torch.bool)
    for i, j in ((0, 1), (1, 2), (0, 3), (3, 4)):
        same[i, j] = same[j, i] = True
    order = torch.tensor([0.5, 0.9, 0.4, 0.7, 0.7])
    # 1 beats 0 and 2; 3 is another label's than 0, and of the equals 3 and 4 the first is kept
    assert best_of_each(order, of_one, same, 8).tolist() == [False, True, False, True, False]
    order = torch.tensor([0.9, 0.5, 0.4, 0.7, 0.8])
    # 1 is out, so it takes nothing from 2
    assert best_of_each(order, of_one, same, 8).tolist() == [True, False, True, False, True]
    assert best_of_each(order, of_one, same, 1).tolist() == [True, False, False, False, True]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_best_of_each_agrees_with_one_after_the_other(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 12))
    group, order = rng.integers(0, 3, n), rng.random(n).round(1)
    same = rng.random((n, n)) < 0.3
    same |= same.T
    expected = []
    for i in np.argsort(-order, kind="stable"):
        if not any(group[i] == group[k] and same[i, k] for k in expected):
            expected.append(i)
    kept = best_of_each(
        torch.tensor(order, dtype=torch.float32),
        torch.tensor(group[:, None] == group),
        torch.tensor(same),
        12,
    )
    assert kept.nonzero()[:, 0].tolist() == sorted(int(i) for i in expected)


def test_contrast_is_inside_minus_a_ring():
    heat = torch.full((64, 64), 0.1)
    heat[20:30, 20:30] = 0.9
    heat[22:24, 22:24] = 0.5
    coverage = torch.zeros(1, 3, 64, 64)
    coverage[0, 0, 20:30, 20:30] = 1
    coverage[0, 1] = 1  # everything: no ring, so nothing to compare with
    measured = contrast(coverage, heat[None])
    inside = (96 * 0.9 + 4 * 0.5) / 100
    assert measured.inside[0].tolist() == pytest.approx([inside, float(heat.mean()), 0], abs=1e-5)
    assert measured.contrast[0, 0].item() == pytest.approx(inside - 0.1, abs=1e-5)
    assert measured.contrast[0, 2].item() == 0
    half = measured._replace(contrast=torch.tensor([[HALF_CONTRAST]]))
    assert half.agreement.item() == pytest.approx(0.5)
    low = contrast(1 - coverage[:, :1], heat[None])
    assert low.contrast.item() == 0, "a mask around the object has none, not a negative one"


def test_stability_is_segment_anythings():
    from segment_anything.utils.amg import calculate_stability_score

    logits = torch.randn(5, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = calculate_stability_score(logits, 0.0, 1.0)
    torch.testing.assert_close(stability(logits), expected)
    assert stability(torch.full((1, 4, 4), -9.0)).tolist() == [0]


def test_shares_are_of_the_labels_best():
    values, labels = np.array([0.4, 0.8, 0.3, -0.1, 0.0]), np.array([0, 0, 1, 2, 2])
    assert shares_of_best(values, labels).tolist() == [0.5, 1, 1, 1, 1]
    assert shares_of_best(np.zeros(0), np.zeros(0, int)).tolist() == []
    assert shares_of_best(np.array([1.0, -0.5]), np.array([0, 0])).tolist() == [1, 0]


# Results


@pytest.fixture(scope="module")
def tiny():
    return clip2sam.load("tiny")


@pytest.fixture(scope="module")
def pair():
    """A scene with two hearts, far apart."""
    for i in range(300):
        drawn = scene(split_seed("validation", i), objects=(2, 3))
        hearts = instance_masks(drawn, "heart")
        if len(hearts) == 2 and min(mask.sum() for mask in hearts) > 1500:
            return drawn, hearts
    raise AssertionError("no such scene")


def test_two_objects_get_a_mask_each(tiny, pair):
    drawn, hearts = pair
    result = tiny(drawn.pixels, ["heart", "star", "cross"])
    masks = result.masks[result.label_indices == 0]
    overlaps = [max((m & t).sum() / (m | t).sum() for m in masks) for t in hearts]
    assert min(overlaps) > 0.6
    assert len(result.annotations) == len(result.masks) == len(result.points)
    assert all(len(points) == 1 for points in result.points)
    scores = result.scores[result.label_indices == 0]
    assert (np.diff(scores) <= 0).all(), "the best first"
    union = result.mask_of("heart")
    assert np.array_equal(union, masks.any(axis=0))
    one = tiny.with_config(prompts="label")(drawn.pixels, ["heart", "star", "cross"])
    assert one.labels.count("heart") == 1
    assert one.annotations[0].share == 1


def test_weak_masks_are_known_and_not_shown(tiny, pair):
    drawn, _ = pair
    labels = ["heart", "red thing", "striped star", "circle"]
    every = tiny.with_config(min_share=0.0, presence_threshold=0.0)
    some = every.with_config(min_share=0.9)
    shown, all_of_them = some(drawn.pixels, labels), every(drawn.pixels, labels)
    assert shown.everything == all_of_them.everything == all_of_them.annotations
    strong = tuple(a for a in shown.everything if a.share >= 0.9)
    assert shown.annotations == strong
    assert 0 < len(strong) < len(shown.everything)
    assert len(shown.masks) == len(shown.points) == len(shown.label_indices) == len(strong)
    assert {a.label for a in strong} == {a.label for a in shown.everything}, "never the best one"


def test_a_label_that_was_not_asked_for_has_no_mask(tiny, pair):
    result = tiny(pair[0].pixels, ["heart", "star"])
    with pytest.raises(clip2sam.LabelError, match="expected one of the labels requested, heart, s"):
        result.mask_of("ring")
    absent = tiny.with_config(presence_threshold=9.0)(pair[0].pixels, ["heart"])
    assert absent.mask_of("heart").shape == pair[0].size
    assert not absent.mask_of("heart").any()


def test_masks_are_scored_by_their_own_labels_map_and_compete_within_it(tiny):
    """Scores against the formula, one mask after the other; two labels for one object keep both."""
    drawn = split_scene("validation", 4, "several")
    first = drawn.objects[0]
    labels = clip2sam.as_label_set([f"{first.colour} thing", first.shape, "ring", "pink thing"])
    segmenter = tiny.with_config(presence_threshold=None, point_threshold=0.3)
    features = segmenter.encode([Image(drawn.pixels, "a.png")])
    maps = segmenter.locate(features, labels)
    prompts = segmenter.prompt(maps)
    candidates = segmenter.decode(features, prompts)
    masks = segmenter.choose(maps, prompts, candidates)
    fine = fine_maps(maps.raw[0])
    assert len(prompts.coords) > 8
    for i, label in enumerate(prompts.label_index.tolist()):
        logits = masks.logits[i]
        coverage = segmenter.sam.coverage(logits[None, None], drawn.size, fine.shape[-2:])
        inside, against = contrast(coverage, fine[label][None])
        expected = masks.predicted_iou[i].clamp(0, 1) * stability(logits[None])[0]
        expected = expected * against[0, 0] / (against[0, 0] + HALF_CONTRAST)
        assert masks.score[i].item() == pytest.approx(expected.item(), abs=1e-5)
        assert masks.inside[i].item() == pytest.approx(inside.item(), abs=1e-5)
    same = same_object(segmenter.sam.inside(masks.logits, drawn.size))
    kept: list[int] = []
    for i in masks.score.argsort(descending=True, stable=True).tolist():
        rivals = [k for k in kept if prompts.label_index[k] == prompts.label_index[i]]
        if not any(same[i, k] for k in rivals):
            kept.append(i)
    assert masks.kept.nonzero()[:, 0].tolist() == sorted(kept)
    of_both = masks.kept[prompts.label_index == 0], masks.kept[prompts.label_index == 1]
    assert all(one.any() for one in of_both), "labels don't compete: it is both"
    assert not masks.kept.all(), "some masks show one object"


def test_no_object_no_cost(tiny):
    flat = Image(np.full((50, 80, 3), 128, np.uint8), "flat.png")
    result = tiny.with_config(presence_threshold=9.0)(flat, ["heart"])
    assert result.annotations == result.everything == ()
