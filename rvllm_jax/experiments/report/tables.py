"""The tables of the results page; every row says by which judge and on which split."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rvllm_jax.evaluation.answers.questions import CRITERIA, TEXT_GENERATION
from rvllm_jax.evaluation.score.scores import unjudged_note
from rvllm_jax.experiments.report.document import Part, Table, Text
from rvllm_jax.experiments.report.published_scores import PUBLISHED_SCORES
from rvllm_jax.experiments.report.results import Scored


def percent(estimate: Mapping[str, Any] | None) -> str:
    """An accuracy with its interval: "62.1 [58.0, 66.3]"."""
    return _with_interval(estimate, 100.0, 1)


def points(estimate: Mapping[str, Any] | None) -> str:
    """A score of 0 to 5 with its interval."""
    return _with_interval(estimate, 1.0, 2)


def _with_interval(estimate: Mapping[str, Any] | None, times: float, digits: int) -> str:
    if not estimate or estimate.get("value") is None:
        return "-"
    text = f"{times * estimate['value']:.{digits}f}"
    if estimate.get("low") is None or estimate.get("high") is None:
        return f"{text} [no interval]"
    return f"{text} [{times * estimate['low']:.{digits}f}, {times * estimate['high']:.{digits}f}]"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def comparison(benchmark: str, group: Sequence[Scored]) -> Iterator[Part]:
    """Our rows and the published ones of a benchmark, and what keeps them from being compared."""
    # One of faithfulness alone has neither.
    judged = [s for s in group if "accuracy" in s.scores or s.scores.get("criteria")]
    if judged:
        table = _with_published(benchmark, judged)
        yield table
        for column, what in (("judge", "judges"), ("split", "splits")):
            values = {row[table.heads.index(column)] for row in table.rows}
            if len(values) > 1:
                yield Text(
                    f"This table has rows of {len(values)} different {what} "
                    f"({'; '.join(sorted(values))}): numbers of different {what} cannot be "
                    "compared.",
                    warning=True,
                )
    yield from _faithfulness(group)
    for text in dict.fromkeys(text for scored in group for text in _warnings(scored)):
        yield Text(text, warning=True)


def _faithfulness(group: Sequence[Scored]) -> Iterator[Table]:
    rows = []
    for scored in group:
        if faithful := scored.scores.get("faithfulness"):
            facts, none = percent(faithful["overlap"]), f"{faithful['without_facts']:,}"
            below = f"(below {100 * faithful['below']:.0f} %)"
            invented = f"{percent(faithful['hallucinated'])} {below}"
            rows.append((scored.model, facts, invented, none, scored.judge, scored.split))
    if rows:
        heads = ("model", "facts in the reference, % [95 %]", "hallucinated answers, % [95 %]",
                 "answers without facts", "judge", "split")  # fmt: skip
        yield Table(heads, rows)


def _with_published(benchmark: str, group: Sequence[Scored]) -> Table:
    """Our scores of a benchmark, then the published ones."""
    generation = benchmark == TEXT_GENERATION
    names, digits = ("accuracy, % [95 %]", "score, 0-5"), 1
    if generation:
        names = (*(f"{criterion.name} ({key})" for key, criterion in CRITERIA.items()), "mean")
        digits = 2
    rows = []
    for scored in group:
        scores, failed = scored.scores, scored.scores.get("failed", {})
        values = [percent(scores.get("accuracy")), points(scores.get("score"))]
        if generation:
            values = [points(scores.get("criteria", {}).get(key)) for key in CRITERIA]
            values.append(_number(scores.get("mean_of_criteria"), digits))
        counts = scores["n"], failed.get("unanswered", 0), failed.get("unjudged", 0)
        counts = (f"{count:,}" for count in counts)
        rows.append((scored.model, *values, *counts, scored.judge, scored.split, "this evaluation"))
    for row in PUBLISHED_SCORES:
        if row.benchmark == benchmark:
            values = (_number(value, digits) for value in row.values)
            rows.append((row.model, *values, "-", "-", "-", row.judge, row.split, row.source))
    heads = ("questions", "not answered", "not judged", "judge", "split", "source")
    return Table(("model", *names, *heads), rows)


def _warnings(scored: Scored) -> Iterator[str]:
    info = scored.info
    if note := unjudged_note(scored.scores):
        yield f"{scored.model}, judged by {scored.judge}: {note}."
    if info.get("partial"):
        lacks = "; ".join(info.get("lacks") or ()) or "fewer questions than are published"
        yield f"{scored.model}: partial ({lacks}): not comparable with published numbers."
    if info.get("complete") is False:
        yield f"{scored.model}: not all questions are answered yet."
    overlap = info.get("overlap") or {}
    if not overlap.get("known") or not overlap.get("complete") or overlap.get("videos"):
        note = overlap.get("told") or "the training videos of this model are not known"
        yield f"{scored.model}: {note}. This is not a zero-shot score."


def without_overlap(group: Sequence[Scored]) -> Table:
    """What the scores are without the videos that the model was trained on."""
    rows = []
    for scored in group:
        rest = scored.scores.get("without_training_videos")
        if rest is None:
            rows.append((scored.model, "training videos not known", "-", "-", scored.judge))
            continue
        left_out = rest.get("videos_left_out", 0)
        values = rest if left_out else scored.scores
        mean = values.get("mean_of_criteria")
        value = _number(mean, 2) if "criteria" in values else _main(values)
        rows.append((scored.model, f"{left_out:,}", f"{rest.get('n', 0):,}", value, scored.judge))
    heads = ("model", "training videos left out", "questions left", "accuracy, mean or facts",
             "judge")  # fmt: skip
    return Table(heads, rows)


def by_type(scored: Scored) -> Table | None:
    """The scores of each type of question; None where there are no types."""
    types = scored.scores.get("by_type") or {}
    accuracy = scored.info.get("prior", {}).get("accuracy", {})
    rows = []
    for name, values in types.items():
        main = values.get("accuracy")
        prior = _prior(accuracy, types, name)
        commonest = "-" if prior is None or not main else f"{100 * prior:.1f}"
        estimates = [main, values.get("faithfulness", {}).get("overlap")]
        estimates += values.get("criteria", {}).values()
        count = max((estimate["n"] for estimate in estimates if estimate), default=0)
        rows.append((name, f"{count:,}", _main(values), commonest))
    heads = ("type", "questions", "accuracy, % [95 %], or scores", "commonest answer")
    return Table(heads, rows) if rows else None


def _prior(
    prior: Mapping[str, float], types: Mapping[str, Mapping[str, Any]], name: str
) -> float | None:
    """The commonest answers' share of a type, or over the types that it is made of.

    prior: by the annotations' own types, which may be numbers. types: by name.
    """
    counts = {
        type: values["accuracy"]["n"]
        for values in types.values()
        if "accuracy" in values and len(values.get("types", ())) == 1
        for type in values["types"]
    }
    parts = types[name].get("types", [name])
    if len(parts) == 1:
        return prior.get(parts[0])
    if not set(parts) <= prior.keys() & counts.keys():
        return None
    return sum(prior[type] * counts[type] for type in parts) / sum(counts[type] for type in parts)


def controls(scored: Scored) -> Iterator[Part]:
    """The controls beside the model's own answers to the same questions."""
    by_control = scored.scores.get("controls") or {}
    if not by_control:
        yield Text("No controls were asked: nothing shows that the model looks.", warning=True)
        return
    heads = ("control", "questions", "under the control", "the model, same questions")
    yield Table(heads, [
        (name, f"{values['n']:,}", _main(values), _main(values.get("own", {})))
        for name, values in by_control.items()
    ])  # fmt: skip
    if "blind" in by_control and nothing_right(by_control["blind"]):
        yield Text(
            "With the video none of these questions is answered right: the controls show nothing.",
            warning=True,
        )
    elif "blind" in by_control and solved_blind(by_control["blind"]):
        blind = by_control["blind"]
        yield Text(
            f"Solved as well by a blind model: {_main(blind)} without the video, within the "
            f"interval of {_main(blind.get('own', {}))} with it, on the same questions. Scores on "
            "it do not show that the video is seen.",
            warning=True,
        )
    prior = scored.info.get("prior")
    if prior and "accuracy" in scored.scores:
        share = f"{100 * prior['accuracy']['all']:.1f} %"
        yield Text(f"Without a model, by {prior['how']}: {share} ({prior['rule']}).")


def nothing_right(blind: Mapping[str, Any]) -> bool:
    """Whether the full scores on the questions of a control are 0 throughout."""
    estimates = (_estimate(blind.get("own", {}), name) for name in ("accuracy", *CRITERIA))
    values = [estimate["value"] for estimate in estimates if estimate]
    return bool(values) and not any(values)


def solved_blind(blind: Mapping[str, Any]) -> bool:
    """Whether the blind score is within the interval of the full one on the same questions."""
    for name in ("accuracy", *CRITERIA):
        value, full = (_estimate(part, name) for part in (blind, blind.get("own", {})))
        if value and full and full.get("low") is not None and value["value"] >= full["low"]:
            return True
    return False


def _estimate(values: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return values.get(name) or values.get("criteria", {}).get(name)


def _main(values: Mapping[str, Any]) -> str:
    if "accuracy" in values:
        return percent(values["accuracy"])
    words = [f"{key} {points(value)}" for key, value in values.get("criteria", {}).items()]
    if not words and (faithful := values.get("faithfulness")):
        words = [f"facts {percent(faithful['overlap'])}",
                 f"hallucinated {percent(faithful['hallucinated'])}"]  # fmt: skip
    return "; ".join(words) or "-"


def made(results: Sequence[Scored]) -> Table:
    """By which checkpoints, clips and judges, and when."""
    heads = ("results", "model", "clips", "tokens an answer", "answered", "judge", "judged")
    rows = []
    for scored in results:
        info, judge = scored.info, scored.scores["judge"]
        model = (info.get("checkpoint") or {}).get("told") or info.get("model") or "-"
        if content := (info.get("fingerprints") or {}).get("model"):
            model = f"{model} (content {content})"
        clips = f"{info.get('clips', '-')} {info.get('fusion', '')}".strip()
        dates = " to ".join(dict.fromkeys(judge.get("dates") or [judge.get("date") or "-"]))
        rows.append(
            (str(scored.folder), str(model), clips, str(info.get("max_new", "-")),
             info.get("date", "-"), f"{judge['backend']}: {scored.judge}", dates)
        )  # fmt: skip
    return Table(heads, rows)
