"""The compiler's own figures for a TPU slice that is not there, from a process with libtpu.

`compile_on` starts that process with a Python that has libtpu, and reads the last line of

    python -m rvllm_jax.planning.compile < REQUEST > ANSWER
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.experimental import topologies

from rvllm_jax.config.build import build_model
from rvllm_jax.config.check import resolve
from rvllm_jax.config.schema import Recipe, Stage
from rvllm_jax.costs.chips import Topology
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.planning import abstract, hlo
from rvllm_jax.sharding import mesh
from rvllm_jax.sharding.layouts import JitLayout
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.training.step import compile_update

# libtpu asks the machine who it is and waits for answers otherwise.
SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
# ResNet-50's convolutions take most of the time. With the least effort a step has compiled in a
# fifth of it, and its program takes more memory and links than the one that training compiles.
# JAX 0.11 has no such setting, reads none, and compiles fully.
EFFORTS = {"least": "-1.0", "full": "0.0"}
OVERFLOW = re.compile(r"Used ([0-9.]+)([KMGT]) of [0-9.]+[KMGT] hbm")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class NoCompiler(RvllmError, RuntimeError):
    """A Python without libtpu, or a compilation that failed."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's word on a program, as that process prints it. Bytes a device."""

    effort: str  # of EFFORTS, that was spent
    used: float = 0.0  # what it would need, where it does not fit; nothing else is known then
    state: int = 0  # arguments: state and batch
    temporary: int = 0
    output: int = 0  # what is given back beyond the buffers that it was called with
    # Bytes that each device receives in a step, by kind; and the largest collectives.
    received: dict[str, float] = dataclasses.field(default_factory=dict)
    largest: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def fits(self) -> bool:
        return not self.used

    @property
    def peak(self) -> float:
        return self.used or self.state + self.temporary + self.output


def compile_on(
    python: str,
    config: dict[str, Any],
    stage: str,
    batch: int,
    topology: Topology,
    effort: str = "least",
) -> Compiled:
    """Compiles the step of `stage` with a batch of `batch`; takes one to three minutes.

    `config`: the configuration as a dictionary. `effort`: of EFFORTS; "full" takes five times as
    long and more. Raises NoCompiler, with what to do.
    """
    logging.info("compiling stage %s for %s with %s effort", stage, topology.name, effort)
    request = {"config": config, "stage": stage, "batch": batch, "topology": topology.name}
    command = [python, "-m", "rvllm_jax.planning.compile"]
    # That Python may have another copy of this package, or none.
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {**SETTINGS, "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": EFFORTS[effort]}
    environment = {**os.environ, **settings, "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise NoCompiler(f"--tpu_python={python} cannot be started: {error}") from error
    if done.returncode or not done.stdout.strip():
        if "libtpu" in done.stderr or "TPU support not installed" in done.stderr:
            raise NoCompiler(
                f"{python} has no libtpu, the TPU's compiler: install the package's extra 'tpu' "
                "into an environment of its own and name its Python by --tpu_python"
            )
        raise NoCompiler(
            f"the step did not compile for {topology.name}; its last lines were\n"
            + "\n".join(done.stderr.splitlines()[-8:])
        )
    return Compiled(**json.loads(done.stdout.splitlines()[-1]))


# What that process does.


def compile_step(recipe: Recipe, stage: Stage, model: FunctionalModel, layout: JitLayout) -> Any:
    """The compiled training step of `stage` over the layout's mesh."""
    setup, state = abstract.state(recipe, stage, model)
    batch = abstract.batch(recipe, stage)
    return compile_update(model, setup, layout, state, batch, recipe.model.loss_chunk)


def measured(program: Any, devices: int, effort: str) -> Compiled:
    """What the compiler says of a program, and what crosses the links."""
    memory = program.memory_analysis()
    collectives = hlo.collectives(program.as_text(), devices)
    return Compiled(
        effort,
        state=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        output=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        received=hlo.received(collectives),
        largest=[each._asdict() for each in collectives[:8]],
    )


def overflow(message: str) -> float:
    """Bytes used, of the compiler's message that a program does not fit; 0 of another one."""
    match = OVERFLOW.search(message)
    return float(match[1]) * UNITS[match[2]] if match else 0.0


def answer(request: dict) -> Compiled:
    """`request`: config, stage, batch, topology."""
    spent = getattr(jax.config, "jax_exec_time_optimization_effort", 0.0)
    effort = "least" if spent < 0 else "full"
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
        if used := overflow(str(error)):
            return Compiled(effort, used)
        raise
    return measured(program, len(devices), effort)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(answer(json.load(sys.stdin)))))
