"""Where each parameter lies on a mesh: one table from parameter paths to mesh axes.

A mesh has three axes, of any size:

data    each part of the devices takes its part of a batch and holds all parameters;
fsdp    splits the batch too, and the parameters besides: a layer's are gathered where it runs, and
        its gradients are summed to where they lie (fully sharded data parallelism);
tensor  splits heads, hidden units and vocabulary. A matrix into them (q, k, v, gate, up) is split
        by its columns and the one out of them (o, down) by its rows, so that a layer needs one sum
        after each of its two halves (Shoeybi et al. 2019, arXiv:1909.08053).

The other dimension of a matrix goes over fsdp. Norms and biases are small and lie on all devices.
"""

import math
import re

import optax
from jax import eval_shape
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # the axes that a batch is split over

# First match wins. The decoder's kernels are stacked, [layers, in, out]; convolutions are
# [height, width, in, out]; an adapter's A is [layers, in, rank], its B [layers, rank, out].
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


def param_spec(mesh: Mesh, path: str, shape: tuple[int, ...]) -> P:
    """The axes of a parameter's dimensions; one that does not divide its dimension is dropped."""
    spec = next(spec for pattern, spec in RULES if re.fullmatch(pattern, path))
    return dividing_spec(mesh, spec, shape)


def dividing_spec(mesh: Mesh, axes, shape: tuple[int, ...]) -> P:
    """The first dimensions of `shape` over `axes`, as far as these divide them; the others whole.

    axes: a name, a tuple of names or None for each of the first dimensions.
    """

    def parts(axis) -> int:
        names = axis if isinstance(axis, tuple) else (axis,)
        return math.prod(mesh.shape[name] for name in names)

    axes = [*axes, *[None] * len(shape)][: len(shape)]
    pairs = zip(axes, shape, strict=True)
    return P(*(axis if axis and size % parts(axis) == 0 else None for axis, size in pairs))


def param_sharding(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """`param_spec` on its mesh."""
    return NamedSharding(mesh, param_spec(mesh, path, shape))


def param_shardings(mesh: Mesh, params: dict) -> dict[str, NamedSharding]:
    """By path, of parameters or their shapes."""
    return {path: param_sharding(mesh, path, x.shape) for path, x in params.items()}


def optimizer_shardings(mesh: Mesh, tx: optax.GradientTransformation, params: dict):
    """Moments lie where their parameters do; everything else lies on all devices."""

    def is_masked(x):  # in each group's state, for the parameters of the other groups
        return isinstance(x, optax.MaskedNode)

    return optax.tree_utils.tree_map_params(
        tx,
        lambda moment, sharding: moment if is_masked(moment) else sharding,
        eval_shape(tx.init, params),
        param_shardings(mesh, params),
        transform_non_params=lambda _: NamedSharding(mesh, P()),
        is_leaf=is_masked,
    )
