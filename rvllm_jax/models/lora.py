"""Low-rank adapters beside the decoder's matrices (LoRA, Hu et al. 2021, arXiv:2106.09685).

A frozen matrix W `[in, out]` is adapted to W + alpha / rank * A B, with A `[in, rank]` random and
B `[rank, out]` zero at first: the adapted decoder begins as the base itself, bit for bit. The two
are Flax's own `nnx.LoRA`, which stacks and scans with the layers, keeps the path of the matrix and
has neither alpha nor merging; those are here.

qwix 0.1.8 was tried on both supported pairs of JAX and Flax, and not taken. It adapts a single
`DecoderLayer`, but fails on a stack of them under `jax.lax.scan`, and so on `FunctionalModel`: it
hangs its random state on every module, where the scan takes it for an array of the layers; without
that state A and B are created on the layer that exists within the scan's body alone. It finds
weights by replacing the code of JAX's functions and searching the caller's frames.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rvllm_jax.models.llama import Llama, stack
from rvllm_jax.models.llama_config import LlamaConfig

# The matrices of a layer that may be adapted, as `targets` is matched with them.
MATRICES = (
    *("attention/q", "attention/k", "attention/v", "attention/o"),
    *("mlp/gate", "mlp/up", "mlp/down"),
)
ADAPTER = re.compile(r"(.*)/lora/lora_[ab]")  # the path of an A or a B, after its matrix's


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which matrices of every layer are adapted, and how: A B is scaled by alpha / rank."""

    rank: int
    alpha: float
    targets: str  # regex, matched with whole names of MATRICES

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def chosen(self) -> list[str]:
        return [name for name in MATRICES if re.fullmatch(self.targets, name)]

    def faults(self, llama: LlamaConfig, where: str) -> list[str]:
        """What of it cannot be, or does not fit the decoder; `where` is its key."""
        faults = []
        if type(self.rank) is not int or self.rank < 1:
            faults.append(
                f"{where}.rank={self.rank!r} must be a whole number, 1 or more; None: no adapters"
            )
        if not 0 < self.alpha < math.inf:
            faults.append(
                f"{where}.alpha={self.alpha} must be positive: A B is scaled by it / rank"
            )
        try:
            chosen = self.chosen
        except re.error as error:
            return [*faults, f"{where}.targets={self.targets!r} is no regular expression ({error})"]
        if not chosen:
            faults.append(
                f"{where}.targets={self.targets!r} matches none of {', '.join(MATRICES)}; it is "
                "matched with whole names, as 'attention/(q|v)' or '.*'"
            )
        sides = {name: min(_shape(llama, name)) for name in chosen}
        if not faults and self.rank > min(sides.values()):
            least = min(sides, key=sides.get)
            faults.append(
                f"{where}.rank={self.rank} exceeds the smaller side of the decoder's {least}, "
                f"{list(_shape(llama, least))}: adapters would be larger than what they adapt"
            )
        return faults


def _shape(llama: LlamaConfig, name: str) -> tuple[int, int]:
    """[in, out] of a layer's matrix."""
    room, part = name.split("/")
    if room == "mlp":
        shape = (llama.width, llama.mlp_width)
        return shape[::-1] if part == "down" else shape
    heads = llama.kv_heads if part in "kv" else llama.heads
    shape = (llama.width, heads * llama.head_dim)
    return shape[::-1] if part == "o" else shape


class Adapter(nnx.LoRA):
    """A `[in, rank]`, uniform to +-1 / sqrt(in), and B `[rank, out]`, zero."""

    def __init__(self, features: int, out: int, lora: LoRA, *, rngs, dtype, param_dtype):
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        kinds = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        super().__init__(features, lora.rank, out, a_initializer=uniform, **kinds)
        self.scale = lora.scale

    def __call__(self, x: jax.Array) -> jax.Array:
        """alpha / rank * x A B: `[..., in]` -> `[..., out]`."""
        return self.scale * super().__call__(x)


def adapt(decoder: Llama, lora: LoRA, *, rngs: nnx.Rngs) -> None:
    """Lays adapters beside the chosen matrices of every layer, in the dtypes of these.

    Beside layers/attention/q/kernel stand layers/attention/q/lora/lora_a `[layers, in, rank]` and
    lora/lora_b `[layers, rank, out]`. Called when all else is drawn: the same seed draws the same
    base, adapted or not.
    """
    for name in lora.chosen:
        room, part = name.split("/")
        linear = getattr(getattr(decoder.layers, room), part)
        kinds = {"rngs": rngs, "dtype": linear.dtype, "param_dtype": linear.param_dtype}
        sizes = linear.in_features, linear.out_features
        linear.lora = stack(Adapter, decoder.config.layers, *sizes, lora, **kinds)


def is_adapter(path: str) -> bool:
    """Whether a parameter is an A or a B."""
    return ADAPTER.fullmatch(path) is not None


def without_adapters(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Those by whose path a decoder without adapters goes."""
    return {path: x for path, x in arrays.items() if not is_adapter(path)}


def adapted(paths: Iterable[str]) -> set[str]:
    """The paths of the matrices beside which adapters stand: "decoder/layers/attention/q"."""
    return {match[1] for path in paths if (match := ADAPTER.fullmatch(path))}


def merged(params: Mapping[str, jax.Array], lora: LoRA) -> dict[str, jax.Array]:
    """The parameters of a decoder without adapters that computes the same.

    W `[..., in, out]` + alpha / rank * A B is summed in float32 or better and rounded to the dtype
    of W. Stacked or not; `params` may hold other parameters, which stay.
    """
    arrays = without_adapters(params)
    for path in adapted(params):
        W, A, B = (params[f"{path}/{leaf}"] for leaf in ("kernel", "lora/lora_a", "lora/lora_b"))
        wide = jnp.promote_types(W.dtype, jnp.float32)
        product = jnp.matmul(A.astype(wide), B.astype(wide), precision="highest")
        arrays[f"{path}/kernel"] = (W.astype(wide) + lora.scale * product).astype(W.dtype)
    return arrays
