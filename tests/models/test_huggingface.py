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


def test_a_llava_is_tied_where_either_level_says_so_and_its_decoder_is_a_llama():
    text = {"vocab_size": 32064, "model_type": "llama"}
    for top, inner in ((True, False), (False, True), (False, False)):
        values = {"text_config": text | {"tie_word_embeddings": inner}, "tie_word_embeddings": top}
        assert llama_config(values, "x").tied == (top or inner)
    with pytest.raises(
        HuggingFaceConfigError, match="x: the decoder in text_config is a 'mistral'"
    ):
        llama_config({"text_config": text | {"model_type": "mistral"}}, "x")


IMPOSSIBLE = [
    *[("hidden_size", -1), ("hidden_size", "a"), ("vocab_size", 1.5), ("vocab_size", float("inf"))],
    *[("num_key_value_heads", 5), ("num_key_value_heads", "8"), ("head_dim", -2), ("head_dim", 3)],
    *[("rope_theta", "1e4"), ("rope_theta", -1.0), ("rms_norm_eps", float("nan"))],
    *[("rope_scaling", "linear"), ("rope_scaling", {"type": "dynamic", "factor": 2.0})],
    *[("rope_scaling", {"type": ["linear"]}), ("rope_scaling", {"type": "linear"})],
    ("rope_parameters", {"full_attention": {"rope_theta": 5e5}}),  # one set a kind of layer
    *[("partial_rotary_factor", 0.5), ("text_config", None), ("text_config", [1])],
]


@pytest.mark.parametrize("key, value", IMPOSSIBLE)
def test_impossible_sizes_are_refused(key, value):
    with pytest.raises(HuggingFaceConfigError, match="x: "):
        llama_config(OLD | {key: value}, "x")
