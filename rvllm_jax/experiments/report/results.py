"""What `evaluate` and `judge` left in folders of results: benchmarks, and scores by judge."""

import dataclasses
import itertools
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rvllm_jax.evaluation.answers.answer_file import (
    ANSWERS,
    INFO,
    fingerprints,
    read_info_if_any,
)
from rvllm_jax.evaluation.answers.questions import EvaluationError
from rvllm_jax.evaluation.judge.facts import UNSUPPORTED
from rvllm_jax.evaluation.judge.run import check_beside
from rvllm_jax.evaluation.judge.verdicts import VerdictsError, paths
from rvllm_jax.evaluation.score.scores import judge_settings
from rvllm_jax.system import file_layout
from rvllm_jax.system.fingerprint import differing
from rvllm_jax.system.lines import read_lines

_JUDGE_AGAIN = "start the same `rvllm_jax.judge` again, it writes the file anew"
_KINDS = {  # of the keys of scores.NAME.json that are read
    **dict.fromkeys(
        ("accuracy", "score", "criteria", "faithfulness", "failed", "by_type", "controls",
         "without_training_videos", "fingerprints", "judge", "judge.parameters"), dict),
    **dict.fromkeys(
        ("judge.backend", "judge.model", "judge.prompts_sha256", "judge.fingerprint", "judge.date"),
        str),
    **{"judge.models": (dict, [str]), "judge.dates": [str], "n": int},
}  # fmt: skip
_LOW = 2.5  # a score below it, of 5, is a failure where no yes or no is given


@dataclasses.dataclass(frozen=True)
class Scored:
    """One benchmark, answered by one model and scored by one judge.

    `model` is short, and tells the folders of results apart; `info` is info.json, `scores` is
    scores.NAME.json.
    """

    model: str
    folder: Path
    judge_name: str
    info: dict[str, Any]
    scores: dict[str, Any]

    @property
    def benchmark(self) -> str:
        return self.info["benchmark"]

    @property
    def split(self) -> str:
        return self.info["split"]

    @property
    def judge(self) -> str:
        """The judge's exact model, and by what prompts and parameters."""
        judge = self.scores["judge"]
        models = ", ".join(judge.get("models") or ()) or judge.get("model") or judge["backend"]
        prompts = judge.get("prompts_sha256")
        parameters = judge.get("parameters") or {}
        rule = parameters.get("rule")
        words = [
            models,
            f"rule {rule}" if rule else "",
            f"prompts {prompts[:8]}" if prompts else "",
            f"content {content[:8]}" if (content := judge.get("fingerprint")) else "",
            *judge_settings(self.scores),
        ]
        return ", ".join(filter(None, words))


def read_results(folders: Sequence[str | Path]) -> tuple[list[Scored], list[str]]:
    """All scores in the folders, in the order given; and lines that name what has none yet.

    Raises EvaluationError for a folder without answers, and for scores that are broken, of another
    benchmark or split than the answers beside them, or hold what is no number; for one given twice.
    """
    results, notes = [], []
    places = [os.path.realpath(folder) for folder in folders]  # of loops too
    if twice := [str(f) for n, f in enumerate(folders) if places[n] in places[:n]]:
        raise EvaluationError(f"--results: names {', '.join(twice)} twice; name a folder once")
    for number, folder in enumerate(map(Path, folders), 1):
        benchmarks = sorted(path.parent for path in folder.glob(f"*/{INFO}"))
        if not benchmarks:
            raise EvaluationError(
                f"{folder}: holds no BENCHMARK/{INFO}; give the --out of `python -m "
                "rvllm_jax.evaluate`"
            )
        for benchmark in benchmarks:
            info = read_info_if_any(benchmark)
            lacking = [key for key in ("benchmark", "split") if not info.get(key)]
            if lacking:
                raise EvaluationError(
                    f"{benchmark / INFO}: has no {', '.join(lacking)}; restore it"
                )
            name = Path(str(info.get("model") or folder)).name
            model = name if len(folders) == 1 else f"{name} ({number}: {folder.name})"
            paths = sorted(benchmark.glob("scores.*.json"))
            for path in paths:
                how = dict(advice=_JUDGE_AGAIN, error=EvaluationError, kinds=_KINDS)
                scores = file_layout.VERDICTS.read(path, **how)
                judge = path.name.removeprefix("scores.").removesuffix(".json")
                _check(path, scores, info, judge)
                if others := _other_answers(benchmark, judge, scores, info):
                    notes.append(
                        f"{path}: left out, as it is of other answers than those beside it "
                        f"({others}); judge these: {_judge_command(benchmark, judge, scores)}"
                    )
                else:
                    if "fingerprints" not in scores:
                        notes.append(
                            f"{path}: an earlier version wrote it, and did not record of which "
                            "answers: it counts as of those beside it"
                        )
                    results.append(Scored(model, benchmark, judge, info, scores))
            if not paths:
                notes.append(
                    f"{benchmark}: not judged yet; python -m rvllm_jax.judge --results={folder}"
                )
            if info.get("complete") is False:
                notes.append(f"{benchmark}: not all its questions are answered yet")
    return results, notes


def failures(scored: Scored, most: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The wrong answers that are furthest off: (answer, verdict), the lowest scores first, then
    the longest answers; at most one a video while there are enough. Answers without a verdict are
    not among them: nobody knows."""
    path = scored.folder / f"judged.{scored.judge_name}.jsonl"
    if not path.is_file():
        return []
    wrong: dict[str, dict[str, Any]] = {}
    for _, verdict in read_lines(path):
        if not verdict["control"] and _is_failure(verdict):
            wrong.setdefault(verdict["question_id"], verdict)
    pairs = [
        (answer, wrong[answer["question_id"]])
        for _, answer in read_lines(scored.folder / ANSWERS)
        if not answer["control"] and answer["question_id"] in wrong
    ]
    pairs.sort(key=lambda pair: (_goodness(pair[1]), -len(pair[0]["answer"])))
    first, rest, seen = [], [], set()
    for pair in pairs:
        (rest if pair[0]["video"] in seen else first).append(pair)
        seen.add(pair[0]["video"])
    return (first + rest)[:most]


def _is_failure(verdict: dict[str, Any]) -> bool:
    """Whether a verdict finds fault with an answer: wrong, a low score, or mostly made up."""
    if verdict.get("failed"):
        return not verdict.get("answered")
    if verdict.get("correct") is not None:
        return not verdict["correct"]
    if verdict.get("score") is not None:
        return verdict["score"] < _LOW
    return verdict.get("overlap") is not None and verdict["overlap"] < UNSUPPORTED


def _goodness(verdict: dict[str, Any]) -> float:
    """From 0: by the score, or by how much of it the reference has."""
    return verdict.get("score") or 5 * (verdict.get("overlap") or 0.0)


def _other_answers(
    folder: Path, judge: str, scores: Mapping[str, Any], info: Mapping[str, Any]
) -> str:
    """What shows that scores are not of the answers in `folder`, in words; "" where nothing does.

    Scores of earlier versions do not say of which answers they are: their verdicts do.
    """
    if "fingerprints" in scores:
        return differing(scores["fingerprints"], fingerprints(folder, info))
    try:
        check_beside(paths(folder, judge)[0])
    except VerdictsError as error:
        return str(error)
    return ""


def _judge_command(benchmark: Path, judge: str, scores: Mapping[str, Any]) -> str:
    """What judges the answers in `benchmark` as `scores` were judged, under a name that is free:
    verdicts on other answers are not mixed with those on these."""
    names = (f"{judge}-{n}" for n in itertools.count(2))
    name = next(name for name in names if not list(benchmark.glob(f"*.{name}.json*")))
    backend, model = scores["judge"]["backend"], scores["judge"].get("model")
    flags = {"results": benchmark.parent, "benchmarks": benchmark.name, "name": name}
    flags["backend"] = backend
    if backend == "exact" and (rule := (scores["judge"].get("parameters") or {}).get("rule")):
        flags["rule"] = rule
    if backend in ("openai", "local"):
        flags["model"] = model
    words = [shlex.quote(f"--{flag}={value}") for flag, value in flags.items()]
    more = " and the endpoint's flags" if backend == "openai" else ""
    return f"python -m rvllm_jax.judge {' '.join(words)}{more}"


def _check(path: Path, scores: dict[str, Any], info: dict[str, Any], judge: str) -> None:
    if not isinstance(scores.get("judge"), dict) or "backend" not in scores["judge"]:
        raise EvaluationError(f"{path}: does not say which judge it is of; judge again")
    for key in ("benchmark", "split"):
        if scores.get(key, info[key]) != info[key]:
            raise EvaluationError(
                f"{path}: is of the {key} {scores[key]!r}, the answers beside it are of "
                f"{info[key]!r}; move it away, and judge these: "
                f"{_judge_command(path.parent, judge, scores)}"
            )
    for value in _numbers(scores):
        if not math.isfinite(value):
            raise EvaluationError(f"{path}: holds {value}, which is no score; judge again")


def _numbers(value: Any):
    if isinstance(value, dict):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, float):
        yield value
