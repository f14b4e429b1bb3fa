"""Weights on disk into arrays on the devices: all of them, or an error that lists what is wrong.

Devices with memory of their own are sent pieces, which they turn and join; in_memory.py writes the
arrays of CPU devices.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.weights import in_memory, stream
from rvllm_jax.weights.check import find_faults, list_faults
from rvllm_jax.weights.open import Entry, Weights
from rvllm_jax.weights.safetensors import WeightsError


def combine(sources: list[Weights]) -> dict[str, Entry]:
    """The arrays of several files; WeightsError where two of them bring the same."""
    entries: dict[str, Entry] = {}
    for source in sources:
        if twice := sorted(source.entries.keys() & entries.keys()):
            raise WeightsError(
                f"{source.path}: brings {', '.join(twice[:8])}, {len(twice)} in all, which a "
                "folder before it brings too; leave one of them out"
            )
        entries |= source.entries
    return entries


def check(
    entries: Mapping[str, Entry], targets: Mapping[str, Any], *, random: str = "", where: str = ""
) -> list[str]:
    """The paths of `targets` that `entries` lacks, all of which the regex `random` must match.

    `targets` maps every path of the model to its shape and dtype. Raises one WeightsError that
    lists all that is missing, surplus, misshapen or of a wrong dtype. Nothing is read.
    """
    missing = [path for path in targets if path not in entries]
    allowed = [path for path in missing if random and re.fullmatch(random, path)]
    absent = [path for path in missing if path not in allowed]
    if faults := find_faults(entries, targets, absent):
        raise WeightsError(
            f"{where}: the weights are not those of this model. Choose the sizes that they were "
            f"made for; what is to stay random must be named:{list_faults(faults)}"
        )
    return allowed


def load(
    entries: Mapping[str, Entry], targets: Mapping[str, Any], shardings: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The arrays of `entries`, each in the dtype of its target and where `shardings` says.

    `check` comes first. Pieces of tensors go straight to where they stay: host memory holds a few
    at a time, whatever the model's size.
    """

    def is_on_cpu(path: str) -> bool:
        return next(iter(shardings[path].device_set)).platform == "cpu"

    cpu = {path: entry for path, entry in entries.items() if is_on_cpu(path)}
    others = {path: entry for path, entry in entries.items() if path not in cpu}
    return load_by_pieces(others, targets, shardings) | in_memory.load(cpu, targets, shardings)


def load_by_pieces(
    entries: Mapping[str, Entry], targets: Mapping[str, Any], shardings: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """`load` on devices with memory of their own."""
    arrays: dict[str, jax.Array] = {}
    # A piece of what is split over devices would not be split as the whole is.
    split = {path for path in entries if len(shardings[path].device_set) > 1}
    for piece, x in stream.stream(stream.plan(entries, whole=split)):
        path, entry = piece.path, entries[piece.path]
        dtype, sharding = np.dtype(targets[path].dtype), shardings[path]
        if path not in arrays:
            arrays[path] = jnp.zeros(entry.shape, dtype, device=sharding)
        of_piece = _without_layers(sharding) if entry.stacked else sharding
        whole = piece.shape == piece.tensor.shape
        write = _make_write(
            entry.axes, sharding, entry.stacked, None if whole else entry.piece_axis
        )
        sent = _send(x, entry.axes, dtype, of_piece)
        # The memory of x is used again.
        arrays[path] = jax.block_until_ready(write(arrays[path], sent, piece.layer, piece.start))
    return arrays


def _send(array: np.ndarray, axes, dtype: np.dtype, sharding) -> jax.Array:
    """Theirs on the devices, split as it will be when its axes are turned.

    Each device is given its part alone. 64 bits are rounded here: devices may not hold them.
    """
    if array.dtype.itemsize > dtype.itemsize and array.dtype == np.float64:
        array = array.astype(dtype)
    if isinstance(sharding, NamedSharding) and axes is not None:
        spec = [*sharding.spec, *[None] * array.ndim][: array.ndim]
        turned = P(*(spec[axes.index(axis)] for axis in range(len(axes))))
        sharding = NamedSharding(sharding.mesh, turned)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _without_layers(sharding):
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, P(*sharding.spec[1:]))


@functools.cache
def _make_write(axes, sharding, stacked: bool, axis: int | None):
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

    return jax.jit(write, out_shardings=sharding, donate_argnums=0)
