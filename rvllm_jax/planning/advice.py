"""What to change of a configuration where a stage does not fit a device, the cheapest first."""

import dataclasses

from rvllm_jax.config.schema import Recipe, Stage
from rvllm_jax.costs.chips import Topology
from rvllm_jax.models.functional import FunctionalModel
from rvllm_jax.planning import memory


def advise(
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

    usable, unlike, changes = topology.chip.usable, 0, []
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
        changes.append(what)
        if peak <= usable:
            fits = "It fits" if over is None else "By what the formula spares it fits"
            return f"{text}. {fits}, with {peak / 1e9:.1f} GB, with {', '.join(changes)}"
    tried = f"; {', '.join(changes)} leave {peak / 1e9:.1f} GB" if changes else ""
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
