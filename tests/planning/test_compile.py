import importlib.util
import sys

import jax
import pytest

from rvllm_jax.costs import chips
from rvllm_jax.planning.compile import Compiled, NoCompiler, compile_on

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
SLICE = chips.parse("v5e:2x2")


@pytest.fixture
def config(joint):
    return joint().to_dict()


def test_a_python_that_cannot_be_started(config):
    with pytest.raises(NoCompiler, match="--tpu_python=/no/such/python"):
        compile_on("/no/such/python", config, "joint", 4, SLICE)


@pytest.mark.skipif(HAS_LIBTPU, reason="this Python has libtpu")
def test_without_the_tpu_compiler_it_says_what_to_install(config):
    with pytest.raises(NoCompiler, match="no libtpu.*extra 'tpu'.*--tpu_python"):
        compile_on(sys.executable, config, "joint", 4, SLICE)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="this Python has no libtpu")
def test_the_tiny_recipe_compiles_for_four_chips(config):
    made = compile_on(sys.executable, config, "joint", 4, SLICE)
    assert made.fits and 0 < made.state < made.peak < 1e9
    assert sum(made.received.values()) > 0


@pytest.mark.parametrize(("effort", "number"), [("least", "-1.0"), ("full", "0.0")])
def test_the_effort_reaches_the_compiler(tmp_path, config, effort, number):
    if jax.version.__version_info__ < (0, 11):  # JAX knows the setting
        assert jax.config.jax_exec_time_optimization_effort == 0.0
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\ncat > /dev/null\n"
        f'[ "$JAX_EXEC_TIME_OPTIMIZATION_EFFORT" = {number} ] && '
        f"""echo '{{"used": 2, "effort": "{effort}"}}'\n"""
    )
    python.chmod(0o755)
    made = compile_on(str(python), config, "joint", 4, SLICE, effort)
    assert made.effort == effort and made.peak == 2


def test_an_answer_of_a_program_that_does_not_fit():
    made = Compiled(used=3.0, effort="full")
    assert not made.fits and made.peak == 3
