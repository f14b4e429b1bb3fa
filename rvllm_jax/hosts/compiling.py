"""Programs that all hosts have compiled before any of them runs one."""

from collections.abc import Callable
from typing import Any

import jax

from rvllm_jax.hosts.sync import HERE


def compiled_together(jitted: Callable) -> Callable:
    """`jitted`, for positional arrays; with several hosts none calls it while another compiles.

    Else the first one would wait for the others in its first collective, and on a CPU that gives up
    after half a minute. Every host makes the same calls.
    """
    if HERE.count == 1:
        return jitted
    programs: dict[Any, Callable] = {}

    def call(*arguments):
        leaves, structure = jax.tree.flatten(arguments)
        key = structure, tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves)
        if key not in programs:
            programs[key] = jitted.lower(*arguments).compile()
            HERE.gather(None, "compiled")
        return programs[key](*arguments)

    return call
