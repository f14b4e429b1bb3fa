"""Every stage on every topology: what it needs of each device, and whether it fits."""

import dataclasses
import importlib.util
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging
from jax.sharding import AbstractMesh

from rvllm_jax.config.build import build_model
from rvllm_jax.config.schema import Recipe, Stage
from rvllm_jax.costs.chips import Topology, known
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.planning import memory
from rvllm_jax.planning import rates as speed
from rvllm_jax.planning.abstract import step_costs
from rvllm_jax.planning.advice import advise
from rvllm_jax.planning.compile import Compiled, compile_on
from rvllm_jax.planning.memory import Memory
from rvllm_jax.planning.rates import Speed
from rvllm_jax.sharding import rules
from rvllm_jax.sharding.mesh import MeshError
from rvllm_jax.system.errors import RvllmError
from rvllm_jax.training.stages import StageError, check_stage, micro_batch_note

WORTH_A_NOTE = 2**20  # bytes of parameters that a mesh does not divide


class PlanError(RvllmError, ValueError):
    """Chips or stages that are unknown, or that the configuration does not divide over."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a stage needs of every device, and what it does with them."""

    recipe: Recipe
    stage: Stage  # with the batch that was planned
    topology: Topology
    mesh: dict[str, int]
    memory: Memory
    work: dict[str, tuple[float, float]]  # operations of one clip, as `StepCosts.step` gives them
    speed: Speed
    largest_batch: int  # 0: not one clip a device fits
    advice: str  # "" where it fits
    scaling: dict[int, Speed]  # by number of chips
    efficiency: float  # of the peak arithmetic, as predicted with
    notes: tuple[str, ...] = ()  # what of the configuration may not be what was meant
    compiled: Compiled | None = None

    @property
    def peak(self) -> int:
        """Bytes a device: the compiler's where it was asked."""
        return self.compiled.peak if self.compiled else self.memory.peak

    @property
    def fits(self) -> bool:
        if self.compiled:
            return self.compiled.fits
        return self.memory.peak <= self.topology.chip.usable


def make_plans(
    recipe: Recipe,
    config: dict[str, Any],
    topologies: Sequence[Topology],
    *,
    stages: Sequence[str] = (),
    clips_a_device: int = 0,
    efficiency: float = speed.EFFICIENCY,
    tpu_python: str = "",
    effort: str = "least",
) -> list[Plan]:
    """The plans that a command line asks for.

    `recipe` is what `config` resolves to; `stages` are names, () all of them. With `tpu_python`, a
    Python that has libtpu, what is planned for TPUs is compiled as well, with that `effort`
    (compile.EFFORTS).
    Raises PlanError for what does not divide or has no such name, NoCompiler where a step does
    not compile. All formulas come first: what is refused is refused before anything is compiled.
    """
    if not topologies:
        raise PlanError(f"--topology= names no chips; known are {known()}")
    names = [stage.name for stage in recipe.stages]
    if unknown := sorted(set(stages) - set(names)):
        raise PlanError(f"--stages={','.join(stages)}: config.schedule has {names}, not {unknown}")
    model = build_model(recipe)
    plans = []
    for topology in topologies:
        for stage in (stage for stage in recipe.stages if stage.name in (stages or names)):
            try:
                plan = make_plan(
                    recipe,
                    stage,
                    model,
                    topology,
                    clips_a_device=clips_a_device,
                    efficiency=efficiency,
                )
            except (MeshError, StageError) as error:
                raise PlanError(f"--topology={topology.name}: {error}") from error
            plans.append(plan)
    if not _can_compile(tpu_python, topologies) or recipe.parallel != "jit":
        return plans
    for number, plan in enumerate(plans):
        if plan.topology.is_tpu:
            asked = plan.stage.name, plan.stage.batch, plan.topology
            plans[number] = with_compiled(
                plan, model, compile_on(tpu_python, config, *asked, effort)
            )
    return plans


def make_plan(
    recipe: Recipe,
    stage: Stage,
    model: FunctionalModel,
    topology: Topology,
    *,
    clips_a_device: int = 0,
    efficiency: float = speed.EFFICIENCY,
) -> Plan:
    """One stage by formula. `clips_a_device`: of data x fsdp, instead of the stage's batch.

    Raises MeshError or StageError where mesh, batch, heads or devices do not divide.
    """
    mesh = memory.abstract_mesh(recipe, topology.chips)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if clips_a_device:
        stage = dataclasses.replace(stage, batch=clips_a_device * shards * stage.accumulate)
    instead = ", or --clips_a_device to the clips that each of them takes"
    check_stage(stage, model.params, shards, instead)
    measured = memory.measure(recipe, stage, model, mesh, topology.platform)
    fits = measured.peak <= topology.chip.usable
    return Plan(
        recipe=recipe,
        stage=stage,
        topology=topology,
        mesh=dict(mesh.shape),
        memory=measured,
        work=step_costs(recipe, stage, model.params).step(),
        speed=speed.predict(recipe, stage, model, mesh, topology, efficiency),
        largest_batch=memory.largest_batch(recipe, stage, mesh, topology, measured),
        advice="" if fits else advise(recipe, stage, model, topology),
        scaling=speed.scaling(
            recipe, stage, model, mesh.shape["tensor"], stage.batch // shards, topology, efficiency
        ),
        efficiency=efficiency,
        notes=tuple(_notes(recipe, stage, model, mesh)),
    )


def with_compiled(plan: Plan, model: FunctionalModel, compiled: Compiled) -> Plan:
    """The plan, where the compiler's word counts: whether it fits, and by how much it does not."""
    advice = ""
    if not compiled.fits:
        over = compiled.peak - plan.topology.chip.usable
        advice = advise(plan.recipe, plan.stage, model, plan.topology, over)
    return dataclasses.replace(plan, compiled=compiled, advice=advice)


def _notes(
    recipe: Recipe, stage: Stage, model: FunctionalModel, mesh: AbstractMesh
) -> Iterator[str]:
    frames, tensor = recipe.data.frames, mesh.shape["tensor"]
    if frames % tensor and stage.input == "video":
        yield (
            f"config.data.frames={frames} does not divide by tensor={tensor}: each of those "
            "devices encodes all frames of its clips."
        )
    if note := micro_batch_note(stage, model.params, recipe.model.norm):
        yield f"{note}."
    if recipe.parallel == "pmap":
        return
    one = AbstractMesh((1, 1, 1), mesh.axis_names)  # divides everything
    for axis in ("fsdp", "tensor"):
        whole = {
            path: math.prod(x.shape) * x.dtype.itemsize
            for path, x in model.params.items()
            if axis in rules.param_spec(one, path, x.shape)
            and axis not in rules.param_spec(mesh, path, x.shape)
        }
        if sum(whole.values()) > WORTH_A_NOTE:
            yield (
                f"config.mesh.{axis}={mesh.shape[axis]} does not divide {len(whole)} parameters of "
                f"{sum(whole.values()) / 1e9:.3f} GB, the largest {max(whole, key=whole.get)}: "
                f"they and their moments are not split over {axis}."
            )


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
