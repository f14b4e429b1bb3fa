import dataclasses

import jax
import numpy as np
import pytest

from rvllm_jax.planning import abstract, memory
from rvllm_jax.sharding.layouts import JitLayout
from rvllm_jax.sharding.mesh import make_mesh
from rvllm_jax.sharding.rules import AXES


def of(recipe, model, stage, sizes=(1, 1, 1), platform="cpu"):
    recipe = dataclasses.replace(recipe, mesh=dict(zip(AXES, sizes, strict=True)))
    mesh = memory.abstract_mesh(recipe, int(np.prod(sizes)))
    return memory.measure(recipe, stage, model, mesh, platform)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 8, 1)])
@pytest.mark.parametrize("number", [1, 2])
def test_state_and_input_are_those_of_real_arrays(tiny, sizes, number):
    recipe, model = tiny
    stage = recipe.stages[number]
    layout = JitLayout(make_mesh(*sizes))
    setup, shapes = abstract.state(recipe, stage, model)
    state = layout.place(setup.tx, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    batch = layout.put(
        jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract.batch(recipe, stage))
    )

    def held(arrays) -> int:
        shards = [x.addressable_shards[0].data for x in jax.tree.leaves(arrays)]
        return sum(x.size * x.dtype.itemsize for x in shards)

    found = of(recipe, model, stage, sizes)
    assert found.parameters == held((state.trainable, state.frozen))
    assert found.gradients == held(state.trainable)
    assert found.optimizer == held(state.opt)
    assert found.batchnorm == held(state.stats) > 0
    assert found.input == held(batch)


def test_activations_grow_with_rows_and_shrink_by_recomputation(recipe, paper):
    made, model = paper
    joint = made.stages[1]
    one, two = (
        of(made, model, dataclasses.replace(joint, batch=batch)).activations for batch in (4, 8)
    )
    assert 1.5 * one < two <= 2 * one
    kinds = [
        of(recipe("paper", model__remat=kind), model, joint).activations
        for kind in ("full", "dots", "none")
    ]
    assert kinds == sorted(kinds) and kinds[0] < kinds[1] / 2
    halves = of(made, model, dataclasses.replace(joint, accumulate=2))
    assert halves.activations < of(made, model, joint).activations
    assert halves.gradients == 2 * of(made, model, joint).gradients


def test_scores_are_counted_only_where_no_kernel_spares_them(recipe, paper):
    def activations(made, platform):
        return of(made, paper[1], made.stages[1], platform=platform).activations

    cpu, gpu, tpu = (activations(paper[0], platform) for platform in ("cpu", "gpu", "tpu"))
    scores = paper[0].stages[1].batch * 32 * 2048**2  # numbers
    assert gpu == tpu < cpu - 2 * scores  # the encoder's or the loss's may be the peak then
    wide = recipe("paper", model__dtype="float32")
    assert activations(wide, "gpu") == activations(wide, "cpu") > activations(wide, "tpu")


def test_half_moments_take_half_of_the_first_moment(paper):
    made, model = paper
    joint = made.stages[1]
    specs = {
        name: dataclasses.replace(spec, moments="bfloat16")
        for name, spec in joint.optimizers.items()
    }
    whole = of(made, model, joint).optimizer
    half = of(made, model, dataclasses.replace(joint, optimizers=specs)).optimizer
    assert half == pytest.approx(whole * 0.75, rel=1e-6)


def test_no_large_array_of_the_paper_lies_whole_on_every_device(paper):
    recipe, model = paper
    mesh = memory.abstract_mesh(recipe, 64)
    setup, state = abstract.state(recipe, recipe.stages[1], model)
    where = JitLayout(mesh).state_shardings(setup.tx, state)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(where), strict=True)
    whole = [x for x, s in pairs if s.shard_shape(x.shape) == x.shape]
    assert max(x.size * x.dtype.itemsize for x in whole) < 2**20


@pytest.mark.parametrize(
    "changes, chips, said",
    [
        ({"mesh__fsdp": 3}, 64, ["fsdp=3", "64 devices"]),
        (
            {"mesh__tensor": 64, "mesh__fsdp": 1},
            64,
            ["tensor=64", "heads=32", "kv_heads=32", "divisor of 32"],
        ),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused(recipe, changes, chips, said):
    with pytest.raises(ValueError) as caught:
        memory.abstract_mesh(recipe("paper", **changes), chips)
    assert all(each in str(caught.value) for each in said), str(caught.value)
