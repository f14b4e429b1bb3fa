"""A tokenizer must go with the decoder: all of its ids are tokens of it."""

import json

import pytest

from rvllm_jax.config.check import ConfigError, resolve
from rvllm_jax.data.text import tokenizer
from rvllm_jax.experiments.saved.tokenizer import check_tokenizer, find_tokenizer

TEXTS = ["the red circle goes left " + chr(n) for n in range(32, 999)]


def test_a_tokenizer_larger_than_the_decoder_s_vocabulary_is_refused(joint):
    recipe = resolve(joint())
    check_tokenizer(recipe, tokenizer.train(TEXTS, recipe.llama.vocab_size), "weights/vicuna")
    with pytest.raises(ConfigError) as error:
        check_tokenizer(recipe, tokenizer.train(TEXTS, 513), "weights/vicuna")
    for name in ("weights/vicuna", "513", "model.decoder=tiny", "512", "config.tokenizer.folder"):
        assert name in str(error.value)


def test_stop_ids_outside_the_vocabulary_are_refused(joint, tmp_path):
    words = tokenizer.train(TEXTS, 400)
    words.save(tmp_path / "words")
    config = joint()
    config.tokenizer.folder = str(tmp_path / "words")
    for last in (511, 512):
        ids = {"eos_token_id": [words.eos_id, last]}
        (tmp_path / "words" / "generation_config.json").write_text(json.dumps(ids))
        if last == 511:
            found = find_tokenizer(resolve(config), tmp_path / "run")
            assert found.stop_ids == (words.eos_id, last)
    with pytest.raises(ConfigError, match=r"words: special ids out of range.*\[512\].*512 tokens"):
        find_tokenizer(resolve(config), tmp_path / "run")
