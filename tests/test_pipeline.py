"""The stages composed: what comes out, what never crosses to the host, and bad input."""

from contextlib import contextmanager
from dataclasses import replace
from inspect import unwrap

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import clip2sam
from clip2sam.clip import CLIP_SURGERY, SurgeryCLIP
from clip2sam.data.images import Image
from clip2sam.pipeline import Segmenter
from clip2sam.result import as_result
from clip2sam.sam import PromptSAM
from clip2sam.types import Prediction
from tests.models import small_clip, small_sam


@pytest.fixture(scope="module")
def models() -> tuple[SurgeryCLIP, PromptSAM]:
    return SurgeryCLIP(small_clip()), PromptSAM(small_sam())


@pytest.fixture
def segmenter(models) -> Segmenter:
    """Every label present, with one mask: weights are random, so that scores mean nothing."""
    return Segmenter(*models, clip2sam.Config(presence_threshold=-1e9, prompts="label"))


def noise(height=90, width=130, seed=0) -> Image:
    return Image(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8),
        "street.png",
    )


def test_labels_become_masks(segmenter):
    result = segmenter(noise(), ["person", "traffic light", "Zebrastreifen ✓"])
    assert result.masks.shape == (3, 90, 130)
    assert result.masks.dtype == bool
    assert result.labels == ["person", "traffic light", "Zebrastreifen ✓"]
    assert ((result.scores >= 0) & (result.scores <= 1)).all()
    assert [p.shape[1] for p in result.points] == [3, 3, 3]
    assert all(set(p[:, 2]) == {0.0, 1.0} for p in result.points)
    assert result.maps.shape == (3, 8, 8)
    assert result.absent == ()
    assert repr(result).startswith("Result(Image('street.png', 90 x 130), masks: ['person' ")
    assert repr(result).endswith("], absent: [])")


def test_masks_are_the_predictors_on_the_same_points(segmenter):
    """The candidate that is kept is one of SamPredictor's own three, on the published points."""
    from segment_anything import SamPredictor

    image = noise()
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
    """Refuses every operation that brings a tensor's value to the host: `.item()`, `bool()`, ..."""

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


@pytest.mark.parametrize("prompts", ["object", "label"])
@pytest.mark.parametrize("presence", [-1e9, 0.0, None])
def test_nothing_crosses_to_the_host_before_the_masks(models, presence, prompts, monkeypatch):
    """On a device that is no CPU: what depends on values is left out there."""
    files = ("sam.cutter", "sam.decoder", "sam.encoder", "kernels.relative", "kernels.attention")
    files = (*files, "instances")
    for file in files:
        monkeypatch.setattr(f"clip2sam.{file}.on_host", lambda tensor: False)
    config = clip2sam.Config(presence_threshold=presence, prompts=prompts)
    segmenter = Segmenter(*models, config)
    labels = clip2sam.as_label_set(["a", "b", "c"], distractors=["d"])
    segmenter.clip.encode_labels(labels)  # tokenised on the host; in memory from here on
    with no_host_copies():
        prediction = segmenter.predict(segmenter.encode([noise(), noise(40, 60)]), labels)
        counts, masks = prediction.prompts.counts, prediction.masks
        upscaled = [
            list(segmenter.sam.upscale(logits, size))
            for logits, size in zip(masks.logits.split(counts), masks.sizes, strict=True)
        ]
    assert all(m.dtype == torch.bool for chunks in upscaled for m in chunks)
    assert tuple(sum(map(len, chunks)) for chunks in upscaled) == counts


def same(one, other):
    """Whether two results are equal to the last bit."""
    arrays = ("masks", "scores", "presence", "beaten", "present", "maps", "grids")
    assert one.record == replace(other.record, image_id=one.record.image_id)
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name == "grids")
        for name in arrays
    )


@pytest.mark.parametrize("prompts", ["object", "label"])
def test_a_batch_gives_what_each_image_gives_alone(models, prompts):
    """Of different sizes; to the last bit, as groups of one image are encoded."""
    config = clip2sam.Config(presence_threshold=0.02, prompts=prompts, min_share=0.0)
    segmenter = Segmenter(*models, config)
    images = [noise(90, 130), noise(64, 64, seed=1), noise(30, 200, seed=2)]
    labels = clip2sam.as_label_set(["cat", "dog", "tree"], distractors=["sky"])
    features = segmenter.encode(images)
    together = segmenter.results(features, segmenter.predict(features, labels))
    labelled = [len(set(r.labels)) for r in together]
    assert 0 < sum(labelled) < 9, "some labels present, some absent"
    assert [r.record.image_id for r in together] == [1, 2, 3]
    for image, result in zip(images, together, strict=True):
        alone = segmenter(image, labels)
        assert same(alone, result)


def test_groups_are_filled_up_and_change_nothing_but_digits(models):
    segmenter = Segmenter(*models, clip2sam.Config(presence_threshold=None, prompts="label"))
    images, labels = [noise(seed=i) for i in range(3)], clip2sam.as_label_set(["cat", "dog"])
    sizes = []
    encode = segmenter.sam.encode_image
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmenter.sam, "encode_image", lambda p: sizes.append(len(p)) or encode(p))
        features = segmenter.encode(images, group=2)
        grouped = segmenter.predict(features, labels)
    assert sizes == [2, 2]
    alone = segmenter.predict(segmenter.encode(images), labels)
    torch.testing.assert_close(grouped.masks.logits, alone.masks.logits, rtol=1e-3, atol=1e-3)
    assert grouped.prompts.counts == alone.prompts.counts == (2, 2, 2)


def test_calling_it_is_the_composition_of_its_stages(segmenter):
    image, labels = noise(), clip2sam.as_label_set(["cat", "dog"])
    features = segmenter.encode([image])
    maps = segmenter.locate(features, labels)
    prompts = segmenter.prompt(maps)
    candidates = segmenter.decode(features, prompts)
    masks = segmenter.choose(maps, prompts, candidates)
    (result,) = segmenter.results(features, Prediction(maps, prompts, masks))
    assert same(segmenter(image, labels), result)


def test_features_are_kept_and_used_again(segmenter, monkeypatch):
    """Other labels and thresholds cost no encoder; another method or resolution only CLIP's."""
    calls = []
    for model in (segmenter.clip, segmenter.sam):
        real, name = model.encode_image, type(model).__name__
        monkeypatch.setattr(
            model, "encode_image", lambda *a, real=real, name=name: calls.append(name) or real(*a)
        )
    features = segmenter.encode([noise()])
    assert calls == [], "nothing is computed before it is needed"
    for labels in (["cat"], ["dog", "tree"]):
        for config in ({}, {"point_threshold": 0.5}):
            own = segmenter.with_config(**config)
            own.predict(features, clip2sam.as_label_set(labels))
    assert calls == ["SurgeryCLIP", "PromptSAM"]
    labels = clip2sam.as_label_set(["dog", "tree"])
    six = segmenter.locate(features, labels).raw
    one_block = replace(CLIP_SURGERY, blocks=1)  # the same name, another method
    one = segmenter.with_config(method=one_block).locate(features, labels).raw
    assert not torch.allclose(six, one, atol=1e-4)
    larger = segmenter.with_config(resolution=160).locate(features, labels).raw
    assert larger.shape[-2:] == (10, 10)
    assert calls == ["SurgeryCLIP", "PromptSAM", "SurgeryCLIP", "SurgeryCLIP"]


def test_an_image_that_was_prepared_ahead_is_the_same(segmenter):
    image, labels = noise(), clip2sam.as_label_set(["cat", "dog"])
    prepared = segmenter.prepare(image)
    assert prepared.nbytes == 3 * (90 * 130 + 128 * 128 + 89 * 128)
    features = segmenter.encode([prepared])
    (result,) = segmenter.results(features, segmenter.predict(features, labels))
    assert same(segmenter(image, labels), result)
    larger = segmenter.with_config(resolution=160)
    features = larger.encode([prepared])  # resized for another resolution: done again
    (result,) = larger.results(features, larger.predict(features, labels))
    assert same(larger(image, labels), result)


def test_a_candidate_rule_of_ones_own(segmenter):
    """A function of the candidates and their agreement with the map."""
    image, labels = noise(), clip2sam.as_label_set(["cat", "dog"])
    features = segmenter.encode([image])

    def worst(candidates, agreement):
        assert candidates.predicted_iou.shape == agreement.shape == (2, 3)
        return -candidates.predicted_iou

    own = segmenter.with_config(candidate=worst).predict(features, labels).masks
    maps = segmenter.locate(features, labels)
    candidates = segmenter.decode(features, segmenter.prompt(maps))
    assert torch.equal(own.predicted_iou, candidates.predicted_iou.amin(dim=-1))


def test_absent_labels_are_listed_with_their_score_and_cost_no_sam(models, monkeypatch):
    segmenter = Segmenter(*models, clip2sam.Config(presence_threshold=1e9))
    monkeypatch.setattr(segmenter.sam, "encode_image", None)  # never called
    result = segmenter(noise(), ["person", "bench"])
    assert len(result.masks) == 0
    assert [a.label for a in result.absent] == ["person", "bench"]
    assert [a.score for a in result.absent] == pytest.approx(result.presence.tolist())
    assert "below the threshold 1e+09" in result.absent[0].reason


def test_a_classs_own_threshold_goes_first(segmenter):
    labels = clip2sam.LabelSet(
        (
            clip2sam.LabelClass("person", ("person",), presence_threshold=1e9),
            clip2sam.LabelClass("dog", ("dog",)),
        )
    )
    result = segmenter(noise(), labels)
    assert result.labels == ["dog"]
    assert [a.label for a in result.absent] == ["person"]


def test_distractors_compete_and_are_never_exported(segmenter):
    alone = segmenter(noise(), ["person", "dog"])
    result = segmenter(noise(), ["person", "dog"], distractors=["sky", "wall"])
    assert result.class_names == ("person", "dog")
    assert set(result.labels) | {a.label for a in result.absent} == {"person", "dog"}
    assert result.maps.shape[0] == result.grids.shape[0] == len(result.presence) == 2
    assert not np.allclose(result.maps, alone.maps)
    assert [c["name"] for c in result.to_coco()["categories"]] == ["person", "dog"]


def test_one_label_alone_uses_the_empty_string(segmenter):
    result = segmenter(noise(), ["person"])
    assert result.labels == ["person"]
    assert np.ptp(result.maps) > 0


def test_background_prompts_compete_and_are_no_labels(segmenter):
    """The maps are those of having them as labels; one that is a label anyway counts once."""
    words = ("tree", "road", "sky")
    alone = segmenter.with_config(background_prompts=words)(noise(), ["cat", "road"])
    together = segmenter(noise(), ["cat", "road", "tree", "sky"])
    np.testing.assert_allclose(alone.maps, together.maps[:2], atol=1e-6)
    assert alone.class_names == ("cat", "road")
    assert set(alone.labels) == {"cat", "road"}
    one = segmenter.with_config(background_prompts=words)(noise(), ["cat"])
    assert np.abs(one.maps - segmenter(noise(), ["cat"]).maps).max() > 1e-3, (
        "not the empty string's"
    )


def test_published_is_the_published_demo():
    config = clip2sam.published()
    assert config.presence_threshold is None
    assert (config.grid, config.prompts, config.positive_from) == ("half", "label", 0.8)
    assert (config.candidate, config.resolution) == ("predicted_iou", 512)
    assert (config.max_positive, config.max_negative, config.method) == (None, None, CLIP_SURGERY)
    assert len(set(config.background_prompts)) == 59
    assert config.background_prompts[::29] == ("airplane", "ground", "wood")


def test_the_defaults_are_what_is_documented():
    config = clip2sam.Config()
    assert (config.presence_threshold, config.positive_from, config.grid) == (0.1, 0.5, 7)
    assert (config.prompts, config.max_objects, config.min_share) == ("object", 8, 0.5)
    assert (config.candidate, config.method, config.resolution) == ("both", CLIP_SURGERY, None)
    assert (config.max_positive, config.max_negative, config.background_prompts) == (None, None, ())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("published", [False, True])
def test_features_that_are_not_finite_are_the_models_failure(models, monkeypatch, published, value):
    """Not an image without masks. One token is enough."""
    segmenter = Segmenter(*models, clip2sam.published() if published else None)
    encode = segmenter.clip.encode_image

    def broken(*arguments):
        tokens, grid = encode(*arguments)
        tokens[:, -1] *= value
        return tokens, grid

    monkeypatch.setattr(segmenter.clip, "encode_image", broken)
    with pytest.raises(
        clip2sam.ModelError,
        match=r"street\.png: CLIP's similarity maps have values that are not finite.*fp32.*verify",
    ):
        segmenter(noise(), ["person", "dog"])


def test_a_distractor_that_is_not_finite_is_the_models_failure(segmenter):
    """It can beat nothing, so every label that it should beat would be kept."""
    labels = clip2sam.as_label_set(["person"], distractors=["sky"])
    features = segmenter.encode([noise()])
    prediction = segmenter.predict(features, labels)
    prediction.maps.presence[0, 1] = torch.nan
    with pytest.raises(clip2sam.ModelError, match="CLIP's similarity maps"):
        segmenter.results(features, prediction)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["predicted IoUs", "mask logits"])
def test_masks_that_are_not_finite_are_the_models_failure(segmenter, monkeypatch, part, value):
    """Of the image that has them, and of no other of the batch."""
    features = segmenter.encode([noise(), noise(seed=1)])
    prediction = segmenter.predict(features, clip2sam.as_label_set(["person", "dog"]))
    masks, (first, _) = prediction.masks, prediction.prompts.counts
    if part == "predicted IoUs":
        masks.predicted_iou[first] = value
    else:
        masks.logits[first, 3, 4] = value
    images = features.images
    config, sam = segmenter.config, segmenter.sam
    assert as_result(images[0], prediction, 0, config, sam).labels == ["person", "dog"]
    with pytest.raises(clip2sam.ModelError, match=f"street.png: SAM's {part} have values that are"):
        as_result(images[1], prediction, 1, config, sam)


def test_large_logits_are_finite(segmenter):
    """Their sum is not."""
    features = segmenter.encode([noise()])
    prediction = segmenter.predict(features, clip2sam.as_label_set(["person"]))
    prediction.masks.logits[:] = 3e38
    (result,) = segmenter.results(features, prediction)
    assert result.masks.all()


def test_half_precision_that_overflows_is_the_models_failure(monkeypatch):
    ours = clip2sam.load(clip=small_clip(), sam=small_sam(), precision="fp16", device="cpu")
    with torch.no_grad():
        ours.clip.model.visual.proj *= 3e4
    with pytest.raises(clip2sam.ModelError, match="CLIP's similarity maps"):
        ours(noise(), ["person", "dog"])


def test_a_constant_map_gives_no_mask_and_says_so(models, monkeypatch):
    segmenter = Segmenter(*models, clip2sam.published())
    encode = segmenter.clip.encode_image
    flat = lambda *a: (encode(*a)[0][:, :1].expand(-1, 1 + 32 * 32, -1), encode(*a)[1])  # noqa: E731
    monkeypatch.setattr(segmenter.clip, "encode_image", flat)
    result = segmenter(noise(), ["person", "dog"])
    assert len(result.masks) == 0
    assert {a.reason for a in result.absent} == {"its map is the same everywhere"}


def test_unknown_settings_are_named(segmenter):
    with pytest.raises(
        clip2sam.ConfigError, match=r"no settings are called presence, treshold; choose .*, grid, "
    ):
        segmenter.with_config(presence=0.5, grid=5, treshold=1)


@pytest.mark.parametrize("config", [{"grid": 3}, "published", 7])
def test_settings_of_another_type_are_refused(models, config):
    with pytest.raises(clip2sam.ConfigError, match="config must be a Config, such as"):
        unwrap(Segmenter.__init__)(object.__new__(Segmenter), *models, config)


def test_a_resolution_with_too_many_patches_is_refused(models):
    """Before anything is computed: attention over 512 x 512 patches takes terabytes."""
    with pytest.raises(
        clip2sam.ConfigError, match="8192 pixels has 512 x 512 patches, more than the 256 x 256"
    ):
        Segmenter(*models, clip2sam.Config(resolution=8192))
    with pytest.raises(clip2sam.ConfigError, match="15 pixels holds no patch"):
        Segmenter(*models).with_config(resolution=15)


def test_a_grid_finer_than_clips_map_is_refused(models):
    """Before any image: its cells would be the map's, several times."""
    for grid in (8, "half"):
        assert Segmenter(*models, clip2sam.Config(grid=grid)).config.grid == grid
    with pytest.raises(
        clip2sam.ConfigError,
        match="grid of 9 x 9 cells is finer than CLIP's map of 8 x 8; use a grid of 8 or less, or",
    ):
        Segmenter(*models, clip2sam.Config(grid=9))
    with pytest.raises(clip2sam.ConfigError, match="finer than CLIP's map of 4 x 4"):
        Segmenter(*models).with_config(resolution=64)
    with pytest.raises(clip2sam.ConfigError, match="2 cells a side or more, but got 1"):
        Segmenter(*models).with_config(grid="half", resolution=32)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((5, 5, 3)),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5, 3), np.int8),
        [[[1, 2, 3]]],
        None,
    ],
    ids=["floats", "four channels", "grey", "empty", "signed", "list", "none"],
)
def test_an_image_made_by_hand_is_checked(segmenter, pixels):
    image = noise()
    object.__setattr__(image, "pixels", pixels)  # as outside the tests, which check types
    for call in (
        lambda: segmenter(image, ["cat"]),
        lambda: segmenter.encode([noise(), image]),
        lambda: segmenter.prepare(image),
    ):
        with pytest.raises(
            clip2sam.ImageError, match=r"street\.png: expected uint8 pixels of"
        ) as e:
            call()
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("images", [[], [np.zeros((5, 5, 3), np.uint8)], ["street.png"]])
def test_only_images_are_encoded(segmenter, images):
    with pytest.raises(clip2sam.ImageError, match="encode takes one or more images of load_image"):
        unwrap(Segmenter.encode)(segmenter, images)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_matrix_is_an_array(segmenter):
    grey = np.arange(90, dtype=np.uint8).reshape(9, 10)
    matrix = np.asmatrix(grey)
    assert same(segmenter(matrix, ["cat"]), segmenter(grey, ["cat"]))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9000), (9000, 1), (2, 3)])
def test_odd_shapes_are_a_documented_result(segmenter, height, width):
    result = segmenter(noise(height, width), ["person", "dog"])
    assert result.masks.shape[1:] == (height, width)
    assert len(result.labels) + len(result.absent) == 2
    for points in result.points:
        assert (points[:, 0] < width).all()
        assert (points[:, 1] < height).all()


def test_many_labels_share_one_encoding(segmenter, monkeypatch):
    calls = []
    encode = segmenter.sam.encode_image
    monkeypatch.setattr(segmenter.sam, "encode_image", lambda p: calls.append(len(p)) or encode(p))
    result = segmenter(noise(), [f"thing {i}" for i in range(40)])
    assert calls == [1]
    assert len(result.labels) + len(result.absent) == 40


def test_your_own_models_and_bad_loading():
    ours = clip2sam.load(clip=small_clip(), sam=small_sam(), precision="bf16", device="cpu")
    assert len(ours(noise(), ["person", "dog"]).class_names) == 2
    assert ours.sam.sam.mask_decoder.iou_token.weight.dtype == torch.float32
    with pytest.raises(
        clip2sam.ConfigError, match="no preset is called 'vit-x'; choose one of tiny, mobile"
    ):
        clip2sam.load("vit-x")
    with pytest.raises(clip2sam.ConfigError, match="give a preset"):
        clip2sam.load(sam=small_sam())
    with pytest.raises(clip2sam.ConfigError, match="does not run on 'gpu'"):
        clip2sam.load("tiny", device="gpu")


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": 1},
        {"point_threshold": 0.0},
        {"point_threshold": 1.5},
        {"max_negative": -1},
        {"background_prompts": (" ",)},
        {"resolution": 0},
        {"candidate": "best"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(clip2sam.ConfigError, match=r"must be"):
        clip2sam.Config(**settings)
