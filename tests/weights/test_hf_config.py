"""Sizes from config.json files, old and new, and back."""

import copy
import dataclasses
import re

import pytest

from rvllm_jax.models.llama_config import DECODERS, LinearScaling, RopeScaling
from rvllm_jax.weights.hf_config import llama_config, llama_values
from rvllm_jax.weights.safetensors import WeightsError

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
        for key in ("rope_parameters", "rope_scaling"):  # as older files have it, and newer ones
            left = {k: v for k, v in values.items() if k != key}
            assert llama_config(left, "x") == config


def test_old_keys_and_what_llava_leaves_out():
    config = llama_config(OLD, "x")
    assert config.kv_heads == 32 and config.head_dim == 128 and config.context == 4096
    assert config.rope_scaling == LinearScaling(4.0) and config.rope_theta == 5e4
    llava = {"text_config": {"vocab_size": 32064, "rms_norm_eps": 1e-5}}
    assert (found := llama_config(llava, "x")).vocab_size == 32064 and found.width == 4096


LINEAR, DEFAULT = {"rope_type": "linear", "factor": 4.0}, {"rope_type": "default"}
ROTARY = {  # by key of config.json; and whether the two sets of one file are different
    "older": (dict(rope_scaling=LINEAR, rope_theta=5e5), False),
    "newer": (dict(rope_parameters=LINEAR | {"rope_theta": 5e5}, rope_theta=3e4), False),
    "newer without theta": (dict(rope_parameters=LINEAR, rope_theta=5e5), False),
    "none": (dict(rope_scaling=None, rope_parameters={}, rope_theta=5e5), False),
    "both, one theta above": (
        dict(rope_scaling=LINEAR, rope_parameters=LINEAR | {"rope_theta": 5e5}, rope_theta=5e5),
        False,
    ),
    "both, scaled in the older": (dict(rope_scaling=LINEAR, rope_parameters=DEFAULT), True),
    "both, scaled in the newer": (dict(rope_scaling=DEFAULT, rope_parameters=LINEAR), True),
    "both, two factors": (
        dict(rope_scaling=LINEAR, rope_parameters=LINEAR | {"factor": 2.0}),
        True,
    ),
    "both, two thetas": (
        dict(rope_scaling=LINEAR, rope_parameters=LINEAR | {"rope_theta": 5e5}),
        True,
    ),
}


@pytest.mark.parametrize("name", ROTARY)
def test_the_rotary_embedding_is_that_of_transformers_or_refused(name):
    transformers = pytest.importorskip("transformers", reason="a requirement of the package")
    keys, differ = ROTARY[name]
    values = {k: v for k, v in OLD.items() if k not in ("rope_scaling", "rope_theta")} | keys
    theirs = transformers.LlamaConfig.from_dict(copy.deepcopy(values)).rope_parameters
    if differ:
        message = rf"x: rope_scaling=.* are different .*rope_theta={theirs['rope_theta']:g}\)"
        with pytest.raises(WeightsError, match=message):
            llama_config(values, "x")
        return
    ours = llama_config(values, "x")
    scaling = LinearScaling(theirs["factor"]) if theirs["rope_type"] == "linear" else None
    assert (ours.rope_theta, ours.rope_scaling) == (theirs["rope_theta"], scaling)


def test_what_goes_out_says_the_same_rotary_embedding_in_every_key():
    transformers = pytest.importorskip("transformers", reason="a requirement of the package")
    for scaling in (None, LinearScaling(4.0), RopeScaling(8.0, 1.0, 4.0, 256)):
        config = dataclasses.replace(DECODERS["tiny"], rope_theta=5e5, rope_scaling=scaling)
        values = llama_values(config, "float32")
        for dropped in ("", "rope_scaling", "rope_parameters"):
            left = {k: v for k, v in copy.deepcopy(values).items() if k != dropped}
            theirs = transformers.LlamaConfig.from_dict(left).rope_parameters
            assert theirs == values["rope_parameters"], dropped


@pytest.mark.parametrize("key", sorted(OLD.keys() - {"rope_scaling", "rope_theta"}))
def test_a_missing_key_is_named(key):
    values = {k: v for k, v in OLD.items() if k != key}
    key = "max_position_embeddings" if key == "max_sequence_length" else key
    with pytest.raises(WeightsError, match=f"^x: needs '{key}'"):
        llama_config(values, "x")


def test_a_llava_is_tied_where_either_level_says_so_and_its_decoder_is_a_llama():
    text = {"vocab_size": 32064, "model_type": "llama"}
    for top, inner in ((True, False), (False, True), (False, False)):
        values = {"text_config": text | {"tie_word_embeddings": inner}, "tie_word_embeddings": top}
        assert llama_config(values, "x").tied == (top or inner)
    with pytest.raises(WeightsError, match="x: the decoder in text_config is a 'mistral'"):
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
    with pytest.raises(WeightsError, match="x: "):
        llama_config(OLD | {key: value}, "x")


@pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
def test_a_choice_is_true_or_false_and_nothing_else(key):
    assert llama_config(OLD | {key: None}, "x") == llama_config(OLD | {key: False}, "x")
    for value in ("no", "false", "", 0, 1, []):
        message = rf"^x: {key}={re.escape(repr(value))}, expected true or false"
        with pytest.raises(WeightsError, match=message):
            llama_config(OLD | {key: value}, "x")
        if key == "tie_word_embeddings":  # of a LLaVA, at either level
            for top, inner in ((value, False), (True, value)):
                llava = {"text_config": {"vocab_size": 32064, key: inner}, key: top}
                with pytest.raises(WeightsError, match=message):
                    llama_config(llava, "x")
