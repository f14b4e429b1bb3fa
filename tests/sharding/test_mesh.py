"""Meshes over eight devices, and the block of a batch that a host reads."""

import jax
import numpy as np
import pytest

from rvllm_jax.models.llama_config import DECODERS
from rvllm_jax.sharding import mesh as meshes
from rvllm_jax.sharding import rules
from rvllm_jax.sharding.layouts import make


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh(2, 2, 2)


@pytest.mark.parametrize(
    "sizes, expected",
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((8, 1, -1), (8, 1, 1)), ((1, 2, 4),) * 2],
)
def test_the_mesh_covers_all_devices(sizes, expected):
    mesh = meshes.make_mesh(*sizes)
    assert mesh.axis_names == rules.AXES and mesh.devices.shape == expected
    assert set(mesh.devices.flat) == set(jax.devices())


def test_the_mesh_covers_the_devices_given():
    some = jax.devices()[2:4]
    assert set(meshes.make_mesh(-1, 1, 1, devices=some).devices.flat) == set(some)


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 1), (1, -2, 1)])
def test_senseless_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="positive, and one of them may be -1"):
        meshes.make_mesh(*sizes)


@pytest.mark.parametrize("sizes", [(2, 2, 1), (3, -1, 1), (16, 1, 1), (16, -1, 1)])
def test_sizes_that_do_not_cover_the_devices_are_refused(sizes):
    data, fsdp, tensor = sizes
    message = f"data={data} fsdp={fsdp} tensor={tensor} does not cover the 8 devices"
    with pytest.raises(ValueError, match=message):
        meshes.make_mesh(*sizes)


def test_rows_are_split_over_data_and_fsdp(mesh):
    where = meshes.batch_sharding(mesh)
    rows = meshes.put_batch({"x": np.arange(16).reshape(8, 2)}, where)["x"]
    assert rows.sharding == where and rows.shape == (8, 2)
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 2)}
    first_rows = {int(shard.data[0, 0]) for shard in rows.addressable_shards}
    assert first_rows == {0, 4, 8, 12}
    np.testing.assert_array_equal(rows, np.arange(16).reshape(8, 2))


class OfHost:
    """What a batch's sharding says of itself on a host with these devices."""

    def __init__(self, sizes, devices):
        self.mesh = meshes.make_mesh(*sizes)
        self.devices = {jax.devices()[i] for i in devices}

    def addressable_devices_indices_map(self, shape):
        places = meshes.batch_sharding(self.mesh).devices_indices_map(shape)
        return {device: place for device, place in places.items() if device in self.devices}


@pytest.mark.parametrize(
    ("sizes", "devices", "share"),
    [
        ((8, 1, 1), range(8), (0, 1)),  # one host
        ((8, 1, 1), range(4), (0, 2)),
        ((2, 4, 1), range(4, 8), (1, 2)),
        ((2, 2, 2), range(6, 8), (3, 4)),
        ((2, 1, 4), range(2, 4), (0, 2)),  # of two hosts that hold the same rows the second
        ((1, 1, 8), range(4, 8), (0, 1)),
    ],
)
def test_a_host_reads_the_rows_that_its_devices_hold(sizes, devices, share):
    rows = sizes[0] * sizes[1]
    assert meshes.host_share(OfHost(sizes, devices), rows) == share


def test_rows_that_are_no_block_are_refused():
    with pytest.raises(ValueError, match=r"hold the parts \[0, 2\] of 4 .*choose `tensor`"):
        meshes.host_share(OfHost((4, 1, 2), (0, 4)), 4)


def test_heads_that_do_not_divide_over_tensor_are_refused():
    llama = DECODERS["smollm2-135m"]  # 9 heads, 3 of keys and values, 1,536 wide
    for tensor in (1, 3):
        meshes.check_tensor(tensor, llama.tensor_sizes)
    with pytest.raises(ValueError, match="tensor=2 .* heads=9, kv_heads=3; .* a divisor of 3"):
        meshes.check_tensor(2, llama.tensor_sizes)
    with pytest.raises(ValueError, match="tensor=2"):
        make("jit", {"data": -1, "fsdp": 1, "tensor": 2}, llama.tensor_sizes)
