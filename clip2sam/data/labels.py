"""Labels: what a person types, or writes into a file, becomes a `LabelSet`.

Names are kept exactly as typed, in the order given; distractors come last.

A labels file is YAML or JSON, in one of three forms. Names alone:

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
    distractors: [sky, road]
    templates: ["a photo of a {}."]
"""

import json
import math
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    """Text prompts, which are put into the templates: the name itself, or synonyms."""
    presence_threshold: float | None = None
    """This class's own presence threshold; None: the configuration's."""
    supercategory: str = ""
    distractor: bool = False
    """Competes with the other classes, and gets no mask itself."""


@dataclass(frozen=True)
class LabelSet:
    """Classes in the user's order, distractors after all others."""

    classes: tuple[LabelClass, ...]
    templates: tuple[str, ...] | None = None
    """Each with one "{}" for the text prompt; None: the 85 of the published code."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all classes, distractors last."""
        return tuple(c.name for c in self.classes)

    @property
    def wanted(self) -> tuple[LabelClass, ...]:
        """The classes that are exported: all but the distractors."""
        return tuple(c for c in self.classes if not c.distractor)

    def thresholds(self, default: float | None) -> tuple[float | None, ...]:
        """The presence threshold of each of `classes`: its own, else the default; None: none."""
        own = (c.presence_threshold for c in self.classes)
        return tuple(default if threshold is None else threshold for threshold in own)


LabelsSource = LabelSet | Sequence[str] | Mapping[str, str | Sequence[str]] | str | os.PathLike[str]

_FILE_KEYS = ("classes", "distractors", "templates")
_CLASS_KEYS = ("name", "prompts", "presence_threshold", "supercategory")
_RENAMED = {"threshold": "presence_threshold"}
_FILE_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class _Draft:
    """Classes that are not checked yet, each with its place in the file or list, for messages."""

    classes: list[tuple[LabelClass, str]]
    templates: tuple[str, ...] | None = None
    origin: str = "labels"


def as_label_set(
    labels: LabelsSource, *, distractors: Sequence[str] = (), templates: Sequence[str] | None = None
) -> LabelSet:
    """Labels in any of the accepted forms, checked.

    Args:
        labels: a list of names; a mapping from names to a text prompt or a list of them (synonyms);
            the path of a labels file in a form shown at the top of this page (a string must end in
            .yaml, .yml or .json; JSON if the name ends in .json, else YAML); or a `LabelSet`.
            A name without text prompts is its own text prompt. In a file, every plain value is the
            text that is written there: `no`, `1` and `null` are labels, not False, 1 and None.
        distractors: added after those of `labels`.
        templates: each with one "{}" for the text prompt; they replace those of `labels`.

    Names that differ only in case, blanks or Unicode normal form ("cat", "Cat", "cat ") are
    separate classes, and a `UserWarning` names them; none for a `LabelSet`, which has been here.

    Raises:
        LabelError: no label at all, an empty label or text prompt, a label given twice or also as
            a distractor, a value that is no text or has control characters (line breaks, tabs,
            escapes), a threshold that is no finite number, a template without exactly one "{}"; in
            a file also an unknown or repeated key; a file that is missing, or is no YAML or JSON.
            The message names the label, or the file and line.
    """
    draft = _draft(labels)
    more = [
        (LabelClass(name, (name,), distractor=True), f"distractor {i}")
        for i, name in enumerate(_texts(distractors, "distractors"), 1)
    ]
    wanted = [d for d in draft.classes if not d[0].distractor]
    competing = [d for d in draft.classes if d[0].distractor]
    if not wanted:
        raise LabelError(
            f'{draft.origin}: expected at least one label, got none; give one, such as "person"'
        )
    classes = _checked_classes([*wanted, *competing, *more])
    if not isinstance(labels, LabelSet) or more:
        _warn_of_lookalikes(classes)
    chosen = draft.templates if templates is None else _texts(templates, "templates")
    return LabelSet(classes, None if chosen is None else _checked_templates(chosen))


def _draft(labels: Any) -> _Draft:
    if isinstance(labels, LabelSet):
        return _Draft(
            [(c, f"label {i}") for i, c in enumerate(labels.classes, 1)], labels.templates
        )
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
    else:
        names = _texts(labels, "labels")
        prompts = [(name,) for name in names]
    classes = [LabelClass(*pair) for pair in zip(names, prompts, strict=True)]
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
        if not c.prompts:
            raise LabelError(
                f"{place}: expected prompts for {c.name!r}, got none; give one or leave the key out"
            )
        for prompt in c.prompts:
            _check_text(prompt, place, f"prompt for {c.name!r}")
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


def _warn_of_lookalikes(classes: Sequence[LabelClass]) -> None:
    first: dict[str, str] = {}
    pairs = []
    for name in (c.name for c in classes):
        same = first.setdefault(_folded(name), name)
        if same != name:
            # a difference in normal form alone is seen in escapes only
            show = ascii if _normal(same) == _normal(name) else repr
            pairs.append(f"{show(same)} and {show(name)}")
    if pairs:
        more = f" (and {len(pairs) - 3} more pairs)" if len(pairs) > 3 else ""
        warnings.warn(
            "labels that differ only in case, blanks or Unicode form are separate classes: "
            f"{', '.join(pairs[:3])}{more}; remove one of each pair if both mean the same",
            stacklevel=3,
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
    try:
        if origin.lower().endswith(".json"):
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


def _file_text(path: str | os.PathLike[str], origin: str) -> str:
    try:
        if not Path(path).is_file():  # a pipe would wait for a writer
            what = "something that is no file" if os.path.exists(path) else "nothing there"
            raise LabelError(
                f"{origin}: expected a labels file (YAML or JSON), found {what}; check the path"
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
        fields = self.fields(root, _FILE_KEYS)
        wanted = self.classes(fields["classes"]) if "classes" in fields else []
        distractors = [
            (LabelClass(self.text(n), (self.text(n),), distractor=True), self.place(n))
            for n in self.items(fields.get("distractors"))
        ]
        templates = (
            tuple(self.text(n) for n in self.items(fields["templates"]))
            if "templates" in fields
            else None
        )
        return _Draft([*wanted, *distractors], templates, self.origin)

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
        threshold, supercategory = (
            _given(fields.get(key)) for key in ("presence_threshold", "supercategory")
        )
        return replace(
            made,
            presence_threshold=None if threshold is None else self.number(threshold),
            supercategory="" if supercategory is None else self.text(supercategory),
        )

    def label_class(self, name: yaml.Node, prompts: yaml.Node | None) -> LabelClass:
        prompts = _given(prompts)
        if prompts is None:
            return LabelClass(self.text(name), (self.text(name),))
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
        if c.prompts != (c.name,):
            row["prompts"] = list(c.prompts)
        if c.presence_threshold is not None:
            row["presence_threshold"] = c.presence_threshold
        if c.supercategory:
            row["supercategory"] = c.supercategory
        classes.append(row)
    document: dict[str, Any] = {"classes": classes}
    if distractors := [c.name for c in labels.classes if c.distractor]:
        document["distractors"] = distractors
    if labels.templates is not None:
        document["templates"] = list(labels.templates)
    return yaml.safe_dump(document, allow_unicode=True, sort_keys=False, width=120)


def numbers(names: Sequence[str]) -> list[str]:
    """How to tell masks of one label apart: "#1", "#2", ... for a name that occurs more than once,
    an empty text for any other."""
    counts, so_far = Counter(names), Counter[str]()
    shown = []
    for name in names:
        so_far[name] += 1
        shown.append(f"#{so_far[name]}" if counts[name] > 1 else "")
    return shown
