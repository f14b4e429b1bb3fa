"""Attention that never holds all scores of a sequence: cuDNN's on GPUs, splash on TPUs.

Both take the mask as it is, since packing's is none that they could make themselves: a question
sees the prefix and itself. Splash skips the tiles of it that are empty.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import PartitionSpec as P

from rvllm_jax.sharding import constrain, rules

TILES = (512, 256, 128)  # tokens of a splash tile; the first that divides the sequence is taken
_INFOS = ("fwd_mask_info", "dq_mask_info", "dkv_mask_info")


def choose(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> Callable | None:
    """What `attention.attend` calls instead of the plain products here; None: nothing.

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
    """`attention.attend` -> `[B, T, N, H]` by cuDNN; the mask becomes a bias of all its numbers."""
    mask_B1TS = mask_BTS[:, None]
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=mask_B1TS, implementation="cudnn"
    )


def splash(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """`attention.attend` -> `[B, T, N, H]` by Pallas' splash kernel, of each device's own B and N.

    Every query must see a key. `interpret`: run it in JAX's own operations, as on CPU.
    """
    run = functools.partial(_splash, interpret=interpret)
    heads, masks = P(rules.BATCH_AXES, None, "tensor"), P(rules.BATCH_AXES)
    run = constrain.on_each_device(run, (heads, heads, heads, masks), heads)
    return run(q_BTNH, k_BSKH, v_BSKH, mask_BTS)


def _splash(q_BTNH, k_BSKH, v_BSKH, mask_BTS, *, interpret: bool):
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
            mask_TS[None], block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )
        for name in _INFOS:  # JAX 0.10 makes an array of this flag, and then asks whether it is set
            info = getattr(kernel, name)
            setattr(kernel, name, info._replace(is_dynamic_mask=True))
        return kernel(q_NTH, k_KSH, v_KSH)

    scaled = (q_BTNH * q_BTNH.shape[-1] ** -0.5).astype(q_BTNH.dtype)
    by_head = (x.swapaxes(1, 2) for x in (scaled, k_BSKH, v_BSKH))
    return jax.vmap(attend_one)(*by_head, mask_BTS).swapaxes(1, 2).astype(q_BTNH.dtype)
