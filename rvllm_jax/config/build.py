"""The model of a recipe."""

import jax.numpy as jnp

from rvllm_jax.config.schema import Recipe
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.lora import adapt
from rvllm_jax.models.video_llm import VideoLLM


def build_model(recipe: Recipe) -> FunctionalModel:
    """The recipe's model, traced and not allocated."""

    def make(rngs):
        model = VideoLLM(
            recipe.resnet,
            recipe.llama,
            recipe.layout,
            recipe.model.projector,
            rngs=rngs,
            dtype=jnp.dtype(recipe.model.dtype),
            param_dtype=jnp.float64 if recipe.model.dtype == "float64" else jnp.float32,
            remat=recipe.model.remat,
        )
        if recipe.lora is not None:
            adapt(model.decoder, recipe.lora, rngs=rngs)
        return model

    return FunctionalModel.of(make)
