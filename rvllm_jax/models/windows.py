"""Convolution and max pooling over windows of a feature map, with gradients that suit CPU.

They are XLA's, but for two gradients on CPU, which are taken as sums over shifted maps: that of max
pooling, and that of a kernel. XLA convolves for the latter, on one core where channels are few (64
frames of 28 x 28 x 64: 860 ms, shifted 65; the stem's 112 x 112 x 3: 460 and 124). Such maps are
worth it where freed memory is kept (system/malloc.py): else the system clears it every time.
No help: a kernel for two columns at once, the maps of all nine places of a window in one product,
the stem over 2 x 2 places in the forward pass, parts of the batch apart (in loops XLA convolves
without threads), the library fusions that XLA offers as compiler options.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from rvllm_jax.sharding import constrain

MANY = 512  # places of a batch, frames x height x width of what comes out, that are worth it


def convolve(x_NhwC: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution with `kernel` [k, k, C, O], padded by k // 2 on every side, as torch's."""
    size, _, inputs, _ = kernel.shape
    places = x_NhwC.size // (inputs * stride**2)
    worth_it = places >= MANY and (size == 3 and inputs >= 16 or (size, stride) == (7, 2))
    shifted = worth_it and constrain.platform() == "cpu"
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
    size = kernel.shape[0]
    if size == 7:
        d_kernel = _stem_kernel_gradient(x_NhwC, dy_NhwO)
    else:
        d_kernel = _kernel_gradient(_padded(x_NhwC, size), dy_NhwO, size, stride)
    return *of_x(dy_NhwO), d_kernel


def _kernel_gradient(x_NhwC, dy_NhwO, size, stride):
    """[size, size, C, O]; the places of a window that lie side by side go into one product."""
    _, height, width, outputs = dy_NhwO.shape
    sides = [_every(x_NhwC, 2, j, width, stride) for j in range(size)]
    side_by_side, dy_MO = jnp.concatenate(sides, -1), dy_NhwO.reshape(-1, outputs)
    rows = [
        dy_MO.T @ _every(side_by_side, 1, i, height, stride).reshape(dy_MO.shape[0], -1)
        for i in range(size)
    ]
    return jnp.stack(rows).reshape(size, outputs, size, -1).transpose(0, 2, 3, 1)


def _stem_kernel_gradient(x_NHWC, dy_NhwO):
    """[7, 7, C, O] at stride 2: as of 4 x 4 at stride 1 over places of 2 x 2, each 4C channels."""
    N, H, W, C = x_NHWC.shape
    padded = jnp.pad(x_NHWC, ((0, 0), (3, 3 + H % 2), (3, 3 + W % 2), (0, 0)))
    height, width = padded.shape[1] // 2, padded.shape[2] // 2
    places = padded.reshape(N, height, 2, width, 2, C).transpose(0, 1, 3, 2, 4, 5)
    d_kernel = _kernel_gradient(places.reshape(N, height, width, 4 * C), dy_NhwO, 4, 1)
    d_kernel = d_kernel.reshape(4, 4, 2, 2, C, -1).transpose(0, 2, 1, 3, 4, 5)
    return d_kernel.reshape(8, 8, C, -1)[:7, :7]


_convolve_shifted.defvjp(_forward, _backward)


def max_pool(x_NhwC: jax.Array) -> jax.Array:
    """The largest of each 3 x 3 places, every second place: `[N, h, w, C]` -> `[N, h/2, w/2, C]`,
    padded by one on every side."""
    return (_pool_shifted if constrain.platform() == "cpu" else _pool)(x_NhwC)


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
    padded = _padded(x_NhwC, size, around)
    height, width = (-(-n // stride) for n in x_NhwC.shape[1:3])
    rows = [_every(padded, 1, i, height, stride) for i in range(size)]
    return [_every(row, 2, j, width, stride) for row in rows for j in range(size)]


def _padded(x_NhwC, size: int, around: float = 0):
    edge = (size // 2,) * 2
    return jnp.pad(x_NhwC, ((0, 0), edge, edge, (0, 0)), constant_values=around)


def _every(x, axis: int, start: int, count: int, stride: int):
    """`count` places of an axis from `start` on, each `stride`-th."""
    return jax.lax.slice_in_dim(x, start, start + stride * (count - 1) + 1, stride, axis)
