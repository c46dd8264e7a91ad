"""Average precision from arrays against pycocotools, on masks that are right, wrong and doubled."""

from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clip2sam.analysis.average_precision import IOUS, SIZES, Pool, match, overlaps
from clip2sam.coco.rle import area_and_box, encode_mask

SIDE = 60
UNIT = 1e6  # an area of the whole image, in the areas that pycocotools is given


def box(top, left, height, width):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = True
    return encode_mask(mask)


def drawn_pairs(seed, count=60):
    """Pairs of (masks, scores, objects): objects of 0 to 4, each found well, badly, twice or not,
    and masks of nothing. Some scores are equal."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        truth, masks = [], []
        for _ in range(rng.integers(0, 5)):
            top, left, height, width = (int(v) for v in rng.integers(4, 18, 4))
            truth.append(box(top, left, height, width))
            for _ in range(rng.choice(3, p=[0.2, 0.6, 0.2])):
                shift = rng.integers(-2, 3, 4) * (rng.random(4) < 0.4)
                masks.append(box(*(np.array([top, left, height, width]) + shift)))
        if rng.random() < 0.4:
            masks.append(box(*(int(v) for v in rng.integers(1, 30, 4))))
        masks = [m for m in masks if area_and_box(m)[0]]
        pairs.append((masks, [float(v) for v in rng.random(len(masks)).round(2)], truth))
    return pairs


def reference(pairs, size=(0.0, 1.0)):
    """pycocotools' AP at each IoU: every pair is an image, areas are shares."""
    truth, found = [], []
    for image, (masks, scores, objects) in enumerate(pairs, 1):
        for rows, rles in ((truth, objects), (found, masks)):
            for k, rle in enumerate(rles):
                area, around = area_and_box(rle)
                rows.append(
                    {"id": len(rows) + 1, "image_id": image, "category_id": 1, "bbox": around}
                    | {"segmentation": rle, "iscrowd": 0, "area": area / SIDE**2 * UNIT}
                    | ({"score": scores[k]} if rows is found else {})
                )
    with redirect_stdout(StringIO()):
        sides = []
        for rows in (truth, found):  # loadRes would compute the areas in pixels again
            coco = COCO()
            images = [{"id": i + 1, "height": SIDE, "width": SIDE} for i in range(len(pairs))]
            coco.dataset = {"images": images, "annotations": rows, "categories": [{"id": 1}]}
            coco.createIndex()
            sides.append(coco)
        judge = COCOeval(*sides, "segm")
        judge.params.areaRng = [[size[0] * UNIT, size[1] * UNIT]]
        judge.params.areaRngLbl = ["all"]
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"][:, :, 0, 0, -1].mean(axis=1)


def ours(pairs, size=(0.0, 1.0)):
    matches = [match(overlaps(*pair), size) for pair in pairs]
    return Pool(matches, range(len(pairs)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [(0.0, 1.0), *SIZES.values()])
def test_average_precision_is_that_of_pycocotools(seed, size):
    pairs = drawn_pairs(seed)
    expected = reference(pairs, size)
    assert 0.05 < expected.mean() < 0.9
    np.testing.assert_allclose(ours(pairs, size).precision(), expected, atol=1e-9)


def test_only_the_best_hundred_masks_of_a_pair_count():
    masks = [box(2, 2, 10, 10)] + [box(30, 30, 5 + k % 20, 6) for k in range(120)]
    pairs = [(masks, [0.1] + [0.5] * 120, [box(2, 2, 10, 10)])]
    np.testing.assert_array_equal(reference(pairs), np.zeros(len(IOUS)))
    np.testing.assert_array_equal(ours(pairs).precision(), np.zeros(len(IOUS)))


def test_an_image_of_weight_two_counts_twice():
    pairs = drawn_pairs(9, 20)
    weights = np.random.default_rng(0).integers(0, 3, 20).astype(float)
    # Scores that differ from each other: the order of equal ones is not that of the weights.
    pairs = [(m, [s + 1e-4 * i + 1e-6 * k for k, s in enumerate(scores)], truth)
             for i, (m, scores, truth) in enumerate(pairs)]  # fmt: skip
    repeated = [pair for pair, times in zip(pairs, weights, strict=True) for _ in range(int(times))]
    np.testing.assert_allclose(ours(pairs).precision(weights), reference(repeated), atol=1e-9)


def test_nothing_to_find_and_nothing_found():
    nothing = [([], [], []), ([box(2, 2, 10, 10)], [0.5], [])]
    assert np.isnan(ours(nothing).precision()).all()
    assert not ours([([], [], [box(2, 2, 10, 10)])]).precision().any()
    assert np.isnan(Pool([], []).precision()).all()
