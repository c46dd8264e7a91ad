"""Scenes: the same seed gives the same scene, and what is said of a scene is true of its pixels."""

import itertools
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image as PILImage
from pycocotools.coco import COCO

from clip2sam.coco.rle import decode_rle
from clip2sam.errors import ConfigError, LabelError
from clip2sam.tiny.dataset import write_scenes
from clip2sam.tiny.scenes import (
    COLOURS,
    KINDS,
    SCENE_KINDS,
    SHAPES,
    TEXTURES,
    all_labels,
    crowd_scene,
    instance_masks,
    is_label,
    label_mask,
    large_scene,
    matches,
    requested_labels,
    scene,
    scene_ground_truth,
    several_scene,
    split_scene,
    split_seed,
    true_labels,
)

VALIDATION = [split_seed("validation", i) for i in range(40)]


def test_a_seed_is_a_scene():
    first, again, other = scene(5), scene(5), scene(6)
    assert np.array_equal(first.pixels, again.pixels)
    for one, same in zip(first.objects, again.objects, strict=True):
        assert (one.shape, one.colour, one.texture) == (same.shape, same.colour, same.texture)
        assert np.array_equal(one.mask, same.mask)
    assert not np.array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize(
    ("size", "expected"), [(224, (224, 224)), ((320, 480), (320, 480)), ((97, 64), (97, 64))]
)
def test_sizes(size, expected):
    for seed in range(6):
        image = scene(seed, size)
        assert image.pixels.shape == (*expected, 3)
        assert image.pixels.dtype == np.uint8
        assert image.size == expected
        assert all(o.mask.shape == expected and o.mask.any() for o in image.objects)


def test_larger_than_the_noise_that_is_kept():
    assert scene(1, (1040, 40)).pixels.shape == (1040, 40, 3)


@pytest.mark.parametrize(
    "wrong", [{"size": 31}, {"size": (64, 8)}, {"objects": (2, 1)}, {"radius": (30.0, 500.0)}]
)
def test_what_can_not_be_drawn(wrong):
    with pytest.raises(ConfigError, match="expected"):
        scene(1, **wrong)


def test_visible_masks_share_no_pixel():
    for seed in VALIDATION:
        image = scene(seed)
        assert (
            sum((o.mask.astype(int) for o in image.objects), np.zeros(image.size, int)).max() <= 1
        )


def test_masks_are_the_painted_pixels():
    """Painted objects are saturated, the background is muted: a threshold finds the mask."""
    overlaps = []
    for seed in range(200, 260):
        image = scene(seed, objects=(1, 1))
        item = image.objects[0]
        if item.texture != "solid" or item.colour not in (
            "red",
            "orange",
            "yellow",
            "cyan",
            "blue",
        ):
            continue
        pixels = cv2.blur(image.pixels, (3, 3)).astype(float)
        spread = pixels.max(axis=2) - pixels.min(axis=2)
        painted = spread > (np.median(spread[item.mask]) + np.median(spread[~item.mask])) / 2
        overlaps.append((painted & item.mask).sum() / (painted | item.mask).sum())
    assert len(overlaps) >= 6
    assert min(overlaps) > 0.85


def test_numbers_of_objects_and_twins():
    images = [scene(s) for s in VALIDATION]
    counts = {len(p.objects) for p in images}
    assert {0, 1, 5} <= counts <= set(range(7))
    assert any(len(instance_masks(p, x)) > 1 for p in images for x in all_labels("colour + shape"))
    seen = {w for p in images for o in p.objects for w in (o.shape, o.colour, o.texture)}
    assert seen == {*SHAPES, *COLOURS, *TEXTURES}


def test_splits_and_kinds_share_no_seed():
    last = {"plain": 699_999_999, "crowd": 99_999_999, "several": 99_999_999, "large": 99_999_999}
    ends = [
        (split_seed(split, 0, kind), split_seed(split, last[kind], kind))
        for split in ("train", "validation", "test")
        for kind in SCENE_KINDS
    ]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ends))
    assert [split_seed(s, 3) for s in ("train", "validation", "test")] == [
        3,
        1_000_000_003,
        2_000_000_003,
    ]
    with pytest.raises(ConfigError, match="'tests'"):
        split_seed("tests", 0)
    with pytest.raises(ConfigError, match="got 'crowds': use one of them"):
        split_seed("test", 0, "crowds")
    for kind, index in last.items():
        with pytest.raises(ConfigError, match=f"from 0 to {index}, got {index + 1}"):
            split_seed("train", index + 1, kind)


@pytest.mark.parametrize(
    ("seed", "ranges", "areas", "mean"),
    [
        (5, {}, [2253, 2191, 1226, 5336, 1185], 65.723),
        (1_000_000_003, {}, [3811], 57.883),
        (2_000_000_011, {}, [2725], 51.607),
        (7, {"size": (320, 480)}, [1730, 4545], 42.751),
        (
            12,
            {"objects": (5, 8), "radius": (15.0, 30.0)},
            [1078, 519, 554, 1154, 968, 641],
            69.297,
        ),
    ],
)
def test_plain_scenes_stay_the_same(seed, ranges, areas, mean):
    """Recorded when there were no other kinds: the shipped models are trained on these."""
    drawn = scene(seed, **ranges)
    assert [int(o.mask.sum()) for o in drawn.objects] == areas
    ramp = np.linspace(0, 1, drawn.pixels.size).reshape(drawn.pixels.shape)
    assert (drawn.pixels * ramp).mean() == pytest.approx(mean, abs=0.01)


def look(item):
    return item.shape, item.colour, item.texture


def most_alike(drawn):
    """The largest number of objects of one shape, colour and texture."""
    return max(Counter(look(o) for o in drawn.objects).values(), default=0)


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_every_kind_of_scene_is_its_seeds(kind):
    first, again = split_scene("test", 4, kind), split_scene("test", 4, kind)
    assert first.seed == split_seed("test", 4, kind)
    assert np.array_equal(first.pixels, again.pixels)
    assert all(
        look(a) == look(b) and np.array_equal(a.mask, b.mask)
        for a, b in zip(first.objects, again.objects, strict=True)
    )
    assert not np.array_equal(first.pixels, split_scene("test", 5, kind).pixels)


def test_crowds_hold_many_objects():
    counts = [len(split_scene("validation", i, "crowd").objects) for i in range(30)]
    assert (min(counts), max(counts)) == (5, 12)
    with pytest.raises(ConfigError, match="objects="):
        crowd_scene(1, objects=(4, 2))


def test_several_objects_look_alike():
    drawn = [split_scene("validation", i, "several") for i in range(30)]
    assert {most_alike(d) for d in drawn} == {2, 3, 4, 5}
    assert {len(d.objects) - most_alike(d) for d in drawn} == {0, 1, 2, 3}
    for one in drawn:
        repeated = max((look(o) for o in one.objects), key=[look(o) for o in one.objects].count)
        shape = [o.mask for o in one.objects if look(o) == repeated]
        assert len(instance_masks(one, f"{repeated[1]} {repeated[0]}")) >= len(shape)
    for wrong in ({"repeats": (3, 2)}, {"others": (-1, 2)}, {"radius": (0.1, 0.6)}):
        with pytest.raises(ConfigError, match=f"expected {next(iter(wrong))}="):
            several_scene(1, **wrong)


def test_half_of_the_repeated_objects_are_copies():
    """Copies have the hue of each other, others only the colour's name."""
    spreads = []
    for i in range(40):
        drawn = several_scene(i, repeats=(3, 3), others=(0, 0))
        hsv = cv2.cvtColor(drawn.pixels, cv2.COLOR_RGB2HSV)[..., 0].astype(float)
        hues = [np.median(hsv[o.mask]) for o in drawn.objects]
        if drawn.objects[0].texture == "solid" and drawn.objects[0].colour != "red":
            spreads.append(np.ptp(hues))
    alike = np.mean(np.array(spreads) <= 1)
    assert 0.25 < alike < 0.8


def test_large_scenes_hold_small_objects():
    drawn = [split_scene("validation", i, "large") for i in range(24)]
    sizes = {d.size for d in drawn}
    assert (448, 448) in sizes
    assert len(sizes) > 6
    assert any(height > width for height, width in sizes)
    assert any(height < width for height, width in sizes)
    assert all(448 <= side <= 896 for size in sizes for side in size)
    shares = [o.mask.mean() for d in drawn for o in d.objects]
    assert max(shares) < 0.021
    assert np.quantile(shares, 0.1) > 0.005
    assert np.quantile(shares, 0.9) > 0.014
    for wrong in ({"share": (0.02, 0.01)}, {"side": (9, 3)}, {"objects": (3, 1)}):
        with pytest.raises(ConfigError, match=f"expected {next(iter(wrong))}="):
            large_scene(1, **wrong)


def test_labels_are_true_of_what_they_name():
    item = next(o for s in VALIDATION for o in scene(s).objects if o.texture == "striped")
    assert matches(item, item.shape)
    assert matches(item, f"{item.colour} thing")
    assert matches(item, f"{item.colour} striped {item.shape}")
    assert not matches(item, f"dotted {item.shape}")
    assert not matches(item, "person")
    assert not matches(item, f"{item.shape} {item.colour}")


@pytest.mark.parametrize(
    ("label", "known"),
    [
        ("heart", True),
        ("red dotted star", True),
        ("red thing", True),
        ("star red", False),
        ("", False),
        ("cat", False),
    ],
)
def test_is_label(label, known):
    assert is_label(label) is known


def test_true_labels_and_masks_agree():
    for seed in VALIDATION[:15]:
        image = scene(seed)
        true = true_labels(image)
        for kind in KINDS:
            for label in all_labels(kind):
                mask = label_mask(image, label)
                assert mask.any() == (label in true[kind])
                assert mask.sum() == sum(m.sum() for m in instance_masks(image, label))


def test_all_labels():
    assert [len(all_labels(k)) for k in KINDS] == [10, 8, 30, 80]
    with pytest.raises(LabelError, match="'size'"):
        all_labels("size")


def test_requested_labels_are_mostly_absent_and_partly_hard():
    shared, absent = 0, 0
    for seed in VALIDATION:
        image = scene(seed)
        requested = requested_labels(image)
        assert requested == requested_labels(scene(seed))
        assert [len(requested[k]) for k in KINDS] == [5, 5, 5, 5]
        true = true_labels(image)
        words = {w for o in image.objects for w in (o.shape, o.colour, o.texture)}
        for kind in KINDS:
            assert len(set(requested[kind])) == 5
            assert len(set(requested[kind]) & set(true[kind])) == min(2, len(true[kind]))
            false = [x for x in requested[kind] if x not in true[kind]]
            absent += len(false)
            shared += sum(bool(words & set(x.split())) for x in false)
    assert absent > 10 * len(VALIDATION)
    assert shared > 0.15 * absent


def test_ground_truth_holds_absent_labels_too():
    image = next(p for p in map(scene, VALIDATION) if len(p.objects) > 2)
    truth = scene_ground_truth(image)
    assert len(truth) == 20
    assert [] in truth.values()
    item = image.objects[-1]
    alone = scene_ground_truth(image, [f"{item.colour} {item.shape}", "person"])
    assert any(np.array_equal(m, item.mask) for m in alone[f"{item.colour} {item.shape}"])
    assert alone["person"] == []


def test_a_dataset_on_disk(tmp_path):
    write_scenes(
        tmp_path, "validation", 4, labels=("heart", "red thing", "striped star"), size=(96, 160)
    )
    coco = COCO(str(tmp_path / "annotations.json"))
    assert [image["id"] for image in coco.dataset["images"]] == [1, 2, 3, 4]
    names = {c["id"]: c["name"] for c in coco.dataset["categories"]}
    assert list(names.values()) == ["heart", "red thing", "striped star"]
    for index, (key, record) in enumerate(sorted(coco.imgs.items())):
        image = scene(split_seed("validation", index), (96, 160))
        with PILImage.open(tmp_path / record["file_name"]) as stored:
            assert np.array_equal(np.asarray(stored), image.pixels)
        for name in names.values():
            found = [a for a in coco.imgToAnns[key] if names[a["category_id"]] == name]
            expected = instance_masks(image, name)
            assert len(found) == len(expected)
            for annotation, mask in zip(found, expected, strict=True):
                assert np.array_equal(decode_rle(annotation["segmentation"]), mask)
    assert coco.anns
