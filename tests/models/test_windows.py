"""On CPU gradients of convolutions and of max pooling are sums of shifted maps: the same sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.models import windows
from rvllm_jax.sharding import constrain


def maps(N, height, width, channels, dtype):
    return jnp.asarray(np.random.default_rng(0).normal(size=(N, height, width, channels)), dtype)


def gradients(function, *given):
    """Of a weighted sum, so that every place of the result has a gradient of its own."""
    weights = jnp.cos(jnp.arange(function(*given).size)).reshape(function(*given).shape)

    def loss(*given):
        return (function(*given) * weights).sum()

    return jax.grad(loss, tuple(range(len(given))))(*given)


@pytest.mark.parametrize(("size", "stride", "channels"), [(3, 1, 16), (3, 2, 16), (7, 2, 3)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5), (1, 2)])
def test_the_kernel_s_gradient_is_that_of_the_convolution(
    height, width, size, stride, channels, monkeypatch
):
    monkeypatch.setattr(windows, "MANY", 1)
    with jax.enable_x64(True):
        x = maps(3, height, width, channels, jnp.float64)
        kernel = maps(size, size, channels, 5, jnp.float64)
        assert shifted(x, kernel, stride)
        ours = gradients(lambda *given: windows.convolve(*given, stride), x, kernel)
        theirs = gradients(lambda *given: windows._convolve(*given, stride), x, kernel)
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-10, atol=1e-10)


def shifted(x, kernel, stride) -> bool:
    traced = jax.make_jaxpr(lambda *given: windows.convolve(*given, stride))(x, kernel)
    return "custom_vjp" in str(traced)


@pytest.mark.parametrize(
    ("platform", "shape", "kernel", "expected"),
    [
        ("cpu", (4, 28, 28, 64), (3, 3, 64, 8), True),
        ("cpu", (4, 28, 28, 8), (3, 3, 8, 8), False),
        ("cpu", (3, 28, 28, 3), (7, 7, 3, 8), True),
        ("cpu", (1, 20, 20, 64), (3, 3, 64, 8), False),
        ("tpu", (4, 28, 28, 64), (3, 3, 64, 8), False),
        ("gpu", (4, 28, 28, 64), (3, 3, 64, 8), False),
        ("gpu", (4, 28, 28, 3), (7, 7, 3, 8), False),
    ],
)
def test_it_is_taken_on_cpu_where_it_is_worth_it(platform, shape, kernel, expected, monkeypatch):
    monkeypatch.setattr(constrain, "platform", lambda: platform)
    x, kernel = (jax.ShapeDtypeStruct(each, jnp.float32) for each in (shape, kernel))
    assert shifted(x, kernel, 2 if kernel.shape[0] == 7 else 1) == expected
    traced = jax.make_jaxpr(jax.grad(lambda x: windows.max_pool(x).sum()))(x)
    assert ("select_and_scatter" in str(traced)) == (platform != "cpu")


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5), (1, 2)])
def test_the_largest_place_of_a_window_gets_its_gradient(height, width):
    with jax.enable_x64(True):
        x = maps(3, height, width, 4, jnp.float64)
        np.testing.assert_array_equal(windows._shifted_largest(x), windows._pool(x))
        (ours,), (theirs,) = gradients(windows.max_pool, x), gradients(windows._pool, x)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_of_equal_places_the_first_gets_it_and_nan_is_not_lost():
    (of_x,) = gradients(windows.max_pool, jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(of_x[0, :, :, 0], [[1, 0], [0, 0]])
    x = jnp.ones((1, 4, 4, 1)).at[0, 0, 0, 0].set(jnp.nan)
    np.testing.assert_array_equal(windows._shifted_largest(x), windows._pool(x))
    assert jnp.isnan(windows._shifted_largest(x)).sum() == 1
