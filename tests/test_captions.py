"""The phrases of a caption become labels that know where the caption names them."""

import inspect
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clip2sam
from clip2sam.analysis.explain import explain_caption
from clip2sam.coco.document import coco_document, made_by
from clip2sam.coco.validate import validate
from clip2sam.data.captions import labels_of_caption, words_of
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelClass, as_label_set, labels_yaml
from clip2sam.errors import LabelError
from tests.captions import HELD_OUT, KNOWN_WRONG, SEEN_LATER, TUNED
from tests.labelling_fakes import small_segmenter


@pytest.mark.parametrize("captions", [TUNED, HELD_OUT, SEEN_LATER], ids=["tuned", "held", "later"])
def test_the_phrases_of_captions(captions):
    found = {caption: list(labels_of_caption(caption).names) for caption in captions}
    assert found == captions


@pytest.mark.parametrize("caption", KNOWN_WRONG)
def test_what_the_rule_does_not_know(caption):
    """A rule that gets one of these right should say so in the docstring and move it."""
    assert list(labels_of_caption(caption).names) == KNOWN_WRONG[caption][1]
    assert KNOWN_WRONG[caption][0] != KNOWN_WRONG[caption][1]


def test_spans_are_where_the_caption_names_a_label():
    caption = "A Dog chasing\n a red \t ball; the dog is left of another red ball"
    labels = clip2sam.labels_of_caption(caption)
    assert labels.names == ("Dog", "red ball")
    assert labels.caption == caption
    dog, ball = labels.classes
    assert dog == LabelClass("Dog", ("Dog",), spans=((2, 5), (33, 36)))
    assert [caption[a:b] for a, b in ball.spans] == ["red \t ball", "red ball"]


def test_items_of_a_list_with_dots_stay_whole():
    caption = "person in 2.5 m . the dog's tail. cat ."
    labels = labels_of_caption(caption)
    assert labels.names == ("person in 2.5 m", "the dog's tail", "cat")
    assert [caption[a:b] for c in labels.classes for a, b in c.spans] == list(labels.names)


def test_words_and_the_punctuation_around_them():
    text = "A dog's T-shirt, the dogs' “C++” (2.5 m)… M&M's cafe\u0301 हिन्दी - 'x'"
    words = words_of(text)
    assert [w.text for w in words] == [
        "A",
        "dog's",
        "T-shirt",
        "the",
        "dogs'",
        "C++",
        "2.5",
        "m",
        "M&M's",
        "cafe\u0301",
        "हिन्दी",
        "x",
    ]
    assert all(text[w.start : w.end] == w.text for w in words)
    assert [w.text for w in words if w.is_first] == ["A", "the", "C++", "2.5", "M&M's", "x"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*"., ;-'’+&5é猫\u0301\n", "dog", "a", "and", "is", "red"])))
def test_any_text_gives_phrases_or_a_label_error(parts):
    caption = "".join(parts)
    words = words_of(caption)
    assert all(caption[w.start : w.end] == w.text and w.text for w in words)
    assert all(a.end <= b.start for a, b in pairwise(words))
    try:
        labels = labels_of_caption(caption)
    except LabelError:
        return
    places = [span for c in labels.classes for span in c.spans]
    assert len(set(places)) == len(places)
    assert all(
        " ".join(caption[a:b].split()).casefold() == c.name.casefold()
        for c in labels.classes
        for a, b in c.spans
    )


@pytest.mark.parametrize("caption", ["", "  ", " . ", "a red", "it is blue"])
def test_a_caption_that_names_nothing_is_refused(caption):
    with pytest.raises(LabelError, match="expected a caption that names something, got"):
        labels_of_caption(caption)


def test_a_caption_is_a_text():
    with pytest.raises(LabelError, match=r"expected a caption as a text, got .*give labels as"):
        inspect.unwrap(labels_of_caption)(["a dog"])


def test_the_maps_of_a_caption_have_the_words_that_phrases_are_made_of():
    """`explain_caption` and `labels_of_caption` cut a caption into the same words."""
    caption = "a dog's tail,and “a T-shirt”"

    image = Image(np.zeros((30, 30, 3), np.uint8), "a.png")
    words = explain_caption(small_segmenter(), image, caption).words
    assert words == ("a", "dog's", "tail", "and", "T-shirt")
    phrases = labels_of_caption(caption).names
    assert phrases == ("dog's tail", "T-shirt")
    assert {w for phrase in phrases for w in phrase.split()} <= set(words)


def test_a_labels_file_keeps_caption_and_spans(tmp_path):
    labels = labels_of_caption('dog+frisbee . C+D club . a "b": c')
    path = tmp_path / "labels.yaml"
    path.write_text(labels_yaml(labels), encoding="utf-8")
    assert as_label_set(path) == labels
    assert as_label_set(labels, distractors=["sky"]).caption == labels.caption


def test_a_label_may_be_called_caption(tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_text("caption: [title, subtitle]\n")
    assert as_label_set(path).names == ("caption",)


@pytest.mark.parametrize("span", ["[1]", "[1, 2, 3]", "[a, 2]", "[-1, 2]"])
def test_a_span_in_a_file_is_two_numbers(tmp_path, span):
    path = tmp_path / "labels.yaml"
    path.write_text(f"classes:\n  - name: cat\n    spans: [{span}]\n")
    with pytest.raises(LabelError, match=r"line 3: expected a span as \[start, end\], in char"):
        as_label_set(path)


def test_coco_files_say_where_the_caption_names_their_categories():
    labels = as_label_set(labels_of_caption("a ball left of a ball"), distractors=["sky"])
    document = coco_document([], labels.wanted, info=made_by(caption=labels.caption))
    assert document["categories"] == [
        {"id": 1, "name": "ball", "supercategory": "", "caption_spans": [[2, 6], [17, 21]]}
    ]
    assert document["info"]["caption"] == "a ball left of a ball"
    assert validate(json.loads(json.dumps(document))) == []
    plain = coco_document([], as_label_set(["ball"]).wanted)
    assert plain["categories"] == [{"id": 1, "name": "ball", "supercategory": ""}]
    assert "caption" not in made_by()
