"""The questions of a benchmark, each with an id of its own, and what they are judged by."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.fingerprint import SHORT, digest, recorded
from rvllm_jax.types import Example, Turn

TEXT_GENERATION = "video_text_generation"
_NAMED = 5  # how many offenders a message names

_RENAMED: dict[str, str] = {}  # name of today -> name when info.json recorded it first

Key = tuple[str, str]  # a question's id, and the control that it is asked under


class Criterion(NamedTuple):
    """What an answer of text generation is judged by; type: of the questions that are."""

    name: str
    type: str


CRITERIA = {
    "CI": Criterion("correctness", "generic"),
    "DO": Criterion("detail", "generic"),
    "CU": Criterion("context", "generic"),
    "TU": Criterion("temporal", "temporal"),
    "C": Criterion("consistency", "consistency"),  # of two questions that share their truth
}


class EvaluationError(RvllmError, ValueError):
    """An evaluation that cannot be started or continued as asked; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    id: the example's, with "/1", "/2", ... behind it where that has several turns. criteria:
    of text generation. pair: what the two questions of a consistency item share, else "". failed:
    why it cannot be asked, else "".
    """

    id: str
    video: str
    turn: Turn
    criteria: tuple[str, ...] = ()
    pair: str = ""
    failed: str = ""


def questions_of(
    benchmark: str,
    examples: Iterable[Example],
    unusable: Iterable[Example] = (),
    reasons: Mapping[str, str] | None = None,
) -> list[Question]:
    """Every turn as a question of its own; `unusable` ones failed, by `reasons` {video: why}.

    Raises EvaluationError where two have the same id.
    """
    reasons = reasons or {}
    questions = [q for example in examples for q in _checked(benchmark, example, "")]
    for example in unusable:
        reason = reasons.get(example.video, "its video is not there")
        questions += _checked(benchmark, example, reason)
    counts = Counter(question.id for question in questions)
    twice = [id for id, count in counts.items() if count > 1]
    if twice:
        raise EvaluationError(
            f"{benchmark}: {len(twice)} question ids come twice: {', '.join(twice[:_NAMED])}; give "
            "every question its own"
        )
    return questions


def _checked(benchmark: str, example: Example, failed: str) -> list[Question]:
    generation = benchmark == TEXT_GENERATION
    lacking = [turn.kind for turn in example.turns if generation and not criteria(turn.kind)]
    if lacking:
        types = dict.fromkeys(criterion.type for criterion in CRITERIA.values())
        raise EvaluationError(
            f"{benchmark}: {example.id!r} has the type {lacking[0]!r}, expected one of "
            f"{', '.join(types)}; prepare Video-ChatGPT's own files"
        )
    return example_questions(example, generation, failed)


def example_questions(
    example: Example, generation: bool = False, failed: str = ""
) -> list[Question]:
    """An example's turns as questions. generation: they are judged by criteria."""
    several = len(example.turns) > 1
    questions = []
    for number, turn in enumerate(example.turns, 1):
        judged_by = criteria(turn.kind) if generation else ()
        id = f"{example.id}/{number}" if several else example.id
        pair = example.id if "C" in judged_by else ""
        questions.append(Question(id, example.video, turn, judged_by, pair, failed))
    return questions


def criteria(type: str) -> tuple[str, ...]:
    """The criteria of a type of text generation; none of another type."""
    return tuple(key for key, criterion in CRITERIA.items() if criterion.type == type)


def some(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def fingerprint(questions: Iterable[Question], frames: Mapping[str, int]) -> str:
    """Names the questions, their order, and the files that their frames come from.

    frames: video -> the checksum of its file.
    """
    return digest((f"({recorded(q, _RENAMED)}, {frames.get(q.video)!r})" for q in questions), SHORT)
