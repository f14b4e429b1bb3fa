"""Sampling follows transformers' logits processors, in their order, on random logits."""

import functools

import jax
import numpy as np
import pytest

from rvllm_jax.generation.sampling import Sampling, processed, seen_tokens

torch = pytest.importorskip("torch", reason="the extra `parity` holds torch")
transformers = pytest.importorskip("transformers", reason="a requirement of the package")

SAMPLINGS = [
    Sampling(temperature=0.3),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.7, top_k=50),
    Sampling(temperature=1.0, top_p=0.9),
    Sampling(temperature=0.8, top_p=0.05),
    Sampling(temperature=1.0, repetition_penalty=1.3),
    Sampling(temperature=0.7, top_k=40, top_p=0.95, repetition_penalty=1.2),
    Sampling(temperature=1.3, top_k=2000, top_p=0.5, repetition_penalty=0.8),
]


def theirs(logits, prompt, sampling):
    """The processed logits by transformers, with the processors that `generate` would build."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=8,
            hidden_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=4,
        )
    )
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
    )
    processors = model._get_logits_processor(config, prompt.shape[1])
    return processors(torch.tensor(prompt), torch.tensor(logits)).numpy()


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_processed_logits(sampling):
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, 5000, (6, 300))
    logits = rng.normal(0, 3, (6, 5000)).astype(np.float32)
    ours = jax.jit(functools.partial(processed, sampling=sampling))(
        logits, seen_tokens(prompt, np.ones(prompt.shape, bool), 5000)
    )
    expected = theirs(logits, prompt, sampling)
    # The two add up a probability in another order: at the edge of top-p one token may differ.
    differ = np.isfinite(ours) != np.isfinite(expected)
    assert differ.sum() <= 1 and np.isfinite(expected).sum() >= 6
    if sampling.top_k or sampling.top_p < 1:
        assert not np.isfinite(expected).all()
    there = np.isfinite(expected) & ~differ
    np.testing.assert_allclose(np.asarray(ours)[there], expected[there], rtol=1e-6)
