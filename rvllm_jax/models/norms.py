"""Normalisation of feature maps: BatchNorm that leaves out padded frames, and GroupNorm.

flax.nnx.BatchNorm averages masked means and keeps a biased running variance. Here the batch is one
set of (sum x, sum x^2, count), so that padding, sharding and pmap all give the statistics of the
real frames alone, and the running variance is unbiased as torch's.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx

MOMENTUM, EPSILON = 0.1, 1e-5  # torch's


def statistics_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype statistics of `dtype` values are held in: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


class BatchNorm(nnx.Module):
    """Batch normalisation over frames and places (Ioffe and Szegedy, 2015, algorithm 1).

    The batch is global: under jit over a sharded batch by itself, under pmap through `axis_name`
    (set on a whole model with `model.set_attributes(BatchNorm, axis_name="data")`).
    """

    def __init__(self, features: int, *, dtype=jnp.float32, param_dtype=jnp.float32):
        self.dtype, self.axis_name, self.keeps_running = dtype, None, False
        self.scale = nnx.Param(jnp.ones(features, param_dtype))
        self.bias = nnx.Param(jnp.zeros(features, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros(features, statistics_dtype(param_dtype)))
        self.var = nnx.BatchStat(jnp.ones(features, statistics_dtype(param_dtype)))

    def __call__(self, x_NhwC: jax.Array, mask_N: jax.Array, *, use_running: bool) -> jax.Array:
        """`dtype[N, h, w, C]`; with `use_running` False it also updates the running statistics,
        unless `keep_running` named this layer.

        Only frames with a true `mask_N` (bool) are counted. Where the global batch has none, the
        running statistics normalise and stay as they are.
        """
        if use_running or self.keeps_running:
            mean_C, var_C = self.mean[...], self.var[...]
        else:
            mean_C, var_C = self._batch_statistics(x_NhwC, mask_N)
        dtype = statistics_dtype(x_NhwC.dtype)
        gain_C = self.scale[...] * jax.lax.rsqrt(var_C + EPSILON)
        shift_C = self.bias[...] - mean_C * gain_C
        y_NhwC = x_NhwC.astype(dtype) * gain_C.astype(dtype) + shift_C.astype(dtype)
        return y_NhwC.astype(self.dtype)

    def _batch_statistics(self, x_NhwC, mask_N):
        dtype = statistics_dtype(x_NhwC.dtype)
        # `where` and not a product: what is in a padded frame must not matter, not even a NaN.
        x_NhwC = jnp.where(mask_N[:, None, None, None], x_NhwC, 0).astype(dtype)
        _, height, width, _ = x_NhwC.shape
        count = jnp.sum(mask_N, dtype=dtype) * (height * width)
        sums = (x_NhwC.sum((0, 1, 2)), jnp.square(x_NhwC).sum((0, 1, 2)), count)
        if self.axis_name is not None:
            sums = jax.lax.psum(sums, self.axis_name)
        total_C, squares_C, count = sums
        mean_C = total_C / jnp.maximum(count, 1)
        # Rounding can take the difference below zero, where a channel is nearly constant.
        var_C = jnp.maximum(squares_C / jnp.maximum(count, 1) - jnp.square(mean_C), 0)
        self._update(mean_C, var_C * count / jnp.maximum(count - 1, 1), count > 0)
        # An empty batch has variance 0: normalising by it would multiply by 316 a layer.
        return (
            jnp.where(count > 0, mean_C, self.mean[...]),
            jnp.where(count > 0, var_C, self.var[...]),
        )

    def _update(self, mean_C, unbiased_var_C, counted):
        for running, new_C in ((self.mean, mean_C), (self.var, unbiased_var_C)):
            old_C = running[...]
            # The running statistics are no path for gradients.
            new_C = jax.lax.stop_gradient(new_C).astype(old_C.dtype)
            mixed_C = (1 - MOMENTUM) * old_C + MOMENTUM * new_C
            running[...] = jnp.where(counted, mixed_C, old_C)


def keep_running(model: nnx.Module, layers: Collection[str]) -> None:
    """Has each BatchNorm of `layers` ("encoder/stem/norm") use and keep its running statistics,
    whatever `use_running` says, and the others follow it."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.keeps_running = "/".join(map(str, path)) in layers


class GroupNorm(nnx.Module):
    """Group normalisation (Wu and He, 2018): each frame alone, so padding needs no mask."""

    def __init__(self, features: int, groups: int, *, dtype=jnp.float32, param_dtype=jnp.float32):
        if features % groups:
            raise ValueError(
                f"GroupNorm: {features} channels do not divide into groups={groups}; choose a "
                f"number of groups that divides every width of the encoder"
            )
        self.groups, self.dtype = groups, dtype
        self.scale = nnx.Param(jnp.ones(features, param_dtype))
        self.bias = nnx.Param(jnp.zeros(features, param_dtype))

    def __call__(self, x_NhwC: jax.Array, mask_N: jax.Array, *, use_running: bool) -> jax.Array:
        """`dtype[N, h, w, C]`, each frame by itself; `mask_N` and `use_running` are BatchNorm's."""
        del mask_N, use_running
        dtype = statistics_dtype(x_NhwC.dtype)
        frames, height, width, features = x_NhwC.shape
        x_NhwGc = x_NhwC.astype(dtype).reshape(frames, height, width, self.groups, -1)
        mean = x_NhwGc.mean((1, 2, 4), keepdims=True)
        var = jnp.square(x_NhwGc - mean).mean((1, 2, 4), keepdims=True)
        x_NhwGc = (x_NhwGc - mean) * jax.lax.rsqrt(var + EPSILON)
        y_NhwC = x_NhwGc.reshape(x_NhwC.shape) * self.scale[...] + self.bias[...]
        return y_NhwC.astype(self.dtype)
