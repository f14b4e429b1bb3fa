"""What a model.json may say; that what `convert` writes is understood is for tests/test_convert."""

import json

import pytest

from rvllm_jax.config.check import ConfigError
from rvllm_jax.experiments.saved.describe import expected
from rvllm_jax.experiments.saved.open import describe_model
from rvllm_jax.training.workdir import is_bound
from rvllm_jax.weights.safetensors import WeightsError


@pytest.mark.parametrize(
    "description",
    [
        {"decoder": 3},
        {"encoder": [1]},
        {"encoder": {"foo": 1}},
        {"encoder": {"widths": "abc"}},
        {"projector": "linear"},
        {"projector": "odd", "features": 8, "width": 8},
        {"projector": "linear", "features": "8", "width": 8},
        {"projector": "linear", "features": 8, "width": 8, "layout": {"x": 1}},
    ],
)
def test_what_describes_no_model_is_refused_with_its_file(tmp_path, description):
    with pytest.raises(WeightsError, match=f"{tmp_path}/model.json: does not describe a model"):
        expected(description, tmp_path)


def test_a_decoder_without_a_size_is_refused_with_its_file(tmp_path):
    with pytest.raises(WeightsError, match=f"{tmp_path}/model.json: needs 'hidden_size'"):
        expected({"decoder": {"vocab_size": 8}}, tmp_path)


@pytest.mark.parametrize("recipe", [{}, 3, None, {"model": {}, "tokenizer": 1}])
def test_a_recipe_that_is_none_is_refused_in_an_export(tmp_path, recipe):
    (tmp_path / "model.json").write_text(json.dumps({"recipe": recipe}))
    with pytest.raises(ConfigError, match="model.json: its recipe is"):
        expected({"recipe": recipe}, tmp_path)
    with pytest.raises(ConfigError, match="model.json: its recipe is"):
        describe_model(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "lacks .*model"), ("[]", "no JSON object"), ('{"model": 3}', "lacks .*data")],
)
def test_a_broken_configuration_of_a_run_is_refused(talker, tmp_path, content, message):
    (tmp_path / "checkpoints").symlink_to(talker / "checkpoints")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        describe_model(tmp_path)
    assert is_bound(tmp_path)
