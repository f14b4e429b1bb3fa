"""Where the arrays of a run are, and in which precision: drawn, in a stage, in a checkpoint.

Between stages they are one dictionary {"params", "stats", "opt", "key"}, which is also what a
checkpoint holds. They lie as the layout (parallel.py) says from the first moment, so that no
device ever holds more than its share.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from rvllm_jax.config.schema import FROZEN, Stage
from rvllm_jax.models.functional import Arrays, FunctionalModel
from rvllm_jax.sharding.constrain import platform
from rvllm_jax.sharding.layouts import Layout
from rvllm_jax.training.stages import label_parameters
from rvllm_jax.training.step import State, split
from rvllm_jax.training.waiting import Waiting, to_devices, to_host
from rvllm_jax.weights import load
from rvllm_jax.weights.open import Entry


class Held(NamedTuple):
    """A stage's arrays: on the devices, and those that wait in host memory for a later stage."""

    state: State
    waiting: dict[str, np.ndarray | Waiting]


class Holding:
    """Places the arrays of `stages`, frozen parameters in `dtype`: that of the computation.

    What trains keeps the dtype of the model's parameters. What is frozen is on the devices in the
    dtype of the computation only. A parameter that a later stage trains must not lose the bits in
    between: its original waits in host memory while it is frozen, and stands in every checkpoint.
    One that no later stage trains is rounded for good, when it is drawn or when the last stage
    that trains it has ended. It is settled then: saved once, and in no checkpoint after that.
    """

    def __init__(
        self,
        model: FunctionalModel,
        stages: tuple[Stage, ...],
        dtype: str,
        layout: Layout,
    ):
        self.model, self.dtype, self.layout = model, np.dtype(dtype), layout
        labels = [label_parameters(stage, model.params) for stage in stages]
        self._last_trained = {
            path: max((n for n, own in enumerate(labels) if own[path] != FROZEN), default=-1)
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

    def draw(self, key: jax.Array, start: Mapping[str, Entry] = MappingProxyType({})) -> dict:
        """The arrays that a run starts from: those of `start`, and the others at random."""
        kept = {path: self.kept_dtype(path, 0) for path in self.model.params}

        def init(key):
            params, stats = self.model.init(key)
            params = {path: x.astype(kept[path]) for path, x in params.items()}
            return tuple(
                {p: x for p, x in part.items() if p not in start} for part in (params, stats)
            )

        places = self.layout.array_shardings(self.model.params, self.model.stats)
        where = tuple({p: x for p, x in part.items() if p not in start} for part in places)
        # On CPU the same bits, compiled in half the time: a program that runs once.
        quick = {"xla_backend_optimization_level": 1} if platform() == "cpu" else None
        params, stats = jax.jit(init, out_shardings=where, compiler_options=quick)(key)
        if start:
            # Rounded for good, as what is drawn, where no stage trains it.
            shapes = {
                p: jax.ShapeDtypeStruct(x.shape, kept[p]) for p, x in self.model.params.items()
            }
            loaded = load.load(start, shapes | self.model.stats, places[0] | places[1])
            params |= {path: loaded[path] for path in self.model.params if path in loaded}
            stats |= {path: loaded[path] for path in self.model.stats if path in loaded}
        data = jax.device_put(np.asarray(jax.random.key_data(key)), self.layout.replicated)
        return {"params": params, "stats": stats, "opt": None, "key": data}

    def like(self, stage: int, labels: dict[str, str], tx: optax.GradientTransformation) -> dict:
        """The shapes, dtypes and places of the arrays of a run in stage number `stage`, saved."""
        params = {
            path: jax.ShapeDtypeStruct(x.shape, self.kept_dtype(path, stage))
            for path, x in self.model.params.items()
        }
        trainable, frozen = split(params, labels)
        state = State(trainable, frozen, self.model.stats, jax.eval_shape(tx.init, trainable))
        where = self.layout.state_shardings(tx, state)
        placed = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, where
        )
        key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=self.layout.replicated)
        return _named(placed, {}, key)

    def place(
        self, arrays: dict, stage: int, labels: dict[str, str], tx: optax.GradientTransformation
    ) -> Held:
        """Takes over `arrays` and empties it: what is copied here is freed before training."""
        params, stats, opt = arrays.pop("params"), arrays.pop("stats"), arrays.pop("opt")
        where, _ = self.layout.array_shardings(self.model.params, self.model.stats)
        placed, waiting = {}, {}
        for path in list(params):
            x = params.pop(path)
            if labels[path] == FROZEN:
                if self.kept_dtype(path, stage) != self.dtype:
                    waiting[path] = to_host(x)
                x = x.astype(self.dtype)
            placed[path] = jax.device_put(x, where[path])
        del x
        trainable, frozen = split(placed, labels)
        if opt is None:
            shapes = jax.eval_shape(tx.init, trainable)
            places = self.layout.state_shardings(tx, State(trainable, frozen, stats, shapes)).opt
            opt = jax.jit(tx.init, out_shardings=places)(trainable)
        return Held(self.layout.place(tx, State(trainable, frozen, stats, opt)), waiting)

    def saved(self, held: Held, key: Any) -> dict:
        """The arrays of the run, as after the stage's end."""
        waiting = {path: to_devices(x) for path, x in held.waiting.items()}
        return _named(self.layout.gather(held.state), waiting, key)

    def shown(self, held: Held) -> tuple[Arrays, Arrays]:
        """Parameters and statistics as the stage computes with them."""
        state = self.layout.gather(held.state)
        return {**state.trainable, **state.frozen}, state.stats


def _named(state: State, waiting: dict, key: Any) -> dict:
    params = {**state.trainable, **state.frozen, **waiting}
    return {"params": params, "stats": state.stats, "opt": state.opt, "key": key}
