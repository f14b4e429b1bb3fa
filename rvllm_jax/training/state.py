"""The train state: what it is, where its arrays lie, in which precision, and where a run stands.

Between stages the arrays of a run are one dictionary {"params", "stats", "opt", "key"}, which is
also what a checkpoint holds. They lie as the layout (sharding/layouts.py) has them from the first
moment, so that no device ever holds more than its share.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rvllm_jax.config.schema import FROZEN, Stage
from rvllm_jax.models.functional import Arrays, FunctionalModel
from rvllm_jax.sharding.constrain import platform
from rvllm_jax.sharding.layouts import Layout
from rvllm_jax.training.stages import StageSetup, label_parameters

Load = Callable[[Mapping[str, Any], Mapping[str, Any]], Arrays]


class TrainState(NamedTuple):
    """All that a stage carries from step to step; flat dictionaries by parameter path."""

    trainable: Arrays  # parameters with a gradient
    frozen: Arrays  # parameters without
    stats: Arrays  # BatchNorm's running mean and variance
    opt: Any  # Optax state over `trainable`


@dataclasses.dataclass
class Position:
    """Where a run is; saved with every checkpoint as JSON."""

    stage: int = 0  # number of the stage in the recipe
    k: int = 0  # updates done of the stage = number of its next batch
    done: int = 0  # updates done of all stages
    skipped: int = 0  # updates in a row that were not finite
    skipped_stage: int = 0  # of the stage: its learning rate goes on without them
    skipped_all: int = 0
    bad_rows: int = 0  # sequences emptied because their record could not be read
    unreadable: dict[str, int] = dataclasses.field(default_factory=dict)  # of the stage, by video
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # training, by stage
    best: dict[str, float] = dataclasses.field(default_factory=dict)  # validation loss, by stage

    def at_stage(self, stage: int) -> "Position":
        """The beginning of a later stage."""
        return dataclasses.replace(self, stage=stage, k=0, skipped_stage=0, unreadable={})


def split(params: Arrays, labels: dict[str, str]) -> tuple[Arrays, Arrays]:
    """Parameters -> (those that train, those that are frozen)."""
    trainable = {path: x for path, x in params.items() if labels[path] != FROZEN}
    frozen = {path: x for path, x in params.items() if labels[path] == FROZEN}
    return trainable, frozen


class HostShards(NamedTuple):
    """A copy in host memory of what this host's devices hold of an array of several hosts."""

    shape: tuple[int, ...]
    sharding: jax.sharding.Sharding
    shards: dict[str, np.ndarray]  # by their index into the array

    def put(self) -> jax.Array:
        """The array on the devices again, as it lay there."""
        return jax.make_array_from_callback(
            self.shape, self.sharding, lambda index: self.shards[str(index)]
        )


def to_host(x: jax.Array) -> np.ndarray | HostShards:
    """A copy in host memory, of any shape: the whole array, or this host's shards of it."""
    if x.is_fully_addressable:
        return np.array(x)  # a copy: on CPU a view would keep `x` alive
    # Copies of one shard, on several devices, are kept once.
    shards = {str(shard.index): shard for shard in x.addressable_shards}
    copies = {index: np.array(shard.data) for index, shard in shards.items()}
    return HostShards(x.shape, x.sharding, copies)


def to_devices(x: np.ndarray | HostShards) -> np.ndarray | jax.Array:
    """As a checkpoint takes it, of any shape: an array of all hosts has to be on their devices."""
    return x.put() if isinstance(x, HostShards) else x


class StageArrays(NamedTuple):
    """A stage's arrays: on the devices, and the originals of frozen ones that train later."""

    state: TrainState
    originals: dict[str, np.ndarray | HostShards]  # in host memory


class StatePlacement:
    """Places the arrays of `stages`, frozen parameters in `dtype`: that of the computation.

    What trains keeps the dtype of the model's parameters. What is frozen is on the devices in the
    dtype of the computation only. A parameter that a later stage trains must not lose the bits in
    between: its original stays in host memory while it is frozen, and stands in every checkpoint.
    One that no later stage trains is rounded for good, when it is drawn or when the last stage
    that trains it has ended. It is settled then: saved once, and in no checkpoint after that.
    """

    def __init__(
        self, model: FunctionalModel, stages: tuple[Stage, ...], dtype: str, layout: Layout
    ):
        self.model, self.dtype, self.layout = model, np.dtype(dtype), layout
        tables = [label_parameters(stage, model.params) for stage in stages]
        self._last_trained = {
            path: max((n for n, labels in enumerate(tables) if labels[path] != FROZEN), default=-1)
            for path in model.params
        }

    def kept_dtype(self, path: str, stage: int) -> np.dtype:
        """The dtype of a parameter in the checkpoints of stage number `stage`."""
        trains = self._last_trained[path] >= stage
        return np.dtype(self.model.params[path].dtype) if trains else self.dtype

    def settled(self, arrays: dict, stage: int) -> Arrays:
        """Those parameters of `arrays` that settle where stage number `stage` begins."""
        return {p: x for p, x in arrays["params"].items() if self._last_trained[p] == stage - 1}

    def unsettled(self, arrays: dict, stage: int) -> dict:
        """`arrays` as a checkpoint of stage number `stage` holds them."""
        kept = {p: x for p, x in arrays["params"].items() if self._last_trained[p] >= stage}
        return {**arrays, "params": kept}

    def draw(self, key: jax.Array, start: Collection[str] = (), load: Load | None = None) -> dict:
        """The arrays that a run starts from: those of `start` by `load`, and the others at random.

        load: (shapes and dtypes by path, shardings by path) -> arrays by path.
        """
        dtypes = {path: self.kept_dtype(path, 0) for path in self.model.params}

        def init(key):
            params, stats = self.model.init(key)
            params = {path: x.astype(dtypes[path]) for path, x in params.items()}
            return tuple(
                {p: x for p, x in part.items() if p not in start} for part in (params, stats)
            )

        shardings = self.layout.array_shardings(self.model.params, self.model.stats)
        drawn = tuple({p: x for p, x in part.items() if p not in start} for part in shardings)
        # On CPU the same bits, compiled in half the time: a program that runs once.
        quick = {"xla_backend_optimization_level": 1} if platform() == "cpu" else None
        params, stats = jax.jit(init, out_shardings=drawn, compiler_options=quick)(key)
        if start:
            # Rounded for good, as what is drawn, where no stage trains it.
            shapes = {
                p: jax.ShapeDtypeStruct(x.shape, dtypes[p]) for p, x in self.model.params.items()
            }
            loaded = load(shapes | self.model.stats, shardings[0] | shardings[1])
            params |= {path: loaded[path] for path in self.model.params if path in loaded}
            stats |= {path: loaded[path] for path in self.model.stats if path in loaded}
        data = jax.device_put(np.asarray(jax.random.key_data(key)), self.layout.replicated)
        return {"params": params, "stats": stats, "opt": None, "key": data}

    def shapes(self, stage: int, setup: StageSetup) -> dict:
        """Shapes, dtypes and shardings of the arrays of a run in stage number `stage`, saved."""
        params = {
            path: jax.ShapeDtypeStruct(x.shape, self.kept_dtype(path, stage))
            for path, x in self.model.params.items()
        }
        trainable, frozen = split(params, setup.labels)
        state = TrainState(
            trainable, frozen, self.model.stats, jax.eval_shape(setup.tx.init, trainable)
        )
        state = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            state,
            self.layout.state_shardings(setup.tx, state),
        )
        key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=self.layout.replicated)
        return _arrays_of_run(state, {}, key)

    def place(self, arrays: dict, stage: int, setup: StageSetup) -> StageArrays:
        """Takes over `arrays` and empties it: what is copied here is freed before training."""
        params, stats, opt = arrays.pop("params"), arrays.pop("stats"), arrays.pop("opt")
        shardings, _ = self.layout.array_shardings(self.model.params, self.model.stats)
        placed, originals = {}, {}
        for path in list(params):
            x = params.pop(path)
            if setup.labels[path] == FROZEN:
                if self.kept_dtype(path, stage) != self.dtype:
                    originals[path] = to_host(x)
                x = x.astype(self.dtype)
            placed[path] = jax.device_put(x, shardings[path])
        del x
        trainable, frozen = split(placed, setup.labels)
        if opt is None:
            shapes = jax.eval_shape(setup.tx.init, trainable)
            state = TrainState(trainable, frozen, stats, shapes)
            where = self.layout.state_shardings(setup.tx, state).opt
            opt = jax.jit(setup.tx.init, out_shardings=where)(trainable)
        state = TrainState(trainable, frozen, stats, opt)
        return StageArrays(self.layout.place(setup.tx, state), originals)

    def collect(self, arrays: StageArrays, key: Any) -> dict:
        """The arrays of the run, as after the stage's end and as a checkpoint takes them."""
        originals = {path: to_devices(x) for path, x in arrays.originals.items()}
        return _arrays_of_run(self.layout.gather(arrays.state), originals, key)

    def evaluation_arrays(self, arrays: StageArrays) -> tuple[Arrays, Arrays]:
        """Parameters and statistics as the stage computes with them, for a jitted evaluation."""
        state = self.layout.gather(arrays.state)
        params = {**state.trainable, **state.frozen}
        return self.layout.evaluation_arrays(params, state.stats)


def _arrays_of_run(state: TrainState, originals: dict, key: Any) -> dict:
    params = {**state.trainable, **state.frozen, **originals}
    return {"params": params, "stats": state.stats, "opt": state.opt, "key": key}
