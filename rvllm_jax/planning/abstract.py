"""The arrays of a training step as shapes: of a model that no memory here could hold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rvllm_jax.config.schema import Recipe
from rvllm_jax.config.stage import Stage
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.training import optimizer
from rvllm_jax.training.step import State, split
from rvllm_jax.types import Batch


def state(
    recipe: Recipe, stage: Stage, model: FunctionalModel
) -> tuple[optax.GradientTransformation, State]:
    """The optimizer and the state of a stage; what is frozen in the computation's dtype."""
    labels = stage.labels(model.params)
    tx = optimizer.build(stage, labels, steps=stage.steps or stage.warmup + 1)
    trainable, frozen = split(model.params, labels)
    compute = jnp.dtype(recipe.model.dtype)
    frozen = {path: jax.ShapeDtypeStruct(x.shape, compute) for path, x in frozen.items()}
    return tx, State(trainable, frozen, model.stats, jax.eval_shape(tx.init, trainable))


def batch(recipe: Recipe, stage: Stage) -> Batch:
    """The global batch of a stage."""
    B, L, side = stage.batch, recipe.data.context, recipe.data.crop
    T = recipe.data.frames if stage.input == "video" else 0
    kinds = {
        "frames": ((B, T, side, side, 3), np.uint8),
        "frame_mask": ((B, T), np.bool_),
        "weights": ((B, L), np.float32),
        "examples": ((B,), np.int32),
        "errors": ((B,), np.int32),
    }
    tokens = ((B, L), np.int32)
    return Batch(**{name: jax.ShapeDtypeStruct(*kinds.get(name, tokens)) for name in Batch._fields})
