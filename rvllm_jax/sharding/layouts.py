"""The same step over many devices: jit over a mesh, or pmap with a copy of the model on each.

A `state` here is a named tuple with the fields of `training.step.State`: `trainable`, `frozen` and
`stats`, dictionaries by parameter path, and `opt`, Optax's state of what trains.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.sharding import mesh as meshes
from rvllm_jax.sharding import rules
from rvllm_jax.sharding.constrain import use_mesh

PMAP_AXIS = "batch"


class JitLayout:
    """Arrays lie as sharding/rules.py lists; XLA inserts the communication."""

    axis_name = None

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.batch_shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self.replicated = NamedSharding(mesh, P())  # of what lies on every device as a whole
        self._batch = meshes.batch_sharding(mesh)

    @functools.cached_property
    def share(self) -> tuple[int, int]:
        """(number, count) of the block of a batch that this host reads; a plan's mesh has none."""
        return meshes.host_share(self._batch, self.batch_shards)

    def array_shardings(self, params: dict, stats: dict) -> tuple[dict, dict]:
        """Of each parameter and each statistic (arrays or their shapes)."""
        return rules.param_shardings(self.mesh, params), dict.fromkeys(stats, self.replicated)

    def state_shardings(self, tx: optax.GradientTransformation, state: Any) -> Any:
        """Of each array of `state` (arrays or their shapes), in a step and gathered."""
        return state._replace(
            trainable=rules.param_shardings(self.mesh, state.trainable),
            frozen=rules.param_shardings(self.mesh, state.frozen),
            stats=dict.fromkeys(state.stats, self.replicated),
            opt=rules.optimizer_shardings(self.mesh, tx, state.trainable),
        )

    def place(self, tx: optax.GradientTransformation, state: Any) -> Any:
        """The state on the devices, as `compile`'s program takes it."""
        return jax.device_put(state, self.state_shardings(tx, state))

    def put(self, batch: Any) -> Any:
        """This host's `share` of a batch -> global arrays split over `data` x `fsdp`."""
        return meshes.put_batch(batch, self._batch)

    def on_mesh(self, function):
        """`function`, its activations constrained to the mesh wherever it is traced."""

        @functools.wraps(function)
        def placed(*arguments):
            with use_mesh(self.mesh):
                return function(*arguments)

        return placed

    def compile(self, step, tx, state: Any, batch: Any):
        """The compiled step; it gives up the buffers of the state that it is called with."""
        shardings = self.state_shardings(tx, state)
        jitted = jax.jit(
            self.on_mesh(step),
            in_shardings=(shardings, self._batch),
            out_shardings=(shardings, self.replicated),
            donate_argnums=0,
        )
        return jitted.lower(state, batch).compile()

    def gather(self, state: Any) -> Any:
        """The state as saved and evaluated."""
        return state

    def evaluation_arrays(self, params: dict, stats: dict) -> tuple[dict, dict]:
        """Gathered arrays as a jitted evaluation takes them, beside an `evaluation_batch`."""
        return params, stats

    def evaluation_batch(self, batch: Any) -> Any:
        """A batch as a jitted evaluation splits it over the devices."""
        return self.put(batch)

    def fetch(self, arrays: Any) -> Any:
        """Arrays of all hosts' devices -> the same, whole, in the memory of each; all call it."""
        return multihost_utils.process_allgather(arrays, tiled=True)

    def scalars(self, metrics: dict[str, jax.Array]) -> dict[str, float]:
        """A step's metrics as numbers."""
        return {name: float(value) for name, value in metrics.items()}


class PmapLayout:
    """Everything on every device, the batch split; for models that fit one device."""

    axis_name = PMAP_AXIS

    def __init__(self, devices: list[jax.Device]):
        self.devices = devices
        self.batch_shards = len(devices)
        self.share = (0, 1)  # of one host
        self.replicated = self._first = SingleDeviceSharding(devices[0])
        self._copies = NamedSharding(Mesh(np.asarray(devices), (PMAP_AXIS,)), P(PMAP_AXIS))

    def array_shardings(self, params: dict, stats: dict) -> tuple[dict, dict]:
        """Of each parameter and each statistic, before `place` and after `gather`."""
        return dict.fromkeys(params, self._first), dict.fromkeys(stats, self._first)

    def state_shardings(self, tx: optax.GradientTransformation, state: Any) -> Any:
        """Of each array of `state`, before `place` and after `gather`."""
        return jax.tree.map(lambda _: self._first, state)

    def place(self, tx: optax.GradientTransformation, state: Any) -> Any:
        """The state with a first dimension of the devices, a copy on each."""

        def copy(x):
            # One copy a device; `jnp.broadcast_to` would lay all of them on the first.
            x = jnp.expand_dims(x, 0)
            copies = [jax.device_put(x, device) for device in self.devices]
            shape = (self.batch_shards, *x.shape[1:])
            return jax.make_array_from_single_device_arrays(shape, self._copies, copies)

        return jax.tree.map(copy, state)

    def put(self, batch: Any) -> Any:
        """`[B, ...]` arrays -> `[devices, B / devices, ...]`."""
        shards = self.batch_shards
        return jax.tree.map(
            lambda x: np.reshape(x, (shards, len(x) // shards, *x.shape[1:])), batch
        )

    def on_mesh(self, function):
        """`function` itself: there is no mesh."""
        return function

    def compile(self, step, tx, state: Any, batch: Any):
        """The compiled step; it gives up the buffers of the state that it is called with."""
        mapped = jax.pmap(step, axis_name=PMAP_AXIS, devices=self.devices, donate_argnums=0)
        return mapped.lower(state, batch).compile()

    def gather(self, state: Any) -> Any:
        """The state as saved and evaluated: the first device's."""

        def first(x):  # as it lies: `x[0]` would be copied to every device
            return x.addressable_shards[0].data.reshape(x.shape[1:])

        return jax.tree.map(first, state)

    def evaluation_arrays(self, params: dict, stats: dict) -> tuple[dict, dict]:
        """Gathered arrays as a jitted evaluation takes them: a copy on every device."""
        everywhere = NamedSharding(self._copies.mesh, P())
        return jax.device_put(params, everywhere), jax.device_put(stats, everywhere)

    def evaluation_batch(self, batch: Any) -> Any:
        """A batch as a jitted evaluation splits it over the devices."""
        return meshes.put_batch(batch, self._copies)

    def fetch(self, arrays: Any) -> Any:
        """Arrays on the devices -> the same in host memory."""
        return jax.device_get(arrays)

    def scalars(self, metrics: dict[str, jax.Array]) -> dict[str, float]:
        """A step's metrics as numbers: the same on every device."""
        return {name: float(value[0]) for name, value in metrics.items()}


Layout = JitLayout | PmapLayout


def make(kind: str, sizes: Mapping[str, int], decoder: Mapping[str, int] | None = None) -> Layout:
    """The layout over the devices; MeshError where mesh, devices, hosts or decoder do not fit.

    kind: "jit" or "pmap". sizes: of data, fsdp and tensor (-1: all that remain), for jit alone.
    decoder: its sizes that `tensor` must divide (`LlamaConfig.tensor_sizes`).
    """
    if kind == "pmap":
        if jax.process_count() > 1:
            raise meshes.MeshError(
                f"config.parallel='pmap' is for one host, here are {jax.process_count()}; set "
                "config.parallel='jit' (config.mesh with data=-1 is its layout)"
            )
        return PmapLayout(jax.local_devices())
    layout = JitLayout(meshes.make_mesh(**sizes))
    _ = layout.share  # refused here where hosts cannot read blocks of their own
    if decoder:
        meshes.check_tensor(layout.mesh.shape["tensor"], decoder)
    return layout
