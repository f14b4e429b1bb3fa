"""The loss on held-out data, and how it goes on where one stage hands over to the next."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from rvllm_jax.config.schema import Stage
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.batches.loader import loss_batches
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.models.functional import Arrays
from rvllm_jax.sharding import layouts
from rvllm_jax.training.diagnostics import count_unreadable, warn_of_unreadable


def validation_loss(
    loss: Callable[..., tuple[jax.Array, jax.Array]],
    params: Arrays,
    stats: Arrays,
    dataset: Dataset,
    layout: layouts.Layout,
    stage: Stage,
    *,
    most: int,
) -> dict[str, float]:
    """The "loss" a token over the sequences that can be read; "bad_rows" counts the others.

    Raises `TrainingError` where more than `most` are bad.
    """
    what, (host, hosts) = f"validation sequences of stage {stage.name}", layout.share
    pairs, bad = [], []
    for sequences in loss_batches(dataset, batch=stage.batch, host=host, hosts=hosts):
        bad += sequences.examples[sequences.errors != 0].tolist()
        pairs.append(loss(params, stats, layout.evaluation_batch(sequences)))
    counts: dict[str, int] = {}
    numbers = [number for numbers in HERE.gather(bad, what) for number in numbers]
    count_unreadable(dataset, numbers, counts, most=most, what=what)
    warn_of_unreadable(counts, what)
    value = float(sum(total for total, _ in pairs) / sum(tokens for _, tokens in pairs))
    return {"loss": value, "bad_rows": len(numbers)}


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
    boundaries = {}
    for before, after in itertools.pairwise(inputs):
        if inputs[before] != inputs[after] or not losses[before]:
            continue
        at = max(losses[before])  # a stage's last update is always validated
        soon = {step: loss for step, loss in losses[after].items() if step <= at + within}
        if soon:
            step = min(soon, key=soon.get)
            values = {"before": losses[before][at], "at": at, "after": soon[step], "step": step}
            boundaries[f"{before} -> {after}"] = values
    return boundaries
