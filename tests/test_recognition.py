"""Labels of whole images: CLIP's own figures, and feature surgery on its CLS token."""

import math

import numpy as np
import pytest
import torch

import clip2sam
from clip2sam.analysis.examples import Example, scene_examples
from clip2sam.analysis.recognition import evaluate_recognition, ranked_precision
from clip2sam.clip.model import SurgeryCLIP
from clip2sam.config import Config
from clip2sam.data.images import Image
from clip2sam.data.labels import as_label_set
from clip2sam.errors import LabelError, ModelError
from clip2sam.pipeline import Segmenter
from clip2sam.recognition import Recognition, recognise
from clip2sam.sam import PromptSAM
from tests.models import small_clip, small_sam

LABELS = as_label_set(["cat", "dog", "bird"])


def segmenter(config=None, **clip) -> Segmenter:
    return Segmenter(SurgeryCLIP(small_clip(**clip)), PromptSAM(small_sam()), config)


def images(count=2, size=(90, 150)):
    made = np.random.default_rng(3).integers(0, 255, (count, *size, 3), np.uint8)
    return [Image(pixels, f"{i}.png") for i, pixels in enumerate(made)]


def features_of(model: SurgeryCLIP, image: Image) -> torch.Tensor:
    """Unit feature of the image by open_clip itself."""
    with torch.no_grad():
        feature = model.model.encode_image(model.preprocess([model.resize(image)]))[0]
    return feature / feature.norm()


def texts_of(model: SurgeryCLIP, *texts: str) -> torch.Tensor:
    return torch.stack([model.encode_texts([text])[0] for text in texts])


def published(cls: torch.Tensor, text: torch.Tensor) -> np.ndarray:
    """Feature surgery of one token as the published code has it: on elementwise products."""
    weights = (2 * text @ cls).softmax(dim=0)
    products = cls[None] * text * (weights / weights.mean())[:, None]
    return (products - products.mean(dim=0)).sum(dim=1).numpy()


@pytest.mark.parametrize(
    "clip", [{}, {"vision_layers": (1, 1, 1, 1), "patch_size": None}], ids=["vit", "resnet"]
)
def test_cosines_are_those_of_clip_itself(clip):
    chosen = segmenter(Config(grid=2), **clip)
    some = images()
    found = recognise(chosen, chosen.encode(some), LABELS)
    text = texts_of(chosen.clip, "cat", "dog", "bird")
    for one, image in zip(found, some, strict=True):
        expected = text @ features_of(chosen.clip, image)
        np.testing.assert_allclose(one.cosines, expected.numpy(), atol=2e-5)
        assert (one.image, one.class_names) == (image, ("cat", "dog", "bird"))
    assert np.abs(found[0].cosines - found[1].cosines).max() > 1e-3


def test_probabilities_and_scores_by_the_formulas():
    chosen = segmenter()
    with torch.no_grad():
        chosen.clip.model.logit_scale.fill_(math.log(7.0))
    (image,) = images(1)
    (found,) = recognise(chosen, chosen.encode([image]), LABELS)
    cls = features_of(chosen.clip, image)
    logits = [7 * float(c) for c in found.cosines]
    total = sum(math.exp(x) for x in logits)
    np.testing.assert_allclose(found.probabilities, [math.exp(x) / total for x in logits], 1e-5)
    text = texts_of(chosen.clip, "cat", "dog", "bird")
    np.testing.assert_allclose(found.scores, published(cls, text), atol=2e-6)
    assert found.scores.sum() == pytest.approx(0, abs=1e-6)


def test_distractors_compete_and_are_not_reported():
    chosen = segmenter()
    features = chosen.encode(images(1))
    (alone,) = recognise(chosen, features, LABELS)
    (found,) = recognise(chosen, features, as_label_set(["cat", "dog"], distractors=["bird"]))
    assert found.class_names == ("cat", "dog")
    for name in ("cosines", "probabilities", "scores"):
        np.testing.assert_allclose(getattr(found, name), getattr(alone, name)[:2], atol=1e-6)


def test_background_prompts_are_of_feature_surgery_only():
    plain = segmenter()
    chosen = plain.with_config(background_prompts=("sky", "cat"))
    (image,) = images(1)
    (bare,) = recognise(plain, plain.encode([image]), LABELS)
    (found,) = recognise(chosen, chosen.encode([image]), LABELS)
    np.testing.assert_array_equal(found.probabilities, bare.probabilities)
    text = texts_of(plain.clip, "cat", "dog", "bird", "sky")
    expected = published(features_of(plain.clip, image), text)[:3]
    np.testing.assert_allclose(found.scores, expected, atol=2e-6)


def test_a_label_alone_is_compared_with_the_empty_string():
    chosen = segmenter()
    with torch.no_grad():
        chosen.clip.model.logit_scale.fill_(math.log(7.0))
    (image,) = images(1)
    (found,) = recognise(chosen, chosen.encode([image]), as_label_set(["cat"]))
    cls = features_of(chosen.clip, image)
    gap = float(cls @ chosen.clip.encode_texts(["cat"])[0] - cls @ chosen.clip.encode_empty()[0])
    assert found.scores == pytest.approx([gap], abs=1e-6)
    assert found.probabilities == pytest.approx([1 / (1 + math.exp(-7 * gap))], abs=1e-5)


def test_windows_take_no_part_and_sam_neither(monkeypatch):
    plain = segmenter()
    tiled = plain.with_config(tile=64)
    some = images()
    features = tiled.encode(some)
    assert len(features.images) > len(some)
    monkeypatch.setattr(plain.sam, "encode_image", None)
    expected = recognise(plain, plain.encode(some), LABELS)
    found = recognise(tiled, features, LABELS)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
        assert one.image is other.image


def test_the_resolution_is_the_settings():
    chosen = segmenter(Config(resolution=64, grid=2))
    features = chosen.encode(images(1))
    (found,) = recognise(chosen, features, LABELS)
    (other,) = recognise(chosen.with_config(resolution=128), features, LABELS)
    assert np.abs(found.cosines - other.cosines).max() > 1e-4


def test_values_that_are_not_finite_are_an_error():
    chosen = segmenter()
    with torch.no_grad():
        chosen.clip.model.visual.proj[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"^0\.png: CLIP's similarities have values that are not"):
        recognise(chosen, chosen.encode(images(1)), LABELS)


def test_ranked_precision_by_hand():
    truth = np.array([True, False, True, False])
    assert ranked_precision(np.array([4.0, 3.0, 2.0, 1.0]), truth) == pytest.approx((1 + 2 / 3) / 2)
    assert ranked_precision(np.array([1.0, 2.0, 3.0, 4.0]), truth) == pytest.approx(
        (1 / 2 + 2 / 4) / 2
    )
    # of equals, all are reached together
    assert ranked_precision(np.array([1.0, 1.0, 1.0, 0.0]), truth) == pytest.approx(2 / 3)
    assert np.isnan(ranked_precision(np.array([1.0]), np.array([False])))


def example(*present):
    """An example of three labels whose truth is known, with these."""
    full = [np.ones((4, 4), bool)]
    truth = {name: full if name in present else [] for name in ("a", "b", "c")}
    kinds = {"a": "first", "b": "first", "c": "second"}
    return Example(Image(np.zeros((4, 4, 3), np.uint8), "x.png"), truth, kinds, ("a",))


class Encodes(Segmenter):
    """A segmenter of which only `encode` is called."""

    def __init__(self):
        pass

    def encode(self, images):
        return images


@pytest.fixture
def answers(monkeypatch):
    """`recognise` answers with given cosines, their negatives as probabilities, and their halves as
    scores; it fails where there are none. Returns a function that sets them, and gives a list of
    the labels that it is asked for."""

    def patch(*rows):
        left, asked = list(rows), []

        def recognise(segmenter, features, labels):
            asked.append(labels.names)
            row = left.pop(0)
            if row is None:
                raise ModelError("no figures")
            given = np.array(row, np.float32)
            return [Recognition(features[0], labels, given, -given, given / 2)]

        monkeypatch.setattr("clip2sam.analysis.recognition.recognise", recognise)
        return asked

    return patch


def test_figures_by_hand(answers):
    asked = answers([3, 1, 0], [2, 3, 0], None, [1, 2, 0])
    seen = []
    figures = evaluate_recognition(
        Encodes(),
        [example("a"), example("b"), example("c"), example("a")],
        on_example=lambda: seen.append(1),
    )
    assert asked == [("a", "b", "c")] * 4, "all whose truth is known, not what an image requests"
    # a: places 1 and 3 of 3 by the cosines, and by their negatives; b: 1, and 3 by negatives.
    one, three = (1 + 2 / 3) / 2, 1 / 3
    assert figures["all"] == pytest.approx(
        {"labels": 2, "raw": (one + 1) / 2, "softmax": (one + three) / 2, "surgery": (one + 1) / 2}
    )
    assert figures["kinds"]["first"] == figures["all"]
    assert figures["kinds"]["second"]["labels"] == 0, "it occurs only where the model failed"
    assert np.isnan(figures["kinds"]["second"]["raw"])
    assert figures["failures"] == [["x.png", "no figures"]]
    assert len(seen) == 4


def test_given_labels_and_distractors_are_asked_for(answers):
    asked = answers([1, 2], [1, 2, 3])
    evaluate_recognition(Encodes(), [example("a")], ["b", "a"], ["c", "sky"])
    figures = evaluate_recognition(Encodes(), [example()], None, ["a", "sky"])
    assert asked == [("b", "a", "c", "sky"), ("a", "b", "c", "sky")]
    assert figures["all"]["labels"] == 0
    with pytest.raises(LabelError, match="expected labels whose truth is known, 'a', 'b', 'c'"):
        evaluate_recognition(Encodes(), [example()], ["d"])


def test_failures_alone_are_an_error(answers):
    answers(None, None)
    with pytest.raises(ModelError, match=r"^no figures$"):
        evaluate_recognition(Encodes(), [example(), example()])


def test_tiny_recognises_what_is_drawn():
    """The whole path, against chance: of the labels a tenth or less are in an image."""
    figures = evaluate_recognition(clip2sam.load("tiny"), scene_examples("validation", 25))
    assert figures["all"]["labels"] > 80
    assert figures["all"]["raw"] > 0.7
    assert figures["all"]["surgery"] > 0.7
    assert figures["kinds"]["colour"]["surgery"] > 0.95


def test_a_joined_label_is_the_best_of_its_parts():
    chosen, (image, _) = segmenter(), images()
    features = chosen.encode([image])
    (apart,) = recognise(chosen, features, as_label_set(["cat", "dog", "bird"]))
    (joined,) = recognise(chosen, features, as_label_set(["cat+bird", "dog"]))
    # the same three texts in another order
    assert joined.class_names == ("cat+bird", "dog")
    for name, over in (("cosines", max), ("scores", max), ("probabilities", sum)):
        cat, dog, bird = getattr(apart, name).tolist()
        assert getattr(joined, name).tolist() == pytest.approx([over((cat, bird)), dog], abs=1e-5)
