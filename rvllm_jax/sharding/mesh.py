"""Meshes, and where each array lies on them."""

import math

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.models.llama_config import LlamaConfig
from rvllm_jax.sharding import constrain
from rvllm_jax.system.errors import RvllmError

AXES = ("data", "fsdp", "tensor")


class MeshError(RvllmError, ValueError):
    """A mesh that does not go with the devices, the hosts or the decoder."""


def mesh_sizes(data: int, fsdp: int, tensor: int, devices: int) -> tuple[int, int, int]:
    """The three sizes over that many devices; one of them may be -1: all that remain.

    Raises MeshError where they do not cover the devices.
    """
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise MeshError(f"config.mesh {sizes}: sizes are positive, and one of them may be -1")
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if -1 in sizes or int(np.prod(sizes)) != devices:
        raise MeshError(
            f"config.mesh data={data} fsdp={fsdp} tensor={tensor} does not cover the "
            f"{devices} devices present; set sizes whose product is {devices}"
        )
    return tuple(sizes)


def make_mesh(data: int, fsdp: int, tensor: int, devices=None) -> Mesh:
    """A mesh of the given sizes over `devices`; one size may be -1: all that remain."""
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(data, fsdp, tensor, len(devices))
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def check_tensor(tensor: int, llama: LlamaConfig) -> None:
    """Raises MeshError where the decoder's heads do not divide into `tensor` parts."""
    found = [
        f"{name}={size}"
        for name in ("heads", "kv_heads", "mlp_width")
        if (size := getattr(llama, name)) % tensor
    ]
    if found:
        most = math.gcd(llama.heads, llama.kv_heads, llama.mlp_width)
        raise MeshError(
            f"config.mesh.tensor={tensor} does not divide the decoder's {', '.join(found)}; set it "
            f"to a divisor of {most}"
        )


def param_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """Where a parameter lies; an axis that does not divide its dimension is dropped."""
    return NamedSharding(mesh, constrain.param_spec(mesh, path, shape))


def param_shardings(mesh: Mesh, arrays: dict) -> dict[str, NamedSharding]:
    return {path: param_sharding(mesh, path, array.shape) for path, array in arrays.items()}


def optimizer_shardings(mesh: Mesh, tx: optax.GradientTransformation, params: dict):
    """Moments lie where their parameters do; everything else is replicated."""

    def is_masked(x):  # in each group's state, for the parameters of the other groups
        return isinstance(x, optax.MaskedNode)

    return optax.tree_utils.tree_map_params(
        tx,
        lambda moment, sharding: moment if is_masked(moment) else sharding,
        jax.eval_shape(tx.init, params),
        param_shardings(mesh, params),
        transform_non_params=lambda _: NamedSharding(mesh, P()),
        is_leaf=is_masked,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are split over `data` x `fsdp`."""
    return NamedSharding(mesh, P(constrain.ROWS))


def share_of_rows(sharding: NamedSharding, rows: int) -> tuple[int, int]:
    """(number, count): the rows of a batch that this host's devices hold are the `number`th of so
    many equal blocks; hosts that the mesh's `tensor` axis joins hold the same one.

    rows: how many parts `sharding` makes. Raises MeshError where they are no block.
    """
    places = sharding.addressable_devices_indices_map((rows,)).values()
    own = sorted({place[0].indices(rows)[0] for place in places})
    if own != list(range(own[0], own[0] + len(own))) or own[0] % len(own) or rows % len(own):
        raise MeshError(
            f"config.mesh {dict(sharding.mesh.shape)}: the devices of host {jax.process_index()} "
            f"hold the parts {own} of {rows} of a batch, which are no block of it; choose `tensor` "
            "so that it divides a host's devices or is a multiple of them"
        )
    return own[0] // len(own), rows // len(own)


def put_batch(batch, sharding: NamedSharding):
    """This host's block of rows -> global arrays of all hosts' rows."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def fetch(x: jax.Array) -> np.ndarray:
    """An array of all hosts' devices, whole in the memory of each; all hosts call it together."""
    return multihost_utils.process_allgather(x, tiled=True)
