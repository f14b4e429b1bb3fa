"""Eight virtual CPU devices for every test; a test in float64 asks for it itself."""

import importlib.util
from pathlib import Path

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def joint():
    """get_config of configs/joint.py."""
    path = Path(__file__).parents[1] / "configs" / "joint.py"
    spec = importlib.util.spec_from_file_location("joint", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config
