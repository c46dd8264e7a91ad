"""The rooms composed: what comes out, what never crosses to the host, and what bad input becomes."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import clip2sam
from clip2sam.clip import SurgeryCLIP
from clip2sam.data.images import Image
from clip2sam.pipeline import Segmenter
from clip2sam.sam import PointSAM
from tests.models import small_clip, small_sam


@pytest.fixture(scope="module")
def models() -> tuple[SurgeryCLIP, PointSAM]:
    return SurgeryCLIP(small_clip()), PointSAM(small_sam())


@pytest.fixture
def segmenter(models) -> Segmenter:
    """Every label present: the models' weights are random, so that scores mean nothing."""
    return Segmenter(*models, clip2sam.Config(presence=-1e9))


def picture(height=90, width=130, seed=0) -> Image:
    return Image(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8),
        "street.png",
    )


def test_labels_become_masks(segmenter):
    result = segmenter(picture(), ["person", "traffic light", "Zebrastreifen ✓"])
    assert result.masks.shape == (3, 90, 130)
    assert result.masks.dtype == bool
    assert result.labels == ["person", "traffic light", "Zebrastreifen ✓"]
    assert ((result.scores >= 0) & (result.scores <= 1)).all()
    assert [p.shape[1] for p in result.points] == [3, 3, 3]
    assert all(set(p[:, 2]) == {0.0, 1.0} for p in result.points)
    assert result.maps.shape == (3, 4, 4)
    assert result.absent == ()
    assert repr(result).startswith("Result(Image('street.png', 90 x 130), masks: ['person' ")
    assert repr(result).endswith("], absent: [])")


def test_masks_are_the_predictors_on_the_same_points(segmenter):
    """The candidate that is kept is one of SamPredictor's own three, and the points are the published ones."""
    from segment_anything import SamPredictor

    image = picture()
    result = segmenter.with_config(candidate="predicted_iou")(image, ["cat", "dog"])
    predictor = SamPredictor(segmenter.sam.sam)
    predictor.set_image(image.pixels)
    for mask, points, score in zip(result.masks, result.points, result.scores, strict=True):
        masks, scores, _ = predictor.predict(
            np.floor(points[:, :2]), points[:, 2].astype(int), return_logits=True
        )
        best = scores.argmax()
        undecided = np.abs(masks[best]) < 1e-5
        np.testing.assert_array_equal(mask | undecided, (masks[best] > 0) | undecided)
        assert score == pytest.approx(np.clip(scores[best], 0, 1), abs=1e-4)


class NoHostCopies(TorchDispatchMode):
    """Refuses every operation that brings a tensor's value to the host, as `.item()`, `bool()` and `.cpu()` do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError(f"a value crossed to the host: {func}")
        return func(*args, **kwargs)


@contextmanager
def no_host_copies():
    def refuse(name):
        def method(self, *_, **__):
            raise AssertionError(f"a value crossed to the host: Tensor.{name}")

        return method

    with pytest.MonkeyPatch.context() as patch, NoHostCopies():
        for name in ("cpu", "numpy", "tolist", "item", "__array__"):
            patch.setattr(torch.Tensor, name, refuse(name))
        yield


@pytest.mark.parametrize(
    "call", [lambda t: t.sum().item(), lambda t: bool(t.any()), lambda t: t.cpu(), np.asarray]
)
def test_the_guard_sees_host_copies(call):
    with no_host_copies(), pytest.raises(AssertionError, match="crossed to the host"):
        call(torch.ones(3))


@pytest.mark.parametrize("presence", [-1e9, 0.0, None])
def test_nothing_crosses_to_the_host_before_the_masks(models, presence, monkeypatch):
    """On a device that is no CPU: what depends on values is left out there."""
    for room in ("sam.model", "sam.decoder", "sam.encoder", "sam.attention", "attention"):
        monkeypatch.setattr(f"clip2sam.{room}.on_host", lambda tensor: False)
    segmenter = Segmenter(*models, clip2sam.Config(presence=presence))
    labels = clip2sam.as_label_set(["a", "b", "c"], distractors=["d"])
    segmenter.clip.encode_labels(
        labels
    )  # tokenised on the host, so its lengths are no crossing; cached from here on
    image = picture()
    with no_host_copies():
        prediction = segmenter.predict_torch(image, labels)
        masks = list(segmenter.sam.upscale(prediction.masks.logits, prediction.masks.size))
    assert all(m.dtype == torch.bool for m in masks)
    assert sum(map(len, masks)) == len(prediction.prompts.coords)


def test_absent_labels_are_listed_with_their_score_and_cost_no_sam(models, monkeypatch):
    segmenter = Segmenter(*models, clip2sam.Config(presence=1e9))
    monkeypatch.setattr(segmenter.sam, "encode_image", None)  # never called
    result = segmenter(picture(), ["person", "bench"])
    assert len(result.masks) == 0
    assert [a.label for a in result.absent] == ["person", "bench"]
    assert [a.score for a in result.absent] == pytest.approx(result.presence.tolist())
    assert "below the threshold 1e+09" in result.absent[0].reason


def test_a_classs_own_threshold_goes_first(segmenter):
    labels = clip2sam.LabelSet(
        (
            clip2sam.LabelClass("person", ("person",), threshold=1e9),
            clip2sam.LabelClass("dog", ("dog",)),
        )
    )
    result = segmenter(picture(), labels)
    assert result.labels == ["dog"]
    assert [a.label for a in result.absent] == ["person"]


def test_distractors_compete_and_are_never_exported(segmenter):
    alone = segmenter(picture(), ["person", "dog"])
    result = segmenter(picture(), ["person", "dog"], distractors=["sky", "wall"])
    assert result.class_names == ("person", "dog")
    assert set(result.labels) | {a.label for a in result.absent} == {"person", "dog"}
    assert result.maps.shape[0] == result.grids.shape[0] == len(result.presence) == 2
    assert not np.allclose(result.maps, alone.maps)
    assert [c["name"] for c in result.to_coco()["categories"]] == ["person", "dog"]


def test_one_label_alone_uses_the_empty_string(segmenter):
    result = segmenter(picture(), ["person"])
    assert result.labels == ["person"]
    assert np.ptp(result.maps) > 0


def test_references_are_asked_along_unseen(segmenter):
    """The maps are those of asking them too; one that is asked anyway is not asked twice."""
    words = ("tree", "road", "sky")
    alone = segmenter.with_config(references=words)(picture(), ["cat", "road"])
    together = segmenter(picture(), ["cat", "road", "tree", "sky"])
    np.testing.assert_allclose(alone.maps, together.maps[:2], atol=1e-6)
    assert alone.class_names == ("cat", "road")
    assert set(alone.labels) == {"cat", "road"}
    one = segmenter.with_config(references=words)(picture(), ["cat"])
    assert np.abs(one.maps - segmenter(picture(), ["cat"]).maps).max() > 1e-3, (
        "not the empty string's"
    )


def test_published_is_the_published_recipe():
    config = clip2sam.published()
    assert (config.presence, config.grid, config.threshold, config.candidate) == (
        None,
        "half",
        0.8,
        "predicted_iou",
    )
    assert (config.max_positive, config.max_negative, config.method.name) == (None, None, "surgery")


def test_features_that_are_not_finite_give_no_mask_and_say_so(models, monkeypatch):
    segmenter = Segmenter(*models, clip2sam.published())
    encode = segmenter.clip.encode_image
    monkeypatch.setattr(segmenter.clip, "encode_image", lambda *a: encode(*a) * torch.nan)
    result = segmenter(picture(), ["person", "dog"])
    assert len(result.masks) == 0
    assert {a.reason for a in result.absent} == {"its map has values that are not finite"}


def test_a_constant_map_gives_no_mask_and_says_so(models, monkeypatch):
    segmenter = Segmenter(*models, clip2sam.published())
    encode = segmenter.clip.encode_image
    monkeypatch.setattr(
        segmenter.clip, "encode_image", lambda *a: encode(*a)[:, :1].expand(-1, 17, -1)
    )
    result = segmenter(picture(), ["person", "dog"])
    assert len(result.masks) == 0
    assert {a.reason for a in result.absent} == {"its map is the same everywhere"}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9000), (9000, 1), (2, 3)])
def test_odd_shapes_are_a_documented_result(segmenter, height, width):
    result = segmenter(picture(height, width), ["person", "dog"])
    assert result.masks.shape[1:] == (height, width)
    assert len(result.labels) + len(result.absent) == 2
    for points in result.points:
        assert (points[:, 0] < width).all()
        assert (points[:, 1] < height).all()


def test_many_labels_share_one_encoding(segmenter, monkeypatch):
    calls = []
    encode = segmenter.sam.encode_image
    monkeypatch.setattr(segmenter.sam, "encode_image", lambda p: calls.append(len(p)) or encode(p))
    result = segmenter(picture(), [f"thing {i}" for i in range(40)])
    assert calls == [1]
    assert len(result.labels) + len(result.absent) == 40


def test_your_own_models_and_bad_loading():
    ours = clip2sam.load(clip=small_clip(), sam=small_sam(), precision="bf16", device="cpu")
    assert len(ours(picture(), ["person", "dog"]).class_names) == 2
    assert ours.sam.sam.mask_decoder.iou_token.weight.dtype == torch.float32
    with pytest.raises(
        clip2sam.ConfigError, match="no preset is called 'vit-x'; choose one of tiny, vit-b"
    ):
        clip2sam.load("vit-x")
    with pytest.raises(clip2sam.ConfigError, match="give a preset"):
        clip2sam.load(sam=small_sam())
    with pytest.raises(clip2sam.ConfigError, match="no device is called 'gpu'"):
        clip2sam.load("tiny", device="gpu")


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": 1},
        {"threshold": 0.0},
        {"threshold": 1.5},
        {"max_negative": -1},
        {"references": (" ",)},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(clip2sam.ConfigError, match=r"must be"):
        clip2sam.Config(**settings)
