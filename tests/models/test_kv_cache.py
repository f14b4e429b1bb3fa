import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.models import kv_cache
from rvllm_jax.types import PADDING

LAYERS, B, SLOTS, K, H = 2, 2, 6, 1, 3


def numbered(tokens: int, start: int) -> jnp.ndarray:
    """[layers, B, tokens, K, H] with a different number everywhere."""
    shape = (LAYERS, B, tokens, K, H)
    return (start + jnp.arange(np.prod(shape))).reshape(shape).astype(jnp.float32)


def filled() -> kv_cache.KVCache:
    """Two tokens, then one, the second of row 1 being padding."""
    cache = kv_cache.empty(LAYERS, B, SLOTS, K, H)
    cache = kv_cache.reserve(cache, jnp.array([[0, 0], [0, PADDING]]))
    cache = kv_cache.write(cache, numbered(2, 100), numbered(2, 200))
    cache = kv_cache.reserve(cache, jnp.array([[1], [1]]))
    return kv_cache.write(cache, numbered(1, 300), numbered(1, 400))


def test_writes_follow_each_other():
    cache = filled()
    assert cache.length == 3
    np.testing.assert_array_equal(cache.k[:, :, :2], numbered(2, 100))
    np.testing.assert_array_equal(cache.v[:, :, :2], numbered(2, 200))
    np.testing.assert_array_equal(cache.k[:, :, 2:3], numbered(1, 300))
    np.testing.assert_array_equal(cache.v[:, :, 2:3], numbered(1, 400))
    np.testing.assert_array_equal(cache.k[:, :, 3:], 0)
    np.testing.assert_array_equal(
        cache.segments, [[0, 0, 1, PADDING, PADDING, PADDING], [0, PADDING, 1] + [PADDING] * 3]
    )


def test_repeat_keeps_a_videos_questions_together():
    cache, twice = filled(), kv_cache.repeat(filled(), 2)
    assert twice.length == cache.length
    for row in range(2 * B):
        np.testing.assert_array_equal(twice.k[:, row], cache.k[:, row // 2])
        np.testing.assert_array_equal(twice.v[:, row], cache.v[:, row // 2])
        np.testing.assert_array_equal(twice.segments[row], cache.segments[row // 2])


@pytest.mark.parametrize("stacked", [True, False])
def test_rows_behind_a_prefix_leave_it_where_it_is(stacked):
    prefix = kv_cache.empty(LAYERS, B, SLOTS, K, H, jnp.bfloat16, stacked=stacked)
    cache = kv_cache.behind(prefix, 3, 4)
    assert cache.shared is prefix and cache.length == 0 and len(cache.k) == LAYERS
    for layer in (*cache.k, *cache.v):
        assert layer.shape == (3 * B, 4, K, H) and layer.dtype == jnp.bfloat16
    later = kv_cache.grow(kv_cache.repeat(cache, 2), 5)
    assert later.shared is prefix and later.segments.shape == (6 * B, 5)


def test_more_tokens_than_slots_are_refused():
    with pytest.raises(ValueError, match="7 tokens into a cache of 6 slots"):
        kv_cache.reserve(filled(), jnp.zeros((B, SLOTS + 1), jnp.int32))


def test_layers_apart_hold_what_the_stack_holds():
    stacked = filled()
    apart = kv_cache.empty(LAYERS, B, SLOTS, K, H, stacked=False)
    for tokens, segments in ((2, [[0, 0], [0, PADDING]]), (1, [[1], [1]])):
        start = 100 if tokens == 2 else 300
        apart = kv_cache.reserve(apart, jnp.array(segments))
        new = (tuple(numbered(tokens, start + more)) for more in (0, 100))
        apart = kv_cache.write(apart, *new)
    for one, other in ((stacked, apart), (kv_cache.repeat(stacked, 2), kv_cache.repeat(apart, 2))):
        np.testing.assert_array_equal(one.k, np.stack(other.k))
        np.testing.assert_array_equal(one.v, np.stack(other.v))
        np.testing.assert_array_equal(one.segments, other.segments)


def test_a_grown_cache_keeps_what_it_holds():
    cache, grown = filled(), kv_cache.grow(filled(), SLOTS + 2)
    np.testing.assert_array_equal(grown.k[:, :, :SLOTS], cache.k)
    np.testing.assert_array_equal(grown.k[:, :, SLOTS:], 0)
    np.testing.assert_array_equal(grown.segments[:, SLOTS:], PADDING)
    assert grown.length == cache.length and kv_cache.grow(cache, SLOTS) is cache
    with pytest.raises(ValueError, match="6 slots one of 5"):
        kv_cache.grow(cache, SLOTS - 1)
