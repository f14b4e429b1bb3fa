"""The loss on held-out rows, of which those that cannot be read are counted."""

from collections.abc import Callable

import jax

from rvllm_jax.config.schema import Stage
from rvllm_jax.data.batches.dataset import Dataset
from rvllm_jax.data.batches.loader import loss_batches
from rvllm_jax.hosts.sync import HERE
from rvllm_jax.models.functional import Arrays
from rvllm_jax.sharding import layouts
from rvllm_jax.training.unreadable import count_unreadable, warn_of_unreadable


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
    """The "loss" a token over the rows that can be read, and the number of "bad_rows", the others.

    Raises `TrainingError` where more than `most` are bad.
    """
    what, (host, hosts) = f"validation rows of stage {stage.name}", layout.share
    pairs, bad = [], []
    for rows in loss_batches(dataset, batch=stage.batch, host=host, hosts=hosts):
        bad += rows.examples[rows.errors != 0].tolist()
        pairs.append(loss(params, stats, layout.evaluation_batch(rows)))
    found: dict[str, int] = {}
    numbers = [number for own in HERE.gather(bad, what) for number in own]
    count_unreadable(dataset, numbers, found, most=most, what=what)
    warn_of_unreadable(found, what)
    value = float(sum(total for total, _ in pairs) / sum(tokens for _, tokens in pairs))
    return {"loss": value, "bad_rows": len(numbers)}
