"""What the hosts exchange beside every update, by the devices and without waiting for them.

Each host reads its own part of a batch, and may be asked to stop by itself. What is decided of that
has to be decided everywhere at the same update, since all hosts compute and save together. With one
host nothing runs on the devices.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.sharding.layouts import Layout
from rvllm_jax.types import Batch


class BatchFlags(NamedTuple):
    """Of one batch of all hosts; arrays that are still on their way until they are read."""

    examples: np.ndarray | jax.Array  # int32[B], their numbers
    errors: np.ndarray | jax.Array  # int32[B]
    stop: bool | jax.Array  # whether any host was asked to stop, before this update


def flag_exchange(layout: Layout) -> Callable[[Batch, Batch, bool], BatchFlags]:
    """(batch, placed, stop) -> each host's examples, errors and signal, on all of them; every host
    makes the same calls. batch: this host's part in its memory; placed: the same on the devices.
    """
    if jax.process_count() == 1:
        # Without the frames: their memory is wanted for the batches to come.
        return lambda batch, placed, stop: BatchFlags(batch.examples, batch.errors, stop)
    one_a_device = NamedSharding(layout.mesh, P(layout.mesh.axis_names))

    @functools.partial(jax.jit, out_shardings=layout.replicated)
    def join(examples: jax.Array, errors: jax.Array, stops: jax.Array) -> BatchFlags:
        return BatchFlags(examples, errors, jnp.any(stops > 0))

    def exchange(batch: Batch, placed: Batch, stop: bool) -> BatchFlags:
        stops = np.full(jax.local_device_count(), stop, np.int32)
        stops = jax.make_array_from_process_local_data(one_a_device, stops)
        return join(placed.examples, placed.errors, stops)

    return exchange
