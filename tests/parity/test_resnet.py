"""The encoder and the pooling give torch's numbers, forwards, backwards and after SGD steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rvllm_jax.config.schema import OptimizerSpec, Stage
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.projector import Projector
from rvllm_jax.models.resnet import ResNet, ResNetConfig
from rvllm_jax.models.visual_tokens import adaptive_average
from rvllm_jax.training.stages import label_parameters, make_optimizer

torch = pytest.importorskip("torch", reason="the extra `parity` holds torch")
transformers = pytest.importorskip("transformers", reason="a requirement of the package")

# Our leaf <- the leaf of torch. The module paths are renamed in `our_path`.
LEAVES = {
    "convolution.weight": "conv/kernel",
    "normalization.weight": "norm/scale",
    "normalization.bias": "norm/bias",
    "normalization.running_mean": "norm/mean",
    "normalization.running_var": "norm/var",
}


def our_path(name: str) -> str:
    """The path in ResNet of a tensor of transformers' ResNetModel."""
    *modules, module, leaf = name.split(".")
    ours = LEAVES[f"{module}.{leaf}"]
    if modules[0] == "embedder":
        return f"stem/{ours}"
    _, _, stage, _, block, *inner = modules
    if inner == ["shortcut"]:
        return f"stages/{stage}/{block}/shortcut/{ours}"
    kind, leaf = ours.split("/")
    return f"stages/{stage}/{block}/{kind}{int(inner[1]) + 1}/{leaf}"


def as_ours(named) -> dict[str, np.ndarray]:
    """Tensors of torch under our paths, kernels as [k, k, in, out]."""
    arrays = {}
    for name, tensor in named:
        if not name.endswith("num_batches_tracked"):
            array = tensor.detach().numpy().copy()
            arrays[our_path(name)] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return arrays


def their_model(config: ResNetConfig, dtype):
    torch.manual_seed(0)
    expansion = 4 if config.bottleneck else 1
    model = transformers.ResNetModel(
        transformers.ResNetConfig(
            embedding_size=config.widths[0],
            hidden_sizes=[width * expansion for width in config.widths],
            depths=list(config.blocks),
            layer_type="bottleneck" if config.bottleneck else "basic",
            downsample_in_bottleneck=False,  # v1.5
        )
    ).to(dtype)
    for name, parameter in model.named_parameters():
        # Away from 1 and 0, so that a swap shows. A positive bias would never meet a ReLU's zero,
        # and the next normalisation would make its gradient zero.
        if "normalization" in name:
            torch.nn.init.uniform_(parameter, *((0.5, 1.5) if "weight" in name else (-1, 0)))
    return model


def our_model(config: ResNetConfig, dtype, arrays: dict[str, np.ndarray]):
    """A ResNet, and its parameters and statistics out of `arrays`, every leaf by name."""
    model = FunctionalModel.of(
        lambda rngs: ResNet(config, rngs=rngs, dtype=dtype, param_dtype=dtype)
    )
    assert arrays.keys() == model.params.keys() | model.stats.keys()
    for name, leaf in (model.params | model.stats).items():
        assert leaf.shape == arrays[name].shape, name
    params = {name: jnp.asarray(arrays[name], dtype) for name in model.params}
    return model, params, {name: jnp.asarray(arrays[name], dtype) for name in model.stats}


def assert_close(ours: dict, theirs: dict, tolerance: float):
    """The norm of the difference of every tensor is below `tolerance` of the tensor's norm."""
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        difference = np.linalg.norm(np.ravel(ours[name] - array))
        assert difference <= tolerance * np.linalg.norm(np.ravel(array)), name


def loss_and_gradients(model: FunctionalModel, *, use_running):
    """A function to the gradients of sum(features x weight), the features and new statistics."""

    def loss(params, stats, x_NHWC, weight_NhwE):
        resnet = model.merge(params, stats)
        features = resnet(x_NHWC, jnp.ones(len(x_NHWC), bool), use_running=use_running)
        return (features * weight_NhwE).sum(), (features, model.read_stats(resnet))

    return jax.grad(loss, has_aux=True)


def frames_and_weights(config, size, dtype):
    rng = np.random.default_rng(0)
    x_NHWC = rng.normal(size=(3, *size, 3)).astype(dtype)
    places = [-(-side // 32) for side in size]
    return x_NHWC, rng.normal(size=(3, *places, config.features)).astype(dtype)


def nchw(x_NHWC):
    return torch.from_numpy(x_NHWC.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize(
    "config, size",
    [
        (ResNetConfig((2, 1, 2, 1), False, (6, 8, 10, 12)), (64, 64)),
        (ResNetConfig((1, 2, 1, 2), True, (4, 6, 8, 10)), (71, 58)),
    ],
    ids=["basic", "bottleneck"],
)
def test_training_steps_equal_torch_in_float64(config, size):
    theirs = their_model(config, torch.float64).train()
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
    their_sgd = torch.optim.SGD(theirs.parameters(), **options)
    x_NHWC, weight_NhwE = frames_and_weights(config, size, np.float64)
    specs = {"sgd": OptimizerSpec("sgd", lr=0.01, decay=1e-4, momentum=0.9)}
    stage = Stage("s", "video", 1, ((".*", "sgd"),), specs, steps=2, schedule="constant")
    with jax.enable_x64(True):
        model, params, stats = our_model(config, jnp.float64, as_ours(theirs.state_dict().items()))
        sgd = make_optimizer(stage, label_parameters(stage, params), 2)

        @jax.jit
        def step(params, stats, opt_state):
            gradients, (features, stats) = loss_and_gradients(model, use_running=False)(
                params, stats, x_NHWC, weight_NhwE
            )
            updates, opt_state = sgd.update(gradients, opt_state, params)
            return optax.apply_updates(params, updates), stats, opt_state, gradients, features

        opt_state = jax.jit(sgd.init)(params)
        for _ in range(2):
            params, stats, opt_state, gradients, features = step(params, stats, opt_state)

            their_sgd.zero_grad()
            their_features = theirs(nchw(x_NHWC)).last_hidden_state
            (their_features * nchw(weight_NhwE)).sum().backward()
            their_gradients = [(n, p.grad) for n, p in theirs.named_parameters()]
            their_sgd.step()
            expected = their_features.detach().numpy().transpose(0, 2, 3, 1)
            assert_close({"features": np.asarray(features)}, {"features": expected}, 1e-6)
            assert_close(gradients, as_ours(their_gradients), 1e-6)
        assert_close(params | stats, as_ours(theirs.state_dict().items()), 1e-6)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(ResNetConfig((2, 2, 2, 2), bottleneck=False), id="resnet18"),
        pytest.param(ResNetConfig((3, 4, 6, 3)), id="resnet50", marks=pytest.mark.slow),
    ],
)
def test_running_statistics_equal_torch_in_float32(config):
    theirs = their_model(config, torch.float32).train()
    x_NHWC, weight_NhwE = frames_and_weights(config, (64, 64), np.float32)
    with torch.no_grad():
        for _ in range(20):  # running statistics that fit the weights, as after training
            theirs(nchw(x_NHWC))
    theirs.eval()
    model, params, stats = our_model(config, jnp.float32, as_ours(theirs.state_dict().items()))
    gradients, (features, new_stats) = jax.jit(loss_and_gradients(model, use_running=True))(
        params, stats, x_NHWC, weight_NhwE
    )
    their_features = theirs(nchw(x_NHWC)).last_hidden_state
    (their_features * nchw(weight_NhwE)).sum().backward()
    expected = their_features.detach().numpy().transpose(0, 2, 3, 1)
    assert_close({"features": np.asarray(features)}, {"features": expected}, 1e-4)
    their_gradients = as_ours((n, p.grad) for n, p in theirs.named_parameters())
    assert_close(gradients, their_gradients, 1e-3)
    assert_close(new_stats, stats, 0)


@pytest.mark.parametrize("size", [(4, 4), (7, 7), (5, 9), (8, 6)])
@pytest.mark.parametrize("grid", [1, 2, 3, 4])
def test_adaptive_average_equals_torch(size, grid):
    x_NhwE = np.random.default_rng(0).normal(size=(2, *size, 5))
    expected = torch.nn.functional.adaptive_avg_pool2d(nchw(x_NhwE), grid).numpy()
    with jax.enable_x64(True):
        ours = adaptive_average(jnp.asarray(x_NhwE), grid)
    np.testing.assert_allclose(ours, expected.transpose(0, 2, 3, 1), rtol=1e-12, atol=1e-14)


def test_mlp_projector_equals_torch():
    x_VE = np.random.default_rng(0).normal(size=(7, 5)) * 3
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(
        torch.nn.Linear(5, 6), torch.nn.GELU(), torch.nn.Linear(6, 6)
    ).double()
    with jax.enable_x64(True):
        float64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        ours = Projector(5, 6, "mlp2x_gelu", rngs=nnx.Rngs(0), **float64)
        for layer, linear in ((0, ours.linear_1), (2, ours.linear_2)):
            linear.kernel[...] = jnp.asarray(theirs[layer].weight.detach().numpy().T)
            linear.bias[...] = jnp.asarray(theirs[layer].bias.detach().numpy())
        expected = theirs(torch.from_numpy(x_VE)).detach().numpy()
        np.testing.assert_allclose(ours(jnp.asarray(x_VE)), expected, rtol=1e-12, atol=1e-14)
