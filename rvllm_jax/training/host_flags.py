"""What the hosts tell each other beside every update, by the devices and without waiting for them.

Each host reads its own rows, and may be told to stop by itself. What is decided of that has to be
decided everywhere at the same update, since all hosts compute and save together. With one host
nothing runs on the devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.sharding.layouts import Layout
from rvllm_jax.types import Batch


class Told(NamedTuple):
    """Of all hosts' rows of one batch; arrays that are still on their way until they are read."""

    rows: np.ndarray | jax.Array  # int32[B], the numbers of their examples
    errors: np.ndarray | jax.Array  # int32[B]
    stop: bool | jax.Array  # whether any host was told to stop, before this update


class Together:
    """Tells all hosts each one's rows, errors and signal; every host makes the same calls."""

    def __init__(self, layout: Layout):
        self._hosts = jax.process_count()
        if self._hosts > 1:
            self._each = NamedSharding(layout.mesh, P(layout.mesh.axis_names))  # one a device
            self._tell = jax.jit(_tell, out_shardings=layout.replicated)

    def tell(self, batch: Batch, placed: Batch, stop: bool) -> Told:
        """batch: this host's rows in its memory; placed: the same on the devices."""
        if self._hosts == 1:
            # Without the frames: their memory is wanted for the batches to come.
            return Told(batch.examples, batch.errors, stop)
        own = np.full(jax.local_device_count(), stop, np.int32)
        flags = jax.make_array_from_process_local_data(self._each, own)
        return self._tell(placed.examples, placed.errors, flags)


def _tell(rows: jax.Array, errors: jax.Array, stop: jax.Array) -> Told:
    return Told(rows, errors, jnp.any(stop > 0))
