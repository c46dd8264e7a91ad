"""Labels come out as they were typed, and what can't be meant is refused with its place."""

import inspect
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip2sam.data.labels import LabelClass, LabelSet, as_label_set, labels_yaml, named
from clip2sam.errors import LabelError

unchecked = inspect.unwrap(
    as_label_set
)  # without the tests' own type checks, as a user's program runs it

FULL = """\
# what to look for
classes:
  - person
  - name: traffic light
    prompts: [traffic light, stoplight]
    presence_threshold: 0.1
    supercategory: street
  - name: Löwe 獅子
    prompts: lion
distractors: [sky, "road"]
templates: ["a photo of a {}.", "{}"]
"""
FULL_SET = LabelSet(
    (
        LabelClass("person", ("person",)),
        LabelClass("traffic light", ("traffic light", "stoplight"), 0.1, "street"),
        LabelClass("Löwe 獅子", ("lion",)),
        LabelClass("sky", ("sky",), distractor=True),
        LabelClass("road", ("road",), distractor=True),
    ),
    ("a photo of a {}.", "{}"),
)


def written(folder: Path, text: str, name: str = "labels.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_list_of_names():
    labels = as_label_set(
        ["person", "Traffic  Light", "犬"], distractors=["sky"], templates=["the {}"]
    )
    assert labels.names == ("person", "Traffic  Light", "犬", "sky")
    assert [c.prompts for c in labels.classes] == [(name,) for name in labels.names]
    assert [c.distractor for c in labels.classes] == [False, False, False, True]
    assert labels.templates == ("the {}",)
    assert as_label_set(["person"]).templates is None


def test_a_mapping_of_names_to_prompts():
    labels = as_label_set({"tv": "television", "light": ["traffic light", "stoplight"]})
    assert labels.names == ("tv", "light")
    assert [c.prompts for c in labels.classes] == [("television",), ("traffic light", "stoplight")]


def test_a_label_set_comes_back_and_takes_more():
    assert as_label_set(FULL_SET) == FULL_SET
    more = as_label_set(FULL_SET, distractors=["sea"], templates=["{}!"])
    assert more.names == (*FULL_SET.names, "sea")
    assert more.templates == ("{}!",)
    shuffled = LabelSet(
        (FULL_SET.classes[3], *FULL_SET.classes[:3], FULL_SET.classes[4]), FULL_SET.templates
    )
    assert as_label_set(shuffled) == FULL_SET, "distractors go last"


def test_a_file_in_its_full_form(tmp_path):
    path = written(tmp_path, FULL)
    assert as_label_set(path) == as_label_set(str(path)) == FULL_SET


def test_the_same_file_as_json_with_tabs_and_escapes(tmp_path):
    document = {
        "classes": [
            "person",
            {
                "name": "traffic light",
                "prompts": ["traffic light", "stoplight"],
                "presence_threshold": 0.1,
            }
            | {"supercategory": "street"},
            {"name": "Löwe 獅子", "prompts": "lion"},
        ],
        "distractors": ["sky", "road"],
        "templates": ["a photo of a {}.", "{}"],
    }
    for ascii_only in (True, False):
        text = json.dumps(document, indent="\t", ensure_ascii=ascii_only)
        assert as_label_set(written(tmp_path, text, "labels.json")) == FULL_SET


def test_the_short_forms(tmp_path):
    names = as_label_set(written(tmp_path, "- person\n- traffic light\n"))
    assert names == as_label_set(["person", "traffic light"])
    mapping = as_label_set(
        written(tmp_path, "person:\ntv: television\nlight: [traffic light, stoplight]\n")
    )
    assert mapping == as_label_set(
        {"person": "person", "tv": "television", "light": ["traffic light", "stoplight"]}
    )
    both = as_label_set(written(tmp_path, "classes: {tv: television}\ndistractors: [sky]\n"))
    assert both == as_label_set({"tv": "television"}, distractors=["sky"])
    assert as_label_set(written(tmp_path, "- a\n"), distractors=["b"]).names == ("a", "b")


def test_what_yaml_would_take_for_something_else_stays_text(tmp_path):
    typed = [
        "no",
        "yes",
        "on",
        "1",
        "007",
        "1.0",
        "1e3",
        "null",
        "~",
        "2024-01-01",
        "12:30",
        "0x1F",
        "True",
        "c#",
    ]
    assert as_label_set(written(tmp_path, "".join(f"- {t}\n" for t in typed))).names == tuple(typed)
    assert as_label_set(written(tmp_path, "".join(f"{t}: x\n" for t in typed))).names == tuple(
        typed
    )
    assert as_label_set(written(tmp_path, '["no", 1, true]', "labels.json")).names == (
        "no",
        "1",
        "true",
    )
    named = as_label_set(
        written(tmp_path, "- {name: no, prompts: [off, 12], presence_threshold: 1e-1}\n")
    ).classes[0]
    assert named == LabelClass("no", ("off", "12"), 0.1)


ACCEPTED = st.characters(
    exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="\ufffe\uffff"
)


@pytest.mark.filterwarnings("ignore:labels that (differ only|look like)")
@given(st.lists(st.text(ACCEPTED, min_size=1).filter(str.strip), min_size=1, unique=True))
def test_any_text_survives_json_exactly(tmp_path_factory, names):
    folder = tmp_path_factory.getbasetemp()
    for ascii_only in (True, False):
        path = written(folder, json.dumps(names, ensure_ascii=ascii_only), "any.json")
        assert list(as_label_set(path).names) == names


@pytest.mark.parametrize(
    ("one", "two", "shown"),
    [
        ("cat", "Cat", "'cat' and 'Cat'"),
        ("cat", "cat ", "'cat' and 'cat '"),
        ("traffic light", "traffic  light", "'traffic light' and 'traffic  light'"),
        ("STRASSE", "Straße", "'STRASSE' and 'Straße'"),
        ("caf\u00e9", "cafe\u0301", r"'caf\xe9' and 'cafe\u0301'"),
        ("Caf\u00c9", "cafe\u0301", "'Caf\u00c9' and 'cafe\u0301'"),
    ],
)
def test_names_that_look_alike_are_said_and_stay_separate_classes(tmp_path, one, two, shown):
    message = re.escape(
        "labels that differ only in case, blanks or Unicode form are separate classes: "
        f"{shown}; remove one of each pair if both mean the same"
    )
    for labels in ([one, "dog", two], {two: "x", "dog": "y", one: "z"}):
        pattern = message if isinstance(labels, list) else "labels that differ only"
        with pytest.warns(UserWarning, match=pattern):
            made = as_label_set(labels)
        assert made.names == tuple(labels), "as typed"
    with pytest.warns(UserWarning, match=message):
        as_label_set(written(tmp_path, json.dumps([one, two]), "labels.json"))
    with pytest.warns(UserWarning, match=message):
        as_label_set([one], distractors=[two])
    with pytest.warns(UserWarning, match=message):
        more = as_label_set(as_label_set([one]), distractors=[two])
    assert as_label_set(more) == more, "without saying it again"


def test_many_names_that_look_alike_are_one_warning():
    labels = [spelling for i in range(9) for spelling in (f"a{i}", f"A{i}")]
    with pytest.warns(UserWarning, match=r"'a2' and 'A2' \(and 6 more pairs\); remove") as caught:
        as_label_set(labels)
    assert len(caught) == 1


CONTROL = "\n\r\t\0\x1b\x7f\x85\x9b\u2028\u2029\ufffe\uffff"


@pytest.mark.parametrize("odd", CONTROL)
def test_control_characters_are_refused(tmp_path, odd):
    for labels, options in (
        ([f"a{odd}b"], {}),
        ({"a": f"b{odd}"}, {}),
        ({f"{odd}a": ["b", "c"]}, {}),
        (["a"], {"distractors": [f"x{odd}"]}),
        (["a"], {"templates": [f"{{}}{odd}"]}),
        (LabelSet((LabelClass("a", ("a",), supercategory=f"b{odd}"),)), {}),
        (written(tmp_path, json.dumps(["b", f"a{odd}"]), "labels.json"), {}),
    ):
        with pytest.raises(LabelError, match=r"without line breaks and control char.* with U\+"):
            as_label_set(labels, **options)


@pytest.mark.parametrize("kind", ["name", "prompt", "template", "supercategory"])
def test_lone_surrogates_are_refused_wherever_they_stand(kind):
    labels = {
        "name": LabelClass("a\ud800", ("a",)),
        "prompt": LabelClass("a", ("\udce9",)),
        "supercategory": LabelClass("a", ("a",), supercategory="\ud800"),
    }.get(kind, LabelClass("a", ("a",)))
    templates = ["{}\ud800"] if kind == "template" else None
    with pytest.raises(LabelError, match="in valid Unicode, got"):
        as_label_set(LabelSet((labels,)), templates=templates)


def test_a_byte_order_mark_and_odd_file_names(tmp_path):
    path = tmp_path / os.fsdecode(b"l\xe9.yaml")
    path.write_bytes(b"\xef\xbb\xbf- person\n")
    assert as_label_set(path).names == ("person",)
    path.write_bytes(b"- ''\n")
    with pytest.raises(LabelError, match=r"l%E9\.yaml, line 1: expected a label"):
        as_label_set(path)


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        ([], {}, "expected at least one label, got none"),
        ({}, {}, "expected at least one label, got none"),
        (LabelSet(()), {}, "expected at least one label, got none"),
        ([], {"distractors": ["sky"]}, "expected at least one label, got none"),
        (["a", ""], {}, "label 2: expected a label, got '', which is empty"),
        (["a", " \t\n"], {}, r"label 2: expected a label, got ' \t\n', which is empty"),
        (["a", "b", "a"], {}, "label 3: 'a' is given twice, first as label 1"),
        (
            ["a", "b"],
            {"distractors": ["c", "b"]},
            "distractor 2: 'b' is a label or distractor already, first as l",
        ),
        (
            ["a"],
            {"distractors": ["c", "c"]},
            "distractor 2: 'c' is a label or distractor already, first as d",
        ),
        (["a"], {"distractors": [""]}, "distractor 1: expected a label, got ''"),
        (["a", 3], {}, "labels: expected text, got 3 at position 2; put it in quotes"),
        (["a", None], {}, "labels: expected text, got None at position 2"),
        (["a", b"b"], {}, "labels: expected text, got b'b' at position 2"),
        ({"a": 3}, {}, "prompts for 'a': expected a list of texts, got int"),
        ({3: "a"}, {}, "labels: expected text, got 3 at position 1"),
        ({"a": []}, {}, "label 1: expected prompts for 'a', got none"),
        ({"a": ""}, {}, "label 1: expected a prompt for 'a', got ''"),
        ({"a": ["b", "  "]}, {}, "label 1: expected a prompt for 'a', got '  '"),
        (7, {}, "labels: expected a list of texts, got int"),
        (
            "person",
            {},
            "labels: expected a list of texts or the path of a labels file, got 'person'; "
            "write ['person']",
        ),
        (
            ["a"],
            {"distractors": "sky"},
            "distractors: expected a list of texts, got 'sky'; write ['sky']",
        ),
        (["a"], {"templates": "a {}"}, "templates: expected a list of texts, got 'a {}'"),
        (["a"], {"templates": []}, "templates: expected at least one, got none"),
        (
            ["a"],
            {"templates": ["ok {}", "a photo"]},
            "templates: expected exactly one {} for the prompt, got 0 in 'a p",
        ),
        (["a"], {"templates": ["{} and {}"]}, "expected exactly one {} for the prompt, got 2"),
        (["a\udcff"], {}, r"label 1: expected a label in valid Unicode, got 'a\udcff'"),
        (
            LabelSet((LabelClass("a", ("a",), float("nan")),)),
            {},
            "expected a finite number as presence_threshold, got nan",
        ),
        (
            LabelSet((LabelClass("a", ("a",), float("inf")),)),
            {},
            "expected a finite number as presence_threshold, got inf",
        ),
        (LabelSet((LabelClass("a", ()),)), {}, "label 1: expected prompts for 'a', got none"),
    ],
)
def test_what_no_one_can_mean_is_refused(labels, options, words):
    with pytest.raises(LabelError) as caught:
        unchecked(labels, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "labels.yaml: expected at least one label, the file is empty"),
        ("# nothing\n", "labels.yaml: expected at least one label, the file is empty"),
        ("distractors: [sky]\n", "labels.yaml: expected at least one label, got none"),
        ("classes:\n", "labels.yaml: expected at least one label, got none"),
        ("- a\n-\n- b\n", "labels.yaml, line 2: expected a label, got '', which is empty"),
        ("- a\n- b\n- a\n", "line 3: 'a' is given twice, first as "),
        ("a: x\nb: y\na: z\n", "line 3: 'a' is given twice, first as "),
        (
            "classes: [a]\ndistractors:\n  - b\n  - a\n",
            "line 4: 'a' is a label or distractor already, first as ",
        ),
        (
            "classes: [a]\nlabels: [b]\n",
            "line 2: unknown key 'labels'; the known ones are classes, distractors, ",
        ),
        (
            "- a\n- {name: b, prompt: c}\n",
            "line 2: unknown key 'prompt'; the known ones are name, prompts, ",
        ),
        ("- a: b\n", "line 1: unknown key 'a'"),
        ("classes: [a]\nclasses: [b]\n", "line 2: the key 'classes' is given twice"),
        (
            "- a\n- {name: b, threshold: 0.1}\n",
            "line 2: the key 'threshold' is now 'presence_threshold'; rename it",
        ),
        ("- {prompts: c}\n", "line 1: expected a name in this class, got none"),
        (
            "- {name: a, presence_threshold: high}\n",
            "line 1: expected a finite number as presence_threshold, got 'high'",
        ),
        (
            "- {name: a, presence_threshold: .nan}\n",
            "line 1: expected a finite number as presence_threshold, got '.nan'",
        ),
        (
            "- a\n- {name: b, presence_threshold: nan}\n",
            "line 2: expected a finite number as presence_threshold, got nan",
        ),
        (
            "- {name: a, presence_threshold: yes}\n",
            "line 1: expected a finite number as presence_threshold, got 'yes'",
        ),
        ("- {name: [a]}\n", "line 1: expected a text, got a list"),
        ("- {name: a, prompts: []}\n", "line 1: expected prompts for 'a', got none"),
        ("- {name: a, prompts: {b: c}}\n", "line 1: expected a list, got something else"),
        ("- [a, b]\n", "line 1: expected a text, got a list"),
        ("- &x [*x]\n", "line 1: expected a text, got a list"),
        ("person\n", "line 1: expected a list, got something else"),
        (
            "classes: [a]\ntemplates: [b]\n",
            "templates: expected exactly one {} for the prompt, got 0 in 'b'",
        ),
        ("classes: [a]\ntemplates:\n", "templates: expected at least one, got none"),
        (
            "[a, b",
            "labels.yaml: expected labels in YAML or JSON, but it can't be read: while parsing",
        ),
        ("a: b: c", "it can't be read: mapping values are not allowed here"),
        ("- a\n---\n- b\n", "it can't be read: expected a single document"),
        ("- a\x07\n", "it can't be read: unacceptable character"),
        ("[" * 500, "it can't be read"),
        ('- !!python/object/apply:os.system ["true"]\n', "line 1: expected a text, got a list"),
        ('- "\\ud800"\n', "line 1: expected a label in valid Unicode"),
    ],
)
def test_a_file_s_faults_have_their_line(tmp_path, text, words):
    with pytest.raises(LabelError) as caught:
        as_label_set(written(tmp_path, text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_json_file_must_be_json(tmp_path):
    with pytest.raises(
        LabelError, match=r"labels\.json: expected labels in YAML or JSON.*line 1 column 1"
    ):
        as_label_set(written(tmp_path, "- person\n", "labels.json"))
    with pytest.raises(LabelError, match=r"labels\.json, line 3: unknown key 'promts'"):
        as_label_set(
            written(tmp_path, '[\n\t"a",\n\t{"name": "b", "promts": []}\n]', "labels.json")
        )


def test_a_file_that_can_t_be_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, words in (
        ("missing.yaml", "found nothing there"),
        (".", "no file"),
        ("pipe.yaml", "no file"),
    ):
        with pytest.raises(LabelError, match=f"expected a labels file .*{words}"):
            as_label_set(tmp_path / name)
    with pytest.raises(LabelError, match="found nothing there"):
        as_label_set("missing.yml")
    (tmp_path / "latin.yaml").write_bytes(b"- L\xf6we\n")
    with pytest.raises(LabelError, match=r"latin\.yaml: expected text in UTF-8, got .* at byte 3"):
        as_label_set(tmp_path / "latin.yaml")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = written(tmp_path, "- a\n")
    monkeypatch.setattr(Path, "read_bytes", denied)  # a mode of 000 would not stop root
    with pytest.raises(
        LabelError, match=r"labels\.yaml: this file can't be read \(Permission denied\)"
    ):
        as_label_set(path)


def test_each_class_has_its_own_threshold_or_the_default():
    labels = LabelSet(
        (
            LabelClass("a", ("a",)),
            LabelClass("b", ("b",), presence_threshold=0.0),
            LabelClass("c", ("c",), distractor=True),
        )
    )
    assert labels.thresholds(0.3) == (0.3, 0.0, 0.3), "0 is a threshold too"
    assert labels.thresholds(None) == (None, 0.0, None)


# --- written files

names = st.text(ACCEPTED, min_size=1, max_size=12).filter(str.strip)
rows = st.tuples(
    names,
    st.lists(names, min_size=1, max_size=3).map(tuple),
    st.none() | st.floats(-1e6, 1e6),
    st.just("") | names,
)


@pytest.mark.filterwarnings("ignore:labels that (differ only|look like)")
@settings(max_examples=30, deadline=None)
@given(
    st.lists(rows, min_size=1, max_size=3, unique_by=lambda row: row[0]),
    st.lists(names, max_size=2, unique=True),
    st.none() | st.just(("a photo of a {}.", "{}")),
)
def test_a_written_labels_file_reads_back_the_same(tmp_path_factory, rows, others, templates):
    wanted = [LabelClass(*row) for row in rows]
    own = {c.name for c in wanted}
    distractors = [named(n, distractor=True) for n in others if n not in own]
    labels = LabelSet((*wanted, *distractors), templates)
    path = written(tmp_path_factory.getbasetemp(), labels_yaml(labels), "written.yaml")
    assert as_label_set(path) == labels


def test_names_that_yaml_takes_for_other_things_stay_names(tmp_path):
    typed = ["no", "1", "null", "~", "猫: x", "- a", "#b", "a\u00a0b", "\ufeffc"]
    path = written(tmp_path, labels_yaml(as_label_set(typed)))
    assert as_label_set(path).names == tuple(typed)


# --- lists typed as one label


@pytest.mark.parametrize(
    "name", ["circle, star", "circle . star", "circle,star", "a; b", "c . d ."]
)
def test_a_list_that_is_one_label_is_said(tmp_path, name):
    message = (
        f"labels that look like lists are one label each: {name!r}; if several are meant, give "
        "them one by one (--label A --label B, a list) or as a caption, or join them into one mask "
        "(A+B)"
    )
    for labels in ([name], written(tmp_path, json.dumps([name]), "labels.json")):
        with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
            made = as_label_set(labels)
        assert made.names == (name,)
    assert as_label_set(made) == made, "said once"
    assert as_label_set({name: "star"}).names == (name,), "it has a text prompt: it is meant"


def test_only_three_lists_are_named():
    with pytest.warns(UserWarning, match=r"'a, b', 'c, d', 'e, f' \(and 2 more\); if"):
        as_label_set(["a, b", "c, d", "e, f", "g, h", "i, j"])


@pytest.mark.parametrize("name", ["1,000 m", "St. Bernard", "cat.", "a-b", "3.5", "(a), (b)"])
def test_no_list_no_warning(name):
    assert as_label_set([name]).names == (name,)


def test_a_single_text_never_becomes_letters():
    for arguments in (
        {"labels": "cat"},
        {"labels": ["cat"], "distractors": "sky"},
        {"labels": ["cat"], "templates": "a {}"},
    ):
        with pytest.raises(LabelError, match=r"expected a list of texts.*, got '(cat|sky|a \{\})'"):
            unchecked(**arguments)
    assert as_label_set({"cat": "kitten"}).classes[0].prompts == ("kitten",)


def test_a_text_file_has_a_name_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffperson\r\n\r\n  # animals\r\n traffic light \r\nC# 1\r\n".encode())
    expected = ("person", "traffic light", "C# 1")
    assert as_label_set(path).names == expected
    assert as_label_set(str(path)).names == expected
    path.write_text("cat\n\ndog\ncat\n")
    with pytest.raises(LabelError, match=r"names\.txt, line 4: 'cat' is given twice, .* line 1"):
        as_label_set(path)
    path.write_text("# nothing\n\n")
    with pytest.raises(LabelError, match=r"names\.txt: expected at least one label, got none"):
        as_label_set(path)
