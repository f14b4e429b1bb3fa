"""Predictions that others made, in Video-ChatGPT's forms or ActivityNet-QA's, as answers of ours.

Rows are {id, question, answer, pred}, {video_name, Q, A, pred}, {video_name, Q1, Q2, A, pred1,
pred2}, or ActivityNet-QA's {question_id, answer}. Every question of the annotations becomes a line
of answers.jsonl: one without a prediction as not answered.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rvllm_jax.data.annotations import published
from rvllm_jax.data.annotations.example import load_records
from rvllm_jax.data.annotations.read import Part, read
from rvllm_jax.evaluation.answers.answered import ANSWERS, INFO, AnswersError
from rvllm_jax.evaluation.judge import exact
from rvllm_jax.system.atomic import write_bytes, write_json
from rvllm_jax.system.fingerprint import file_digest
from rvllm_jax.system.lines import dump

_CRITERIA = {"generic": ["CI", "DO", "CU"], "temporal": ["TU"], "consistency": ["C"]}
_NAMED = 5  # how many offenders a message names


@dataclasses.dataclass(frozen=True)
class _Question:
    """A question of the annotations."""

    id: str
    video: str
    question: str
    truth: str
    type: str
    pair: str
    criteria: list[str]
    number: int  # of its turn


def import_predictions(
    predictions: Sequence[str | Path],
    annotation_files: Sequence[str | Path],
    out: str | Path,
    *,
    split: str = "",
    duplicates: bool = False,
) -> Path:
    """Writes OUT/BENCHMARK/answers.jsonl and info.json; returns that folder.

    split: which one it is; "": what the annotations show, where they do. duplicates: keep the first
    of several predictions for one question (its others are counted in info.json), rather than
    refuse.

    Raises AnswersError for predictions about other questions than the annotations', ids that come
    twice, rows of no known form, a folder with other answers; AnnotationError.
    """
    found = read(annotation_files)
    if found.set_aside:
        where, why = next(iter(found.set_aside.items()))
        raise AnswersError(f"{where}: {why}; every question stays in the denominator: correct it")
    questions = [question for part in found.parts for question in _questions(part)]
    benchmark, split = _benchmark(found.parts, split)
    said = _matched(predictions, questions)
    answers = dict(reversed(said))  # the first of each
    repeated = [id for id, count in Counter(id for id, _ in said).items() if count > 1]
    if repeated and not duplicates:
        raise AnswersError(
            f"{_names(predictions)}: {len(repeated)} questions have several predictions: "
            f"{_some(repeated)}; remove all but one, or keep the first of each by --duplicates"
        )
    content = "".join(dump(_line(q, answers, _names(predictions))) for q in questions).encode()
    counts = published.PUBLISHED.get(found.parts[0].benchmark, {}).get(split)
    info = {
        "benchmark": benchmark,
        "split": split,
        "published": counts and counts.questions,
        "questions": len(questions),
        "partial": any(
            published.shortfall(part.benchmark, split, part.rows, part.videos)
            for part in found.parts
        ),
        "model": _names(predictions),
        "predictions_sha256": [file_digest(path) for path in predictions],
        "annotations": [str(path) for path in annotation_files],
        "missing": sum(q.id not in answers for q in questions),
        "duplicates": repeated,
        "training_videos": None,
    }
    if not any(q.criteria for q in questions):
        info["official_evaluator"] = _official(benchmark, said, questions)
    return _write(Path(out) / benchmark, content, info)


def _write(folder: Path, content: bytes, info: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ANSWERS
    if path.exists() and path.read_bytes() != content:
        raise AnswersError(f"{path}: holds other answers; give another folder by --results")
    write_json(folder / INFO, info)
    write_bytes(path, content)
    return folder


def _questions(part: Part):
    for example in part.examples:
        kind = example.turns[0].kind
        criteria = _CRITERIA.get(kind, []) if part.format in ("generative", "consistency") else []
        several = len(example.turns) > 1
        for number, turn in enumerate(example.turns, 1):
            yield _Question(
                f"{example.id}/{number}" if several else example.id,
                example.video,
                turn.question,
                turn.answer,
                turn.kind,
                example.id if "C" in criteria else "",
                criteria,
                number,
            )


def _benchmark(parts: Sequence[Part], split: str) -> tuple[str, str]:
    names = {part.benchmark.partition("/")[0] for part in parts}
    if len(names) > 1:
        raise AnswersError(f"the annotations are of several benchmarks: {', '.join(sorted(names))}")
    (benchmark,) = names
    if benchmark in published.NUMBERED:
        ids = [example.id for part in parts for example in part.examples]
        known = published.numbered_split(benchmark, ids)
        if split and split != known:
            raise AnswersError(
                f"{_names(parts[0].paths)}: its questions are numbered as those of {benchmark}'s "
                f"split {known}, and --split={split} was given; name the one that it is"
            )
        split = known
    if not split:
        raise AnswersError(f"say by --split which split of {benchmark or 'the data'} this is")
    return benchmark or "own", split


def _official(benchmark, said, questions) -> dict[str, dict[str, float]]:
    """What ActivityNet-QA's evaluator says of the file as it is, duplicates included."""
    truths = {q.id: (exact.type_name(benchmark, q.type), q.truth) for q in questions}
    free = exact.FREE if benchmark == "activitynet_qa" else ()
    accuracy, counts = exact.official(said, truths, free)
    return {"accuracy": accuracy, "questions": counts}


def _matched(predictions, questions) -> list[tuple[str, str]]:
    """Every prediction, in order, with the id of its question."""
    by_id = {q.id: q for q in questions}
    by_text: dict[tuple[str, str, int], list[_Question]] = {}
    for q in questions:
        by_text.setdefault((q.video, q.question, q.number), []).append(q)
    used: dict[tuple[str, str, int], int] = {}
    said: list[tuple[str, str]] = []
    unknown, other = [], []
    for path in predictions:
        for position, row in enumerate(load_records(path)):
            for id, key, truth, answer in _row(f"{path}: record {position}", row):
                if id is None:
                    turn = used[key] = used.get(key, -1) + 1
                    group = by_text.get(key, [])
                    question = group[min(turn, len(group) - 1)] if group else None
                else:
                    question = by_id.get(id)
                if question is None:
                    unknown.append(f"record {position} ({id or key[1]!r:.60})")
                    continue
                if key[1] and key[1].strip() != question.question or truth and (
                    truth.strip() != question.truth
                ):  # fmt: skip
                    other.append(question.id)
                said.append((question.id, answer))
    if unknown or other:
        what = (
            f"{len(unknown)} predictions are about no question of the annotations, the first: "
            f"{_some(unknown)}" if unknown else
            f"{len(other)} ids stand for another question or truth there: {_some(other)}"
        )  # fmt: skip
        raise AnswersError(
            f"{_names(predictions)}: {what}; these are predictions of another benchmark or split: "
            "give the annotations that they were made for"
        )
    return said


def _row(where: str, row: Any):
    """(id or None, (video, question, number of the turn), truth, answer)s of a row."""
    if not isinstance(row, dict):
        raise AnswersError(f"{where}: expected an object, got {row!r:.50}")
    if {"id", "pred"} <= row.keys():
        found = [(row["id"], ("", row.get("question", ""), 1), row.get("answer", ""), row["pred"])]
    elif {"video_name", "Q1", "Q2", "pred1", "pred2"} <= row.keys():
        found = [
            (None, (row["video_name"], row[f"Q{n}"], n), row.get("A", ""), row[f"pred{n}"])
            for n in (1, 2)
        ]
    elif {"video_name", "Q", "pred"} <= row.keys():
        found = [(None, (row["video_name"], row["Q"], 1), row.get("A", ""), row["pred"])]
    elif {"question_id", "answer"} <= row.keys() and "pred" not in row:
        found = [(row["question_id"], ("", "", 1), "", row["answer"])]
    else:
        raise AnswersError(
            f"{where}: has {', '.join(map(str, row))}; expected id, question, answer, pred; or "
            "video_name, Q, A, pred; or video_name, Q1, Q2, A, pred1, pred2; or question_id, answer"
        )
    for id, key, truth, answer in found:
        if not all(isinstance(text, str) for text in (*key[:2], truth, answer)):
            raise AnswersError(f"{where}: expected texts, got {answer!r:.40} for {key[1]!r:.40}")
        yield None if id is None else str(id), (key[0], key[1].strip(), key[2]), truth, answer


def _line(q: _Question, answers: dict[str, str], source: str) -> dict[str, Any]:
    return {
        "question_id": q.id, "video": q.video, "question": q.question, "truth": q.truth,
        "type": q.type, "criteria": q.criteria, "pair": q.pair, "control": "", "prompt": "",
        "answer": answers.get(q.id, ""), "ids": [], "clips": [], "seconds": 0.0,
        "failed": "" if q.id in answers else f"no prediction in {source}",
    }  # fmt: skip


def _names(paths) -> str:
    return ", ".join(Path(path).name for path in paths)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
