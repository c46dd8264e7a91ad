"""Locators: another way to find labels goes through the same presence, SAM, scores and files."""

import json

import numpy as np
import pytest
import torch

import clip2sam
from clip2sam.analysis.explain import explain
from clip2sam.coco.rle import decode_rle
from clip2sam.config import Config
from clip2sam.data.images import Image
from clip2sam.data.labels import as_label_set
from clip2sam.errors import ConfigError
from clip2sam.labelling.run import label_dataset
from clip2sam.locate import (
    ClipLocator,
    Located,
    Locator,
    as_locator,
    box_maps,
    check_finds_objects,
    proposals_of,
)
from clip2sam.models.loading import with_method
from clip2sam.models.locators import checked_method
from clip2sam.pipeline import Segmenter
from clip2sam.proposals import box_fit, proposal_prompts
from clip2sam.tiny.scenes import instance_masks, scene, true_labels
from clip2sam.types import Candidates, Proposals
from tests.labelling_fakes import small_segmenter, write_images
from tests.test_pipeline import noise


class Boxes:
    """A locator that gives known boxes: label -> [(x0, y0, x1, y1, score)], the same for every
    image."""

    name, resolution = "boxes", 64

    def __init__(self, **known):
        self.known = known
        self.candidates = None

    def weights(self):
        return {"boxes": "1"}

    def check(self, config):
        check_finds_objects(self.name, config)

    def locate(self, features, labels, config):
        rows = [(box, i) for i, name in enumerate(labels.names) for box in self.known.get(name, ())]
        boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 5)
        index = torch.tensor([row[1] for row in rows], dtype=torch.long)
        one = (boxes[:, :4], boxes[:, 4], index)
        found = proposals_of([one] * len(features.images), features.sizes)
        if self.candidates is not None:
            found = Proposals(**{**vars(found), "candidates": self.candidates})
        return Located(box_maps(found, len(labels.names)), found)


class Planted:
    """A locator that gives one map for every label: high in a square of the cells."""

    name, resolution = "planted", 64

    def __init__(self, rows, cols):
        self.rows, self.cols = rows, cols

    def weights(self):
        return {"planted": "1"}

    def check(self, config):
        pass

    def locate(self, features, labels, config):
        raw = torch.full((len(features.images), len(labels.names), 14, 14), 0.01)
        raw[:, :, self.rows, self.cols] = 0.8
        return Located(raw)


def box_of(mask):
    ys, xs = np.nonzero(mask)
    return (*(float(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)), 0.9)


@pytest.fixture(scope="module")
def tiny():
    return clip2sam.load("tiny", device="cpu")


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def test_true_boxes_become_the_right_masks(tiny):
    """Two drawn scenes: each object's box, in pixels of the original image, gives its mask."""
    for seed in (5, 7):
        drawn = scene(seed)
        names = list(true_labels(drawn)["shape"])
        truth = {name: instance_masks(drawn, name) for name in names}
        locator = Boxes(**{n: [box_of(m) for m in masks] for n, masks in truth.items()})
        segmenter = Segmenter(None, tiny.sam, Config(), locator)
        result = segmenter(drawn.pixels, names)
        for name in names:
            own = [
                m for a, m in zip(result.annotations, result.masks, strict=True) if a.label == name
            ]
            for true in truth[name]:
                assert max((iou(m, true) for m in own), default=0) > 0.7, (seed, name)


def test_a_map_goes_through_the_same_points(tiny):
    """The middle of a planted square, and no CLIP."""
    drawn = scene(5)
    (mask, *_) = instance_masks(drawn, true_labels(drawn)["shape"][0])
    ys, xs = np.nonzero(mask)
    row, col = (int(v.mean() / side * 14) for v, side in zip((ys, xs), drawn.size, strict=True))
    planted = Planted(slice(row - 1, row + 2), slice(col - 1, col + 2))
    segmenter = Segmenter(None, tiny.sam, Config(), planted)
    height, width = drawn.size
    result = segmenter(drawn.pixels, ["anything"])
    assert result.presence.tolist() == pytest.approx([0.8])
    (x, y, kind), *_ = result.everything[0].points
    assert kind == 1
    assert col - 1 < x / width * 14 < col + 2
    assert row - 1 < y / height * 14 < row + 2
    assert iou(result.masks[0], mask) > 0.7


def small(locator, **config):
    return Segmenter(None, small_segmenter().sam, Config(**config), locator)


KNOWN = {"cat": [(10, 8, 40, 30, 0.9), (50, 8, 60, 40, 0.6), (0, 0, 5, 5, 0.3)]}


def test_presence_and_the_share_of_the_best():
    locator = Boxes(cat=KNOWN["cat"], dog=[(1, 1, 9, 9, 0.05)], owl=[(0, 0, 64, 48, 0.95)])
    segmenter = small(locator)
    labels = as_label_set(["cat", "dog", "owl", "bee"])
    maps = segmenter.locate(segmenter.encode([noise()]), labels)
    assert maps.presence[0].tolist() == pytest.approx([0.9, 0.05, 0.95, 0.0])
    assert maps.present[0].tolist() == [True, False, True, False]
    prompts = segmenter.prompt(maps)
    assert prompts.label_index.tolist() == [0, 0, 2]
    assert prompts.scores.tolist() == pytest.approx([0.9, 0.6, 0.95])  # .3 is below half of .9
    assert prompts.boxes[:2].tolist() == [list(map(float, b[:4])) for b in KNOWN["cat"][:2]]
    assert segmenter.with_config(max_objects=1).prompt(maps).scores.tolist() == pytest.approx(
        [0.9, 0.95]
    )
    few = segmenter.with_config(point_threshold=0.2).prompt(maps)
    assert few.scores.tolist() == pytest.approx([0.9, 0.6, 0.3, 0.95])


def test_prompts_of_several_images_in_the_order_of_the_proposals():
    boxes = torch.arange(24.0).reshape(6, 4)
    score = torch.tensor([0.2, 0.9, 0.8, 0.5, 0.4, 0.7])
    proposals = Proposals(boxes, score, torch.tensor([1, 1, 0, 0, 1, 1]), (3, 0, 3), ((9, 9),) * 3)
    present = torch.tensor([[True, True], [True, True], [False, True]])
    prompts = proposal_prompts(proposals, present, 0.5, 8)
    assert prompts.scores.tolist() == pytest.approx([0.9, 0.8, 0.4, 0.7])
    assert prompts.counts == (2, 0, 2)
    assert prompts.boxes.tolist() == boxes[[1, 2, 4, 5]].tolist()
    assert prompts.label_index.tolist() == [1, 0, 1, 1]
    assert proposal_prompts(proposals, present, 0.5, 1).scores.tolist() == pytest.approx(
        [0.9, 0.8, 0.7]
    )
    equal = Proposals(boxes[:3], torch.ones(3), torch.zeros(3).long(), (3,), ((9, 9),))
    first = proposal_prompts(equal, torch.tensor([[True]]), 0.5, 2)
    assert first.boxes.tolist() == boxes[:2].tolist()


def test_a_box_that_a_distractor_beats():
    locator = Boxes(cat=[(10, 8, 40, 30, 0.5)], wolf=[(12, 8, 40, 30, 0.6)])
    result = small(locator)(noise(), ["cat"], distractors=["wolf"])
    assert result.absent[0].reason == "a distractor scores higher at its peak"


def test_what_a_person_sees_of_a_box():
    result = small(Boxes(**KNOWN), min_share=0.0)(noise(), ["cat", "dog"])
    corners = {tuple(point[:2]) for a in result.everything for point in a.points}
    assert corners <= {(10, 8), (40, 30), (50, 8), (60, 40)}
    assert all([p[2] for p in a.points] == [2, 3] for a in result.everything)
    (absent,) = [a for a in result.absent if a.label == "dog"]
    assert absent.reason == "its highest score 0.000 is below the threshold 0.1"
    assert result.everything, "the small models' masks have pixels"


def test_masks_that_are_there_already_need_no_sam():
    locator = Boxes(cat=KNOWN["cat"][:1])
    logits = torch.full((1, 1, 32, 32), -5.0)
    logits[:, :, 4:10, 6:12] = 5.0
    locator.candidates = Candidates(logits, torch.tensor([[0.8]]))
    segmenter = small(locator)
    segmenter.sam.encode_image = None  # type: ignore[assignment]  # never called
    result = segmenter(Image(np.zeros((128, 128, 3), np.uint8), "x.png"), ["cat"])
    mask = decode_rle(result.everything[0].rle)
    assert iou(mask, np.pad(np.ones((24, 24), bool), ((16, 88), (24, 80)))) > 0.9


def test_boxes_as_maps_agree_with_a_loop():
    sizes = ((40, 80), (30, 30))
    proposals = Proposals(
        torch.tensor([[8.0, 4, 33, 21], [20, 10, 70, 38], [3.3, 3.3, 3.4, 3.4], [0, 0, 30, 30]]),
        torch.tensor([0.9, 0.4, 0.7, 0.2]),
        torch.tensor([1, 1, 0, 1]),
        (2, 2),
        sizes,
    )
    maps = box_maps(proposals, 3)
    expected = np.zeros(maps.shape, np.float32)
    for image, box, score, label in zip(
        proposals.image_index, proposals.boxes, proposals.score, proposals.label_index, strict=True
    ):
        high, wide = sizes[int(image)]
        x0, y0, x1, y1 = box.tolist()
        for row in range(64):
            for col in range(64):
                x, y = (col + 0.5) * wide / 64, (row + 0.5) * high / 64
                left = int((x0 + x1) / 2 * 64 / wide)
                top = int((y0 + y1) / 2 * 64 / high)
                covered = (x0 < x < x1 or col == left) and (y0 < y < y1 or row == top)
                fall = 1 - 0.01 * max(abs(col - left), abs(row - top)) / 64
                cell = expected[int(image), int(label), row, col]
                if covered:
                    expected[int(image), int(label), row, col] = max(cell, float(score) * fall)
    assert np.allclose(maps.numpy(), expected, atol=1e-6)
    assert float(maps[0, 1].max()) == pytest.approx(0.9)
    assert np.count_nonzero(maps[1, 0]) == 1, "a box without a cell's centre has one cell"
    nothing = (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    assert not box_maps(proposals_of([nothing], ((9, 9),)), 2).any()


def test_the_fit_of_a_box_agrees_with_a_loop():
    torch.manual_seed(0)
    inside = torch.zeros(3, 2, 20, 30, dtype=torch.bool)
    inside[0, 0, 3:9, 4:14] = True
    inside[0, 1, 0:20, 0:30] = True
    inside[1, 0, 5, 5] = True
    inside[2, 1] = torch.rand(20, 30) > 0.99
    boxes = torch.tensor([[4.0, 3, 14, 9], [2, 2, 10, 10], [-3, -3, 12, 40]])
    fit = box_fit(inside, boxes)
    assert float(fit[0, 0]) == 1
    for prompt in range(3):
        for mask in range(2):
            ys, xs = np.nonzero(inside[prompt, mask].numpy())
            if not len(ys):
                assert float(fit[prompt, mask]) == 0
                continue
            a = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            b = boxes[prompt].tolist()
            wide = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
            high = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
            areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
            expected = wide * high / (sum(areas) - wide * high)
            assert float(fit[prompt, mask]) == pytest.approx(expected, rel=1e-5)


def test_one_mask_a_label_is_refused():
    wanted = "boxes finds objects one by one, so one mask a label is not possible; leave --one-mask"
    with pytest.raises(ConfigError, match=wanted):
        small(Boxes(), prompts="label")


def test_what_needs_clip_says_so():
    segmenter = small(Planted(slice(2, 5), slice(2, 5)))
    wanted = "expected a segmenter with a CLIP, but it is another model that finds the labels"
    with pytest.raises(ConfigError, match=wanted):
        _ = segmenter.clip
    with pytest.raises(ConfigError, match=wanted):
        segmenter.encode([noise()]).tokens(Config().method)
    with pytest.raises(
        ConfigError, match="labels that are found on CLIP's maps, but planted finds"
    ):
        explain(segmenter, noise(), ["cat"], "cat")
    with pytest.raises(ConfigError, match=wanted):
        Segmenter(None, segmenter.sam)
    with pytest.raises(ConfigError, match="locator must be an object with name, resolution"):
        as_locator(None, "boxes")
    with pytest.raises(ConfigError, match="no method is called 'glip'; choose one of raw, "):
        checked_method("glip")
    assert isinstance(small_segmenter().locator, ClipLocator)
    assert isinstance(Boxes(), Locator)


def test_another_method_of_the_same_models(tiny):
    assert with_method(tiny, "raw").config.method.name == "raw"
    assert with_method(tiny, "raw").config.presence_threshold == tiny.config.presence_threshold
    locator = Planted(slice(2, 5), slice(2, 5))
    assert with_method(tiny, locator).locator is locator
    with pytest.raises(ConfigError, match="expected a segmenter with a CLIP"):
        with_method(with_method(tiny, locator), "raw")
    own = clip2sam.load(sam=tiny.sam.sam, method=locator, config=Config(grid=5))
    assert own.locator is locator
    assert own.config.grid == 5


def test_a_run_with_boxes_goes_on_and_knows_its_locator(tmp_path):
    write_images(tmp_path / "in", 5)
    locator = Boxes(**KNOWN)
    for name in ("whole", "parts"):
        summary = label_dataset(
            tmp_path / "in",
            ["cat", "dog"],
            tmp_path / name,
            segmenter=small(locator),
            batch_size=3 if name == "whole" else 1,
        )
        assert summary.failed == 0
    texts = [(tmp_path / n / "annotations.json").read_bytes() for n in ("whole", "parts")]
    documents = [json.loads(text)["annotations"] for text in texts]
    assert documents[0] == documents[1]
    assert all([p[2] for p in a["prompt"]] == [2, 3] for a in documents[0])
    with pytest.raises(clip2sam.RunError, match=r"engine\.locator was 'boxes', is now 'planted'"):
        label_dataset(
            tmp_path / "in",
            ["cat", "dog"],
            tmp_path / "whole",
            segmenter=small(Planted(slice(2, 5), slice(2, 5))),
        )


def test_boxes_in_tiles():
    """Each view has its boxes in its own pixels; they come out in those of the image."""
    image = noise()
    result = small(Boxes(**KNOWN), tile=64, min_share=0.0)(image, ["cat"])
    height, width = image.size
    for annotation in result.everything:
        (x0, y0, _), (x1, y1, _) = annotation.points
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height


def test_without_feature_surgery_scores_are_cosines(tiny):
    drawn = scene(5)
    plain = tiny.with_config(feature_surgery=False)
    features, labels = plain.encode([Image(drawn.pixels, "x.png")]), as_label_set(["star", "heart"])
    maps = plain.locate(features, labels)
    tokens, text = features.tokens(Config().method), plain.clip.encode_labels(labels)
    patches = tokens.tokens[0, 1:].reshape(tokens.rows, tokens.cols, -1)
    expected = torch.einsum("rcd,ld->lrc", patches, text)
    assert torch.allclose(maps.raw[0], expected, atol=1e-6)
    more = plain.locate(features, as_label_set(["star", "heart", "moon"]))
    assert torch.allclose(more.raw[0, :2], maps.raw[0], atol=1e-6), "labels don't interact"
    terms = plain.surgery_terms(features, labels)
    assert not terms.redundant.any()
