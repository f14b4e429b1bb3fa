"""The rules for choosing a token, by their definitions; tests/parity compares with transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.generation.sampling import (
    GREEDY,
    Sampling,
    keep_top_k,
    keep_top_p,
    next_token,
    penalise,
    processed,
    seen_tokens,
)

LOGITS = np.random.default_rng(0).normal(0, 3, (5, 23)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="sampling")
def drawn(logits, seeds, step, sampling, seen=None):
    return next_token(logits, seen, seeds, step, sampling)


def test_temperature_0_takes_the_likeliest():
    sampling = Sampling(top_k=3, top_p=0.1)
    ids = drawn(LOGITS, jnp.zeros(5, jnp.uint32), 0, sampling)
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, LOGITS.argmax(-1))


@pytest.mark.parametrize("k", [1, 4, 23, 100])
def test_top_k_keeps_k_tokens(k):
    kept = np.isfinite(keep_top_k(LOGITS, k))
    np.testing.assert_array_equal(kept.sum(-1), min(k, 23))
    for row, mask in zip(LOGITS, kept, strict=True):
        assert row[mask].min() > np.append(row[~mask], -np.inf).max()


def test_top_k_keeps_ties_with_the_last():
    assert np.isfinite(keep_top_k(np.array([[1.0, 2.0, 1.0, 0.0]]), 2)).tolist() == [
        [True, True, True, False]
    ]


@pytest.mark.parametrize("p", [1e-9, 1e-6, 0.3, 0.9, 0.999])  # 1 - 1e-9 is 1 in float32
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    kept = np.isfinite(keep_top_p(LOGITS, p))
    for row, mask in zip(LOGITS.astype(np.float64), kept, strict=True):
        probs = np.exp(row) / np.exp(row).sum()
        assert probs[mask].sum() >= p - 1e-6
        assert probs[mask].sum() - probs[mask].min() < p + 1e-6
        assert probs[mask].min() > np.append(probs[~mask], 0).max()


def test_the_penalty_lowers_what_was_seen_and_nothing_else():
    seen = np.asarray(seen_tokens(np.array([[3, 5, 9]]), np.array([[True, True, False]]), 23))
    assert np.flatnonzero(seen).tolist() == [3, 5]
    logits = np.array(LOGITS[:1])
    logits[0, 3], logits[0, 5] = 4.0, -4.0
    lowered = np.asarray(penalise(logits, seen, 2.0))
    assert lowered[0, [3, 5]].tolist() == [2.0, -8.0]
    np.testing.assert_array_equal(lowered[~seen], logits[~seen])


def test_the_temperature_divides_the_logits_before_the_likeliest_are_kept():
    np.testing.assert_allclose(processed(LOGITS, None, Sampling(temperature=0.5)), LOGITS / 0.5)
    kept = processed(LOGITS, None, Sampling(temperature=0.5, top_p=0.9))
    np.testing.assert_array_equal(kept, keep_top_p(LOGITS / 0.5, 0.9))
    assert (np.isfinite(kept) != np.isfinite(keep_top_p(LOGITS, 0.9))).any()


def test_tokens_come_as_often_as_their_probability():
    """20,000 draws; a share's standard deviation is below 0.0036."""
    sampling = Sampling(temperature=0.7, top_k=6, top_p=0.95)
    logits, count = LOGITS[:1] / 3, 20_000
    probs = jax.nn.softmax(processed(logits, None, sampling), axis=-1)[0]
    ids = drawn(jnp.repeat(logits, count, 0), jnp.arange(count, dtype=jnp.uint32), 3, sampling)
    shares = np.bincount(ids, minlength=23) / count
    assert 3 <= (probs > 0).sum() <= 6
    np.testing.assert_allclose(shares, probs, atol=0.015)
    assert (shares[probs == 0] == 0).all()


def test_a_row_depends_on_its_seed_and_the_step_alone():
    sampling = Sampling(temperature=2.0, top_p=0.99)
    seeds = jnp.arange(5, dtype=jnp.uint32)
    order = np.array([3, 1, 4])

    def both(step):
        return drawn(LOGITS, seeds, step, sampling), drawn(
            LOGITS[order], seeds[order], step, sampling
        )

    for step in range(8):
        ids, others = both(step)
        np.testing.assert_array_equal(ids[order], others)
    same = jnp.tile(LOGITS[:1], (40, 1))
    assert len(set(drawn(same, jnp.arange(40, dtype=jnp.uint32), 0, sampling).tolist())) > 3
    assert len({int(drawn(same[:1], seeds[:1], step, sampling)[0]) for step in range(40)}) > 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"repetition_penalty": 0.0},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        Sampling(**wrong)
    assert hash(GREEDY) == hash(Sampling())
