"""A benchmark's answers: the lines of answers.jsonl, and info.json beside it.

They are written as they come, continued and never mixed (`AnswerFile`), and read and checked as any
others are (`read_answers`).
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rvllm_jax.evaluation.answers.questions import CRITERIA, EvaluationError, Key, some
from rvllm_jax.system import file_layout, fingerprint
from rvllm_jax.system.atomic import make_folder, write_json
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.system.lines import JsonLines, now, read_lines, unlike

ANSWERS, INFO = "answers.jsonl", "info.json"
CONTROLS = ("", "blind", "shuffled", "swapped")
_TEXTS = (
    *("question_id", "video", "question", "truth", "type", "pair", "control", "answer", "failed"),
)

_NUMBER = (int, float)
_KINDS = {  # of the keys of info.json that are read
    **dict.fromkeys(("benchmark", "split", "model", "frames", "date"), str),
    **dict.fromkeys(("fingerprints", "checkpoint", "made_with", "official_evaluator"), dict),
    **dict.fromkeys(("lacks", "training_videos", "predictions_sha256"), [str]),
    **{"questions": int, "complete": bool, "overlap": dict, "prior": dict},
    **{"overlap.videos": [str], "overlap.told": str},
    **{"prior.accuracy": dict, "prior.how": str, "prior.rule": str, "prior.accuracy.all": _NUMBER},
}


class AnswersError(RvllmError, ValueError):
    """Answers that cannot be judged as they are; says where, and what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One question and what a model answered; `truth`: the reference, by its key in the file.

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
            f"{path}: {len(twice)} question ids come twice: {some(twice)}; every question has its "
            "own, and is answered once"
        )
    broken = [f"{pair} ({len(truths)})" for (pair, _), truths in pairs.items() if len(truths) != 2]
    if broken:
        raise AnswersError(
            f"{path}: consistency is judged on two questions, and {len(broken)} pairs have another "
            f"number: {some(broken)}; continue the evaluation to its end"
        )
    differing = [pair for (pair, _), truths in pairs.items() if truths[0] != truths[1]]
    if differing:
        raise AnswersError(
            f"{path}: the two questions of {some(differing)} have different truths; a consistency "
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
    info = file_layout.ANSWERS.read(path, advice=advice, error=AnswersError, kinds=_KINDS)
    for name in ("benchmark", "split"):
        if not isinstance(info.get(name), str) or not info[name]:
            raise AnswersError(f"{path}: has no {name}, which no score goes without; add it")
    return info


def fingerprints(folder: Path, info: Mapping[str, Any]) -> dict[str, str]:
    """What scores of a benchmark's folder are of, by name: "model" and "questions" as its info.json
    has them (not where an earlier version wrote it), and all that is judged of its "answers"."""
    names, path = dict(info.get("fingerprints") or {}), folder / ANSWERS
    if path.is_file():
        lines = sorted(repr(dataclasses.astuple(answer)) for answer in read_answers(path))
        names["answers"] = fingerprint.digest(lines, fingerprint.SHORT)
    return names


def write_info(folder: Path, info: Mapping[str, Any]) -> None:
    """Writes folder/info.json."""
    write_json(folder / INFO, file_layout.ANSWERS.stamp(info))


class AnswerFile(JsonLines):
    """The file, open for one process. `done` are the questions that it holds, by id and control."""

    def __init__(self, folder: Path, info: Mapping[str, Any], keys: set[Key]):
        """Begins folder/answers.jsonl, or takes it up; a half-written last line is cut off.

        info: info.json, whose "made_with" must be that of the answers which are there. keys: all
        that will be answered. Raises EvaluationError where the file is of another model, split or
        benchmark, or holds an answer twice or to a question that is not among `keys`; LinesError
        for a line that is broken.
        """
        known, path = read_info_if_any(folder), folder / ANSWERS
        if known:
            _check_same(folder, known, info)
        self.done = self._done(folder, info, keys) if path.exists() else set()
        if self.done and not known:
            raise EvaluationError(
                f"{folder}: {INFO}, which says what answered {ANSWERS}, is not there; restore "
                "it, or name another --out"
            )
        make_folder(folder)
        if not known:
            write_info(folder, {**info, "complete": False, "date": now()})
        super().__init__(path)

    @staticmethod
    def read(folder: Path) -> list[dict[str, Any]]:
        """All its lines."""
        return [record for _, record in read_lines(folder / ANSWERS)]

    @staticmethod
    def _done(folder: Path, info: Mapping[str, Any], keys: set[Key]) -> set[Key]:
        done: set[Key] = set()
        for where, record in read_lines(folder / ANSWERS):
            key = str(record.get("question_id")), str(record.get("control"))
            if key not in keys or record.get("split") != info["split"]:
                raise EvaluationError(
                    f"{where}: answers {key[0]!r} of split {record.get('split')!r}, which is no "
                    f"question of {info['benchmark']} {info['split']}; name another --out"
                )
            if key in done:
                raise EvaluationError(
                    f"{where}: answers {key[0]!r} a second time; remove one of its lines"
                )
            done.add(key)
        return done


def read_info_if_any(folder: Path) -> dict[str, Any]:
    """What folder/info.json holds; {} where it is not there. Raises EvaluationError if broken,
    LayoutError if newer."""
    how = dict(absent={}, error=EvaluationError, kinds=_KINDS)
    return file_layout.ANSWERS.read(folder / INFO, **how)


def _check_same(folder: Path, known: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    there = known.get("made_with", {})
    if there:  # what an earlier version did not record is not known
        there = info["made_with"] | there
    there = there | {"benchmark": known.get("benchmark")}
    others = unlike(there, info["made_with"] | {"benchmark": info["benchmark"]})
    others = others or fingerprint.differing(known.get("fingerprints"), info.get("fingerprints"))
    if others:
        raise EvaluationError(
            f"{folder}: holds answers that were made otherwise, and answers are not mixed: "
            f"{others}. Continue with what they were made with, or name another --out"
        )
