"""Grouped-query attention over packed sequences, one function for every device.

A sequence holds a prefix (with the video) and one or more questions behind it. A question sees the
prefix and itself, never its siblings: one sequence gives what as many single ones would give.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rvllm_jax.models import flash
from rvllm_jax.types import PADDING, PREFIX


class SharedPrefix(NamedTuple):
    """Keys and values that several sequences in succession see: of B, the first B / A read number 0
    of these A, the next ones number 1, and so on. So a video's prefix is stored and read once,
    however many questions stand behind it."""

    k: jax.Array  # [A, P, K, H]
    v: jax.Array  # [A, P, K, H]
    mask: jax.Array  # bool[A, P]; what every query sees


class TokenPositions(NamedTuple):
    """Where tokens stand in a sequence: their number in it, and the segment they belong to."""

    index: jax.Array  # int32[B, T]; the order in the sequence or cache, not the RoPE position
    segment: jax.Array  # int32[B, T]; PREFIX, 1.. a question, PADDING


def make_mask(query: TokenPositions, key: TokenPositions) -> jax.Array:
    """Which keys each query sees, as `bool[B, T, S]`; build it once and share it among layers.

    A key is seen when it does not come later and is of the prefix or of the query's question.
    Padding is seen by nobody, but every token sees itself, so that no softmax is over nothing.
    """
    query_index_BT1, key_index_B1S = query.index[:, :, None], key.index[:, None, :]
    query_segment_BT1, key_segment_B1S = query.segment[:, :, None], key.segment[:, None, :]
    related = (key_segment_B1S == PREFIX) | (key_segment_B1S == query_segment_BT1)
    earlier = key_index_B1S <= query_index_BT1
    itself = key_index_B1S == query_index_BT1
    return (earlier & related & (key_segment_B1S != PADDING)) | itself


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array,
    shared: SharedPrefix | None = None,
) -> jax.Array:
    """Scaled dot-product attention -> `[B, T, N, H]` in the dtype of `q_BTNH`; `mask_BTS` is bool.

    Query head n reads key/value head n // (N / K), as Llama orders them; keys and values are not
    repeated. What is `shared` counts as further keys, in front of `k_BSKH`. By cuDNN on GPUs and by
    splash on TPUs where they take the shapes and nothing is shared, else by `products`.
    """
    kernel = None if shared is not None else flash.choose(q_BTNH, k_BSKH, v_BSKH)
    if kernel is not None:
        return kernel(q_BTNH, k_BSKH, v_BSKH, mask_BTS)
    return products(q_BTNH, k_BSKH, v_BSKH, mask_BTS, shared)


def products(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array,
    shared: SharedPrefix | None = None,
) -> jax.Array:
    """`attend` in plain matrix products -> `[B, T, N, H]`, on every device, for every dtype.

    The softmax is taken in float32, or in float64 where the inputs are float64. Keys and values of
    another dtype, as of a cache in bfloat16 beside queries in float32, are rounded where they are
    stored and nowhere else.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    G = N // K
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    # The queries of a group are rows of one matrix product; on CPU XLA takes an einsum over the
    # unfolded axes twice as long.
    q_BKRH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    scores_BKRS = _scores(q_BKRH, k_BSKH, wide)
    if shared is not None:
        A, P = shared.mask.shape
        scores_BKRP = _ungroup(_scores(_group(q_BKRH, A), shared.k, wide), B)
        scores_BKRS = jnp.concatenate([scores_BKRP, scores_BKRS], axis=-1)
        mask_BTP = jnp.broadcast_to(jnp.repeat(shared.mask, B // A, axis=0)[:, None], (B, T, P))
        mask_BTS = jnp.concatenate([mask_BTP, mask_BTS], axis=-1)
    # A finite floor: an infinite one would turn a gradient through an empty row into NaN.
    scores_BKGTS = jnp.where(
        mask_BTS[:, None, None], scores_BKRS.reshape(B, K, G, T, -1), jnp.finfo(wide).min
    )
    probs_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(q_BTNH.dtype)
    probs_BKRS = probs_BKGTS.reshape(B, K, G * T, -1)
    out_BKRH = probs_BKRS[..., -S:] @ v_BSKH.transpose(0, 2, 1, 3)
    if shared is not None:
        probs_AKMP = _group(probs_BKRS[..., :-S], A)
        out_BKRH += _ungroup(probs_AKMP @ shared.v.transpose(0, 2, 1, 3), B)
    out_BKRH = out_BKRH.astype(q_BTNH.dtype)
    return out_BKRH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _scores(q_BKRH: jax.Array, k_BSKH: jax.Array, wide) -> jax.Array:
    k_BKHS = k_BSKH.transpose(0, 2, 3, 1)
    return jnp.matmul(q_BKRH, k_BKHS, preferred_element_type=wide) * (q_BKRH.shape[-1] ** -0.5)


def _group(x_BKRx: jax.Array, A: int) -> jax.Array:
    """What the sequences that read the same of A prefixes hold, as rows of one product."""
    B, K, R, last = x_BKRx.shape
    return x_BKRx.reshape(A, -1, K, R, last).swapaxes(1, 2).reshape(A, K, -1, last)


def _ungroup(x_AKMx: jax.Array, B: int) -> jax.Array:
    """What `_group` put together, as of the B sequences that it was."""
    A, K, _, last = x_AKMx.shape
    return x_AKMx.reshape(A, K, B // A, -1, last).swapaxes(1, 2).reshape(B, K, -1, last)
