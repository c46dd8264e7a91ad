"""Labels: what a person types, or writes into a file, becomes a `LabelSet`.

Names are kept exactly as typed, in the order given; distractors come last.

A name such as "dog+frisbee", with a letter, digit or underscore on both sides of every plus, and
different names between them, joins labels: it is one label, "dog+frisbee", with one mask in an
image for all dogs and frisbees. Any other name with a plus ("C++", "a + b") is a plain label, and
so is one with text prompts of its own: {"vitamin B+C": "vitamin B+C"}.

A labels file whose name ends in .txt has a name on each line. Blanks around it, blank lines and
lines that begin with "#" don't count; a "#" further on belongs to the name.

Any other labels file is YAML or JSON, in one of three forms. Names alone:

    [person, traffic light]

Names with their text prompts (none, one, or several synonyms):

    person:
    tv: television
    traffic light: [traffic light, stoplight]

The full form, where `classes` may also be a mapping as above:

    classes:
      - person
      - name: traffic light
        prompts: [stoplight]
        presence_threshold: 0.1
        supercategory: street
      - name: pets
        joined: [dog, cat]
    distractors: [sky, road]
    templates: ["a photo of a {}."]

`joined` has the labels that a joined one is made of, in one of the first two forms.
"""

import json
import math
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn

import yaml

from clip2sam.data.images import printable
from clip2sam.errors import LabelError


@dataclass(frozen=True)
class LabelClass:
    """One class as the user typed it."""

    name: str
    prompts: tuple[str, ...]
    """Text prompts, which are put into the templates: the name itself, or synonyms. None for a
    joined label, whose parts have their own."""
    presence_threshold: float | None = None
    """This class's own presence threshold; None: the configuration's."""
    supercategory: str = ""
    distractor: bool = False
    """Competes with the other classes, and gets no mask itself."""
    joined: tuple["LabelClass", ...] = ()
    """The parts of a joined label, each with a name and text prompts and nothing else: it is
    present where one of them is, and has one mask in an image, the union of theirs."""
    spans: tuple[tuple[int, int], ...] = ()
    """Where the caption names it: the first character and the one after the last, of each
    place."""

    @property
    def parts(self) -> tuple["LabelClass", ...]:
        """What is looked for in an image: the parts of a joined label, with all that they have
        from it; else the class itself."""
        return tuple(
            replace(self, name=part.name, prompts=part.prompts, joined=()) for part in self.joined
        ) or (self,)


@dataclass(frozen=True)
class LabelSet:
    """Classes in the user's order, distractors after all others."""

    classes: tuple[LabelClass, ...]
    templates: tuple[str, ...] | None = None
    """Each with one "{}" for the text prompt; None: the 85 of the published code."""
    caption: str = ""
    """What the classes' spans are in."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all classes, distractors last."""
        return tuple(c.name for c in self.classes)

    @property
    def wanted(self) -> tuple[LabelClass, ...]:
        """The classes that are exported: all but the distractors."""
        return tuple(c for c in self.classes if not c.distractor)

    @property
    def has_joined(self) -> bool:
        """Whether a class is a joined one."""
        return any(c.joined for c in self.classes)

    def apart(self) -> "LabelSet":
        """The parts of all classes in their order, as classes; names may be there twice. Itself
        without joined ones."""
        if not self.has_joined:
            return self
        return replace(self, classes=tuple(part for c in self.classes for part in c.parts))

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """For each class the places of its parts in `apart()`."""
        counts = [len(c.joined) or 1 for c in self.classes]
        return tuple(
            tuple(range(end - count, end))
            for count, end in zip(counts, accumulate(counts), strict=True)
        )

    def thresholds(self, default: float | None) -> tuple[float | None, ...]:
        """The presence threshold of each of `classes`: its own, else the default; None: none."""
        own = (c.presence_threshold for c in self.classes)
        return tuple(default if threshold is None else threshold for threshold in own)


LabelsSource = LabelSet | Sequence[str] | Mapping[str, str | Sequence[str]] | str | os.PathLike[str]

_FILE_KEYS = ("classes", "distractors", "templates")
_MORE_FILE_KEYS = ("caption",)
_CLASS_KEYS = ("name", "prompts", "joined", "presence_threshold", "supercategory", "spans")
_RENAMED = {"threshold": "presence_threshold"}
_FILE_SUFFIXES = (".yaml", ".yml", ".json", ".txt")
_LIST = re.compile(r"[^\W\d_]\s*[,;]\s*[^\W\d_]|\s\.\s+\w")
"""What a list looks like: "circle, star" and "circle . star"; not "1,000"."""


@dataclass(frozen=True)
class _Draft:
    """Classes that are not checked yet, each with its place in the file or list, for messages."""

    classes: list[tuple[LabelClass, str]]
    templates: tuple[str, ...] | None = None
    origin: str = "labels"
    caption: str = ""


def as_label_set(
    labels: LabelsSource, *, distractors: Sequence[str] = (), templates: Sequence[str] | None = None
) -> LabelSet:
    """Labels in any of the accepted forms, checked.

    Args:
        labels: a list of names; a mapping from names to a text prompt or a list of them (synonyms);
            the path of a labels file in a form shown at the top of this page (a string must end in
            .txt, .yaml, .yml or .json; names on lines if the name ends in .txt, JSON if in .json,
            else YAML); or a `LabelSet`.
            A name without text prompts is its own text prompt. In a file, every plain value is the
            text that is written there: `no`, `1` and `null` are labels, not False, 1 and None.
        distractors: added after those of `labels`.
        templates: each with one "{}" for the text prompt; they replace those of `labels`.

    Names that differ only in case, blanks or Unicode normal form ("cat", "Cat", "cat ") are
    separate classes, and a `UserWarning` names them. Another one names labels that look like lists
    ("circle, star", "circle . star"), each of which is one label. There is none for a `LabelSet`,
    which has been here.

    Raises:
        LabelError: no label at all, an empty label or text prompt, a label given twice, also as
            a distractor, or joined with itself, a value that is no text or has control characters
            (line breaks, tabs, escapes), a threshold that is no finite number, a template without
            exactly one "{}"; in a file also an unknown or repeated key; a file that is missing, or
            is no YAML or JSON.
            The message names the label, or the file and line.
    """
    found = _label_set(_draft(labels), distractors, templates)
    if not isinstance(labels, LabelSet) or distractors:
        for remark in remarks_on(found.classes):
            warnings.warn(remark, stacklevel=2)
    return found


def quiet_label_set(
    labels: LabelsSource, *, distractors: Sequence[str] = (), templates: Sequence[str] | None = None
) -> LabelSet:
    """`as_label_set` without its warnings, which are those of the whole process: a server tells
    each of its users `remarks_on` their own labels."""
    return _label_set(_draft(labels), distractors, templates)


def label_set_of_json(text: str, origin: str = "labels") -> LabelSet:
    """The labels of a JSON text in one of the forms of a labels file. No file is read, and there
    are no warnings, see `quiet_label_set`.

    Args:
        origin: what messages call the text.

    Raises:
        LabelError: as `as_label_set`, for a labels file.
    """
    return _label_set(_parsed(text, origin, is_json=True))


def _label_set(draft: _Draft, distractors: Any = (), templates: Any = None) -> LabelSet:
    """The label set of a draft, with what is added to it, all checked."""
    more = [
        (named(name, distractor=True), f"distractor {i}")
        for i, name in enumerate(_texts(distractors, "distractors"), 1)
    ]
    wanted = [d for d in draft.classes if not d[0].distractor]
    competing = [d for d in draft.classes if d[0].distractor]
    if not wanted:
        raise LabelError(
            f'{draft.origin}: expected at least one label, got none; give one, such as "person"'
        )
    classes = _checked_classes([*wanted, *competing, *more])
    chosen = draft.templates if templates is None else _texts(templates, "templates")
    checked = None if chosen is None else _checked_templates(chosen)
    return LabelSet(classes, checked, draft.caption)


def remarks_on(classes: Sequence[LabelClass]) -> tuple[str, ...]:
    """What `as_label_set` warns of."""
    return tuple(filter(None, (_lookalikes(classes), _lists(classes))))


def named(name: str, *, distractor: bool = False) -> LabelClass:
    """The class of a name without text prompts: it is its own text prompt, or those of its parts if
    it joins labels ("dog+frisbee", see the top of this page)."""
    parts = name.split("+")
    apart = all(_is_of_word(part[:1]) and _is_of_word(part[-1:]) for part in parts)
    if len(parts) == 1 or len(set(parts)) < len(parts) or not apart:
        return LabelClass(name, (name,), distractor=distractor)
    joined = tuple(LabelClass(part, (part,)) for part in parts)
    return LabelClass(name, (), distractor=distractor, joined=joined)


def _is_of_word(character: str) -> bool:
    """Whether it can be a part of a word: letters, digits, underscores, and the marks that letters
    are completed with."""
    return (
        character.isalnum() or character == "_" or unicodedata.category(character or " ") in "McMn"
    )


def _draft(labels: Any) -> _Draft:
    if isinstance(labels, LabelSet):
        places = [(c, f"label {i}") for i, c in enumerate(labels.classes, 1)]
        for c, place in places:
            if not isinstance(c, LabelClass):
                raise LabelError(
                    f"{place}: expected a LabelClass in a LabelSet, got {c!r}; give names in a list"
                )
        own = None if labels.templates is None else _texts(labels.templates, "templates")
        return _Draft(places, own, caption=labels.caption)
    if isinstance(labels, os.PathLike) or (
        isinstance(labels, str) and labels.lower().endswith(_FILE_SUFFIXES)
    ):
        return _read_file(labels)
    if isinstance(labels, Mapping):
        names = _texts(list(labels), "labels")
        prompts = [
            _texts([own] if isinstance(own, str) else own, f"prompts for {n!r}")
            for n, own in labels.items()
        ]
        classes = [LabelClass(*pair) for pair in zip(names, prompts, strict=True)]
    else:
        classes = [named(name) for name in _texts(labels, "labels")]
    return _Draft([(c, f"label {i}") for i, c in enumerate(classes, 1)])


def _texts(values: Any, what: str) -> tuple[str, ...]:
    """A sequence whose items are all text. A single text, a sequence of letters, is refused."""
    if isinstance(values, str):
        raise LabelError(
            f"{what}: expected a list of texts"
            f"{' or the path of a labels file' if what == 'labels' else ''}, "
            f"got {values!r}; write [{values!r}] for this one alone"
        )
    if not isinstance(values, Sequence):
        raise LabelError(
            f"{what}: expected a list of texts, got {type(values).__name__}; put them into a list"
        )
    for i, value in enumerate(values, 1):
        if not isinstance(value, str):
            raise LabelError(
                f"{what}: expected text, got {value!r} at position {i}; put it in quotes"
            )
    return tuple(values)


def _checked_classes(classes: Sequence[tuple[LabelClass, str]]) -> tuple[LabelClass, ...]:
    first: dict[str, str] = {}
    for c, place in classes:
        _check_text(c.name, place, "label")
        _check_parts(c, place)
        if not isinstance(c.supercategory, str):
            raise LabelError(
                f"{place}: expected a text as supercategory, got {c.supercategory!r}; "
                "put it in quotes"
            )
        _check_characters(c.supercategory, place, "supercategory")
        if c.name in first:
            also = "given twice" if not c.distractor else "a label or distractor already"
            raise LabelError(
                f"{place}: {c.name!r} is {also}, first as {first[c.name]}; remove one of the two"
            )
        first[c.name] = place
    return tuple(
        replace(c, presence_threshold=_checked_threshold(c.presence_threshold, place))
        for c, place in classes
    )


def _check_parts(c: LabelClass, place: str) -> None:
    """Text prompts; or parts, which have them, and then none of its own."""
    if not c.joined:
        if not c.prompts:
            raise LabelError(
                f"{place}: expected prompts for {c.name!r}, got none; give one or leave the key out"
            )
        for prompt in _texts(c.prompts, f"{place}: prompts for {c.name!r}"):
            _check_text(prompt, place, f"prompt for {c.name!r}")
        return
    if c.prompts:
        raise LabelError(
            f"{place}: expected prompts or joined for {c.name!r}, got both; give its parts their "
            "own prompts"
        )
    names = [part.name for part in c.joined]
    if len(set(names)) < max(len(names), 2):
        raise LabelError(
            f"{place}: expected two different labels or more to join in {c.name!r}, got "
            f"{', '.join(map(repr, names))}; write each once"
        )
    for part in c.joined:
        if part != LabelClass(part.name, part.prompts):
            raise LabelError(
                f"{place}: expected a name and prompts as part of {c.name!r}, got {part!r}; give "
                "what else it has to the joined label"
            )
        _check_text(part.name, place, f"part of {c.name!r}")
        _check_parts(part, place)


def _lists(classes: Sequence[LabelClass]) -> str:
    """A list that was typed as one label; not where text prompts say what it is."""
    lists = [c.name for c in classes if c.prompts == (c.name,) and _LIST.search(c.name)]
    more = f" (and {len(lists) - 3} more)" if len(lists) > 3 else ""
    if not lists:
        return ""
    return (
        f"labels that look like lists are one label each: {', '.join(map(repr, lists[:3]))}"
        f"{more}; if several are meant, give them one by one (--label A --label B, a list) or "
        "as a caption, or join them into one mask (A+B)"
    )


def _lookalikes(classes: Sequence[LabelClass]) -> str:
    first: dict[str, str] = {}
    pairs = []
    for name in (c.name for c in classes):
        same = first.setdefault(_folded(name), name)
        if same != name:
            # a difference in normal form alone is seen in escapes only
            show = ascii if _normal(same) == _normal(name) else repr
            pairs.append(f"{show(same)} and {show(name)}")
    more = f" (and {len(pairs) - 3} more pairs)" if len(pairs) > 3 else ""
    if not pairs:
        return ""
    return (
        "labels that differ only in case, blanks or Unicode form are separate classes: "
        f"{', '.join(pairs[:3])}{more}; remove one of each pair if both mean the same"
    )


def _folded(name: str) -> str:
    return _normal(" ".join(_normal(name).casefold().split()))


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _check_text(text: object, place: str, what: str) -> None:
    if not isinstance(text, str):
        raise LabelError(f"{place}: expected a text as {what}, got {text!r}; put it in quotes")
    if not text.strip():
        raise LabelError(
            f"{place}: expected a {what}, got {text!r}, which is empty; write a name or remove it"
        )
    _check_characters(text, place, what)


def _check_characters(text: str, place: str, what: str) -> None:
    """Refuse what would break a line in a file of names, can't stand in XML, or steers a
    terminal."""
    for c in text:
        kind = unicodedata.category(c)
        if kind == "Cs":
            raise LabelError(
                f"{place}: expected a {what} in valid Unicode, got {text!r}; "
                "save or type it as UTF-8"
            )
        if kind in ("Cc", "Zl", "Zp") or c in "\ufffe\uffff":
            raise LabelError(
                f"{place}: expected a {what} without line breaks and control characters, "
                f"got {text!r} with U+{ord(c):04X}; remove it"
            )


def _checked_threshold(threshold: object, place: str) -> float | None:
    if threshold is None:
        return None
    if (
        not isinstance(threshold, Real)
        or isinstance(threshold, bool)
        or not math.isfinite(threshold)
    ):
        raise LabelError(
            f"{place}: expected a finite number as presence_threshold, got {threshold!r}; "
            "write one such as 0.1"
        )
    return float(threshold)


def _checked_templates(templates: tuple[str, ...]) -> tuple[str, ...]:
    if not templates:
        raise LabelError(
            "templates: expected at least one, got none; leave the list out or write "
            '"a photo of a {}."'
        )
    for template in templates:
        _check_characters(template, "templates", "template")
        if template.count("{}") != 1:
            raise LabelError(
                "templates: expected exactly one {} for the prompt, got "
                f"{template.count('{}')} in {template!r}; "
                'write it as in "a photo of a {}."'
            )
    return templates


def _read_file(path: str | os.PathLike[str]) -> _Draft:
    origin = printable(path)
    text = _file_text(path, origin)
    if origin.lower().endswith(".txt"):
        return _Draft(_names_on_lines(text, origin), origin=origin)
    return _parsed(text, origin, is_json=origin.lower().endswith(".json"))


def _parsed(text: str, origin: str, *, is_json: bool) -> _Draft:
    """The draft of YAML or JSON."""
    try:
        if is_json:
            json.loads(text)
            text = _as_yaml(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise LabelError(
            f"{origin}: expected labels in YAML or JSON, but it can't be read: {reason}"
        ) from error
    if root is None:
        raise LabelError(
            f"{origin}: expected at least one label, the file is empty; write one on each line, "
            "as '- person'"
        )
    return _File(origin).draft(root)


def _names_on_lines(text: str, origin: str) -> list[tuple[LabelClass, str]]:
    """The classes of a .txt file, each with its line."""
    # not splitlines(), which also ends lines where no editor does
    lines = ((i, line.strip()) for i, line in enumerate(re.split("\r\n|\r|\n", text), 1))
    return [(named(name), f"{origin}, line {i}") for i, name in lines if name and name[0] != "#"]


def _file_text(path: str | os.PathLike[str], origin: str) -> str:
    try:
        if not Path(path).is_file():  # a pipe would wait for a writer
            what = "something that is no file" if os.path.exists(path) else "nothing there"
            raise LabelError(
                f"{origin}: expected a labels file (YAML, JSON, .txt), found {what}; check the path"
            )
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelError(
            f"{origin}: expected text in UTF-8, got {error.reason} at byte {error.start}; "
            "save it as UTF-8"
        ) from error
    except OSError as error:
        raise LabelError(
            f"{origin}: this file can't be read ({error.strerror}); check its permissions"
        ) from error


def _as_yaml(text: str) -> str:
    """Valid JSON as YAML, on the same lines: tabs (between values) become spaces, and characters
    beyond ASCII (in strings) become escapes."""
    return (
        text.replace("\t", " ")
        .replace("\x7f", "\\x7f")
        .encode("ascii", "backslashreplace")
        .decode("ascii")
    )


class _File:
    """Reads the YAML nodes of a labels file: they know their lines, and keep values as text."""

    def __init__(self, origin: str) -> None:
        self.origin = origin

    def draft(self, root: yaml.Node) -> _Draft:
        if not isinstance(root, yaml.MappingNode) or not any(
            k.value in _FILE_KEYS for k, _ in root.value
        ):
            return _Draft(self.classes(root), None, self.origin)
        fields = self.fields(root, (*_FILE_KEYS, *_MORE_FILE_KEYS))
        wanted = self.classes(fields["classes"]) if "classes" in fields else []
        distractors = [
            (named(self.text(n), distractor=True), self.place(n))
            for n in self.items(fields.get("distractors"))
        ]
        templates = (
            tuple(self.text(n) for n in self.items(fields["templates"]))
            if "templates" in fields
            else None
        )
        caption = _given(fields.get("caption"))
        return _Draft(
            [*wanted, *distractors],
            templates,
            self.origin,
            "" if caption is None else self.text(caption),
        )

    def classes(self, node: yaml.Node) -> list[tuple[LabelClass, str]]:
        """From a mapping of names to prompts, or a list of names and records."""
        if isinstance(node, yaml.MappingNode):
            return [(self.label_class(k, v), self.place(k)) for k, v in node.value]
        return [(self.record(n), self.place(n)) for n in self.items(node)]

    def record(self, node: yaml.Node) -> LabelClass:
        if not isinstance(node, yaml.MappingNode):
            return self.label_class(node, None)
        fields = self.fields(node, _CLASS_KEYS)
        if "name" not in fields:
            self.fail(node, "expected a name in this class, got none; add 'name: ...'")
        made = self.label_class(fields["name"], fields.get("prompts"))
        if joined := _given(fields.get("joined")):
            if "prompts" in fields:
                self.fail(joined, "expected prompts or joined in this class, got both; remove one")
            parts = tuple(part for part, _ in self.classes(joined))
            made = LabelClass(made.name, (), joined=parts)
        threshold, supercategory = (
            _given(fields.get(key)) for key in ("presence_threshold", "supercategory")
        )
        return replace(
            made,
            presence_threshold=None if threshold is None else self.number(threshold),
            supercategory="" if supercategory is None else self.text(supercategory),
            spans=tuple(self.span(n) for n in self.items(fields.get("spans"))),
        )

    def label_class(self, name: yaml.Node, prompts: yaml.Node | None) -> LabelClass:
        prompts = _given(prompts)
        if prompts is None:
            return named(self.text(name))
        if isinstance(prompts, yaml.ScalarNode):
            return LabelClass(self.text(name), (self.text(prompts),))
        return LabelClass(self.text(name), tuple(self.text(n) for n in self.items(prompts)))

    def fields(self, node: yaml.MappingNode, known: tuple[str, ...]) -> dict[str, yaml.Node]:
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self.text(key)
            if name in _RENAMED and name not in known:
                self.fail(key, f"the key {name!r} is now {_RENAMED[name]!r}; rename it")
            if name not in known:
                self.fail(key, f"unknown key {name!r}; the known ones are {', '.join(known)}")
            if name in found:
                self.fail(key, f"the key {name!r} is given twice; remove one of the two")
            found[name] = value
        return found

    def items(self, node: yaml.Node | None) -> list[yaml.Node]:
        node = _given(node)
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.fail(
                node,
                "expected a list, got something else; write one item on each line, as '- person'",
            )
        return list(node.value)

    def text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
            self.fail(
                node,
                f"expected a text, got {kind}; put the text in quotes if it has ': ' or brackets",
            )
        # JSON writes a character beyond U+FFFF as two escapes; YAML leaves them two
        return str(node.value).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")

    def number(self, node: yaml.Node) -> float:
        try:
            return float(self.text(node))
        except ValueError:
            self.fail(
                node,
                f"expected a finite number as presence_threshold, got {self.text(node)!r}; "
                "write one such as 0.1",
            )

    def span(self, node: yaml.Node) -> tuple[int, int]:
        found = [self.text(n) for n in self.items(node)]
        if len(found) != 2 or not all(n.isdecimal() for n in found):
            self.fail(
                node, f"expected a span as [start, end], in characters of the caption, got {found}"
            )
        return int(found[0]), int(found[1])

    def place(self, node: yaml.Node) -> str:
        return f"{self.origin}, line {node.start_mark.line + 1}"

    def fail(self, node: yaml.Node, message: str) -> NoReturn:
        raise LabelError(f"{self.place(node)}: {message}")


def _given(node: yaml.Node | None) -> yaml.Node | None:
    """The node, unless nothing is given in it: an empty value or null."""
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
        return None
    return node


def labels_yaml(labels: LabelSet) -> str:
    """A label set as the text of a YAML labels file in its full form; `as_label_set` reads it back
    as the same label set."""
    classes = []
    for c in labels.wanted:
        row: dict[str, Any] = {"name": c.name}
        plain = named(c.name)
        if c.joined:
            if c.joined != plain.joined:
                row["joined"] = {part.name: list(part.prompts) for part in c.joined}
        elif c.prompts != plain.prompts:
            row["prompts"] = list(c.prompts)
        if c.presence_threshold is not None:
            row["presence_threshold"] = c.presence_threshold
        if c.supercategory:
            row["supercategory"] = c.supercategory
        if c.spans:
            row["spans"] = [list(span) for span in c.spans]
        classes.append(row)
    document: dict[str, Any] = {"classes": classes}
    if distractors := [c.name for c in labels.classes if c.distractor]:
        document["distractors"] = distractors
    if labels.templates is not None:
        document["templates"] = list(labels.templates)
    if labels.caption:
        document["caption"] = labels.caption
    return yaml.safe_dump(document, allow_unicode=True, sort_keys=False, width=120)


def class_row(c: LabelClass) -> dict[str, Any]:
    """A class as JSON; what only joined labels and captions have is there for these alone."""
    row: dict[str, Any] = {
        "name": c.name,
        "prompts": list(c.prompts),
        "presence_threshold": c.presence_threshold,
        "supercategory": c.supercategory,
        "distractor": c.distractor,
    }
    if c.joined:
        row["joined"] = [class_row(part) for part in c.joined]
    if c.spans:
        row["spans"] = [list(span) for span in c.spans]
    return row


def class_from_row(row: Mapping[str, Any]) -> LabelClass:
    """The class of a row of `class_row`."""
    lists: dict[str, Any] = {
        "prompts": tuple(row["prompts"]),
        "joined": tuple(map(class_from_row, row.get("joined", ()))),
        "spans": tuple(map(tuple, row.get("spans", ()))),
    }
    return LabelClass(**{**row, **lists})


def numbers(names: Sequence[str]) -> list[str]:
    """How to tell masks of one label apart: "#1", "#2", ... for a name that occurs more than once,
    an empty text for any other."""
    counts, so_far = Counter(names), Counter[str]()
    shown = []
    for name in names:
        so_far[name] += 1
        shown.append(f"#{so_far[name]}" if counts[name] > 1 else "")
    return shown
