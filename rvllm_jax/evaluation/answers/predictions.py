"""Files of predictions in the forms that others read and write: theirs as our answers, and back.

Rows are Video-ChatGPT's {id, question, answer, pred}, {video_name, Q, A, pred} and {video_name, Q1,
Q2, A, pred1, pred2}, or ActivityNet-QA's {question_id, answer}, which are read only.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rvllm_jax.data.annotations import published
from rvllm_jax.data.annotations.example import load_records
from rvllm_jax.data.annotations.read import AnnotationPart, Annotations, read
from rvllm_jax.data.annotations.split import refusal, without_benchmark
from rvllm_jax.evaluation.answers.answer_file import (
    ANSWERS,
    AnswersError,
    read_info_if_any,
    write_info,
)
from rvllm_jax.evaluation.answers.exact_match import FREE, official, type_name
from rvllm_jax.evaluation.answers.questions import (
    TEXT_GENERATION,
    Question,
    example_questions,
    fingerprint,
    some,
)
from rvllm_jax.system.atomic import dump_json, write_bytes, write_text
from rvllm_jax.system.fingerprint import SHORT, digest, file_digest
from rvllm_jax.system.lines import dump
from rvllm_jax.system.lock import locked

# Keys of what is written -> those of a line of answers.jsonl.
_ZERO_SHOT = {"id": "question_id", "question": "question", "answer": "truth", "pred": "answer"}
_GENERATIVE = {"video_name": "video", "Q": "question", "A": "truth", "pred": "answer"}


def import_predictions(
    predictions: Sequence[str | Path],
    annotation_files: Sequence[str | Path],
    out: str | Path,
    *,
    split: str = "",
    duplicates: bool = False,
    no_benchmark: bool = False,
) -> Path:
    """Writes OUT/BENCHMARK/answers.jsonl and info.json; returns that folder.

    Every question of the annotations becomes an answer: one without a prediction as not answered.

    split: which one it is; "": what the annotations show, where they do. duplicates: keep the first
    of several predictions for one question (its others are counted in info.json), rather than
    refuse. no_benchmark: the annotations are of no benchmark, whatever they resemble.

    Raises AnswersError for predictions about other questions than the annotations', ids that come
    twice, rows of no known form, annotations of another split, a folder with other answers;
    AnnotationError.
    """
    known = _annotations(annotation_files, no_benchmark)
    numbered = [numbered for part in known.parts for numbered in _numbered_questions(part)]
    questions = [question for _, question in numbered]
    benchmark, split = _benchmark(known.parts, split)
    matched = _matched(predictions, numbered)
    answers = dict(reversed(matched))  # the first of each
    repeated = [id for id, count in Counter(id for id, _ in matched).items() if count > 1]
    if repeated and not duplicates:
        raise AnswersError(
            f"{_names(predictions)}: {len(repeated)} questions have several predictions: "
            f"{some(repeated)}; remove all but one, or keep the first of each by --duplicates"
        )
    counts = published.PUBLISHED.get(known.parts[0].benchmark, {}).get(split)
    digests, folder = [file_digest(path) for path in predictions], Path(out) / benchmark
    before, names = read_info_if_any(folder), _names(predictions)
    if set(digests) == set(before.get("predictions_sha256", [])):
        names = before.get("model", names)  # they may have been renamed since
    content = "".join(dump(_line(q, answers, names)) for q in questions).encode()
    info = {
        "benchmark": benchmark,
        "split": split,
        "published": counts and counts.questions,
        "questions": len(questions),
        "partial": any(
            published.shortfall(part.benchmark, split, part.rows, part.videos)
            for part in known.parts
        ),
        "model": names,
        "predictions_sha256": digests,
        "fingerprints": {"model": digest(digests, SHORT), "questions": fingerprint(questions, {})},
        "annotations": [str(path) for path in annotation_files],
        "missing": sum(q.id not in answers for q in questions),
        "duplicates": repeated,
        "training_videos": None,
    }
    if not any(q.criteria for q in questions):
        info["official_evaluator"] = _official(benchmark, matched, questions)
    return _write(folder, content, info)


def _annotations(files: Sequence[str | Path], no_benchmark: bool) -> Annotations:
    known = read(files)
    if known.set_aside:
        where, why = next(iter(known.set_aside.items()))
        raise AnswersError(f"{where}: {why}; every question stays in the denominator: correct it")
    return without_benchmark(known) if no_benchmark else known


def _numbered_questions(part: AnnotationPart) -> Iterator[tuple[int, Question]]:
    """The questions of a file, each with the number of its turn."""
    for example in part.examples:
        generation = part.format in ("generative", "consistency")
        yield from enumerate(example_questions(example, generation=generation), 1)


def _write(folder: Path, content: bytes, info: dict[str, Any]) -> Path:
    path = folder / ANSWERS
    with locked(folder, advice="name another --results"):
        if path.exists() and path.read_bytes() != content:
            raise AnswersError(f"{path}: holds other answers; give another folder by --results")
        write_info(folder, info)
        write_bytes(path, content)
    return folder


def _benchmark(parts: Sequence[AnnotationPart], split: str) -> tuple[str, str]:
    names = {part.benchmark.partition("/")[0] for part in parts}
    if len(names) > 1:
        raise AnswersError(f"the annotations are of several benchmarks: {', '.join(sorted(names))}")
    (benchmark,) = names
    if benchmark in published.NUMBERED and not split:
        ids = [example.id for part in parts for example in part.examples]
        split = published.numbered_split(benchmark, ids)
    if not split:
        raise AnswersError(f"say by --split which split of {benchmark or 'the data'} this is")
    if wrong := refusal(parts, split):
        raise AnswersError(wrong)
    return benchmark or "own", split


def _official(benchmark, predictions, questions) -> dict[str, dict[str, float]]:
    """What ActivityNet-QA's evaluator says of the file as it is, duplicates included."""
    truths = {q.id: (type_name(benchmark, q.turn.kind), q.turn.answer) for q in questions}
    free = FREE if benchmark == "activitynet_qa" else ()
    accuracy, counts = official(predictions, truths, free)
    return {"accuracy": accuracy, "questions": counts}


def _matched(
    predictions: Sequence[str | Path], numbered: Sequence[tuple[int, Question]]
) -> list[tuple[str, str]]:
    """Every prediction, in order, with the id of its question; questions have the number of their
    turn."""
    by_id = {q.id: q for _, q in numbered}
    by_text: dict[tuple[str, str, int], list[Question]] = {}
    for number, q in numbered:
        by_text.setdefault((q.video, q.turn.question, number), []).append(q)
    used: dict[tuple[str, str, int], int] = {}
    matched: list[tuple[str, str]] = []
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
                if key[1] and key[1].strip() != question.turn.question or truth and (
                    truth.strip() != question.turn.answer
                ):  # fmt: skip
                    other.append(question.id)
                matched.append((question.id, answer))
    if unknown or other:
        what = (
            f"{len(unknown)} predictions are about no question of the annotations, the first: "
            f"{some(unknown)}" if unknown else
            f"{len(other)} ids stand for another question or truth there: {some(other)}"
        )  # fmt: skip
        raise AnswersError(
            f"{_names(predictions)}: {what}; these are predictions of another benchmark or split: "
            "give the annotations that they were made for"
        )
    return matched


def _row(where: str, row: Any):
    """(id or None, (video, question, number of the turn), truth, answer)s of a row."""
    if not isinstance(row, dict):
        raise AnswersError(f"{where}: expected an object, got {row!r:.50}")
    if {"id", "pred"} <= row.keys():
        rows = [(row["id"], ("", row.get("question", ""), 1), row.get("answer", ""), row["pred"])]
    elif {"video_name", "Q1", "Q2", "pred1", "pred2"} <= row.keys():
        rows = [
            (None, (row["video_name"], row[f"Q{n}"], n), row.get("A", ""), row[f"pred{n}"])
            for n in (1, 2)
        ]
    elif {"video_name", "Q", "pred"} <= row.keys():
        rows = [(None, (row["video_name"], row["Q"], 1), row.get("A", ""), row["pred"])]
    elif {"question_id", "answer"} <= row.keys() and "pred" not in row:
        rows = [(row["question_id"], ("", "", 1), "", row["answer"])]
    else:
        raise AnswersError(
            f"{where}: has {', '.join(map(str, row))}; expected id, question, answer, pred; or "
            "video_name, Q, A, pred; or video_name, Q1, Q2, A, pred1, pred2; or question_id, answer"
        )
    for id, key, truth, answer in rows:
        if not all(isinstance(text, str) for text in (*key[:2], truth, answer)):
            raise AnswersError(f"{where}: expected texts, got {answer!r:.40} for {key[1]!r:.40}")
        yield None if id is None else str(id), (key[0], key[1].strip(), key[2]), truth, answer


def _line(q: Question, answers: dict[str, str], source: str) -> dict[str, Any]:
    return {
        "question_id": q.id, "video": q.video, "question": q.turn.question, "truth": q.turn.answer,
        "type": q.turn.kind, "criteria": q.criteria, "pair": q.pair, "control": "", "prompt": "",
        "answer": answers.get(q.id, ""), "ids": [], "clips": [], "seconds": 0.0,
        "failed": "" if q.id in answers else f"no prediction in {source}",
    }  # fmt: skip


def _names(paths) -> str:
    return ", ".join(Path(path).name for path in paths)


def write_predictions(folder: Path, benchmark: str, answers: Sequence[Mapping[str, Any]]) -> None:
    """Writes predictions.json, or of text generation predictions_{generic,temporal,consistency}.

    answers: the lines of answers.jsonl without controls, all of them. Records are `{"id",
    "question", "answer", "pred"}`; of text generation `{"video_name", "Q", "A", "pred"}` and, for
    consistency, `{"video_name", "Q1", "Q2", "A", "pred1", "pred2"}`.
    """
    if benchmark != TEXT_GENERATION:
        _dump(folder / "predictions.json", [_record(answer, _ZERO_SHOT) for answer in answers])
        return
    for kind in ("generic", "temporal"):
        records = [_record(a, _GENERATIVE) for a in answers if a["type"] == kind]
        _dump(folder / f"predictions_{kind}.json", records)
    pairs: dict[str, list[Mapping[str, Any]]] = {}
    for answer in answers:
        if answer["pair"]:
            pairs.setdefault(answer["pair"], []).append(answer)
    ordered = (sorted(pair, key=lambda a: a["question_id"]) for pair in pairs.values())
    _dump(folder / "predictions_consistency.json", [_consistency(*pair) for pair in ordered])


def _record(answer: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    return {key: answer[name] for key, name in names.items()}


def _consistency(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, str]:
    return {
        "video_name": first["video"],
        "Q1": first["question"],
        "Q2": second["question"],
        "A": first["truth"],
        "pred1": first["answer"],
        "pred2": second["answer"],
    }


def _dump(path: Path, records: list) -> None:
    write_text(path, dump_json(records, ensure_ascii=False), errors="replace")
