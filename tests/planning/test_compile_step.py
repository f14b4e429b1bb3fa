"""The step as the process with libtpu compiles it, here for eight virtual devices of the CPU."""

import dataclasses

import jax
import pytest

from rvllm_jax.config.build import build_model
from rvllm_jax.planning import compile as compiling
from rvllm_jax.planning import memory
from rvllm_jax.sharding.layouts import JitLayout
from rvllm_jax.sharding.mesh import make_mesh
from rvllm_jax.sharding.rules import AXES

pytestmark = pytest.mark.slow  # compiles for half a minute and more


@pytest.fixture(scope="module")
def compiled(recipe):
    """(what the compiler says, the formula's figures) of a joint step with micro-batches."""
    made = recipe(
        data__frames=2, data__interval=2, data__context=32, model__grid=1, model__remat="full",
        model__decoder="smollm2-135m", tokenizer__folder="none",
    )  # fmt: skip
    made = dataclasses.replace(made, mesh=dict(zip(AXES, (2, 4, 1), strict=True)))
    stage = dataclasses.replace(made.stages[-1], batch=16, accumulate=2)
    model = build_model(made)
    jax.config.update("jax_disable_most_optimizations", True)
    program = compiling.compile_step(made, stage, model, JitLayout(make_mesh(2, 4, 1)))
    jax.config.update("jax_disable_most_optimizations", False)
    mesh = memory.abstract_mesh(made, 8)
    return compiling.measured(program, 8, "full"), memory.measure(made, stage, model, mesh, "cpu")


def test_the_state_is_the_formulas_to_the_byte(compiled):
    measured, formula = compiled
    # Of the batch, the step does not read the numbers of rows and their error codes.
    unread = 2 * 4 * 16 // 8
    expected = formula.parameters + formula.optimizer + formula.batchnorm + formula.input - unread
    assert measured.state == expected


def test_gradients_and_activations_are_in_the_temporary_memory(compiled):
    measured, formula = compiled
    assert measured.temporary > formula.gradients / 2
    assert measured.output < 1e6  # what is returned takes the place of what was given


def test_what_crosses_the_links_is_found(compiled):
    measured, _ = compiled
    assert sum(measured.received.values()) > 0
    assert measured.largest[0]["kind"] in measured.received


@pytest.mark.parametrize(
    "message, used",
    [
        ("Ran out of memory in memory space hbm. Used 21.43G of 15.75G hbm.", 21.43),
        ("Used 900.5M of 15.75G hbm", 900.5 / 1024),
    ],
)
def test_an_overflow_is_read_out_of_the_compilers_message(message, used):
    found = compiling.overflow(f"RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. {message}")
    assert found == pytest.approx(used * 2**30)
    assert not compiling.overflow("INTERNAL: something else")
