"""Tiles: windows of an image, and one result made of what they show."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import clip2sam
from clip2sam.analysis.bench import Bench
from clip2sam.analysis.explain import explain, explain_caption
from clip2sam.coco.rle import decode_rle, encode_mask
from clip2sam.config import Config
from clip2sam.data.labels import as_label_set
from clip2sam.labelling.engine import SegmenterEngine, predict_within_memory
from clip2sam.labelling.run import label_dataset
from clip2sam.pipeline import Segmenter
from clip2sam.result import Found
from clip2sam.tiles import (
    VIEWS_AT_ONCE,
    Window,
    cost,
    merged,
    views,
    windows,
)
from clip2sam.tiny.scenes import scene
from tests.labelling_fakes import small_segmenter, write_images
from tests.test_pipeline import noise, same

TILED = {"tile": 64, "min_share": 0.0}


# -- windows


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    side=st.integers(32, 400),
    overlap=st.floats(0, 0.9),
    most=st.integers(1, 9),
)
def test_windows_cover_the_image_and_no_more(size, side, overlap, most):
    """Flush with all borders, no more than asked for a side, and as near as asked."""
    found = windows(size, side, overlap, most)
    for length, starts, extents in (
        (size[0], {w.top for w in found}, {w.height for w in found}),
        (size[1], {w.left for w in found}, {w.width for w in found}),
    ):
        (extent,) = extents
        ordered = sorted(starts)
        assert ordered[0] == 0
        assert ordered[-1] + extent == length
        assert len(ordered) <= most
        gaps = np.diff(ordered)
        assert (gaps > 0).all()
        assert (gaps <= extent * (1 - overlap) + 1).all(), "they overlap, but for rounding"
    assert len(found) == len({w.top for w in found}) * len({w.left for w in found})
    assert len(set(found)) == len(found)


def test_windows_of_a_known_image():
    found = windows((448, 448), 224, 0.5, 8)
    assert [(w.top, w.left) for w in found] == [
        (y, x) for y in (0, 112, 224) for x in (0, 112, 224)
    ]
    assert windows((100, 1000), 400, 0.0, 2) == (Window(0, 0, 100, 500), Window(0, 500, 100, 500))


@pytest.mark.parametrize(
    ("tile", "size", "count"),
    [
        ("off", (5000, 5000), 1),
        ("auto", (224, 336), 1),
        ("auto", (224, 337), 4),
        ("auto", (5000, 5000), 10),
        (224, (224, 224), 1),
        (224, (225, 224), 3),
        (32, (5000, 5000), 64 * 64 + 1),
    ],
)
def test_when_an_image_is_cut(tile, size, count):
    found = views(size, Config(tile=tile), 224)
    assert found[0] == Window(0, 0, *size)
    assert len(found) == count


def test_a_window_shares_the_images_pixels():
    image = noise(90, 130)
    part = Window(10, 30, 20, 40).of(image)
    assert part.size == (20, 40)
    assert np.shares_memory(part.pixels, image.pixels)
    assert (part.pixels == image.pixels[10:30, 30:70]).all()
    assert part.origin == image.origin


def test_the_cost_is_said():
    assert cost(Config(tile="auto"), 224) == (
        "tiles: an image of 1920 x 1080 pixels goes through the models as 7 views, itself and "
        "windows of up to 960 pixels, and takes about 7 times as long"
    )


# -- what comes together

LABELS = as_label_set(["cat", "dog"])
SIZE = (100, 200)
VIEWS = (
    Window(0, 0, 100, 200),
    Window(0, 0, 100, 100),
    Window(0, 50, 100, 100),
    Window(0, 100, 100, 100),
)


def rectangle(size, top, left, bottom, right):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return encode_mask(mask)


def found(window: Window, *masks, presence=(1.0, 1.0), beaten=(False, False), peak=None) -> Found:
    """What a view shows: masks as (label, box in the image's pixels: top, left, bottom, right,
    score)."""
    maps = np.zeros((2, 4, 4), np.float32)
    maps[:, 1, 2] = presence
    shift = np.array([window.top, window.left, window.top, window.left])
    boxes = [np.array(box) - shift for _, box, _ in masks]
    size = (window.height, window.width)
    return Found(
        LABELS,
        tuple(rectangle(size, *box) for box in boxes),
        np.array([label for label, _, _ in masks], np.int64),
        *(np.array([score for _, _, score in masks], np.float32) for _ in range(3)),
        points=tuple(np.array([[b[1] + 0.5, b[0] + 0.5, 1]], np.float32) for b in boxes),
        presence=np.array(presence, np.float32),
        beaten=np.array(beaten),
        present=np.array(presence, np.float32) >= 0.1,
        maps=maps,
        grids=maps,
    )


def together(*parts: Found, **changes) -> Found:
    return merged(SIZE, VIEWS, parts, Config(tile=100, grid=4, **changes))


def boxes(result: Found) -> list[tuple[int, list[int]]]:
    """The label and the box of each mask."""
    places = [np.argwhere(decode_rle(rle)) for rle in result.rles]
    return [
        (int(n), [*p.min(axis=0).tolist(), *(p.max(axis=0) + 1).tolist()])
        for n, p in zip(result.label_index, places, strict=True)
    ]


def test_an_object_in_two_windows_comes_out_once_and_whole():
    """At the first window's border: cut there, whole in the second one, and small in the image."""
    whole = [40, 80, 60, 110]
    result = together(
        found(VIEWS[0], (0, [42, 82, 60, 110], 0.99)),
        found(VIEWS[1], (0, [40, 80, 60, 100], 0.9)),
        found(VIEWS[2], (0, whole, 0.6)),
        found(VIEWS[3], (0, [40, 100, 60, 110], 0.8)),
    )
    assert boxes(result) == [(0, whole)]
    assert result.score == pytest.approx([0.6])
    assert result.points[0].tolist() == [[80.5, 40.5, 1]]


def test_the_better_of_two_windows_stays_and_labels_dont_compete():
    box, part = [30, 60, 60, 90], [30, 60, 44, 90]  # the part lies within the box
    result = together(
        found(VIEWS[0]),
        found(VIEWS[1], (0, box, 0.7), (1, box, 0.2)),
        found(VIEWS[2], (0, part, 0.8)),
        found(VIEWS[3]),
    )
    assert boxes(result) == [(1, box), (0, part)]


def test_a_large_object_is_that_of_the_whole_image():
    large = [5, 10, 95, 190]
    result = together(
        found(VIEWS[0], (0, large, 0.5)),
        found(VIEWS[1], (0, [5, 10, 95, 100], 0.9)),
        found(VIEWS[2], (0, [5, 50, 95, 150], 0.9)),
        found(VIEWS[3]),
    )
    assert boxes(result) == [(0, large)]


def test_a_border_of_the_image_cuts_nothing():
    corners = [[0, 0, 20, 20], [80, 180, 100, 200]]
    result = together(
        found(VIEWS[0]),
        found(VIEWS[1], (0, corners[0], 0.9)),
        found(VIEWS[2]),
        found(VIEWS[3], (0, corners[1], 0.9)),
    )
    assert boxes(result) == [(0, box) for box in corners]


def test_at_most_so_many_of_a_label():
    masks = [(0, [20 * i, 60, 20 * i + 10, 70], 0.5 + i / 10) for i in range(4)]
    empty = [found(window) for window in VIEWS]
    result = together(empty[0], found(VIEWS[1], *masks), *empty[2:], max_objects=2)
    assert boxes(result) == [(0, list(masks[i][1])) for i in (2, 3)]


def test_presence_is_the_best_views_and_counts_less_among_many():
    """Lowered by 1 + .1 * log2(4). Where a distractor wins, another view may have the label."""
    result = together(
        found(VIEWS[0], presence=(0.9, 0.3), beaten=(True, True)),
        found(VIEWS[1], presence=(0.6, 0.06), beaten=(False, True)),
        found(VIEWS[2], presence=(0.24, 0.03), beaten=(False, True)),
        found(VIEWS[3], presence=(0.06, 0.03), beaten=(False, True)),
    )
    assert result.presence == pytest.approx([0.5, 0.25])
    assert result.beaten.tolist() == [False, True]
    assert result.present.tolist() == [True, False]
    assert result.maps.max(axis=(1, 2)) == pytest.approx([0.9, 0.3]), "raw scores"


def test_a_mask_of_a_view_below_the_threshold_is_left_out():
    box = [30, 60, 60, 90]
    parts = [found(window) for window in VIEWS]
    parts[1] = found(VIEWS[1], (0, box, 0.9), (1, box, 0.9), presence=(0.11, 0.13))
    assert boxes(together(*parts)) == [(1, box)]
    assert len(boxes(together(*parts, presence_threshold=None))) == 2


def test_maps_are_put_together_where_they_belong():
    parts = [found(window, presence=(0.0, 0.0)) for window in VIEWS]
    parts[3] = found(VIEWS[3], presence=(1.0, 0.5))  # in its row 1 and column 2 of 4
    maps = together(*parts).maps
    assert maps.shape == (2, 4, 8)
    assert np.argwhere(maps[0]).tolist() == [[1, 6]]
    assert maps[:, 1, 6].tolist() == [1.0, 0.5]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_windows_mask_is_the_same_pixels_in_the_image(data):
    height, width = data.draw(st.integers(40, 90)), data.draw(st.integers(40, 90))
    window = data.draw(st.sampled_from(windows((height, width), 40, 0.5, 8)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    mask = rng.random((window.height, window.width)) < rng.random()
    whole = np.zeros((height, width), bool)
    whole[window.top : window.top + window.height, window.left : window.left + window.width] = mask
    assert window.placed(encode_mask(mask), (height, width)) == encode_mask(whole)


# -- the stages


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return small_segmenter(**TILED)


def test_it_is_off_by_default(segmenter):
    assert Config().tile == "off"
    assert len(segmenter.with_config(tile="off").encode([noise(500, 500)]).images) == 1


def test_a_batch_gives_what_each_image_gives_alone(segmenter):
    images = [noise(90, 130), noise(64, 64, seed=1), noise(40, 150, seed=2)]
    labels = as_label_set(["cat", "dog", "tree"], distractors=["sky"])
    features = segmenter.encode(images)
    assert [len(own) for own in features.windows] == [9, 1, 5]
    cut = [w.of(i) for i, own in zip(images, features.windows, strict=True) for w in own]
    for view, part in zip(features.images, cut, strict=True):
        np.testing.assert_array_equal(view.pixels, part.pixels)
    in_parts = segmenter.segment(features, labels)
    at_once = segmenter.results(features, segmenter.predict(features, labels))
    assert sum(len(result.labels) for result in in_parts) > 1
    for image, one, other in zip(images, in_parts, at_once, strict=True):
        alone = segmenter(image, labels)
        assert same(alone, one)
        assert same(alone, other)
        assert one.masks.shape[1:] == image.size
        assert one.image is image
    for (scores, beaten), result in zip(
        segmenter.presence(features, labels), in_parts, strict=True
    ):
        assert scores[:3].tolist() == result.presence.tolist()
        assert beaten[:3].tolist() == result.beaten.tolist()


def test_an_image_that_is_one_view_is_as_without_tiles(segmenter):
    image, labels = noise(60, 64), ["cat", "dog", "tree"]
    assert same(segmenter(image, labels), segmenter.with_config(tile="off")(image, labels))


def test_a_huge_image_takes_few_views_at_a_time(segmenter, monkeypatch):
    """No encoder ever has more, and what they made is not kept."""
    given: list[int] = []
    for model in (segmenter.clip, segmenter.sam):
        real = model.preprocess
        monkeypatch.setattr(
            model, "preprocess", lambda p, real=real: given.append(len(p)) or real(p)
        )
    features = segmenter.with_config(tile=32).encode([noise(120, 160)])
    total = len(features.images)
    assert total > 3 * VIEWS_AT_ONCE
    segmenter.segment(features, as_label_set(["cat", "dog"]))
    assert max(given) <= VIEWS_AT_ONCE
    assert sum(given) >= total
    given.clear()
    segmenter.locate(next(features.parts()), as_label_set(["cat"]))
    assert given == [VIEWS_AT_ONCE], "computed anew: they were given back"


def test_views_without_a_label_cost_no_sam(segmenter, monkeypatch):
    absent = segmenter.with_config(presence_threshold=1e9)
    monkeypatch.setattr(segmenter.sam, "encode_image", None)  # never called
    result = absent(noise(), ["cat", "dog"])
    assert len(result.absent) == 2
    assert "is below the threshold" in result.absent[0].reason


def test_a_small_object_in_a_large_image_is_found():
    """By the tiny models, at the border of two windows: only with tiles, once and whole."""
    drawn = scene(11, (448, 448), objects=(1, 1), radius=(14.0, 15.0))
    (item,) = drawn.objects
    xs = np.argwhere(item.mask)[:, 1]
    shift = 224 - int(xs.mean())  # to the middle: two windows end and begin there
    pixels, mask = np.roll(drawn.pixels, shift, axis=1), np.roll(item.mask, shift, axis=1)
    tiny = clip2sam.load("tiny", device="cpu")
    label = f"{item.colour} {item.shape}"
    result = tiny.with_config(tile="auto")(pixels, [label])
    assert result.labels == [label]
    assert (result.masks[0] & mask).sum() / (result.masks[0] | mask).sum() > 0.8
    x, y, _ = result.points[0][0]
    assert mask[int(y), int(x)]


def test_explanations_look_at_the_whole_image(segmenter, monkeypatch):
    given: list[int] = []
    real = segmenter.clip.preprocess
    monkeypatch.setattr(segmenter.clip, "preprocess", lambda p: given.append(len(p)) or real(p))
    explain(segmenter, noise(), ["cat", "dog"], "cat")
    explain_caption(segmenter, noise(), "a cat")
    Bench(segmenter, noise()).run(as_label_set(["cat", "dog"]))
    assert given == [1, 1, 1]


# -- a run over a dataset


def test_a_run_that_was_interrupted_continues_to_the_same_bytes(segmenter, tmp_path):
    images = write_images(tmp_path / "images", 4, side=90)
    once, twice = tmp_path / "once", tmp_path / "twice"
    label_dataset(images, ["cat", "dog"], once, segmenter=segmenter, batch_size=2, readers=1)

    class Stop(Exception):
        pass

    seen = []

    def stop(record):
        seen.append(record)
        if len(seen) == 2:
            raise Stop

    with pytest.raises(Stop):
        label_dataset(
            images,
            ["cat", "dog"],
            twice,
            segmenter=segmenter,
            batch_size=2,
            readers=1,
            on_image=stop,
        )
    label_dataset(images, ["cat", "dog"], twice, segmenter=segmenter, batch_size=2, readers=1)
    for name in ("annotations.json", "results.json"):
        assert (once / name).read_bytes() == (twice / name).read_bytes()
    assert len(json.loads((once / "annotations.json").read_text())["annotations"]) > 2


def test_an_engine_has_what_the_segmenter_has(segmenter):
    labels = as_label_set(["cat", "dog"])
    engine = SegmenterEngine(segmenter, labels)
    images = [noise(90, 130), noise(50, 50, seed=1)]
    outcomes = predict_within_memory(engine, [engine.prepare(i) for i in images], engine.predict)
    for image, outcome in zip(images, outcomes, strict=True):
        result = segmenter(image, labels)
        assert engine.finish(image, outcome) == (
            result.record.presence,
            result.record.beaten,
            result.everything,
        )


def test_memory_that_runs_out_halves_the_batch(segmenter, monkeypatch):
    engine = SegmenterEngine(segmenter, as_label_set(["cat", "dog"]))
    engine.group = 4
    real, sizes = segmenter.encode, []

    def encode(images: Sequence, group: int = 1):
        sizes.append((len(images), group))
        if len(images) > 1:
            raise torch.OutOfMemoryError
        return real(images, group=group)

    monkeypatch.setattr(segmenter, "encode", encode)
    prepared = [engine.prepare(noise(90, 130, seed=i)) for i in range(2)]
    assert len(predict_within_memory(engine, prepared, engine.predict)) == 2
    assert sizes == [(2, 4), (1, 1), (1, 1)]
