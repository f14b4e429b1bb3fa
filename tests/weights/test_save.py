"""What goes out is there whole, under the names, axes and dtypes of the ones that read it."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from rvllm_jax.weights import names
from rvllm_jax.weights.open import INDEX, open_weights
from rvllm_jax.weights.safetensors import WeightsError
from rvllm_jax.weights.save import filling, save_flat, save_published

RESNET = {"architecture": "resnet18"}  # as timm says it


def arrays(weights):
    return {path: entry.read() for path, entry in weights.entries.items()}


def theirs(folder):
    """Every tensor by name, as their library reads it, and the file that it is in."""
    tensors, files = {}, {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="flax") as file:
            for name in file.keys():  # noqa: SIM118
                tensors[name], files[name] = np.asarray(file.get_tensor(name)), path.name
    return tensors, files


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, name)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_a_decoder_goes_out_as_it_came_in(llama, tensors, tmp_path, dtype):
    source = tensors(dtype)
    weights = open_weights(llama(source))
    save_published(tmp_path / "out", arrays(weights), names.LLAMA, weights.config)
    assert [file.name for file in (tmp_path / "out").glob("*.safe*")] == ["model.safetensors"]
    assert_same(theirs(tmp_path / "out")[0], source)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == weights.config


def test_kernels_of_convolutions_get_their_axes_back(tmp_path):
    """[7, 5, 3, 2] of ours is [2, 3, 7, 5] of theirs: no axis has the length of another."""
    kernel = np.arange(7 * 5 * 3 * 2, dtype=np.float32).reshape(7, 5, 3, 2)
    path = "encoder/stem/conv/kernel"
    save_published(tmp_path / "out", {path: kernel}, names.TORCHVISION, RESNET)
    expected = {"conv1.weight": kernel.transpose(3, 2, 0, 1)}
    assert_same(theirs(tmp_path / "out")[0], expected)
    np.testing.assert_array_equal(arrays(open_weights(tmp_path / "out"))[path], kernel)


def test_shards_are_no_larger_than_asked_and_the_index_tells_of_each(llama, tensors, tmp_path):
    source, most = tensors(), 1000
    weights = open_weights(llama(source))
    save_published(tmp_path / "out", arrays(weights), names.LLAMA, weights.config, most)
    found, files = theirs(tmp_path / "out")
    assert_same(found, source)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["weight_map"] == files
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in source.values())
    count = len(set(files.values()))
    assert set(files.values()) == {
        f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)
    }
    sizes = dict.fromkeys(files.values(), 0)
    for name, file in files.items():
        sizes[file] += found[name].nbytes
    assert max(sizes.values()) <= most and sum(sizes.values()) > (count - 1) * most / 2
    assert_same(arrays(open_weights(tmp_path / "out")), arrays(weights))


def test_our_own_form_holds_every_array_of_memory_and_of_files(llama, tensors, tmp_path):
    weights = open_weights(llama(tensors(np.float16), shards=3))
    own = {"projector/linear_1/kernel": jnp.ones((3, 2), jnp.bfloat16)}
    save_flat(tmp_path / "ours", {**weights.entries, **own}, {"decoder": {}})
    back = open_weights(tmp_path / "ours")
    assert back.ours and back.config == {"decoder": {}}
    expected = arrays(weights) | {path: np.asarray(x) for path, x in own.items()}
    assert_same(arrays(back), expected)


def test_what_cannot_go_out_is_refused_and_leaves_no_folder(tmp_path):
    norm = "decoder/norm/scale"
    unknown = {"decoder/layers/norm3/scale": np.ones(2, np.float32)}
    for given, message in (
        (unknown, "norm3/scale: this kind of folder has no name for it"),
        ({norm: np.ones(2, np.complex64)}, "safetensors holds no complex64"),
    ):
        with pytest.raises(WeightsError, match=message):
            save_published(tmp_path / "out", given, names.LLAMA, {})
        assert not (tmp_path / "out").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("taken", "taken/notes.txt", "file"):
        message = f"{re.escape(str(tmp_path / name))}: exists and is not an empty folder"
        for save in (
            lambda to: save_published(to, {norm: np.ones(2)}, names.LLAMA, {}),
            lambda to: save_flat(to, {norm: np.ones(2)}, {}),
        ):
            with pytest.raises(WeightsError, match=message):
                save(tmp_path / name)
    assert [file.name for file in (tmp_path / "taken").iterdir()] == ["notes.txt"]


def test_what_a_killed_writer_left_is_refused_to_readers_and_written_anew(llama, tensors, tmp_path):
    folder, weights = tmp_path / "out", open_weights(llama(tensors()))
    killed = filling(folder)
    killed.__enter__()  # and never its end, as after SIGKILL
    save_flat(folder, weights.entries, {"decoder": {}})
    (folder / "tokenizer.json.tmp").write_text("half")
    assert (folder / "model.json").is_file()
    with pytest.raises(WeightsError, match="not written to its end; repeat the"):
        open_weights(folder)
    with filling(folder):
        save_flat(folder, weights.entries, {"decoder": {}})
    assert open_weights(folder).entries.keys() == weights.entries.keys()
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model.json"}
    with pytest.raises(WeightsError, match="not an empty folder"):
        with filling(folder):
            raise AssertionError("nothing is cleared that was finished")
    assert open_weights(folder).entries.keys() == weights.entries.keys()


def test_what_fails_leaves_an_empty_folder(llama, tensors, tmp_path):
    entries = open_weights(llama(tensors())).entries
    with pytest.raises(KeyError):
        with filling(tmp_path / "out"):
            save_flat(tmp_path / "out", entries, {"decoder": {}})
            raise KeyError
    assert not list((tmp_path / "out").iterdir())
