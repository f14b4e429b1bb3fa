"""Padding, sharding and precision of the encoder; tests/parity compares it with torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rvllm_jax.models.norms import BatchNorm
from rvllm_jax.models.resnet import RESNETS, ResNet, ResNetConfig

TINY = ResNetConfig((1, 1), False, (4, 6), stem="small", stem_stride=2, groups=2)
FLOAT64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def split(config, **dtypes):
    return nnx.split(ResNet(config, rngs=nnx.Rngs(0), **dtypes), nnx.Param, nnx.BatchStat)


def named(state) -> dict:
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def apply(parts, x_NHWC, mask_N, use_running=False):
    """Features and new statistics."""
    model = nnx.merge(*parts, copy=True)
    features = model(x_NHWC, mask_N, use_running=use_running)
    return features, nnx.state(model, nnx.BatchStat)


def losses_and_gradients(parts, x_NHWC, mask_N, axis_name=None):
    """Sum of squares of the real frames' features, gradients (summed over devices), statistics."""

    def loss(params):
        model = nnx.merge(parts[0], params, parts[2], copy=True)
        model.set_attributes(BatchNorm, axis_name=axis_name, raise_if_not_found=False)
        features = model(x_NHWC, mask_N, use_running=False)
        kept = jnp.where(mask_N[:, None, None, None], features, 0)
        return jnp.square(kept).sum(), nnx.state(model, nnx.BatchStat)

    (total, stats), gradients = jax.value_and_grad(loss, has_aux=True)(parts[1])
    if axis_name is not None:
        total, gradients = jax.lax.psum((total, gradients), axis_name)
    return total, named(gradients), named(stats)


def frames(num_frames, size=16, dtype=np.float64):
    return np.random.default_rng(0).normal(size=(num_frames, size, size, 3)).astype(dtype)


def assert_trees_close(actual, expected, rtol=1e-9):
    def close(actual, expected):
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-12)

    jax.tree.map(close, actual, expected)


@pytest.mark.parametrize("name", ["narrow", "resnet18", "resnet50"])
def test_features_have_the_shape_the_config_says(name):
    config = RESNETS[name]
    model = nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0)))
    size, places = (32, 4) if name == "narrow" else (224, 7)

    def forward(model):
        x_NHWC = jnp.zeros((2, size, size, 3))
        return model(x_NHWC, jnp.ones(2, bool), use_running=True)

    features = nnx.eval_shape(forward, model)
    assert features.shape == (2, places, places, config.features)


def test_sizes_have_torchvisions_number_of_parameters():
    expected = {  # torchvision's table, less the 512 or 2048 x 1000 + 1000 of the classifier
        "resnet18": 11_689_512 - 513_000,
        "resnet34": 21_797_672 - 513_000,
        "resnet50": 25_557_032 - 2_049_000,
        "resnet101": 44_549_160 - 2_049_000,
        "resnet152": 60_192_808 - 2_049_000,
    }
    for name, number in expected.items():
        model = nnx.eval_shape(lambda name=name: ResNet(RESNETS[name], rngs=nnx.Rngs(0)))
        leaves = nnx.to_flat_state(nnx.state(model, nnx.Param))
        assert sum(np.prod(leaf.shape) for _, leaf in leaves) == number, name


def test_parameter_paths():
    config = ResNetConfig((1, 2), True, (4, 6), groups=2)
    model = nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    paths = {"/".join(map(str, path)) for path, _ in flat}
    leaves = ("scale", "bias")
    blocks = ["stages/0/0", "stages/1/0", "stages/1/1"]
    expected = {f"{b}/conv{i}/kernel" for b in blocks for i in (1, 2, 3)}
    expected |= {f"{b}/norm{i}/{leaf}" for b in blocks for i in (1, 2, 3) for leaf in leaves}
    for module in ("stem", "stages/0/0/shortcut", "stages/1/0/shortcut"):
        expected |= {f"{module}/conv/kernel"} | {f"{module}/norm/{leaf}" for leaf in leaves}
    assert paths == expected


@pytest.mark.parametrize("bottleneck", [False, True])
def test_padded_frames_change_nothing(bottleneck):
    config = dataclasses.replace(TINY, bottleneck=bottleneck)
    mask_N = np.array([True, False, True, True, False])
    with jax.enable_x64(True):
        x_NHWC = frames(5)
        parts = split(config, **FLOAT64)
        expected, expected_stats = apply(parts, x_NHWC[mask_N], np.ones(3, bool))
        x_NHWC[~mask_N] = 1e3
        features, stats = apply(parts, x_NHWC, mask_N)
        assert np.isfinite(features).all()
        x_NHWC[~mask_N] = np.nan
        with_nan, nan_stats = apply(parts, x_NHWC, mask_N)
    assert_trees_close(features[mask_N], expected)
    assert_trees_close(named(stats), named(expected_stats))
    np.testing.assert_array_equal(with_nan[mask_N], features[mask_N])
    jax.tree.map(np.testing.assert_array_equal, named(nan_stats), named(stats))


def test_running_variance_is_unbiased():
    x_NhwC = np.random.default_rng(0).normal(3, 2, size=(2, 2, 1, 3)).astype(np.float32)
    norm = BatchNorm(3)
    y_NhwC = norm(x_NhwC, np.ones(2, bool), use_running=False)
    mean, var = x_NhwC.mean((0, 1, 2)), x_NhwC.var((0, 1, 2))
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)
    unbiased = x_NhwC.var((0, 1, 2), ddof=1)  # of 4 values: a third more than the biased
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * unbiased, rtol=1e-5)
    np.testing.assert_allclose(y_NhwC, (x_NhwC - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)


def test_batch_without_real_frames_keeps_statistics_and_stays_finite():
    x_NHWC, mask_N = frames(4, dtype=np.float32), np.ones(4, bool)
    parts = split(TINY)
    parts = (*parts[:2], apply(parts, x_NHWC, mask_N)[1])
    features, stats = apply(parts, x_NHWC, ~mask_N)
    jax.tree.map(np.testing.assert_array_equal, named(stats), named(parts[2]))
    np.testing.assert_allclose(features, apply(parts, x_NHWC, mask_N, use_running=True)[0])
    total, gradients, _ = jax.jit(losses_and_gradients)(parts, x_NHWC, ~mask_N)
    assert total == 0
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, 0, err_msg=name)


def test_running_statistics_are_used_and_kept():
    x_NHWC, mask_N = frames(4, dtype=np.float32), np.ones(4, bool)
    parts = split(TINY)
    parts = (*parts[:2], apply(parts, 5 * x_NHWC, mask_N)[1])
    together, stats = apply(parts, x_NHWC, mask_N, use_running=True)
    alone, _ = apply(parts, x_NHWC[:1], mask_N[:1], use_running=True)
    jax.tree.map(np.testing.assert_array_equal, named(stats), named(parts[2]))
    np.testing.assert_allclose(together[:1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["eager", "jit over 8 devices", "pmap over 8 devices"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_devices_agree(how, norm):
    """Loss, gradients and statistics; three devices see padding alone, one sees a single frame."""
    config = dataclasses.replace(TINY, norm=norm)
    mask_DN = np.ones((8, 2), bool)
    mask_DN[[1, 4, 7]] = False
    mask_DN[2, 0] = False
    with jax.enable_x64(True):
        x_DNHWC = frames(16).reshape(8, 2, 16, 16, 3)
        x_DNHWC[~mask_DN] *= 100
        parts = split(config, **FLOAT64)
        x_NHWC, mask_N = x_DNHWC.reshape(16, 16, 16, 3), mask_DN.reshape(16)
        expected = jax.jit(losses_and_gradients)(parts, x_NHWC, mask_N)
        if how == "pmap over 8 devices":
            # `parts` as an argument, as in training: closed over, jaxlib 0.11.2 crashes on CPU.
            step = jax.pmap(
                lambda parts, x, mask: losses_and_gradients(parts, x, mask, "data"),
                "data",
                in_axes=(None, 0, 0),
            )
            results = step(parts, x_DNHWC, mask_DN)
            for device in range(8):
                assert_trees_close(jax.tree.map(lambda a, d=device: a[d], results), expected)
            return
        if how == "eager":
            results = losses_and_gradients(parts, x_NHWC, mask_N)
        else:
            mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
            sharding = NamedSharding(mesh, PartitionSpec("data"))
            x_NHWC, mask_N = jax.device_put((x_NHWC, mask_N), sharding)
            results = jax.jit(losses_and_gradients)(parts, x_NHWC, mask_N)
        assert_trees_close(results, expected)


def test_group_norm_keeps_frames_apart():
    config = dataclasses.replace(TINY, norm="group")
    x_NHWC, mask_N = frames(3, dtype=np.float32), np.ones(3, bool)
    parts = split(config)
    assert not named(parts[2])
    together, _ = apply(parts, x_NHWC, mask_N)
    alone, _ = apply(parts, x_NHWC[1:2], mask_N[:1])
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-5, atol=1e-6)
    scaled, _ = apply(parts, 7 * x_NHWC, mask_N)  # normalised a frame: the scale falls out
    np.testing.assert_allclose(scaled, together, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_statistics(norm):
    config = dataclasses.replace(TINY, norm=norm)
    x_NHWC, mask_N = frames(4, dtype=np.float32), np.ones(4, bool)
    expected, expected_stats = apply(split(config), x_NHWC, mask_N)
    parts = split(config, dtype=jnp.bfloat16)
    features, stats = apply(parts, x_NHWC, mask_N)
    assert features.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in named(parts[1]).values()} == {jnp.dtype(jnp.float32)}
    difference = np.linalg.norm(features.astype(jnp.float32) - expected)
    assert 0 < difference < 0.03 * np.linalg.norm(expected)
    for name, leaf in named(stats).items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, named(expected_stats)[name], atol=0.01, err_msg=name)


def test_bfloat16_statistics_are_summed_in_float32():
    x_NhwC = np.full((8, 64, 64, 1), 1.5)  # bfloat16 cannot count 32768 x 1.5 one by one
    x_NhwC[::2] += 1
    norm = BatchNorm(1, dtype=jnp.bfloat16)
    norm(jnp.asarray(x_NhwC, jnp.bfloat16), np.ones(8, bool), use_running=False)
    np.testing.assert_allclose(norm.mean[...], 0.2, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * 0.25, rtol=1e-4)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"blocks": (1, 1), "widths": (4,)}, "one positive number a stage"),
        ({"stem": "large"}, "stem='large'"),
        ({"norm": "layer"}, "norm='layer'"),
    ],
)
def test_config_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**fields)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="4 channels do not divide into groups=3"):
        ResNet(dataclasses.replace(TINY, norm="group", groups=3), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("axis_name", [None, "rows"])
def test_recomputed_blocks_give_the_same_step(axis_name):
    """And the statistics are mixed in once, not once more when a block is computed again."""
    x_NHWC, mask_N = frames(4), np.array([True, True, True, False])
    with jax.enable_x64(True):
        plain, again = split(TINY, **FLOAT64), split(TINY, remat=True, **FLOAT64)

        def step(parts):
            if axis_name is None:
                return jax.jit(lambda x, m: losses_and_gradients(parts, x, m))(x_NHWC, mask_N)
            one = jax.devices()[:2]
            halves = (x_NHWC.reshape(2, 2, *x_NHWC.shape[1:]), mask_N.reshape(2, 2))
            run = jax.pmap(
                lambda params, stats, x, m: losses_and_gradients(
                    (parts[0], params, stats), x, m, axis_name
                ),
                axis_name=axis_name,
                devices=one,
                in_axes=(None, None, 0, 0),
            )
            return run(parts[1], parts[2], *halves)

        assert_trees_close(step(again), step(plain))
