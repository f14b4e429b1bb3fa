import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rvllm_jax.config.schema import FROZEN, OptimizerSpec, Stage
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.loss import token_loss_sum
from rvllm_jax.sharding.layouts import JitLayout
from rvllm_jax.sharding.mesh import make_mesh
from rvllm_jax.training.stages import frozen_norms, label_parameters, make_optimizer
from rvllm_jax.training.state import TrainState, split
from rvllm_jax.training.step import make_loss, make_step

PLAIN = OptimizerSpec("sgd", lr=1.0, momentum=0.0)  # parameters before - after = gradient
JOINT = Stage("joint", "video", 8, ((".*", "sgd"),), {"sgd": PLAIN}, schedule="constant")
ALIGN = dataclasses.replace(JOINT, table=(("(encoder|projector)/.*", "sgd"), (".*", FROZEN)))

RUNNING = dataclasses.replace(JOINT, freeze_stats=True)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def prepare(quick_compilation, tiny_arrays):
    """(model, stage, keywords of make_step) -> a step of the stage and what it starts from."""

    def make(model, stage=JOINT, **kinds):
        params, stats = tiny_arrays(model)
        labels = label_parameters(stage, params)
        tx = make_optimizer(stage, labels, steps=10)
        trainable, frozen = split(params, labels)
        state = TrainState(trainable, frozen, stats, tx.init(trainable))
        pure = make_step(model, tx, running=frozen_norms(stage, labels), **kinds)
        step = jax.jit(pure)
        return SimpleNamespace(model=model, tx=tx, params=params, state=state, pure=pure, step=step)

    return make


@pytest.fixture(scope="module")
def joint(prepare, tiny_model):
    adamw = {"sgd": OptimizerSpec("adamw", lr=0.01)}
    return prepare(tiny_model(), dataclasses.replace(JOINT, optimizers=adamw))


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_close(actual, expected, rtol):
    """Norm of the difference / norm, array by array."""
    assert actual.keys() == expected.keys()
    for path, x in expected.items():
        difference = np.linalg.norm(np.subtract(actual[path], x))
        assert difference <= rtol * np.linalg.norm(x), path


def test_what_is_frozen_stays_and_the_rest_moves(prepare, tiny_model, tiny_batch):
    stage = dataclasses.replace(ALIGN, optimizers={"sgd": OptimizerSpec("sgd", 0.1, decay=0.1)})
    part = prepare(tiny_model(), stage)
    state, metrics = part.step(part.state, tiny_batch())
    assert metrics["finite"] == 1 and metrics["grad_norm"] > 0
    assert all(path.startswith("decoder/") for path in state.frozen)
    assert_same(state.frozen, part.state.frozen)
    assert {*state.trainable, *state.frozen} == {*part.params}
    for path, x in state.trainable.items():
        assert np.any(x != part.state.trainable[path]), path
    moments = [x for x in jax.tree.leaves(state.opt) if x.ndim]
    assert sum(x.size for x in moments) == sum(x.size for x in state.trainable.values())


def test_a_step_goes_down_and_statistics_follow(joint, tiny_batch):
    state, losses = joint.state, []
    for _ in range(4):
        state, metrics = joint.step(state, tiny_batch())
        losses.append(float(metrics["loss"]))
    assert losses[0] > losses[1] > losses[2] > losses[3]
    assert all(np.any(state.stats[path] != x) for path, x in joint.state.stats.items())


def test_running_statistics_are_kept(prepare, tiny_model, tiny_batch):
    part = prepare(tiny_model(), RUNNING)
    state, _ = part.step(part.state, tiny_batch())
    assert_same(state.stats, part.state.stats)


class Affine(nnx.Module):
    """What a BatchNorm is in inference: a scale and a shift by its running statistics."""

    def __init__(self, norm):
        self.scale, self.bias, self.mean, self.var = norm.scale, norm.bias, norm.mean, norm.var

    def __call__(self, x, mask, *, use_running):
        shift = self.mean[...] / jnp.sqrt(self.var[...] + 1e-5)
        return x * self.scale[...] / jnp.sqrt(self.var[...] + 1e-5) + (
            self.bias[...] - shift * self.scale[...]
        )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_norms_that_are_frozen_keep_their_statistics_and_the_others_learn(
    float64, prepare, tiny_model, tiny_batch, accumulate
):
    """The stem frozen, and one norm behind a convolution that trains: both are in inference."""
    frozen = "encoder/(stem/.*|stages/0/0/norm1/(scale|bias))"
    stage = dataclasses.replace(JOINT, table=((frozen, FROZEN), (".*", "sgd")))
    model, batch = tiny_model(jnp.float64), tiny_batch()
    part = prepare(model, stage, accumulate=accumulate)
    after, _ = part.step(part.state, batch)

    @functools.partial(jax.jit, static_argnames="first")
    def gradient(trainable, stats, first):
        def loss_of(trainable):
            module = model.merge({**trainable, **part.state.frozen}, stats)
            block = module.encoder.stages[0][0]
            module.encoder.stem.norm = Affine(module.encoder.stem.norm)
            block.norm1 = Affine(block.norm1)
            micro = type(batch)(*(x[first::accumulate] for x in batch))
            hidden = module(micro, use_running=False)
            weights = micro.targets, micro.weights, 0
            return token_loss_sum(module.decoder, hidden, *weights) / batch.weights.sum(), (
                model.read_stats(module)
            )

        return jax.grad(loss_of, has_aux=True)(trainable)

    stats, total = part.state.stats, jax.tree.map(jnp.zeros_like, part.state.trainable)
    for first in range(accumulate):
        grads, stats = gradient(part.state.trainable, stats, first)
        total = jax.tree.map(jnp.add, total, grads)
    moved = jax.tree.map(np.subtract, part.state.trainable, after.trainable)
    assert_close(moved, total, 1e-9)
    assert_close(after.stats, stats, 1e-10)
    kept = {p for p, x in part.state.stats.items() if np.array_equal(after.stats[p], x)}
    assert kept == {
        p for p in after.stats if p.startswith(("encoder/stem", "encoder/stages/0/0/norm1"))
    }


def poisoned(state, path, value):
    bad = state.trainable[path].at[..., 0].set(value)
    return state._replace(trainable={**state.trainable, path: bad})


@pytest.mark.parametrize("path", ["encoder/stem/conv/kernel", "projector/linear_1/kernel"])
def test_a_nan_parameter_changes_nothing(joint, tiny_batch, path):
    state = poisoned(joint.state, path, jnp.nan)
    after, metrics = joint.step(state, tiny_batch())
    assert metrics["finite"] == 0 and not np.isfinite(metrics["loss"])
    assert_same(after, state)
    assert all(np.isfinite(x).all() for x in after.stats.values())


def test_an_infinite_loss_changes_nothing_and_the_next_batch_trains(joint, tiny_batch):
    batch = tiny_batch()
    infinite = batch._replace(weights=np.where(batch.weights > 0, np.inf, 0).astype(np.float32))
    after, metrics = joint.step(joint.state, infinite)
    assert metrics["finite"] == 0
    assert_same(after, joint.state)
    assert_same(joint.step(after, batch), joint.step(joint.state, batch))
    assert joint.step(after, batch)[1]["finite"] == 1


def test_statistics_that_overflow_are_not_kept(joint, tiny_batch):
    """Squares past float32 make a variance infinite, while loss and gradient remain finite."""
    kernel = "encoder/stem/conv/kernel"
    big = jnp.tile(joint.params[kernel][..., ::2], 2) * jnp.where(jnp.arange(8) < 4, 1, -1) * 2e19
    state = joint.state._replace(trainable={**joint.state.trainable, kernel: big})
    after, metrics = joint.step(state, tiny_batch())
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert metrics["finite"] == 0
    assert_same(after, state)


def test_the_loss_is_a_mean_over_the_tokens_of_the_batch(float64, prepare, tiny_model, tiny_batch):
    part = prepare(tiny_model(jnp.float64), RUNNING)
    batch = tiny_batch()
    _, metrics = part.step(part.state, batch)
    loss_of = jax.jit(make_loss(part.model))
    rows = [type(batch)(*(x[row : row + 1] for x in batch)) for row in range(len(batch.examples))]
    losses = [loss_of(part.params, part.state.stats, row) for row in rows]
    sums, tokens = np.array(losses, np.float64).T
    assert len(set(tokens)) > 3 and 0 in tokens  # uneven rows, and empty ones
    np.testing.assert_allclose(metrics["loss"], sums.sum() / tokens.sum(), rtol=1e-12)
    assert metrics["tokens"] == tokens.sum()
    mean_of_means = np.mean(sums[tokens > 0] / tokens[tokens > 0])
    assert abs(mean_of_means / metrics["loss"] - 1) > 1e-3
    whole = loss_of(part.params, part.state.stats, batch)
    np.testing.assert_allclose(whole[0] / whole[1], metrics["loss"], rtol=1e-12)


def test_accumulation_is_the_whole_batch(float64, prepare, tiny_model, tiny_batch):
    model, batch = tiny_model(jnp.float64), tiny_batch()
    stage = dataclasses.replace(ALIGN, freeze_stats=True)
    whole = prepare(model, stage)
    expected, metrics = whole.step(whole.state, batch)
    for accumulate in (2, 4):
        part = prepare(model, stage, accumulate=accumulate)
        state, other = part.step(part.state, batch)
        assert_close(other, metrics, 1e-12)
        assert_close(
            jax.tree.map(np.subtract, part.state.trainable, state.trainable),
            jax.tree.map(np.subtract, whole.state.trainable, expected.trainable),
            1e-10,
        )


def test_accumulation_updates_statistics_once_a_micro_batch(
    float64, prepare, tiny_model, tiny_batch
):
    """Micro-batch i of k holds rows i, i + k, ...: with one device a row, rows of every device."""
    model, batch = tiny_model(jnp.float64), tiny_batch()
    part = prepare(model, accumulate=2)
    state, _ = part.step(part.state, batch)

    @jax.jit
    def forward(stats, micro):
        module = model.merge(part.params, stats)
        module(micro, use_running=False)
        return model.read_stats(module)

    stats = part.state.stats
    for first in (0, 1):
        stats = forward(stats, type(batch)(*(x[first::2] for x in batch)))
    assert_close(state.stats, stats, 1e-10)


def test_a_batch_of_empty_rows_is_harmless(joint, tiny_batch):
    state, metrics = joint.step(joint.state, tiny_batch((0,) * 8))
    assert metrics["loss"] == 0 and metrics["tokens"] == 1 and metrics["finite"] == 1
    assert_same(state.stats, joint.state.stats)


def compiled(part, batch):
    """The memory of the compiled step, and the bytes of its optimizer state."""
    parallel = JitLayout(make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    jax.config.update("jax_disable_most_optimizations", False)
    program = parallel.compile(part.pure, part.tx, part.state, parallel.put(batch))
    jax.config.update("jax_disable_most_optimizations", True)
    return program.memory_analysis(), sum(x.nbytes for x in jax.tree.leaves(part.state.opt))


def test_frozen_costs_nothing(prepare, tiny_model, tiny_batch):
    """No gradient, no optimizer state and no copy of a decoder that holds most parameters."""
    model = tiny_model(llama=LlamaConfig(50, 64, 2, 4, 2, 16, 512, context=64))
    joint = dataclasses.replace(JOINT, optimizers={"sgd": OptimizerSpec("adamw", 0.01)})
    align = dataclasses.replace(ALIGN, optimizers=joint.optimizers)
    decoder = sum(x.size * 4 for path, x in model.params.items() if path.startswith("decoder/"))
    assert decoder > 0.9 * sum(x.size * 4 for x in model.params.values())
    all_memory, all_state = compiled(prepare(model, joint), tiny_batch())
    memory, state = compiled(prepare(model, align), tiny_batch())
    assert all_state - state == pytest.approx(2 * decoder, abs=64)  # two moments; step counters
    saved = all_memory.argument_size_in_bytes - memory.argument_size_in_bytes
    assert saved == pytest.approx(2 * decoder, abs=4096)
    assert all_memory.temp_size_in_bytes - memory.temp_size_in_bytes > 0.9 * decoder
