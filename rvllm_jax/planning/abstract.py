"""The arrays of a training step as shapes: of a model that no memory here could hold."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rvllm_jax.config.schema import FROZEN, Recipe, Stage
from rvllm_jax.costs.flops import StepCosts
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.training.stages import StageSetup, label_parameters, prepare_stage
from rvllm_jax.training.state import TrainState, split
from rvllm_jax.types import Batch


def state(recipe: Recipe, stage: Stage, model: FunctionalModel) -> tuple[StageSetup, TrainState]:
    """The setup and the state of a stage; what is frozen in the computation's dtype."""
    setup = prepare_stage(stage, model.params, stage.steps or stage.warmup + 1)
    trainable, frozen = split(model.params, setup.labels)
    compute = jnp.dtype(recipe.model.dtype)
    frozen = {path: jax.ShapeDtypeStruct(x.shape, compute) for path, x in frozen.items()}
    opt = jax.eval_shape(setup.tx.init, trainable)
    return setup, TrainState(trainable, frozen, model.stats, opt)


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


def step_costs(recipe: Recipe, stage: Stage, params: Mapping[str, Any]) -> StepCosts:
    """What a step of `stage` computes for one clip. params: shapes by path."""
    labels = label_parameters(stage, params)
    return StepCosts(
        resnet=recipe.resnet,
        llama=recipe.llama,
        layout=recipe.layout,
        projector=recipe.model.projector,
        pixels=recipe.data.crop,
        tokens=recipe.data.context,
        params=params,
        trained={path for path, label in labels.items() if label != FROZEN},
        video=stage.input == "video",
        remat=recipe.model.remat,
        loss_chunk=recipe.model.loss_chunk,
    )
