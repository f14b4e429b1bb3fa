"""The loss is a weighted sum of cross entropies, however the sequences are cut."""

import re

import jax
import numpy as np
import pytest

from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama import Llama
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.loss import token_loss_sum

LLAMA = LlamaConfig(40, 16, 1, 2, 1, 8, 24, context=32)
B, L = 2, 20


@pytest.fixture(scope="module")
def loss_of():
    """chunk -> the loss as a function of hidden states and parameters."""
    model = FunctionalModel.of(lambda rngs: Llama(LLAMA, rngs=rngs))
    params, _ = jax.jit(model.init)(jax.random.key(0))
    targets = np.random.default_rng(0).integers(0, LLAMA.vocab_size, (B, L)).astype(np.int32)
    weights = np.random.default_rng(1).random((B, L)).astype(np.float32)
    hidden = np.random.default_rng(2).normal(size=(B, L, LLAMA.width)).astype(np.float32)

    def make(chunk):
        def loss(params, hidden):
            return token_loss_sum(model.merge(params, {}), hidden, targets, weights, chunk)

        return jax.value_and_grad(loss, argnums=(0, 1)), (params, hidden), (targets, weights)

    return make


def test_loss_is_the_weighted_sum_of_cross_entropies(loss_of):
    run, (params, hidden), (targets, weights) = loss_of(0)
    logits = np.float64(hidden) @ np.float64(params["head/kernel"])
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    right = np.take_along_axis(probs, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(run(params, hidden)[0], -(weights * np.log(right)).sum(), rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 10, 64])
def test_chunks_change_nothing(loss_of, chunk):
    whole, inputs, _ = loss_of(0)
    chunked, _, _ = loss_of(chunk)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.jit(chunked)(*inputs),
        jax.jit(whole)(*inputs),
    )


def test_full_logits_are_never_held(loss_of):
    """No array of the program, forwards or backwards, has B x L x vocabulary elements."""

    def largest_of_vocabulary(chunk):
        run, inputs, _ = loss_of(chunk)
        shapes = re.findall(r"f32\[([\d,]+)\]", str(jax.make_jaxpr(run)(*inputs)))
        sizes = [[int(n) for n in shape.split(",")] for shape in shapes]
        return max(np.prod(size) for size in sizes if LLAMA.vocab_size in size[-1:])

    assert largest_of_vocabulary(0) == B * L * LLAMA.vocab_size
    # A kernel of [width, vocabulary] stays; the logits are smaller.
    assert largest_of_vocabulary(4) == max(B * 4, LLAMA.width) * LLAMA.vocab_size
