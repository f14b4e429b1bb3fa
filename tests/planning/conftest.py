"""Recipes of configs/joint.py, unresolved keys changed by name."""

import pytest

from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import resolve


@pytest.fixture(scope="session")
def recipe(joint):
    """recipe(arg, model__remat="full", ...) -> Recipe."""

    def make(arg="tiny", **changes):
        config = joint(arg)
        with config.unlocked():
            config.update_from_flattened_dict(
                {key.replace("__", "."): value for key, value in changes.items()}
            )
        return resolve(config)

    return make


@pytest.fixture(scope="session")
def paper(recipe):
    """The recipe of the paper and its model."""
    made = recipe("paper")
    return made, build_model(made)


@pytest.fixture(scope="session")
def tiny(recipe):
    """The recipe for two cores and its model."""
    made = recipe()
    return made, build_model(made)
