"""Chips and how many of them: "v5e:8x8" is 64 TPU v5e chips, "h200:1" one GPU."""

import dataclasses
import math
import re

from rvllm_jax.system.errors import RvllmError


class TopologyError(RvllmError, ValueError):
    """A topology that does not exist."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator. Published figures, decimal units; `source` says whose.

    `shapes`: the slices that can be had, of TPUs. `reserve`: bytes of the memory that no program
    gets. Sources without an address: the maker's data sheet of that name.
    """

    memory: int  # bytes
    flops: float  # bfloat16 a second, dense
    bandwidth: float  # bytes a second, of the memory
    link: float  # bytes a second that one chip sends to the others of its slice or machine
    a_host: int  # chips
    source: str
    shapes: tuple[str, ...] = ()
    reserve: int = 0

    @property
    def usable(self) -> int:
        """Bytes a program can have."""
        return self.memory - self.reserve

    def flops_in(self, dtype: str) -> float:
        """A second in a dtype of computation: others than bfloat16 take twice the time."""
        return self.flops / (1 if dtype == "bfloat16" else 2)


GIB = 2**30
TWO_D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
THREE_D = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x4x12", "4x8x8", "4x4x16"),
    *("8x8x8", "8x8x16", "8x16x16", "16x16x16"),
)
TPU_DOCS = "docs.cloud.google.com/tpu/docs/"
# A GPU's driver and libraries take some hundred MB to 2 GB; JAX gets the rest only with
# XLA_PYTHON_CLIENT_MEM_FRACTION above its default of 0.75.
GPU_SHARE = 0.05
CHIPS = {
    # Links: 400 GB/s over the chip's ports, in both directions. What no program gets is what the
    # compiler says where one does not fit: 15.75 GiB of v5e's and 30.75 GiB of v4's are to be had.
    # Of v6e and v5p it is our allowance.
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9, 8, TPU_DOCS + "v5e", TWO_D, GIB // 4),
    # 800 GB/s in both directions.
    "v6e": Chip(32 * GIB, 918e12, 1600e9, 400e9, 8, TPU_DOCS + "v6e", TWO_D, 3 * GIB // 4),
    # 2,400 and 4,800 Gbit/s a chip.
    "v4": Chip(32 * GIB, 275e12, 1200e9, 300e9, 4, TPU_DOCS + "v4", THREE_D, 5 * GIB // 4),
    "v5p": Chip(95 * 10**9, 459e12, 2765e9, 600e9, 4, TPU_DOCS + "v5p", THREE_D, GIB),
    # NVLink: 600 or 900 GB/s in both directions.
    "a100": Chip(
        80 * 10**9, 312e12, 2039e9, 300e9, 8, "NVIDIA A100 80GB SXM", reserve=int(80e9 * GPU_SHARE)
    ),
    "h100": Chip(
        80 * 10**9, 989e12, 3350e9, 450e9, 8, "NVIDIA H100 SXM", reserve=int(80e9 * GPU_SHARE)
    ),
    "h200": Chip(
        141 * 10**9, 989e12, 4800e9, 450e9, 8, "NVIDIA H200 SXM", reserve=int(141e9 * GPU_SHARE)
    ),
}
# What a GPU sends over the network beyond its machine: one 400 Gbit/s adapter a GPU, as DGX has.
NETWORK = 50e9


@dataclasses.dataclass(frozen=True)
class Topology:
    """A number of equal chips."""

    name: str  # "v5e:8x8"
    kind: str  # "v5e"
    chips: int

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def is_tpu(self) -> bool:
        return bool(self.chip.shapes)

    @property
    def platform(self) -> str:
        """As JAX calls it."""
        return "tpu" if self.is_tpu else "gpu"

    @property
    def hosts(self) -> int:
        return -(-self.chips // self.chip.a_host)

    @property
    def link(self) -> float:
        """Bytes a second that a chip sends, at the narrowest place between two chips."""
        return self.chip.link if self.is_tpu or self.hosts == 1 else NETWORK


# JAX's names of devices begin with these; of two that fit the longer one counts.
DEVICES = {
    **{"TPU v4": "v4", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v5e": "v5e", "TPU v5 lite": "v5e"},
    **{"TPU v6e": "v6e", "TPU v6 lite": "v6e"},
    **{"NVIDIA A100": "a100", "NVIDIA H100": "h100", "NVIDIA H200": "h200"},
}


def of_device(kind: str) -> Chip | None:
    """The chip of a device that JAX calls `kind` (`device_kind`); None where it is not known."""
    fitting = [name for name in DEVICES if kind.startswith(name)]
    return CHIPS[DEVICES[max(fitting, key=len)]] if fitting else None


def known() -> str:
    """The topologies there are, in words."""
    tpus = [f"{kind}:{'|'.join(c.shapes)}" for kind, c in CHIPS.items() if c.shapes]
    gpus = [f"{kind}:N" for kind, c in CHIPS.items() if not c.shapes]
    return f"{'; '.join([*tpus, *gpus])} (N GPUs: 1 to 8, or a multiple of 8)"


def parse(name: str) -> Topology:
    """Raises TopologyError, with those there are, where there is none of that name."""
    kind, _, shape = name.strip().lower().partition(":")
    if kind not in CHIPS:
        raise TopologyError(f"--topology={name}: there is no chip {kind!r}; known are {known()}")
    chip = CHIPS[kind]
    if chip.shapes:
        if shape not in chip.shapes:
            raise TopologyError(
                f"--topology={name}: {kind} comes in slices of {', '.join(chip.shapes)} chips, "
                f"such as {kind}:{chip.shapes[4]}; {shape or 'no shape'!r} is not one of them"
            )
        return Topology(f"{kind}:{shape}", kind, math.prod(map(int, shape.split("x"))))
    count = int(shape) if re.fullmatch(r"[0-9]{1,5}", shape) else 0
    if not (1 <= count <= chip.a_host or (count > 0 and count % chip.a_host == 0)):
        raise TopologyError(
            f"--topology={name}: expected a number of GPUs, 1 to {chip.a_host} or a multiple of "
            f"{chip.a_host}, such as {kind}:1 or {kind}:16"
        )
    return Topology(f"{kind}:{count}", kind, count)
