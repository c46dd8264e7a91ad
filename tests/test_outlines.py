"""Masks as polygons of few corners: near their masks, whatever these look like."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as mask_utils

from clip2sam.coco.document import coco_document
from clip2sam.coco.outlines import Fit, fit_of, outline_of, tolerance_of
from clip2sam.coco.polygons import cut_out, joined_polygons, rle_to_polygons
from clip2sam.coco.rle import encode_mask
from clip2sam.coco.validate import validate
from clip2sam.data.labels import LabelClass
from clip2sam.data.records import Annotation, ImageRecord
from clip2sam.errors import ConfigError

# pycocotools' own decoding
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

noise = arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


@st.composite
def blobs(draw):
    """Coarse cells, with a few pixels turned over: parts, holes, specks, diagonal touches."""
    cell = draw(st.integers(3, 9))
    mask = np.kron(draw(arrays(bool, (5, 6))), np.ones((cell, cell), bool))
    pixels = st.tuples(st.integers(0, mask.shape[0] - 1), st.integers(0, mask.shape[1] - 1))
    for place in draw(st.lists(pixels, max_size=6)):
        mask[place] ^= True
    return mask


masks = st.one_of(noise, blobs())
tolerances = st.sampled_from([0.0, 0.3, 1.0, 2.0, 5.0])


def drawn(polygons, shape):
    """What pycocotools makes of polygons."""
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, *shape))) > 0


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def disk(side, radius, y=None, x=None):
    rows, columns = np.mgrid[:side, :side] + 0.5
    centre = side / 2
    return (rows - (y or centre)) ** 2 + (columns - (x or centre)) ** 2 < radius**2


def corners(outline):
    return sum(map(len, outline.polygons)) // 2


@given(masks, tolerances)
@example(np.eye(9, dtype=bool), 1.0)  # touches at corners alone
@example(np.ones((1, 1), bool), 5.0)
@example(np.pad(np.ones((1, 30), bool), 2), 1.0)  # a line one pixel wide
@example(np.pad(np.ones((30, 1), bool), 2), 5.0)
@example(np.ones((20, 30), bool), 2.0)  # all of the image
@example(np.pad(np.zeros((18, 28), bool), 1, constant_values=True), 2.0)  # its border
@example(np.indices((14, 14)).sum(axis=0) % 2 == 0, 1.0)
@settings(max_examples=300, deadline=None)
def test_what_is_drawn_of_the_polygons_is_the_mask(mask, tolerance):
    assume(mask.any())
    rle = encode_mask(mask)
    outline = outline_of(rle, tolerance)
    back = drawn(outline.polygons, mask.shape)
    assert outline.iou == pytest.approx(overlap(back, mask), abs=1e-12)
    assert outline.iou >= 0.95
    assert outline.area == back.sum()
    assert all(len(p) >= 6 and len(p) % 2 == 0 for p in outline.polygons)
    if tolerance == 0:
        assert np.array_equal(back, mask)
        assert outline.polygons == [list(np.round(p, 3)) for p in rle_to_polygons(rle)]
    one_ring = joined_polygons(outline.polygons).ravel().tolist()
    assert overlap(drawn([one_ring], mask.shape), back) > 0.95, "YOLO's joined ring"


@given(masks, tolerances)
@settings(max_examples=100, deadline=None)
def test_an_outline_is_valid_coco(mask, tolerance):
    """Its box and area are the polygons', which may lack a speck that the mask has."""
    record = ImageRecord(
        1, "a.png", mask.shape, annotations=(Annotation("cat", encode_mask(mask), 0.5),)
    )
    classes = (LabelClass("cat", ("cat",)),)
    document = coco_document([record], classes, polygons=True, tolerance=tolerance)
    assert validate(document) == []
    for row in document["annotations"]:
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in row["segmentation"]])
        x, y, width, height = row["bbox"]
        assert points.min(axis=0).tolist() == [x, y]
        assert points.max(axis=0).tolist() == [x + width, y + height]


@given(blobs(), st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=100, deadline=None)
def test_no_edge_of_the_mask_is_farther_away_than_the_tolerance(mask, tolerance):
    """Other than of specks: of parts or holes of fewer pixels than a square of twice that side."""
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5))) > 0
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5))) > 0
    assume(mask.any())
    rle = encode_mask(mask)
    rings = [np.reshape(p, (-1, 1, 2)).astype(np.float32) for p in rle_to_polygons(rle)]
    outline = [
        np.reshape(p, (-1, 1, 2)).astype(np.float32) for p in outline_of(rle, tolerance).polygons
    ]
    for ring in rings:
        for x, y in ring[:, 0].tolist():
            away = [abs(cv2.pointPolygonTest(one, (x, y), True)) for one in outline]
            bridge = 1e-3  # the ends of cuts are rounded
            assert min(away) <= tolerance + bridge


def test_a_disk_gets_few_corners_and_stays_round():
    mask = disk(200, 80)
    exact, outline = (outline_of(encode_mask(mask), t) for t in (0.0, 1.0))
    assert corners(outline) * 5 < corners(exact)
    assert outline.iou > 0.98
    assert exact.iou == 1


def test_specks_are_left_out_and_holes_stay():
    mask = disk(200, 80) & ~disk(200, 20)
    mask[100, 50] = False  # a pinhole
    mask[2:4, 2] = mask[195, 190:193] = True  # specks of 2 and 3 pixels
    mask[10:18, 10:18] = True  # 0.3 % of the mask
    outline = outline_of(encode_mask(mask))
    assert len(outline.polygons) == 2
    back = drawn(outline.polygons, mask.shape)
    assert back[14, 14]
    assert not back[100, 100], "the hole"
    assert back[100, 50], "no pinhole"
    assert not back[:6, :6].any()
    ys, xs = np.nonzero(back)
    assert outline.box == [10, 10, xs.max() - 9, ys.max() - 9], "without the specks"
    assert np.array_equal(drawn(outline_of(encode_mask(mask), 0.0).polygons, mask.shape), mask)


def test_a_part_of_a_small_share_is_a_speck_too():
    mask = disk(400, 150)
    mask[:8, :8] = True  # 64 pixels of 70,749
    assert len(outline_of(encode_mask(mask)).polygons) == 1
    mask[:9, :8] = True
    assert len(outline_of(encode_mask(mask)).polygons) == 2
    assert len(outline_of(encode_mask(mask & ~disk(400, 150))).polygons) == 1, "all of a mask"


def test_a_mask_of_specks_alone_stays_as_it_is():
    mask = np.zeros((30, 30), bool)
    mask[::6, ::6] = True
    outline = outline_of(encode_mask(mask), 2.0)
    assert (len(outline.polygons), outline.iou) == (25, 1.0)


def test_what_would_fit_badly_gets_a_finer_tolerance():
    """Teeth of 3 pixels: half of them would be gone with a tolerance of 3."""
    mask = np.zeros((40, 120), bool)
    mask[20:24, 3:117] = True
    for x in range(3, 117, 6):
        mask[17:20, x : x + 3] = True
    outline = outline_of(encode_mask(mask), 3.0)
    assert outline.iou > 0.99
    assert corners(outline) >= 4 * 19


def test_a_hole_that_would_lie_across_its_outline_gets_a_finer_tolerance():
    rows, columns = np.mgrid[:60, :60]
    edge = 30 - np.clip(np.minimum(rows - 5, 55 - rows), 0, 3)  # bulges by 3 pixels to the left
    mask = (columns >= edge) & (columns < 50) & (rows >= 5) & (rows < 55)
    mask &= (columns <= edge) | (columns >= 40) | (rows < 28) | (rows >= 32)  # a wall of 1 pixel
    with pytest.raises(ValueError, match="a hole begins at 28, 28, outside the ring"):
        cut_out(
            np.array([[30, 5], [50, 5], [50, 55], [30, 55]], float),
            [np.array([[28, 28], [40, 28], [40, 32], [28, 32]], float)],
        )
    outline = outline_of(encode_mask(mask), 3.0)
    assert outline.iou >= 0.95
    assert not drawn(outline.polygons, mask.shape)[30, 35], "the hole"


def test_finer_tolerances_give_more_corners_and_a_better_fit():
    mask = disk(300, 120) & ~disk(300, 40, 150, 190)
    found = [outline_of(encode_mask(mask), t) for t in (4.0, 2.0, 1.0, 0.0)]
    assert all(corners(a) < corners(b) and a.iou < b.iou for a, b in pairwise(found))


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_tolerances_that_make_no_sense_are_refused(tolerance):
    for check in (
        lambda: outline_of(encode_mask(disk(20, 5)), tolerance),
        lambda: tolerance_of(tolerance, polygons=True),
    ):
        with pytest.raises(ConfigError, match=f"must be 0 pixels or more, but got {tolerance}; gi"):
            check()


def test_a_tolerance_without_polygons_is_refused():
    with pytest.raises(ConfigError, match=r"the tolerance 2 is for polygons; give --polygons \(p"):
        tolerance_of(2.0, polygons=False)
    assert (tolerance_of(None, polygons=False), tolerance_of(2.0, polygons=True)) == (1.0, 2.0)


def test_the_fit_of_all_masks_in_a_line():
    fit = fit_of([0.99, 0.85, 0.95, 0.9, 0.92])
    assert fit == Fit(5, 0.92, 0.85, 1)
    assert str(fit) == (
        "polygons: IoU with their masks 0.920 in the median, 0.850 at worst, 1 of 5 below 0.9"
    )
    assert fit_of([]) is None
