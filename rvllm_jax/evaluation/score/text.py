"""Scores and comparisons as lines of text."""

from collections.abc import Iterator, Mapping
from typing import Any

from rvllm_jax.evaluation.score.scores import judge_settings, unjudged_note


def score_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What scores.NAME.json holds, in short; always with benchmark, split and judge."""
    judge = result["judge"]
    models = ", ".join(judge["models"]) or judge["model"]
    rule = (judge["parameters"] or {}).get("rule")
    how = ", ".join([*([f"{rule} rule"] if rule else []), *judge_settings(result)])
    yield (
        f"{result['benchmark']} {result['split']}{' (partial)' if result['partial'] else ''}, "
        f"judged by {models}{f' ({how})' if how else ''}: {result['n']} questions of "
        f"{result['videos']} videos, {result['failed']['unanswered']} unanswered, "
        f"{result['failed']['unjudged']} without a verdict"
    )
    if note := unjudged_note(result):
        yield f"  {note}"
    yield from _values(result, "  ")
    if result["failed"]["unjudged"]:
        yield from _values(result["of_judged"], "  of those judged: ")
    for type, values in result["by_type"].items():
        yield from _values(values, f"  {type}: ")
    for control, values in result["controls"].items():
        yield from _values(values, f"  {control} ({values['n']}): ")
        yield from _values(values["own"], "    the video itself, same questions: ")
    if prior := result.get("prior"):
        yield f"  without a model, {prior['how']}: {100 * prior['accuracy']['all']:.1f} %"
    if evaluator := result.get("official_evaluator"):
        shares = (f"{type} {100 * share:.2f} %" for type, share in evaluator["accuracy"].items())
        yield f"  the official evaluator, on the file as it is: {', '.join(shares)}"
    seen = result["without_training_videos"]
    if seen is None:
        yield "  whether the model was trained on these videos: unknown"
    elif seen["videos_left_out"]:
        out = f"without {seen['videos_left_out']} training videos"
        yield f"  {out}, {seen['n']} of {result['n']} questions are left"
        if seen["n"]:
            yield from _values(seen, f"  {out}: ")
    else:
        yield "  none of these videos is a training video of the model, as far as they are known"
    if "cost" in result:
        yield f"  cost: {result['cost']:.2f}"


def _values(values: Mapping[str, Any], start: str) -> Iterator[str]:
    if "accuracy" in values:
        yield f"{start}accuracy {_estimate(values['accuracy'], 100, ' %')}"
    for rule, estimate in values.get("rules", {}).items():
        yield f"{start}  by the {rule} rule {_estimate(estimate, 100, ' %')}"
    if "score" in values:
        yield f"{start}score {_estimate(values['score'])}"
    for criterion, estimate in values.get("criteria", {}).items():
        yield f"{start}{criterion} {_estimate(estimate)}"
    if values.get("mean_of_criteria") is not None:
        yield f"{start}mean of the five {values['mean_of_criteria']:.2f}"
    if faithful := values.get("faithfulness"):
        yield f"{start}facts in the reference {_estimate(faithful['overlap'], 100, ' %')}"
        yield (
            f"{start}hallucinated (below {100 * faithful['below']:.0f} %) "
            f"{_estimate(faithful['hallucinated'], 100, ' %')}, {faithful['without_facts']} "
            "without facts"
        )


def comparison_lines(compared: Mapping[str, Any]) -> Iterator[str]:
    """What `compare.compare` returns, in short."""
    yield f"{compared['benchmark']} {compared['split']}"
    for file in compared["files"]:
        if file["unjudged"]:
            yield (
                f"{file['path']}: {file['unjudged']} of {file['answered']} verdicts failed; they "
                "count as wrong in differences and spreads, and two judges are compared without "
                "them"
            )
    for pair in compared["pairs"]:
        yield f"{pair['a']}\n  against {pair['b']}"
        if "judges" in pair:
            judges = pair["judges"]
            yield (
                f"  two judges: {judges['n']} answers judged by both, {judges['without_verdict']} "
                "not by both"
            )
            if "confusion" in judges:
                kappa = "undefined" if judges["kappa"] is None else f"{judges['kappa']:.3f}"
                table = ", ".join(f"{k} {n}" for k, n in judges["confusion"].items())
                share = 100 * judges["agree"]
                yield f"  agree {share:.1f} %, kappa {kappa} (first/second: {table})"
            if "score_difference" in judges:
                yield (
                    f"  scores, first minus second: {judges['score_difference']:+.2f} on average, "
                    f"{judges['absolute_score_difference']:.2f} without sign"
                )
            continue
        models = pair["models"]
        yield "  two models, first minus second on the same questions:"
        for name in ("accuracy", "score", "overlap"):
            if name in models:
                yield f"  {name}: {_estimate(models[name], sign='+')}"
        for type, estimate in models["accuracy_by_type"].items():
            yield f"    {type}: {_estimate(estimate, sign='+')}"
    for name, spread in compared["spread"].items():
        yield (
            f"spread of {name} over {len(spread['values'])} files: {spread['smallest']:.4f} to "
            f"{spread['largest']:.4f}, standard deviation {spread['standard_deviation']:.4f}"
        )


def _estimate(estimate: Mapping[str, Any], times: float = 1, unit: str = "", sign="") -> str:
    if estimate["value"] is None:
        return "none"
    digits = 1 if times == 100 else 3 if sign else 2
    value, low, high = (
        None if estimate[name] is None else f"{times * estimate[name]:{sign}.{digits}f}"
        for name in ("value", "low", "high")
    )
    return f"{value}{unit}" + (f" ({low} to {high})" if low is not None else " (one video)")
