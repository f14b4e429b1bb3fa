"""Meshes over the devices, which part of a batch each host reads."""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.sharding.rules import AXES, BATCH_AXES
from rvllm_jax.system.errors import RvllmError


class MeshError(RvllmError, ValueError):
    """A mesh that does not go with the devices, the hosts or the decoder."""


def mesh_sizes(data: int, fsdp: int, tensor: int, devices: int) -> tuple[int, int, int]:
    """The three sizes over that many devices; one of them may be -1: all that remain.

    Raises MeshError where they do not cover the devices.
    """
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise MeshError(f"config.mesh {sizes}: sizes are positive, and one of them may be -1")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if -1 in sizes or math.prod(sizes) != devices:
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


def check_tensor(tensor: int, sizes: Mapping[str, int]) -> None:
    """Raises MeshError where one of the decoder's `sizes` does not divide into `tensor` parts.

    sizes: what the axis splits, by name: numbers of heads and hidden units.
    """
    if undivided := [f"{name}={size}" for name, size in sizes.items() if size % tensor]:
        raise MeshError(
            f"config.mesh.tensor={tensor} does not divide the decoder's {', '.join(undivided)}; "
            f"set it to a divisor of {math.gcd(*sizes.values())}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first dimension of a batch's arrays is split over `data` x `fsdp`."""
    return NamedSharding(mesh, P(BATCH_AXES))


def host_share(sharding: NamedSharding, shards: int) -> tuple[int, int]:
    """(number, count): of a batch in `count` equal blocks this host's devices hold that `number`.

    Hosts that the mesh's `tensor` axis joins hold the same one. shards: how many parts `sharding`
    makes of a batch. Raises MeshError where the host's parts are no block.
    """
    indices = sharding.addressable_devices_indices_map((shards,)).values()
    parts = sorted({index[0].indices(shards)[0] for index in indices})
    first, count = parts[0], len(parts)
    if parts != list(range(first, first + count)) or first % count or shards % count:
        raise MeshError(
            f"config.mesh {dict(sharding.mesh.shape)}: the devices of host {jax.process_index()} "
            f"hold the parts {parts} of {shards} of a batch, which are no block of it; choose "
            "`tensor` so that it divides a host's devices or is a multiple of them"
        )
    return first // count, shards // count


def put_batch(batch, sharding: NamedSharding):
    """This host's block of a batch -> global arrays of all hosts' blocks."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
