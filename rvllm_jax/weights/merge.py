"""Weights on disk into arrays on the devices: all of them, or an error that lists what is wrong."""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.weights import streaming
from rvllm_jax.weights.errors import WeightsError
from rvllm_jax.weights.files import Entry, Weights
from rvllm_jax.weights.rules import MATRIX
from rvllm_jax.weights.streaming import Piece

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
    return [f"  ({projector_hint(entry.shape[0], target.shape[0])})"]


def projector_hint(features: int, encoder: int) -> str:
    """What to do where a projector of `features` inputs meets an encoder that makes others."""
    made_for = CLIP_FEATURES.get(features, "another encoder")
    return (
        f"this projector was made for the {features} features of {made_for}; the encoder here has "
        f"{encoder}: leave the projector out, by rvllm_jax.convert --leave_out='projector/.*', "
        "and train a new one, by --config.model.random='projector/.*'"
    )


def _spec(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def load(
    entries: Mapping[str, Entry], targets: Mapping[str, Any], shardings: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The arrays of `entries`, each in the dtype of its target and where `shardings` says.

    `check` comes first. Pieces of tensors are read and go straight to their places: host memory
    holds a few at a time, whatever the model's size.
    """
    arrays: dict[str, jax.Array] = {}
    for piece, x in streaming.stream(_plan(entries, shardings)):
        path, entry = piece.path, entries[piece.path]
        dtype, place = np.dtype(targets[path].dtype), shardings[path]
        if path not in arrays:
            arrays[path] = jnp.zeros(entry.shape, dtype, device=place)
        one = _of_one_layer(place) if entry.stacked else place
        left = None if piece.turn else entry.axes  # what is still to be turned on the devices
        axis = entry.axes.index(0) if entry.axes else 0  # of ours, along which pieces follow
        write = _write(left, place, entry.stacked, None if _is_whole(piece) else axis)
        array = write(arrays[path], _send(x, left, dtype, one), piece.layer, piece.start)
        arrays[path] = jax.block_until_ready(array)  # the memory of x is used again
    return arrays


def _plan(entries: Mapping[str, Entry], shardings: Mapping[str, Any]) -> Iterator[Piece]:
    for path, entry in entries.items():
        place = shardings[path]
        turn = entry.axes == MATRIX and _on_cpu(place)
        # A piece of what is split over devices would not be split as the whole is.
        whole = len(place.device_set) > 1
        for layer, tensor in enumerate(entry.tensors):
            yield from streaming.pieces(path, layer, tensor, turn=turn, whole=whole)


def _is_whole(piece: Piece) -> bool:
    return piece.shape == piece.tensor.shape


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
        dtype, x = array.dtype, _turned(x, axes)
        if dtype == jnp.bfloat16:
            # On CPU XLA updates bfloat16 by way of a float32 copy of all layers; but not bits.
            array, x = jax.lax.bitcast_convert_type(array, jnp.uint16), _bfloat16_bits(x)
        x, start = x.astype(array.dtype), [0] * x.ndim
        if axis is not None:
            start[axis] = row
        if stacked:
            x, start = x[None], [layer, *start]
        array = jax.lax.dynamic_update_slice(array, x, start)
        return jax.lax.bitcast_convert_type(array, dtype) if dtype == jnp.bfloat16 else array

    return jax.jit(write, out_shardings=place, donate_argnums=0)


def _bfloat16_bits(x: jax.Array) -> jax.Array:
    """The numbers in bfloat16, as their `uint16`; no loop over scalars, unlike XLA's on CPU."""
    if x.dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(x, jnp.uint16)
    x = x.astype(jnp.float32)
    rounded = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    bits = jax.lax.bitcast_convert_type(rounded, jnp.uint32) >> 16
    return jnp.where(jnp.isnan(x), 0x7FC0, bits).astype(jnp.uint16)


def _on_cpu(place) -> bool:
    return next(iter(place.device_set)).platform == "cpu"


def _turned(x, axes):
    return x if axes is None else x.transpose(axes)
