"""One benchmark's folder judged from end to end: answers.jsonl -> judged.NAME.jsonl, scores."""

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rvllm_jax.evaluation.answers.answer_file import (
    ANSWERS,
    INFO,
    AnswersError,
    check_answers,
    fingerprints,
    read_answers,
    read_info,
)
from rvllm_jax.evaluation.judge import verdicts
from rvllm_jax.evaluation.judge.run import Outcome, check_before, judge_items
from rvllm_jax.evaluation.judge.verdicts import QA, Item, Judge, VerdictsError, items
from rvllm_jax.evaluation.score.scores import Scoring, scores
from rvllm_jax.system import file_layout
from rvllm_jax.system.atomic import write_json
from rvllm_jax.system.lines import ends_whole
from rvllm_jax.system.lock import locked


def benchmark_folders(results: Path, names: list[str]) -> list[Path]:
    """The folders below `results` that hold answers, all or those named; raises VerdictsError."""
    folders = sorted(path.parent for path in results.glob(f"*/{ANSWERS}"))
    if (results / ANSWERS).is_file():
        folders.append(results)
    chosen = [folder for folder in folders if not names or folder.name in names]
    lacking = set(names) - {folder.name for folder in chosen}
    if lacking or not chosen:
        raise VerdictsError(
            f"{results}: no {ANSWERS} of {', '.join(sorted(lacking)) or 'any benchmark'} below it "
            f"(there are {', '.join(folder.name for folder in folders) or 'none'}); run "
            "`python -m rvllm_jax.evaluate` first"
        )
    return chosen


def judge_benchmark(
    folder: Path,
    judge: Judge,
    scoring: Scoring,
    *,
    give_up: bool = False,
    stop=None,
    progress: Callable[[int, int], None] = lambda judged, total: None,
    stopping: Callable[[], AbstractContextManager] = contextlib.nullcontext,
) -> tuple[dict[str, Any] | None, Outcome]:
    """Judges what is not judged yet, and writes scores.NAME.json where nothing is left.

    stopping: entered while items are judged, which `stop` ends.

    Returns the scores, None where items are left without a verdict or none is for this judge.
    Raises JudgeError, and, before anything is judged, AnswersError, PromptsError, VerdictsError,
    LinesError, or LockError where another process is writing in the folder.
    """
    with locked(folder, advice="name another --results"):
        return _judge(folder, judge, scoring, give_up, stop, progress, stopping)


def _judge(
    folder: Path,
    judge: Judge,
    scoring: Scoring,
    give_up: bool,
    stop,
    progress: Callable,
    stopping: Callable,
) -> tuple[dict[str, Any] | None, Outcome]:
    info = read_info(folder)
    _check_whole(folder / ANSWERS, info)

    def chosen() -> Iterator[Item]:
        every = items(read_answers(folder / ANSWERS), faithfulness=judge.faithfulness)
        return filter(judge.chosen, every)

    total = 0
    for total, item in enumerate(chosen(), 1):  # noqa: B007
        judge.check(item)
    if not total:
        return None, Outcome()
    made_with = judge.made_with(info["benchmark"])
    made_with |= {k: info[k] for k in ("benchmark", "split")}
    made_with["fingerprints"] = info.get("fingerprints") or {}
    path, made_with_path = verdicts.paths(folder, judge.name)
    lines, before = verdicts.open_verdicts(folder, judge.name, made_with)
    with lines:
        if lines.cut:
            print(f"{path}: {lines.cut} bytes of a half-written last line cut off", file=sys.stderr)
        if (
            before
            and made_with.get("fingerprint")
            and "fingerprint" not in (verdicts.read_made_with(made_with_path) or {})
        ):
            print(
                f"{path}: does not record which model gave its verdicts, as an earlier version "
                "wrote it; they are taken as the judge's of this path and step",
                file=sys.stderr,
            )
        # Faithfulness may have been judged before, or not: the file holds both kinds.
        check_before(items(read_answers(folder / ANSWERS), faithfulness=True), before, str(path))
        with stopping():
            outcome = judge_items(
                chosen(),
                functools.partial(judge.judge, benchmark=info["benchmark"]),
                lines,
                before,
                concurrency=judge.concurrency,
                give_up=give_up,
                stop=stop,
                progress=lambda judged: progress(judged, total),
            )
        outcome.total = total
        if outcome.left or outcome.judged + outcome.before < total:
            return None, outcome
        result = _scored(path, made_with_path, info, scoring)
        result["fingerprints"] = fingerprints(folder, info)
        result = file_layout.VERDICTS.stamp(result)
    write_json(folder / f"scores.{judge.name}.json", result, allow_nan=False)
    return result, outcome


def _check_whole(path: Path, info: dict[str, Any]) -> None:
    """Raises AnswersError where answers are missing, a control's too, or the last line's end."""
    answered = check_answers(path)[""]
    if not ends_whole(path):
        raise AnswersError(
            f"{path}: its last line is not written to its end; start the same "
            "`rvllm_jax.evaluate` again, it asks that question anew"
        )
    if answered < info.get("questions", 0):
        raise AnswersError(
            f"{path}: has {answered} answers, and {INFO} says {info['questions']} "
            "questions; continue the evaluation to its end: no question leaves the denominator"
        )
    if info.get("complete") is False:
        raise AnswersError(
            f"{path}: every question has its answer, and {INFO} says that the evaluation was not "
            "finished: controls are missing. Continue it to its end: a control's score over a part "
            "of its questions is not comparable"
        )


def _scored(
    path: Path, made_with_path: Path, info: dict[str, Any], scoring: Scoring
) -> dict[str, Any]:
    judged = list(verdicts.read_judged(path))
    made_with = verdicts.read_made_with(made_with_path) or {}
    result = {
        "benchmark": info["benchmark"],
        "model": info.get("model"),
        "judge": {
            **{k: made_with.get(k) for k in verdicts.JUDGE},
            "models": dict(Counter(j.model for j in judged if j.model)),
            "dates": [min(j.date for j in judged), max(j.date for j in judged)],
        },
        **scores(judged, info, scoring),
    }
    if any(j.criterion == QA for j in judged):
        result["prior"] = info.get("prior")
        result["official_evaluator"] = info.get("official_evaluator")
    if scoring.price_in or scoring.price_out:
        tokens = result["tokens"]
        result["cost"] = (
            tokens.get("prompt_tokens", 0) * scoring.price_in
            + tokens.get("completion_tokens", 0) * scoring.price_out
        ) / 1e6
    return result
