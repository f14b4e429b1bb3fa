import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.config.schema import OptimizerSpec, Stage
from rvllm_jax.models.llama_config import DECODERS
from rvllm_jax.sharding import mesh as sharding
from rvllm_jax.sharding import rules
from rvllm_jax.sharding.layouts import make
from rvllm_jax.training.stages import label_parameters, make_optimizer


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(2, 2, 2)


@pytest.mark.parametrize(
    "sizes, expected",
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((8, 1, -1), (8, 1, 1)), ((1, 2, 4),) * 2],
)
def test_the_mesh_covers_all_devices(sizes, expected):
    mesh = sharding.make_mesh(*sizes)
    assert mesh.axis_names == rules.AXES and mesh.devices.shape == expected
    assert set(mesh.devices.flat) == set(jax.devices())


def test_the_mesh_covers_the_devices_given():
    some = jax.devices()[2:4]
    assert set(sharding.make_mesh(-1, 1, 1, devices=some).devices.flat) == set(some)


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 1), (1, -2, 1)])
def test_senseless_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="positive, and one of them may be -1"):
        sharding.make_mesh(*sizes)


@pytest.mark.parametrize("sizes", [(2, 2, 1), (3, -1, 1), (16, 1, 1), (16, -1, 1)])
def test_sizes_that_do_not_cover_the_devices_are_refused(sizes):
    data, fsdp, tensor = sizes
    message = f"data={data} fsdp={fsdp} tensor={tensor} does not cover the 8 devices"
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(*sizes)


@pytest.mark.parametrize(
    "path, shape, spec",
    [
        ("decoder/layers/attention/q/kernel", (3, 16, 32), P(None, "fsdp", "tensor")),
        ("decoder/layers/mlp/down/kernel", (3, 24, 16), P(None, "tensor", "fsdp")),
        ("decoder/embed/embedding", (50, 16), P("tensor", "fsdp")),
        ("decoder/head/kernel", (16, 50), P("fsdp", "tensor")),
        ("encoder/stages/0/0/conv1/kernel", (3, 3, 8, 16), P(None, None, None, "fsdp")),
        ("decoder/layers/norm1/scale", (3, 16), P(None, None)),
        ("projector/linear/bias", (16,), P(None)),
        ("decoder/layers/attention/v/lora/lora_a", (3, 16, 4), P(None, "fsdp", None)),
        ("decoder/layers/mlp/gate/lora/lora_b", (3, 4, 24), P(None, None, "tensor")),
        ("decoder/layers/attention/o/lora/lora_a", (3, 32, 4), P(None, "tensor", None)),
        ("decoder/layers/mlp/down/lora/lora_b", (3, 4, 16), P(None, None, "fsdp")),
        # Axes that do not divide are dropped, the others stay.
        ("decoder/embed/embedding", (51, 16), P(None, "fsdp")),
        ("decoder/head/kernel", (15, 50), P(None, "tensor")),
        ("decoder/layers/mlp/up/kernel", (3, 15, 25), P(None, None, None)),
    ],
)
def test_where_a_parameter_lies(mesh, path, shape, spec):
    where = rules.param_sharding(mesh, path, shape)
    assert where.mesh == mesh and where.spec == spec
    jax.device_put(jnp.zeros(shape), where)  # jax itself refuses a spec that does not fit


def test_every_kernel_of_the_decoder_is_split(mesh, tiny_model):
    where = rules.param_shardings(mesh, tiny_model().params)
    kernels = [path for path in where if path.endswith(("kernel", "embedding"))]
    assert len(kernels) > 10
    for path in kernels:
        axes = set(where[path].spec) - {None}
        assert axes == ({"fsdp", "tensor"} if path.startswith("decoder/") else {"fsdp"}), path


def test_moments_lie_where_their_parameters_do(mesh, tiny_model):
    params = tiny_model().params
    stage = Stage(
        "s",
        "video",
        1,
        (("encoder/.*", "sgd"), (".*", "adamw")),
        {"sgd": OptimizerSpec("sgd", 0.1), "adamw": OptimizerSpec("adamw", 0.1)},
        clip=1.0,
    )
    tx = make_optimizer(stage, label_parameters(stage, params), steps=10)
    shapes = jax.eval_shape(tx.init, params)
    where = rules.optimizer_shardings(mesh, tx, params)
    assert jax.tree.structure(where) == jax.tree.structure(shapes)
    found = {path: 0 for path in params}
    for key_path, leaf in jax.tree.leaves_with_path(where):
        path = next((k.key for k in key_path if getattr(k, "key", None) in params), None)
        if path is None:
            assert leaf == NamedSharding(mesh, P())
        else:
            found[path] += 1
            assert leaf == rules.param_sharding(mesh, path, params[path].shape), key_path
    assert found == {path: 1 if path.startswith("encoder/") else 2 for path in params}


def test_rows_are_split_over_data_and_fsdp(mesh):
    where = sharding.batch_sharding(mesh)
    rows = sharding.put_batch({"x": np.arange(16).reshape(8, 2)}, where)["x"]
    assert rows.sharding == where and rows.shape == (8, 2)
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 2)}
    first_rows = {int(shard.data[0, 0]) for shard in rows.addressable_shards}
    assert first_rows == {0, 4, 8, 12}
    np.testing.assert_array_equal(rows, np.arange(16).reshape(8, 2))


class OfHost:
    """What a batch's sharding says of itself on a host with these devices."""

    def __init__(self, sizes, devices):
        self.mesh = sharding.make_mesh(*sizes)
        self.devices = {jax.devices()[i] for i in devices}

    def addressable_devices_indices_map(self, shape):
        places = sharding.batch_sharding(self.mesh).devices_indices_map(shape)
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
    assert sharding.host_share(OfHost(sizes, devices), rows) == share


def test_rows_that_are_no_block_are_refused():
    with pytest.raises(ValueError, match=r"hold the parts \[0, 2\] of 4 .*choose `tensor`"):
        sharding.host_share(OfHost((4, 1, 2), (0, 4)), 4)


def test_heads_that_do_not_divide_over_tensor_are_refused():
    llama = DECODERS["smollm2-135m"]  # 9 heads, 3 of keys and values, 1,536 wide
    for tensor in (1, 3):
        sharding.check_tensor(tensor, llama.tensor_sizes)
    with pytest.raises(ValueError, match="tensor=2 .* heads=9, kv_heads=3; .* a divisor of 3"):
        sharding.check_tensor(2, llama.tensor_sizes)
    with pytest.raises(ValueError, match="tensor=2"):
        make("jit", {"data": -1, "fsdp": 1, "tensor": 2}, llama.tensor_sizes)
