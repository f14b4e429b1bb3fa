"""A model's answers as they were written: the lines of answers.jsonl, and info.json beside it."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rvllm_jax.system import fingerprint
from rvllm_jax.system.atomic import read_json
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.lines import read_lines

ANSWERS, INFO = "answers.jsonl", "info.json"
CONTROLS = ("", "blind", "shuffled", "swapped")
CRITERIA = ("CI", "DO", "CU", "TU", "C")
_NAMED = 5  # how many ids a message names
_TEXTS = (
    *("question_id", "video", "question", "truth", "type", "pair", "control", "answer", "failed"),
)


class AnswersError(RvllmError, ValueError):
    """Answers that cannot be judged as they are; says where, and what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One question and what a model said.

    `criteria`: of text generation, some of CRITERIA; none: right or wrong. `pair`: shared by the
    two questions of a consistency item. `control`: one of CONTROLS. `failed`: why nothing was
    asked, else "".
    """

    question_id: str
    video: str
    question: str
    truth: str
    type: str
    criteria: tuple[str, ...]
    pair: str
    control: str
    answer: str
    failed: str

    @property
    def place(self) -> tuple[str, str]:
        """What names it within its file."""
        return self.question_id, self.control


def read_answers(path: str | Path) -> Iterator[Answer]:
    """The answers of a file, in its order, checked one by one.

    Raises AnswersError, or LinesError for a line that is no JSON.
    """
    for where, record in read_lines(path):
        lacking = [name for name in (*_TEXTS, "criteria") if name not in record]
        if lacking:
            raise AnswersError(
                f"{where}: has no {', '.join(lacking)}; expected the lines that "
                "`python -m rvllm_jax.evaluate` writes"
            )
        for name in _TEXTS:
            if not isinstance(record[name], str):
                raise AnswersError(f"{where}: {name} is {record[name]!r:.50}, expected a text")
        criteria = record["criteria"]
        if not isinstance(criteria, list) or set(map(str, criteria)) - set(CRITERIA):
            raise AnswersError(
                f"{where}: criteria {criteria!r:.60}, expected a list of some of "
                f"{', '.join(CRITERIA)}"
            )
        if record["control"] not in CONTROLS:
            raise AnswersError(f"{where}: control {record['control']!r} is none of {CONTROLS}")
        texts = {name: record[name] for name in _TEXTS}
        yield Answer(criteria=tuple(criteria), **texts)


def check_answers(path: str | Path) -> Counter[str]:
    """How many answers each control has ("": the model's own); looks at every line, keeps ids only.

    Raises AnswersError for an id that comes twice and for a half of a consistency item.
    """
    seen: set[tuple[str, str]] = set()
    pairs: dict[tuple[str, str], list[str]] = {}
    twice, counts = [], Counter()
    for answer in read_answers(path):
        if answer.place in seen:
            twice.append(" ".join(filter(None, answer.place)))
        seen.add(answer.place)
        counts[answer.control] += 1
        if "C" in answer.criteria:
            if not answer.pair:
                raise AnswersError(f"{path}: {answer.question_id!r} has criterion C and no pair")
            pairs.setdefault((answer.pair, answer.control), []).append(answer.truth)
    if twice:
        raise AnswersError(
            f"{path}: {len(twice)} question ids come twice: {_some(twice)}; every question has its "
            "own, and is answered once"
        )
    broken = [f"{pair} ({len(truths)})" for (pair, _), truths in pairs.items() if len(truths) != 2]
    if broken:
        raise AnswersError(
            f"{path}: consistency is judged on two questions, and {len(broken)} pairs have another "
            f"number: {_some(broken)}; continue the evaluation to its end"
        )
    differing = [pair for (pair, _), truths in pairs.items() if truths[0] != truths[1]]
    if differing:
        raise AnswersError(
            f"{path}: the two questions of {_some(differing)} have different truths; a consistency "
            "item has one"
        )
    if not counts:
        raise AnswersError(f"{path}: holds no answer; run `python -m rvllm_jax.evaluate`")
    return counts


def read_info(folder: Path) -> dict[str, Any]:
    """info.json of a benchmark's folder, with its benchmark and split.

    Raises AnswersError where it is absent, broken or silent about either.
    """
    path = folder / INFO
    advice = "it names the benchmark and split of the answers, which no score goes without"
    info = read_json(path, advice=advice, error=AnswersError)
    for name in ("benchmark", "split"):
        if not isinstance(info.get(name), str) or not info[name]:
            raise AnswersError(f"{path}: has no {name}, which no score goes without; add it")
    return info


def digest(*texts: str) -> str:
    """64 bits of the SHA-256 of texts, in hexadecimal."""
    return fingerprint.digest(["\0".join(texts)], fingerprint.SHORT)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
