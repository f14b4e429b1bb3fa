"""Folders that are whole, and those that are refused before anything is read."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from rvllm_jax.weights.open import open_weights
from rvllm_jax.weights.safetensors import WeightsError

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("kind", [dict(), dict(shards=3), dict(shards=3, index=False)])
def test_one_file_and_shards_are_the_same_arrays(llama, tensors, kind):
    weights, own = open_weights(llama(**kind)), tensors()
    assert weights.config["hidden_size"] == 8 and not weights.ignored
    up = weights.entries["decoder/layers/mlp/up/kernel"]
    assert up.shape == (3, 8, 12) and up.dtype == np.float32
    for layer in range(3):
        np.testing.assert_array_equal(
            up.read()[layer], own[f"model.layers.{layer}.mlp.up_proj.weight"].T
        )
    embedding = weights.entries["decoder/embed/embedding"].read()
    np.testing.assert_array_equal(embedding, own["model.embed_tokens.weight"])


def test_old_frequencies_and_the_copy_of_a_tied_embedding_are_left_out_and_named(llama, tensors):
    frequencies = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": np.ones(2) for n in range(3)}
    own = tensors() | frequencies
    with pytest.raises(WeightsError, match="lm_head.weight is not model.embed_tokens.weight"):
        open_weights(llama(own, tie_word_embeddings=True, name="trained"))
    own["lm_head.weight"] = own["model.embed_tokens.weight"]
    weights = open_weights(llama(own, tie_word_embeddings=True))
    assert {*weights.ignored} == {*frequencies, "lm_head.weight"}
    assert "decoder/head/kernel" not in weights.entries


def test_a_missing_shard_is_named_with_and_without_an_index(llama):
    for index in (True, False):
        folder = llama(shards=3, index=index, name=f"index {index}")
        (folder / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(WeightsError, match="1 of 3 shards.*: model-00002-of-00003"):
            open_weights(folder)


def test_an_index_that_is_not_of_its_shards_is_refused(llama):
    folder = llama(shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.layers.9.x"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"names tensors that are not .*model\.layers\.9\.x"):
        open_weights(folder)
    del index["weight_map"]["model.layers.9.x"]
    index["weight_map"]["model.norm.weight"] = next(  # it is in the other one
        file
        for file in {*index["weight_map"].values()}
        if file != index["weight_map"]["model.norm.weight"]
    )
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"not in the shards it says: model\.norm\.weight\."):
        open_weights(folder)
    for content, message in (
        ("{", "JSON"),
        ("{}", "weight_map"),
        ('{"weight_map":{"a":"../b"}}', "other"),
    ):
        (folder / INDEX).write_text(content)
        with pytest.raises(WeightsError, match=message):
            open_weights(folder)


def test_an_index_of_one_shard_is_compared_with_it_too(llama, tensors):
    folder = llama()
    weight_map = dict.fromkeys([*tensors(), "model.layers.9.x"], "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for file in ("model.safetensors", "model-00001-of-00001.safetensors"):
        (folder / "model.safetensors").rename(folder / file)
        (folder / INDEX).write_text((folder / INDEX).read_text().replace("model.safetensors", file))
        with pytest.raises(WeightsError, match=r"names tensors that are not .*model\.layers\.9\.x"):
            open_weights(folder)


def test_a_whole_file_comes_before_an_index_as_in_transformers(llama, tensors):
    folder, own = llama(shards=2), tensors()
    own["model.norm.weight"] += 1
    save_file(own, folder / "model.safetensors")
    found = open_weights(folder).entries["decoder/norm/scale"].read()
    np.testing.assert_array_equal(found, own["model.norm.weight"])


def test_layers_of_two_half_precisions_keep_every_number(llama, tensors):
    own, name = tensors(np.float16), "model.layers.{}.mlp.up_proj.weight"
    own[name.format(1)] = own[name.format(1)].astype(ml_dtypes.bfloat16)
    entry = open_weights(llama(own)).entries["decoder/layers/mlp/up/kernel"]
    assert entry.dtype == np.float32
    for layer, read in enumerate(entry.read()):
        np.testing.assert_array_equal(read, own[name.format(layer)].T.astype(np.float32))


def test_unknown_architectures_are_refused(llama):
    with pytest.raises(WeightsError, match="'MistralForCausalLM' is not known"):
        open_weights(llama(architectures=["MistralForCausalLM"], name="a"))
    for number, wrong in enumerate(([3], {"a": 1})):
        with pytest.raises(WeightsError, match="architectures=.*expected a list of names"):
            open_weights(llama(architectures=wrong, name=f"wrong {number}"))
    assert open_weights(llama(architectures="LlamaForCausalLM", name="a string")).entries
    with pytest.raises(WeightsError, match="no config.json says"):
        open_weights(llama(architectures=None, name="b"))
    with pytest.raises(WeightsError, match="is not there"):
        open_weights("nowhere")


def test_pickles_are_not_read_and_the_command_converts_them(llama, tensors):
    """The file would make another file if it were unpickled."""
    folder = llama()
    (folder / "model.safetensors").unlink()
    executed = folder / "executed"
    bad = b"cos\nsystem\n(S'touch " + str(executed).encode() + b"'\ntR."
    (folder / "pytorch_model.bin").write_bytes(bad)
    for path in (folder, folder / "pytorch_model.bin"):
        with pytest.raises(WeightsError, match="pytorch_model.bin: pickle files") as error:
            open_weights(path)
    command = str(error.value).split("\n", 1)[1]
    torch = pytest.importorskip("torch", reason="the extra `parity` holds torch")
    command = command.replace("python -c", f"{sys.executable} -c")
    assert subprocess.run(["bash", "-c", command], capture_output=True, check=False).returncode
    assert not executed.exists()
    torch.save({n: torch.tensor(x) for n, x in tensors().items()}, folder / "pytorch_model.bin")
    subprocess.run(["bash", "-c", command], check=True)
    assert len(open_weights(folder).entries) == 12


@pytest.mark.parametrize("name", ["a folder's $HOME", "pytorch_model.of mine"])
def test_the_command_that_converts_pickles_runs_in_any_folder(llama, tensors, name):
    torch = pytest.importorskip("torch", reason="the extra `parity` holds torch")
    folder = llama(name=name)
    (folder / "model.safetensors").unlink()
    torch.save({n: torch.tensor(x) for n, x in tensors().items()}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError) as error:
        open_weights(folder)
    command = str(error.value).split("\n", 1)[1].replace("python -c", f"{sys.executable} -c")
    subprocess.run(["bash", "-c", command], check=True)
    assert len(open_weights(folder).entries) == 12
