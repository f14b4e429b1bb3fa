"""Whether the validation loss goes on where one stage hands over to the next."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any


def boundary_losses(
    records: Iterable[Mapping[str, Any]], inputs: Mapping[str, str], *, within: int = 200
) -> dict[str, dict[str, float]]:
    """The validation loss just before each boundary, and the lowest soon after it.

        {"visual -> joint": {"before": 1.31, "at": 350, "after": 1.12, "step": 450}}

    Left out are boundaries between stages of different inputs, whose losses are of different
    tasks, and those with no finite loss before, or within so many steps after.

    Args:
      records: those of metrics.jsonl (`metrics.read`).
      inputs: the input of every stage by its name, in the order in which they run.
      within: steps behind the boundary.
    """
    losses: dict[str, dict[int, float]] = {stage: {} for stage in inputs}
    for record in records:
        known = record["kind"] == "validation" and record["stage"] in losses
        if known and math.isfinite(record["loss"]):
            losses[record["stage"]][record["step"]] = record["loss"]
    found = {}
    for before, after in itertools.pairwise(inputs):
        if inputs[before] != inputs[after] or not losses[before]:
            continue
        at = max(losses[before])  # a stage's last update is always validated
        soon = {step: loss for step, loss in losses[after].items() if step <= at + within}
        if soon:
            step = min(soon, key=soon.get)
            values = {"before": losses[before][at], "at": at, "after": soon[step], "step": step}
            found[f"{before} -> {after}"] = values
    return found
