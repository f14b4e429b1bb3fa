"""The optimizers are torch's, step by step (float64), clipping over all groups included."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rvllm_jax.config.schema import OptimizerSpec, Stage
from rvllm_jax.training.stages import label_parameters, learning_rate, make_optimizer

torch = pytest.importorskip("torch", reason="the extra `parity` holds torch")

SHAPES = {
    "encoder/conv/kernel": (3, 3, 3, 8),
    "encoder/norm/scale": (8,),
    "encoder/norm/bias": (8,),
    "projector/kernel": (8, 16),
    "projector/bias": (16,),
    "decoder/layers/norm1/scale": (2, 16),
    "decoder/head/kernel": (16, 50),
}
STEPS = 8
SGD = OptimizerSpec("sgd", lr=0.05, decay=0.01, momentum=0.9)
ADAMW = OptimizerSpec("adamw", lr=0.01, decay=0.05, b1=0.8, b2=0.95, eps=1e-6)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make_stage(table, **kinds) -> Stage:
    optimizers = {"sgd": SGD, "adamw": ADAMW}
    return Stage("s", "video", 1, table, optimizers, warmup=3, **kinds)


def arrays(seed, spread=1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {path: spread * rng.normal(size=shape) for path, shape in SHAPES.items()}


def gradients() -> list[dict[str, np.ndarray]]:
    """Norms of 2 to 40, so that a clip at 10 takes hold of some steps and not of others."""
    return [arrays(1 + step, spread) for step, spread in enumerate(np.geomspace(0.05, 1, STEPS))]


def ours(stage) -> dict[str, np.ndarray]:
    params = jax.tree.map(jnp.asarray, arrays(0))
    tx = make_optimizer(stage, label_parameters(stage, params), STEPS)
    state, update = tx.init(params), jax.jit(tx.update)
    for grads in gradients():
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def theirs(stage, optimizers_of) -> dict[str, np.ndarray]:
    """`optimizers_of` takes tensors by path and gives (optimizer, its spec) pairs."""
    params = {path: torch.nn.Parameter(torch.tensor(x)) for path, x in arrays(0).items()}
    pairs = optimizers_of(params)
    for step, grads in enumerate(gradients()):
        for path, x in params.items():
            x.grad = torch.tensor(grads[path])
        if stage.clip:
            torch.nn.utils.clip_grad_norm_(params.values(), stage.clip)
        for optimizer, spec in pairs:
            for group in optimizer.param_groups:
                group["lr"] = float(learning_rate(spec, stage, STEPS)(step))
            optimizer.step()
    return {path: x.detach().numpy() for path, x in params.items()}


def torch_sgd(tensors):
    return torch.optim.SGD(tensors, SGD.lr, momentum=SGD.momentum, weight_decay=SGD.decay)


def torch_adamw(named):
    """No decay on norms and biases: by param groups, as is usual with torch."""
    kernels = [x for path, x in named.items() if path.endswith("kernel")]
    others = [x for path, x in named.items() if not path.endswith("kernel")]
    groups = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    betas = (ADAMW.b1, ADAMW.b2)
    return torch.optim.AdamW(groups, ADAMW.lr, betas, ADAMW.eps, weight_decay=ADAMW.decay)


def assert_same(actual, expected):
    """Of how far each array has moved: norm of the difference / norm."""
    before = arrays(0)
    for path, x in expected.items():
        assert actual[path].dtype == jnp.float64
        moved = np.linalg.norm(x - before[path])
        assert moved > 0.01
        assert np.linalg.norm(actual[path] - x) < 1e-6 * moved, path


@pytest.mark.parametrize("clip", [0.0, 10.0])
def test_sgd(clip):
    stage = make_stage(((".*", "sgd"),), clip=clip)
    expected = theirs(stage, lambda params: [(torch_sgd(params.values()), SGD)])
    assert_same(ours(stage), expected)


@pytest.mark.parametrize("clip", [0.0, 10.0])
def test_adamw(clip):
    stage = make_stage(((".*", "adamw"),), clip=clip)
    expected = theirs(stage, lambda params: [(torch_adamw(params), ADAMW)])
    assert_same(ours(stage), expected)


def test_two_groups_under_one_clip():
    stage = make_stage((("encoder/.*", "sgd"), (".*", "adamw")), clip=10.0)

    def optimizers_of(params):
        encoder = {path: x for path, x in params.items() if path.startswith("encoder/")}
        rest = {path: x for path, x in params.items() if path not in encoder}
        return [(torch_sgd(encoder.values()), SGD), (torch_adamw(rest), ADAMW)]

    assert_same(ours(stage), theirs(stage, optimizers_of))
    apart = ours(dataclasses.replace(stage, clip=0.0))
    assert np.linalg.norm(apart["encoder/norm/bias"] - ours(stage)["encoder/norm/bias"]) > 1e-3
