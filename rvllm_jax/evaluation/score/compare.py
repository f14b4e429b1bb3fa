"""Two or more files of verdicts beside each other: models compared, or judges."""

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rvllm_jax.evaluation.answers.answer_file import read_info_if_any
from rvllm_jax.evaluation.answers.exact_match import type_name
from rvllm_jax.evaluation.judge.run import check_beside
from rvllm_jax.evaluation.judge.verdicts import (
    FAITHFULNESS,
    QA,
    Judged,
    Key,
    VerdictsError,
    judge_of,
    read_judged,
    read_made_with,
)
from rvllm_jax.evaluation.score import intervals
from rvllm_jax.system.fingerprint import differing

_SAME = ("benchmark", "split")
_NAMED = 3  # how many questions a message names


@dataclasses.dataclass(frozen=True)
class JudgedFile:
    """One file of verdicts on a model's own answers, by item."""

    path: Path
    made_with: dict[str, Any]
    judged: dict[Key, Judged]

    @property
    def judge(self) -> dict[str, Any]:
        """What makes verdicts comparable: the exact models among it."""
        judge = judge_of(self.made_with)
        if "fingerprint" in judge:
            return judge
        return judge | {"models": sorted({j.model for j in self.judged.values() if j.model})}

    @property
    def of(self) -> dict[Key, str]:
        """The answers that were judged, by item."""
        return {key: j.of for key, j in self.judged.items()}

    @property
    def answered(self) -> int:
        """Of how many answers a verdict was asked for."""
        return sum(j.answered for j in self.judged.values())

    @property
    def unjudged(self) -> int:
        """Of how many answers no reply of the judge could be read."""
        return sum(j.answered and bool(j.failed) for j in self.judged.values())


def read_file(path: str | Path) -> JudgedFile:
    """A judged.NAME.jsonl with judged.NAME.json beside it. Raises VerdictsError, LinesError."""
    path = Path(path)
    if path.suffix != ".jsonl" or not path.name.startswith("judged."):
        raise VerdictsError(f"{path}: expected a file judged.NAME.jsonl")
    answers = {judged.key: judged for judged in read_judged(path) if not judged.control}
    made_with = read_made_with(path.with_suffix(".json"))
    if made_with is None or not answers:
        lacking = path.with_suffix(".json").name if made_with is None else "a verdict"
        raise VerdictsError(f"{path}: {lacking} is not there; run `python -m rvllm_jax.judge`")
    check_beside(path)
    now = read_info_if_any(path.parent).get("fingerprints")
    if others := differing(made_with.get("fingerprints"), now):
        raise VerdictsError(f"{path}: is of other answers than those beside it: {others}")
    file = JudgedFile(path, made_with, answers)
    if file.answered and file.unjudged == file.answered:
        raise VerdictsError(
            f"{path}: none of its {file.answered} verdicts could be read from the judge's replies: "
            "there is nothing to compare. Judge again under another --name"
        )
    return file


def compare(paths: Sequence[str | Path], *, resamples: int = intervals.RESAMPLES) -> dict:
    """Every pair of files, and the spread over all of them; JSON through and through.

    A pair of the same answers is two judges: agreement. A pair of the same judge is two models:
    the paired difference, first minus second, by video.

    Raises VerdictsError for other benchmarks, splits or questions, a file named twice or without
    any verdict, and for a pair in which answers and judges differ both: nothing tells the one from
    the other.
    """
    if len(paths) < 2:
        raise VerdictsError(
            f"got {', '.join(map(str, paths)) or 'no file'} to compare; name two or more"
        )
    if twice := [path for n, path in enumerate(paths) if Path(path) in map(Path, paths[:n])]:
        raise VerdictsError(f"{twice[0]}: named twice; a file agrees with itself: name it once")
    files = [read_file(path) for path in paths]
    for other in files[1:]:
        _check_comparable(files[0], other)
    pairs = []
    for a, b in itertools.combinations(files, 2):
        names = {"a": str(a.path), "b": str(b.path)}
        if a.of == b.of:
            pairs.append(names | {"judges": agreement(a, b)})
        elif a.judge == b.judge:
            pairs.append(names | {"models": difference(a, b, resamples)})
        else:
            raise VerdictsError(
                f"{a.path} and {b.path}: the answers differ, and so do the judges ({a.judge}; "
                f"{b.judge}); judge both models by the same judge, or compare two judges on one"
            )
    return {
        **{name: files[0].made_with.get(name) for name in _SAME},
        "files": [
            {"path": str(f.path), "judge": f.judge, "answered": f.answered, "unjudged": f.unjudged}
            for f in files
        ],
        "pairs": pairs,
        "spread": spread(files),
    }


def agreement(a: JudgedFile, b: JudgedFile) -> dict[str, Any]:
    """How far two judges agree on the same answers: on yes and no, and on scores.

    Items that either has no verdict on are counted, and are in neither.
    """
    both = [(a.judged[key], b.judged[key]) for key in sorted(a.judged)]
    asked = [(x, y) for x, y in both if x.answered]
    usable = [(x, y) for x, y in asked if not x.failed and not y.failed]
    qa = [(bool(x.correct), bool(y.correct)) for x, y in usable if x.criterion == QA]
    gaps = [(x.score, y.score) for x, y in usable if x.score is not None and y.score is not None]
    result: dict[str, Any] = {"n": len(usable), "without_verdict": len(asked) - len(usable)}
    if qa:
        table = {
            f"{'yes' if x else 'no'}/{'yes' if y else 'no'}": qa.count((x, y))
            for x, y in itertools.product((True, False), repeat=2)
        }
        result |= {"confusion": table, "agree": kappa(qa)[0], "kappa": kappa(qa)[1]}
    if gaps:
        result["score_difference"] = statistics.fmean(x - y for x, y in gaps)
        result["absolute_score_difference"] = statistics.fmean(abs(x - y) for x, y in gaps)
    return result


def kappa(pairs: Sequence[tuple[bool, bool]]) -> tuple[float, float | None]:
    """The share of equal verdicts, and Cohen's kappa (1960): what is above agreement by chance.

    None where both judges give one and the same verdict throughout: chance agrees fully then.
    """
    n = len(pairs)
    observed = sum(x == y for x, y in pairs) / n
    p, q = (sum(pair[side] for pair in pairs) / n for side in (0, 1))
    chance = p * q + (1 - p) * (1 - q)
    return observed, (observed - chance) / (1 - chance) if chance < 1 else None


def difference(a: JudgedFile, b: JudgedFile, resamples: int) -> dict[str, Any]:
    """First minus second on the same questions, with the interval by video, over all and by type.

    Failed items count as in the scores: not right, 0.
    """
    keys = sorted(a.judged)
    gaps: dict[str, Any] = {}
    for name, value in _VALUES.items():
        group = [k for k in keys if _counts_in(name, a.judged[k]) or _counts_in(name, b.judged[k])]
        if group:
            gaps[name] = _paired(a, b, group, value, resamples)
    types = sorted({a.judged[k].type for k in keys} - {""})
    benchmark = str(a.made_with.get("benchmark"))
    gaps["accuracy_by_type"] = {
        type_name(benchmark, type): _paired(a, b, group, _VALUES["accuracy"], resamples)
        for type in types
        if (group := [k for k in keys if a.judged[k].type == type and k[2] == QA])
    }
    return gaps


def spread(files: Sequence[JudgedFile]) -> dict[str, Any]:
    """Of accuracy, score and overlap over the files: how much hangs on judge or seed."""
    spreads = {}
    for name, value in _VALUES.items():
        means = [
            statistics.fmean(values)
            for f in files
            if (values := [value(j) for j in f.judged.values() if _counts_in(name, j)])
        ]
        if len(means) == len(files):
            spreads[name] = {
                "values": means,
                "mean": statistics.fmean(means),
                "standard_deviation": statistics.stdev(means),
                "smallest": min(means),
                "largest": max(means),
            }
    return spreads


_VALUES = {
    "accuracy": lambda j: float(bool(j.correct)),
    "score": lambda j: float(j.score or 0.0),
    "overlap": lambda j: float(j.overlap or 0.0),
}


def _counts_in(name: str, judged: Judged) -> bool:
    """Whether an item counts in the mean called `name`, failed ones included."""
    if name == "accuracy":
        return judged.criterion == QA
    if name == "overlap":
        return judged.criterion == FAITHFULNESS and (
            bool(judged.failed) or judged.overlap is not None
        )
    return judged.criterion != FAITHFULNESS and (judged.score is not None or bool(judged.failed))


def _paired(a: JudgedFile, b: JudgedFile, keys, value, resamples) -> dict[str, Any]:
    gaps = [value(a.judged[key]) - value(b.judged[key]) for key in keys]
    videos = [a.judged[key].video for key in keys]
    return intervals.mean(gaps, videos, resamples=resamples)._asdict()


def _check_comparable(a: JudgedFile, b: JudgedFile) -> None:
    for name in _SAME:
        first, second = a.made_with.get(name), b.made_with.get(name)
        if first != second:
            raise VerdictsError(
                f"{a.path} is of {name} {first!r}, {b.path} of {second!r}: nothing can be compared"
            )
    lone = sorted(a.judged.keys() ^ b.judged.keys())
    if lone:
        named = ", ".join(" ".join(filter(None, key)) for key in lone[:_NAMED])
        raise VerdictsError(
            f"{a.path} and {b.path}: {len(lone)} items are in one of them alone ({named}); finish "
            "both, on the same questions"
        )
    other = [key for key, j in a.judged.items() if j.asked != b.judged[key].asked]
    if other:
        raise VerdictsError(
            f"{a.path} and {b.path}: {len(other)} ids stand for other questions or references in "
            f"the two, the first: {other[0][0]}; they were made from different annotations"
        )
