"""Compiles a stage's step for TPUs that are not there, in a process of its own.

    python -m rvllm_jax.planning.compile_step < REQUEST > ANSWER

`compiled.py` starts it, with a Python that has libtpu, and reads the last line.
"""

import dataclasses
import json
import re
import sys

import jax
from jax.experimental import topologies

from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import resolve
from rvllm_jax.planning import abstract, hlo
from rvllm_jax.sharding import mesh
from rvllm_jax.sharding.layouts import JitLayout
from rvllm_jax.training.step import compile_update

OVERFLOW = re.compile(r"Used ([0-9.]+)([KMGT]) of ([0-9.]+)([KMGT]) hbm")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_step(recipe, stage, model, layout: JitLayout):
    """The compiled training step of `stage` over the layout's mesh."""
    setup, state = abstract.state(recipe, stage, model)
    batch = abstract.batch(recipe, stage)
    return compile_update(model, setup, layout, state, batch, recipe.model.loss_chunk)


def measured(program, devices: int) -> dict:
    """What the compiler says of a program: bytes a device, and what crosses the links."""
    memory = program.memory_analysis()
    found = hlo.collectives(program.as_text(), devices)
    return {
        "state": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        # What is given back beyond the buffers that it was called with.
        "output": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "received": hlo.received(found),
        "largest": [each._asdict() for each in found[:8]],
    }


def overflow(message: str) -> dict | None:
    """Bytes used and to be had, of the compiler's message that a program does not fit."""
    match = OVERFLOW.search(message)
    if match is None:
        return None
    used, limit = (float(match[i]) * UNITS[match[i + 1]] for i in (1, 3))
    return {"used": used, "limit": limit}


def answer(request: dict) -> dict:
    """`request`: config, stage, batch, topology; the answer as JSON."""
    spent = getattr(jax.config, "jax_exec_time_optimization_effort", 0.0)
    effort = {"effort": "least" if spent < 0 else "full"}
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=request["topology"]
    ).devices
    recipe = resolve(request["config"])
    stage = next(each for each in recipe.stages if each.name == request["stage"])
    stage = dataclasses.replace(stage, batch=request["batch"])
    layout = JitLayout(mesh.make_mesh(**recipe.mesh, devices=devices))
    try:
        program = compile_step(recipe, stage, build_model(recipe), layout)
    except jax.errors.JaxRuntimeError as error:
        if found := overflow(str(error)):
            return found | effort
        raise
    return measured(program, len(devices)) | effort


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
