"""The tables of the results page; every row says by which judge and on which split."""

from collections.abc import Mapping, Sequence
from typing import Any

from rvllm_jax.evaluation.answers.questions import TEXT_GENERATION
from rvllm_jax.evaluation.score.scores import unjudged_note
from rvllm_jax.experiments.report.document import Part, Table, Text
from rvllm_jax.experiments.report.published_scores import QA
from rvllm_jax.experiments.report.published_scores import TEXT_GENERATION as GENERATION
from rvllm_jax.experiments.report.results import Scored

CRITERIA = {"CI": "correctness", "DO": "detail", "CU": "context", "TU": "temporal",
            "C": "consistency"}  # fmt: skip
Estimate = Mapping[str, Any]


def percent(estimate: Estimate | None) -> str:
    """An accuracy with its interval: "62.1 [58.0, 66.3]"."""
    return _with_interval(estimate, 100.0, 1)


def points(estimate: Estimate | None) -> str:
    """A score of 0 to 5 with its interval."""
    return _with_interval(estimate, 1.0, 2)


def _with_interval(estimate: Estimate | None, times: float, digits: int) -> str:
    if not estimate or estimate.get("value") is None:
        return "-"
    text = f"{times * estimate['value']:.{digits}f}"
    if estimate.get("low") is None or estimate.get("high") is None:
        return f"{text} [no interval]"
    return f"{text} [{times * estimate['low']:.{digits}f}, {times * estimate['high']:.{digits}f}]"


def comparison(benchmark: str, own: Sequence[Scored]) -> list[Part]:
    """Our rows and the published ones of a benchmark, and what keeps them from being compared."""
    scored_ones = [scored for scored in own if _is_scored(scored.scores)]
    make = _generation if benchmark == TEXT_GENERATION else _answers
    table = make(benchmark, scored_ones)
    judges, splits = ({row[at] for row in table.rows} for at in (-3, -2))
    parts: list[Part] = [table] if scored_ones else []
    for values, what in ((judges, "judges"), (splits, "splits")):
        if scored_ones and len(values) > 1:
            parts.append(
                Text(
                    f"This table has rows of {len(values)} different {what} "
                    f"({'; '.join(sorted(values))}): numbers of different {what} cannot be "
                    "compared.",
                    warning=True,
                )
            )
    parts += _faithfulness(own)
    warnings = dict.fromkeys(text for scored in own for text in _warnings(scored))
    return [*parts, *(Text(text, warning=True) for text in warnings)]


def _is_scored(values: Mapping[str, Any]) -> bool:
    """Whether a judge gave accuracy or criteria; one of faithfulness alone does not."""
    return "accuracy" in values or bool(values.get("criteria"))


def _faithfulness(own: Sequence[Scored]) -> list[Part]:
    rows = []
    for scored in own:
        if found := scored.scores.get("faithfulness"):
            facts, none = percent(found["overlap"]), f"{found['without_facts']:,}"
            invented = f"{percent(found['hallucinated'])} (below {100 * found['below']:.0f} %)"
            rows.append((scored.model, facts, invented, none, scored.judge, scored.split))
    heads = ("model", "facts in the reference, % [95 %]", "hallucinated answers, % [95 %]",
             "answers without facts", "judge", "split")  # fmt: skip
    return [Table(heads, rows)] if rows else []


def _answers(benchmark: str, own: Sequence[Scored]) -> Table:
    heads = ("model", "accuracy, % [95 %]", "score, 0-5", "questions", "not answered", "not judged",
             "judge", "split", "source")  # fmt: skip
    rows = [
        (
            scored.model,
            percent(scored.scores.get("accuracy")),
            points(scored.scores.get("score")),
            *_counts(scored),
            scored.judge,
            scored.split,
            "this evaluation",
        )
        for scored in own
    ]
    rows += [
        (row.model, _number(row.accuracy, 1), _number(row.score, 1), "-", "-", "-", row.judge,
         row.split, row.source)
        for row in QA
        if row.benchmark == benchmark
    ]  # fmt: skip
    return Table(heads, rows)


def _generation(_: str, own: Sequence[Scored]) -> Table:
    heads = ("model", *(f"{name} ({key})" for key, name in CRITERIA.items()), "mean",
             "questions", "not answered", "not judged", "judge", "split", "source")  # fmt: skip
    rows = []
    for scored in own:
        criteria = scored.scores.get("criteria", {})
        rows.append(
            (
                scored.model,
                *(points(criteria.get(key)) for key in CRITERIA),
                _number(scored.scores.get("mean_of_criteria"), 2),
                *_counts(scored),
                scored.judge,
                scored.split,
                "this evaluation",
            )
        )
    for row in GENERATION:
        criteria = [_number(value, 2) for value in row.criteria] or ["-"] * len(CRITERIA)
        rows.append(
            (row.model, *criteria, _number(row.mean, 2), "-", "-", "-", row.judge, row.split,
             row.source)
        )  # fmt: skip
    return Table(heads, rows)


def _counts(scored: Scored) -> tuple[str, str, str]:
    failed = scored.scores.get("failed", {})
    counts = scored.scores["n"], failed.get("unanswered", 0), failed.get("unjudged", 0)
    return tuple(f"{count:,}" for count in counts)


def _warnings(scored: Scored) -> list[str]:
    info, found = scored.info, []
    if told := unjudged_note(scored.scores):
        found.append(f"{scored.model}, judged by {scored.judge}: {told}.")
    if info.get("partial"):
        lacks = "; ".join(info.get("lacks") or ()) or "fewer questions than are published"
        found.append(f"{scored.model}: partial ({lacks}): not comparable with published numbers.")
    if info.get("complete") is False:
        found.append(f"{scored.model}: not all questions are answered yet.")
    overlap = info.get("overlap") or {}
    if not overlap.get("known") or not overlap.get("complete") or overlap.get("videos"):
        told = overlap.get("told") or "the training videos of this model are not known"
        found.append(f"{scored.model}: {told}. This is not a zero-shot score.")
    return found


def without_overlap(own: Sequence[Scored]) -> list[Part]:
    """What the scores are without the videos that the model was trained on."""
    rows = []
    for scored in own:
        rest = scored.scores.get("without_training_videos")
        if rest is None:
            rows.append((scored.model, "training videos not known", "-", "-", scored.judge))
            continue
        same = not rest.get("videos_left_out")
        values = scored.scores if same else rest
        mean = values.get("mean_of_criteria")
        value = _number(mean, 2) if "criteria" in values else _main(values)
        left = f"{rest.get('videos_left_out', 0):,}"
        rows.append((scored.model, left, f"{rest.get('n', 0):,}", value, scored.judge))
    heads = (
        "model",
        "training videos left out",
        "questions left",
        "accuracy, mean or facts",
        "judge",
    )
    return [Table(heads, rows)]


def by_type(scored: Scored) -> list[Part]:
    types = scored.scores.get("by_type") or {}
    own = scored.info.get("prior", {}).get("accuracy", {})
    rows = []
    for name, values in types.items():
        main = values.get("accuracy")
        prior = _prior(own, types, name)
        given = "-" if prior is None or not main else f"{100 * prior:.1f}"
        estimates = [main, values.get("faithfulness", {}).get("overlap")]
        estimates += values.get("criteria", {}).values()
        count = max((estimate["n"] for estimate in estimates if estimate), default=0)
        rows.append((name, f"{count:,}", _main(values), given))
    if not rows:
        return []
    return [Table(("type", "questions", "accuracy, % [95 %], or scores", "commonest answer"), rows)]


def _prior(
    prior: Mapping[str, float], types: Mapping[str, Mapping[str, Any]], name: str
) -> float | None:
    """The commonest answers' share of a type, or over the types that it is made of.

    prior: by the annotations' own types, which may be numbers. types: by name.
    """
    counts = {
        own: values["accuracy"]["n"]
        for values in types.values()
        if "accuracy" in values and len(values.get("types", ())) == 1
        for own in values["types"]
    }
    of = types[name].get("types", [name])
    if len(of) == 1:
        return prior.get(of[0])
    if not set(of) <= prior.keys() & counts.keys():
        return None
    return sum(prior[own] * counts[own] for own in of) / sum(counts[own] for own in of)


def controls(scored: Scored) -> list[Part]:
    """The controls beside the model's own answers to the same questions."""
    found = scored.scores.get("controls") or {}
    if not found:
        return [Text("No controls were asked: nothing shows that the model looks.", warning=True)]
    rows, parts = [], []
    for name, values in found.items():
        own = values.get("own", {})
        rows.append((name, f"{values['n']:,}", _main(values), _main(own)))
    heads = ("control", "questions", "under the control", "the model, same questions")
    parts.append(Table(heads, rows))
    if "blind" in found and nothing_right(found["blind"]):
        parts.append(
            Text(
                "With the video none of these questions is answered right: the controls show "
                "nothing.",
                warning=True,
            )
        )
    elif "blind" in found and solved_blind(found["blind"]):
        parts.append(
            Text(
                f"Solved as well by a blind model: {_main(found['blind'])} without the video, "
                f"within the interval of {_main(found['blind'].get('own', {}))} with it, on the "
                "same questions. Scores on it do not show that the video is seen.",
                warning=True,
            )
        )
    prior = scored.info.get("prior")
    if prior and "accuracy" in scored.scores:
        parts.append(
            Text(
                f"Without a model, by {prior['how']}: {100 * prior['accuracy']['all']:.1f} % "
                f"({prior['rule']})."
            )
        )
    return parts


def nothing_right(blind: Mapping[str, Any]) -> bool:
    """Whether the full scores on the questions of a control are 0 throughout."""
    estimates = (_estimate(blind.get("own", {}), name) for name in ("accuracy", *CRITERIA))
    values = [estimate["value"] for estimate in estimates if estimate]
    return bool(values) and not any(values)


def solved_blind(blind: Mapping[str, Any]) -> bool:
    """Whether the blind score is within the interval of the full one on the same questions."""
    for name in ("accuracy", *CRITERIA):
        value, own = (_estimate(part, name) for part in (blind, blind.get("own", {})))
        if value and own and own.get("low") is not None and value["value"] >= own["low"]:
            return True
    return False


def _estimate(values: Mapping[str, Any], name: str) -> Estimate | None:
    return values.get(name) or values.get("criteria", {}).get(name)


def _main(values: Mapping[str, Any]) -> str:
    if "accuracy" in values:
        return percent(values["accuracy"])
    words = [f"{key} {points(value)}" for key, value in values.get("criteria", {}).items()]
    if not words and (found := values.get("faithfulness")):
        words = [f"facts {percent(found['overlap'])}",
                 f"hallucinated {percent(found['hallucinated'])}"]  # fmt: skip
    return "; ".join(words) or "-"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
