import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rvllm_jax.config.schema import FROZEN, OptimizerSpec, Stage
from rvllm_jax.training.stages import label_parameters, learning_rate, make_optimizer

SHAPES = {
    "encoder/stem/conv/kernel": (3, 3, 3, 8),
    "encoder/stem/norm/scale": (8,),
    "projector/kernel": (8, 16),
    "projector/bias": (16,),
    "decoder/norm/scale": (16,),
    "decoder/head/kernel": (16, 50),
}
SGD = OptimizerSpec("sgd", lr=0.5, decay=0.1, momentum=0.9)
ADAMW = OptimizerSpec("adamw", lr=0.01, decay=0.1)
ENCODER = (("encoder/.*", "sgd"), (".*", FROZEN))
BOTH = (("encoder/.*", "sgd"), (".*", "adamw"))


def make_stage(table, *, sgd=SGD, adamw=ADAMW, schedule="constant", **kinds) -> Stage:
    optimizers = {"sgd": sgd, "adamw": adamw}
    return Stage("s", "video", 1, table, optimizers, schedule=schedule, **kinds)


def some_arrays(seed, paths=SHAPES) -> dict:
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.normal(size=SHAPES[path]), jnp.float32) for path in paths}


def prepare(stage, steps=10):
    """The transformation, and the parameters that it trains."""
    labels = label_parameters(stage, SHAPES)
    trainable = [path for path, label in labels.items() if label != FROZEN]
    return make_optimizer(stage, labels, steps), some_arrays(0, trainable)


def update_of(stage, grads, steps=10):
    tx, params = prepare(stage, steps)
    updates, _ = tx.update(grads, tx.init(params), params)
    return params, updates


def elements_of_moments(stage) -> int:
    tx, params = prepare(stage)
    return sum(x.size for x in jax.tree.leaves(tx.init(params)) if x.ndim)


def test_frozen_parameters_have_no_state():
    sizes = {path: int(np.prod(shape)) for path, shape in SHAPES.items()}
    encoder = sum(size for path, size in sizes.items() if path.startswith("encoder/"))
    assert elements_of_moments(make_stage(ENCODER)) == encoder
    rest = sum(sizes.values()) - encoder
    assert elements_of_moments(make_stage(BOTH)) == encoder + 2 * rest


def test_adamw_decays_kernels_only():
    stage = make_stage(((".*", "adamw"),))
    params, updates = update_of(stage, jax.tree.map(jnp.zeros_like, some_arrays(0)))
    for path, update in updates.items():
        factor = ADAMW.lr * ADAMW.decay if path.endswith("kernel") else 0
        np.testing.assert_allclose(update, -factor * params[path], rtol=1e-6, err_msg=path)


def test_sgd_decays_everything_as_torch():
    stage = make_stage(((".*", "sgd"),))
    params, updates = update_of(stage, jax.tree.map(jnp.zeros_like, some_arrays(0)))
    for path, update in updates.items():
        np.testing.assert_allclose(update, -0.5 * 0.1 * params[path], rtol=1e-6, err_msg=path)


def test_each_group_has_its_own_optimizer():
    grads = some_arrays(1)
    params, updates = update_of(make_stage(BOTH), grads)
    for path, grad in grads.items():
        if path.startswith("encoder/"):
            expected = -SGD.lr * (grad + SGD.decay * params[path])
        else:  # Adam's first update is the sign of the gradient
            decay = ADAMW.decay if path.endswith("kernel") else 0
            expected = -ADAMW.lr * (jnp.sign(grad) + decay * params[path])
        np.testing.assert_allclose(updates[path], expected, rtol=1e-4, atol=1e-6, err_msg=path)


def test_one_clip_over_all_groups():
    plain = OptimizerSpec("sgd", lr=1.0, momentum=0.0)
    stage = make_stage(BOTH, sgd=plain, adamw=dataclasses.replace(plain, lr=2.0), clip=0.5)
    grads = some_arrays(1)
    scale = 0.5 / optax.tree.norm(grads)
    assert scale < 0.1
    _, updates = update_of(stage, grads)
    for path, grad in grads.items():
        lr = 1.0 if path.startswith("encoder/") else 2.0
        np.testing.assert_allclose(updates[path], -lr * scale * grad, rtol=1e-5, err_msg=path)
    small = jax.tree.map(lambda g: 0.1 * scale * g, grads)
    _, updates = update_of(stage, small)
    np.testing.assert_allclose(
        updates["encoder/stem/norm/scale"], -small["encoder/stem/norm/scale"], rtol=1e-6
    )


@pytest.mark.parametrize(
    "schedule, warmup, expected",
    [
        ("constant", 0, {0: 0.5, 7: 0.5}),
        ("constant", 4, {0: 0, 1: 0.125, 4: 0.5, 19: 0.5}),
        ("cosine", 0, {0: 0.5, 10: 0.25, 20: 0, 25: 0}),
        ("cosine", 4, {0: 0, 2: 0.25, 4: 0.5, 8: 0.25 * (1 + np.sqrt(0.5)), 12: 0.25, 20: 0}),
    ],
)
def test_learning_rate(schedule, warmup, expected):
    rate = learning_rate(SGD, make_stage(BOTH, schedule=schedule, warmup=warmup), steps=20)
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-7), step


def test_updates_follow_the_schedule():
    plain = OptimizerSpec("sgd", lr=0.5, momentum=0.0)
    stage = make_stage(ENCODER, sgd=plain, schedule="cosine", warmup=2)
    tx, params = prepare(stage, steps=4)
    state, grads = tx.init(params), jax.tree.map(jnp.ones_like, params)
    rates = []
    for _ in range(5):
        updates, state = tx.update(grads, state, params)
        rates.append(-float(updates["encoder/stem/norm/scale"][0]))
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.25, 0], atol=1e-7)


def test_half_precision_moments_leave_the_second_moment_whole():
    half = {"moments": "bfloat16"}
    stage = make_stage(
        BOTH, sgd=dataclasses.replace(SGD, **half), adamw=dataclasses.replace(ADAMW, **half)
    )
    tx, params = prepare(stage)
    state = tx.init(params)
    large = [x.dtype for x in jax.tree.leaves(state) if x.ndim]
    encoder = sum(path.startswith("encoder/") for path in SHAPES)
    others = len(SHAPES) - encoder
    assert large.count(jnp.bfloat16) == len(SHAPES) and large.count(jnp.float32) == others
    # The step is that of whole moments up to the rounding of the first.
    grads = some_arrays(1)
    updates, state = tx.update(grads, state, params)
    assert [x.dtype for x in jax.tree.leaves(state) if x.ndim] == large
    _, whole = update_of(make_stage(BOTH), grads)
    for path, x in updates.items():
        np.testing.assert_allclose(x, whole[path], rtol=0.02, atol=1e-6)
