"""All of a model's arrays, where and as they should be, or one error that lists every fault."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.weights import in_memory, stream
from rvllm_jax.weights import load as merge
from rvllm_jax.weights.check import PROJECTOR, find_faults
from rvllm_jax.weights.hf_config import llama_config
from rvllm_jax.weights.open import open_weights
from rvllm_jax.weights.safetensors import WeightsError

# What CPU takes, and what devices with memory of their own take; both work here.
LOADS = pytest.mark.parametrize("load", [in_memory.load, merge.load_by_pieces])


def shapes(entries, dtype=np.float32):
    return {path: jax.ShapeDtypeStruct(x.shape, dtype) for path, x in entries.items()}


@LOADS
@pytest.mark.parametrize("held", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("size", [20, 1 << 20])
def test_every_dtype_goes_to_its_shards_on_a_mesh(load, llama, tensors, held, size, monkeypatch):
    monkeypatch.setattr(stream, "PIECE", size)
    own = tensors(np.float32)
    if held == ml_dtypes.bfloat16:  # which the library cannot write from numpy
        own = {name: x.astype(held) for name, x in own.items()}
    entries = open_weights(llama({name: x.astype(held) for name, x in own.items()})).entries
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    axes = {8: "fsdp", 12: "tensor"}  # by size; the vocabulary and the layers are not split
    places = {
        path: NamedSharding(mesh, P(*dict.fromkeys(map(axes.get, x.shape))))
        if len({*map(axes.get, x.shape)}) == len(x.shape)
        else NamedSharding(mesh, P())
        for path, x in entries.items()
    }
    arrays = load(entries, shapes(entries), places)
    assert arrays.keys() == entries.keys()
    for path, array in arrays.items():
        assert array.dtype == np.float32 and array.sharding == places[path], path
        np.testing.assert_array_equal(array, entries[path].read().astype(np.float32), path)
    assert arrays["decoder/layers/mlp/up/kernel"].addressable_shards[0].data.shape == (3, 4, 6)


@LOADS
@pytest.mark.parametrize("size", [1, 100, 1 << 20])
@pytest.mark.parametrize("held", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_pieces_of_any_size_join_to_the_arrays_in_every_dtype(
    load, llama, tensors, held, size, monkeypatch
):
    """On one device; a piece of one byte is a row."""
    monkeypatch.setattr(stream, "PIECE", size)
    own = {name: x.astype(held) for name, x in tensors().items()}
    own["model.norm.weight"] = np.array([0, -0.0, 1, np.inf, -np.inf, np.nan, 3e4, 1e-7], held)
    entries = open_weights(llama(own)).entries
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for dtype in (ml_dtypes.bfloat16, np.float16, np.float32):
        arrays = load(entries, shapes(entries, dtype), dict.fromkeys(entries, place))
        assert arrays.keys() == entries.keys()
        for path, array in arrays.items():
            assert array.dtype == dtype and array.sharding == place
            read = entries[path].read().astype(dtype).astype(np.float32)
            np.testing.assert_array_equal(np.asarray(array).astype(np.float32), read, path)


def test_on_cpu_the_arrays_stay_where_threads_wrote_them(llama, monkeypatch):
    entries = open_weights(llama()).entries
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    written, aligned = set(), stream.aligned

    def noted(shape, dtype):
        array = aligned(shape, dtype)
        written.add(array.ctypes.data)
        return array

    monkeypatch.setattr(stream, "aligned", noted)
    arrays = merge.load(entries, shapes(entries), dict.fromkeys(entries, place))
    assert {x.unsafe_buffer_pointer() for x in arrays.values()} <= written
    before = {path: np.array(x) for path, x in arrays.items()}
    given = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)(dict(arrays))
    for path, x in before.items():
        np.testing.assert_array_equal(given[path], x + 1)


@pytest.mark.parametrize("cut", [100, -1])
def test_a_file_that_became_shorter_ends_the_load(llama, cut):
    entries = open_weights(llama()).entries
    path = next(iter(entries.values())).tensors[0].path
    path.write_bytes(path.read_bytes()[:cut])
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(WeightsError, match="ends within"):
        merge.load(entries, shapes(entries), dict.fromkeys(entries, place))


def test_one_error_lists_all_that_is_wrong_before_anything_is_read(llama, tensors, monkeypatch):
    own = tensors()
    for layer in range(3):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        own[name] = own[name].astype(np.int8)
    entries = dict(open_weights(llama(own)).entries)
    targets = shapes(entries)
    monkeypatch.setattr("rvllm_jax.weights.safetensors.FileTensor.read_into", lambda *_: 1 / 0)
    del entries["decoder/norm/scale"]
    del targets["decoder/head/kernel"]
    targets["decoder/embed/embedding"] = jax.ShapeDtypeStruct((12, 8), np.float32)
    targets["projector/linear_1/kernel"] = jax.ShapeDtypeStruct((512, 8), np.float32)
    with pytest.raises(WeightsError) as error:
        merge.check(entries, targets, random="encoder/.*", where="theirs")
    for line in (
        "missing: decoder/norm/scale float32[8]",
        "missing: projector/linear_1/kernel float32[512, 8]",
        "surplus: decoder/head/kernel float32[8, 11]",
        "misshapen: decoder/embed/embedding is float32[11, 8], expected float32[12, 8]",
        "wrong dtype: decoder/layers/attention/q/kernel is int8[8, 8], expected floating point",
    ):
        assert f"\n  {line}" in str(error.value)


def test_a_decoder_without_a_head_names_both_ways_on_and_both_lead_on(llama, tensors):
    own = tensors()
    targets = shapes(open_weights(llama(name="whole")).entries)
    del own["lm_head.weight"]
    entries = open_weights(llama(own)).entries
    with pytest.raises(WeightsError) as error:
        merge.check(entries, targets, random="projector/.*", where="theirs")
    (line,) = re.findall(r"missing: .*\n    \((.*)\)", str(error.value))
    assert "lm_head.weight" in line and "set tie_word_embeddings to true" in line
    regex = re.search("--config.model.random='(.*)'", line)[1]
    assert merge.check(entries, targets, random=regex) == ["decoder/head/kernel"]
    tied = open_weights(llama(own, tie_word_embeddings=True, name="tied"))
    assert llama_config(tied.config, "tied").tied
    del targets["decoder/head/kernel"]
    assert merge.check(tied.entries, targets) == []


def test_faults_of_layers_and_unknown_names_stand_in_the_same_error(llama, tensors):
    targets = shapes(open_weights(llama(name="whole")).entries)
    own, name = tensors(), "model.layers.{}.{}.weight".format
    for layer, part in ((1, "mlp.up_proj"), (2, "self_attn.k_proj")):  # within, and at the end
        del own[name(layer, part)]
    del own["model.norm.weight"]
    own[name(2, "mlp.down_proj")] = np.zeros((7, 12), np.float32)
    own[name(3, "mlp.up_proj")] = np.zeros((12, 8), np.float32)
    own[name(0, "self_attn.q_norm")] = own["decoder/norm/scale"] = np.zeros(8, np.float32)
    with pytest.raises(WeightsError) as error:
        merge.check(open_weights(llama(own)).entries, targets, where="theirs")
    assert sorted(str(error.value).split("\n  ")[1:]) == [
        "misshapen: model.layers.2.mlp.down_proj.weight is float32[7, 12], expected [8, 12]",
        "missing: decoder/norm/scale float32[8]",
        "missing: model.layers.1.mlp.up_proj.weight float32[12, 8]",
        "missing: model.layers.2.self_attn.k_proj.weight float32[4, 8]",
        "surplus: model.layers.3.mlp.up_proj.weight float32[12, 8], of layer 3; the model has 3 "
        "layers",
        "surplus: unknown tensor decoder/norm/scale float32[8]",
        "surplus: unknown tensor model.layers.0.self_attn.q_norm.weight float32[8]",
    ]


def test_fifty_faults_are_listed_and_the_others_counted(llama, tensors):
    targets = shapes(open_weights(llama(name="whole")).entries)
    own = tensors() | {f"x.{n}": np.zeros(1, np.float32) for n in range(52)}
    del own["model.norm.weight"]
    with pytest.raises(WeightsError) as error:
        merge.check(open_weights(llama(own)).entries, targets)
    lines = str(error.value).split("\n  ")[1:]
    assert len({*lines}) == 51 and lines[-1] == "and 3 more"
    assert lines[0] == "missing: decoder/norm/scale float32[8]"


@pytest.mark.parametrize("count", [63, 10**12])
def test_of_missing_layers_few_are_listed_however_many_a_config_says(llama, count):
    entries = open_weights(llama()).entries
    path = "decoder/layers/norm1/scale"
    faults = find_faults(
        entries, shapes(entries) | {path: jax.ShapeDtypeStruct((count, 8), "f4")}, []
    )
    name = "model.layers.{}.input_layernorm.weight float32[8]"
    assert faults[:50] == [f"missing: {name.format(n)}" for n in range(3, 53)]
    assert faults[50:] == [f"missing: {count - 53:,} more of {name.format('{n}')}"]


def test_what_may_stay_random_is_returned_by_name(llama):
    entries = open_weights(llama()).entries
    targets = shapes(entries) | {"projector/x": jax.ShapeDtypeStruct((2,), np.float32)}
    assert merge.check(entries, targets, random="projector/.*") == ["projector/x"]
    with pytest.raises(WeightsError, match="missing: projector/x"):
        merge.check(entries, targets, random="projector")


def test_two_sources_of_one_array_are_refused(llama):
    weights = open_weights(llama())
    with pytest.raises(WeightsError, match="leave one of them out"):
        merge.combine([weights, weights])


@pytest.mark.parametrize("features", [512, 2048])
def test_a_projector_of_clip_is_recognised(features):
    clip = jnp.zeros((1024, 8))
    target = jax.ShapeDtypeStruct((features, 8), np.float32)

    class Held:
        shape, dtype, tensors, stacked = clip.shape, clip.dtype, (), False

    with pytest.raises(
        WeightsError, match=f"1024 features of CLIP ViT-L; the encoder .* {features}"
    ):
        merge.check({PROJECTOR: Held}, {PROJECTOR: target})
