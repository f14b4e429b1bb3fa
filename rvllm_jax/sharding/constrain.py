"""Where parameters and activations lie on a mesh of `data`, `fsdp` and `tensor`.

The compiler left to itself may gather the frames or the rows of all devices. So the model says
where its activations lie; without a mesh, or with one device, it says nothing and nothing changes.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

ROWS = ("data", "fsdp")  # the axes that the rows of a batch are split over

# First match wins. Stacked decoder kernels are [layers, in, out].
RULES = (
    (r"decoder/.*/(q|k|v|gate|up)/kernel", P(None, "fsdp", "tensor")),
    (r"decoder/.*/(o|down)/kernel", P(None, "tensor", "fsdp")),
    (r"decoder/.*/(q|k|v|gate|up)/lora/lora_a", P(None, "fsdp", None)),  # as their kernels
    (r"decoder/.*/(q|k|v|gate|up)/lora/lora_b", P(None, None, "tensor")),
    (r"decoder/.*/(o|down)/lora/lora_a", P(None, "tensor", None)),
    (r"decoder/.*/(o|down)/lora/lora_b", P(None, None, "fsdp")),
    (r"decoder/embed/embedding", P("tensor", "fsdp")),
    (r"decoder/head/kernel", P("fsdp", "tensor")),
    (r"encoder/.*kernel", P(None, None, None, "fsdp")),
    (r"projector/.*(kernel|embedding)", P(None, "fsdp")),
    (r".*", P()),
)
LAYERS = "decoder/layers/"

_MESH: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


@contextlib.contextmanager
def over(mesh: Mesh) -> Iterator[None]:
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


def divides(rows: int, *heads: int) -> bool:
    """Whether each device has the same number of rows, and of each kind of heads."""
    mesh = _mesh()
    if mesh is None:
        return True
    groups = math.prod(mesh.shape[name] for name in ROWS)
    return rows % groups == 0 and all(n % mesh.shape["tensor"] == 0 for n in heads)


def on_each_device(function: Callable, given: tuple[P, ...], returned: P) -> Callable:
    """`function`, run by each device on its own part: what the compiler cannot split itself."""
    mesh = _mesh()
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=returned, check_vma=False)


def param_spec(mesh: Mesh, path: str, shape: tuple[int, ...]) -> P:
    """Where a parameter lies; an axis that does not divide its dimension is dropped."""
    spec = next(spec for pattern, spec in RULES if re.fullmatch(pattern, path))
    return _that_divide(mesh, spec, shape)


def _that_divide(mesh: Mesh, axes, shape: tuple[int, ...]) -> P:
    def parts(axis) -> int:
        names = axis if isinstance(axis, tuple) else (axis,)
        return math.prod(mesh.shape[name] for name in names)

    axes = [*axes, *[None] * len(shape)][: len(shape)]
    pairs = zip(axes, shape, strict=True)
    return P(*(axis if axis and size % parts(axis) == 0 else None for axis, size in pairs))


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """`x`, its first dimensions split over `axes` and the others whole, as far as they divide."""
    mesh = _mesh()
    if mesh is None:
        return x
    where = NamedSharding(mesh, _that_divide(mesh, axes, x.shape))
    return jax.lax.with_sharding_constraint(x, where)


def constrain_params(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Parameters, or their gradients, by path, each where its parameter lies."""
    mesh = _mesh()
    if mesh is None:
        return arrays
    return {
        path: jax.lax.with_sharding_constraint(
            x, NamedSharding(mesh, param_spec(mesh, path, x.shape))
        )
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
    found = []
    for path, leaf in nnx.to_flat_state(state):
        name, x = "/".join(map(str, path)), leaf.get_value()
        spec = param_spec(mesh, LAYERS + name, (1, *x.shape))
        x = x.astype(dtype) if name.endswith("kernel") else x
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec[1:])))
        found.append((path, leaf.replace(x)))
    return nnx.from_flat_state(found)


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
        return constrain(x.reshape(B * T, *rest), ROWS)
    groups = mesh.size // parts
    if B % groups:
        raise ValueError(f"{B} clips do not divide into data x fsdp = {groups}")
    x = constrain(x, ROWS, "tensor").reshape(groups, B // groups, parts, T // parts, *rest)
    x = constrain(x.swapaxes(1, 2), ROWS, "tensor")
    return constrain(x.reshape(B * T, *rest), (*ROWS, "tensor"))


def split_frames(x: jax.Array, B: int, T: int) -> jax.Array:
    """`[B * T, ...]` of `join_frames` -> `[B, T, ...]`."""
    mesh, parts, rest = _mesh(), frame_parts(T), x.shape[1:]
    if parts == 1:
        return constrain(x.reshape(B, T, *rest), ROWS)
    groups = mesh.size // parts
    x = constrain(x, (*ROWS, "tensor")).reshape(groups, parts, B // groups, T // parts, *rest)
    return constrain(x.swapaxes(1, 2).reshape(B, T, *rest), ROWS, "tensor")
