"""A result as other libraries take it: plain arrays, supervision's detections, a notebook's PNG."""

import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image as PILImage

import clip2sam
from clip2sam.clip import SurgeryCLIP
from clip2sam.errors import ConfigError
from clip2sam.pipeline import Segmenter
from clip2sam.result import Result
from clip2sam.sam import PromptSAM
from tests.models import small_clip, small_sam

PIXELS = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(
        SurgeryCLIP(small_clip()), PromptSAM(small_sam()), clip2sam.Config(presence_threshold=-1e9)
    )


@pytest.fixture(scope="module")
def found(segmenter) -> Result:
    return segmenter(PIXELS, ["person", "Zebrastreifen ✓"])


@pytest.fixture(scope="module")
def nothing(segmenter) -> Result:
    return segmenter.with_config(presence_threshold=9.0)(PIXELS, ["person", "cat"])


def test_arrays_survive_a_file_without_pickling(found, nothing, tmp_path):
    for result in (found, nothing):
        np.savez(tmp_path / "result.npz", **result.to_numpy())
        with np.load(tmp_path / "result.npz", allow_pickle=False) as read:
            assert tuple(read["class_names"]) == result.class_names
            np.testing.assert_array_equal(read["masks"], result.masks)
            assert read["shares"].tolist() == [np.float32(a.share) for a in result.annotations]
            points = [
                read["points"][read["points"][:, 0] == i, 1:] for i in range(len(result.masks))
            ]
            for mine, theirs in zip(result.points, points, strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_boxes_are_tight(found, nothing):
    for mask, (x0, y0, x1, y1) in zip(found.masks, found.boxes.astype(int), strict=True):
        assert mask.sum() == mask[y0:y1, x0:x1].sum()
        assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()  # noqa: PT018
    assert nothing.boxes.shape == (0, 4)


def test_supervision_takes_the_masks(found, nothing):
    pytest.importorskip("supervision")
    detections = found.to_supervision()
    assert len(detections) == len(found.masks) > len(found.class_names), "several of one class"
    np.testing.assert_array_equal(detections.mask, found.masks)
    assert list(detections.data["class_name"]) == found.labels
    assert list(detections.class_id) == list(found.label_indices)
    assert set(detections.class_id) == {0, 1}
    assert list(detections.data["share"]) == [a.share for a in found.annotations]
    assert len(nothing.to_supervision()) == 0


def test_without_supervision_the_error_says_what_to_install(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match="not installed: pip install supervision"):
        found.to_supervision()


def test_a_result_shows_itself_in_a_notebook(found, nothing):
    for result in (found, nothing):
        shown = PILImage.open(BytesIO(result._repr_jpeg_()))
        assert shown.width > 300
        assert len(shown.getcolors(shown.width * shown.height) or []) > 300, "true colour"
