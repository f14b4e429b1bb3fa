"""Sizes from config.json files, old and new, and back."""

import dataclasses

import pytest

from rvllm_jax.models.huggingface import HuggingFaceConfigError, llama_config, llama_values
from rvllm_jax.models.llama_config import DECODERS, LinearScaling

OLD = {  # as Vicuna 1.5 16k and the first Llama files were published
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "rms_norm_eps": 1e-5, "max_sequence_length": 4096,
    "rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 5e4,
}  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
def test_sizes_come_back(name):
    for config in (
        DECODERS[name],
        dataclasses.replace(DECODERS[name], rope_scaling=LinearScaling(2.0), mlp_bias=True),
    ):
        values = llama_values(config, "float32")
        assert llama_config(values, "x") == config
        del values["rope_parameters"]  # as older files have it
        assert llama_config(values, "x") == config


def test_old_keys_and_what_llava_leaves_out():
    config = llama_config(OLD, "x")
    assert config.kv_heads == 32 and config.head_dim == 128 and config.context == 4096
    assert config.rope_scaling == LinearScaling(4.0) and config.rope_theta == 5e4
    llava = {"text_config": {"vocab_size": 32064, "rms_norm_eps": 1e-5}}
    assert (found := llama_config(llava, "x")).vocab_size == 32064 and found.width == 4096


@pytest.mark.parametrize("key", sorted(OLD.keys() - {"rope_scaling", "rope_theta"}))
def test_a_missing_key_is_named(key):
    values = {k: v for k, v in OLD.items() if k != key}
    key = "max_position_embeddings" if key == "max_sequence_length" else key
    with pytest.raises(HuggingFaceConfigError, match=f"x: needs '{key}'"):
        llama_config(values, "x")


IMPOSSIBLE = [("hidden_size", -1), ("hidden_size", "a"), ("vocab_size", 1.5)]


@pytest.mark.parametrize("key, value", [*IMPOSSIBLE, ("num_key_value_heads", 5)])
def test_impossible_sizes_are_refused(key, value):
    with pytest.raises(HuggingFaceConfigError, match="x: "):
        llama_config(OLD | {key: value}, "x")
