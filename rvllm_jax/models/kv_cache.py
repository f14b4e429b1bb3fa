"""A key/value cache of static shape: slots are filled in order, whatever stands in them.

A row shorter than its neighbours is padded on the right; its padding takes slots too, marked
PADDING, which nobody sees. So one `length` serves all rows, and a write is one slice.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rvllm_jax.types import PADDING


class KVCache(NamedTuple):
    """Keys and values of the tokens read so far; keys are already rotated."""

    k: jax.Array  # [layers, B, S, K, H]
    v: jax.Array  # [layers, B, S, K, H]
    segments: jax.Array  # int32[B, S]; PADDING also where no token was written yet
    length: jax.Array  # int32; the next free slot


def empty(
    layers: int, batch: int, slots: int, kv_heads: int, head_dim: int, dtype=jnp.float32
) -> KVCache:
    """A cache of `slots` free slots for `batch` rows."""
    shape = (layers, batch, slots, kv_heads, head_dim)
    segments_BS = jnp.full((batch, slots), PADDING, jnp.int32)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), segments_BS, jnp.int32(0))


def repeat(cache: KVCache, times: int) -> KVCache:
    """Each row `times` times in succession: row b becomes rows b*times .. (b+1)*times - 1."""
    return KVCache(
        k=jnp.repeat(cache.k, times, axis=1),
        v=jnp.repeat(cache.v, times, axis=1),
        segments=jnp.repeat(cache.segments, times, axis=0),
        length=cache.length,
    )


def reserve(cache: KVCache, segments_BL: jax.Array) -> KVCache:
    """Marks the next L slots as holding `segments_BL`; `length` stays where they begin.

    Raises ValueError when L exceeds the cache. A cache that only fills up over several calls
    cannot be noticed here (its length is traced), so give it slots for all that will be written.
    """
    slots, new = cache.segments.shape[1], segments_BL.shape[1]
    if new > slots:
        raise ValueError(f"cannot write {new} tokens into a cache of {slots} slots; make it larger")
    segments_BS = jax.lax.dynamic_update_slice_in_dim(
        cache.segments, segments_BL.astype(jnp.int32), cache.length, axis=1
    )
    return cache._replace(segments=segments_BS)


def write_layer(old_BSKH: jax.Array, new_BLKH: jax.Array, length: jax.Array) -> jax.Array:
    """One layer's keys (or values) with those of the new tokens in their slots."""
    new_BLKH = new_BLKH.astype(old_BSKH.dtype)
    return jax.lax.dynamic_update_slice_in_dim(old_BSKH, new_BLKH, length, axis=1)


def write(cache: KVCache, k_new: jax.Array, v_new: jax.Array) -> KVCache:
    """All layers' new keys and values `[layers, B, L, K, H]` written, and `length` moved on.

    One slice at the end of the layer scan instead of a whole cache carried out of it: inside a
    decoding loop XLA then updates the cache in place.
    """

    def put(old, new):
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), cache.length, axis=2)

    length = cache.length + k_new.shape[2]
    return cache._replace(k=put(cache.k, k_new), v=put(cache.v, v_new), length=length)
