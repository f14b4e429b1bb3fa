"""The plans that a command line asks for: every stage on every topology."""

import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from absl import logging

from rvllm_jax.config.build import build_model
from rvllm_jax.config.schema import Recipe, Stage
from rvllm_jax.costs.chips import Topology, known
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.planning import plan as estimate
from rvllm_jax.planning import rates
from rvllm_jax.planning.compile import compile_on
from rvllm_jax.planning.plan import Plan
from rvllm_jax.sharding.mesh import MeshError
from rvllm_jax.training.stages import StageError


def make_all(
    recipe: Recipe,
    config: dict[str, Any],
    topologies: Sequence[Topology],
    *,
    stages: Sequence[str] = (),
    clips_a_device: int = 0,
    efficiency: float = rates.EFFICIENCY,
    tpu_python: str = "",
    effort: str = "least",
) -> list[Plan]:
    """`recipe` is what `config` resolves to; `stages` are names, () all of them.

    With `tpu_python`, a Python that has libtpu, what is planned for TPUs is compiled as well, with
    that `effort` (compiled.EFFORTS).
    Raises ValueError for what does not divide or has no such name, NoCompiler where a step does
    not compile. All formulas come first: what is refused is refused before anything is compiled.
    """
    if not topologies:
        raise ValueError(f"--topology= names no chips; known are {known()}")
    names = [stage.name for stage in recipe.stages]
    if unknown := sorted(set(stages) - set(names)):
        raise ValueError(f"--stages={','.join(stages)}: config.schedule has {names}, not {unknown}")
    model = build_model(recipe)
    made = [
        _make(recipe, stage, model, each, clips_a_device=clips_a_device, efficiency=efficiency)
        for each in topologies
        for stage in recipe.stages
        if stage.name in (stages or names)
    ]
    if not _can_compile(tpu_python, topologies) or recipe.parallel != "jit":
        return made
    return [
        estimate.with_compiled(plan, model, _compile(plan, config, tpu_python, effort))
        if plan.topology.is_tpu
        else plan
        for plan in made
    ]


def _make(
    recipe: Recipe, stage: Stage, model: FunctionalModel, topology: Topology, **kinds
) -> Plan:
    try:
        return estimate.make(recipe, stage, model, topology, **kinds)
    except (MeshError, StageError) as error:
        raise ValueError(f"--topology={topology.name}: {error}") from error


def _compile(plan: Plan, config: dict[str, Any], python: str, effort: str):
    logging.info(
        "compiling stage %s for %s with %s effort", plan.stage.name, plan.topology.name, effort
    )
    return compile_on(python, config, plan.stage.name, plan.stage.batch, plan.topology, effort)


def _can_compile(python: str, topologies: Sequence[Topology]) -> bool:
    if not python or not any(each.is_tpu for each in topologies):
        return False
    if python == sys.executable and importlib.util.find_spec("libtpu") is None:
        logging.warning(
            "by formula only: this Python has no libtpu, the TPU's compiler. Install the extra "
            "'tpu' into an environment of its own and name its Python by --tpu_python"
        )
        return False
    return True
