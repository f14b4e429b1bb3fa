"""Weights on disk into arrays on the devices: all of them, or an error that lists what is wrong."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.weights.errors import WeightsError
from rvllm_jax.weights.files import Entry, Weights
from rvllm_jax.weights.rules import MATRIX
from rvllm_jax.weights.tensor_file import FileTensor

CLIP_FEATURES = {768: "CLIP ViT-B", 1024: "CLIP ViT-L", 1152: "SigLIP SO400M"}
PROJECTOR = "projector/linear_1/kernel"  # [features, width]


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
    lists what is missing, surplus, misshapen or of a wrong dtype. Nothing is read.
    """
    missing = [path for path in targets if path not in entries]
    allowed = [path for path in missing if random and re.fullmatch(random, path)]
    faults = [f"missing: {path} {_spec(targets[path])}" for path in missing if path not in allowed]
    for path, entry in entries.items():
        if path not in targets:
            faults.append(f"surplus: {path} {_spec(entry)}")
        elif entry.shape != targets[path].shape:
            expected = _spec(targets[path])
            faults.append(f"misshapen: {path} is {_spec(entry)}, expected {expected}")
            faults += _projector_hint(path, entry, targets[path])
        elif wrong := [t for t in entry.tensors if not jnp.issubdtype(t.dtype, jnp.floating)]:
            faults.append(f"wrong dtype: {path} is {_spec(wrong[0])}, expected floating point")
    if faults:
        raise WeightsError(
            f"{where}: the weights are not those of this model. Choose the sizes that they were "
            "made for; what is to stay random must be named:\n  " + "\n  ".join(faults)
        )
    return allowed


def _projector_hint(path: str, entry: Entry, target: Any) -> list[str]:
    if path != PROJECTOR or entry.shape[0] == target.shape[0]:
        return []
    made_for = CLIP_FEATURES.get(entry.shape[0], "another encoder")
    return [
        f"  (this projector was made for the {entry.shape[0]} features of {made_for}; the "
        f"encoder here has {target.shape[0]}: leave the projector out and train a new one)"
    ]


def _spec(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def load(
    entries: Mapping[str, Entry], targets: Mapping[str, Any], shardings: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The arrays of `entries`, each in the dtype of its target and where `shardings` says.

    `check` comes first. One tensor after the other is read and goes straight to its place: host
    memory holds a few at a time, whatever the model's size.
    """
    arrays, last = {}, None
    for path, entry in entries.items():
        dtype, place = np.dtype(targets[path].dtype), shardings[path]
        here = entry.axes == MATRIX and _on_cpu(place)
        left = None if here else entry.axes  # what is still to be turned on the devices
        if not entry.stacked:
            x = _send(entry.tensors[0], entry.axes, dtype, place, here)
            jax.block_until_ready(last)
            arrays[path] = last = _turn(left, dtype, place)(x)
            continue
        last = jnp.zeros(entry.shape, dtype, device=place)
        for layer, tensor in enumerate(entry.tensors):
            x = _send(tensor, entry.axes, dtype, _of_one_layer(place), here)
            # The read of a tensor overlaps with the placing of the one before, and no more.
            jax.block_until_ready(last)
            last = _write(left, place)(last, x, layer)
        arrays[path] = last
    return jax.block_until_ready(arrays)


def _send(tensor: FileTensor, axes, dtype: np.dtype, place, here: bool) -> jax.Array:
    """A tensor on the devices as it is in the file, split as it will be when its axes are turned.

    Each device is given its part alone. 64 bits are rounded here: devices may not hold them.
    """
    array = tensor.read()
    if here:
        array = _turned_here(array, axes)
    if array.dtype.itemsize > dtype.itemsize and array.dtype == np.float64:
        array = array.astype(dtype)
    if _is_named(place) and axes is not None and not here:
        spec = [*place.spec, *[None] * array.ndim][: array.ndim]
        place = NamedSharding(place.mesh, P(*(spec[axes.index(axis)] for axis in range(len(axes)))))
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])


def _of_one_layer(place):
    return NamedSharding(place.mesh, P(*place.spec[1:])) if _is_named(place) else place


def _is_named(place) -> bool:
    return isinstance(place, NamedSharding)


@functools.cache
def _turn(axes, dtype: np.dtype, place):
    """Their tensor -> ours; compiled once a shape."""
    return jax.jit(lambda x: _turned(x, axes).astype(dtype), out_shardings=place)


@functools.cache
def _write(axes, place):
    """(stack, their tensor, layer) -> the stack with it, in the same memory."""

    def write(stack, x, layer):
        x = _turned(x, axes).astype(stack.dtype)
        return jax.lax.dynamic_update_index_in_dim(stack, x, layer, 0)

    return jax.jit(write, out_shardings=place, donate_argnums=0)


def _on_cpu(place) -> bool:
    return next(iter(place.device_set)).platform == "cpu"


def _turned_here(array: np.ndarray, axes) -> np.ndarray:
    """The array with its axes turned, in host memory: on CPU some 4 times as fast as XLA does it.

    16 rows at a time stay in the cache.
    """
    turned = np.empty(tuple(array.shape[axis] for axis in axes), array.dtype)
    for row in range(0, len(array), 16):
        turned[:, row : row + 16] = array[row : row + 16].T
    return turned


def _turned(x, axes):
    return x if axes is None else x.transpose(axes)
