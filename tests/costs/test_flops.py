import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from rvllm_jax.config.build import build_model
from rvllm_jax.costs.flops import convolutions
from rvllm_jax.models.resnet import RESNETS
from rvllm_jax.planning import abstract
from rvllm_jax.planning.abstract import step_costs


def is_program(x) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def counted(jaxpr) -> int:
    """Operations of the products and convolutions in a traced program, scans by their length."""
    total = 0
    for eqn in jaxpr.eqns:
        out = math.prod(eqn.outvars[0].aval.shape)
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * out * math.prod(shape[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            total += 2 * out * math.prod(eqn.invars[1].aval.shape[:3])
        params = jax.tree.leaves(list(eqn.params.values()), is_leaf=is_program)
        inner = [x for x in params if is_program(x)]
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += times * sum(counted(getattr(x, "jaxpr", x)) for x in inner)
    return total


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model__tokens": "global"},
        {"model__tokens": "global", "model__projector": "mlp2x_gelu"},
        {"model__tokens": "global", "model__encoder": "resnet50", "data__crop": 36},
        {"model__tokens": "global", "model__decoder": "smollm2-135m", "data__crop": 31},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_the_forward_pass_is_that_of_the_traced_model(recipe, changes):
    made = recipe(**changes)
    model, (batch,) = build_model(made), [abstract.batch(made, made.stages[-1])]

    def forward(params, stats, batch):
        module = model.merge(params, stats)
        return module.decoder.logits(module(batch, use_running=True))

    jaxpr = jax.make_jaxpr(forward)(model.params, model.stats, batch).jaxpr
    expected = (
        sum(step_costs(made, made.stages[-1], model.params).forward().values())
        * batch.tokens.shape[0]
    )
    assert counted(jaxpr) == expected


def test_a_clip_of_the_paper(paper):
    """100 visual tokens and 125 of text: 8.45 TFLOP in stage 1, 11.45 in stage 2."""
    recipe, model = paper
    costs = (step_costs(recipe, stage, model.params) for stage in recipe.stages)
    totals = [
        sum(own for own, _ in dataclasses.replace(each, tokens=225).step().values())
        for each in costs
    ]
    assert totals == pytest.approx([8.45e12, 11.45e12], rel=0.01)


def test_resnet50_has_4_1_billion_products_a_frame():
    convs = convolutions(RESNETS["resnet50"], 224)
    assert len(convs) == 53
    assert sum(each.flops for each in convs) / 2 == pytest.approx(4.09e9, rel=0.01)
    assert sum(each.elements for each in convs) == pytest.approx(11.1e6, rel=0.01)


def test_what_is_frozen_costs_no_gradient_of_its_weights(tiny):
    recipe, model = tiny
    language, visual, joint = (
        step_costs(recipe, stage, model.params).passes() for stage in recipe.stages
    )
    assert step_costs(recipe, recipe.stages[0], model.params).step()["encoder"] == (0, 0)
    assert language["decoder"] == (3, 0) and language["head"] == (3, 0)
    assert visual["encoder"] == (3, 0) and visual["decoder"] == (2, 0)
    assert joint["encoder"] == (3, 0) and joint["decoder"] == (3, 0)
    assert {each["attention"] for each in (language, visual, joint)} == {(3, 0)}


def test_recomputation_is_counted_apart(recipe):
    made = recipe(model__remat="full", model__loss_chunk=8)
    model = build_model(made)
    plain = step_costs(recipe(), made.stages[-1], model.params).step()
    again = step_costs(made, made.stages[-1], model.params).step()
    once = step_costs(made, made.stages[-1], model.params).forward()
    for name in ("encoder", "decoder", "attention", "head"):
        assert again[name][0] == plain[name][0] == plain[name][1]
        assert again[name][1] - again[name][0] == once[name]
    dots = step_costs(recipe(model__remat="dots"), made.stages[-1], model.params).step()
    assert dots["decoder"][1] == plain["decoder"][1]
    assert dots["attention"][1] == again["attention"][1]


def test_dtypes_do_not_matter(tiny):
    recipe, model = tiny
    half = {p: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for p, x in model.params.items()}
    stage = recipe.stages[-1]
    assert step_costs(recipe, stage, half).step() == step_costs(recipe, stage, model.params).step()
