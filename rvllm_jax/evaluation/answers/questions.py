"""The questions of a benchmark, each with an id of its own."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

from rvllm_jax.data.annotations.example import Example, Turn
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.fingerprint import SHORT, digest, recorded

TEXT_GENERATION = "video_text_generation"
# Which criteria a question of each type of text generation is judged by.
CRITERIA = {"generic": ("CI", "DO", "CU"), "temporal": ("TU",), "consistency": ("C",)}
_NAMED = 5  # how many ids a message names

_RENAMED: dict[str, str] = {}  # name of today -> name when info.json recorded it first

Key = tuple[str, str]  # a question's id, and the control that it is asked under


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
    questions = [q for example in examples for q in _split_turns(benchmark, example, "")]
    for example in unusable:
        reason = reasons.get(example.video, "its video is not there")
        questions += _split_turns(benchmark, example, reason)
    counts = Counter(question.id for question in questions)
    twice = [id for id, count in counts.items() if count > 1]
    if twice:
        raise EvaluationError(
            f"{benchmark}: {len(twice)} question ids come twice: {', '.join(twice[:_NAMED])}; give "
            "every question its own"
        )
    return questions


def _split_turns(benchmark: str, example: Example, failed: str) -> list[Question]:
    generation = benchmark == TEXT_GENERATION
    several = len(example.turns) > 1
    questions = []
    for number, turn in enumerate(example.turns, 1):
        criteria = CRITERIA.get(turn.kind, ()) if generation else ()
        if generation and not criteria:
            raise EvaluationError(
                f"{benchmark}: {example.id!r} has the type {turn.kind!r}, expected one of "
                f"{', '.join(CRITERIA)}; prepare Video-ChatGPT's own files"
            )
        id = f"{example.id}/{number}" if several else example.id
        pair = example.id if "C" in criteria else ""
        questions.append(Question(id, example.video, turn, criteria, pair, failed))
    return questions


def fingerprint(questions: Iterable[Question], frames: Mapping[str, int]) -> str:
    """Names the questions, their order, and the files that their frames come from.

    frames: video -> the checksum of its file.
    """
    return digest((f"({recorded(q, _RENAMED)}, {frames.get(q.video)!r})" for q in questions), SHORT)
