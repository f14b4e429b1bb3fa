"""Where activations lie on a mesh of `data`, `fsdp` and `tensor`.

The compiler left to itself may gather the frames or the sequences of all devices. So the model says
where its activations lie; without a mesh, or with one device, it says nothing and nothing changes.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rvllm_jax.sharding.rules import BATCH_AXES, dividing_spec, param_sharding, param_spec

_MESH: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
    """What is traced in here lies on `mesh`."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def _mesh() -> Mesh | None:
    """What is traced lies on; None: on one device."""
    mesh = _MESH.get()
    return None if mesh is None or mesh.size == 1 else mesh


def platform() -> str:
    """Of the devices that what is traced will run on: "cpu", "gpu" or "tpu"."""
    mesh = _MESH.get()
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def divides(batch: int, *heads: int) -> bool:
    """Whether each device has the same part of a batch, and of each kind of heads."""
    mesh = _mesh()
    if mesh is None:
        return True
    groups = math.prod(mesh.shape[name] for name in BATCH_AXES)
    return batch % groups == 0 and all(n % mesh.shape["tensor"] == 0 for n in heads)


def on_each_device(function: Callable, given: tuple[P, ...], returned: P) -> Callable:
    """`function`, run by each device on its own part: what the compiler cannot split itself."""
    mesh = _mesh()
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=returned, check_vma=False)


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """`x`, its first dimensions split over `axes` and the others whole, as far as they divide."""
    mesh = _mesh()
    if mesh is None:
        return x
    sharding = NamedSharding(mesh, dividing_spec(mesh, axes, x.shape))
    return jax.lax.with_sharding_constraint(x, sharding)


def constrain_params(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Parameters, or their gradients, by path, each where its parameter lies."""
    mesh = _mesh()
    if mesh is None:
        return arrays
    return {
        path: jax.lax.with_sharding_constraint(x, param_sharding(mesh, path, x.shape))
        for path, x in arrays.items()
    }


def constrain_layer(state, dtype):
    """One layer's parameters (an NNX state), sliced from the stack, each where it lies.

    Its kernels are in `dtype` before they are gathered, and their gradients are split before they
    are added to the stack's: else every device would hold the gradient of all layers.
    """
    mesh = _mesh()
    if mesh is None:
        return state
    leaves = []
    for path, leaf in nnx.to_flat_state(state):
        name, x = "/".join(map(str, path)), leaf.get_value()
        spec = param_spec(mesh, f"decoder/layers/{name}", (1, *x.shape))
        x = x.astype(dtype) if name.endswith("kernel") else x
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec[1:])))
        leaves.append((path, leaf.replace(x)))
    return nnx.from_flat_state(leaves)


def frame_parts(frames: int) -> int:
    """Over how many devices of `tensor` the frames of one clip are split; 1 without a mesh."""
    mesh = _mesh()
    size = 1 if mesh is None else mesh.shape["tensor"]
    return size if frames % size == 0 else 1


def join_frames(x: jax.Array) -> jax.Array:
    """`[B, T, ...]` -> `[B * T, ...]`, split over all three axes where T divides by `tensor`.

    The order of the frames is then such that each device keeps those that it has; `split_frames`
    is the way back.
    """
    mesh, (B, T) = _mesh(), x.shape[:2]
    parts, rest = frame_parts(T), x.shape[2:]
    if parts == 1:
        return constrain(x.reshape(B * T, *rest), BATCH_AXES)
    groups = mesh.size // parts
    if B % groups:
        raise ValueError(f"{B} clips do not divide into data x fsdp = {groups}")
    x = constrain(x, BATCH_AXES, "tensor").reshape(groups, B // groups, parts, T // parts, *rest)
    x = constrain(x.swapaxes(1, 2), BATCH_AXES, "tensor")
    return constrain(x.reshape(B * T, *rest), (*BATCH_AXES, "tensor"))


def split_frames(x: jax.Array, B: int, T: int) -> jax.Array:
    """`[B * T, ...]` of `join_frames` -> `[B, T, ...]`."""
    mesh, parts, rest = _mesh(), frame_parts(T), x.shape[1:]
    if parts == 1:
        return constrain(x.reshape(B, T, *rest), BATCH_AXES)
    groups = mesh.size // parts
    x = constrain(x, (*BATCH_AXES, "tensor")).reshape(groups, parts, B // groups, T // parts, *rest)
    return constrain(x.swapaxes(1, 2).reshape(B, T, *rest), BATCH_AXES, "tensor")
