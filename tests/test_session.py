"""The explorer's state, without widgets: images, labels, points, accepted masks."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PILImage

import clip2sam
from clip2sam.analysis.session import Session
from clip2sam.clip import SurgeryCLIP
from clip2sam.data.images import Image
from clip2sam.data.labels import LabelClass, LabelSet
from clip2sam.errors import ImageError, LabelError
from clip2sam.pipeline import Segmenter
from clip2sam.sam import PromptSAM
from tests.models import small_clip, small_sam

LABELS = ["person", "traffic light"]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    config = clip2sam.Config(presence_threshold=-0.2)
    return Segmenter(SurgeryCLIP(small_clip()), PromptSAM(small_sam()), config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three images, one of them in a folder below."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png", "more/a.png"):
        pixels = random.integers(0, 256, (90, 130, 3), dtype=np.uint8)
        PILImage.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def session(segmenter, folder) -> Session:
    return Session(segmenter, folder, LABELS)


def test_several_images_are_a_folder_a_glob_or_a_list(segmenter, folder):
    every = ("a.png", "b.png", "more/a.png")
    paths = [folder / "more" / "a.png", str(folder / "a.png")]
    for images, names in (
        (folder, every),
        (str(folder / "*.png"), every[:2]),
        (paths, (every[0], every[2])),
        (tuple(paths[:1]), ("a.png",)),
    ):
        session = Session(segmenter, images, LABELS)
        found = []
        for i in range(session.count):
            session.open(i)
            found.append(session.name)
        assert tuple(found) == names


def test_a_single_image_is_what_the_segmenter_takes(segmenter, folder, tmp_path):
    pixels = np.asarray(PILImage.open(folder / "a.png"))
    link = tmp_path / "link.png"
    link.symlink_to(folder / "a.png")
    for image, name in (
        (folder / "a.png", "a.png"),
        (link, "link.png"),
        (pixels, "array"),
        (Image(pixels, "street.png"), "street.png"),
    ):
        session = Session(segmenter, image, LABELS)
        assert (session.count, session.name) == (1, name)
        np.testing.assert_array_equal(session.result.masks, segmenter(pixels, LABELS).masks)


def test_images_that_are_not_there(segmenter, folder, tmp_path):
    for images, message in (
        (tmp_path / "no.png", "no such file or folder"),
        (tmp_path, "no image found in"),
        ([folder / "a.png", np.zeros((9, 9, 3), np.uint8)], "several as a list of paths"),
        ([], "no image found in an empty list"),
    ):
        with pytest.raises(ImageError, match=message):
            Session(segmenter, images, LABELS)


def test_typed_labels_keep_what_is_known_of_them(segmenter, folder):
    person = LabelClass("person", ("person", "human"), presence_threshold=0.01)
    sky = LabelClass("sky", ("sky",), distractor=True)
    session = Session(segmenter, folder, LabelSet((person, sky), ("a {}",)))
    session.relabel("car ; person\n bus;")
    assert session.label_set == LabelSet(
        (LabelClass("car", ("car",)), person, LabelClass("bus", ("bus",)), sky), ("a {}",)
    )
    assert session.label == "person", "the selected one stays"
    session.relabel("sky; bus")
    assert session.label_set.classes[0] == LabelClass("sky", ("sky",))
    assert session.label == "sky"
    before = session.label_set
    for text, message in ((" ;\n; ", "no label is typed"), ("a; a", "given twice")):
        with pytest.raises(LabelError, match=message):
            session.relabel(text)
        assert session.label_set is before


def test_points_belong_to_their_image_and_label(session):
    session.click(60.0, 40.0, 1)
    session.open(1)
    assert session.bench.changed == {}
    session.label = LABELS[1]
    session.click(20.0, 20.0, 0)
    session.open(0)
    assert list(session.bench.changed) == [LABELS[0]]
    np.testing.assert_allclose(session.bench.changed[LABELS[0]][-1], [60, 40, 1])
    session.label = LABELS[0]
    session.forget()
    assert session.bench.changed == {}
    session.open(1)
    assert list(session.bench.changed) == [LABELS[1]]


def test_settings_go_from_image_to_image(session):
    session.set(grid=3)
    session.open(2)
    assert session.result.grids.shape[1:] == (3, 3)


def test_accepted_masks_of_several_images_are_one_dataset(session):
    session.open(2)
    session.label = LABELS[1]
    assert session.accept()
    session.open(0)
    assert session.accept()
    session.label = LABELS[0]
    assert session.accept()
    document = session.coco()
    assert [(i["id"], i["file_name"]) for i in document["images"]] == [
        (1, "a.png"),
        (3, "more/a.png"),
    ]
    assert [c["name"] for c in document["categories"]] == [LABELS[1], LABELS[0]]
    expected = {}
    for index in (0, 2):
        session.open(index)
        for name, score in zip(LABELS, session.result.record.presence, strict=True):
            expected[index + 1, name] = score
    names = {c["id"]: c["name"] for c in document["categories"]}
    found = {
        (a["image_id"], names[a["category_id"]]): a["presence"] for a in document["annotations"]
    }
    assert found == {key: expected[key] for key in ((1, LABELS[0]), (1, LABELS[1]), (3, LABELS[1]))}


def test_accepting_again_replaces_and_undo_takes_back(session):
    assert not session.undo()
    session.accept()
    first = session.accepted
    session.set(min_share=1.0)
    session.accept()
    (now,) = session.accepted
    assert len(now.record.annotations) == 1 < len(first[0].record.annotations)
    assert str(now) == f"person: 1 mask, score {now.record.annotations[0].score:.2f}, a.png"
    session.open(1)
    session.accept()
    assert len(session.accepted) == 2, "another image"
    session.remove(0)
    assert [a.record.file_name for a in session.accepted] == ["b.png"]
    for expected in (("a.png", "b.png"), ("a.png",)):
        assert session.undo()
        assert tuple(a.record.file_name for a in session.accepted) == expected
    assert session.undo()
    assert session.accepted == first
    assert session.undo()
    assert session.accepted == ()
    assert not session.undo()


def test_an_image_that_cannot_be_read_leaves_the_current_one(session):
    session.source = replace(session.source, keys=("a.png", "lost.png"))
    before = session.result
    with pytest.raises(ImageError, match=r"lost.png"):
        session.open(1)
    assert (session.result, session.index, session.name) == (before, 0, "a.png")
    session.click(60.0, 40.0, 1)
    assert session.result.image is before.image
