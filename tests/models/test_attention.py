import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.models.attention import SharedPrefix, TokenPositions, attend, make_mask
from rvllm_jax.types import PADDING, PREFIX


def where(segments) -> TokenPositions:
    segments = jnp.asarray(segments, jnp.int32)
    return TokenPositions(jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape), segments)


def test_mask_of_a_packed_row():
    row = where([[PREFIX, PREFIX, 1, 1, 2, 2, PADDING, PADDING]])
    expected = [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],  # the second question does not see the first
        [1, 1, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 0],  # padding sees itself, so its softmax is not empty,
        [1, 1, 0, 0, 0, 0, 0, 1],  # but no other padding
    ]
    np.testing.assert_array_equal(make_mask(row, row)[0], np.array(expected, bool))


def test_mask_onto_a_cache():
    """Padding inside a cache and slots not yet written are seen by nobody."""
    key = where([[PREFIX, PADDING, 1, 1, PADDING]])
    query = TokenPositions(jnp.array([[2, 3]]), jnp.array([[1, 1]]))
    np.testing.assert_array_equal(
        make_mask(query, key)[0], np.array([[1, 0, 1, 0, 0], [1, 0, 1, 1, 0]], bool)
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attend_is_softmax_of_scaled_products(kv_heads):
    """Against the formula, written out head by head in numpy."""
    B, T, S, N, H = 2, 3, 5, 4, 6
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(B, T, N, H)), rng.normal(size=(B, S, kv_heads, H))
    v, mask = rng.normal(size=(B, S, kv_heads, H)), rng.random((B, T, S)) < 0.6
    mask[..., 0] = True
    expected = np.zeros((B, T, N, H))
    for b, t, n in np.ndindex(B, T, N):
        head = n // (N // kv_heads)
        weights = np.exp(k[b, :, head] @ q[b, t, n] / np.sqrt(H)) * mask[b, t]
        expected[b, t, n] = weights @ v[b, :, head] / weights.sum()
    with jax.enable_x64(True):
        np.testing.assert_allclose(attend(q, k, v, mask), expected, rtol=1e-12)


@pytest.mark.parametrize("rows_of_one", [1, 3])
def test_shared_keys_count_as_keys_of_each_row_that_reads_them(rows_of_one):
    A, T, S, P, N, K, H = 2, 3, 5, 4, 4, 2, 6
    B, rng = A * rows_of_one, np.random.default_rng(0)
    q, own, before = (
        rng.normal(size=shape) for shape in ((B, T, N, H), (2, B, S, K, H), (2, A, P, K, H))
    )
    mask, seen = rng.random((B, T, S)) < 0.6, rng.random((A, P)) < 0.6
    mask[..., 0] = True
    assert seen.any() and not seen.all()
    repeated, seen_BP = (np.repeat(x, rows_of_one, axis) for x, axis in ((before, 1), (seen, 0)))
    k, v = np.concatenate([repeated, own], axis=2)
    both = np.concatenate([np.broadcast_to(seen_BP[:, None], (B, T, P)), mask], axis=-1)
    with jax.enable_x64(True):
        expected = attend(q, k, v, both)
        shared = SharedPrefix(*map(jnp.asarray, (*before, seen)))
        np.testing.assert_allclose(attend(q, *own, mask, shared), expected, rtol=1e-12)


def test_scores_are_taken_in_float32():
    """Scores of 181.02 and 181.37 would be one number in bfloat16."""
    q, k = jnp.array([16.0, 1.0]), jnp.array([[16.0, 0.0], [16.0, 0.5]])
    q_BTNH, k_BSKH = q[None, None, None], k[None, :, None]
    v_BSKH = jnp.array([[0.0, 0.0], [1.0, 1.0]])[None, :, None]
    out = attend(
        *(x.astype(jnp.bfloat16) for x in (q_BTNH, k_BSKH, v_BSKH)), jnp.ones((1, 1, 2), bool)
    )
    assert out.dtype == jnp.bfloat16
    expected = 1 / (1 + np.exp(-0.5 / np.sqrt(2)))
    np.testing.assert_allclose(out.astype(jnp.float32), expected, rtol=0.005)


@pytest.mark.parametrize("queries, cache", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_cache_of_another_dtype_is_rounded_where_it_is_stored_alone(queries, cache):
    rng = np.random.default_rng(2)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 6, 2, 8)), jnp.float32) for _ in range(3))
    mask = jnp.tril(jnp.ones((1, 6, 6), bool))
    q, k, v = q.astype(queries), k.astype(cache), v.astype(cache)
    out = attend(q, k, v, mask)
    assert out.dtype == q.dtype
    exact = attend(*(x.astype(jnp.float32) for x in (q, k, v)), mask)
    tolerance = 1e-6 if queries == "float32" else 2**-6
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=tolerance, atol=tolerance)
