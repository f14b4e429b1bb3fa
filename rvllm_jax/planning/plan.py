"""One stage on one topology: what it needs, whether it fits, and what to change where not."""

import dataclasses
import math
from collections.abc import Iterator

from jax.sharding import AbstractMesh

from rvllm_jax.config.schema import Recipe, Stage
from rvllm_jax.costs.chips import Topology
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.planning import memory
from rvllm_jax.planning import rates as speed
from rvllm_jax.planning.abstract import step_costs
from rvllm_jax.planning.compile import Compiled
from rvllm_jax.planning.memory import Memory
from rvllm_jax.planning.rates import Speed
from rvllm_jax.sharding import rules
from rvllm_jax.training.stages import check_stage, micro_batch_note

WORTH_TELLING = 2**20  # bytes of parameters that a mesh does not divide


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
    largest_batch: int  # 0: not one row a device fits
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


def make(
    recipe: Recipe,
    stage: Stage,
    model: FunctionalModel,
    topology: Topology,
    *,
    clips_a_device: int = 0,
    efficiency: float = speed.EFFICIENCY,
) -> Plan:
    """By formula. `clips_a_device`: rows a device of data x fsdp instead of the stage's batch.

    Raises ValueError where mesh, batch, heads or devices do not divide.
    """
    mesh = memory.abstract_mesh(recipe, topology.chips)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if clips_a_device:
        stage = dataclasses.replace(stage, batch=clips_a_device * rows * stage.accumulate)
    instead = ", or --clips_a_device to the rows that each of them takes"
    check_stage(stage, model.params, rows, instead)
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
        largest_batch=_largest_batch(recipe, stage, measured, mesh, topology),
        advice="" if fits else _advice(recipe, stage, model, topology),
        scaling=speed.scaling(
            recipe, stage, model, mesh.shape["tensor"], stage.batch // rows, topology, efficiency
        ),
        efficiency=efficiency,
        notes=tuple(_notes(recipe, stage, model, mesh)),
    )


def with_compiled(plan: Plan, model: FunctionalModel, compiled: Compiled) -> Plan:
    """The plan, where the compiler's word counts: whether it fits, and by how much it does not."""
    advice = ""
    if not compiled.fits:
        over = compiled.peak - plan.topology.chip.usable
        advice = _advice(plan.recipe, plan.stage, model, plan.topology, over)
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
        if sum(whole.values()) > WORTH_TELLING:
            yield (
                f"config.mesh.{axis}={mesh.shape[axis]} does not divide {len(whole)} parameters of "
                f"{sum(whole.values()) / 1e9:.3f} GB, the largest {max(whole, key=whole.get)}: "
                f"they and their moments are not split over {axis}."
            )


def _largest_batch(
    recipe: Recipe, stage: Stage, measured: Memory, mesh: AbstractMesh, topology: Topology
) -> int:
    """Activations and input grow with the rows, the rest does not."""
    room = topology.chip.usable - (measured.peak - measured.activations - measured.input)
    count = memory.largest_micro_batch(recipe, stage, mesh, room, topology.platform)
    return count * stage.accumulate * mesh.shape["data"] * mesh.shape["fsdp"]


def _advice(
    recipe: Recipe,
    stage: Stage,
    model: FunctionalModel,
    topology: Topology,
    over: int | None = None,
) -> str:
    """By how much it does not fit, and the first changes that make it.

    over: bytes too much by the compiler, None by formula. What a change spares is by formula.
    """

    def peak_of(recipe: Recipe, stage: Stage) -> int:
        mesh = memory.abstract_mesh(recipe, topology.chips)
        return memory.measure(recipe, stage, model, mesh, topology.platform).peak - unlike

    usable, unlike, done = topology.chip.usable, 0, []
    if over is not None:
        unlike = peak_of(recipe, stage) - usable - over
    peak = peak_of(recipe, stage)
    text = (
        f"stage {stage.name} does not fit{', by the compiler' if over is not None else ''}: "
        f"{(peak - usable) / 1e9:.1f} GB too much for the {usable / 1e9:.1f} GB that a "
        f"{topology.kind} has for a program"
    )
    for change in (_spread, _cut_loss, _recompute, _micro_batches, _half_moments):
        what, *changed = change(recipe, stage, topology.chips)
        if not what or (new := peak_of(*changed)) >= peak:
            continue
        (recipe, stage), peak = changed, new
        done.append(what)
        if peak <= usable:
            fits = "It fits" if over is None else "By what the formula spares it fits"
            return f"{text}. {fits}, with {peak / 1e9:.1f} GB, with {', '.join(done)}"
    tried = f"; {', '.join(done)} leave {peak / 1e9:.1f} GB" if done else ""
    return f"{text}{tried}. Take more chips or larger ones, a smaller decoder, or fewer frames"


# Each: (recipe, stage, chips) -> (what changes or "", recipe, stage), the cheapest first.


def _spread(recipe: Recipe, stage: Stage, chips: int):
    sizes = memory.abstract_mesh(recipe, chips).shape
    if recipe.parallel == "pmap":
        recipe = dataclasses.replace(recipe, parallel="jit", mesh=dict(data=1, fsdp=-1, tensor=1))
        return f"config.parallel=jit, config.mesh.data=1 and .fsdp={chips}", recipe, stage
    if sizes["data"] == 1:
        return "", recipe, stage
    mesh = {"data": 1, "fsdp": chips // sizes["tensor"], "tensor": sizes["tensor"]}
    recipe = dataclasses.replace(recipe, mesh=mesh)
    return f"config.mesh.data=1 and config.mesh.fsdp={mesh['fsdp']}", recipe, stage


def _cut_loss(recipe: Recipe, stage: Stage, chips: int):
    if 0 < recipe.model.loss_chunk <= 512:
        return "", recipe, stage
    return "config.model.loss_chunk=512", _with_model(recipe, loss_chunk=512), stage


def _recompute(recipe: Recipe, stage: Stage, chips: int):
    if recipe.model.remat == "full":
        return "", recipe, stage
    return "config.model.remat=full", _with_model(recipe, remat="full"), stage


def _micro_batches(recipe: Recipe, stage: Stage, chips: int):
    sizes = memory.abstract_mesh(recipe, chips).shape
    micro = stage.batch // (sizes["data"] * sizes["fsdp"])
    if micro <= stage.accumulate:
        return "", recipe, stage
    stage = dataclasses.replace(stage, accumulate=micro)
    return f"config.stages.{stage.name}.accumulate={micro}", recipe, stage


def _half_moments(recipe: Recipe, stage: Stage, chips: int):
    optimizers = {
        name: dataclasses.replace(spec, moments="bfloat16")
        for name, spec in stage.optimizers.items()
    }
    if optimizers == stage.optimizers:
        return "", recipe, stage
    where = f"config.stages.{stage.name}.optimizers"
    what = ", ".join(f"{where}.{name}.moments=bfloat16" for name in optimizers)
    return what, recipe, dataclasses.replace(stage, optimizers=optimizers)


def _with_model(recipe: Recipe, **keys) -> Recipe:
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **keys))
