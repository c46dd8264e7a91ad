"""Captions: the phrases that name things in a sentence become labels, each with its places there.

GLIP (Li et al., 2022, https://arxiv.org/abs/2112.03857) tags the words of a caption and takes the
chunks {<DT>?<JJ.*>*<NN.*>+}. Its tagger is a model that would have to be downloaded; the rule here
has lists of words instead, and knows English alone:

- Articles, numbers and possessives begin a phrase and are left out of it. Punctuation, pronouns,
  conjunctions, prepositions ("left of" is one), adverbs and verbs end it. All other words are in
  phrases.
- A word in -ing is a verb, unless it is one of `_ING_NOUNS`, follows an article ("a sleeping cat"),
  or is the first half of a known pair ("dining table"). A word in -ed is one behind a noun and in
  front of no noun ("a car parked here"). Other verbs are those in the lists.
- What only says how something is (colours alone, words behind "is") is no phrase. "black and white
  cat" is one phrase.
- "cat . red ball . dog", with a blank in front of the dots as for Grounding DINO (Liu et al., 2023,
  https://arxiv.org/abs/2303.05499), is a list: each of its items is a label as it stands.

What it does not know: verbs that are not in the lists ("a dog herds sheep" is one phrase), and
nouns that are in them; what words refer to ("it"); which adjectives may stand alone; any other
language, where only punctuation separates. Give labels one by one where it is wrong.
"""

import re
import unicodedata
from dataclasses import replace
from typing import NamedTuple

from clip2sam.data.labels import LabelSet, as_label_set, named
from clip2sam.errors import LabelError, shown


class Word(NamedTuple):
    """A word of a text, without the punctuation around it."""

    text: str
    start: int
    """Its first character's place in the text."""
    end: int
    """The place behind its last character."""
    is_first: bool
    """Whether it is the first of the text, or punctuation stands in front of it."""


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OPENING = _listed(
    """a an the this these that those my your his her its our their some any each every both either
    neither no another all several many few various multiple numerous two three four five six seven
    eight nine ten eleven twelve dozen dozens hundred hundreds one"""
)
"""They begin a phrase."""

_OTHER = _listed(
    """he she it they i we you him them me us who whom whose which what there here someone somebody
    something anyone anything everyone everything nobody nothing others himself herself itself
    themselves it's he's she's they're there's that's who's

    and or but nor so yet if then than as because while when whenever where whereas although though
    until unless since whether

    in on at of to from by with without w near under underneath over above below behind beside
    besides between among amongst amid across against along alongside around through throughout into
    onto off out up down inside outside toward towards upon within past per via during before after
    beyond beneath atop about for like unlike opposite except

    very quite too also just only not really together away apart well now still already almost back
    forward forwards backward backwards upward downward upside sideways indoors outdoors outside
    nearby overhead ahead aside abroad alone else even again once twice both

    isn't aren't wasn't weren't doesn't don't didn't hasn't haven't can't won't"""
)
"""Pronouns, conjunctions, prepositions and adverbs: they end a phrase."""

_PLACES = _listed("back inside outside opposite nearby overhead upside down up near above")
"""Some of them that stand in front of a noun as well: "the back tire"."""

_BE = _listed("is are was were be been being am isn't aren't wasn't weren't")
_AUXILIARIES = _BE | _listed(
    "has have had does do did can could will would shall should may might must"
)

_VERBS = _listed(
    """sit stand lie hold ride run walk play jump eat drink sleep look fly wear carry pull push
    throw catch kick hit chase swing read write cut cook drive swim climb lean pose smile wait cross
    feed pass hang rest graze surf come go get take give make use keep fall move turn travel
    approach follow enter prepare serve talk speak listen touch lick bite sniff chew contain show
    say see have lay face float perch hover reach appear seem include display overlook surround
    cover fill line dance laugh cry sing work watch try help begin start continue roll grow shine
    seem"""
)
_S_NOUNS = _listed(
    "stands rides walks drinks cuts looks rests lines covers faces rolls watches turns passes works"
)
"""Nouns that look like verbs: they are verbs behind a noun and in front of no noun alone."""

_PAST = _listed(
    """held worn seen made sat stood lay laid eaten taken shown built hung driven ridden thrown
    caught kept ran flew drove rode wore ate drank slept went came took gave grown lit spread set
    tied filled used placed located"""
)

_ING_NOUNS = _listed(
    """ring king wing thing string spring swing sling bing ping building painting drawing ceiling
    railing awning earring clothing bedding wedding siding flooring roofing sibling duckling
    seedling pudding dumpling stocking icing frosting lighting lining carving crossing landing
    opening clearing covering coating scaffolding decking fencing netting padding wrapping writing
    handwriting lettering morning evening topping filling stuffing wiring piping herring starling
    gosling viking shilling offspring paneling tubing rigging marking warning heading bearing
    greeting pairing"""
)
_ING_PAIRS = {
    "dining": "table tables room rooms chair chairs hall car",
    "living": "room rooms",
    "waiting": "room rooms area",
    "swimming": "pool pools trunks cap",
    "parking": "lot lots meter meters garage space spaces sign",
    "shopping": "cart carts bag bags mall basket",
    "sleeping": "bag bags",
    "washing": "machine machines",
    "sewing": "machine machines",
    "vending": "machine machines",
    "running": "shoe shoes track",
    "walking": "stick sticks",
    "hiking": "boot boots trail",
    "cutting": "board boards",
    "rolling": "pin pins",
    "baking": "sheet sheets tray pan",
    "frying": "pan pans",
    "mixing": "bowl bowls",
    "fishing": "rod rods boat boats pole net",
    "sailing": "boat boats ship",
    "boxing": "glove gloves ring",
    "diving": "board boards",
    "skating": "rink",
    "chewing": "gum",
    "whipping": "cream",
    "watering": "hole can cans",
    "racing": "car cars bike",
    "riding": "boots helmet",
    "wedding": "dress",
    "wrapping": "paper",
    "writing": "desk",
    "flying": "saucer",
}

_ED_NOUNS = _listed("bed flowerbed seabed sunbed moped biped seed birdseed seaweed weed shed sled")
_LY_NOUNS = _listed(
    """fly butterfly dragonfly firefly jelly belly lily family trolley curly friendly holy ally
    dolly assembly supply ugly smelly silly elderly lovely lonely chilly bully woolly wooly barfly
    doily melancholy reply"""
)

_COLOURS = _listed(
    """red green blue yellow purple violet pink brown black white gray grey cyan magenta beige tan
    teal turquoise navy maroon"""
)
"""They name no thing; "orange", "gold" and "silver" may."""

_PLACE = re.compile(
    r"(to|on|at|in) the (left side|right side|left|right|top|bottom|edge|end|middle|center|centre|"
    r"back|front|corner|background|foreground|distance|side|picture|photo|photograph|image|scene|"
    r"air)( of)?( |$)"
)
"""Where something is: no phrase, unless a noun follows ("on the left hand")."""

_RELATION = re.compile(
    r"(left of|right of|in front of|on top of|next to|close to|full of|each other|one another|"
    r"(close up|close-up|photo|photograph|picture|image|view|shot|drawing) of)( |$)"
)
"""No phrase either."""

_AMOUNT = re.compile(
    r"(groups?|pairs?|couple|bunch|lots?|plenty|number|variety|set|rows?|herd|flock|crowd|pile|"
    r"stack) of( |$)"
)
"""They count what comes behind them."""


def words_of(text: str) -> list[Word]:
    """The words of a text: letters, digits and what joins them ("T-shirt", "dog's", "C++", "2.5").
    A plus or a final apostrophe ("dogs' tails") is a part of the word in front of it."""
    words: list[Word] = []
    place = 0
    while place < len(text):
        end = place
        while end < len(text) and _goes_on(text, place, end):
            end += 1
        if end == place:
            place += 1
            continue
        between = text[words[-1].end : place] if words else "."
        words.append(Word(text[place:end], place, end, bool(between.strip())))
        place = end
    return words


_INNER = "-'’‐‑&+"


def _is_letter(c: str) -> bool:
    return c.isalnum() or c == "_" or unicodedata.category(c) in ("Mn", "Mc")


def _goes_on(text: str, start: int, at: int) -> bool:
    """Whether a character belongs to the word that began at `start`."""
    c, after = text[at], text[at + 1 : at + 2]
    if _is_letter(c):
        return True
    if at == start:
        return False
    if c == "+":
        return True
    if c == "." and text[at - 1].isdecimal() and after.isdecimal():
        return True
    if c in "'’" and text[at - 1] in "sS" and after == " ":
        return True
    return c in _INNER and _is_letter(text[at - 1]) and bool(after) and _is_letter(after)


def phrases_of(caption: str) -> list[tuple[int, int]]:
    """The phrases of a caption that name things: (start, end) of each, in characters."""
    if re.search(r"\s\.(\s|$)", caption):
        return _items(caption)
    words = words_of(caption)
    kinds = _kinds(words)
    phrases: list[list[int]] = []  # numbers of words
    for i, (word, kind) in enumerate(zip(words, kinds, strict=True)):
        if kind != "in":
            continue
        if phrases and phrases[-1][-1] == i - 1 and not word.is_first:
            phrases[-1].append(i)
        elif phrases and _are_colours_before(words, kinds, phrases[-1], i):
            phrases[-1] += range(phrases[-1][-1] + 1, i + 1)
        else:
            phrases.append([i])
    return [
        (words[own[0]].start, words[own[-1]].end) for own in phrases if _names(words, kinds, own)
    ]


def _items(caption: str) -> list[tuple[int, int]]:
    """What stands between dots."""
    items = re.finditer(r"[^\s.](?:[^.]|\.(?=\d))*", caption)
    return [(m.start(), m.start() + len(m[0].rstrip())) for m in items]


def _kinds(words: list[Word]) -> list[str]:
    """What each word is: "in" a phrase; "open", in front of one; "be"; "end" otherwise."""
    low = [w.text.lower().replace("’", "'") for w in words]
    kinds: list[str] = []
    while len(kinds) < len(words):
        i = len(kinds)
        end = next((k for k in range(i + 1, len(words)) if words[k].is_first), len(words))
        rest = " ".join(low[i:end])
        if found := _RELATION.match(rest) or _place(rest):
            kinds += ["end"] * len(found[0].split())
        elif (found := _AMOUNT.match(rest)) and kinds[i - 1 : i] != ["in"]:
            kinds += ["open"] * len(found[0].split())
        else:
            kinds.append(_kind(words, low, kinds, i))
    return kinds


def _place(rest: str) -> re.Match[str] | None:
    found = _PLACE.match(rest)
    if found is None or found[3]:
        return found
    behind = rest[found.end() :].split()
    return None if behind and _may_be_noun(behind[0]) else found


def _may_be_noun(word: str) -> bool:
    return word not in _OPENING | _OTHER | _AUXILIARIES


def _kind(words: list[Word], low: list[str], kinds: list[str], i: int) -> str:
    """What one word is, by itself and those around it."""
    word = low[i]
    before = "" if words[i].is_first else kinds[i - 1]
    behind = low[i + 1] if i + 1 < len(low) and not words[i + 1].is_first else ""
    noun_behind = bool(behind) and _may_be_noun(behind)
    if word in _OPENING or (word.replace(".", "").isdecimal() and before != "in"):
        return "open"
    if word in _BE:
        there = i > 0 and low[i - 1] == "there"
        return "end" if there else "be"
    if word in _PLACES and before == "open" and noun_behind:
        return "in"
    if word in _OTHER | _AUXILIARIES:
        return "end"
    if word.endswith("ly") and word not in _LY_NOUNS and len(word) > 4:
        return "be" if before == "be" else "open" if before == "open" else "end"
    return "end" if _is_verb(low, i, before, noun_behind) else "in"


def _is_verb(low: list[str], i: int, before: str, noun_behind: bool) -> bool:
    word = low[i]
    if before == "open" and low[i - 1] != "that":
        return False
    if word.endswith("ing") and len(word) > 4:
        behind = low[i + 1] if noun_behind else ""
        return word not in _ING_NOUNS and behind not in _ING_PAIRS.get(word, "").split()
    if i and low[i - 1] in ("to", "can", "will", "would", "could", "may", "might", "who", "that"):
        return word in _VERBS or _base(word) in _VERBS
    if before != "in":
        return word in _PAST and not noun_behind
    if word.endswith("ed") and len(word) > 3 and word not in _ED_NOUNS:
        return not noun_behind
    if word in _PAST:
        return True
    if word in _VERBS:  # "two dogs run", "people walk"
        return low[i - 1].endswith("s") or low[i - 1] in _PLURALS
    return _base(word) in _VERBS and (word not in _S_NOUNS or not noun_behind)


_PLURALS = _listed("people men women children sheep cattle geese mice fish deer kids police")


def _base(word: str) -> str:
    """A verb without its ending in -s."""
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith("es") and word[:-2] in _VERBS:
        return word[:-2]
    return word[:-1] if word.endswith("s") else ""


def _are_colours_before(words: list[Word], kinds: list[str], own: list[int], i: int) -> bool:
    """Whether a phrase is colours alone, and the i-th word goes on with it: "black and white cat",
    "red, yellow and green umbrella"."""
    if any(words[k].text.lower() not in _COLOURS | {"and", "or"} for k in own):
        return False
    between = words[own[-1] + 1 : i]
    return all(w.text.lower() in ("and", "or") for w in between) and len(between) < 2


def _names(words: list[Word], kinds: list[str], own: list[int]) -> bool:
    """Whether a phrase names something."""
    before = own[0] - 1
    if before >= 0 and kinds[before] == "be" and not words[own[0]].is_first:
        return False
    return any(words[k].text.lower() not in _COLOURS | {"and", "or"} for k in own)


def labels_of_caption(caption: str) -> LabelSet:
    """Each phrase of a caption that names something, as a label: "a dog chasing a red ball" asks
    for "dog" and "red ball".

    Labels are as the caption has them, without articles, in their order there. A phrase that occurs
    several times, in capitals or not, is one label. `LabelClass.spans` has the places of each.
    The rule and what it doesn't know are at the top of this page.

    Raises:
        LabelError: the caption is no text, or names nothing.
    """
    if not isinstance(caption, str):
        raise LabelError(
            f"expected a caption as a text, got {shown(caption)}; give labels as labels"
        )
    places: dict[str, list[tuple[int, int]]] = {}
    names: dict[str, str] = {}
    for start, end in phrases_of(caption):
        name = " ".join(caption[start:end].split())
        key = unicodedata.normalize("NFC", name).casefold()
        names.setdefault(key, name)
        places.setdefault(key, []).append((start, end))
    if not names:
        raise LabelError(
            f"expected a caption that names something, got {caption!r}; write what is in the "
            "image, or give labels one by one"
        )
    classes = tuple(replace(named(name), spans=tuple(places[key])) for key, name in names.items())
    return as_label_set(LabelSet(classes, caption=caption))
