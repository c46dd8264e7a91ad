"""Label maps: every pixel's label by hand-made scores, in bands and windows, and with masks."""

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch.utils._python_dispatch import TorchDispatchMode

import clip2sam
from clip2sam.analysis.dense import confusion, evaluate_dense, true_numbers
from clip2sam.analysis.examples import Example, scene_examples
from clip2sam.coco.rle import encode_mask
from clip2sam.config import Config
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelClass, LabelSet, as_label_set
from clip2sam.data.palette import colour
from clip2sam.dense import DenseSettings, LabelMap, label_pixels
from clip2sam.errors import ConfigError, LabelError, ModelError
from clip2sam.locate import Located
from clip2sam.pipeline import Segmenter
from clip2sam.sam import PromptSAM
from tests.labelling_fakes import small_segmenter
from tests.models import small_sam

NO_MASKS = [()]


class Given:
    """A locator whose maps are given: a function of the image's pixels."""

    name = "given"
    resolution = 64

    def __init__(self, maps):
        self.maps = maps

    def weights(self):
        return {}

    def check(self, config):
        pass

    def locate(self, features, labels, config):
        return Located(torch.stack([self.maps(image) for image in features.images]))


def segmenter(maps, **config) -> Segmenter:
    """One that locates these maps: a function, or the same for every image."""
    if not callable(maps):
        fixed = torch.tensor(maps, dtype=torch.float32)
        return segmenter(lambda image: fixed, **config)
    return Segmenter(None, PromptSAM(small_sam()), Config(grid=2, **config), Given(maps))


def image(height=4, width=4, origin="a.png") -> Image:
    return Image(np.zeros((height, width, 3), np.uint8), origin)


def numbers(chosen: Segmenter, labels, settings=None, masks=NO_MASKS, size=(4, 4)):
    features = chosen.encode([image(*size)])
    (found,) = label_pixels(chosen, features, as_label_set(labels), settings, masks)
    return found.numbers


def random_maps(labels, rows, cols, seed=0):
    return torch.rand(labels, rows, cols, generator=torch.manual_seed(seed))


def by_hand(scores: torch.Tensor, least: float):
    """Of scores (labels, height, width): the numbers, and where no rounding decides."""
    top = scores.topk(2, dim=0)
    sure = (top.values[0] - top.values[1] > 1e-5) & ((top.values[0] - least).abs() > 1e-5)
    return torch.where(top.values[0] >= least, top.indices[0] + 1, 0).numpy(), sure.numpy()


@pytest.mark.parametrize("size", [(4, 4), (37, 50), (3, 90)])
def test_pixels_have_the_best_label_of_the_stretched_maps(size):
    raw = random_maps(5, 6, 7)
    found = numbers(segmenter(raw.tolist()), list("abcde"), DenseSettings(0.7), size=size)
    scores = F.interpolate(raw[None], size, mode="bilinear", align_corners=False)[0]
    expected, sure = by_hand(scores, 0.7)
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(found[sure], expected[sure])
    assert found.dtype == np.uint16
    assert len(np.unique(found)) > 3


def brightness(image):
    """Maps that depend on the part of the image: its first pixel's value is the seed."""
    return random_maps(3, 5, 4, seed=int(image.pixels[0, 0, 0]))


@pytest.mark.parametrize(
    ("tile", "count", "size"),
    [(32, 25, (90, 101)), ("auto", 9, (300, 310)), (32, 1, (20, 24))],
    ids=["more than are computed together", "so large that each would be cut again", "none"],
)
def test_windows_are_averaged_where_they_overlap(tile, count, size):
    chosen = segmenter(brightness, tile=tile, tile_overlap=0.4)
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    features = chosen.encode([Image(pixels, "a.png")])
    windows = features.windows[0][1:] or features.windows[0]
    assert len(windows) == count
    total, times = torch.zeros(3, *size), torch.zeros(size)
    for w in windows:
        raw = brightness(Image(pixels[w.top :, w.left :], ""))
        down, across = slice(w.top, w.top + w.height), slice(w.left, w.left + w.width)
        stretched = F.interpolate(raw[None], (w.height, w.width), mode="bilinear")[0]
        total[:, down, across] += stretched
        times[down, across] += 1
    assert times.min() == 1
    expected, sure = by_hand(total / times, 0.55)
    labels = as_label_set(["a", "b", "c"])
    (found,) = label_pixels(chosen, features, labels, DenseSettings(0.55), NO_MASKS)
    np.testing.assert_array_equal(found.numbers[sure], expected[sure])
    assert set(np.unique(found.numbers)) == {0, 1, 2, 3}


class Largest(TorchDispatchMode):
    """The most numbers that any tensor had."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.most = max(self.most, out.numel())
        return out


@pytest.mark.parametrize("tile", ["off", 64])
def test_no_tensor_has_all_labels_at_all_pixels(monkeypatch, tile):
    labels = [f"label {i}" for i in range(40)]
    chosen = segmenter(lambda image: random_maps(40, 4, 4), tile=tile)
    mask = np.zeros((150, 130), bool)
    mask[10:140, 5:125] = True
    size, masks = (150, 130), [[mask]]
    settings = DenseSettings(0.5, probability=0.01)
    whole = numbers(chosen, labels, settings, masks, size)
    monkeypatch.setattr("clip2sam.dense.DENSE_SCORES", 3 * 40 * 130)
    with Largest() as largest:
        banded = numbers(chosen, labels, settings, masks, size)
    assert largest.most <= 3 * 40 * 130
    np.testing.assert_array_equal(banded, whole)
    monkeypatch.setattr("clip2sam.dense.DENSE_SCORES", 1)  # a row at least
    np.testing.assert_array_equal(numbers(chosen, labels, settings, masks, size), whole)


LEVELS = [[[0.2, 0.4, 0.6, 0.8]] * 4, [[0.0] * 4] * 4]
"""Maps of two labels, of which the first always wins: higher to the right."""


def test_by_default_pixels_need_nine_tenths_of_the_presence_threshold():
    row = numbers(segmenter(LEVELS, presence_threshold=0.5), ["a", "b"])[0]
    assert row.tolist() == [0, 0, 1, 1], "0.45 are needed"
    row = numbers(segmenter(LEVELS, presence_threshold=0.44), ["a", "b"])[0]
    assert row.tolist() == [0, 1, 1, 1], "0.396 are needed"
    own = LabelSet((LabelClass("a", ("a",), 0.8), LabelClass("b", ("b",), 0.1)))
    row = numbers(segmenter(LEVELS, presence_threshold=0.1), own)[0]
    assert row.tolist() == [0, 0, 0, 1], "the label's own is 0.8"
    row = numbers(segmenter(LEVELS, presence_threshold=None), ["a", "b"])[0]
    assert row.tolist() == [1, 1, 1, 1], "without a threshold no pixel is background"
    row = numbers(segmenter(LEVELS, presence_threshold=0.5), own, DenseSettings(0.6))[0]
    assert row.tolist() == [0, 0, 1, 1], "a given one is for all labels"


def test_the_probability_of_a_softmax_may_decide_as_well():
    chosen = segmenter([*LEVELS, [[0.1] * 4] * 4])
    for temperature, least in ((0.2, 0.75), (0.5, 0.5)):
        sums = [sum(math.exp(s / temperature) for s in (x, 0.0, 0.1)) for x in (0.2, 0.4, 0.6, 0.8)]
        tops = [math.exp(x / temperature) for x in (0.2, 0.4, 0.6, 0.8)]
        expected = [int(top / total >= least) for top, total in zip(tops, sums, strict=True)]
        assert 0 < sum(expected) < 4
        settings = DenseSettings(0.1, probability=least, temperature=temperature)
        assert numbers(chosen, ["a", "b", "c"], settings)[0].tolist() == expected
    assert numbers(chosen, ["a", "b", "c"], DenseSettings(0.5))[0].tolist() == [0, 0, 1, 1]


def test_where_a_distractor_wins_is_background():
    maps = [[[0.5] * 4] * 4, [[0.4, 0.4, 0.6, 0.6]] * 4]
    chosen = segmenter(maps, presence_threshold=0.1)
    assert numbers(chosen, ["a", "b"])[0].tolist() == [1, 1, 2, 2]
    labels = as_label_set(["a"], distractors=["b"])
    assert numbers(chosen, labels)[0].tolist() == [1, 1, 0, 0]
    everything = np.ones((4, 4), bool)
    higher = [[[0.5] * 4] * 4, [[0.4, 0.8, 0.8, 0.8]] * 4]
    refined = numbers(segmenter(higher, presence_threshold=0.1), labels, None, [[everything]])
    assert not refined.any(), "its mask is background, too"


def columns(*chosen, size=(4, 4)):
    mask = np.zeros(size, bool)
    mask[:, list(chosen)] = True
    return mask


BLEEDING = [
    [[0.9, 0.7, 0.5, 0.1]] * 4,
    [[0.0, 0.0, 0.2, 0.6]] * 4,
]


@pytest.mark.parametrize("as_rle", [False, True])
@pytest.mark.parametrize("scores", [1, 2**22])
def test_masks_say_where_objects_end(monkeypatch, as_rle, scores):
    monkeypatch.setattr("clip2sam.dense.DENSE_SCORES", scores)
    chosen = segmenter(BLEEDING, presence_threshold=0.5)

    def refined(*masks):
        given = [encode_mask(m) if as_rle else m for m in masks]
        return numbers(chosen, ["a", "b"], None, [given])[0].tolist()

    assert refined() == [1, 1, 1, 2]
    assert refined(columns(0)) == [1, 0, 0, 2], "a is nowhere else, b was not asked"
    assert refined(columns(0, 1, 2, 3)) == [1, 1, 1, 1], "means of 0.55 and 0.2"
    assert refined(columns(2, 3)) == [1, 1, 2, 2], "means of 0.3 and 0.4"
    assert refined(columns(0, 1, 2, 3), columns(3)) == [1, 1, 1, 2], "0.6 is above 0.55"
    assert refined(columns(3), columns(0, 1, 2, 3)) == [1, 1, 1, 2], "in any order"
    assert refined(columns()) == [1, 1, 1, 2], "an empty mask is none"
    chosen = segmenter(BLEEDING, presence_threshold=None)
    assert refined(columns()) == [1, 1, 1, 2], "also where its mean of 0 is enough"


def test_a_mask_of_low_scores_is_background():
    chosen = segmenter([[[0.9, 0.9, 0.2, 0.2]] * 4], presence_threshold=0.5)
    low, mixed = columns(2, 3), columns(1, 2, 3)  # 0.225 is half of what a pixel needs
    assert numbers(chosen, ["a"], None, [[low]])[0].tolist() == [1, 1, 0, 0]
    assert numbers(chosen, ["a"], None, [[mixed]])[0].tolist() == [0, 1, 1, 1]
    cut = numbers(chosen, ["a"], DenseSettings(1.0), [[mixed]])[0].tolist()
    assert cut == [0, 0, 0, 0], "0.43 is less than half of 1"


@pytest.mark.parametrize("scores", [1, 2**22])
def test_a_masks_mean_is_over_its_own_pixels(monkeypatch, scores):
    monkeypatch.setattr("clip2sam.dense.DENSE_SCORES", scores)
    first, second = [[0.9] * 4] * 2 + [[0.1] * 4] * 2, [[0.0] * 4] * 2 + [[0.5] * 4] * 2
    chosen = segmenter([first, second], presence_threshold=0.5)
    mask = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
    # means of (2 * 0.9 + 5 * 0.1) / 7 and 5 * 0.5 / 7
    found = numbers(chosen, ["a", "b"], None, [[mask]])
    assert found.tolist() == [[2, 1, 1, 1], [2, 1, 1, 1], [2, 0, 0, 0], [2, 2, 2, 2]]


def test_a_masks_place_in_the_image_is_kept():
    chosen = segmenter([[[1.0]]], presence_threshold=0.5)
    mask = np.zeros((40, 30), bool)
    mask[7:20, 11:29] = np.random.default_rng(1).random((13, 18)) > 0.4
    found = numbers(chosen, ["a"], None, [[mask]], (40, 30))
    np.testing.assert_array_equal(found == 1, mask)


def test_masks_that_do_not_fit_are_refused():
    chosen = segmenter(LEVELS)
    wrong = r"^a\.png: expected masks of the image's size, 4 x 4 pixels \(height x width\), got one"
    with pytest.raises(ConfigError, match=wrong):
        numbers(chosen, ["a", "b"], None, [[np.ones((4, 5), bool)]])
    with pytest.raises(ConfigError, match="a list of masks for each of 1 images, got 2"):
        numbers(chosen, ["a", "b"], None, [[], []])


def test_the_segmenters_own_masks_refine_by_default():
    chosen = clip2sam.load("tiny")
    (example,) = scene_examples("validation", 1, start=7)
    labels = as_label_set([n for n, k in example.kinds.items() if k == "shape"])
    features = chosen.encode([example.image])
    (result,) = chosen.segment(features, labels)
    own = [[a.rle for a in result.annotations]]
    assert own[0]
    given, default, without = (
        label_pixels(chosen, features, labels, settings, masks)[0].numbers
        for settings, masks in ((None, own), (None, None), (DenseSettings(refine=False), None))
    )
    np.testing.assert_array_equal(default, given)
    assert (default != without).any()
    bare = label_pixels(chosen, features, labels, masks=NO_MASKS)[0].numbers
    np.testing.assert_array_equal(without, bare)


def test_each_image_has_its_own_map():
    chosen = segmenter(brightness)
    images = [Image(np.full((8, 8, 3), value, np.uint8), f"{value}.png") for value in (3, 4)]
    masks = [(), [np.ones((8, 8), bool)]]
    labels, settings = as_label_set(["a", "b", "c"]), DenseSettings(0.5)
    found = label_pixels(chosen, chosen.encode(images), labels, settings, masks)
    assert [one.image.origin for one in found] == ["3.png", "4.png"]
    for one, own, mask in zip(found, images, masks, strict=True):
        (alone,) = label_pixels(chosen, chosen.encode([own]), labels, settings, [mask])
        np.testing.assert_array_equal(one.numbers, alone.numbers)
    assert len(np.unique(found[1].numbers)) == 1


def test_values_that_are_not_finite_are_an_error():
    chosen = segmenter([[[math.nan] * 4] * 4])
    with pytest.raises(ModelError, match=r"^a\.png: the labels' maps have values that are not"):
        numbers(chosen, ["a"])


def test_clips_maps_are_used(monkeypatch):
    """With a CLIP: what `locate` gives, feature surgery or not."""
    chosen = small_segmenter()
    pixels = np.random.default_rng(5).integers(0, 255, (60, 80, 3), np.uint8)
    labels = as_label_set(["cat", "dog", "bird"])
    seen = []
    for surgery in (True, False):
        tried = chosen.with_config(feature_surgery=surgery, presence_threshold=None)
        features = tried.encode([Image(pixels, "a.png")])
        raw = tried.locate(features, labels).raw
        scores = F.interpolate(raw, (60, 80), mode="bilinear", align_corners=False)[0]
        expected, sure = by_hand(scores, -math.inf)
        (found,) = label_pixels(tried, features, labels, masks=NO_MASKS)
        np.testing.assert_array_equal(found.numbers[sure], expected[sure])
        seen.append(found.numbers)
    assert found.class_names == ("cat", "dog", "bird")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": math.nan}, "threshold must be a finite number, but got nan"),
        ({"probability": 1.5}, "probability must be from 0 to 1, but got 1.5"),
        ({"probability": math.inf}, "probability must be a finite number, but got inf"),
        ({"temperature": 0.0}, "temperature must be above 0, but got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DenseSettings(**settings)


def label_map(values, classes):
    labels = LabelSet(tuple(LabelClass(f"{i}", (f"{i}",)) for i in range(classes)))
    return LabelMap(image(), labels, np.array(values, np.uint16))


def test_a_png_has_class_numbers_and_a_palette():
    data = label_map([[0, 1, 2, 255]], 255).to_png()
    read = PILImage.open(io.BytesIO(data))
    assert read.mode == "P"
    np.testing.assert_array_equal(read, [[0, 1, 2, 255]])
    expected = [(0, 0, 0), *(tuple(round(255 * c) for c in colour(i)) for i in (0, 1, 254))]
    np.testing.assert_array_equal(read.convert("RGB"), [expected])
    data = label_map([[0, 1, 256, 300]], 300).to_png()
    read = PILImage.open(io.BytesIO(data))
    assert read.mode == "I;16"
    np.testing.assert_array_equal(read, [[0, 1, 256, 300]])


def test_more_labels_than_numbers_are_refused():
    labels = LabelSet(tuple(LabelClass(f"{i}", (f"{i}",)) for i in range(2**16)))
    chosen = segmenter(LEVELS)
    with pytest.raises(LabelError, match=r"at most 65535 labels, .* got 65536; leave some out"):
        label_pixels(chosen, chosen.encode([image()]), labels)


# -- figures


def example(truth, kinds=None, size=(2, 4)):
    kinds = kinds or dict.fromkeys(truth, "all")
    return Example(image(*size), truth, kinds, ("nothing",))


def test_the_smaller_object_is_the_truth():
    truth = {
        "a": [columns(0, size=(2, 4)), columns(1, 2, 3, size=(2, 4))],
        "b": [columns(0, 1, size=(2, 4))],
        "c": [],
    }
    found = true_numbers(example(truth), ("b", "c", "a"))
    assert found.tolist() == [[3, 1, 3, 3]] * 2


def test_confusion_counts_pixels():
    found = np.array([[0, 1, 2, 2]], np.uint16)
    truth = np.array([[0, 2, 2, 2]], np.uint16)
    assert confusion(found, truth, 2).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 2]]


def test_figures_by_hand(monkeypatch):
    """Intersections and unions are summed over the images, not IoUs averaged."""
    rows = iter([[1, 1, 0, 0], [1, 0, 4, 2]])

    def answer(segmenter, features, labels, settings):
        assert settings == DenseSettings(refine=False)
        assert labels.names == ("a", "b", "c", "d", "sky")
        return [LabelMap(image(1, 4), labels, np.array([next(rows)], np.uint16))]

    monkeypatch.setattr("clip2sam.analysis.dense.label_pixels", answer)
    none = {"a": [], "b": [], "c": [], "d": []}
    first = none | {"a": [columns(0, size=(1, 4))]}
    second = none | {"a": [columns(0, 1, size=(1, 4))], "b": [columns(2, 3, size=(1, 4))]}
    figures = evaluate_dense(
        segmenter(LEVELS),
        [example(first, size=(1, 4)), example(second, size=(1, 4))],
        None,
        ["sky", "a"],
        settings=DenseSettings(refine=False),
    )
    # a: 1 + 1 right of 2 + 2; b: 1 of 2; d: found once, never true; background: 2 of 4.
    assert figures["classes"] == {"a": 2 / 4, "b": 1 / 2, "d": 0.0}
    assert figures["background"] == 2 / 4
    assert figures["mIoU"] == pytest.approx((2 / 4 + 1 / 2 + 0 + 2 / 4) / 4)
    assert figures["accuracy"] == 5 / 8
    assert figures["failures"] == []


def test_a_failure_costs_its_image():
    fine = [[[0.9] * 4] * 4]
    broken = [[[math.nan] * 4] * 4]
    maps = iter([broken, fine])
    chosen = segmenter(lambda image: torch.tensor(next(maps)), presence_threshold=0.5)
    truth = {"a": [columns(0, size=(2, 4))]}
    settings, seen = DenseSettings(refine=False), []
    figures = evaluate_dense(
        chosen, [example(truth)] * 2, on_example=lambda: seen.append(1), settings=settings
    )
    assert (len(figures["failures"]), len(seen)) == (1, 2)
    assert figures["classes"] == {"a": 0.25}
    chosen = segmenter(broken)
    with pytest.raises(ModelError, match="the labels' maps have values that are not finite"):
        evaluate_dense(chosen, [example(truth)], settings=settings)


def test_tiny_labels_pixels():
    """The whole path, with labels of one kind; masks gain much."""
    chosen = clip2sam.load("tiny")
    plain, refined = (
        evaluate_dense(
            chosen, scene_examples("validation", 8), settings=DenseSettings(refine=refine)
        )
        for refine in (False, True)
    )
    assert all(len(name.split()) == 2 for name in plain["classes"])
    assert plain["mIoU"] > 0.4
    assert refined["mIoU"] > plain["mIoU"] + 0.15


def test_a_joined_label_has_the_pixels_of_its_parts():
    """The same maps; the parts of the first label are not side by side otherwise."""
    maps, settings, size = random_maps(3, 6, 7), DenseSettings(threshold=-9.0), (6, 7)
    one = numbers(segmenter(maps.tolist()), ["cat", "dog", "bird"], settings, size=size)
    reordered = segmenter(maps[[0, 2, 1]].tolist())
    both = numbers(reordered, ["cat+bird", "dog"], settings, size=size)
    assert set(np.unique(one)) == {1, 2, 3}
    assert (both == np.array([0, 1, 2, 1])[one]).all()
