"""Scores of a benchmark out of a judge's verdicts: scores.NAME.json.

What counts. Every question is in every denominator. One that was not answered (its video is
missing) or whose verdict failed (the judge's replies could not be read) is not right, and its score
and its overlap are 0; `failed` says how many there are of each, and `of_judged` gives the values
without them, never instead. Where every answer's verdict failed, a value is None: a 0 would be the
judge's, and look like the model's. Intervals are those of `intervals`.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rvllm_jax.evaluation.answers.exact_match import FREE, RULES, type_name
from rvllm_jax.evaluation.answers.questions import CRITERIA
from rvllm_jax.evaluation.judge.facts import UNSUPPORTED
from rvllm_jax.evaluation.judge.verdicts import FAITHFULNESS, QA, Judged
from rvllm_jax.evaluation.score import intervals

_NOT_NAMED = ("rule", "max_tokens", "tries", "step")  # in the judge's name, or of no weight


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How verdicts become scores.

    integer: cut scores to whole numbers, 4.8 to 4, as Video-ChatGPT's evaluation does. resamples,
    seed: of the intervals. price_in, price_out: per million tokens, in any currency.
    """

    integer: bool = False
    resamples: int = intervals.RESAMPLES
    seed: int = intervals.SEED
    price_in: float = 0.0
    price_out: float = 0.0


def scores(
    judged: Iterable[Judged], info: Mapping[str, Any], scoring: Scoring = Scoring()
) -> dict[str, Any]:
    """All scores of one benchmark, one model and one judge; JSON through and through.

    info: what `answer_file.read_info` returns.
    """
    judged = list(judged)
    answers = [j for j in judged if not j.control]
    part = _Part(info["benchmark"], scoring)
    seen = _seen(info)
    return {
        "split": info["split"],
        "partial": info.get("partial"),
        "published_questions": info.get("published"),
        "n": len({j.key[0] for j in answers}),
        "videos": len({j.video for j in answers}),
        "failed": _failed(answers),
        "answered": sum(j.answered for j in answers),  # so many verdicts were asked for
        **part.values(answers),
        "of_judged": part.values([j for j in answers if not j.failed]),
        "by_type": part.by_type(answers),
        "without_training_videos": None if seen is None else _without(part, answers, seen),
        "controls": _controls(part, judged),
        "integer_scores": scoring.integer,
        "interval": {"confidence": intervals.CONFIDENCE, "by": "video",
                     "resamples": scoring.resamples, "seed": scoring.seed},
        "tokens": _tokens(judged),
    }  # fmt: skip


class _Part:
    """The values of some verdicts, as asked for."""

    def __init__(self, benchmark: str, scoring: Scoring):
        self.benchmark, self.scoring = benchmark, scoring

    def values(self, judged: Sequence[Judged]) -> dict[str, Any]:
        """Accuracy, score, rules, criteria and faithfulness, as far as there are any."""
        values: dict[str, Any] = {}
        if qa := [j for j in judged if j.criterion == QA]:
            values["accuracy"] = self._mean(qa, lambda j: bool(j.correct))
            if any(j.score is not None for j in qa):
                values["score"] = self._mean(qa, self._score)
            if rules := [name for name in RULES if any(name in j.more for j in qa)]:
                values["rules"] = {
                    name: self._mean(qa, lambda j, name=name: bool(j.more.get(name)))
                    for name in rules
                }
        text = [j for j in judged if j.criterion in CRITERIA]
        if text:
            values |= self._criteria(text)
        if facts := [j for j in judged if j.criterion == FAITHFULNESS]:
            values["faithfulness"] = self._faithfulness(facts)
        return values

    def by_type(self, judged: Sequence[Judged]) -> dict[str, Any]:
        """By the types' names; `types` are the annotations' own."""
        named: dict[str, list[Judged]] = {}
        for j in judged:
            if j.type:
                named.setdefault(type_name(self.benchmark, j.type), []).append(j)
        if self.benchmark == "activitynet_qa" and named.keys() & set(FREE):
            named["free"] = [j for type in FREE for j in named.get(type, [])]
        return {
            name: {"types": sorted({j.type for j in group})} | self.values(group)
            for name, group in sorted(named.items())
        }

    def _criteria(self, judged: Sequence[Judged]) -> dict[str, Any]:
        by = {c: [j for j in judged if j.criterion == c] for c in CRITERIA}
        means = {c: self._mean(group, self._score) for c, group in by.items() if group}
        complete = len(means) == len(CRITERIA)
        values = [estimate["value"] for estimate in means.values()]
        known = complete and None not in values
        return {"criteria": means, "mean_of_criteria": sum(values) / len(values) if known else None}

    def _faithfulness(self, judged: Sequence[Judged]) -> dict[str, Any]:
        """An answer that states no fact has no overlap: counted apart, and not hallucinated.

        A question without an answer or a verdict stays in both denominators, with no fact right.
        """
        stating = [j for j in judged if j.failed or j.overlap is not None]
        return {
            "overlap": self._mean(stating, lambda j: j.overlap or 0.0),
            "hallucinated": self._mean(stating, lambda j: (j.overlap or 0.0) < UNSUPPORTED),
            "below": UNSUPPORTED,
            "without_facts": len(judged) - len(stating),
        }

    def _score(self, judged: Judged) -> float:
        score = judged.score or 0.0
        return float(math.trunc(score)) if self.scoring.integer else score

    def _mean(self, judged: Sequence[Judged], value: Callable[[Judged], float]) -> dict[str, Any]:
        answered = [j for j in judged if j.answered]
        if answered and all(j.failed for j in answered):
            return intervals.Estimate(None, None, None, len(judged))._asdict()
        ordered = sorted(judged, key=lambda j: j.key)  # draws do not depend on the order of lines
        values, videos = [value(j) for j in ordered], [j.video for j in ordered]
        how = self.scoring
        return intervals.mean(values, videos, resamples=how.resamples, seed=how.seed)._asdict()


def _failed(judged: Sequence[Judged]) -> dict[str, int]:
    return {
        "unanswered": len({j.key[0] for j in judged if not j.answered}),
        "unjudged": sum(j.answered and bool(j.failed) for j in judged),
    }


def unjudged_note(result: Mapping[str, Any]) -> str:
    """What failed verdicts mean for the scores, in words; "" where none failed."""
    failed, of = result["failed"].get("unjudged", 0), result.get("answered", 0)
    if not failed:
        return ""
    if failed == of:
        return (
            f"nothing was judged: no reply of the judge about any of the {of} answers could be "
            "read, which says nothing of the model. Look at `raw` in the verdicts, correct the "
            "judge or its prompts, and judge again under another --name"
        )
    return (
        f"{failed}{f' of {of}' if of else ''} verdicts failed, as no reply of the judge could be "
        "read: they count as wrong and score 0, which is the judge's doing, not the model's"
    )


def judge_settings(result: Mapping[str, Any]) -> list[str]:
    """What makes one judge two beside its model and prompts: parameters, and the whole-number rule.

    >>> judge_settings({"judge": {"parameters": {"temperature": 0.7, "tries": 3}}})
    ['temperature 0.7']
    """
    parameters = result["judge"].get("parameters") or {}
    words = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in parameters.items()
        if name not in _NOT_NAMED
    ]
    return [*words, "scores cut to whole numbers"] if result.get("integer_scores") else words


def _seen(info: Mapping[str, Any]) -> set[str] | None:
    """The videos of this benchmark that the model was trained on; None: nobody knows."""
    overlap = info.get("overlap")
    if isinstance(overlap, Mapping) and isinstance(overlap.get("videos"), list):
        return set(overlap["videos"])
    videos = info.get("training_videos")
    return None if videos is None else set(videos)


def _without(part: _Part, judged: Sequence[Judged], seen: set[str]) -> dict[str, Any]:
    rest = [j for j in judged if j.video not in seen]
    left_out = {j.video for j in judged} & seen
    return {"videos_left_out": len(left_out), "n": len({j.key[0] for j in rest})} | (
        part.values(rest) if left_out else {}
    )


def _controls(part: _Part, judged: Sequence[Judged]) -> dict[str, Any]:
    """Each control beside the model's own answers to the same questions."""
    controls = {}
    for control in sorted({j.control for j in judged} - {""}):
        group = [j for j in judged if j.control == control]
        # By id: the same words are asked about many videos.
        asked = {(j.key[0], j.criterion) for j in group}
        same = [j for j in judged if not j.control and (j.key[0], j.criterion) in asked]
        controls[control] = {"n": len({j.key[0] for j in group})} | part.values(group) | {
            "own": part.values(same)
        }  # fmt: skip
    return controls


def _tokens(judged: Sequence[Judged]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for j in judged:
        total.update(j.tokens)
    return dict(total)
