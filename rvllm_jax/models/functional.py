"""The Flax NNX model as pure functions of flat dictionaries {"encoder/stem/kernel": array}."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rvllm_jax.system.fingerprint import SHORT, digest

Arrays = dict[str, jax.Array]
_ODD = 2654435761
_PART = 1 << 22  # values that are summed up at once on a host


def _flat(state: Any) -> Arrays:
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def _filled(state: Any, arrays: Arrays) -> Any:
    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state(
        [(p, leaf.replace(arrays["/".join(map(str, p))])) for p, leaf in flat]
    )


@dataclasses.dataclass(frozen=True)
class FunctionalModel:
    """A module's structure without its arrays, made once by `FunctionalModel.of`.

    `params` and `stats` map a path ("decoder/layers/mlp/up/kernel") to its shape and dtype:
    trainable parameters, and the running statistics of BatchNorm.
    """

    make: Callable[[nnx.Rngs], nnx.Module]
    graphdef: Any
    param_state: Any
    stat_state: Any

    @classmethod
    def of(cls, make: Callable[[nnx.Rngs], nnx.Module]) -> "FunctionalModel":
        """Traces `make(rngs)` without allocating anything."""
        abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        graphdef, params, stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
        return cls(make, graphdef, params, stats)

    @property
    def params(self) -> dict[str, jax.ShapeDtypeStruct]:
        return _flat(self.param_state)

    @property
    def stats(self) -> dict[str, jax.ShapeDtypeStruct]:
        return _flat(self.stat_state)

    def init(self, key: jax.Array) -> tuple[Arrays, Arrays]:
        """Random parameters and fresh statistics; pure, so it can be jitted with out_shardings."""
        _, params, stats = nnx.split(self.make(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        return _flat(params), _flat(stats)

    def merge(self, params: Arrays, stats: Arrays) -> nnx.Module:
        """The module holding these arrays (fails with KeyError where one is missing)."""
        return nnx.merge(
            self.graphdef, _filled(self.param_state, params), _filled(self.stat_state, stats)
        )

    def read_stats(self, module: nnx.Module) -> Arrays:
        """The statistics a forward pass left in `module`."""
        return _flat(nnx.state(module, nnx.BatchStat))


def checksum(arrays: Arrays, dtypes: Mapping[str, np.dtype] = MappingProxyType({})) -> str:
    """16 hex digits of the values of `[...]` arrays of any dtype, each summed up on its devices.

    dtypes: by path, what an array is taken as in place of its own dtype.
    """
    dtypes = {path: dtypes.get(path, x.dtype) for path, x in arrays.items()}
    # What the host has it sums up itself: compiling for it takes seconds.
    near = {p: x for p, x in arrays.items() if x.is_fully_addressable and _is_on_cpu(x)}
    far = {path: x for path, x in arrays.items() if path not in near}
    values = {path: _bits_on_host(np.asarray(x).astype(dtypes[path])) for path, x in near.items()}
    if far:
        sums = jax.jit(lambda xs: {path: _bits(x.astype(dtypes[path])) for path, x in xs.items()})
        values |= sums(far)
    facts = ((p, x.shape, str(dtypes[p]), int(values[p])) for p, x in sorted(arrays.items()))
    return digest(map(repr, facts), SHORT)


def _is_on_cpu(x: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in x.devices())


def _bits_on_host(x: np.ndarray, place: int = 1) -> int:
    """As `_bits`, a large array a part at a time; place: what its first axes have made of it."""
    if x.ndim > 1 and x.size > _PART:
        places = ((place * _ODD + 2 * index) % 2**32 for index in range(len(x)))
        return sum(map(_bits_on_host, x, places)) % 2**32
    kind = {1: np.uint8, 2: np.uint16}.get(x.dtype.itemsize, np.uint32)
    bits = (x.reshape(*x.shape, 1) if x.dtype.itemsize > 4 else x).view(kind)
    places = np.full((1,) * bits.ndim, place, np.uint32)
    for axis, size in enumerate(bits.shape):
        index = np.arange(size, dtype=np.uint32).reshape([-1] + [1] * (bits.ndim - axis - 1))
        places = places * np.uint32(_ODD) + 2 * index
    return int(np.sum(bits * places, dtype=np.uint32))


def _bits(x: jax.Array) -> jax.Array:
    """uint32[]: the bits of `[...]` as whole numbers, each times an odd one of its place, summed
    mod 2^32: the order of summation does not matter."""
    wide = x.dtype.itemsize > 4
    kind = jnp.uint32 if wide else {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
    place = jnp.ones(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place * np.uint32(_ODD) + 2 * index
    return jnp.sum(bits * place, dtype=jnp.uint32)
