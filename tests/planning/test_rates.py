import dataclasses

import pytest

from rvllm_jax.costs import chips as topologies
from rvllm_jax.planning import memory, rates
from rvllm_jax.planning.abstract import step_costs


def predicted(recipe, model, stage, name, batch, sizes=None, efficiency=rates.EFFICIENCY):
    topology = topologies.parse(name)
    if sizes:
        mesh = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
        recipe = dataclasses.replace(recipe, mesh=mesh)
    mesh = memory.abstract_mesh(recipe, topology.chips)
    stage = dataclasses.replace(stage, batch=batch)
    return rates.predict(recipe, stage, model, mesh, topology, efficiency)


def test_one_chip_waits_for_no_other(paper):
    recipe, model = paper
    one = predicted(recipe, model, recipe.stages[1], "h200:1", 4)
    assert one.link_bytes == one.transfer == 0 and one.seconds == one.arithmetic
    assert one.clips_a_second == pytest.approx(4 / one.arithmetic)


def test_the_decoder_takes_its_operations_at_the_stated_share(paper):
    """Without the encoder's part, twice the share takes half of the time."""
    recipe, model = paper
    stage = recipe.stages[1]
    half, whole = (
        predicted(recipe, model, stage, "h200:1", 1, efficiency=share) for share in (0.25, 0.5)
    )
    rest = sum(x for name, (_, x) in step_costs(recipe, stage, model.params).step().items()
               if name != "encoder")  # fmt: skip
    assert half.arithmetic - whole.arithmetic >= rest / 989e12 * 2 * 0.999


def test_parameters_cross_the_links_twice_and_gradients_once(paper):
    recipe, model = paper
    mesh = memory.abstract_mesh(recipe, 64)
    visual, joint = (rates.collectives(recipe, stage, model, mesh) for stage in recipe.stages)
    # Beside the layers twice: the table once, the head in each of two chunks of the loss.
    layers, encoder, head = 6.477e9, 24e6, 4096 * 32000
    parameters = 2 * (2 * layers + 2 * encoder + head + 4 * head) * 63 / 64
    assert joint["parameters"] == pytest.approx(parameters, rel=1e-3)
    gradients = 2 * (layers + 2 * encoder + head + 4 * head) * 63 / 64
    assert joint["gradients"] == pytest.approx(gradients, rel=1e-3)
    assert visual["parameters"] == joint["parameters"] and visual["gradients"] < 2e8
    assert joint["activations"] == 0
    split = dataclasses.replace(recipe, mesh=dict(data=1, fsdp=8, tensor=8))
    tensor = rates.collectives(split, joint_stage := recipe.stages[1], model,
                               memory.abstract_mesh(split, 64))  # fmt: skip
    rows = joint_stage.batch / 8
    assert tensor["parameters"] < joint["parameters"] / 7
    assert tensor["activations"] == pytest.approx(
        32 * 2 * 3 * 2 * rows * 2048 * 4096 * 2 * 7 / 8, rel=1e-6
    )


def test_scaling_keeps_the_rows_a_device(paper):
    recipe, model = paper
    found = rates.scaling(recipe, recipe.stages[1], model, 1, 1, topologies.parse("v5e:2x4"))
    assert list(found) == [8, 16, 32, 64, 128, 256]
    assert all(made.clips == chips for chips, made in found.items())
    assert len({round(made.arithmetic, 9) for made in found.values()}) == 1
    assert found[8].link_bytes < found[256].link_bytes < 1.2 * found[8].link_bytes


def test_hours(paper):
    stage = dataclasses.replace(paper[0].stages[1], epochs=3, steps=0)
    made = rates.Speed(clips=10, arithmetic=5.0, transfer=1.0, link_bytes=0)
    assert rates.hours(made, stage, pairs=1000, questions=7) == pytest.approx(3 * 143 / 2 / 3600)
    steps = dataclasses.replace(stage, epochs=0, steps=720, batch=10)
    assert rates.hours(made, steps, pairs=1, questions=1) == pytest.approx(1.0)
