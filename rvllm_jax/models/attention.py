"""Grouped-query attention over packed sequences, one function for every device.

A sequence holds a prefix (with the video) and one or more questions behind it. A question sees the
prefix and itself, never its siblings: one sequence gives what as many single ones would give.

cuDNN on GPUs and splash on TPUs never hold all scores of a sequence. Both take the mask as it is,
since packing's is none that they could make themselves.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import PartitionSpec as P

from rvllm_jax.sharding import constrain, rules
from rvllm_jax.types import PADDING, PREFIX

TILES = (512, 256, 128)  # tokens of a splash tile; the first that divides the sequence is taken
_INFOS = ("fwd_mask_info", "dq_mask_info", "dkv_mask_info")


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
    kernel = None if shared is not None else choose(q_BTNH, k_BSKH, v_BSKH)
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


def choose(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> Callable | None:
    """What `attend` calls instead of the plain products here; None: nothing.

    For queries `[B, T, N, H]`, keys and values `[B, S, K, H]`. Splash takes T and S that are
    multiples of 128, H that is a multiple of 64, and B, N and K that divide over the mesh; cuDNN
    takes 16 bits and H of 128 at most. A step of decoding, one token, is left to XLA: it is bound
    by reading the cache.
    """
    q, k = q_BTNH, k_BSKH
    if not q.dtype == k.dtype == v_BSKH.dtype:
        return None
    kernel = of_shapes(constrain.platform(), q.dtype, (q.shape[1], k.shape[1]), q.shape[3])
    if kernel is splash and not constrain.divides(len(q), q.shape[2], k.shape[2]):
        return None
    return None if kernel is cudnn and not _has_cudnn() else kernel


def of_shapes(platform: str, dtype, tokens: tuple[int, int], head_dim: int) -> Callable | None:
    """What that platform runs for so many (queries, keys) of a sequence; None: the products."""
    if tokens[0] == 1:
        return None
    if platform == "tpu" and dtype in (jnp.bfloat16, jnp.float32):
        fits = all(size % TILES[-1] == 0 for size in tokens) and head_dim % 64 == 0
        return splash if fits else None
    if platform == "gpu" and dtype in (jnp.bfloat16, jnp.float16):
        return cudnn if head_dim % 8 == 0 and head_dim <= 128 else None
    return None


@functools.cache
def _has_cudnn() -> bool:
    """Whether cuDNN's attention can be had, by tracing the smallest one; warns once if not."""
    one = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((1, 64, 64), jnp.bool_)
    try:
        jax.eval_shape(cudnn, one, one, one, mask)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        logging.warning("attention by XLA, which takes more memory: no cuDNN's (%s)", error)
        return False
    return True


def cudnn(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """`attend` -> `[B, T, N, H]` by cuDNN; the mask becomes a bias of all its numbers."""
    mask_B1TS = mask_BTS[:, None]
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=mask_B1TS, implementation="cudnn"
    )


def splash(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """`attend` -> `[B, T, N, H]` by Pallas' splash kernel, of each device's own B and N.

    It skips the tiles of the mask that are empty; every query must see a key. On CPU it is run in
    JAX's own operations.
    """
    heads, masks = P(rules.BATCH_AXES, None, "tensor"), P(rules.BATCH_AXES)
    run = constrain.on_each_device(_splash, (heads, heads, heads, masks), heads)
    return run(q_BTNH, k_BSKH, v_BSKH, mask_BTS)


def _splash(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
    # Pallas takes most of a second to import, which all but TPUs would spend for nothing.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    def tile(size: int) -> int:
        return next(tile for tile in TILES if size % tile == 0)

    query, key = (tile(size) for size in mask_BTS.shape[1:])
    sizes = splash_attention_kernel.BlockSizes(
        block_q=query, block_q_dq=query, block_q_dkv=query,
        block_kv=key, block_kv_dq=key, block_kv_dkv=key,
    )  # fmt: skip

    def attend_one(q_NTH, k_KSH, v_KSH, mask_TS):
        kernel = splash_attention_kernel.make_splash_mha(
            mask_TS[None],
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=constrain.platform() == "cpu",
        )
        for name in _INFOS:  # JAX 0.10 makes an array of this flag, and then asks whether it is set
            info = getattr(kernel, name)
            setattr(kernel, name, info._replace(is_dynamic_mask=True))
        return kernel(q_NTH, k_KSH, v_KSH)

    scaled = (q_BTNH * q_BTNH.shape[-1] ** -0.5).astype(q_BTNH.dtype)
    by_head = (x.swapaxes(1, 2) for x in (scaled, k_BSKH, v_BSKH))
    return jax.vmap(attend_one)(*by_head, mask_BTS).swapaxes(1, 2).astype(q_BTNH.dtype)
