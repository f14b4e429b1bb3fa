"""Adapters beside the decoder's matrices are the matrices with alpha / rank * A B added."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.models.llama import Llama
from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.models.lora import (
    MATRICES,
    LoRA,
    adapt,
    adapted,
    is_adapter,
    merged,
    without_adapters,
)
from rvllm_jax.types import PREFIX

CONFIG = LlamaConfig(50, 16, 5, 4, 2, 6, 24, context=32)  # 5 layers: a true loop
TWO = LoRA(rank=3, alpha=7.5, targets="attention/(q|v)")
ALL = LoRA(rank=2, alpha=5.0, targets=".*")
POSITIONS, SEGMENTS = np.arange(7)[None], np.full((1, 7), PREFIX, np.int32)


def model_of(lora, dtype=jnp.float64, **kinds) -> FunctionalModel:
    def make(rngs):
        decoder = Llama(CONFIG, rngs=rngs, **({"dtype": dtype, "param_dtype": dtype} | kinds))
        if lora is not None:
            adapt(decoder, lora, rngs=rngs)
        return decoder

    return FunctionalModel.of(make)


def some(model: FunctionalModel, seed=0) -> dict:
    """Parameters by path, B among them, so that every matrix matters."""
    rng = np.random.default_rng(seed)
    return {
        path: jnp.asarray(rng.normal(1.0 if path.endswith("scale") else 0.0, 0.4, x.shape), x.dtype)
        for path, x in model.params.items()
    }


def logits(model: FunctionalModel, params: dict) -> jax.Array:
    module = model.merge(params, {})
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 7, CONFIG.width)))
    return module.logits(module(x, POSITIONS, SEGMENTS)[0])


def by_hand(params: dict, lora: LoRA) -> dict:
    """Every adapted kernel with its product added, a layer at a time."""
    kernels = without_adapters(params)
    for name in lora.chosen:
        path = f"layers/{name}"
        A, B = (np.asarray(params[f"{path}/lora/lora_{own}"]) for own in "ab")
        delta = np.stack([lora.alpha / lora.rank * a @ b for a, b in zip(A, B, strict=True)])
        kernels[f"{path}/kernel"] = jnp.asarray(params[f"{path}/kernel"] + delta)
    return kernels


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_begins_as_the_base_bit_for_bit(dtype):
    plain, own = (model_of(lora, dtype, param_dtype=jnp.float32) for lora in (None, ALL))
    key = jax.random.key(0)
    base, _ = jax.jit(plain.init)(key)
    params, _ = jax.jit(own.init)(key)
    assert {path for path in params if is_adapter(path)} == {
        f"layers/{name}/lora/lora_{ab}" for name in MATRICES for ab in "ab"
    }
    for path, x in base.items():  # the same seed draws the same base
        np.testing.assert_array_equal(x, params[path], path)
    for path in params.keys() - base.keys():
        x = np.asarray(params[path])
        if path.endswith("lora_b"):
            assert not x.any()
        else:
            bound = x.shape[1] ** -0.5
            assert x.shape[2] == ALL.rank and 0.8 * bound < np.abs(x).max() <= bound
            assert np.any(x[0] != x[1])  # layers differ
    first, second = (np.asarray(logits(m, p)) for m, p in ((plain, base), (own, params)))
    assert first.tobytes() == second.tobytes() and np.isfinite(first).all()


@pytest.mark.parametrize("lora, remat", [(TWO, "none"), (ALL, "dots")])
def test_it_is_the_base_with_the_product_added(lora, remat):
    """Forward and gradients in float64; those of A and B by the chain rule from W's."""
    with jax.enable_x64(True):
        model, plain = model_of(lora, remat=remat), model_of(None)
        params = some(model)
        kernels = by_hand(params, lora)
        look = jnp.asarray(np.random.default_rng(2).normal(size=(1, 7, CONFIG.vocab_size)))

        def value(model):
            return jax.jit(jax.value_and_grad(lambda p: (look * logits(model, p)).sum() / 7))

        loss, grads = value(model)(params)
        loss_by_hand, grads_by_hand = value(plain)(kernels)
        np.testing.assert_allclose(loss, loss_by_hand, rtol=1e-10)
        for path, grad in grads_by_hand.items():
            np.testing.assert_allclose(grads[path], grad, rtol=1e-8, atol=1e-10, err_msg=path)
        for name in lora.chosen:
            path = f"layers/{name}"
            A, B = (np.asarray(params[f"{path}/lora/lora_{own}"]) for own in "ab")
            dW = np.asarray(grads_by_hand[f"{path}/kernel"]) * lora.alpha / lora.rank
            for own, expected in (
                ("a", np.einsum("lio,lro->lir", dW, B)),
                ("b", np.einsum("lir,lio->lro", A, dW)),
            ):
                got = np.asarray(grads[f"{path}/lora/lora_{own}"])
                assert np.abs(expected).max() > 1e-4
                np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10, err_msg=path)


def test_merged_it_is_the_same_without_adapters():
    own, plain = model_of(ALL, jnp.float32), model_of(None, jnp.float32)
    params = some(own)
    result = merged(params, ALL)
    assert result.keys() == plain.params.keys()
    expected = by_hand({p: np.asarray(x, np.float64) for p, x in params.items()}, ALL)
    for path, x in result.items():
        assert x.dtype == params[path].dtype, path
        np.testing.assert_allclose(x, expected[path], rtol=1e-6, atol=1e-6, err_msg=path)
    np.testing.assert_allclose(
        logits(plain, result), logits(own, params), rtol=1e-4, atol=1e-4 * CONFIG.width
    )


def test_what_is_merged_keeps_the_dtype_of_the_base():
    params = {
        "q/kernel": jnp.ones((2, 3, 4), jnp.bfloat16),
        "q/lora/lora_a": jnp.full((2, 3, 1), 2**-7),
        "q/lora/lora_b": jnp.ones((2, 1, 4)),
        "norm/scale": jnp.ones(3),
    }
    result = merged(params, LoRA(1, 3.0, ".*"))
    assert adapted(params) == {"q"} and result.keys() == {"q/kernel", "norm/scale"}
    assert result["q/kernel"].dtype == jnp.bfloat16
    # Summed before it is rounded: 1 + 3 / 128 is a bfloat16, and 3 * (1 / 128) is added whole.
    np.testing.assert_array_equal(np.asarray(result["q/kernel"], np.float32), 1 + 3 / 128)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(rank=0), r"lora\.rank=0 must be a whole number, 1 or more; None: no adapters"),
        (dict(rank=-4), r"lora\.rank=-4 must"),
        (dict(rank=2.5), r"lora\.rank=2\.5 must"),
        (dict(rank=True), r"lora\.rank=True must"),
        (dict(alpha=0.0), r"lora\.alpha=0\.0 must be positive"),
        (dict(alpha=float("nan")), r"lora\.alpha=nan must be positive"),
        (dict(targets="q_proj"), r"targets='q_proj' matches none of attention/q, .*mlp/down"),
        (dict(targets="attention"), "matches none of .* whole names"),
        (dict(targets="(q"), "is no regular expression"),
        (dict(rank=13), r"rank=13 exceeds the smaller side of the decoder's attention/v, \[16, 12"),
        (dict(rank=17, targets="mlp/down"), r"decoder's mlp/down, \[24, 16\]"),
    ],
)
def test_what_cannot_be_is_said(change, message):
    assert TWO.faults(CONFIG, "lora") == []
    faults = dataclasses.replace(TWO, **change).faults(CONFIG, "config.stages.joint.lora")
    assert len(faults) == 1 and re.search(message, faults[0]), faults


def test_the_largest_rank_is_the_smaller_side():
    assert dataclasses.replace(TWO, rank=12).faults(CONFIG, "lora") == []
    assert dataclasses.replace(TWO, rank=16, targets="mlp/.*").faults(CONFIG, "lora") == []
    assert dataclasses.replace(TWO, rank=17, targets="mlp/.*").faults(CONFIG, "lora")
