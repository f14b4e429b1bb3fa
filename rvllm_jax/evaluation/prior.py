"""Answers given without a model: the commonest answer to questions of the same type."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rvllm_jax.evaluation.answers.exact_match import normalise
from rvllm_jax.evaluation.answers.questions import Question
from rvllm_jax.types import Turn

FROM_TRAIN = "the commonest answer of the type in the training split"
FROM_OTHERS = "the commonest answer of the type to the questions about all other videos"


def prior(questions: Sequence[Question], train: Iterable[Turn] = ()) -> dict[str, Any]:
    """What is answered, and how often it is right, without looking at video or question.

    Taken from `train` where it is given; else from the questions about other videos, so that no
    video's own answers are used for it. Of equally common answers the first in the alphabet counts,
    and answers are compared as `answers.normalise` leaves them.

    Returns `{"how": in words, "rule": in words, "accuracy": {"all": share, TYPE: share}, "answers":
    {question id: answer}}`.
    """
    train = list(train)
    given = _from_train(questions, train) if train else _from_others(questions)
    right: dict[str, list[bool]] = {"all": []}
    for question, answer in zip(questions, given, strict=True):
        hit = answer == normalise(question.turn.answer)
        for kind in dict.fromkeys(("all", question.turn.kind or "all")):
            right.setdefault(kind, []).append(hit)
    return {
        "how": FROM_TRAIN if train else FROM_OTHERS,
        "rule": "equal but for case, outer white space and closing punctuation",
        "accuracy": {kind: sum(hits) / len(hits) for kind, hits in right.items()},
        "answers": {q.id: answer for q, answer in zip(questions, given, strict=True)},
    }


def _from_train(questions: Sequence[Question], train: Sequence[Turn]) -> list[str]:
    by_kind: dict[str, Counter[str]] = {}
    for turn in train:
        by_kind.setdefault(turn.kind, Counter())[normalise(turn.answer)] += 1
    commonest = {kind: _ranked(counts)[0][0] for kind, counts in by_kind.items()}
    return [commonest.get(question.turn.kind, "") for question in questions]


def _from_others(questions: Sequence[Question]) -> list[str]:
    by_kind: dict[str, Counter[str]] = {}
    of_video: dict[tuple[str, str], Counter[str]] = {}
    for q in questions:
        for counts in (
            by_kind.setdefault(q.turn.kind, Counter()),
            of_video.setdefault((q.video, q.turn.kind), Counter()),
        ):
            counts[normalise(q.turn.answer)] += 1
    ranked = {kind: _ranked(counts) for kind, counts in by_kind.items()}
    chosen = {place: _without(ranked[place[1]], counts) for place, counts in of_video.items()}
    return [chosen[q.video, q.turn.kind] for q in questions]


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _without(ranked: Sequence[tuple[str, int]], removed: Counter[str]) -> str:
    """The commonest answer once those `removed` are taken off; "" where none is left."""
    best, most = "", 0
    for answer, count in ranked:
        if count < most:
            break  # with nothing taken off, all that follow are rarer
        left = count - removed[answer]
        if left > most or (left == most > 0 and answer < best):
            best, most = answer, left
    return best
