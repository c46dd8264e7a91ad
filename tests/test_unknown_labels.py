"""Labels that the embedded models don't know, and the preset of a command that names none."""

import json
import warnings
from pathlib import Path

import pytest
from PIL import Image as PILImage

import clip2sam
from clip2sam.cli.presets import check_known, chosen_preset
from clip2sam.data.labels import as_label_set
from clip2sam.errors import LabelError, UnknownLabelWarning
from clip2sam.labelling.run import label_dataset
from clip2sam.models.files import FileStatus
from clip2sam.tiny.models import known_tokens, tiny_tokenizer
from clip2sam.tiny.scenes import KINDS, all_labels, scene
from clip2sam.tiny.vocabulary import DRAWN_WORDS, OTHER_WORDS, is_known, listed, unknown_names


@pytest.fixture
def run(monkeypatch, command_line, tmp_path):
    """The command line, called beside street.png."""
    monkeypatch.chdir(tmp_path)
    PILImage.fromarray(scene(5, 96).pixels).save("street.png")
    return command_line


@pytest.fixture
def without_models(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("models were loaded")

    monkeypatch.setattr("clip2sam.models.loading.load", refuse)


def test_the_words_have_tokens_of_their_own():
    known, encode = set(known_tokens()), tiny_tokenizer().encode
    assert all(set(encode(word)) <= known for word in DRAWN_WORDS | OTHER_WORDS)
    for label in ("person", "car", "book", "circles", "red car"):
        assert not set(encode(label)) <= known
        assert not is_known(label)


def test_which_texts_are_known():
    assert all(is_known(label) for kind in KINDS for label in all_labels(kind))
    assert all(map(is_known, ("red dotted circle", "The Red Circle", "a small star", "object")))
    assert not any(map(is_known, ("", "a", "photo", "red toy", "dog")))


def test_parts_prompts_and_distractors_count():
    labels = as_label_set(
        {"Ding": ["thing", "gadget"], "Tier": ["cat", "dog"]}, distractors=["sky", "star"]
    )
    assert unknown_names(labels.classes) == ("Tier", "sky")
    assert unknown_names(as_label_set(["dog+red circle+dog bed"]).classes) == ("dog", "dog bed")


def test_the_message_names_five():
    names = ["one", "two", "three", "four", "five", "six", "seven"]
    assert listed(names) == "'one', 'two', 'three', 'four', 'five' and 2 more"
    assert listed(names[:5]) == "'one', 'two', 'three', 'four', 'five'"


@pytest.mark.parametrize(
    "command",
    [
        ("segment", "street.png"),
        ("classify", "street.png"),
        ("dense", "street.png"),
        ("label", "street.png"),
        ("explain", "street.png"),
        ("tune", "street.png"),
        ("evaluate", "--dataset", "coco.json"),
    ],
    ids=lambda command: command[0],
)
def test_unknown_labels_are_refused_before_models_are_loaded(run, without_models, command):
    code, _, errors = run(*command, "--label", "red circle", "--label", "person")
    assert code == 2
    assert errors == (
        "error: the preset tiny doesn't know 'person': it knows drawn shapes only, such as 'red "
        "circle'; for photographs use --preset mobile, vit-b, vit-l or vit-h, or go on all the "
        "same with --allow-unknown\n"
    )
    assert [p.name for p in Path().iterdir()] == ["street.png"]


@pytest.mark.parametrize("command", [("evaluate", "--dataset"), ("tune",)])
def test_a_datasets_categories_are_labels(run, without_models, command):
    rows = {
        "images": [{"id": 1, "file_name": "street.png", "width": 96, "height": 96}],
        "annotations": [],
        "categories": [{"id": 1, "name": "star"}, {"id": 2, "name": "bus"}],
    }
    Path("coco.json").write_text(json.dumps(rows))
    code, _, errors = run(*command, "coco.json")
    assert code == 2
    assert "the preset tiny doesn't know 'bus':" in errors


@pytest.mark.parametrize(
    "command",
    [
        ("label",),
        ("label", "--quiet"),
        ("label", "--json"),
        ("segment",),
        ("dense",),
        ("classify",),
    ],
    ids=" ".join,
)
def test_who_means_it_goes_on_and_is_told_before_and_after(run, command):
    arguments = (*command, "street.png", "--label", "person", "--label", "star")
    code, _, errors = run(*arguments, "--allow-unknown", "--output", "out")
    assert code == 0
    said = [line for line in errors.splitlines() if line.startswith("warning: ")]
    assert said == [
        "warning: the preset tiny doesn't know 'person': it knows drawn shapes only, such as 'red "
        "circle', so what it says about them means nothing",
        "warning: the embedded models don't know 1 of the labels ('person'): what was found of "
        "them means nothing",
    ]
    if command[0] == "label":
        assert json.loads(Path("out/summary.json").read_text())["unknown_labels"] == ["person"]


@pytest.mark.parametrize("command", ["label", "segment", "dense", "classify"])
def test_nothing_is_said_of_labels_that_are_known(run, command):
    code, printed, errors = run(command, "street.png", "--label", "star", "--output", "out")
    assert (code, "know" in printed + errors) == (0, False)


SAID = (
    "the preset tiny doesn't know {}: it knows drawn shapes only, such as 'red circle', so what it "
    "says about them means nothing; for photographs load vit-b, vit-l or vit-h"
)


def test_in_python_a_warning_names_them_once_for_each_set():
    segmenter, pixels = clip2sam.load("tiny"), scene(5, 96).pixels
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for labels in (["person"], ["star"], ["person", "star"], ["person", "car+star"], ["car"]):
            segmenter(pixels, labels)
            segmenter(pixels, labels)
    names = ("'person'", "'person', 'car'", "'car'")
    assert [str(one.message) for one in said] == [SAID.format(name) for name in names]
    assert {one.category for one in said} == {clip2sam.UnknownLabelWarning}


def test_a_run_in_python_warns_before_its_first_image(tmp_path):
    PILImage.fromarray(scene(5, 96).pixels).save(tmp_path / "street.png")
    begun = []
    with pytest.raises(UnknownLabelWarning, match="doesn't know 'person': it"):
        label_dataset(tmp_path / "street.png", ["person"], tmp_path / "run", on_start=begun.append)
    assert not begun


def test_own_models_may_know_any_word():
    tiny = clip2sam.load("tiny")
    own = clip2sam.load(clip=tiny.clip.model, tokenizer=tiny.clip.tokenizer, sam=tiny.sam.sam)
    own(scene(5, 96).pixels, ["person"])


def test_other_presets_and_trained_methods_know_more():
    classes = as_label_set(["person"]).classes
    check_known("vit-b", classes)
    check_known("tiny", classes, method="owlv2")
    with pytest.raises(LabelError, match="doesn't know 'person'"):
        check_known("tiny", classes, method="regions")


# The preset


@pytest.fixture
def present(monkeypatch):
    """Set the state of the files of presets: those that are not named are missing."""

    def set_states(**states: str) -> None:
        def status(_folder, presets) -> list[FileStatus]:
            (name,) = presets
            state = states.get(name.replace("-", "_"), "missing")
            place = Path("clip.pt")
            clip = FileStatus("clip", "c", (name,), place, "present", 1, None, "", "")
            sam = FileStatus("sam", "s", (name,), place, state, 1, None, "", "")  # type: ignore[arg-type]
            return [clip, sam]

        monkeypatch.setattr("clip2sam.models.files.status", status)

    return set_states


def test_the_largest_preset_that_is_complete_is_taken(present, capsys):
    present()
    assert (chosen_preset(None), capsys.readouterr().err) == ("tiny", "")
    present(vit_h="damaged", vit_l="present", vit_b="verified")
    assert chosen_preset(None) == "vit-l"
    assert capsys.readouterr().err == (
        "preset vit-l: its weights are here and no --preset is given\n"
    )
    assert (chosen_preset("tiny"), capsys.readouterr().err) == ("tiny", "")


def test_a_run_goes_on_with_its_own_preset(run, present):
    arguments = ("label", "street.png", "--label", "star", "--output", "run")
    assert run(*arguments)[0] == 0
    present(vit_h="verified")
    code, _, errors = run(*arguments)
    assert (code, "preset vit-h" in errors) == (0, False)


def test_drawn_scenes_are_judged_with_tiny(run, present):
    present(vit_h="verified")
    code, _, errors = run("evaluate", "--scenes", 1)
    assert (code, "preset vit-h" in errors) == (0, False)
