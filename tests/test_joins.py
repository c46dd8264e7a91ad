"""Joined labels ("dog+frisbee"): found part by part, and one mask in all that people get."""

import inspect
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import clip2sam
from clip2sam.analysis.bench import Bench
from clip2sam.analysis.budget import budget
from clip2sam.analysis.compare import threshold_for
from clip2sam.analysis.evaluate import evaluate, without_thresholds
from clip2sam.analysis.examples import Example
from clip2sam.analysis.explain import explain
from clip2sam.analysis.tune import tune
from clip2sam.coco.rle import decode_rle, encode_mask
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelClass, LabelSet, as_label_set, labels_yaml, named
from clip2sam.data.presence import presence_of_classes
from clip2sam.errors import ConfigError, LabelError
from clip2sam.joins import joined_points, mean_by_area, mean_maps, union
from clip2sam.labelling.decide import Decision
from clip2sam.labelling.engine import SegmenterEngine
from clip2sam.labelling.export import export_run
from clip2sam.labelling.manifest import open_run
from clip2sam.labelling.run import label_dataset
from clip2sam.result import Found, finished
from tests.labelling_fakes import small_segmenter, write_images

SIZE = (40, 60)
LABELS = as_label_set(["cat", "dog+frisbee", "tree"], distractors=["sky"])


def part(name: str) -> LabelClass:
    return LabelClass(name, (name,))


@pytest.fixture(scope="module")
def segmenter():
    return small_segmenter(presence_threshold=-1e9, min_share=0.0)


@pytest.fixture(scope="module")
def image() -> Image:
    pixels = np.random.default_rng(3).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    return Image(pixels, "a.png")


# --- names


@pytest.mark.parametrize(
    "name", ["dog+frisbee", "red ball+dog", "a+b+c", "5+x", "cafe\u0301+dog", "कुत्ता+बिल्ली", "_+b"]
)
def test_a_plus_between_words_joins(name):
    (made,) = as_label_set([name]).classes
    assert made == LabelClass(name, (), joined=tuple(map(part, name.split("+"))))


@pytest.mark.parametrize(
    "name", ["C++", "a +b", "a+ b", "a + b", "+a", "a+", "C++ and a+b", "1+1", "dog+dog", "(a)+(b)"]
)
def test_any_other_plus_is_a_part_of_the_name(name):
    assert as_label_set([name]).classes == (part(name),)


def test_text_prompts_make_it_a_plain_label(tmp_path):
    plain = LabelClass("B+C", ("B+C",))
    path = tmp_path / "labels.yaml"
    path.write_text("B+C: B+C\n")
    assert as_label_set({"B+C": "B+C"}).classes == as_label_set(path).classes == (plain,)
    path.write_text(labels_yaml(LabelSet((plain, named("x+y")))))
    assert as_label_set(path).classes == (plain, named("x+y"))


def test_a_file_says_what_is_joined(tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_text(
        "classes:\n"
        "  - {name: pets, joined: [dog, cat], presence_threshold: 0.2, supercategory: animal}\n"
        "  - {name: toys, joined: {ball: [ball, sphere], frisbee: }}\n"
        "distractors: [sky+sea]\n"
    )
    labels = as_label_set(path)
    assert labels.classes == (
        LabelClass("pets", (), 0.2, "animal", joined=(part("dog"), part("cat"))),
        LabelClass("toys", (), joined=(LabelClass("ball", ("ball", "sphere")), part("frisbee"))),
        LabelClass("sky+sea", (), distractor=True, joined=(part("sky"), part("sea"))),
    )
    path.write_text(labels_yaml(labels))
    assert as_label_set(path) == labels


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("joined: [dog]", "expected two different labels or more to join in 'pets', got 'dog'"),
        ("joined: [dog, cat, dog]", "got 'dog', 'cat', 'dog'; write each once"),
        ("joined: [a+b, c]", "expected a name and prompts as part of 'pets', got LabelClass"),
        ("joined: [dog, ' ']", "line 2: expected a part of 'pets', got ' ', which is empty"),
        ("joined: [dog, {name: cat, presence_threshold: 1}]", "expected a name and prompts as"),
        ("joined: [dog, cat], prompts: [x]", "line 2: expected prompts or joined in this class"),
        ("joined: dog", "expected a list"),
    ],
)
def test_faulty_joins_are_refused(tmp_path, row, message):
    path = tmp_path / "labels.yaml"
    path.write_text(f"classes:\n  - {{name: pets, {row}}}\n")
    with pytest.raises(LabelError, match=message):
        as_label_set(path)


def test_hand_made_classes_are_checked():
    unchecked = inspect.unwrap(as_label_set)
    both = LabelClass("a", ("a",), joined=(part("b"), part("c")))
    with pytest.raises(LabelError, match="expected prompts or joined for 'a', got both; give its"):
        unchecked(LabelSet((both,)))
    letters, texts = part("cat"), LabelSet(())
    object.__setattr__(letters, "prompts", "cat")  # the tests' own type checks refuse the others
    object.__setattr__(texts, "classes", ("cat",))
    with pytest.raises(LabelError, match=r"prompts for 'cat': expected a list of texts, got 'cat'"):
        unchecked(LabelSet((letters,)))
    with pytest.raises(LabelError, match="label 1: expected a LabelClass in a LabelSet, got 'cat'"):
        unchecked(texts)
    with_text = LabelSet((part("a"),))
    object.__setattr__(with_text, "templates", "a {}")
    with pytest.raises(LabelError, match=r"templates: expected a list of texts, got 'a \{\}'"):
        unchecked(with_text)


def test_parts_in_their_order():
    labels = as_label_set(LabelSet((replace(named("a+b"), presence_threshold=0.3), part("c"))))
    assert labels.apart().names == ("a", "b", "c")
    assert labels.groups == ((0, 1), (2,))
    assert labels.apart().thresholds(0.1) == (0.3, 0.3, 0.1)
    assert not any(c.joined for c in labels.apart().classes)
    plain = as_label_set(["a", "b"])
    assert plain.apart() is plain, "no cost without joined labels"
    assert plain.groups == ((0,), (1,))


# --- arrays


def test_mean_maps_are_of_maps_scaled_to_one():
    raw = torch.zeros(1, 4, 2, 2)
    raw[0, 0] = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    raw[0, 1] = torch.tensor([[7.0, 7.0], [8.0, 7.0]])
    raw[0, 2] = torch.tensor([[0.0, 0.0], [0.2, 0.4]])
    raw[0, 3] = 0.1  # without a range
    mixed = mean_maps(raw, [(1,), (0, 2), (3,)])
    assert torch.equal(mixed[:, [1, 3]], raw[:, [1, 3]])
    assert torch.equal(mixed[:, 0], mixed[:, 2])
    assert torch.allclose(mixed[0, 0], torch.tensor([[0.0, 0.5], [0.25, 0.5]]))
    with_flat = mean_maps(raw, [(0, 3), (1,), (2,)])
    assert with_flat[0, 0].tolist() == [[0.0, 0.5], [0.0, 0.0]]


def test_points_of_all_present_parts_and_negative_ones_of_the_mean():
    places = torch.arange(4.0)[None, :, None, None].expand(1, 4, 1, 2)
    ones = torch.ones(1, 4, 1, dtype=torch.long)
    present = torch.tensor([[False, True, True, True]])
    coords, kinds, prompted = joined_points(
        (places, ones), (places + 10, ones - 1), present, [(0, 1, 2), (3,)]
    )
    assert prompted.tolist() == [[False, True, False, True]]
    assert kinds[0, 1].tolist() == [-1, 1, 1, 0], "the absent part gives no point"
    assert coords[0, 1, 1:, 0].tolist() == [1.0, 2.0, 11.0]
    assert kinds[0, 3].tolist() == [1, -1, -1, 0]
    assert coords[0, 3, [0, 3], 0].tolist() == [3.0, 13.0]


def test_presence_of_classes_is_that_of_the_best_part_that_is_not_beaten():
    presence = np.array([0.9, 0.2, 0.4, 0.5], np.float32)
    beaten = np.array([True, False, True, True])
    scores, lost = presence_of_classes(presence, beaten, [(0, 1), (2, 3)])
    assert scores.tolist() == pytest.approx([0.2, 0.5])
    assert lost.tolist() == [False, True]
    assert presence_of_classes(presence, beaten, [(i,) for i in range(4)])[0] is presence


def rectangle(top, left, bottom, right):
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return encode_mask(mask)


def test_unions_and_means():
    rles = [rectangle(0, 0, 10, 10), rectangle(5, 0, 35, 10)]
    assert union(rles) == rectangle(0, 0, 35, 10)
    assert mean_by_area(np.array([0.1, 0.9], np.float32), rles) == pytest.approx(0.7)


def found(presence=(0.5, 0.5, 0.5, 0.5), *, labels=LABELS, masks=None) -> Found:
    """Of cat, dog, frisbee and tree: masks as (part, box, score, inside)."""
    masks = masks or [
        (0, (0, 0, 10, 10), 0.5, 1.0),
        (2, (20, 0, 30, 30), 0.9, 1.0),
        (1, (0, 20, 10, 30), 0.8, 1.0),
        (1, (15, 20, 25, 30), 0.4, 0.6),
        (1, (30, 50, 40, 60), 0.7, 0.3),
        (1, (0, 0, 0, 0), 0.7, 1.0),
        (3, (0, 0, 5, 5), 0.6, 1.0),
    ]
    maps = np.zeros((4, 4, 4), np.float32)
    maps[range(4), range(4), 0] = presence
    scores = np.array(presence, np.float32)
    return Found(
        labels,
        tuple(rectangle(*box) for _, box, _, _ in masks),
        np.array([n for n, *_ in masks], np.int64),
        np.array([m[2] for m in masks], np.float32),
        np.array([m[3] for m in masks], np.float32),
        np.ones(len(masks), np.float32),
        points=tuple(np.array([[k, n, 1]], np.float32) for k, (n, *_) in enumerate(masks)),
        presence=scores,
        beaten=np.zeros(4, bool),
        present=scores >= 0.1,
        maps=maps,
        grids=maps,
    )


CONFIG = clip2sam.Config(min_share=0.5, grid=4, presence_threshold=0.1)


def test_one_mask_is_the_union_of_what_is_shown(image):
    result = finished(Image(np.zeros((*SIZE, 3), np.uint8), "a.png"), found(), CONFIG)
    assert result.labels == ["cat", "dog+frisbee", "tree"]
    assert result.label_indices.tolist() == [0, 1, 2]
    joined = result.annotations[1]
    wanted = union([rectangle(0, 20, 10, 30), rectangle(15, 20, 25, 30), rectangle(20, 0, 30, 30)])
    assert joined.rle == wanted, "without the weak dog of share 0.3"
    assert joined.score == pytest.approx((0.8 * 100 + 0.4 * 100 + 0.9 * 300) / 500)
    assert joined.share == 1.0
    assert [p[0] for p in joined.points] == [1, 2, 3], "the points of all that are in it"
    assert result.points[1].shape == (3, 3)
    assert result.everything == result.annotations
    assert result.class_names == ("cat", "dog+frisbee", "tree")
    assert result.maps.shape == (3, 4, 4)
    assert result.maps[1].max(axis=1).tolist() == [0.0, 0.5, 0.5, 0.0]
    assert result.grids.shape == (3, 4, 4)
    assert len(result.record.presence) == len(result.record.beaten) == 3
    assert np.array_equal(result.mask_of("dog+frisbee"), decode_rle(wanted))
    assert {c["name"] for c in result.to_coco()["categories"]} == set(result.class_names)


def test_it_is_present_where_a_part_is(image):
    square = Image(np.zeros((*SIZE, 3), np.uint8), "a.png")
    masks = [(2, (20, 0, 30, 30), 0.9, 1.0)]
    result = finished(square, found((0.05, 0.02, 0.3, 0.01), masks=masks), CONFIG)
    assert result.present.tolist() == [False, True, False]
    assert result.presence.tolist() == pytest.approx([0.05, 0.3, 0.01])
    assert result.masks.sum() == 300
    gone = finished(square, found((0.05, 0.02, 0.03, 0.01), masks=masks[:0] or None), CONFIG)
    assert gone.presence[1] == pytest.approx(0.03)
    empty = [(1, (0, 0, 0, 0), 0.9, 1.0)]
    none = finished(square, found(masks=empty), CONFIG)
    assert {a.label: a.reason for a in none.absent}[
        "dog+frisbee"
    ] == "its points gave an empty mask"


def test_parts_that_a_lower_threshold_found_are_left_out_where_the_label_is_present():
    square = Image(np.zeros((*SIZE, 3), np.uint8), "a.png")
    both = found((0.5, 0.05, 0.3, 0.5))
    limits = (0.1, 0.1, 0.1)
    alone = finished(square, both, CONFIG, thresholds=limits)
    assert alone.annotations[1].rle == rectangle(20, 0, 30, 30), "the dogs are below 0.1"
    weak = finished(square, found((0.5, 0.05, 0.06, 0.5)), CONFIG, thresholds=limits)
    assert decode_rle(weak.annotations[1].rle).sum() == 450, "neither: both are kept for an export"


# --- the pipeline


def test_a_joined_label_is_the_union_of_its_parts_asked_for_alone(segmenter, image):
    joined = segmenter(image, LABELS)
    apart = segmenter(image, LABELS.apart())
    assert joined.labels.count("dog+frisbee") == 1
    expected = apart.mask_of("dog") | apart.mask_of("frisbee")
    assert np.array_equal(joined.mask_of("dog+frisbee"), expected)
    assert np.array_equal(joined.mask_of("cat"), apart.mask_of("cat"))
    assert joined.presence[1] == apart.presence[1:3].max()
    assert np.array_equal(joined.maps[1], apart.maps[1:3].max(axis=0))
    assert [c.name for c in joined.label_set.classes] == list(LABELS.names)


def test_one_prompt_a_label_has_the_points_of_all_parts(segmenter, image):
    one = segmenter.with_config(prompts="label")
    joined, apart = one(image, LABELS), one(image, LABELS.apart())
    assert joined.labels == ["cat", "dog+frisbee", "tree"]

    def positive(result, *names):
        chosen = [p for p, n in zip(result.points, result.labels, strict=True) if n in names]
        return {tuple(row) for one in chosen for row in one.tolist() if row[2] == 1}

    assert positive(joined, "dog+frisbee") == positive(apart, "dog", "frisbee")
    assert positive(joined, "cat") == positive(apart, "cat")
    cats = [r.points[0].tolist() for r in (joined, apart)]
    assert sorted(cats[0]) == sorted(cats[1]), "a plain label has the points that it always had"
    np.testing.assert_array_equal(joined.mask_of("cat"), apart.mask_of("cat"))


def test_label_prompts_follow_the_mean_map(segmenter, image):
    """The candidate that covers the whole joined map is kept, not that of one part's map."""
    one = segmenter.with_config(prompts="label", candidate="agreement")
    features = one.encode([image])
    maps = one.locate(features, LABELS)
    prompts = one.prompt(maps)
    offered = one.decode(features, prompts)
    mixed = replace(maps, raw=mean_maps(maps.raw, LABELS.groups), labels=LABELS.apart())
    assert torch.equal(
        one.agreement(maps, prompts, offered), one.agreement(mixed, prompts, offered)
    )


def test_tiles_are_joined_over_the_whole_image(segmenter):
    pixels = np.random.default_rng(1).integers(0, 256, (150, 260, 3), dtype=np.uint8)
    large = Image(pixels, "large.png")
    tiled = segmenter.with_config(tile=128)
    joined, apart = tiled(large, LABELS), tiled(large, LABELS.apart())
    assert joined.labels.count("dog+frisbee") == 1
    expected = apart.mask_of("dog") | apart.mask_of("frisbee")
    assert expected.any()
    assert np.array_equal(joined.mask_of("dog+frisbee"), expected)
    features = tiled.encode([large])
    ((scores, lost),) = tiled.presence(features, LABELS)
    assert scores[:3].tolist() == joined.presence.tolist()
    assert lost[:3].tolist() == joined.beaten.tolist()


def test_a_run_has_one_annotation_for_it_and_exports_decide_again(segmenter, tmp_path):
    images = write_images(tmp_path / "in", 3)
    labels = as_label_set(LABELS)
    real = segmenter.with_config(presence_threshold=0.0)
    label_dataset(images, labels, tmp_path / "run", segmenter=real, keep_above=-1.0)
    document = json.loads((tmp_path / "run" / "annotations.json").read_bytes())
    names = {c["id"]: c["name"] for c in document["categories"]}
    assert list(names.values()) == ["cat", "dog+frisbee", "tree"]
    mine = [a for a in document["annotations"] if names[a["category_id"]] == "dog+frisbee"]
    assert mine
    assert len({a["image_id"] for a in mine}) == len(mine)
    for a in mine:
        file = next(i["file_name"] for i in document["images"] if i["id"] == a["image_id"])
        result = real(images / file, labels)
        (own,) = [x for x in result.annotations if x.label == "dog+frisbee"]
        assert a["segmentation"] == own.rle, "parts below the threshold are not in it"
        assert a["score"] == own.score
    assert open_run(tmp_path / "run").classes == labels.wanted
    for decision, count in (
        (Decision(presence_threshold=1e9), 0),
        (Decision(min_share=0.99, classes=("dog+frisbee",)), len(mine)),
        (Decision(presence_threshold=-1.0, classes=("dog+frisbee",)), 3),
    ):
        export_run(tmp_path / "run", tmp_path / "x.json", decision=decision)
        rows = json.loads((tmp_path / "x.json").read_bytes())["annotations"]
        assert len(rows) == count
    engine = SegmenterEngine(real, labels, None)
    assert len(engine.thresholds) == 3


def test_explanations_follow_all_parts(segmenter, image):
    labels = as_label_set(["cat", "dog+frisbee", "tree"])
    joined = explain(segmenter, image, labels, "dog+frisbee")
    parts = [explain(segmenter, image, labels.apart(), name) for name in ("dog", "frisbee")]
    assert len(joined.objects) == sum(len(p.objects) for p in parts)
    assert np.array_equal(joined.raw, np.maximum(parts[0].raw, parts[1].raw))
    strongest = max(parts, key=lambda p: p.raw.max())
    assert np.array_equal(joined.before, strongest.before)
    assert joined.presence.shape == (3,)
    assert joined.presence[joined.index] == max(p.raw.max() for p in parts)
    assert joined.reason == ""
    shown = [o.mask for o in joined.objects if not o.left_out]
    expected = segmenter(image, labels).mask_of("dog+frisbee")
    assert np.array_equal(np.any(shown, axis=0), expected)
    one = explain(segmenter, image, LABELS, "dog+frisbee")
    dog = explain(segmenter, image, LABELS.apart(), "dog")
    assert len(one.objects) == len(dog.objects), "a distractor beats the frisbee alone"
    none = explain(segmenter.with_config(presence_threshold=1e9), image, labels, "dog+frisbee")
    assert none.reason.startswith("its highest score")
    assert len(none.objects) == len(joined.objects)


def test_points_by_hand_are_for_the_joined_label(segmenter, image):
    bench = Bench(segmenter, image)
    bench.changed["dog+frisbee"] = np.array([[20.0, 20.0, 1.0]])
    result = bench.run(LABELS)
    assert result.labels.count("dog+frisbee") == 1
    mine = result.points[result.labels.index("dog+frisbee")]
    assert mine.tolist() == [[20.0, 20.0, 1.0]]


# --- the truth


def example(**truth) -> Example:
    pixels = np.random.default_rng(5).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    masks = {name: [decode_rle(rectangle(*box)) for box in own] for name, own in truth.items()}
    return Example(Image(pixels, "e.png"), masks, dict.fromkeys(masks, "all"), tuple(masks))


def test_the_truth_of_a_joined_label_is_the_union_of_its_parts():
    known = example(cat=[], dog=[(0, 0, 5, 5), (0, 9, 5, 12)], frisbee=[(9, 9, 12, 12)], tree=[])
    truth = known.joined(LABELS).truth["dog+frisbee"]
    assert [m.sum() for m in truth] == [25 + 15 + 9]
    assert known.joined(LABELS).kinds["dog+frisbee"] == "all"
    none = example(cat=[], dog=[], frisbee=[], tree=[])
    assert none.joined(LABELS).truth["dog+frisbee"] == []
    assert known.joined(LABELS.apart()) is known
    with pytest.raises(LabelError, match="whose truth is known, 'cat', 'dog', got 'frisbee'"):
        example(cat=[], dog=[]).labels(as_label_set(["dog+frisbee"]))
    own = example(**{"dog+frisbee": [(0, 0, 4, 4)]})
    labels = own.labels(None)
    assert [m.sum() for m in own.joined(labels).truth["dog+frisbee"]] == [16]


def test_evaluations_judge_the_joined_mask(segmenter):
    known = example(cat=[], dog=[(0, 0, 30, 30)], frisbee=[(9, 40, 20, 50)], tree=[])
    figures = evaluate(segmenter, [known], as_label_set(["cat", "dog+frisbee"]))
    assert (figures["all"]["pairs"], figures["all"]["present"]) == (2, 1)
    result = segmenter(known.image, ["cat", "dog+frisbee"])
    truth = known.joined(LABELS).truth["dog+frisbee"][0]
    mine = result.mask_of("dog+frisbee")
    assert figures["all"]["miou"] == pytest.approx((mine & truth).sum() / (mine | truth).sum())
    spent = budget(segmenter, [known], as_label_set(["cat", "dog+frisbee"]))
    parts = budget(segmenter, [known], as_label_set(["cat", "dog", "frisbee"]))
    assert spent.miou == parts.miou


def test_thresholds_are_chosen_for_joined_labels(segmenter, tmp_path):
    known = example(cat=[], dog=[], frisbee=[(9, 40, 20, 50)], tree=[(0, 0, 5, 5)])
    with pytest.raises(ConfigError, match="in which some of the labels are absent, found none"):
        threshold_for(segmenter, [known], as_label_set(["dog+frisbee", "tree"]))
    images = write_images(tmp_path / "in", 3)
    names = sorted(path.name for path in images.iterdir())
    document = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names, 1)],
        "annotations": [{"image_id": 1, "category_id": 1}, {"image_id": 3, "category_id": 2}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "frisbee"}],
    }
    (images / "truth.json").write_text(json.dumps(document))
    tuning = tune(segmenter, images / "truth.json", ["dog+frisbee", "dog", "dog+cat"])
    truths = [None if c.truth is None else c.truth.tolist() for c in tuning.classes]
    assert truths == [[True, False, True], [True, False, False], None]
    assert tuning.label_set().classes[0].joined == LABELS.classes[1].joined


def test_only_joined_labels_keep_a_threshold_where_all_are_decoded():
    labels = without_thresholds(as_label_set(["a+b", "c"]), 0.4)
    assert labels.thresholds(None) == (0.4, None)
