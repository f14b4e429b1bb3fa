"""Convolution and max pooling over windows of a feature map, with gradients that suit CPU.

They are XLA's, but for two gradients on CPU: that of a kernel that is seen from many places (64
frames of 28 x 28 x 64: 4 GFLOP/s, other convolutions 30 to 70), and that of max pooling. There they
are sums over shifted maps, 4 times as fast; of fewer places these are the slower. As a loop over
parts of the batch the first takes 8 times as long again: in loops XLA convolves without threads.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from rvllm_jax.models import placement

MANY = 1 << 15  # places of a batch: frames x height x width of what comes out


def convolve(x_NhwC: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution with `kernel` [k, k, C, O], padded by k // 2 on every side, as torch's."""
    places = x_NhwC.size // (x_NhwC.shape[-1] * stride**2)
    shifted = kernel.shape[0] == 3 and places >= MANY and placement.platform() == "cpu"
    return (_convolve_shifted if shifted else _convolve)(x_NhwC, kernel, stride)


def _convolve(x_NhwC, kernel, stride):
    around = (kernel.shape[0] // 2,) * 2
    return jax.lax.conv_general_dilated(
        x_NhwC,
        kernel,
        window_strides=(stride, stride),
        padding=(around, around),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


_convolve_shifted = jax.custom_vjp(_convolve, nondiff_argnums=(2,))


def _forward(x_NhwC, kernel, stride):
    return _convolve(x_NhwC, kernel, stride), (x_NhwC, kernel)


def _backward(stride, kept, dy_NhwO):
    x_NhwC, kernel = kept
    _, of_x = jax.vjp(lambda x: _convolve(x, kernel, stride), x_NhwC)
    size, _, C, outputs = kernel.shape
    dy_MO = dy_NhwO.reshape(-1, outputs)
    d_kernel = [part.reshape(-1, C).T @ dy_MO for part in _shifts(x_NhwC, size, stride, 0)]
    return *of_x(dy_NhwO), jnp.stack(d_kernel).reshape(kernel.shape)


_convolve_shifted.defvjp(_forward, _backward)


def max_pool(x_NhwC: jax.Array) -> jax.Array:
    """The largest of each 3 x 3 places, every second place, padded by one on every side."""
    return (_pool_shifted if placement.platform() == "cpu" else _pool)(x_NhwC)


def _pool(x_NhwC):
    return nnx.max_pool(x_NhwC, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


def _shifted_largest(x_NhwC):
    def larger(a, b):  # of equal ones the first, which gets the gradient; NaN stays
        return jnp.where((b > a) | jnp.isnan(b), b, a)

    return functools.reduce(larger, _shifts(x_NhwC, 3, 2, -jnp.inf))


_pool_shifted = jax.custom_vjp(_pool)
_pool_shifted.defvjp(lambda x: (_pool(x), x), lambda x, dy: jax.vjp(_shifted_largest, x)[1](dy))


def _shifts(x_NhwC, size: int, stride: int, around: float) -> list[jax.Array]:
    """What each place of a window sees of the map, padded with `around`: size^2 x [N, h, w, C]."""
    edge = (size // 2,) * 2
    padded = jnp.pad(x_NhwC, ((0, 0), edge, edge, (0, 0)), constant_values=around)
    height, width = (-(-n // stride) for n in x_NhwC.shape[1:3])
    return [
        padded[
            :, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride
        ]
        for i in range(size)
        for j in range(size)
    ]
