"""An array in host memory that comes back to where it lay on the devices."""

from typing import NamedTuple

import jax
import numpy as np


class Waiting(NamedTuple):
    """What this host's devices held of an array that lies over several hosts."""

    shape: tuple[int, ...]
    sharding: jax.sharding.Sharding
    parts: dict[str, np.ndarray]  # by the place that they have in the array

    def put(self) -> jax.Array:
        """The array on the devices again, as it lay there."""
        return jax.make_array_from_callback(
            self.shape, self.sharding, lambda index: self.parts[str(index)]
        )


def to_host(x: jax.Array) -> np.ndarray | Waiting:
    """A copy in host memory: whole where one host has it all, else of this host's part."""
    if x.is_fully_addressable:
        return np.array(x)  # a copy: on CPU a view would keep `x` alive
    # Copies of one part, on several devices, are kept once.
    parts = {str(shard.index): shard for shard in x.addressable_shards}
    copies = {index: np.array(shard.data) for index, shard in parts.items()}
    return Waiting(x.shape, x.sharding, copies)


def to_devices(x: np.ndarray | Waiting) -> np.ndarray | jax.Array:
    """As a checkpoint takes it: an array of all hosts has to be on their devices for that."""
    return x.put() if isinstance(x, Waiting) else x
