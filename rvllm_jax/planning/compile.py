"""The compiler's own figures for a TPU slice, from a process with libtpu."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from rvllm_jax.costs.chips import Topology
from rvllm_jax.system.errors import RvllmError

# libtpu asks the machine who it is and waits for answers unless told.
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


class NoCompiler(RvllmError, RuntimeError):
    """A Python without libtpu, or a compilation that failed."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Bytes a device. Where the program does not fit, `peak` is what it would need."""

    fits: bool
    peak: int
    state: int  # arguments: state and batch
    temporary: int
    received: dict[str, float]  # bytes that each device receives in a step, by kind
    largest: tuple[dict[str, Any], ...] = ()  # of the collectives
    effort: str = "full"  # of EFFORTS, that was spent


def compile_on(
    python: str,
    config: dict[str, Any],
    stage: str,
    batch: int,
    topology: Topology,
    effort: str = "least",
) -> Compiled:
    """Compiles the step of `stage` with `batch` rows; takes one to three minutes.

    `config`: the configuration as a dictionary. `effort`: of EFFORTS; "full" takes five times as
    long and more. Raises NoCompiler, with what to do.
    """
    request = {"config": config, "stage": stage, "batch": batch, "topology": topology.name}
    command = [python, "-m", "rvllm_jax.planning.compile_step"]
    # That Python may have another copy of this package, or none.
    own = str(Path(__file__).parents[2])
    path = os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])
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
    return read_answer(json.loads(done.stdout.splitlines()[-1]))


def read_answer(answer: dict[str, Any]) -> Compiled:
    """What compile_step.py printed."""
    if "used" in answer:
        return Compiled(False, int(answer["used"]), 0, 0, {}, effort=answer["effort"])
    return Compiled(
        fits=True,
        peak=answer["state"] + answer["temporary"] + answer["output"],
        state=answer["state"],
        temporary=answer["temporary"],
        received=answer["received"],
        largest=tuple(answer["largest"]),
        effort=answer["effort"],
    )
