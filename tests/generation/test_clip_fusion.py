"""How several views give one answer: the mean of probabilities, and the vote."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np

from rvllm_jax.generation import clip_fusion
from rvllm_jax.generation.clip_fusion import fuse, vote


def test_fused_probabilities_are_the_weighted_mean():
    rng = np.random.default_rng(5)
    logits, weights = rng.normal(0, 4, (2, 3, 2, 9)), rng.uniform(0, 2, (2, 3, 2))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = (weights[..., None] * probs).sum(1) / weights.sum(1)[..., None]
    fused = fuse(jnp.asarray(logits.reshape(12, 9)), jnp.asarray(weights))
    np.testing.assert_allclose(jax.nn.softmax(fused), expected.reshape(4, 9), rtol=1e-12)


def test_equal_views_give_the_logits_of_one_and_views_of_no_weight_count_alike():
    rng = np.random.default_rng(6)
    logits = rng.normal(0, 4, (1, 1, 2, 9))
    equal = jnp.asarray(np.repeat(logits, 3, axis=1).reshape(6, 9))
    np.testing.assert_allclose(fuse(equal, jnp.ones((1, 3, 2))), logits[0, 0], rtol=1e-12)
    np.testing.assert_allclose(fuse(equal, jnp.zeros((1, 3, 2))), logits[0, 0], rtol=1e-12)


def test_the_commonest_answer_counts_and_of_equally_common_ones_the_earliest():
    assert vote(["left", "up", "up", "left"], [1] * 4) == 0
    assert vote(["left", "up", "up", "left"], [1, 2, 1, 1]) == 1
    assert vote(["", "up", ""], [1, 1, 1]) == 0
    assert doctest.testmod(clip_fusion).failed == 0
