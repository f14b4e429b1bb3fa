"""The same step over many devices: jit over a mesh, or pmap with everything replicated."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.config.check import Recipe
from rvllm_jax.models.functional import PureModel
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.sharding import constrain
from rvllm_jax.sharding import mesh as sharding
from rvllm_jax.training.step import State

PMAP_AXIS = "rows"


class JitParallel:
    """Arrays lie as sharding/mesh.py says; XLA inserts the communication."""

    axis_name = None

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.rows = mesh.shape["data"] * mesh.shape["fsdp"]  # devices a batch is split over
        self.whole = NamedSharding(mesh, P())  # where what every device has whole lies
        self._batch = sharding.batch_sharding(mesh)

    @functools.cached_property
    def share(self):
        """Which rows of a batch this host's devices take; a plan's mesh has no devices."""
        return sharding.share_of_rows(self._batch, self.rows)

    def arrays(self, params: dict, stats: dict) -> tuple[dict, dict]:
        """Where each parameter and each statistic (arrays or their shapes) lies."""
        return (
            sharding.param_shardings(self.mesh, params),
            {path: self.whole for path in stats},
        )

    def shardings(self, tx: optax.GradientTransformation, state: State) -> State:
        """Where each array of `state` (arrays or their shapes) lies, in a step and gathered."""
        trainable, stats = self.arrays(state.trainable, state.stats)
        frozen, _ = self.arrays(state.frozen, {})
        opt = sharding.optimizer_shardings(self.mesh, tx, state.trainable)
        return State(trainable, frozen, stats, opt)

    def place(self, tx: optax.GradientTransformation, state: State) -> State:
        return jax.device_put(state, self.shardings(tx, state))

    def put(self, batch: Any) -> Any:
        """The rows of this host's `share` of a batch -> arrays split over `data` x `fsdp`."""
        return sharding.put_batch(batch, self._batch)

    def checked(self, llama: LlamaConfig) -> "JitParallel":
        """Itself; raises MeshError where the decoder does not divide over the mesh."""
        sharding.check_tensor(self.mesh.shape["tensor"], llama)
        return self

    def over(self, function):
        """`function`, its activations placed on the mesh wherever it is traced."""

        @functools.wraps(function)
        def placed(*arguments):
            with constrain.over(self.mesh):
                return function(*arguments)

        return placed

    def compile(self, step, tx, state: State, batch: Any):
        """The compiled step; it gives up the buffers of the state that it is called with."""
        where = self.shardings(tx, state)
        jitted = jax.jit(
            self.over(step),
            in_shardings=(where, self._batch),
            out_shardings=(where, self.whole),
            donate_argnums=0,
        )
        return jitted.lower(state, batch).compile()

    def gather(self, state: State) -> State:
        """The state as saved and evaluated."""
        return state

    def shown(self, params: dict, stats: dict) -> tuple[dict, dict]:
        """Gathered arrays as a jitted evaluation takes them, beside a batch of `spread`."""
        return params, stats

    def spread(self, batch: Any) -> Any:
        """A batch whose rows a jitted evaluation splits over the devices."""
        return self.put(batch)

    def fetch(self, arrays: Any) -> Any:
        """Arrays of all hosts' devices -> the same in this host's memory, whole."""
        if jax.process_count() == 1:
            return jax.device_get(arrays)
        return jax.tree.map(sharding.fetch, arrays)

    def scalars(self, metrics: dict[str, jax.Array]) -> dict[str, float]:
        return {name: float(value) for name, value in metrics.items()}


class PmapParallel:
    """Everything on every device, rows split; for models that fit one device."""

    axis_name = PMAP_AXIS

    def __init__(self, devices: list[jax.Device]):
        self.devices = devices
        self.rows = len(devices)
        self.share = (0, 1)  # of one host
        self.whole = self._one = SingleDeviceSharding(devices[0])
        self._copies = NamedSharding(Mesh(np.asarray(devices), (PMAP_AXIS,)), P(PMAP_AXIS))

    def arrays(self, params: dict, stats: dict) -> tuple[dict, dict]:
        """Where each parameter and each statistic lies before `place` and after `gather`."""
        return dict.fromkeys(params, self._one), dict.fromkeys(stats, self._one)

    def shardings(self, tx: optax.GradientTransformation, state: State) -> State:
        """Where each array of `state` lies before `place` and after `gather`."""
        return jax.tree.map(lambda _: self._one, state)

    def place(self, tx: optax.GradientTransformation, state: State) -> State:
        def copy(x):
            # One copy a device; `jnp.broadcast_to` would lay all of them on the first.
            own = jnp.expand_dims(x, 0)
            copies = [jax.device_put(own, device) for device in self.devices]
            shape = (self.rows, *own.shape[1:])
            return jax.make_array_from_single_device_arrays(shape, self._copies, copies)

        return jax.tree.map(copy, state)

    def put(self, batch: Any) -> Any:
        return jax.tree.map(
            lambda x: np.reshape(x, (self.rows, x.shape[0] // self.rows, *x.shape[1:])), batch
        )

    def checked(self, llama: LlamaConfig) -> "PmapParallel":
        """Itself: nothing is split but rows."""
        return self

    def over(self, function):
        return function

    def compile(self, step, tx, state: State, batch: Any):
        mapped = jax.pmap(step, axis_name=PMAP_AXIS, devices=self.devices, donate_argnums=0)
        return mapped.lower(state, batch).compile()

    def gather(self, state: State) -> State:
        def first(x):  # as it lies: `x[0]` would be copied to every device
            return x.addressable_shards[0].data.reshape(x.shape[1:])

        return jax.tree.map(first, state)

    def shown(self, params: dict, stats: dict) -> tuple[dict, dict]:
        """Gathered arrays as a jitted evaluation takes them: a copy on every device."""
        everywhere = NamedSharding(self._copies.mesh, P())
        return jax.device_put(params, everywhere), jax.device_put(stats, everywhere)

    def spread(self, batch: Any) -> Any:
        """A batch whose rows a jitted evaluation splits over the devices."""
        return sharding.put_batch(batch, self._copies)

    def fetch(self, arrays: Any) -> Any:
        """Arrays on the devices -> the same in host memory."""
        return jax.device_get(arrays)

    def scalars(self, metrics: dict[str, jax.Array]) -> dict[str, float]:
        return {name: float(value[0]) for name, value in metrics.items()}


def for_recipe(recipe: Recipe, model: PureModel) -> JitParallel | PmapParallel:
    """The layout over the devices; MeshError or StageError where mesh, decoder, a stage's table or
    its batch do not fit them.
    """
    layout = make(recipe.parallel, recipe.mesh).checked(recipe.llama)
    for stage in recipe.stages:
        stage.check(model.params, layout.rows)
    return layout


def make(kind: str, mesh: dict[str, int]) -> JitParallel | PmapParallel:
    """`kind`: "jit" or "pmap"; `mesh`: the sizes of data, fsdp and tensor (-1: all that remain)."""
    if kind == "pmap":
        if jax.process_count() > 1:
            raise sharding.MeshError(
                f"config.parallel='pmap' is for one host, here are {jax.process_count()}; set "
                "config.parallel='jit' (config.mesh with data=-1 is its layout)"
            )
        return PmapParallel(jax.local_devices())
    layout = JitParallel(sharding.make_mesh(**mesh))
    _ = layout.share  # refused here where hosts cannot read rows of their own
    return layout
