"""The training loss: cross entropy of the answer's tokens, without all logits at once."""

import jax
import jax.numpy as jnp

from rvllm_jax.models.llama import Llama


def token_loss_sum(
    decoder: Llama,
    hidden_BLD: jax.Array,
    targets_BL: jax.Array,
    weights_BL: jax.Array,
    chunk: int = 0,
) -> jax.Array:
    """Sum over all tokens of weight times cross entropy: a scalar in float32 or better.

    targets_BL: int32; weights_BL: float32. `chunk` tokens of every sequence are taken at a time,
    their logits `[B, chunk, vocab]` recomputed in the backward pass, so that there are never all
    logits at once; 0 takes all. The chunks cut sequences, not the batch: a mesh may split that.
    """
    L = hidden_BLD.shape[1]
    if chunk <= 0 or chunk >= L:
        return _cross_entropy_sum(decoder, hidden_BLD, targets_BL, weights_BL)

    def cut(x):  # [B, L, ...] -> [chunks, B, chunk, ...], padded with weight 0
        padding = [(0, 0), (0, -L % chunk)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding)
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    def add(total, part):
        return total + _cross_entropy_sum(decoder, *part), None

    wide = jnp.promote_types(hidden_BLD.dtype, jnp.float32)
    parts = (cut(hidden_BLD), cut(targets_BL), cut(weights_BL))
    total, _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), jnp.zeros((), wide), parts)
    return total


def _cross_entropy_sum(decoder, hidden, targets, weights):
    logits = decoder.logits(hidden)
    right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(weights * (jax.nn.logsumexp(logits, axis=-1) - right))
