"""When an answer counts as right, without a judge.

`exact` is the measure of training's own evaluation. Published benchmarks have two rules. `official`
is that of ActivityNet-QA's evaluator (Yu et al. 2019): an answer is right if it is the reference,
character by character; every question of the annotations is in the denominator, answered or not; an
answer to a question that comes twice among the predictions counts twice. `normalised` compares what
remains of both when case, punctuation, articles and outer white space are taken off, and by the
type of the answer:

- yes/no: the first word, if it is "yes" or "no" ("Yes, he is." is "yes");
- number: a number in words is its figures ("two" is "2");
- colour: "gray" is "grey".
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

RULES = ("official", "normalised")

# What the numbers that the annotations give for types stand for.
TYPES: Mapping[str, Mapping[int, str]] = {
    "activitynet_qa": dict(enumerate((
        "motion", "spatial relation", "temporal relation", "yes/no", "color", "object", "location",
        "number", "other",
    ))),
    "tgif_frameqa": dict(enumerate(("object", "number", "color", "location"))),
}  # fmt: skip
FREE = ("yes/no", "color", "object", "location", "number", "other")  # ActivityNet-QA's "free" types

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)} | {
    tens: str(10 * number)
    for number, tens in enumerate("thirty forty fifty sixty seventy eighty ninety".split(), 3)
}
_TRAILING = ".,;:!?"
_ARTICLES = ("a", "an", "the")


def type_name(benchmark: str, type: str) -> str:
    """The name of a type that a benchmark gives a number; others are their own.

    >>> type_name("activitynet_qa", "3"), type_name("msvd_qa", "3")
    ('yes/no', '3')
    """
    names = TYPES.get(benchmark, {})
    return names.get(int(type), type) if type.isdecimal() else type


def default_rule(benchmark: str) -> str:
    """The rule by which `correct` is judged where none is chosen."""
    return "official" if benchmark == "activitynet_qa" else "normalised"


def exact(prediction: str, reference: str) -> bool:
    """Whether `prediction` is `reference`, character by character, but for white space around them.

    >>> exact(" red ", "red"), exact("Red", "red"), exact("red.", "red")
    (True, False, False)
    """
    return prediction.strip() == reference.strip()


def normalise(text: str) -> str:
    """`text` without outer white space, case and trailing punctuation; inner space made single.

    For comparison with answers that other people wrote; `exact` does not use it.

    >>> normalise("  Left to  RIGHT. ")
    'left to right'
    """
    return " ".join(text.casefold().split()).rstrip(_TRAILING).rstrip()


def same(answer: str, reference: str, type: str = "") -> dict[str, bool]:
    """Whether an answer is right by each rule. `type`: a name of TYPES, or any other.

    >>> same("Yes, he is.", "yes", "yes/no")
    {'official': False, 'normalised': True}
    """
    return {
        "official": answer == reference,
        "normalised": _plain(answer, type) == _plain(reference, type) != "",
    }


def official(
    predictions: Sequence[tuple[str, str]],
    references: Mapping[str, tuple[str, str]],
    free: Collection[str] = (),
) -> tuple[dict[str, float], dict[str, int]]:
    """Accuracy of predictions (question id, answer) by ActivityNet-QA's evaluator, and questions.

    references: question id -> (type, answer), of every question. Returns `{"all": share, TYPE:
    share}` and counts likewise; duplicated predictions count as often as they come, missing ones as
    wrong.
    free: types that are counted together too, as "free". The evaluator's own "Free" has the right
    ones of these over the questions of whichever types stand behind the first three in the
    annotations (its dictionary was ordered by type before Python 3.6): 62.7 % in place of 45.0 %,
    for instance. Here it is over their own questions.
    Raises KeyError, as the evaluator does, for a prediction about no question of `references`.
    """
    counts = Counter(type for type, _ in references.values())
    right: Counter[str] = Counter()
    for id, answer in predictions:
        type, reference = references[id]
        right[type] += answer == reference
    shares = {type: right[type] / counts[type] for type in sorted(counts)}
    if types := counts.keys() & set(free):
        counted = sum(counts[type] for type in types)
        shares["free"] = sum(right[type] for type in types) / counted
        counts["free"] = counted
    total = len(references)
    return {"all": right.total() / total} | shares, {"all": total} | dict(counts)


def _plain(text: str, type: str) -> str:
    words = re.sub(r"[^\w\s.'-]|[.'-](?!\w)|(?<!\w)[.'-]", " ", normalise(text)).split()
    while len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    if type == "yes/no" and words and words[0] in ("yes", "no"):
        return words[0]
    if type == "number":
        words = [_NUMBERS.get(word, word) for word in words]
    if type in ("color", "colour"):
        words = ["grey" if word == "gray" else word for word in words]
    return " ".join(words)
