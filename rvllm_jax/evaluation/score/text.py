"""Scores and comparisons as lines of text."""

from collections.abc import Iterator, Mapping
from typing import Any

from rvllm_jax.evaluation.score.scores import asked_how, unjudged_told


def score_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What scores.NAME.json holds, in short; always with benchmark, split and judge."""
    judge = result["judge"]
    models = ", ".join(judge["models"]) or judge["model"]
    rule = (judge["parameters"] or {}).get("rule")
    how = ", ".join([*([f"{rule} rule"] if rule else []), *asked_how(result)])
    yield (
        f"{result['benchmark']} {result['split']}{' (partial)' if result['partial'] else ''}, "
        f"judged by {models}{f' ({how})' if how else ''}: {result['n']} questions of "
        f"{result['videos']} videos, {result['failed']['unanswered']} unanswered, "
        f"{result['failed']['unjudged']} without a verdict"
    )
    if told := unjudged_told(result):
        yield f"  {told}"
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
    """What `agreement.compare` found, in short."""
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
            found = pair["judges"]
            yield (
                f"  two judges: {found['n']} answers judged by both, {found['without_verdict']} "
                "not by both"
            )
            if "confusion" in found:
                kappa = "undefined" if found["kappa"] is None else f"{found['kappa']:.3f}"
                table = ", ".join(f"{k} {n}" for k, n in found["confusion"].items())
                yield f"  agree {100 * found['agree']:.1f} %, kappa {kappa} (first/second: {table})"
            if "score_difference" in found:
                yield (
                    f"  scores, first minus second: {found['score_difference']:+.2f} on average, "
                    f"{found['absolute_score_difference']:.2f} without sign"
                )
            continue
        found = pair["models"]
        yield "  two models, first minus second on the same questions:"
        for name in ("accuracy", "score", "overlap"):
            if name in found:
                yield f"  {name}: {_estimate(found[name], sign='+')}"
        for type, estimate in found["accuracy_by_type"].items():
            yield f"    {type}: {_estimate(estimate, sign='+')}"
    for name, found in compared["spread"].items():
        yield (
            f"spread of {name} over {len(found['values'])} files: {found['smallest']:.4f} to "
            f"{found['largest']:.4f}, standard deviation {found['standard_deviation']:.4f}"
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
