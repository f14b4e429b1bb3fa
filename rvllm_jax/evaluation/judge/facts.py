"""Facts that a caption states, found by rules, and how many of them another one states too.

Four kinds: things and doings (words that are not in a list of function words, reduced to their
stem), colours, counts, and relations (a thing, a preposition, a thing). No dictionary and no parser
stand behind it, with these limits: synonyms are different words ("boy" and "child"), a denial is
not understood ("no dog" states a dog), nor is who does what to whom, beyond prepositions; a count
belongs to the next word that is no colour; words with two senses are one. What it is good for: the
same measure for everybody, without a network. A low overlap is to be looked at, or put before a
judge, not believed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_jax.evaluation.judge.verdicts import FAITHFULNESS, Item, Judge, Verdict

KINDS = ("things", "colours", "counts", "relations")
UNSUPPORTED = 0.5  # a caption with less of its facts in the reference counts as hallucinated

_COLOURS = (
    "red orange yellow green blue purple violet pink brown black white grey beige gold golden "
    "silver tan teal turquoise maroon navy cyan magenta"
).split()
_NUMBERS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()
    )
}
_PREPOSITIONS = (
    "above across after along around at before behind below beneath beside between by down from in "
    "inside into near off on onto out over past through to toward towards under up upon with "
    "without"
).split()
_FUNCTION = frozenset(
    "a an the and or but nor so yet if then than as that this these those there here it its he him "
    "his she her hers they them their we us our you your i me my who whom whose which what when "
    "where why how be am is are was were been being do does did done doing have has had having "
    "will would can could may might must shall should not no of for about during while also very "
    "just some any each every all both other another such only own same too more most many much "
    "few several again once now ever never always often video clip image frame scene shows show "
    "showing shown seen see appear appears appearing visible depicts".split()
)
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot",
    "teeth": "tooth", "mice": "mouse", "knives": "knife", "wolves": "wolf",
}  # fmt: skip
_ENDINGS = ("ings", "ing", "edly", "ed", "ies", "es", "s", "ly")


def facts(text: str) -> dict[str, set[str]]:
    """The facts of a text by kind.

    >>> stated = facts("Two men in red shirts are standing on a bridge.")
    >>> sorted(stated["things"]), stated["colours"], stated["counts"]
    (['bridg', 'man', 'shirt', 'stand'], {'red'}, {'2 man'})
    >>> sorted(stated["relations"])
    ['man in shirt', 'stand on bridg']
    """
    stated: dict[str, set[str]] = {kind: set() for kind in KINDS}
    last, between, count = "", "", ""
    for token in re.findall(r"[^\W_]+(?:'[^\W_]+)?|[.;:!?]", f"{text}.".casefold()):
        if token in ".;:!?":
            if count:  # of nothing that is named: "Two."
                stated["counts"].add(count)
            last = between = count = ""
        elif token in _COLOURS or token == "gray":
            stated["colours"].add("grey" if token == "gray" else token)
        elif token in _NUMBERS or token.isdecimal():
            count = str(_NUMBERS.get(token, token))
        elif token in _PREPOSITIONS:
            between = token if last else ""
        elif token not in _FUNCTION:
            word = _stem(token)
            stated["things"].add(word)
            if count:
                stated["counts"].add(f"{count} {word}")
            if between:
                stated["relations"].add(f"{last} {between} {word}")
            last, between, count = word, "", ""
    return stated


def overlap(caption: str, reference: str) -> dict[str, Mapping[str, Sequence[str]]]:
    """The facts of a caption that the reference has, that it has not, and that the caption misses.

    >>> overlap("A red dog.", "A black dog runs.")["unsupported"]
    {'things': [], 'colours': ['red'], 'counts': [], 'relations': []}
    """
    stated, true = facts(caption), facts(reference)
    return {
        "supported": {kind: sorted(stated[kind] & true[kind]) for kind in KINDS},
        "unsupported": {kind: sorted(stated[kind] - true[kind]) for kind in KINDS},
        "missing": {kind: sorted(true[kind] - stated[kind]) for kind in KINDS},
    }


class FactJudge(Judge):
    """Judges by `overlap`, every answer: the share of its facts that the reference has.

    Verdicts have no `correct` and no `score`; of an answer without any fact the overlap is None.
    """

    faithfulness = True

    def __init__(self, name: str = ""):
        self.name = name or "facts"

    def made_with(self, benchmark: str) -> dict[str, Any]:
        return {"backend": "facts", "model": "facts", "parameters": {}}

    def chosen(self, item: Item) -> bool:
        return item.criterion == FAITHFULNESS

    def judge(self, item: Item, benchmark: str) -> Verdict:
        compared = overlap(item.answers[0], item.reference)
        supported, unsupported, missing = (
            sum(map(len, compared[name].values()))
            for name in ("supported", "unsupported", "missing")
        )
        claims, true = supported + unsupported, supported + missing
        return Verdict(
            overlap=supported / claims if claims else None,
            model="facts",
            more={
                "claims": claims,
                "supported": supported,
                "recall": supported / true if true else None,
                "facts": compared,
            },
        )


def _stem(word: str) -> str:
    """A word without one common ending, a consonant that it doubled, and a last e.

    "moves", "moving" and "move" are "mov".
    """
    word = word.removesuffix("'s")
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for ending in _ENDINGS:
        stem = word.removesuffix(ending)
        if stem == word or len(stem) < 3 or not set(stem) & set("aeiouy"):
            continue
        if word.endswith(("ss", "us", "is", "eed")):
            continue
        if ending == "ies":
            return stem + "y"
        doubled = stem[-1] == stem[-2] and stem[-1] not in "lsz" and ending[0] in "ie"
        return stem[:-1] if doubled else stem.removesuffix("e")
    return word.removesuffix("e") if len(word) > 3 else word
