"""A key/value cache of static shape: slots are filled in order, whatever stands in them.

A sequence shorter than its neighbours is padded on the right; its padding takes slots too, marked
PADDING, which nobody sees. So one `length` serves all sequences, and a write is one slice.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rvllm_jax.types import PADDING


class KVCache(NamedTuple):
    """Keys and values of the tokens read so far; keys are already rotated.

    One array for all layers for a decoder that scans over them, one for each layer for one that
    does not.
    """

    k: jax.Array | tuple[jax.Array, ...]  # [layers, B, S, K, H], or layers times [B, S, K, H]
    v: jax.Array | tuple[jax.Array, ...]
    segments: jax.Array  # int32[B, S]; PADDING also where no token was written yet
    length: jax.Array  # int32; the next free slot
    shared: "KVCache | None" = None  # the prefixes in front of the sequences (`behind`)


def empty(
    layers: int,
    batch: int,
    slots: int,
    kv_heads: int,
    head_dim: int,
    dtype=jnp.float32,
    *,
    stacked: bool = True,
) -> KVCache:
    """A cache `dtype[layers, batch, slots, kv_heads, head_dim]` of free slots; not `stacked`: a
    tuple of arrays without the first dimension."""
    shape = (batch, slots, kv_heads, head_dim)

    def zeros():
        if stacked:
            return jnp.zeros((layers, *shape), dtype)
        return tuple(jnp.zeros(shape, dtype) for _ in range(layers))

    segments_BS = jnp.full((batch, slots), PADDING, jnp.int32)
    return KVCache(zeros(), zeros(), segments_BS, jnp.int32(0))


def behind(prefix: KVCache, times: int, slots: int) -> KVCache:
    """An empty cache of `slots` slots for `times` sequences in succession behind each of `prefix`.

    The prefixes `[layers, B, P, K, H]` stay where they are and are read there; the new arrays are
    `[layers, B * times, slots, K, H]`. `prefix` must hold nothing but prefixes.
    """
    first, stacked = prefix.k[0], not isinstance(prefix.k, tuple)
    batch, _, *heads = first.shape
    cache = empty(len(prefix.k), batch * times, slots, *heads, first.dtype, stacked=stacked)
    return cache._replace(shared=prefix)


def repeat(cache: KVCache, times: int) -> KVCache:
    """`[..., B, S, K, H]` -> `[..., B * times, S, K, H]`: b becomes b*times .. (b+1)*times - 1."""
    if times == 1:
        return cache

    def repeated(x):
        return jnp.repeat(x, times, axis=x.ndim - 4)

    return cache._replace(
        k=jax.tree.map(repeated, cache.k),
        v=jax.tree.map(repeated, cache.v),
        segments=jnp.repeat(cache.segments, times, axis=0),
    )


def grow(cache: KVCache, slots: int) -> KVCache:
    """`[..., B, S, K, H]` -> `[..., B, slots, K, H]`; the cache itself where S is `slots`.

    Raises ValueError when it has more.
    """
    old = cache.segments.shape[1]
    if slots < old:
        raise ValueError(f"cannot make a cache of {old} slots one of {slots}")
    if slots == old:
        return cache

    def longer(x, axis, value=0):
        widths = [(0, slots - old if axis == i else 0) for i in range(x.ndim)]
        return jnp.pad(x, widths, constant_values=value)

    return cache._replace(
        k=jax.tree.map(lambda x: longer(x, x.ndim - 3), cache.k),
        v=jax.tree.map(lambda x: longer(x, x.ndim - 3), cache.v),
        segments=longer(cache.segments, 1, PADDING),
    )


def reserve(cache: KVCache, segments_BL: jax.Array) -> KVCache:
    """Marks the next L slots as holding int32[B, L]; `length` stays where they begin.

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


def write_slots(old: jax.Array, new: jax.Array, length: jax.Array) -> jax.Array:
    """Keys or values `[..., B, S, K, H]` with L new ones, `[..., B, L, K, H]`, from `length` on."""
    new = new.astype(old.dtype)
    return jax.lax.dynamic_update_slice_in_dim(old, new, length, axis=old.ndim - 3)


def write(cache: KVCache, k_new, v_new) -> KVCache:
    """All layers' new keys and values `[layers, B, L, K, H]` written, and `length` moved on.

    One slice at the end of the layer scan instead of a whole cache carried out of it: inside a
    decoding loop XLA then updates the cache in place. Where each layer has an array of its own, so
    have the new keys and values, `[B, L, K, H]` each.
    """

    def put(old, new):
        return write_slots(old, new, cache.length)

    length = cache.length + jax.tree.leaves(k_new)[0].shape[-3]
    k, v = jax.tree.map(put, cache.k, k_new), jax.tree.map(put, cache.v, v_new)
    return cache._replace(k=k, v=v, length=length)
