"""A run with adapters, opened and exported: merged, it says the same."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import resolve
from rvllm_jax.data.text import tokenizer as tokenizers
from rvllm_jax.experiments.saved.convert import convert
from rvllm_jax.experiments.saved.open import open_model
from rvllm_jax.models.lora import adapted, is_adapter
from rvllm_jax.training.checkpoint import Checkpoints
from rvllm_jax.training.stages import open_layout
from rvllm_jax.training.state import StatePlacement
from rvllm_jax.training.workdir import claim
from rvllm_jax.weights.open import open_weights

pytestmark = pytest.mark.slow  # compiles for half a minute and more


@pytest.fixture(scope="module")
def run(joint, tmp_path_factory):
    """A working directory whose adapters matter: its checkpoint and what was saved once."""
    workdir = tmp_path_factory.mktemp("run")
    config = joint()
    config.schedule = "joint"
    config.stages.joint.lora.update(rank=2, alpha=6.0, targets="attention/(q|v|o)|mlp/down")
    recipe = resolve(config)
    claim(workdir, config.to_dict())
    model = build_model(recipe)
    placement = StatePlacement(model, recipe.stages, recipe.model.dtype, open_layout(recipe, model))
    arrays = placement.draw(jax.random.key(0))
    rng = np.random.default_rng(0)
    for path in arrays["params"]:
        if path.endswith("lora_b"):
            shape = arrays["params"][path].shape
            arrays["params"][path] = jnp.asarray(rng.normal(0, 0.1, shape), jnp.float32)
    tokenizers.train(["what moves where?"] * 9, recipe.tokenizer.vocab_size).save(
        workdir / "tokenizer"
    )
    checkpoints = Checkpoints(workdir)
    checkpoints.save_frozen(0, placement.settled(arrays, 0))
    checkpoints.save(5, placement.unsettled(arrays, 0), {"position": {}})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def opened(run):
    return open_model(run)


TOKENS = np.arange(12).reshape(2, 6) % 7


def logits(opened) -> np.ndarray:
    decoder = opened.module.decoder
    positions = np.tile(np.arange(6), (2, 1))
    hidden, _ = decoder(decoder.embed(jnp.asarray(TOKENS)), positions, np.zeros((2, 6), np.int32))
    return np.asarray(decoder.logits(hidden))


def test_a_run_is_opened_with_its_adapters(opened):
    assert len(adapted(opened.params)) == 4
    silent = {p: x * 0 if is_adapter(p) else x for p, x in opened.params.items()}
    base = dataclasses.replace(opened, params=silent)
    assert np.abs(logits(base) - logits(opened)).max() > 0.1


def test_merged_it_says_the_same_without_adapters(run, opened, tmp_path):
    told = convert([str(run)], tmp_path / "ours")
    assert "merged into the decoder: LoRA(rank=2, alpha=6.0" in "\n".join(told)
    assert not any(is_adapter(path) for path in open_weights(tmp_path / "ours").entries)
    export = open_model(tmp_path / "ours")
    assert export.recipe.lora is None and not adapted(export.params)
    assert json.loads((tmp_path / "ours" / "model.json").read_text())["recipe"]["stages"]
    np.testing.assert_allclose(logits(export), logits(opened), rtol=1e-4, atol=1e-4)


def test_transformers_loads_the_merged_decoder(run, opened, tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `parity` holds torch")
    transformers = pytest.importorskip("transformers")
    convert([str(run)], tmp_path / "theirs", form="transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(logits(opened), expected, rtol=1e-3, atol=1e-3)
