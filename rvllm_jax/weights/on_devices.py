"""Arrays of files on devices with memory of their own: sent in pieces, turned and joined there."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.weights import stream
from rvllm_jax.weights.open import Entry


def load(
    entries: Mapping[str, Entry], targets: Mapping[str, Any], shardings: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The arrays of `entries`, as `merge.load` tells."""
    arrays: dict[str, jax.Array] = {}
    # A piece of what is split over devices would not be split as the whole is.
    split = {path for path in entries if len(shardings[path].device_set) > 1}
    for piece, x in stream.stream(stream.plan(entries, whole=split)):
        path, entry = piece.path, entries[piece.path]
        dtype, place = np.dtype(targets[path].dtype), shardings[path]
        if path not in arrays:
            arrays[path] = jnp.zeros(entry.shape, dtype, device=place)
        one = _of_one_layer(place) if entry.stacked else place
        whole = piece.shape == piece.tensor.shape
        write = _write(entry.axes, place, entry.stacked, None if whole else entry.piece_axis)
        array = write(arrays[path], _send(x, entry.axes, dtype, one), piece.layer, piece.start)
        arrays[path] = jax.block_until_ready(array)  # the memory of x is used again
    return arrays


def _send(array: np.ndarray, axes, dtype: np.dtype, place) -> jax.Array:
    """Theirs on the devices, split as it will be when its axes are turned.

    Each device is given its part alone. 64 bits are rounded here: devices may not hold them.
    """
    if array.dtype.itemsize > dtype.itemsize and array.dtype == np.float64:
        array = array.astype(dtype)
    if _is_named(place) and axes is not None:
        spec = [*place.spec, *[None] * array.ndim][: array.ndim]
        place = NamedSharding(place.mesh, P(*(spec[axes.index(axis)] for axis in range(len(axes)))))
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def _of_one_layer(place):
    return NamedSharding(place.mesh, P(*place.spec[1:])) if _is_named(place) else place


def _is_named(place) -> bool:
    return isinstance(place, NamedSharding)


@functools.cache
def _write(axes, place, stacked: bool, axis: int | None):
    """(array of ours, theirs, layer, row) -> the array with it, in the same memory.

    `axis` is where the row counts; None: theirs is a whole tensor, and what its parts on the
    devices are need not be known at run time.
    """

    def write(array, x, layer, row):
        x = (x if axes is None else x.transpose(axes)).astype(array.dtype)
        start = [0] * x.ndim
        if axis is not None:
            start[axis] = row
        if stacked:
            x, start = x[None], [layer, *start]
        return jax.lax.dynamic_update_slice(array, x, start)

    return jax.jit(write, out_shardings=place, donate_argnums=0)
