"""From a recipe to what it describes: the layout over the devices, the work of a step."""

from collections.abc import Mapping
from typing import Any

from rvllm_jax.config.schema import Recipe
from rvllm_jax.config.stage import FROZEN, Stage
from rvllm_jax.costs.flops import StepCosts
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.sharding import layouts


def build_layout(recipe: Recipe, model: FunctionalModel) -> layouts.Layout:
    """The layout over the devices; MeshError or StageError where mesh, decoder, a stage's table or
    its batch do not fit them.
    """
    layout = layouts.make(recipe.parallel, recipe.mesh, recipe.llama.tensor_sizes)
    for stage in recipe.stages:
        stage.check(model.params, layout.batch_shards)
    return layout


def step_costs(
    recipe: Recipe, stage: Stage, params: Mapping[str, Any], tokens: int = 0
) -> StepCosts:
    """What a step of `stage` computes for one clip.

    params: shapes by path. tokens: of the clip's sequence; 0: config.data.context.
    """
    labels = stage.labels(params)
    return StepCosts(
        resnet=recipe.resnet,
        llama=recipe.llama,
        layout=recipe.layout,
        projector=recipe.model.projector,
        pixels=recipe.data.crop,
        tokens=tokens or recipe.data.context,
        params=params,
        trained={path for path, label in labels.items() if label != FROZEN},
        video=stage.input == "video",
        remat=recipe.model.remat,
        loss_chunk=recipe.model.loss_chunk,
    )
